"""Where a restore may write: every other path is refused in words, before a byte is fetched."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from agent.errors import SpaceLacking, TargetRefused
from agent.host import free_bytes
from agent.operations.target import Work, check_space, check_target, target_below


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
        ("file", "not a folder"),
        ("full", "not empty"),
        ("link", "not a folder"),
        ("stale", "was cut off and left .*/stale/.backup-agent-restore-"),
    ],
)
def test_paths_that_cannot_be_used(root: Path, name: str, says: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    (root / "link").symlink_to(root / "missing")
    (root / "file").write_text("")
    (root / "full").mkdir()
    (root / "full" / "precious").write_text("")
    Work(root / "stale", str(uuid4())).make()
    with pytest.raises(TargetRefused, match=says):
        check_target(Path(f"{root}/{name}"))


def test_full_and_incremental_have_to_fit_together(root: Path) -> None:
    free = free_bytes(root)
    check_space(root / "x", free // 2, 0)
    with pytest.raises(SpaceLacking, match="are free"):
        check_space(root / "x", free // 4 * 3, free // 4 * 3)


@pytest.fixture
def work(root: Path) -> Work:
    """A restore's folder in a target that was missing, with a datadir of two entries."""
    work = Work(root / "new" / "back", str(uuid4()))
    work.make()
    (work.datadir / "shop").mkdir(parents=True)
    (work.datadir / "ibdata1").write_text("pages")
    return work


def test_the_work_is_private(work: Work) -> None:
    assert [path.stat().st_mode & 0o777 for path in (work.target, work.folder)] == [0o700] * 2
    with pytest.raises(TargetRefused):
        work.make()


def test_what_is_whole_is_moved_up(work: Work) -> None:
    work.sync()
    for _ in range(2):
        work.move_up()
        assert sorted(path.name for path in work.target.iterdir()) == ["ibdata1", "shop"]


def test_half_of_it_is_not_the_whole(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off between two moves; then somebody removes what is there already."""
    with monkeypatch.context() as patched:
        patched.setattr(Work, "_move", _move_one_and_die())
        with pytest.raises(KeyboardInterrupt):
            work.move_up()
    (work.target / "ibdata1").unlink()
    with pytest.raises(TargetRefused, match="ibdata1 was removed while the restore ran"):
        Work(work.target, work.folder.name[-36:]).move_up()
    assert [path.name for path in work.datadir.iterdir()] == ["shop"]
    assert list(work.target.iterdir()) == [work.folder]


def _move_one_and_die() -> Callable[[Work, Path], None]:
    moved: list[Path] = []

    def move(self: Work, entry: Path) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(entry.rename(self.target / entry.name))

    return move


def test_what_somebody_put_there_is_not_replaced(work: Work) -> None:
    (work.target / "shop").mkdir()
    with pytest.raises(TargetRefused, match="shop was made while the restore ran"):
        work.move_up()
    assert sorted(path.name for path in work.datadir.iterdir()) == ["ibdata1", "shop"]
    work.remove()
    work.remove()
    assert [path.name for path in work.target.iterdir()] == ["shop"]
