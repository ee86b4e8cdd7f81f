"""The store in a plain folder: the contract, and properties of a folder that Swift lacks."""

import errno
import hashlib
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import (
    StoreDenied,
    StoreFull,
    StoreMismatch,
    StoreNotFound,
    StoreRejected,
    StoreUnreachable,
)
from agent.store.directory.store import DirectoryStore
from agent.store.protocol import Container, Store
from tests.store.contract import SLAB, StoreContract, fresh, md5, names, put_segments, views

CONTAINER = "database_backups_t"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def opened(folder: Path) -> DirectoryStore:
    store = DirectoryStore(folder, CONTAINER)
    store.open()
    return store


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return opened(tmp_path / "backups")


def test_who_only_reads_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match="no-such"):
        DirectoryStore(tmp_path / "no-such", CONTAINER).open(create=False)
    assert list(tmp_path.iterdir()) == []


def segment(tmp_path: Path, name: str) -> Path:
    return tmp_path / "backups" / f"{CONTAINER}_segments" / name


def object_file(tmp_path: Path, name: str) -> Path:
    return tmp_path / "backups" / CONTAINER / name


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Yield the mount point of a filesystem of the (type, options) in the test's parameter."""
    kind, options = request.param
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


class TestContract(StoreContract):
    """The contract on the filesystem of the tests, with listings in pages of 3 names."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = opened(tmp_path / "a" / "backups")
        store._page_rows = 3
        return store


@root_only
@pytest.mark.parametrize("mounted", [("ramfs", "mode=700")], indirect=True)
class TestContractWithoutAttributes(StoreContract):
    """The contract on a filesystem without extended attributes."""

    @pytest.fixture
    def store(self, mounted: Path) -> Store:
        return opened(mounted)


# --- layout --------------------------------------------------------------------------------


def test_the_agents_names_are_paths(store: DirectoryStore, tmp_path: Path) -> None:
    backup, attempt = fresh(), fresh()
    put_segments(store, f"{backup}/{attempt}", [b"one", b"two"])
    store.put(Container.OBJECTS, f"{backup}.json", views(b"{}"))
    assert segment(tmp_path, f"{backup}/{attempt}/00000001").read_bytes() == b"two"
    assert object_file(tmp_path, f"{backup}.json").read_bytes() == b"{}"
    assert store.joiner is None


def test_a_file_and_a_folder_of_one_name(store: DirectoryStore) -> None:
    uuid = fresh()
    pairs = [uuid, f"{uuid}/a", "plain", "plain/a", "100%", "100%/a", "%25", "%25/%", f"{uuid}%"]
    for name in pairs:
        store.put(Container.OBJECTS, name, views(name.encode()))
    assert names(list(store.list(Container.OBJECTS))) == sorted(pairs, key=str.encode)
    for name in pairs:
        assert store.get(Container.OBJECTS, name, 100) == name.encode()
        store.delete(Container.OBJECTS, name)
    assert list(store.list(Container.OBJECTS)) == []


def test_a_listing_is_in_order_of_whole_names(store: DirectoryStore) -> None:
    store._page_rows = 2
    wanted = ["a", "a-", "a.b", "a/b", "a/b/c", "a/b.c", "a0", "aé", "aé/x", "a😀", "B", "é/ß"]
    for name in wanted:
        store.put(Container.SEGMENTS, name, views(b"x"))
    assert names(list(store.list(Container.SEGMENTS))) == sorted(wanted, key=str.encode)
    for prefix in ("a", "a/", "a/b", "aé", "é", "a/b/", "none/", "", "a/b/c/d"):
        expected = sorted((n for n in wanted if n.startswith(prefix)), key=str.encode)
        assert names(list(store.list(Container.SEGMENTS, prefix))) == expected


def test_everything_is_private(store: DirectoryStore, tmp_path: Path) -> None:
    put_segments(store, f"{fresh()}/{fresh()}", [b"x"])
    store.put(Container.OBJECTS, "record.json", views(b"x"))
    for path in [tmp_path / "backups", *(tmp_path / "backups").rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_folders_go_with_their_last_file(store: DirectoryStore, tmp_path: Path) -> None:
    backup = fresh()
    put_segments(store, f"{backup}/{fresh()}", [b"one"])
    put_segments(store, f"{backup}/{fresh()}", [b"two"])
    first, second = names(list(store.list(Container.SEGMENTS)))
    store.delete(Container.SEGMENTS, first)
    assert segment(tmp_path, second).exists()
    assert not segment(tmp_path, first).parent.exists()
    store.delete(Container.SEGMENTS, second)
    assert not segment(tmp_path, backup).exists()
    assert segment(tmp_path, "").is_dir()
    store.delete(Container.SEGMENTS, second)


def test_a_folder_that_goes_while_a_file_is_put(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rename, failures = os.rename, list[int]()

    def after_a_delete(*arguments: object, **folders: int) -> None:
        if not failures:
            failures.append(1)
            segment(tmp_path, "gone").rmdir()
        rename(*arguments, **folders)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", after_a_delete)
    store.put(Container.SEGMENTS, "gone/00000000", views(b"there"))
    assert failures
    assert store.get(Container.SEGMENTS, "gone/00000000", 10) == b"there"


def test_the_clock_is_that_of_the_files(store: DirectoryStore, tmp_path: Path) -> None:
    before = time.time()
    clock = store.clock()
    assert before - 1 < clock < time.time() + 1
    assert list(object_file(tmp_path, "%tmp").iterdir()) == []


# --- durability ----------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the list of the calls that change or sync the disk, in order, as (call, path)."""
    done: list[tuple[str, str]] = []

    def path(descriptor: int, name: str = "") -> str:
        return os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), name).rstrip("/")

    fsync, rename, mkdir, unlink, rmdir = os.fsync, os.rename, os.mkdir, os.unlink, os.rmdir

    def note_fsync(descriptor: int) -> None:
        done.append(("fsync", path(descriptor)))
        fsync(descriptor)

    def note_rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append(("rename", path(dst_dir_fd, target)))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def note_mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        done.append(("mkdir", path(dir_fd, name)))

    def note_unlink(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        done.append(("unlink", path(dir_fd, name)))

    def note_rmdir(name: str, *, dir_fd: int) -> None:
        rmdir(name, dir_fd=dir_fd)
        done.append(("rmdir", path(dir_fd, name)))

    for call in (note_fsync, note_rename, note_mkdir, note_unlink, note_rmdir):
        monkeypatch.setattr(os, call.__name__.removeprefix("note_"), call)
    return done


def test_a_put_is_on_the_disk_when_it_returns(
    store: DirectoryStore, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    put_segments(store, "b/a", [b"x"])
    top = str(segment(tmp_path, "")).rstrip("/")
    [written] = [path for call, path in steps if call == "fsync" and f"{top}/%tmp/" in path]
    name = written.rpartition("/")[2]
    assert [step for step in steps if name not in step[1]] == [
        ("mkdir", f"{top}/%tmp"),
        ("fsync", top),
        ("mkdir", f"{top}/b%"),
        ("fsync", top),
        ("mkdir", f"{top}/b%/a%"),
        ("fsync", f"{top}/b%"),
        ("rename", f"{top}/b%/a%/00000000"),
        ("fsync", f"{top}/b%/a%"),
    ]
    assert steps.index(("fsync", written)) < steps.index(("rename", f"{top}/b%/a%/00000000"))


def test_a_folder_made_by_another_process_is_made_to_last(
    store: DirectoryStore, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    put_segments(store, "b", [b"x"])
    steps.clear()
    put_segments(opened(tmp_path / "backups"), "b", [b"y"])
    top = str(segment(tmp_path, "")).rstrip("/")
    assert ("mkdir", f"{top}/b%") not in steps
    assert steps.index(("fsync", top)) < steps.index(("rename", f"{top}/b%/00000000"))


def test_a_delete_is_on_the_disk_when_it_returns(
    store: DirectoryStore, tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    put_segments(store, "b", [b"x"])
    steps.clear()
    store.delete(Container.SEGMENTS, "b/00000000")
    top = str(segment(tmp_path, "")).rstrip("/")
    assert steps == [
        ("unlink", f"{top}/b%/00000000"),
        ("fsync", f"{top}/b%"),
        ("rmdir", f"{top}/b%"),
        ("fsync", top),
    ]


# --- remains of dead processes -------------------------------------------------------------


def test_files_of_dead_processes_are_hidden_and_removed(
    store: DirectoryStore, tmp_path: Path
) -> None:
    left = object_file(tmp_path, "%tmp") / fresh()
    store.put(Container.OBJECTS, "there", views(b"x"))
    left.write_bytes(b"half")
    assert names(list(store.list(Container.OBJECTS))) == ["there"]
    assert names(list(store.list(Container.OBJECTS, "%"))) == []
    with store._folder.temporary(CONTAINER) as (_, used):
        store.open()
        assert os.listdir(left.parent) == [used]
    assert os.listdir(left.parent) == []


def test_a_put_that_fails_leaves_what_was_there(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(Container.OBJECTS, "record", views(b"old"))

    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreUnreachable, match="put database_backups_t/record: Input/output"):
            store.put(Container.OBJECTS, "record", views(b"new"))
    assert store.get(Container.OBJECTS, "record", 10) == b"old"
    assert os.listdir(object_file(tmp_path, "%tmp")) == []


# --- damage --------------------------------------------------------------------------------


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def check_damage(store: DirectoryStore, file: Path) -> None:
    """Assert that every way to read the segment in `file` notices a changed bit."""
    [entry] = put_segments(store, "b", [os.urandom(SLAB)])
    damaged(file)
    with pytest.raises(StoreMismatch, match="its bytes are not those"):
        store.get_into(Container.SEGMENTS, entry.name, memoryview(bytearray(SLAB)))
    with pytest.raises(StoreMismatch, match="its bytes are not those"):
        store.get(Container.SEGMENTS, entry.name, SLAB)
    assert [row.etag for row in store.list(Container.SEGMENTS)] == [entry.etag]
    store.put(Container.SEGMENTS, entry.name, views(b"again"))
    assert store.get(Container.SEGMENTS, entry.name, 10) == b"again"


def test_a_damaged_file_is_noticed(store: DirectoryStore, tmp_path: Path) -> None:
    check_damage(store, segment(tmp_path, "b%/00000000"))


@root_only
@pytest.mark.parametrize("mounted", [("ramfs", "mode=700")], indirect=True)
def test_a_damaged_file_is_noticed_without_attributes(mounted: Path) -> None:
    store, folder = opened(mounted), mounted / f"{CONTAINER}_segments" / "b%"
    check_damage(store, folder / "00000000")
    assert sorted(os.listdir(folder)) == ["%md5.00000000", "00000000"]
    assert names(list(store.list(Container.SEGMENTS))) == ["b/00000000"]
    store.delete(Container.SEGMENTS, "b/00000000")
    assert not folder.exists()


def test_the_object_of_an_older_store_is_listed_and_deleted(
    store: DirectoryStore, tmp_path: Path
) -> None:
    """It lists the segments, and its attribute has the ETag and the size of the joined segments."""
    store.put(Container.OBJECTS, "whole", views(b"[]"))
    etag = md5(b"the joined ETags")
    os.setxattr(object_file(tmp_path, "whole"), "user.etag", f"{etag} 6".encode())
    assert [row[:3] for row in store.list(Container.OBJECTS)] == [("whole", 2, etag)]
    store.delete(Container.OBJECTS, "whole")
    assert list(store.list(Container.OBJECTS)) == []


def test_a_copy_that_lost_the_attributes_is_read(store: DirectoryStore, tmp_path: Path) -> None:
    entries = put_segments(store, "b", [b"one", b"two"])
    subprocess.run(
        ["cp", "-r", "--no-preserve=xattr", tmp_path / "backups", tmp_path / "copy"], check=True
    )
    copy = opened(tmp_path / "copy")
    assert [row[:3] for row in copy.list(Container.SEGMENTS)] == [entry[:3] for entry in entries]
    assert copy.get(Container.SEGMENTS, "b/00000000", 3) == b"one"


def test_a_kept_etag_that_is_none_is_not_believed(store: DirectoryStore, tmp_path: Path) -> None:
    put_segments(store, "b", [b"one"])
    os.setxattr(segment(tmp_path, "b%/00000000"), "user.etag", b"nonsense")
    assert [row.etag for row in store.list(Container.SEGMENTS)] == [md5(b"one")]


# --- foreign files and hostile names -------------------------------------------------------

HOSTILE = ["", ".", "..", "../x", "/etc/x", "a/../../x", "a//b", "a/", "a/.", "x\0y", "\udcff"]
TOO_LONG = ["x" * 252, "a/" + "%" * 90, "/".join(["x" * 100] * 11)]


@pytest.mark.parametrize("name", HOSTILE + TOO_LONG)
def test_hostile_names_are_refused(store: DirectoryStore, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    for container in Container:
        with pytest.raises(StoreRejected):
            store.put(container, name, views(b"x"))
        with pytest.raises(StoreRejected):
            store.get(container, name, 1)
        with pytest.raises(StoreRejected):
            store.get_into(container, name, memoryview(bytearray(1)))
        with pytest.raises(StoreRejected):
            store.delete(container, name)
        assert list(store.list(container, name)) == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/"])
def test_a_container_is_a_folder_of_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreRejected):
        DirectoryStore(tmp_path, name)


def test_links_are_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00000000").write_bytes(b"secret")
    segment(tmp_path, "b%").symlink_to(outside)
    segment(tmp_path, "file").symlink_to(outside / "00000000")
    with pytest.raises(StoreRejected):
        store.put(Container.SEGMENTS, "b/00000000", views(b"x"))
    with pytest.raises(StoreRejected):
        store.get(Container.SEGMENTS, "b/00000000", 10)
    with pytest.raises(StoreRejected):
        store.delete(Container.SEGMENTS, "b/00000000")
    with pytest.raises(StoreNotFound):
        store.get(Container.SEGMENTS, "file", 10)
    assert list(store.list(Container.SEGMENTS)) == []
    store.put(Container.SEGMENTS, "file", views(b"own"))
    assert [path.read_bytes() for path in outside.iterdir()] == [b"secret"]


@pytest.mark.parametrize("container", Container)
def test_a_container_that_is_a_link_is_refused(tmp_path: Path, container: Container) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "backups"
    folder.mkdir()
    (folder / (CONTAINER + container.value)).symlink_to(outside)
    store = DirectoryStore(folder, CONTAINER)
    with pytest.raises(StoreRejected):
        store.open()
    with pytest.raises(StoreRejected):
        store.put(container, "x", views(b"x"))
    with pytest.raises(StoreRejected):
        list(store.list(container))
    assert list(outside.iterdir()) == []


def test_strangers_are_left_out(store: DirectoryStore, tmp_path: Path) -> None:
    store.put(Container.OBJECTS, "there", views(b"x"))
    os.mkfifo(object_file(tmp_path, "pipe"))
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(object_file(tmp_path, ""))
        listener.bind("socket")
        os.chdir(here)
    for stranger in ("100%off", "%tmp2", fresh(), "plain%", "%25%"):
        object_file(tmp_path, stranger).write_bytes(b"x")
    (object_file(tmp_path, "folder") / "inside").mkdir(parents=True)
    os.close(os.open(os.fsencode(object_file(tmp_path, "")) + b"/\xff", os.O_CREAT))
    assert names(list(store.list(Container.OBJECTS))) == ["there"]
    for name in ("pipe", "socket"):
        with pytest.raises(StoreNotFound):
            store.get(Container.OBJECTS, name, 10)


@root_only
@pytest.mark.parametrize("mounted", [("tmpfs", "size=1m")], indirect=True)
@pytest.mark.parametrize("when", [10**12, -(10**12)])
def test_a_year_that_no_calendar_has_hides_no_file(mounted: Path, when: int) -> None:
    store = opened(mounted)
    store.put(Container.OBJECTS, "there", views(b"x"))
    os.utime(mounted / CONTAINER / "there", (when, when))
    assert names(list(store.list(Container.OBJECTS))) == ["there"]


@root_only
@pytest.mark.parametrize("mounted", [("tmpfs", "size=1m"), ("ramfs", "mode=700")], indirect=True)
def test_what_root_writes_is_the_owners_of_the_folder(mounted: Path) -> None:
    """An administrator runs rekey or delete as root, but the agent runs as another user."""
    os.chown(mounted, 4321, 4322)
    store = opened(mounted)
    store.put(Container.OBJECTS, "there", views(b"x"))
    store.put(Container.SEGMENTS, f"{fresh()}/{fresh()}/00000000", views(b"x"))
    made = [path.lstat() for path in mounted.rglob("*")]
    assert len(made) >= 8
    assert {(one.st_uid, one.st_gid) for one in made} == {(4321, 4322)}


# --- the system's errors -------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("mounted", [("tmpfs", "size=3m,mode=700")], indirect=True)
def test_a_full_filesystem(mounted: Path) -> None:
    store = opened(mounted)
    put_segments(store, "b", [bytes(SLAB)])
    with pytest.raises(StoreFull, match="No space left") as full:
        store.put(Container.SEGMENTS, "b/00000001", views(*[bytes(SLAB)] * 3))
    assert "free some space" in full.value.hint
    assert names(list(store.list(Container.SEGMENTS))) == ["b/00000000"]
    store.put(Container.SEGMENTS, "b/00000001", views(bytes(SLAB)))


@root_only
@pytest.mark.parametrize("mounted", [("tmpfs", "size=3m,mode=700")], indirect=True)
def test_a_folder_that_may_only_be_read(mounted: Path) -> None:
    put_segments(opened(mounted), "b", [b"x"])
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    store = opened(mounted)
    assert names(list(store.list(Container.SEGMENTS))) == ["b/00000000"]
    assert store.get(Container.SEGMENTS, "b/00000000", 1) == b"x"
    with pytest.raises(StoreDenied, match="Read-only"):
        store.put(Container.SEGMENTS, "b/00000001", views(b"y"))
    with pytest.raises(StoreDenied):
        store.delete(Container.SEGMENTS, "b/00000000")
    with pytest.raises(StoreDenied):
        DirectoryStore(mounted, "another").open()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, StoreDenied),
        (errno.EROFS, StoreDenied),
        (errno.ENAMETOOLONG, StoreRejected),
        (errno.EFBIG, StoreRejected),
        (errno.EIO, StoreUnreachable),
        (errno.ESTALE, StoreUnreachable),
    ],
)
def test_what_the_system_says(
    store: DirectoryStore,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
) -> None:
    def broken(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(kind, match=os.strerror(number)):
        store.put(Container.OBJECTS, "x", views(b"x"))


def test_a_folder_that_went_away(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "backups").rename(tmp_path / "elsewhere")
    for method in (
        lambda: store.get(Container.OBJECTS, "x", 1),
        lambda: store.put(Container.OBJECTS, "x", views(b"x")),
        lambda: list(store.list(Container.OBJECTS)),
    ):
        with pytest.raises(StoreNotFound):
            method()


def test_a_listing_holds_a_bounded_number_of_names(store: DirectoryStore) -> None:
    store._page_rows = 10
    put_segments(store, "b", [b""] * 35)
    pages = []
    read = store._page

    def noted(*arguments: object) -> object:
        pages.append(page := read(*arguments))  # type: ignore[arg-type]
        return page

    store._page = noted  # type: ignore[method-assign, assignment]
    assert len(list(store.list(Container.SEGMENTS, "b/"))) == 35
    assert max(map(len, pages)) == 10


def test_the_location_names_the_folder(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "with space", CONTAINER)
    assert store.location == f"file://{tmp_path}/with%20space/{CONTAINER}"


def test_the_digest_is_that_of_hashlib(store: DirectoryStore) -> None:
    content = os.urandom(SLAB + 1)
    etag = store.put(Container.OBJECTS, "x", [memoryview(content)[:7], memoryview(content)[7:]])
    assert etag == hashlib.md5(content, usedforsecurity=False).hexdigest()
