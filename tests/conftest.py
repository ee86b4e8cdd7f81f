"""Session fixtures: each private server is started when a test first asks for it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# how long one example takes says more about the machine's load than about the code
settings.register_profile("backup-agent", deadline=None)
settings.load_profile("backup-agent")

pytest_plugins = [
    "tests.stack.fixtures_rabbitmq",
    "tests.stack.fixtures_mariadb",
    "tests.stack.fixtures_swift",
]


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for the servers of this run, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="backup-agent-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def need(*programs: str, bootstrap: str = "") -> None:
    """Skip where a real server is missing on a laptop; fail where CI should have it.

    `bootstrap` is the word that has script/bootstrap install it.
    """
    missing = [name for name in programs if shutil.which(name) is None]
    script = f"script/bootstrap {bootstrap}".strip()
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI lacks {', '.join(missing)}: {script} should have installed it")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run {script}")
