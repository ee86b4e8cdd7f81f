"""Session fixtures. Each private server is started when a test first requests it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# the time of one example depends on the machine's load more than on the code
settings.register_profile("backup-agent", deadline=None)
settings.load_profile("backup-agent")

pytest_plugins = [
    "tests.stack.fixtures_rabbitmq",
    "tests.stack.fixtures_mariadb",
    "tests.stack.fixtures_swift",
    "tests.stack.fixtures_keystone",
]


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Yield a directory for the servers of this run, removed when the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="backup-agent-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def need(*programs: str, bootstrap: str = "") -> None:
    """Skip the test if a program is missing. Fail it instead in CI, which must have them all.

    `bootstrap` is the argument of script/bootstrap that installs the programs.
    """
    missing = [name for name in programs if shutil.which(name) is None]
    script = f"script/bootstrap {bootstrap}".strip()
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI lacks {', '.join(missing)}: {script} should have installed it")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run {script}")
