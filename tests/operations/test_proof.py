"""The proof that a stream is whole.

It checks the LSNs, every lasting tablespace, and whether the number of bytes is plausible.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from agent.codec import xbstream
from agent.database.datadir import Rules, Survey
from agent.database.server import ServerInfo, Tablespace
from agent.engine.runs import BackupRun
from agent.errors import Cancelled, LsnMismatch, StreamIncomplete, StreamInvalid
from agent.operations.backup.completeness import Completeness
from agent.operations.backup.imports import Check
from agent.operations.backup.proof import Proof, ProvedStream
from agent.stop import Stop
from tests.codec.streams import whole
from tests.engine.percona import info

Listing = Mapping[int, Tablespace]
NOTE = b"backup_type = %s\nfrom_lsn = %d\nto_lsn = %d\nlast_lsn = 999\n"
FULL = NOTE % (b"full-backuped", 0, 50)
SMALL = 100


class Engine:
    """A run that has written `stream` and ended with success."""

    def __init__(self, stream: bytes) -> None:
        self._stdout = io.BytesIO(stream)
        self.finished = 0

    def read_into(self, buffer: memoryview) -> int:
        return self._stdout.readinto(buffer)

    def finish(self) -> None:
        self.finished += 1

    def words_about(self, path: str) -> str:
        return f"not {path}" if "lost" in path else ""


def file(path: str, number: int) -> bytes:
    return whole(path.encode(), bytes(34) + number.to_bytes(4, "big") + bytes(SMALL))


def meta(path: str, number: int) -> bytes:
    return whole(f"{path}.meta".encode(), b"page_size = 16384\nspace_id = %d\n" % number)


def note(content: bytes, told: bytes | None = None) -> bytes:
    """Return the engine's own two files. They agree unless `told` replaces the second one."""
    from_lsn = int(content.split()[5])
    told = info(from_lsn, "NY"[b"incremental" in content]) if told is None else told
    return whole(b"xtrabackup_checkpoints", content) + whole(b"xtrabackup_info", told)


def spaces(allocated: int = SMALL, first_id: int = 0, **numbers: int) -> Listing:
    """Return a listing of tables of the schema `db`. Their ids begin at `first_id`, or are 0."""
    return {
        n: Tablespace(f"db/{name}.ibd", allocated, first_id and first_id + at)
        for at, (name, n) in enumerate(numbers.items())
    }


def proved(
    stream: bytes,
    before: Listing,
    after: Listing | None = None,
    from_lsn: int | None = None,
    server_lsn: int = 0,
    datadir: Path = Path("/nonexistent"),
    check: Check = lambda: None,
    checked_spaces: Listing | None = None,
    version: tuple[str, str] = ("mariadb", "10.11.6-MariaDB"),
) -> Proof | None:
    listings = iter([before, before if after is None else after])
    engine = Engine(stream)
    survey = Survey(Path(__file__).parent.parent / "codec", Rules())
    server = ServerInfo(*version, None, datadir)
    completeness = Completeness(
        server, lambda: next(listings), survey, from_lsn, check, checked_spaces
    )
    source = ProvedStream(cast(BackupRun, engine), from_lsn, completeness, server_lsn)
    while source.read_into(memoryview(bytearray(64))):
        assert source.proof is None
    assert engine.finished == 1
    return source.proof


def test_a_whole_stream_is_proved() -> None:
    stream = file("db/a.ibd", 5) + file("./db/b.ibd", 6) + note(FULL)
    proof = proved(stream, spaces(a=5, b=6))
    assert proof is not None
    assert proof.checkpoints.to_lsn == 50
    assert proof.raw_bytes == len(stream)


def test_a_path_that_no_restore_takes_is_no_backup() -> None:
    """A restore's own folder takes what an incremental's paths leave of the engine's 508 bytes."""
    path = f"{'d' * 255}/{'t' * 250}.ibd"
    delta = NOTE % (b"incremental", 7, 50)
    for longest, from_lsn, said in ((506, None, FULL), (400, 7, delta)):
        fits = file(path[-longest:], 5) + note(said)
        assert proved(fits, {5: Tablespace(path[-longest:], 0)}, from_lsn=from_lsn)
        with pytest.raises(StreamInvalid, match=f"has {longest + 1} bytes, and {longest} are the"):
            proved(file(path[-longest - 1 :], 5) + note(said), {}, from_lsn=from_lsn)


@pytest.mark.parametrize(
    ("fits", "from_lsn"),
    [
        ("d/" + "t" * 251, None),
        ("d" * 255 + "/" + "t" * 246, None),
        ("d/" + "t" * 245, 7),
        ("d" * 200 + "/" + "t" * 189, 7),
    ],
)
def test_a_table_gets_no_name_meanwhile_that_no_restore_takes(
    fits: str, from_lsn: int | None
) -> None:
    """Its new name is in a `.ren` file, and what the prepare opens is longer than the `.frm`."""
    said = FULL if from_lsn is None else NOTE % (b"incremental", from_lsn, 50)
    for more in ("", "t"):
        stream = file("d/a.ibd", 5) + whole(b"d/a.ren", f"{fits}{more}".encode()) + note(said)
        if more:
            with pytest.raises(StreamInvalid, match="no restore takes the table d"):
                proved(stream, spaces(a=5), from_lsn=from_lsn)
        else:
            proof = proved(stream, {5: Tablespace(f"{fits}.ibd", 0)}, from_lsn=from_lsn)
            assert proof is not None
            assert proof.longest_path == len(fits) + (4 if from_lsn is None else 10)


def test_redo_log_that_ends_before_the_run_began_is_no_backup() -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    assert proved(stream, spaces(a=5), server_lsn=999)
    with pytest.raises(LsnMismatch, match="to LSN 999, but the server was at 1000 before"):
        proved(stream, spaces(a=5), server_lsn=1000)


def test_a_lasting_tablespace_that_is_missing_is_no_backup() -> None:
    with pytest.raises(StreamIncomplete, match=r"tablespaces 1 are .* db/b\.ibd among them"):
        proved(file("db/a.ibd", 5) + note(FULL), spaces(a=5, b=6))


def test_tables_made_or_dropped_meanwhile_need_not_be_there() -> None:
    assert proved(file("db/a.ibd", 5) + note(FULL), spaces(a=5, b=6), spaces(a=5, c=7))


def test_a_table_made_again_under_its_name_need_not_be_there() -> None:
    """The table was dropped before the engine blocked DDL, and made again right after.

    It is another tablespace then.
    """
    stream = file("db/a.ibd", 5) + note(FULL)
    assert proved(stream, spaces(a=5, b=6), spaces(a=5, b=7))
    huge = spaces(1 << 40, b=6)
    assert proved(stream, {**spaces(a=5), **huge}, spaces(a=5, b=7))


def test_a_table_renamed_there_and_back_is_there_under_its_other_name() -> None:
    assert proved(file("db/other.ibd", 5) + note(FULL), spaces(a=5), spaces(a=5))


@pytest.mark.parametrize("name", ["db/a.ibd", "db/a.new"])
def test_a_tablespace_not_written_yet_is_known_by_its_name(name: str) -> None:
    assert proved(file(name, 0) + note(FULL), spaces(a=5))


def test_too_few_bytes_are_no_backup() -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    assert proved(stream, spaces(2 * len(stream), a=5))
    with pytest.raises(StreamIncomplete, match="the server's tablespaces have"):
        proved(stream, spaces(2 * len(stream) + 1, a=5))
    # A tablespace that shrank during the backup counts with its later size.
    assert proved(stream, spaces(1 << 40, a=5), spaces(a=5))


def test_an_incremental_needs_its_own_lsn() -> None:
    stream = meta("db/a.ibd", 5) + note(NOTE % (b"incremental", 40, 50))
    assert proved(stream, {}, from_lsn=40)
    unchanged = meta("db/a.ibd", 5) + note(NOTE % (b"incremental", 40, 40))
    assert proved(unchanged, {}, from_lsn=40)
    for from_lsn in (None, 39):
        with pytest.raises(LsnMismatch, match="asked for"):
            proved(stream, {}, from_lsn=from_lsn)
    with pytest.raises(LsnMismatch, match="ends at LSN 39"):
        proved(note(NOTE % (b"incremental", 40, 39)), {}, from_lsn=40)


def test_a_stream_without_the_engines_note_or_its_end_is_no_backup() -> None:
    with pytest.raises(StreamIncomplete, match="xtrabackup_checkpoints"):
        proved(file("db/a.ibd", 5), spaces(a=5))
    with pytest.raises(StreamInvalid):
        proved((file("db/a.ibd", 5) + note(FULL))[:-1], spaces(a=5))


def test_an_incremental_holds_every_lasting_tablespace_too() -> None:
    own = note(NOTE % (b"incremental", 40, 50))
    both = meta("db/a.ibd", 5) + meta("db/other.ibd", 6) + own
    assert proved(both, spaces(a=5, b=6), spaces(b=6, c=7), from_lsn=40)
    with pytest.raises(StreamIncomplete, match=r"db/b\.ibd among them"):
        proved(meta("db/a.ibd", 5) + own, spaces(a=5, b=6), from_lsn=40)
    # a tablespace that the server has not written yet
    assert proved(meta("db/a.ibd", 0) + own, spaces(a=5), from_lsn=40)


@pytest.mark.parametrize("name", ["partial", "compact", "compressed", "encrypted"])
def test_what_an_option_file_asked_for_is_no_backup(name: str) -> None:
    told = info(0, "N").replace(f"\n{name} = N".encode(), f"\n{name} = Y".encode())
    stream = file("db/a.ibd", 5) + note(FULL, told)
    with pytest.raises(StreamIncomplete, match=f"{name} = Y"):
        proved(stream, spaces(a=5))
    # mariadb-backup doesn't know all of them
    known = info(0, "N").replace(b"compact = N\n", b"").replace(b"encrypted = N\n", b"")
    assert proved(file("db/a.ibd", 5) + note(FULL, known), spaces(a=5))
    with pytest.raises(StreamIncomplete, match="no xtrabackup_info"):
        proved(file("db/a.ibd", 5) + note(FULL, b""), spaces(a=5))


def test_what_the_engine_was_told_of_lsns_is_compared() -> None:
    full = file("db/a.ibd", 5)
    for told in (info(7, "N"), info(0, "Y")):
        with pytest.raises(LsnMismatch, match="asked for innodb_from_lsn = 0, incremental = N"):
            proved(full + note(FULL, told), spaces(a=5))


def test_a_name_that_the_extractor_refuses_is_no_backup() -> None:
    stream = file("db/a.ibd", 5) + whole(b".ssh/db.opt", b"") + note(FULL)
    with pytest.raises(StreamInvalid, match="mbstream takes no name"):
        proved(stream, spaces(a=5))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (b"innodb_data_file_path=ibdata+1:4M:autoextend\n", "innodb_data_file_path to 'ibdata"),
        (b"plugin_load=vault=ha_vault\nvault_token=s3cret\n", "plugin_load to 'vault=ha_vault'"),
        (b"innodb_of_a_later_engine=1\n", "innodb_of_a_later_engine, which"),
        (b"server_id=\xff\n", "is no text"),
    ],
)
def test_an_option_that_a_restore_refuses_is_no_backup(options: bytes, named: str) -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    assert proved(stream + whole(b"backup-my.cnf", b"[mysqld]\nserver_id=1\n"), spaces(a=5))
    with pytest.raises(StreamInvalid, match=named) as caught:
        proved(stream + whole(b"backup-my.cnf", b"[mysqld]\n" + options), spaces(a=5))
    assert "the server's settings" in caught.value.hint
    assert "s3cret" not in str(caught.value)


def test_more_names_than_a_restore_takes_are_no_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    assert proved(stream, spaces(a=5))
    monkeypatch.setattr(xbstream, "MOST_FILES", 2)
    with pytest.raises(StreamInvalid, match="more than 2 files") as caught:
        proved(stream, spaces(a=5))
    assert "spread" in caught.value.hint


def test_tables_are_in_it_up_to_an_id() -> None:
    stream = file("db/a.ibd", 5) + file("db/b.ibd", 6) + note(FULL)
    before = spaces(first_id=20, a=5, b=6)

    def last(**late: int) -> tuple[int, tuple[int, ...]]:
        return tables({**before, **spaces(first_id=22, **late)})

    def tables(after: Listing) -> tuple[int, tuple[int, ...]]:
        proof = proved(stream, before, after)
        assert proof
        return proof.tables[:2]

    assert last() == (21, ())
    assert last(c=7) == (21, ())

    def made(count: int, first_id: int) -> Listing:
        names = {f"#sql-alter-{n}": n for n in range(9, 9 + count)}
        return {**before, **spaces(first_id=first_id, **names)}

    # An ALTER makes one such table, or many if its table has very many partitions.
    assert tables(made(1, 18)) == (21, (18,))
    assert tables(made(1, 30)) == (21, ())
    stream = file("db/d.ibd", 8) + stream
    late = {7: Tablespace("db/c.ibd", SMALL, 999), 8: Tablespace("db/d.ibd", SMALL, 1000)}
    assert tables({**made(1, 18), **late}) == (1000, (18, 999))
    assert tables({**made(499, 30), **late}) == (1000, (*range(30, 529), 999))
    assert tables({**made(500, 30), **late}) == (29, ())


def test_a_table_that_was_imported_meanwhile_is_told() -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    with pytest.raises(StreamIncomplete, match="discarded and imported during"):
        proved(stream, spaces(first_id=20, a=5), spaces(first_id=30, a=5))
    # The table had no file before, but it had its id.
    before = spaces(first_id=20, a=5)
    with pytest.raises(StreamIncomplete, match=r"db/b\.ibd among them"):
        proved(stream, before, {**before, 6: Tablespace("db/b.ibd", SMALL, 19)})


def lsn_page(lsn: int, size: int = 16 << 10) -> bytes:
    return bytes(16) + lsn.to_bytes(8, "big") + b"\1" + bytes(size - 25)


def test_a_table_made_and_imported_meanwhile_is_told(tmp_path: Path) -> None:
    stream = file("db/a.ibd", 5) + file("db/b.ibd", 6) + note(FULL)
    before = spaces(first_id=20, a=5)
    after = {**before, 6: Tablespace("db/b.ibd", SMALL, 30)}
    (tmp_path / "db").mkdir()
    (tmp_path / "db/b.ibd").write_bytes(lsn_page(0) + lsn_page(60) + bytes(16 << 10))
    assert proved(stream, before, after, datadir=tmp_path)
    (tmp_path / "db/b.ibd").write_bytes(lsn_page(60) + lsn_page(60) + lsn_page(0))
    with pytest.raises(StreamIncomplete, match=r"db/b\.ibd was imported during"):
        proved(stream, before, after, datadir=tmp_path)


def test_a_stop_ends_the_reading_of_tables_after_the_engines_end(tmp_path: Path) -> None:
    stream = file("db/a.ibd", 5) + file("db/b.ibd", 6) + note(FULL)
    before = spaces(first_id=20, a=5)
    after = {**before, 6: Tablespace("db/b.ibd", SMALL, 30)}
    (tmp_path / "db").mkdir()
    (tmp_path / "db/b.ibd").write_bytes(lsn_page(60) * 256)
    stop = Stop()
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            stop.request(Cancelled("the task was cancelled"))
        stop.check()

    with pytest.raises(Cancelled):
        proved(stream, before, after, datadir=tmp_path, check=check)
    # The stop came before the end of the file.
    assert len(calls) == 2


def test_what_came_while_tables_were_read_for_imports_is_read_at_the_end(tmp_path: Path) -> None:
    """The import or the end of an ALTER comes between the check of all tables and the engine."""
    stream = meta("db/a.ibd", 5) + note(NOTE % (b"incremental", 50, 60))
    (tmp_path / "db").mkdir()
    (tmp_path / "db/a.ibd").write_bytes(lsn_page(60) + lsn_page(0))
    now = spaces(first_id=30, a=5)
    altered = {5: Tablespace("db/#sql-alter-1.ibd", SMALL, 30)}
    assert proved(stream, now, from_lsn=50, datadir=tmp_path, checked_spaces=now)
    for read in (spaces(first_id=20, a=5), spaces(first_id=20, b=7), {}):
        with pytest.raises(StreamIncomplete, match=r"db/a\.ibd was imported during"):
            proved(stream, now, from_lsn=50, datadir=tmp_path, checked_spaces=read)
    with pytest.raises(StreamIncomplete, match=r"db/a\.ibd was made by an ALTER that") as caught:
        proved(stream, now, from_lsn=50, datadir=tmp_path, checked_spaces=altered)
    assert "full backup" in caught.value.hint


def test_what_was_made_before_the_engine_began_must_be_there(tmp_path: Path) -> None:
    own = note(NOTE % (b"incremental", 50, 60))
    read = spaces(first_id=20, a=5)
    before = spaces(first_id=20, a=5, b=6)
    with pytest.raises(StreamIncomplete, match=r"db/b\.ibd among them"):
        proved(
            meta("db/a.ibd", 5) + own, before, from_lsn=50, datadir=tmp_path, checked_spaces=read
        )


def test_a_general_tablespace_is_in_it_or_was_not_there(tmp_path: Path) -> None:
    """It has no id of its own. A table that is made in it meanwhile changes nothing."""
    mysql = ("mysql", "8.0.35-27")
    before = {**spaces(first_id=20, a=5), 6: Tablespace("ts1.ibd", SMALL)}
    both = file("db/a.ibd", 5) + file("ts1.ibd", 6) + note(FULL)
    assert proved(both, before, version=mysql)
    made = {**before, 7: Tablespace("ts2.ibd", SMALL)}
    # It was dropped again while the agent queried the server.
    assert proved(both, before, made, datadir=tmp_path, version=mysql)
    (tmp_path / "ts2.ibd").write_bytes(lsn_page(60))
    with pytest.raises(StreamIncomplete, match=r"ts2\.ibd among them"):
        proved(both, before, made, datadir=tmp_path, version=mysql)


def test_a_truncate_of_mysql_57_is_no_import(tmp_path: Path) -> None:
    """The tablespace keeps its number, and the table gets another id.

    On other servers this means an import, and the engine removes its copy of the old file.
    """
    stream = file("db/a.ibd", 5) + note(FULL)
    before, after = spaces(first_id=20, a=5), spaces(first_id=30, a=5)
    (tmp_path / "db").mkdir()
    (tmp_path / "db/a.ibd").write_bytes(lsn_page(60) * 2)
    old = ("mysql", "5.7.44-48")
    assert proved(stream, before, after, datadir=tmp_path, version=old)
    for other in (("mysql", "8.0.35-27"), ("mariadb", "11.8.2-MariaDB")):
        with pytest.raises(StreamIncomplete, match="discarded and imported during"):
            proved(stream, before, after, datadir=tmp_path, version=other)
    (tmp_path / "db/a.ibd").write_bytes(lsn_page(60) + lsn_page(0))
    with pytest.raises(StreamIncomplete, match="was imported during the backup"):
        proved(stream, before, after, datadir=tmp_path, version=old)
    # The table was dropped while the agent queried the server for the ids.
    gone = {5: after[5]._replace(table_id=0)}
    assert proved(stream, before, gone, datadir=tmp_path)


def test_a_discarded_table_need_not_be_there_and_is_noted(tmp_path: Path) -> None:
    stream = file("db/a.ibd", 5) + note(FULL)
    listing = spaces(first_id=20, b=6, a=5)
    bare = {**listing, 6: listing[6]._replace(discarded=True)}
    for before in (bare, listing):
        proof = proved(stream, before, bare)
        assert proof
        assert proof.tables[:2] == (21, (20,))
    (tmp_path / "db").mkdir()
    (tmp_path / "db/b.ibd").write_bytes(lsn_page(60) + lsn_page(0))
    both = file("db/b.ibd", 6) + stream
    with pytest.raises(StreamIncomplete, match=r"db/b\.ibd was imported during"):
        proved(both, bare, listing, datadir=tmp_path)
