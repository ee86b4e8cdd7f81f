"""Every package has one exact version and the hashes of its files, and no install avoids them."""

import re
import tomllib
from collections.abc import Iterator

import pytest

from tests.house.pins import FILES, name_of, pins, written
from tests.house.source import CHECKOUT

_HASHES = "".join(f" \\\n    --hash=sha256:{digit * 64}" for digit in "ab")


def named(file: str) -> list[str]:
    return [name_of(pin) for pin in pins((CHECKOUT / file).read_text())]


@pytest.mark.parametrize("file", FILES)
def test_each_is_pinned_once_with_its_hashes(file: str) -> None:
    text = (CHECKOUT / file).read_text()
    found = pins(text)
    names = [name_of(pin) for pin in found]
    assert len(names) > 10
    assert sorted(set(names)) == sorted(names)
    assert [pin for pin, hashes in found.items() if not hashes] == []
    assert written({pin: set(hashes) for pin, hashes in found.items()}) == text


def test_what_the_project_asks_for_is_pinned() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    tables = project["project"]
    needed = [*tables["dependencies"], *project["build-system"]["requires"]]
    tools = tables["optional-dependencies"]["dev"]
    run, dev, swift, trove = (named(file) for file in FILES)
    assert names_of(needed) - set(run) == set()
    assert names_of(tools) - set(dev) == set()
    assert set(run) & set(dev) == set()
    assert "swift" in swift
    assert "trove" in trove


def test_troves_source_is_that_of_its_wheel() -> None:
    [source] = pins((CHECKOUT / "constraints-trove-source.txt").read_text())
    assert source in pins((CHECKOUT / "constraints-trove.txt").read_text())


def names_of(requirements: list[str]) -> set[str]:
    return {name_of(re.split(r"[^\w.-]", one)[0]) for one in requirements}


@pytest.mark.parametrize(
    "text",
    [
        "a==1\nb==2" + "\n",
        f"a==1{_HASHES}\na==1{_HASHES}\n",
        f"a>=1{_HASHES}\n",
        f"a==1{_HASHES}",
        f"a==1{_HASHES}\n--index-url=x\n",
        "a==1 \\\n    --hash=md5:" + "a" * 32 + "\n",
        "a==1 \\\n    --hash=sha256:abc\n",
    ],
)
def test_anything_else_is_noticed(text: str) -> None:
    try:
        found = pins(text)
    except ValueError:
        return
    assert not all(found.values())


def installs() -> Iterator[tuple[str, str]]:
    """Yield each command that installs Python packages in scripts and documents, with its file."""
    files = [*(CHECKOUT / "script").iterdir(), *CHECKOUT.glob("*.md"), CHECKOUT / "Vagrantfile"]
    for path in (*files, *(CHECKOUT / "docs").glob("*.md")):
        if path.name == "CHANGELOG.md":
            continue
        for line in path.read_text().replace("\\\n", " ").splitlines():
            if re.search(r"pip install|\"\$\{pip\[@\]\}\"|-m pip .*install.* -r ", line):
                yield path.name, line.strip()


def test_no_package_gets_in_without_its_hash() -> None:
    """Only the checkout has no hash. It is built with the installed packages, and adds none."""
    found = list(installs())
    assert len(found) >= 5
    local = "--no-deps --no-build-isolation"
    assert [one for one in found if "--require-hashes" not in one[1] and local not in one[1]] == []
