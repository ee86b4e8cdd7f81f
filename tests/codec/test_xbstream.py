"""Tests that the xbstream parser accepts the streams of the engines and refuses all others."""

import itertools
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from agent.codec.metadata import Checkpoints, parse_binlog_info, parse_checkpoints, parse_info
from agent.codec.xbstream import XbstreamParser
from agent.errors import StreamInvalid
from agent.model import BinlogPosition
from tests.codec.streams import end, head, payload, remove, rename, seek, sparse, whole
from tests.conftest import need

CHECKPOINTS = b"backup_type = full-backuped\nfrom_lsn = 0\nto_lsn = 44404\nlast_lsn = 393187\n"
ROWS = os.urandom(3000)

# Two interleaved files (one of them in several chunks), an empty file, and the engine's own file.
SAMPLE = b"".join(
    (
        payload(b"db/a.ibd", ROWS[:1000]),
        payload(b"db/b.ibd", ROWS),
        payload(b"db/a.ibd", ROWS[1000:], 1000),
        end(b"db/b.ibd"),
        end(b"db/empty"),
        end(b"db/a.ibd"),
        whole(b"xtrabackup_checkpoints", CHECKPOINTS),
    )
)


def parse(stream: bytes, *cuts: int) -> XbstreamParser:
    """Parse the stream, cut at the given places, and overwrite each piece after its use."""
    parser = XbstreamParser()
    for begin, stop in itertools.pairwise([0, *sorted(cuts), len(stream)]):
        piece = bytearray(stream[begin:stop])
        parser.feed(memoryview(piece))
        piece[:] = b"\xee" * len(piece)
    parser.finish()
    return parser


def names(parser: XbstreamParser, *paths: str) -> list[str]:
    return [path for path in paths if parser.contains(path)]


def refused(stream: bytes, match: str | None = None) -> None:
    with pytest.raises(StreamInvalid, match=match):
        parse(stream)


def test_sample_is_read_whole() -> None:
    parser = parse(SAMPLE)
    assert len(parser.files) == 4
    assert all(0 <= digest < 2**64 for digest in parser.files)
    assert parser.contains("db/a.ibd")
    assert parser.contains("./db/empty")
    assert not parser.contains("db/c.ibd")
    assert parser.raw_bytes == len(SAMPLE)
    assert parser.metadata == {"checkpoints": CHECKPOINTS}


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, len(SAMPLE)), max_size=12))
def test_any_split_gives_the_same(cuts: list[int]) -> None:
    parser = parse(SAMPLE, *cuts)
    assert parser.files == parse(SAMPLE).files
    assert parser.metadata == {"checkpoints": CHECKPOINTS}
    assert parser.raw_bytes == len(SAMPLE)


def test_byte_by_byte() -> None:
    stream = SAMPLE + sparse(b"s", [(5, 3)], b"abc") + end(b"s") + seek(b"k", 9) + end(b"k")
    parser = parse(stream, *range(len(stream)))
    assert parser.files == parse(stream).files
    assert len(parser.files) == 6


def page(number: int) -> bytes:
    """Return the beginning of the file of an InnoDB tablespace with this number."""
    return os.urandom(34) + number.to_bytes(4, "big") + os.urandom(100)


def numbers(parser: XbstreamParser) -> list[int]:
    return sorted(parser.spaces.values())


def test_tablespaces_are_known_by_the_number_on_their_first_page() -> None:
    stream = (
        payload(b"db/a.ibd", page(70_000))
        + payload(b"db/a.ibd", page(3), 138)
        + end(b"db/a.ibd")
        + whole(b"db/b.new", page(8))
        + whole(b"db/c.frm", page(9))
        + whole(b"db/short.ibd", page(10)[:37])
    )
    assert numbers(parse(stream)) == [8, 70_000]
    assert numbers(parse(stream, *range(len(stream)))) == [8, 70_000]


def test_a_tablespace_keeps_its_number_until_it_is_replaced_or_removed() -> None:
    stream = whole(b"db/a.ibd", page(5)) + rename(b"db/a.ibd", b"db/b.ibd")
    assert numbers(parse(stream)) == [5]
    assert numbers(parse(stream + whole(b"db/a.ibd", page(6)))) == [5, 6]
    assert numbers(parse(stream + whole(b"db/b.ibd", page(7), 2))) == [7]
    other = whole(b"db/c", b"no tablespace") + rename(b"db/c", b"db/b.ibd")
    assert numbers(parse(stream + other)) == []
    assert numbers(parse(stream + remove(b"db/b.ibd") + whole(b"db/c", b""))) == []


def test_every_truncation_is_refused() -> None:
    # A cut is invisible only if every file before it has ended.
    complete = {len(SAMPLE), len(SAMPLE) - len(whole(b"xtrabackup_checkpoints", CHECKPOINTS))}
    passed = set()
    for length in range(len(SAMPLE) + 1):
        try:
            parse(SAMPLE[:length])
        except StreamInvalid:
            continue
        passed.add(length)
    assert passed == complete


def chunks_of(stream: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield each chunk's position, its type, and the length of its path."""
    position = 0
    while position < len(stream):
        kind = stream[position + 9 : position + 10]
        (length,) = struct.unpack_from("<I", stream, position + 10)
        yield position, kind, length
        position += 14 + length
        if kind == b"P":
            position += 20 + struct.unpack_from("<Q", stream, position)[0]


def test_every_flipped_bit_is_refused_but_what_no_reader_can_see() -> None:
    """Headers have no CRC.

    So a payload's flag REWRITE and the only chunk of an empty file, E, are unprotected.
    """
    rewrite_flags = {begin + 8 for begin, kind, _ in chunks_of(SAMPLE) if kind == b"P"}
    empty = SAMPLE.index(b"db/empty")
    end_type = empty - 5  # E is one bit from D, which removes the file.
    whole_files = parse(SAMPLE).files
    for position in range(len(SAMPLE)):
        for bit in range(8):
            bad = bytearray(SAMPLE)
            bad[position] ^= 1 << bit
            try:
                files = parse(bytes(bad)).files
            except StreamInvalid:
                continue
            if position in rewrite_flags:
                assert (bit, files) == (1, whole_files)
            else:
                assert position == end_type or empty <= position < empty + len(b"db/empty")
                assert len(whole_files - files) == 1


class TestRefuses:
    def test_nothing(self) -> None:
        refused(b"", "no file")

    def test_only_removals(self) -> None:
        refused(remove(b"a"), "no file")

    @pytest.mark.parametrize("flags", [0, 1])
    def test_unknown_types_even_if_ignorable(self, flags: int) -> None:
        for number in set(range(256)) - set(b"PERDS"):
            refused(SAMPLE + head(bytes([number]), b"a", flags), "unknown")

    @pytest.mark.parametrize("flags", [1, 3, 4, 128])
    def test_unknown_flags(self, flags: int) -> None:
        refused(whole(b"a", b"x", flags), "flags")
        refused(head(b"E", b"a", 2), "flags")

    def test_a_file_without_end(self) -> None:
        refused(SAMPLE + payload(b"c", b"x"), "no end")

    def test_bytes_after_the_end(self) -> None:
        refused(SAMPLE + payload(b"db/a.ibd", b"x"), "after its end")
        refused(SAMPLE + payload(b"db/a.ibd", b"x", 3000), "after its end")
        refused(SAMPLE + end(b"db/empty"), "after its end")
        refused(SAMPLE + seek(b"db/empty", 5) + end(b"db/empty"), "after its end")

    @pytest.mark.parametrize("offset", [0, 999, 1001, 2**63, 2**64 - 1])
    def test_gaps_and_overlaps(self, offset: int) -> None:
        refused(payload(b"a", b"x" * 1000) + payload(b"a", b"y", offset) + end(b"a"), "order")

    def test_a_file_that_starts_late(self) -> None:
        refused(payload(b"a", b"x", 1) + end(b"a"), "order")

    @pytest.mark.parametrize(
        "path", [b"/a", b"../a", b"a/../b", b"a/..", b"..", b"a\0b", b"./../a"]
    )
    def test_paths_that_leave_the_target(self, path: bytes) -> None:
        refused(whole(path, b"x"), "relative")
        refused(whole(b"a", b"x") + rename(b"a", path), "relative")

    @pytest.mark.parametrize("length", [0, 512, 2**32 - 1])
    def test_path_lengths(self, length: int) -> None:
        start = b"XBSTCK01\0E" + struct.pack("<I", length)
        refused(start + b"a" * min(length, 600), "a path has")
        assert parse(end(b"a" * 255 + b"/" + b"a" * 255)).files

    def test_wrong_crc(self) -> None:
        bad = bytearray(payload(b"a", b"content") + end(b"a"))
        bad[bad.index(b"content")] ^= 1
        refused(bytes(bad), "CRC")
        refused(head(b"P", b"a") + struct.pack("<QQI", 0, 0, 1) + end(b"a"), "CRC")

    def test_impossible_lengths(self) -> None:
        for length in (2**30 + 1, 2**64 - 1):
            refused(head(b"P", b"a") + struct.pack("<QQI", length, 0, 0), "payload of")

    def test_huge_metadata(self) -> None:
        refused(whole(b"xtrabackup_info", bytes((1 << 20) + 1)), "too large")
        assert parse(whole(b"xtrabackup_info", bytes(1 << 20))).metadata["info"]
        assert parse(whole(b"db/xtrabackup_info", bytes((1 << 20) + 1))).metadata == {}


class TestChangesDuringTheBackup:
    """Streams of mariadb-backup while tables are renamed, dropped or made again."""

    def test_rename_moves_the_file(self) -> None:
        parser = parse(whole(b"a", b"x") + rename(b"a", b"b"))
        assert names(parser, "a", "b") == ["b"]

    def test_rename_onto_another_file_replaces_it(self) -> None:
        parser = parse(whole(b"a", b"x") + whole(b"b", b"y") + rename(b"a", b"b"))
        assert names(parser, "a", "b") == ["b"]

    def test_renamed_file_may_come_again(self) -> None:
        parser = parse(whole(b"a", b"x") + rename(b"a", b"b") + whole(b"a", b"y"))
        assert names(parser, "a", "b") == ["a", "b"]

    def test_rename_of_what_never_came_changes_nothing(self) -> None:
        parser = parse(whole(b"a", b"x") + rename(b"c", b"d"))
        assert names(parser, "a", "c", "d") == ["a"]

    def test_remove(self) -> None:
        parser = parse(whole(b"a", b"x") + whole(b"b", b"x") + remove(b"a") + remove(b"never"))
        assert names(parser, "a", "b", "never") == ["b"]

    def test_open_files_are_neither_renamed_nor_removed(self) -> None:
        begun = payload(b"a", b"x")
        refused(begun + rename(b"a", b"b") + end(b"a"), "before its end")
        refused(begun + remove(b"a") + end(b"a"), "before its end")
        refused(whole(b"b", b"y") + begun + rename(b"b", b"a") + end(b"a"), "before its end")

    def test_rewrite_replaces_a_file(self) -> None:
        again = payload(b"a", b"new", 0, 2) + payload(b"a", b"er", 3, 2) + end(b"a")
        parser = parse(whole(b"a", b"older content") + again)
        assert names(parser, "a") == ["a"]
        refused(whole(b"a", b"x") + payload(b"a", b"y", 0, 2), "no end")
        unfinished = XbstreamParser()
        unfinished.feed(memoryview(whole(b"a", b"x") + payload(b"a", b"y", 0, 2)))
        assert not unfinished.contains("a")

    def test_rewritten_metadata_is_taken_from_its_last_version(self) -> None:
        stream = whole(b"xtrabackup_info", b"one") + whole(b"xtrabackup_info", b"two", 2)
        assert parse(stream).metadata == {"info": b"two"}
        assert parse(stream + remove(b"xtrabackup_info") + end(b"a")).metadata == {}

    def test_seek_moves_the_offset(self) -> None:
        stream = payload(b"a", b"xxxx") + seek(b"a", 1) + payload(b"a", b"y", 1) + end(b"a")
        assert parse(stream).contains("a")
        refused(payload(b"a", b"xxxx") + seek(b"a", 1) + payload(b"a", b"y", 4), "order")
        refused(seek(b"a", 2**63) + end(b"a"), "seek")
        refused(seek(b"xtrabackup_info", 1) + end(b"xtrabackup_info"), "seek")
        refused(payload(b"a", b"xxxx") + seek(b"a", 1))


class TestSparse:
    """Tests of Percona's sparse chunks. Their form is taken from its documentation."""

    ENTRIES = ((0, 5), (4096, 3), (100, 0))

    def test_offset_moves_by_what_was_skipped_and_written(self) -> None:
        after = payload(b"a", b"z", 5 + 4096 + 3 + 100) + end(b"a")
        parser = parse(sparse(b"a", self.ENTRIES, b"12345678") + after)
        assert parser.contains("a")

    def test_damage_is_refused(self) -> None:
        good = sparse(b"a", self.ENTRIES, b"12345678") + end(b"a")
        parse(good)
        table = 15 + 24
        for position in range(table, table + 24 + 8):
            bad = bytearray(good)
            bad[position] ^= 1
            refused(bytes(bad))

    def test_map_that_does_not_fit_is_refused(self) -> None:
        refused(sparse(b"a", [(0, 5)], b"123456") + end(b"a"), "do not fit")
        refused(sparse(b"a", [], b"") + end(b"a"), "0 entries")
        refused(head(b"S", b"a") + struct.pack("<IQQI", 2**31, 1, 0, 0), "entries")

    def test_wrong_offset_is_refused(self) -> None:
        refused(sparse(b"a", self.ENTRIES, b"12345678", offset=1) + end(b"a"), "order")


class TestAgainstMbstream:
    """Comparisons with mbstream, MariaDB's own extractor, which defines the meaning of a stream."""

    @staticmethod
    def extract(stream: bytes, folder: Path) -> "subprocess.CompletedProcess[bytes]":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return subprocess.run(
            ["mbstream", "-x", "-C", str(folder)], input=stream, capture_output=True, check=False
        )

    @pytest.mark.parametrize(
        "make",
        [
            lambda: SAMPLE,
            lambda: whole(b"d/a", b"x") + rename(b"d/a", b"d/b") + whole(b"d/a", b"y"),
            lambda: whole(b"a", b"x") + whole(b"b", b"y") + rename(b"a", b"b"),
            lambda: whole(b"a", b"x") + rename(b"never", b"b") + remove(b"never"),
            lambda: whole(b"a", b"x") + whole(b"b", b"y") + remove(b"a"),
            lambda: whole(b"a", b"longer") + whole(b"a", b"new", 2),
            lambda: payload(b"a", b"xxxx") + seek(b"a", 1) + payload(b"a", b"y", 1) + end(b"a"),
            lambda: end(b"a" * 200) + payload(b"b", b"") + end(b"b"),
        ],
    )
    def test_same_files(self, make: Callable[[], bytes], tmp_path: Path) -> None:
        need("mbstream")
        parser = parse(make())
        done = self.extract(make(), tmp_path / "out")
        assert done.returncode == 0, done.stderr
        found = {
            str(path.relative_to(tmp_path / "out"))
            for path in (tmp_path / "out").rglob("*")
            if path.is_file()
        }
        assert len(found) == len(parser.files)
        assert all(map(parser.contains, found))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: SAMPLE[:-1],
            lambda: payload(b"a", b"xx") + payload(b"a", b"y", 1) + end(b"a"),
            lambda: end(b"a" * 512),
            lambda: head(b"X", b"a"),
        ],
    )
    def test_both_refuse(self, make: Callable[[], bytes], tmp_path: Path) -> None:
        need("mbstream")
        refused(make())
        assert self.extract(make(), tmp_path / "out").returncode != 0

    @pytest.mark.parametrize(
        "begin",
        [
            whole(b"a", b"x") + whole(b"a", b"y"),
            payload(b"a", b"x") + rename(b"a", b"c") + end(b"a"),
            payload(b"a", b"x") + remove(b"a") + end(b"a"),
        ],
    )
    def test_where_mbstream_stops_with_success_is_refused(
        self, begin: bytes, tmp_path: Path
    ) -> None:
        need("mbstream")
        stream = begin + whole(b"b", b"z")
        done = self.extract(stream, tmp_path / "out")
        assert (done.returncode, (tmp_path / "out" / "b").exists()) == (0, False)
        refused(stream, "its end")

    def test_mbstream_archive_parses(self, tmp_path: Path) -> None:
        need("mbstream")
        sizes = {"small": 5, "empty": 0, "large": (21 << 20) + 7}
        for name, size in sizes.items():
            (tmp_path / name).write_bytes(os.urandom(size))
        stream = subprocess.run(
            ["mbstream", "-c", *sizes], cwd=tmp_path, capture_output=True, check=True
        ).stdout
        parser = parse(stream, *range(0, len(stream), 1 << 20))
        assert names(parser, *sizes) == list(sizes)


class TestMetadata:
    @pytest.mark.parametrize("prefix", [b"xtrabackup_", b"mariadb_backup_"])
    def test_both_generations_of_names(self, prefix: bytes) -> None:
        kinds = [b"checkpoints", b"info", b"binlog_info", b"slave_info", b"galera_info"]
        parser = parse(b"".join(whole(prefix + kind, b"of " + kind) for kind in kinds))
        assert parser.metadata == {kind.decode(): b"of " + kind for kind in kinds}

    def test_several_chunks_make_one_content(self) -> None:
        path = b"xtrabackup_info"
        stream = payload(path, b"one ") + end(b"other") + payload(path, b"two", 4) + end(path)
        assert parse(stream).metadata == {"info": b"one two"}

    def test_checkpoints(self) -> None:
        assert parse_checkpoints(CHECKPOINTS) == Checkpoints("full-backuped", 0, 44404, 393187)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\x00garbage",
            CHECKPOINTS.replace(b"44404", b""),
            CHECKPOINTS.replace(b"44404", b"-1"),
            CHECKPOINTS.replace(b"44404", b"4x"),
            CHECKPOINTS.replace(b"44404", b"9" * 5000),
            CHECKPOINTS.replace(b"last_lsn", b"lost_lsn"),
            CHECKPOINTS.replace(b"full-backuped", b""),
        ],
    )
    def test_unreadable_checkpoints(self, content: bytes) -> None:
        with pytest.raises(StreamInvalid):
            parse_checkpoints(content)

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", None),
            (b"\n", None),
            (b"bin.000001\t326110\t1-1-4\n", ("bin.000001", 326110, "1-1-4")),
            (b"bin.000001\t326110\n", ("bin.000001", 326110, "")),
            (b"bin.000001\t326110\t\n", ("bin.000001", 326110, "")),
            (b"a b.000001\t42\t0-1-2,1-7-9\n", ("a b.000001", 42, "0-1-2,1-7-9")),
            ("a\tb\n'é😀.1\t42\t\n".encode(), ("a\tb\n'é😀.1", 42, "")),
            (
                b"bin.7\t157\t3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7,\n4e11:tag_a:2\n",
                ("bin.7", 157, "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7,4e11:tag_a:2"),
            ),
        ],
    )
    def test_binlog_info(self, content: bytes, expected: tuple[str, int, str] | None) -> None:
        got = parse_binlog_info(content)
        position = None
        if expected:
            file, offset, gtid = expected
            position = BinlogPosition(file=file, position=offset, gtid=gtid)
        assert got == position

    @pytest.mark.parametrize(
        "content", [b"bin.1", b"bin.1\tx\n", b"\t5\n", b"\xff\t1\t\0", b"b\t1\t1\t1!"]
    )
    def test_unreadable_binlog_info(self, content: bytes) -> None:
        with pytest.raises(StreamInvalid):
            parse_binlog_info(content)


@pytest.mark.parametrize(
    ("parse_it", "content"),
    [
        (parse_checkpoints, b"a" * (1 << 20)),
        (parse_checkpoints, b"a = " * (1 << 18)),
        (parse_binlog_info, b"b\t1\t" + b" " * (1 << 20) + b"!"),
        (parse_binlog_info, b"b\t1" * 100 + b"\t" + b" " * (1 << 20) + b"!"),
    ],
)
def test_hostile_metadata_is_refused_at_once(
    parse_it: Callable[[bytes], object], content: bytes
) -> None:
    """The content is as long as the parser allows.

    A regular expression stops every thread while it runs.
    """
    begun = time.process_time()
    with pytest.raises(StreamInvalid):
        parse_it(content)
    assert time.process_time() - begun < 2


def test_info_says_what_was_asked_for_last_of_all() -> None:
    content = b"tool_command = x\npartial = Y\nname = a = b\npartial = N\nempty = \nodd\n"
    assert parse_info(content) == {
        "tool_command": "x",
        "partial": "N",
        "name": "a = b",
        "empty": "",
    }


class TestPlaces:
    """Paths that mbstream can't create. It stops there, and still exits with status 0."""

    @pytest.mark.parametrize(
        "names",
        [
            (b"xtrabackup_checkpoints/t.ibd", b"xtrabackup_checkpoints"),
            (b"xtrabackup_info", b"xtrabackup_info/db.opt"),
            (b"./a/b/c", b"a//b"),
            (b"a", b"./a/./b"),
        ],
    )
    def test_a_path_is_a_file_or_a_directory(self, names: tuple[bytes, bytes]) -> None:
        one, other = names
        with pytest.raises(StreamInvalid, match="both a file and a directory"):
            parse(whole(one, b"x") + whole(other, b"y"))
        with pytest.raises(StreamInvalid, match="both a file and a directory"):
            parse(payload(one, b"x") + payload(other, b"y"))

    def test_a_rename_makes_neither_of_the_other(self) -> None:
        with pytest.raises(StreamInvalid, match="both a file and a directory"):
            parse(whole(b"d/t", b"x") + whole(b"u", b"y") + rename(b"u", b"d"))
        with pytest.raises(StreamInvalid, match="both a file and a directory"):
            parse(whole(b"d", b"x") + whole(b"u", b"y") + rename(b"u", b"d/u"))

    @pytest.mark.parametrize("twin", [b"./d/t", b"d//t", b"d/./t", b".//d/t"])
    def test_one_file_has_one_spelling(self, twin: bytes) -> None:
        with pytest.raises(StreamInvalid, match="goes on after its end"):
            parse(whole(b"d/t", b"x") + whole(twin, b"y"))

    @pytest.mark.parametrize("path", [b"./", b"d/", b".", b"././/", b"d/."])
    def test_a_path_names_a_file(self, path: bytes) -> None:
        with pytest.raises(StreamInvalid, match="names no file"):
            parse(whole(path, b"x"))

    def test_no_name_is_longer_than_a_filesystem_takes(self) -> None:
        name = b"x" * 255
        assert parse(whole(b"a/" + name, b"x") + whole(name + b"/a", b"x")).files
        for path in (name + b"x", b"a/" + name + b"x", name + b"x/a"):
            with pytest.raises(StreamInvalid, match="too long for a file"):
                parse(whole(path, b"x"))

    def test_the_first_hidden_name_is_noted(self) -> None:
        assert parse(whole(b"./d/.t", b"x")).hidden is None
        stream = whole(b"d/t", b"x") + whole(b".ssh/db.opt", b"") + whole(b".x", b"")
        assert parse(stream).hidden == b".ssh/db.opt"


def test_a_tablespace_of_an_incremental_is_known_by_the_number_in_its_note() -> None:
    note = b"page_size = 16384\nzip_size = 0 \nspace_id = 5\n"
    stream = whole(b"d/t.ibd.meta", note) + whole(b"d/u.meta", note[:-2]) + whole(b"x", note)
    stream += whole(b"d/v.meta", note.replace(b" = 5", b" = 6") + bytes(5000))
    assert list(parse(stream).spaces.values()) == [5]


def test_twenty_thousand_files_leave_only_their_digests() -> None:
    parser = XbstreamParser()
    stream = memoryview(b"".join(whole(b"db/t%d.ibd" % n, b"x" * 100) for n in range(20_000)))
    for begin in range(0, len(stream), 1 << 20):
        parser.feed(stream[begin : begin + (1 << 20)])
    parser.finish()
    assert len(parser.files) == 20_000
    assert not parser.metadata
