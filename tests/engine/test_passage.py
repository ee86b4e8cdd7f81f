"""Another user's program reaches its own directories below closed ones, and nothing else there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.engine.process import Child
from agent.errors import EngineFailed
from agent.machine.os_user import OsUser
from agent.machine.passage import closed_directory, may_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
USER = OsUser(54321, 54322, (54323,))
# A file that a link can join could be renamed too.
PROGRAM = """#!/bin/sh -e
cd "$1"
realpath "$PWD/file"
echo new > made
ln made "$2/linked"
ls "$3"
"""


@pytest.fixture
def place(scratch: Path) -> Iterator[Path]:
    """Yield an open directory with a program in it."""
    mode = stat.S_IMODE(scratch.stat().st_mode)
    scratch.chmod(0o755)
    (scratch / "shows").write_text(PROGRAM)
    (scratch / "shows").chmod(0o755)
    yield scratch
    scratch.chmod(mode)


def folder(place: Path, name: str, mode: int) -> Path:
    """Make `place/name/inner/work`, which belongs to USER. `place/name` gets the mode `mode`."""
    work = place / name / "inner" / "work"
    work.mkdir(parents=True)
    (place / name / "secret").touch()
    (work / "file").touch()
    for directory in (work, work / "file"):
        os.chown(directory, USER.uid, USER.gid)
    for directory in (work, work.parent):
        directory.chmod(0o700)
    (place / name).chmod(mode)
    return work


def mounts_about(place: Path) -> list[str]:
    """Return the mounts above and below a directory. Tests that run beside this one have others."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [(Path(line.split()[1]), line) for line in lines]
    return [
        line for point, line in points if point.is_relative_to(place) or place.is_relative_to(point)
    ]


@pytest.mark.skipif(not may_mount(), reason="no mount namespace can be made here")
def test_a_way_leads_to_the_folders_alone(place: Path) -> None:
    work = folder(place, "one", 0o700)
    one, two = work / "one", work / "two"
    for directory in (one, two):
        directory.mkdir(mode=0o700)
        (directory / "file").touch()
        os.chown(directory, USER.uid, USER.gid)
    mounts = mounts_about(place)
    argv = [str(place / "shows"), str(one), str(two), str(place / "one")]
    with Child(argv, setting="", stdout=True, user=USER, writable=[one, two]) as child:
        shown = child.stdout.readall().decode().splitlines()
        assert child.wait(10) == 2, child.log.lines()
    assert shown == [f"{one}/file"]
    # A directory on the way shows nothing of its other contents.
    assert "Permission denied" in child.log.lines()[-1]
    assert (two / "linked").samefile(one / "made")
    assert (one / "made").stat().st_uid == USER.uid
    assert mounts_about(place) == mounts
    assert sorted(path.name for path in (place / "one").iterdir()) == ["inner", "secret"]


@pytest.mark.skipif(not may_mount(), reason="no mount namespace can be made here")
def test_files_move_between_the_folders_of_one_restore(place: Path) -> None:
    """An incremental brings files of tables along, which rename(2) moves."""
    work = folder(place, "four", 0o700)
    for name in ("datadir", "incremental"):
        (work / name).mkdir(mode=0o700)
        os.chown(work / name, USER.uid, USER.gid)
    (work / "incremental" / "t.ibd").touch()
    code = "import os, sys; os.rename(f'{sys.argv[1]}/t.ibd', f'{sys.argv[2]}/t.ibd')"
    folders = [work / "incremental", work / "datadir"]
    argv = ["/usr/bin/python3", "-c", code, *map(str, folders)]
    with Child(argv, setting="", user=USER, writable=folders) as child:
        assert child.wait(10) == 0, child.log.lines()
    assert [path.name for path in (work / "datadir").iterdir()] == ["t.ibd"]


@pytest.mark.skipif(not may_mount(), reason="no mount namespace can be made here")
def test_no_way_leads_to_what_is_not_the_users(place: Path) -> None:
    """This happens if the user replaces its directory with a link."""
    work = folder(place, "three", 0o700)
    (place / "three" / "roots").mkdir(mode=0o755)
    work.parent.joinpath("link").symlink_to(place / "three" / "roots")
    argv = [str(place / "shows"), "/", "/", "/"]
    with pytest.raises(EngineFailed, match="three/roots belongs to another user"):
        Child(argv, setting="", user=USER, writable=[work.parent / "link"])


@pytest.mark.parametrize(
    ("owner", "mode", "closed"),
    [
        ((0, 0), 0o701, False),
        ((0, 0), 0o770, True),
        ((0, 54322), 0o710, False),
        ((0, 54323), 0o710, False),
        ((0, 54323), 0o701, True),
        ((54321, 0), 0o611, True),
        ((54321, 0), 0o100, False),
    ],
)
def test_whom_a_directory_is_closed_to(
    place: Path, owner: tuple[int, int], mode: int, closed: bool
) -> None:
    directory = place / f"{owner}{mode}"
    directory.mkdir()
    os.chown(directory, *owner)
    directory.chmod(mode)
    (directory / "x").mkdir()
    assert closed_directory(USER, directory / "x") == (directory if closed else None)
