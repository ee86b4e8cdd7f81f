"""Where a restore may write: every other path is refused in words, before a byte is fetched."""

from pathlib import Path

import pytest

from agent.errors import SpaceLacking, TargetRefused
from agent.host import free_bytes
from agent.operations.target import check_space, check_target, target_below


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
        # the target's own name would do, but not that of the folder beside it
        ("n" * 250, "File name too long"),
        ("a\0b", "null"),
        ("loop/x", "(?i)loop|symbolic"),
        ("file/x", "can't be used|Not a directory"),
        ("file", "not a folder"),
        ("full", "not empty"),
        ("link", "not a folder"),
        ("stale", "exists already"),
    ],
)
def test_paths_that_cannot_be_used(root: Path, name: str, says: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    (root / "link").symlink_to(root / "missing")
    (root / "file").write_text("")
    (root / "full").mkdir()
    (root / "full" / "precious").write_text("")
    (root / ".stale.incremental").symlink_to(root / "full")
    with pytest.raises(TargetRefused, match=says):
        check_target(Path(f"{root}/{name}"))


def test_full_and_incremental_have_to_fit_together(root: Path) -> None:
    free = free_bytes(root)
    check_space(root / "x", free // 2, 0)
    with pytest.raises(SpaceLacking, match="are free"):
        check_space(root / "x", free // 4 * 3, free // 4 * 3)
