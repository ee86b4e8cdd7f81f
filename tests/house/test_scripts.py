"""Shell scripts stop at the first command that fails, and print their help on request."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house.source import CHECKOUT

SCRIPTS = [
    path.name
    for path in sorted((CHECKOUT / "script").iterdir())
    if path.read_text().startswith("#!/usr/bin/env bash")
]
# The exit status of these functions is their answer. They have no command to stop at.
ANSWERS = {"any_key", "find_python", "is_current", "say", "stamp_of", "why_not_install"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_function_runs_where_bash_ignores_its_failures(name: str) -> None:
    """`set -e` has no effect in a function if `if`, `!`, `&&` or `||` tests its exit status."""
    text = (CHECKOUT / "script" / name).read_text()
    functions = set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE)) - ANSWERS
    names = "|".join(sorted(functions)) or "(?!)"
    called = rf"(?<![\w./-])(?:{names})(?![\w.=-])"
    asked = rf"(?:\b(?:if|while|until)|!) +{called}|^[^#\n]*{called}[^\n;|&]* (?:&&|\|\|)"
    assert re.findall(asked, text, re.MULTILINE) == []


# The bash scripts source `help`. broker-definitions is Python and has its own.
@pytest.mark.parametrize("name", [*SCRIPTS, "broker-definitions"])
def test_help_is_the_comment_at_the_head_and_all_that_happens(name: str, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "script", tmp_path / "script")
    before = sorted(tmp_path.rglob("*"))
    # The programs that they would start are not there.
    done = subprocess.run(
        [tmp_path / "script" / name, "--help"],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before
    text = (CHECKOUT / "script" / name).read_text()
    first = re.search(r'^(?:# |""")(\w.*)$', text, re.MULTILINE)
    assert first is not None
    assert first[1] in done.stdout
    assert "set -e" not in done.stdout
    assert f"script/{name}" in done.stdout
