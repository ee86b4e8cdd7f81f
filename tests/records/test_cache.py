"""Tests of the cache of records with a file that is torn, foreign, full or in use twice.

Such a file costs nothing but the use of the cache.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from agent.records import cache as record_cache
from agent.records.cache import CachePass, RecordCache, open_cache

IDS = [str(UUID(int=number)) for number in range(5)]
RAWS = {backup_id: f"record {backup_id}\nof two lines\n".encode() for backup_id in IDS}


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw).hexdigest()


def _found(cache: RecordCache) -> list[str]:
    """Return the ids that the cache has, and keep the records of all five in it."""
    with cache.use() as walk:
        found = [
            backup_id for backup_id, raw in RAWS.items() if walk.find(backup_id, _md5(raw)) == raw
        ]
        for backup_id, raw in RAWS.items():
            walk.keep(backup_id, raw)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a cache that holds all five records."""
    path = tmp_path / "c.records"
    assert _found(RecordCache(path)) == []
    assert _found(RecordCache(path)) == IDS
    return path


def test_nobody_else_reads_it(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_only_the_bytes_of_that_hash_are_found(path: Path) -> None:
    with RecordCache(path).use() as walk:
        assert walk.find(IDS[1], "0" * 32) is None
        assert walk.find(IDS[1], _md5(RAWS[IDS[1]])) == RAWS[IDS[1]]
        # The file is read forward only, and this entry was already passed.
        assert walk.find(IDS[0], _md5(RAWS[IDS[0]])) is None
        assert walk.find(IDS[4], _md5(RAWS[IDS[4]])) == RAWS[IDS[4]]


def _entry(backup_id: str) -> bytes:
    raw = RAWS[backup_id]
    return b"%s %s %d\n%s" % (backup_id.encode(), _md5(raw).encode(), len(raw), raw)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "empty": (lambda _: b"", 0),
    "torn in a record": (lambda whole: whole[: whole.index(_entry(IDS[2])) + 100], 2),
    "torn in a line": (lambda whole: whole[: whole.index(_entry(IDS[2])) + 50], 2),
    "a bit flipped": (lambda whole: whole.replace(f"d {IDS[3]}".encode(), b"D" + b" " * 37), 3),
    "a later form": (lambda whole: whole.replace(b"records 1", b"records 2"), 0),
    "zeros from here on": (lambda whole: whole[:200] + bytes(len(whole) - 200), 1),
    "a length without end": (lambda whole: whole.replace(b" 57\n", b" 999999\n"), 0),
    "a line without end": (lambda _: b"x" * 100_000, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_not_used_and_replaced(path: Path, damage: str) -> None:
    change, whole = DAMAGES[damage]
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    assert _found(RecordCache(path)) == IDS[:whole]
    assert path.read_bytes() == before


def test_a_file_is_read_only_where_it_is_one(path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    assert _found(RecordCache(path)) == []
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    assert _found(RecordCache(path)) == []
    assert _found(RecordCache(path)) == IDS
    path.unlink()
    path.mkdir()
    assert _found(RecordCache(path)) == []
    assert [one.name for one in tmp_path.glob("*.draft")] == []


def test_a_folder_that_is_gone_means_no_cache(tmp_path: Path) -> None:
    cache = RecordCache(tmp_path / "none" / "c.records")
    assert _found(cache) == []
    assert _found(cache) == []


def test_two_may_use_it_at_once(path: Path, tmp_path: Path) -> None:
    one, other = RecordCache(path), RecordCache(path)
    with one.use() as first:
        first.keep(IDS[0], RAWS[IDS[0]])
        assert _found(other) == IDS
        assert first.find(IDS[2], _md5(RAWS[IDS[2]])) == RAWS[IDS[2]]
        first.keep(IDS[2], RAWS[IDS[2]])
    # The last pass to end wins, with a whole file.
    assert path.read_bytes() == b"backup-agent records 1\n" + _entry(IDS[0]) + _entry(IDS[2])
    assert [one.name for one in tmp_path.iterdir()] == ["c.records"]


def test_a_full_disk_means_no_cache() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        walk = CachePass(None, full)
        walk.keep(IDS[0], RAWS[IDS[0]])
        assert not walk.written


def test_it_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_cache, "_FILE_BYTES", 23 + 3 * len(_entry(IDS[0])))
    cache = RecordCache(tmp_path / "c.records")
    assert _found(cache) == []
    assert _found(cache) == IDS[:3]
    monkeypatch.setattr(record_cache, "_FILE_BYTES", 23 + 2 * len(_entry(IDS[0])))
    assert _found(cache) == []  # the file exceeds the bound, as if another process left it
    monkeypatch.setattr(record_cache, "_RECORD_BYTES", 10)
    assert _found(cache) == []
    assert (tmp_path / "c.records").read_bytes() == b"backup-agent records 1\n"


def test_what_nobody_uses_any_more_leaves(path: Path, tmp_path: Path) -> None:
    ages = {"gone.records": 31, "used.records": 29, "killed.draft": 2, "running.draft": 0.5}
    for name, days in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - days * 86400,) * 2)
    (tmp_path / "notes.txt").touch()
    os.utime(tmp_path / "notes.txt", (0, 0))
    _found(RecordCache(path))
    left = {one.name for one in tmp_path.iterdir()}
    assert left == {"c.records", "used.records", "running.draft", "notes.txt"}


# --- its place ---------------------------------------------------------------------------


def _folder(state: Path, **environment: str) -> Path | None:
    """Return the directory in which a run leaves its file, or None if it has no place."""
    cache = open_cache("https://swift/v1/AUTH_x/c", state, environment)
    if cache is None:
        return None
    assert _found(cache) == []
    [file] = cache._path.parent.glob("*.records")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    return file.parent


def test_it_is_in_the_state_folder_where_that_is_ours(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    assert _folder(tmp_path / "state", HOME=str(tmp_path)) == tmp_path / "state" / "cache"


def test_else_it_is_in_the_users_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    xdg = str(tmp_path / "xdg")
    assert _folder(state, XDG_CACHE_HOME=xdg) == tmp_path / "xdg" / "backup-agent"
    home = _folder(state, XDG_CACHE_HOME="relative", HOME=str(tmp_path))
    assert home == tmp_path / ".cache" / "backup-agent"
    assert not state.exists()


def test_there_may_be_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _folder(tmp_path / "state") is None
    assert _folder(tmp_path / "state", HOME="/proc/none") is None
    (tmp_path / "file").touch()
    assert _folder(tmp_path / "file", HOME=str(tmp_path / "file")) is None
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert _folder(tmp_path, HOME=str(tmp_path)) is None
    assert not (tmp_path / "cache").exists()


def test_each_container_has_its_own(tmp_path: Path) -> None:
    paths = set()
    for location in ("https://swift/v1/a/c", "https://swift/v1/b/c", "file:///c"):
        cache = open_cache(location, tmp_path, {})
        assert cache is not None
        paths.add(cache._path)
    assert len(paths) == 3
