"""Root works on another user's files with no more rights than that user has."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from agent.machine.as_user import done_as
from agent.machine.os_user import OsUser
from agent.machine.passage import may_mount

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
USER = OsUser(54321, 54322, (54323,))


@pytest.fixture
def place(scratch: Path) -> Iterator[Path]:
    """Yield a directory that belongs to USER, in one that every user may pass through."""
    mode = stat.S_IMODE(scratch.stat().st_mode)
    scratch.chmod(0o755)
    own = scratch / str(uuid4()) / "own"
    own.mkdir(parents=True)
    os.chown(own, USER.uid, USER.gid)
    yield own
    scratch.chmod(mode)


def test_what_is_made_is_the_users(place: Path) -> None:
    done_as(USER, place, lambda: (place / "made").write_text("x"))
    done_as(USER, place, (place / "folder").mkdir)
    for path in (place / "made", place / "folder"):
        assert (path.stat().st_uid, path.stat().st_gid) == (USER.uid, USER.gid)


@pytest.mark.parametrize(
    ("owner", "mode", "readable"),
    [
        ((0, 0), 0o600, False),
        ((0, 0), 0o040, False),
        ((0, USER.gid), 0o040, True),
        ((0, USER.groups[0]), 0o040, True),
        ((0, 0), 0o004, True),
    ],
)
def test_a_link_leads_only_where_the_user_may_go(
    place: Path, owner: tuple[int, int], mode: int, readable: bool
) -> None:
    (place.parent / "theirs").write_text("theirs")
    os.chown(place.parent / "theirs", *owner)
    (place.parent / "theirs").chmod(mode)
    (place / "link").symlink_to(place.parent / "theirs")
    if readable:
        assert done_as(USER, place, (place / "link").read_text) == "theirs"
    else:
        with pytest.raises(PermissionError):
            done_as(USER, place, (place / "link").read_text)
    with pytest.raises(PermissionError):
        done_as(USER, place, lambda: (place / "link").write_text("x"))
    assert (place / "link").read_text() == "theirs"


def identity() -> list[str]:
    """Return the kernel's lines about this thread's users, groups and capabilities."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("Uid", "Gid", "Groups", "CapEff"))]


def test_this_thread_stays_roots(place: Path) -> None:
    before = identity()
    assert done_as(USER, place, identity) != before
    assert identity() == before
    (place / "made").touch()
    assert (place / "made").stat().st_uid == 0


@pytest.mark.skipif(not may_mount(), reason="no mount namespace can be made here")
def test_it_reaches_the_folder_below_a_closed_one(place: Path) -> None:
    place.parent.chmod(0o700)
    (place.parent / "secret").touch()
    done_as(USER, place, (place / "made").touch)
    assert (place / "made").stat().st_uid == USER.uid
    with pytest.raises(OSError, match="secret"):
        done_as(USER, place, (place.parent / "secret").read_text)


def test_what_it_raises_is_raised(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        done_as(USER, place, (place / "none").read_text)
