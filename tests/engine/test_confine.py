"""A confined child changes nothing outside its directories, no matter which user runs it."""

import os
from pathlib import Path

import pytest

from agent.engine.process import Child
from agent.errors import EngineFailed
from agent.machine import confine
from tests.engine.scripts import script

HERE = confine._version()
needs_landlock = pytest.mark.skipif(HERE < 2, reason="this kernel has no Landlock, or an early one")
WAYS = {
    "create": "open(outside + '/new', 'w')",
    "overwrite": "open(outside + '/canary', 'r+').write('x')",
    "truncate": "os.truncate(outside + '/canary', 0)",
    "remove": "os.unlink(outside + '/canary')",
    "rename away": "os.rename(outside + '/canary', inside + '/canary')",
    "rename there": "os.rename(inside + '/own', outside + '/own')",
    "link there": "os.link(inside + '/own', outside + '/own')",
    "link and write": (
        "os.symlink(outside + '/canary', inside + '/link'); open(inside + '/link', 'w')"
    ),
    "make a folder": "os.mkdir(outside + '/new')",
    "through the parent": "open(inside + '/../outside/new', 'w')",
    "through proc": "open('/proc/self/cwd' + outside + '/new', 'w')",
    "in a child of its own": "sys.exit(subprocess.call(['touch', outside + '/new']))",
}


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "own").write_text("own")
    return tmp_path / "inside"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary").write_text("unharmed")
    return tmp_path / "outside"


def run(body: str, inside: Path, outside: Path, writable: list[Path] | None) -> int:
    text = f"inside, outside = {str(inside)!r}, {str(outside)!r}\n{body}"
    program = script(inside.parent / "program", text)
    with Child([program], setting="x", writable=writable) as child:
        return child.wait(20)


@needs_landlock
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_changed_outside(way: str, inside: Path, outside: Path) -> None:
    before = (outside / "canary").stat()
    assert run(WAYS[way], inside, outside, [inside]) != 0
    after = (outside / "canary").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [path.name for path in outside.iterdir()] == ["canary"]
    assert (outside / "canary").read_text() == "unharmed"


@pytest.mark.parametrize("way", WAYS)
def test_the_same_works_where_nothing_confines(way: str, inside: Path, outside: Path) -> None:
    assert run(WAYS[way], inside, outside, None) == 0


@pytest.mark.parametrize("version", range(HERE + 1))
def test_inside_everything_works(
    inside: Path, outside: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This includes the Landlock versions of older kernels. Only version 1 refuses the rename."""
    monkeypatch.setattr(confine, "_version", lambda: version)
    body = """
open(inside + '/a', 'w').write('a')
os.mkdir(inside + '/d')
os.rename(inside + '/a', inside + '/d/b')
os.truncate(inside + '/d/b', 0)
os.unlink(inside + '/d/b')
assert open(outside + '/canary').read() == 'unharmed'
open('/dev/null', 'w').write('x')
"""
    assert run(body, inside, outside, [inside]) == 0


def test_a_kernel_that_can_not_is_told_of_once(
    inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(confine, "_version", lambda: 1)
    confine._warn.cache_clear()
    for name in ("one", "two"):
        assert run(f"open(outside + '/{name}', 'w')", inside, outside, [inside]) == 0
    assert caplog.text.count("one protection against a hostile backup is missing") == 1


def test_this_process_itself_stays_free(inside: Path, outside: Path) -> None:
    assert run("", inside, outside, [inside]) == 0
    (outside / "canary").unlink()
    os.rmdir(outside)


@needs_landlock
def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="can't confine true: No such file"):
        Child(["true"], setting="x", writable=[tmp_path / "missing"])
