"""What proves a stream whole: LSNs, every lasting tablespace, plausible bytes."""

import io
from collections.abc import Mapping
from typing import cast

import pytest

from agent.database import Tablespace
from agent.engine.runs import BackupRun
from agent.errors import LsnMismatch, StreamIncomplete, StreamInvalid
from agent.operations.proof import Proof, ProvedStream
from tests.codec.streams import whole

Listing = Mapping[int, Tablespace]
NOTE = b"backup_type = %s\nfrom_lsn = %d\nto_lsn = %d\nlast_lsn = 999\n"
FULL = NOTE % (b"full-backuped", 0, 50)
SMALL = 100


class Engine:
    """A run that has written `stream` and ended well."""

    def __init__(self, stream: bytes) -> None:
        self._stdout = io.BytesIO(stream)
        self.finished = 0

    def read_into(self, buffer: memoryview) -> int:
        return self._stdout.readinto(buffer)

    def finish(self) -> None:
        self.finished += 1


def file(path: str, number: int) -> bytes:
    return whole(path.encode(), bytes(34) + number.to_bytes(4, "big") + bytes(SMALL))


def note(content: bytes) -> bytes:
    return whole(b"xtrabackup_checkpoints", content)


def spaces(allocated: int = SMALL, **numbers: int) -> Listing:
    """A listing of tables of the schema `db`."""
    return {n: Tablespace(f"db/{name}.ibd", allocated) for name, n in numbers.items()}


def proved(
    stream: bytes,
    before: Listing,
    after: Listing | None = None,
    from_lsn: int | None = None,
    server_lsn: int = 0,
) -> Proof | None:
    listings = iter([before, before if after is None else after])
    engine = Engine(stream)
    source = ProvedStream(cast(BackupRun, engine), from_lsn, lambda: next(listings), server_lsn)
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
    """Dropped before the engine held DDL back, made again right after: another tablespace."""
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
    # one that shrank meanwhile is as large as it is now
    assert proved(stream, spaces(1 << 40, a=5), spaces(a=5))


def test_an_incremental_needs_no_tablespaces_but_its_own_lsn() -> None:
    stream = file("db/a.ibd.delta", 5) + note(NOTE % (b"incremental", 40, 50))
    assert proved(stream, {}, from_lsn=40)
    unchanged = file("db/a.ibd.delta", 5) + note(NOTE % (b"incremental", 40, 40))
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
