"""Every package that pyproject.toml asks for has one exact version in constraints.txt."""

import re
import tomllib

import pytest

from tests.house.source import CHECKOUT

_PIN = re.compile(r"([A-Za-z0-9._-]+)==[0-9][A-Za-z0-9.]*")


def normal(name: str) -> str:
    """A package's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> list[str]:
    """Names of the packages that the file pins; it holds nothing else."""
    lines = (CHECKOUT / file).read_text().splitlines()
    matches = [_PIN.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if not match] == []
    return [normal(match[1]) for match in matches if match]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-swift.txt"])
def test_each_is_pinned_once(file: str) -> None:
    names = pins(file)
    assert len(names) > 10
    assert sorted(set(names)) == sorted(names)


def test_what_the_project_asks_for_is_pinned() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in asked}
    assert names - set(pins("constraints.txt")) == set()
    assert "swift" in pins("constraints-swift.txt")
