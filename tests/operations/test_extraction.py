"""A hostile stream that passes through the gate to the real extractor.

It changes nothing outside the directory.
"""

import tracemalloc
from pathlib import Path

import pytest

from agent.codec import xbstream
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.errors import ContentRefused, DataDamaged, ExtractFailed, TargetRefused
from agent.model import ListRef, Stored
from agent.operations.restore.gate import Gate
from agent.operations.restore.segments import SegmentLists, SegmentSizes
from agent.records.object_names import Segment
from tests.codec.streams import end, head, payload, remove, rename, seek, whole
from tests.conftest import need
from tests.records.made import stored

GOOD = whole(b"d/t.ibd", b"rows")
OUTSIDE: dict[str, bytes] = {
    "rename out": rename(b"d/t.ibd", b"../canary"),
    "rename in": rename(b"../canary", b"d/canary"),
    "rename absolute": rename(b"d/t.ibd", b"%(outside)s/canary"),
    "rename from absolute": rename(b"%(outside)s/canary", b"d/x"),
    "remove above": remove(b"../canary"),
    "remove absolute": remove(b"%(outside)s/canary"),
    "remove deep": remove(b"d/../../canary"),
    "payload above": whole(b"../canary", b"hostile"),
    "rewrite above": whole(b"../canary", b"hostile", flags=2),
    "seek above": seek(b"../canary", 5),
    "end above": end(b"../canary"),
    "dots behind a directory": remove(b"./d/./../../canary"),
}


def engine(tmp_path: Path) -> MariadbBackup:
    return MariadbBackup(
        MariadbBackupSettings(socket=tmp_path / "none", user="nobody", password="")
    )


def placed(stream: bytes, outside: Path) -> bytes:
    """Put the path of `outside` into the absolute paths of `stream`, with their lengths."""
    name, real = b"%(outside)s/canary", bytes(outside) + b"/canary"
    return stream.replace(
        len(name).to_bytes(4, "little") + name, len(real).to_bytes(4, "little") + real
    )


def feed(gate: Gate, stream: bytes, size: int) -> None:
    for at in range(0, len(stream), size):
        gate.write(stream[at : at + size])


@pytest.mark.parametrize("size", [1, 7, 1 << 20], ids=["bytes", "sevens", "blocks"])
@pytest.mark.parametrize("what", OUTSIDE)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, what: str, size: int) -> None:
    """The stream may be split anywhere, so the head of a chunk may end in the next block."""
    need("mbstream")
    folder = tmp_path / "target"
    folder.mkdir()
    (tmp_path / "canary").write_text("unharmed")
    stream = GOOD + placed(OUTSIDE[what], tmp_path) + GOOD
    with engine(tmp_path).start_extract(folder) as run:
        gate = Gate(run.write, "b", len(stream))
        with pytest.raises(ContentRefused, match="is not a plain relative path"):
            feed(gate, stream, size)
        run.interrupt()
    assert (tmp_path / "canary").read_text() == "unharmed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary", "target"]
    assert not list(folder.rglob("canary"))


def test_what_engines_rename_and_remove_still_works(tmp_path: Path) -> None:
    need("mbstream")
    folder = tmp_path / "target"
    folder.mkdir()
    stream = GOOD + whole(b"d/u.ibd", b"u") + rename(b"d/t.ibd", b"d/v.ibd") + remove(b"d/u.ibd")
    with engine(tmp_path).start_extract(folder) as run:
        gate = Gate(run.write, "b", len(stream))
        gate.write(stream)
        gate.finish()
        run.finish()
    assert [path.name for path in (folder / "d").iterdir()] == ["v.ibd"]


@pytest.mark.parametrize("size", [1, 16, 1 << 20], ids=["bytes", "sixteens", "block"])
def test_what_mbstream_stops_at_is_mended(tmp_path: Path, size: int) -> None:
    """An Aria table was renamed during a backup that an earlier version of the agent stored."""
    need("mbstream")
    folder = tmp_path / "target"
    folder.mkdir()
    stream = GOOD + rename(b"d/t.ibd", b"d/u.ibd") + end(b"mysql/general_log.CSV") + end(b"d/e")
    with engine(tmp_path).start_extract(folder) as run:
        gate = Gate(run.write, "b", len(stream))
        feed(gate, stream, size)
        gate.finish()
        run.finish()
    assert (folder / "d/u.ibd").read_bytes() == b"rows"
    assert (folder / "mysql/general_log.CSV").read_bytes() == b""


def gate(raw_bytes: int) -> tuple[Gate, list[bytes]]:
    passed: list[bytes] = []
    return Gate(passed.append, "b", raw_bytes), passed


def test_more_bytes_than_recorded_are_not_passed_on() -> None:
    one, passed = gate(len(GOOD))
    one.write(GOOD)
    with pytest.raises(ContentRefused, match="more than the"):
        one.write(b"X")
    assert passed == [GOOD]


def test_a_path_that_an_engine_opens_has_508_bytes_at_most() -> None:
    """An incremental's files are opened by the whole path, those of a full backup by `./`."""
    path = b"d" * 255 + b"/" + b"t" * 250 + b".ibd"
    for fitting, folder in ((506, None), (500, Path("/target"))):
        passed: list[bytes] = []
        good, long = (path[-number:] for number in (fitting, fitting + 1))
        Gate(passed.append, "b", 1 << 20, folder).write(whole(good, b"rows"))
        assert len(passed) == 1
        with pytest.raises(TargetRefused if folder else ContentRefused) as caught:
            Gate(passed.append, "b", 1 << 20, folder).write(whole(long, b"rows"))
        assert len(passed) == 1
        assert ("too long by 1 bytes" if folder else "of 507 bytes") in str(caught.value)


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (whole(b"a/b.ren", b"c/" + b"d" * 252), "which no engine can open"),
        (whole(b"a/b.ren", b"c" * 255 + b"/" + b"d" * 248), "which no engine can open"),
        (whole(b"a/b.ren", b"../../x"), "is not a plain relative path"),
        (whole(b"a/b.ren", b""), "no new name"),
        (end(b"a/b.ren"), "no new name"),
        (whole(b"a/b.ren", b"/etc/x"), "is not a plain relative path"),
        (payload(b"a/b.ren", b"c/d") + payload(b"a/b.ren", b"e", 3), "in several pieces"),
        (whole(b"a/b", b"../x") + rename(b"a/b", b"a/b.ren"), "only an engine writes"),
    ],
    ids=["name", "path", "outside", "empty", "missing", "root", "pieces", "renamed"],
)
def test_a_name_that_the_prepare_gives_a_table_is_judged(stream: bytes, says: str) -> None:
    """mariadb-backup takes a renamed table's name from a file in the backup."""
    passed: list[bytes] = []
    with pytest.raises(ContentRefused, match=says):
        Gate(passed.append, "b", 1 << 20).write(stream)
    assert not passed
    good = whole(b"a/b.ren", b"c/" + b"d" * 251)
    Gate(passed.append, "b", 1 << 20).write(good)
    assert passed == [good]
    with pytest.raises(ContentRefused, match="which no engine can open"):
        Gate(passed.append, "b", 1 << 20, Path("/target")).write(good)


def test_a_stream_that_ends_early_is_no_whole_one() -> None:
    one, _ = gate(len(GOOD))
    one.write(GOOD[:-1])
    with pytest.raises(DataDamaged, match="its record says"):
        one.finish()
    one, _ = gate(len(payload(b"a", b"1")))
    one.write(payload(b"a", b"1"))
    with pytest.raises(ContentRefused, match="have no end"):
        one.finish()


def test_a_million_empty_files_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file takes 20 bytes of the stream, and almost none of the stored bytes."""
    monkeypatch.setattr(xbstream, "MOST_FILES", 1000)
    monkeypatch.setattr(xbstream, "MOST_FOLDERS", 100)
    stream = b"".join(end(b"%d" % number) for number in range(2000))
    one, _ = gate(len(stream))
    with pytest.raises(ContentRefused, match="more than 1000 files"):
        feed(one, stream, 4096)
    stream = b"".join(end(b"%d/x" % number) for number in range(200))
    one, _ = gate(len(stream))
    with pytest.raises(ContentRefused, match="more than 100 directories"):
        feed(one, stream, 4096)


def test_deep_paths_are_refused() -> None:
    """Each of their directories takes memory. A path of 511 bytes can have 255 directories."""
    one, _ = gate(1000)
    one.write(end(b"a/" * 16 + b"b"))
    with pytest.raises(ContentRefused, match="deeper than 16 directories"):
        one.write(end(b"a/" * 17 + b"b"))


def test_a_file_of_an_impossible_size_is_refused() -> None:
    one, _ = gate(1000)
    with pytest.raises(ContentRefused, match="a seek to"):
        one.write(seek(b"a", 1 << 48) + end(b"a"))


def test_unknown_chunks_are_refused() -> None:
    """mbstream skips unknown chunks that are flagged as unimportant."""
    one, passed = gate(100)
    with pytest.raises(ContentRefused, match="unknown"):
        one.write(head(b"L", b"link", 1))
    assert not passed


@pytest.mark.parametrize(
    ("count", "total", "sizes"),
    [(1, 5, [5]), (1, 10, [10]), (3, 21, [10, 10, 1]), (3, 30, [10, 10, 10])],
)
def test_the_sizes_of_segments_are_computed(count: int, total: int, sizes: list[int]) -> None:
    found = SegmentSizes(stored(segment_count=count, stored_bytes=total, segment_size=10))
    assert list(found) == sizes
    assert found[-1:] == sizes[-1:]


@pytest.mark.parametrize(("count", "total"), [(0, 0), (1, 0), (1, 11), (3, 20), (3, 31), (-1, 5)])
def test_sizes_that_do_not_add_up_are_damage(count: int, total: int) -> None:
    with pytest.raises(DataDamaged, match="are not"):
        SegmentSizes(stored(segment_count=count, stored_bytes=total, segment_size=10))


class Lists:
    """The lists of one backup with any number of segments. The segment `odd` has another size."""

    def __init__(self, held: Stored, odd: int) -> None:
        self.asked: list[int] = []
        self._held = held
        self._odd = odd

    def read(self, number: int) -> list[Segment]:
        self.asked.append(number)
        first, total = number * 1000, self._held.stored_bytes
        return [
            Segment(11 if at == self._odd else min(10, total - 10 * at), f"{at:032x}")
            for at in range(first, first + self._held.lists[number].count)
        ]


def lists_of(count: int, odd: int = -1) -> tuple[SegmentLists, Lists]:
    counts = [1000] * (count // 1000) + [count % 1000] * bool(count % 1000)
    held = stored(
        segment_count=count,
        segment_size=10,
        stored_bytes=10 * count - 3,
        lists=tuple(ListRef(count=one, sha256="0" * 64) for one in counts),
    )
    lists = Lists(held, odd)
    return SegmentLists("b", held, lists.read), lists


def test_rows_are_read_as_the_download_goes() -> None:
    """All rows of 10 TB in segments of 16 MiB take 131 MiB. This test has a tenth of them."""
    lists, stored_lists = lists_of(62_500)
    assert lists.row(0).md5 == f"{0:032x}"
    tracemalloc.start()
    for number in range(0, 62_500, 97):
        assert lists.row(number).md5 == f"{number:032x}"
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stored_lists.asked == list(range(63)), "each list once"
    assert most < 1 << 20
    assert lists.row(62_499).size == 7


def test_a_row_of_another_size_is_damage() -> None:
    lists, _ = lists_of(1500, odd=1200)
    lists.row(1199)
    with pytest.raises(DataDamaged, match="segment 1200"):
        lists.row(1200)


def test_lists_that_miss_a_segment_are_damage() -> None:
    held = stored(segment_count=2, stored_bytes=20, segment_size=10)
    with pytest.raises(DataDamaged, match="has 0 segments in its lists"):
        SegmentLists("b", held, Lists(held, -1).read)


@pytest.mark.parametrize("counts", [(10**12,), (1000, 10**12), (1000, 1001), (999, 1000)])
def test_no_list_has_more_rows_than_a_list_has(counts: tuple[int, ...]) -> None:
    """Otherwise the 10**12 rows of a hostile record would be walked one by one."""
    total = sum(counts)
    held = stored(
        segment_count=total,
        segment_size=10,
        stored_bytes=10 * total,
        lists=tuple(ListRef(count=one, sha256="0" * 64) for one in counts),
    )
    with pytest.raises(DataDamaged, match="has a segment list of"):
        SegmentLists("b", held, Lists(held, -1).read)


def test_a_changed_byte_is_left_to_the_extractor(tmp_path: Path) -> None:
    """The gate skips the checksums of gigabytes, because mbstream compares them too."""
    need("mbstream")
    stream = bytearray(GOOD)
    stream[GOOD.index(b"rows")] ^= 1
    with engine(tmp_path).start_extract(tmp_path) as run:
        gate = Gate(run.write, "b", len(stream))
        gate.write(bytes(stream))
        gate.finish()
        with pytest.raises(ExtractFailed, match="checksum"):
            run.finish()
