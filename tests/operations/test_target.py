"""The paths to which a restore may write.

Every other path is refused with a message, before the restore fetches a byte.
"""

import json
import os
import pwd
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from agent.errors import SpaceLacking, TargetRefused
from agent.machine.host import Space, free_bytes, space_of
from agent.machine.os_user import OsUser
from agent.operations.restore import reserve
from agent.operations.restore.reserve import check_space, space_watched
from agent.operations.restore.target import (
    RestoreWorkdir,
    check_paths,
    check_target,
    restore_user,
    target_below,
)
from agent.stop import Stop
from tests.stack.process import poll


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_a_missing_and_an_empty_folder_below_a_root(root: Path, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    for name in ("missing", "empty", "a/b"):
        assert target_below([tmp_path / "other", root], root / name) == root / name


def test_links_are_resolved(root: Path, tmp_path: Path) -> None:
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "real")
    with pytest.raises(TargetRefused, match="below none"):
        target_below([root], root / "out" / "x")
    assert target_below([root], root / "in" / "x") == root / "real" / "x"


@pytest.mark.parametrize("name", ["../x", "../root", "a/../b", ".", "", "../../etc/mysql"])
def test_no_way_leads_out_of_a_root(root: Path, name: str) -> None:
    with pytest.raises(TargetRefused):
        target_below([root], Path(f"{root}/{name}"))


def test_without_roots_nothing_is_allowed(root: Path) -> None:
    with pytest.raises(TargetRefused, match="below none"):
        target_below([], root / "x")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n" * 300, "File name too long"),
        ("a\0b", "null"),
        ("loop/x", "(?i)loop|symbolic"),
        ("file/x", "can't be used|Not a directory"),
        ("file", "not a directory"),
        ("full", "not empty"),
        ("link", "is a symbolic link"),
        ("stale", "was interrupted and left .*/stale/.backup-agent-restore-"),
    ],
)
def test_paths_that_cannot_be_used(root: Path, name: str, says: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    (root / "link").symlink_to(root / "missing")
    (root / "file").write_text("")
    (root / "full").mkdir()
    (root / "full" / "precious").write_text("")
    RestoreWorkdir(root / "stale", str(uuid4())).make()
    with pytest.raises(TargetRefused, match=says):
        check_target(Path(f"{root}/{name}"))


def test_a_path_has_room_for_the_names_behind_it(root: Path) -> None:
    fits = root / ("x" * 150) / ("y" * (379 - 152 - len(os.fsencode(root))))
    check_target(fits)
    with pytest.raises(TargetRefused, match="too long by 3 bytes"):
        check_target(fits.with_name(f"{fits.name}yyy"))


def test_what_an_incremental_adds_to_the_path_is_counted(root: Path) -> None:
    """Its files are opened by their whole paths, of which the engine takes 508 bytes."""
    work = RestoreWorkdir(root / "target", str(uuid4()))
    room = 508 - len(os.fsencode(work.incremental)) - 1
    check_paths(work, room)
    check_paths(work, 0)
    with pytest.raises(TargetRefused, match="too long by 2 bytes") as caught:
        check_paths(work, room + 2)
    assert "path of 36 bytes" in caught.value.hint
    assert (
        len(os.fsencode(RestoreWorkdir(Path("/" + "x" * 35), str(uuid4())).incremental)) + 401
        == 508
    )


def test_full_and_incremental_have_to_fit_together(root: Path) -> None:
    free = free_bytes(root)
    check_space(root / "x", free // 2, 0)
    with pytest.raises(SpaceLacking, match="are free"):
        check_space(root / "x", free // 2 * 3, 0)


def test_a_reserve_stays_free(root: Path) -> None:
    space = space_of(root)
    share = 100 * space.free / space.total
    check_space(root / "x", 0, share * 0.9)
    with pytest.raises(SpaceLacking, match="has to leave"):
        check_space(root / "x", space.free // 2, share * 0.9)
    with pytest.raises(SpaceLacking, match="has to leave"):
        check_space(root / "x", 0, min(100.0, share * 1.1))


def test_the_reserve_is_kept_while_a_restore_runs(root: Path) -> None:
    share = 100 * space_of(root).free / space_of(root).total
    stop = Stop()
    with space_watched(root, share * 0.9, stop):
        pass
    stop.check()
    with space_watched(root, min(100.0, share * 1.1), stop):
        poll("the watch stops it", lambda: stop.cause is not None, 20)
    with pytest.raises(SpaceLacking, match="have to stay free"):
        stop.check()


def test_files_that_can_still_be_made_are_kept_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reserve, "space_of", lambda _path: Space(100, 50, 1000, 29))
    stop = Stop()
    with space_watched(root, 3.0, stop):
        poll("the watch stops it", lambda: stop.cause is not None, 20)
    with pytest.raises(SpaceLacking, match="room for only 29 more files"):
        stop.check()


def test_a_fresh_filesystem_is_an_empty_target(root: Path) -> None:
    (root / "lost+found").mkdir(mode=0o700)
    check_target(root)
    (root / "lost+found").rmdir()
    (root / "lost+found").write_text("no folder of mkfs")
    with pytest.raises(TargetRefused, match=r"holds 'lost\+found'"):
        check_target(root)


def test_what_hinders_is_named(root: Path) -> None:
    for name in ("lost+found", *map(str, range(7))):
        (root / name).mkdir()
    with pytest.raises(TargetRefused, match="it holds '0', '1', '2', '3', '4' and 2 more"):
        check_target(root)


def test_no_target_is_in_a_datadir(root: Path) -> None:
    data = root / "data"
    (data / "shop").mkdir(parents=True)
    check_target(data / "shop" / "x")
    with pytest.raises(TargetRefused, match="the server's own datadir"):
        check_target(data / "shop" / "x", [data])
    (root / "by-link").symlink_to(data)
    with pytest.raises(TargetRefused, match="the server's own datadir"):
        check_target(root / "by-link" / "shop", [data])
    (data / "ibdata1").write_text("pages")
    for target in (data / "x", data / "shop" / "x" / "y", root / "by-link" / "x"):
        with pytest.raises(TargetRefused, match="which is a datadir: it holds ibdata1"):
            check_target(target)
    check_target(root / "beside")


def test_an_empty_datadir_of_the_server_is_no_target(root: Path) -> None:
    """Its files may have been moved away while the server still runs."""
    with pytest.raises(TargetRefused, match="the server's own datadir"):
        check_target(root, [root])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run programs as another user")
def test_root_runs_as_whom_the_files_are_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datadir = root / "data"
    datadir.mkdir()
    assert restore_user(root / "x", [datadir]) is None, "root's server"
    fallback = restore_user(root / "x", [])
    assert fallback is not None
    assert pwd.getpwuid(fallback.uid).pw_name in ("mysql", "nobody")
    with monkeypatch.context() as without:
        without.setattr("agent.operations.restore.target._SERVER_USERS", ("no-such-user",))
        with pytest.raises(TargetRefused, match="would run as root"):
            restore_user(root / "x", [])
    os.chown(datadir, 1234, 1234)
    assert restore_user(root / "x", [datadir]) == OsUser(1234, 1234, ())
    os.chown(root, 4321, 4321)
    for target in (root, root / "x", root / "x" / "y"):
        assert restore_user(target, [datadir]) == OsUser(4321, 4321, ())
    work = RestoreWorkdir(root / "x", str(uuid4()), OsUser(4321, 4321, ()))
    work.make()
    work.make_inside(work.datadir)
    for folder in (work.target, work.folder, work.datadir):
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (4321, 0o700)


class Planted(NamedTuple):
    """A restore as another user, and a directory of root's that this user tries to change."""

    work: RestoreWorkdir
    outside: Path

    def plant(self, link: Path, to: Path) -> None:
        """Put a link at the path `link`, as the user can at any moment."""
        code = (
            "import os, sys; link, to = sys.argv[1:]\n"
            "if os.path.lexists(link): os.rename(link, link + '.away')\n"
            "os.symlink(to, link)"
        )
        argv = ["/usr/bin/python3", "-c", code, str(link), str(to)]
        subprocess.run(argv, user=4321, group=4321, extra_groups=[], check=True)

    def unharmed(self) -> None:
        shown = [(one.name, one.read_text(), one.stat().st_uid) for one in self.outside.iterdir()]
        assert shown == [("secret", "of root", 0)]
        assert self.outside.stat().st_uid == 0


@pytest.fixture
def planted(scratch: Path) -> Iterator[Planted]:
    mode = stat.S_IMODE(scratch.stat().st_mode)
    scratch.chmod(0o755)
    outside = scratch / str(uuid4()) / "outside"
    outside.mkdir(mode=0o755, parents=True)
    (outside / "secret").write_text("of root")
    work = RestoreWorkdir(outside.parent / "target", str(uuid4()), OsUser(4321, 4321, ()))
    work.make()
    yield Planted(work, outside)
    scratch.chmod(mode)


OTHER_USER = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@OTHER_USER
@pytest.mark.parametrize("name", ["entries.partial", "entries.json"])
def test_root_writes_through_no_link_of_another_user(planted: Planted, name: str) -> None:
    work = planted.work
    work.make_inside(work.datadir)
    work.as_user(lambda: (work.datadir / "ibdata1").touch())
    planted.plant(work.folder / name, planted.outside / "secret")
    with suppress(TargetRefused):
        work.move_up()
    planted.unharmed()


@OTHER_USER
def test_root_moves_nothing_for_another_user(planted: Planted) -> None:
    work = planted.work
    work.make_inside(work.datadir)
    planted.plant(work.datadir, planted.outside)
    with pytest.raises(TargetRefused, match="Permission denied"):
        work.move_up()
    planted.unharmed()
    with suppress(TargetRefused):
        work.remove_inside(work.datadir)
    planted.unharmed()


@OTHER_USER
def test_root_makes_and_removes_nothing_for_another_user(planted: Planted) -> None:
    work = planted.work
    planted.plant(work.folder, planted.outside)
    with pytest.raises(TargetRefused, match="Permission denied"):
        work.make_inside(work.datadir)
    planted.unharmed()
    with suppress(TargetRefused):
        work.remove()
    planted.unharmed()


@OTHER_USER
def test_no_link_of_another_user_leads_to_a_target(planted: Planted) -> None:
    link = planted.work.target / "link"
    planted.plant(link, planted.outside)
    for name in ("new", "new/deep"):
        with pytest.raises(TargetRefused, match="the link 'link', which belongs to another user"):
            RestoreWorkdir(link / name, str(uuid4()), OsUser(4321, 4321, ())).make()
    planted.unharmed()
    roots = planted.outside.parent / "roots"
    roots.symlink_to(planted.work.target)
    work = RestoreWorkdir(roots / "a" / "b", str(uuid4()), OsUser(4321, 4321, ()))
    work.make()
    assert work.target.stat().st_uid == 4321
    work.remove()
    work.remove_target()
    assert not work.target.exists()


@OTHER_USER
def test_a_fresh_filesystem_of_roots_is_given_to_the_user(root: Path) -> None:
    (root / "lost+found").mkdir(mode=0o700)
    work = RestoreWorkdir(root, str(uuid4()), OsUser(4321, 4321, ()))
    work.make()
    assert (root.stat().st_uid, (root / "lost+found").stat().st_uid) == (4321, 0)


@pytest.fixture
def work(root: Path) -> RestoreWorkdir:
    """Return a restore's working directory in a target that was missing.

    It has a datadir of two entries.
    """
    work = RestoreWorkdir(root / "new" / "back", str(uuid4()))
    work.make()
    (work.datadir / "shop").mkdir(parents=True)
    (work.datadir / "ibdata1").write_text("pages")
    return work


def test_the_work_is_private(work: RestoreWorkdir) -> None:
    assert [path.stat().st_mode & 0o777 for path in (work.target, work.folder)] == [0o700] * 2
    with pytest.raises(TargetRefused):
        work.make()


def test_what_is_whole_is_moved_up(work: RestoreWorkdir) -> None:
    work.sync()
    for _ in range(2):
        work.move_up()
        assert sorted(path.name for path in work.target.iterdir()) == ["ibdata1", "shop"]


def test_half_of_it_is_not_the_whole(work: RestoreWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The move is interrupted after the first entry. Then another process removes this entry."""
    with monkeypatch.context() as patched:
        patched.setattr(RestoreWorkdir, "_move", _move_one_and_die())
        with pytest.raises(KeyboardInterrupt):
            work.move_up()
    (work.target / "ibdata1").unlink()
    with pytest.raises(TargetRefused, match="ibdata1 was removed while the restore ran"):
        RestoreWorkdir(work.target, work.folder.name[-36:]).move_up()
    assert [path.name for path in work.datadir.iterdir()] == ["shop"]
    assert list(work.target.iterdir()) == [work.folder]


def _move_one_and_die() -> Callable[[RestoreWorkdir, Path], None]:
    moved: list[Path] = []

    def move(self: RestoreWorkdir, entry: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(entry.rename(self.target / entry.name))

    return move


def test_what_somebody_put_there_is_not_replaced(work: RestoreWorkdir) -> None:
    (work.target / "shop").mkdir()
    with pytest.raises(TargetRefused, match="shop was made while the restore ran"):
        work.move_up()
    assert sorted(path.name for path in work.datadir.iterdir()) == ["ibdata1", "shop"]
    work.remove()
    work.remove()
    assert [path.name for path in work.target.iterdir()] == ["shop"]


def test_what_a_killed_restore_left_is_discarded(
    work: RestoreWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(RestoreWorkdir, "_move", _move_one_and_die())
        with pytest.raises(KeyboardInterrupt):
            work.move_up()
    assert len(list(work.target.iterdir())) == 2
    RestoreWorkdir(work.target, work.folder.name[-36:]).discard()
    assert list(work.target.iterdir()) == []


def test_a_discard_spares_what_the_restore_did_not_move(work: RestoreWorkdir) -> None:
    """It was killed before the first move, and another program put a datadir there."""
    names = sorted(entry.name for entry in work.datadir.iterdir())
    (work.folder / "entries.json").write_text(json.dumps(names))
    for name in names:
        (work.target / name).write_text("of another program")
    RestoreWorkdir(work.target, work.folder.name[-36:]).discard()
    assert sorted(entry.name for entry in work.target.iterdir()) == names


def test_a_discard_spares_a_complete_datadir(
    work: RestoreWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(entry.name for entry in work.datadir.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(RestoreWorkdir, "remove", lambda _: None)
        work.move_up()
    RestoreWorkdir(work.target, work.folder.name[-36:]).discard()
    assert sorted(entry.name for entry in work.target.iterdir()) == names


@pytest.mark.parametrize("note", ["5", "null", '["../x"]', '[""]', "{", "fifo", "link"])
def test_a_hostile_note_is_refused_at_once(work: RestoreWorkdir, note: str) -> None:
    path = work.folder / "entries.json"
    if note == "fifo":
        os.mkfifo(path)
    elif note == "link":
        path.symlink_to("/etc/passwd")
    else:
        path.write_text(note)
    with pytest.raises(TargetRefused):
        work.discard()
