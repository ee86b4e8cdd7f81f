"""Tests of streams with renames.

A stream that mbstream can't extract is mended. Misnamed, lost and lacking files are reported.
"""

import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from agent.codec import xbstream
from agent.codec.mariadb_stream import MendingParser, Rename, exchanged
from agent.codec.stream_paths import path_digest
from agent.errors import StreamInvalid
from tests.codec.streams import end, payload, remove, rename, seek, whole
from tests.conftest import need

A, Z = whole(b"a", b"xx"), whole(b"z", b"zzz")
MENDED = {
    "an empty file": A + rename(b"a", b"c") + end(b"l"),
    "a file that was open": A + payload(b"b", b"yy") + rename(b"a", b"c") + end(b"b"),
    "a file that went back": A
    + payload(b"b", b"yyyy")
    + rename(b"a", b"c")
    + seek(b"b", 2)
    + end(b"b"),
    "removed": A + Z + rename(b"z", b"q") + remove(b"a") + end(b"l"),
    "twice": A + rename(b"a", b"c") + end(b"l") + end(b"m") + rename(b"c", b"./d/e") + end(b"./n"),
    "not there": A + rename(b"none", b"c") + end(b"l"),
}
SOUND = {
    "a payload": A + rename(b"a", b"c") + Z,
    "the end": A + rename(b"a", b"c"),
    "no rename": A + end(b"l") + remove(b"a") + end(b"m"),
}


def mended(stream: bytes, size: int) -> tuple[bytes, int]:
    """Mend the stream in pieces of `size` bytes.

    Return the mended stream and the number of inserted bytes.
    """
    parser, out = MendingParser(), bytearray()
    for at in range(0, len(stream), size):
        piece = stream[at : at + size]
        took = parser.mend(memoryview(piece))
        out += piece if took is None else took
    parser.finish()
    assert parser.raw_bytes + parser.inserted == len(out)
    return bytes(out), parser.inserted


def extracted(stream: bytes, folder: Path) -> tuple[int, dict[str, bytes]]:
    folder.mkdir()
    done = subprocess.run(
        ["mbstream", "-x", "-C", str(folder)], input=stream, capture_output=True, check=False
    )
    files = (path for path in folder.rglob("*") if path.is_file())
    return done.returncode, {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", MENDED)
def test_mbstream_takes_what_was_mended(name: str, tmp_path: Path) -> None:
    need("mbstream")
    stream = MENDED[name]
    assert extracted(stream, tmp_path / "before")[0] == 1
    whole_at_once, inserted = mended(stream, len(stream))
    assert inserted
    status, files = extracted(whole_at_once, tmp_path / "after")
    assert status == 0
    assert sorted(map(len, files.values())) != []
    again, nothing = mended(whole_at_once, len(stream))
    assert (again, nothing) == (whole_at_once, 0)
    for size in range(1, 60):
        assert mended(stream, size) == (whole_at_once, inserted)


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_goes_on_as_it_is(name: str, tmp_path: Path) -> None:
    need("mbstream")
    assert extracted(SOUND[name], tmp_path / "x")[0] == 0
    for size in (1, 7, 1000):
        assert mended(SOUND[name], size) == (SOUND[name], 0)


def misnamed(stream: bytes) -> bytes | None:
    parser = MendingParser()
    parser.mend(memoryview(stream))
    return parser.misnamed()


def test_a_name_that_was_encoded_twice_is_told() -> None:
    odd, twice = b"d/a@002db.MAD", b"d/a@0040002db.MAD"
    plain = whole(b"d/u.MAD", b"x")
    frm = whole(b"d/a@002db.frm", b"x")
    assert misnamed(whole(odd, b"x") + rename(twice, b"d/u.MAD")) == twice
    assert misnamed(plain + frm + rename(b"d/u.MAD", twice)) == twice
    partition = whole(b"d/u#P#p0.MAD", b"x")
    wrong = b"d/a@0040002db#P#p0.MAD"
    assert misnamed(partition + frm + rename(b"d/u#P#p0.MAD", wrong)) == wrong
    # One table has an at sign in its name. The other was not yet sent by the engine.
    real = whole(b"d/a@0040b.frm", b"x")
    assert misnamed(plain + real + rename(b"d/u.MAD", b"d/a@0040b.MAD")) is None
    assert misnamed(plain + rename(b"d/other@0040002d.MAD", b"d/v.MAD")) is None
    dropped = rename(b"d/u.MAD", twice) + remove(twice)
    assert misnamed(plain + frm + dropped) is None


def test_a_definition_without_its_data_is_told() -> None:
    def lacking(*files: bytes) -> set[int]:
        parser = MendingParser()
        parser.mend(memoryview(b"".join(files)))
        return set(parser.without_data())

    def frm(name: bytes, engine: int) -> bytes:
        return whole(name, b"\xfe\x01\x0a" + bytes([engine]) + bytes(100))

    aria, data = frm(b"d/a.frm", 42), whole(b"d/a.MAD", b"x")
    assert lacking(aria, data, whole(b"d/a.MAI", b"x")) == set()
    assert lacking(aria, data) == lacking(data, aria) == {path_digest(b"d/a.frm")}
    assert lacking(aria, remove(b"d/a.frm")) == set()
    others = frm(b"d/i.frm", 12), frm(b"d/#sql-1.frm", 42), whole(b"d/v.frm", b"TYPE=VIEW")
    assert lacking(*others) == set()
    assert lacking(frm(b"d/c.frm", 17), end(b"d/c.CSV")) == set()
    # The bytes of another file are in between.
    begun = b"\xfe\x01\x0a\x2a" + bytes(100)
    mixed = payload(b"d/a.frm", begun) + payload(b"x", b"y") + end(b"d/a.frm") + end(b"x")
    assert lacking(mixed) == {path_digest(b"d/a.frm")}
    # At least one partition of a partitioned table must be in the stream.
    parted = whole(b"d/p.frm", b"\xfe\x01\x0a\x14" + bytes(57) + b"\x2a" + bytes(9))
    innodb = whole(b"d/q.frm", b"\xfe\x01\x0a\x14" + bytes(57) + b"\x0c" + bytes(9))
    assert lacking(parted, innodb) == {path_digest(b"d/p.frm")}
    assert lacking(parted, whole(b"d/p#P#x.MAD", b"x")) == set()
    assert lacking(whole(b"d/p#p#x#sp#y.MAD", b"x"), parted) == set()
    # The table moved through a schema that was made and dropped during the backup. mbstream leaves
    # its file behind.
    csv, text = frm(b"d/c.frm", 17), whole(b"e/c.CSV", b"x")
    over = rename(b"e/c.CSV", b"f/c.CSV") + rename(b"f/c.CSV", b"d/c.CSV")
    assert lacking(csv, text, over) == {path_digest(b"d/c.frm")}
    assert lacking(csv, whole(b"f/db.opt", b"x"), text, over) == set()
    # The definition is written again as that of another engine.
    again = b"\xfe\x01\x0a\x0c" + bytes(100)
    assert lacking(aria, whole(b"d/a.frm", again, flags=2)) == set()


def test_what_was_made_again_and_then_removed_is_told(tmp_path: Path) -> None:
    need("mbstream")
    frm, new, ren = whole(b"d/t.frm", b"x"), whole(b"d/u.new", b"y"), whole(b"e/i.ren", b"d/i")
    data, note = whole(b"d/t.MAD", b"z"), whole(b"d/db.opt", b"")
    cases = {
        frm + new: [],
        # mbstream is meant to remove all partitions by this, but removes none.
        whole(b"d/p#P#p0.new", b"y") + remove(b"d/p#P#*"): [],
        data + remove(b"d/t.MAD") + remove(b"d/t.frm") + remove(b"d"): [],
        frm + remove(b"./d/t.frm"): [b"d/t.frm"],
        frm + remove(b"d/t.frm") + whole(b"d/t.frm", b"again", flags=2): [],
        note + remove(b"d") + whole(b"d/db.opt", b"", flags=2): [],
        new + remove(b"d") + note: [b"d"],
        ren + frm + remove(b"e"): [b"e"],
        frm + new + remove(b"d") + frm: [b"d"],
        frm + remove(b"d") + frm + data: [],
        frm + rename(b"d/t.frm", b"d/u.frm") + remove(b"d/u.frm"): [b"d/u.frm"],
        frm + ren + rename(b"d/t.frm", b"e/t.frm") + remove(b"d"): [],
        frm + rename(b"d/t.frm", b"e/t.frm") + remove(b"d"): [b"d"],
    }
    for at, (stream, expected) in enumerate(cases.items()):
        parser = MendingParser()
        parser.mend(memoryview(stream))
        parser.finish() if parser.files else None
        assert parser.wrongly_removed() == expected
        status, files = extracted(stream, tmp_path / str(at))
        assert status == 0
        for name in ("d/t.frm", "d/u.new", "e/i.ren", "d/u.frm", "e/t.frm", "d/p#P#p0.new"):
            assert (name in files) == (path_digest(name.encode()) in parser.files)


def test_names_that_were_exchanged_are_told() -> None:
    def told(*names: str) -> bytes | None:
        return exchanged(Rename(*one.encode().split(b">")) for one in names)

    for none in ((), ("a>b",), ("a>b", "b>c", "c>d"), ("a>a",), ("a>b", "b>b"), ("a>c", "b>c")):
        assert told(*none) is None, none
    assert told("a>b", "b>a") in (b"a", b"b")
    assert told("x>y", "b>c", "c>a", "a>b", "y>z") in (b"a", b"b", b"c")
    # No engine writes this. Two tables received the same name.
    assert told("start>a", "a>b", "b>a") in (b"a", b"b")
    assert told("a>b", "b>a", "start>a") in (b"a", b"b")


@pytest.mark.timeout(20)  # A walk from each name took minutes.
def test_many_renames_are_judged_in_time() -> None:
    chain = [Rename(b"%d" % n, b"%d" % (n + 1)) for n in range(300_000)]
    assert exchanged(chain) is None
    assert exchanged([*chain, Rename(b"300000", b"0")]) is not None


def test_a_rename_whose_schema_was_removed_confuses_nothing() -> None:
    renamed = whole(b"d/a.ren", b"e/b") + whole(b"e/b.ren", b"d/a")
    for stream, expected in ((renamed, True), (renamed + remove(b"d"), False)):
        parser = MendingParser()
        parser.mend(memoryview(stream))
        assert (parser.confused() is not None) == expected


@pytest.mark.parametrize("proving", [True, False], ids=["proof", "restore"])
def test_what_a_name_costs_is_bounded_whatever_the_stream_does(proving: bool) -> None:
    """300,000 definitions of a hostile backup, each renamed to one name, took 187 MiB."""
    frm = b"\xfe\x01\x0a\x2a" + bytes(60)
    parser = MendingParser(proving=proving)
    count = 4000
    tracemalloc.start()
    for n in range(count):
        path = b"d/%d.frm" % n
        parser.mend(memoryview(whole(path, frm) + rename(path, b"d/x")))
        parser.mend(memoryview(whole(path, frm) + remove(path)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert parser._files_seen == 2 * count + 1
    assert parser._needed_by.keys() | parser._partitioned | parser._lasting <= parser.files
    # In a proof the parser also keeps, for each removed file, the path that the D chunk named.
    assert kept < 2 * count * (100 if proving else 12)


def test_no_memory_of_directories_that_come_and_go_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xbstream, "MOST_FOLDERS", 100)
    parser = MendingParser(proving=False)
    stream = (whole(b"d/t", b"x") + remove(b"d")) * 200
    with pytest.raises(StreamInvalid, match="more than 100 directories"):
        parser.mend(memoryview(stream))


AGAIN = whole(b"d/t.MAD", b"again")
REMOVED = {
    "a directory": (whole(b"d/t.MAD", b"x") + remove(b"d"), b""),
    "one that comes again": (whole(b"d/t.MAD", b"x") + remove(b"d"), AGAIN),
    "one of which a file was moved": (
        whole(b"e/u", b"x")
        + whole(b"d/t.MAD", b"x")
        + rename(b"d/t.MAD", b"e/t.MAD")
        + remove(b"d"),
        AGAIN,
    ),
    "one that has got a file": (
        whole(b"e/u", b"x") + AGAIN + rename(b"e/u", b"d/u") + remove(b"d"),
        AGAIN,
    ),
    "another": (whole(b"d/t.MAD", b"x") + whole(b"dd/t.MAD", b"x") + remove(b"dd"), b""),
    "none": (whole(b"d/t.MAD", b"x") + remove(b"dd"), b""),
}


@pytest.mark.parametrize("name", REMOVED)
def test_a_directory_goes_with_its_files(name: str, tmp_path: Path) -> None:
    need("mbstream")
    stream = b"".join(REMOVED[name]) + whole(b"z", b"z")
    parser = MendingParser()
    parser.mend(memoryview(stream))
    parser.finish()
    status, files = extracted(stream, tmp_path / "x")
    assert status == 0
    assert len(parser.files) == len(files)
    assert all(map(parser.contains, files))


def test_tables_whose_directory_was_removed_are_told() -> None:
    aria, innodb = (b"\xfe\x01\x0a" + bytes([n]) + bytes(60) for n in (42, 12))
    parser = MendingParser()
    page = bytes(34) + b"\0\0\0\x07" + bytes(100)
    data = whole(b"d/t.MAI", b"x") + whole(b"d/t.MAD", b"x") + whole(b"d/i.ibd", page)
    parser.mend(memoryview(data))
    assert list(parser.spaces.values()) == [7]
    parser.mend(memoryview(remove(b"d") + whole(b"d/t.frm", aria) + whole(b"d/i.frm", innodb)))
    parser.mend(memoryview(whole(b"d/in_the_system_tablespace.frm", innodb)))
    lacking = {path_digest(name): name for name in (b"d/t.frm", b"d/i.frm")}
    assert parser.without_data() == lacking
    assert not parser.spaces
    assert not parser.contains("d/i.ibd")
    parser.mend(memoryview(whole(b"d/i.new", page)))
    assert list(parser.without_data().values()) == [b"d/t.frm"]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (whole(b"d/e/f", b"x") + remove(b"d"), "but it has or is a subdirectory"),
        (whole(b"d/e/f", b"x") + remove(b"d/e"), "but it has or is a subdirectory"),
        (payload(b"d/t", b"x") + remove(b"d") + end(b"d/t"), "b'd' is removed before the end"),
        (whole(b"d/t", b"x") + rename(b"d", b"e"), "directory b'd' is renamed"),
        (whole(b"d/t", b"x") + rename(b"d/t", b"xtrabackup_checkpoints"), "only an engine writes"),
        (whole(b"t", b"x") + rename(b"t", b"./backup-my.cnf"), "only an engine writes"),
    ],
)
@pytest.mark.parametrize("proving", [True, False], ids=["proof", "restore"])
def test_what_no_engine_does_with_directories_and_its_own_files(
    stream: bytes, why: str, proving: bool
) -> None:
    """mbstream performs these steps, and the parser would lose track of the files."""
    parser = MendingParser(proving=proving)
    with pytest.raises(StreamInvalid, match=why):
        parser.mend(memoryview(stream))


def test_names_and_definitions_of_any_form_are_taken_in_time() -> None:
    heads = [b"\xfe\x01", b"\xfe\x01\0\x14", b"\xfe\x01\0\x2a" + bytes(59)]
    odd = b"/".join([b"#P#" * 80] * 2)
    parser = MendingParser()
    begun = time.process_time()
    for n in range(1000):
        parser.mend(memoryview(end(odd + b"%d" % n)))
        parser.mend(memoryview(whole(b"d/%d.frm" % n, heads[n % 3])))
    assert time.process_time() - begun < 2
    assert parser.without_data() == {}


def test_what_is_remembered_of_renames_is_bounded() -> None:
    stream = A + b"".join(rename(b"x@0040%d" % n, b"y") for n in range(10_001))
    with pytest.raises(StreamInvalid, match="more than 10000 tables with special"):
        misnamed(stream)
