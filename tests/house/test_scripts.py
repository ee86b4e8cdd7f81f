"""Shell scripts stop at the first command that fails."""

import re

import pytest

from tests.house.source import CHECKOUT

SCRIPTS = [
    path.name
    for path in sorted((CHECKOUT / "script").iterdir())
    if path.read_text().startswith("#!/usr/bin/env bash")
]
# Of these the status is the answer; they have nothing to stop at.
ANSWERS = {"any_key", "find_python", "is_current", "say", "stamp_of", "why_not_install"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_function_runs_where_bash_ignores_its_failures(name: str) -> None:
    """`set -e` has no effect in a function that `if`, `!`, `&&` or `||` asks for its status."""
    text = (CHECKOUT / "script" / name).read_text()
    functions = set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE)) - ANSWERS
    names = "|".join(sorted(functions)) or "(?!)"
    called = rf"(?<![\w./-])(?:{names})(?![\w.=-])"
    asked = rf"(?:\b(?:if|while|until)|!) +{called}|^[^#\n]*{called}[^\n;|&]* (?:&&|\|\|)"
    assert re.findall(asked, text, re.MULTILINE) == []
