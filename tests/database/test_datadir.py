"""Tests of the survey of a datadir's table files.

Before a backup the survey refuses an unfit datadir. After the backup it finds the table files that
the backup lacks.
"""

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.codec.frm import table_engine
from agent.database.datadir import Rules, Survey, TableFile, birth_time
from agent.errors import DatadirUnfit

NOBODY = 65534
STRANGER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user is another user's test")


@pytest.fixture
def datadir() -> Iterator[Path]:
    """Yield a datadir with one schema, in a directory that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "d").mkdir()
        for name in ("db.opt", "a.frm", "a.MAI", "a.MAD", "i.ibd", "#sql-1.MAD", "a.bak"):
            (Path(folder) / "d" / name).write_bytes(b"x")
        yield Path(folder)


@contextmanager
def another_user(user: int = NOBODY) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def lost(survey: Survey, *held: str, told: str = "") -> list[str]:
    return sorted(one.path for one in survey.lost(lambda path: path in held, lambda p: p == told))


def test_files_that_lasted_are_missed(datadir: Path) -> None:
    survey = Survey(datadir, Rules())
    assert lost(survey) == ["d/a.MAD", "d/a.MAI", "d/a.frm", "d/db.opt"]
    assert lost(survey, "d/a.MAD", "d/a.frm", "d/db.opt") == ["d/a.MAI"]


def test_what_ddl_touches_is_passed_over_unless_the_engine_told(datadir: Path) -> None:
    survey = Survey(datadir, Rules())
    (datadir / "d/new.MAI").write_bytes(b"made meanwhile")
    # One file is renamed there and back, one is made again under its name, one is dropped.
    (datadir / "d/a.frm").rename(datadir / "d/x.frm")
    (datadir / "d/x.frm").rename(datadir / "d/a.frm")
    (datadir / "d/db.opt").unlink()
    (datadir / "d/db.opt").write_bytes(b"y")
    (datadir / "d/a.MAD").unlink()
    assert lost(survey) == []
    assert lost(survey, told="d/a.MAI") == ["d/a.MAI"]


def test_without_definitions_a_file_is_known_by_itself(datadir: Path) -> None:
    """MySQL 8 has no `.frm`, so no change time of one can show DDL."""
    (datadir / "d/a.frm").unlink()
    (datadir / "d/a_340.sdi").write_bytes(b"x")
    (datadir / "d/p#p#x.MYD").write_bytes(b"x")
    survey = Survey(datadir, Rules())
    assert lost(survey, "d/db.opt", "d/a_340.sdi") == ["d/a.MAD", "d/a.MAI", "d/p#p#x.MYD"]
    (datadir / "d/a.MAD").write_bytes(b"rows that were added")
    # One file is truncated or rebuilt, one is renamed, and one is dropped below.
    (datadir / "d/a.MAI").rename(datadir / "d/old")
    (datadir / "d/a.MAI").write_bytes(b"y")
    (datadir / "d/p#p#x.MYD").rename(datadir / "d/p#p#y.MYD")
    assert lost(survey, "d/db.opt", "d/a_340.sdi") == ["d/a.MAD"]
    (datadir / "d/a.MAD").unlink()
    assert lost(survey, "d/db.opt", "d/a_340.sdi") == []


def test_a_table_is_named_as_sql_does() -> None:
    for name, table in {
        "a@002db/t@0020x.MAI": "a-b.t x",
        "d/t#P#p0.MAD": "d.t",
        "d/t#p#p0#sp#s1.MYD": "d.t",
        "d/@00e4.frm": "d.ä",
    }.items():
        assert TableFile(name, 0).table == table


def test_directories_that_are_no_schemas(datadir: Path) -> None:
    (datadir / "lost+found").mkdir()
    assert Survey(datadir, Rules()).left_out == ("lost+found",)
    (datadir / "lost+found/a.MAI").write_bytes(b"x")
    (datadir / "lost+found/a.frm").write_bytes(b"x")
    survey = Survey(datadir, Rules())
    assert survey.left_out == ()
    assert "lost+found/a.MAI" in lost(survey)
    (datadir / ".cache/below").mkdir(parents=True)
    with pytest.raises(DatadirUnfit, match=r"\.cache as if it were a schema"):
        Survey(datadir, Rules())
    Survey(datadir, Rules(hidden=True))
    Survey(datadir, Rules(ignored=frozenset({".cache"})))
    (datadir / ".cache/x").write_bytes(b"then the engine takes nothing of it")
    Survey(datadir, Rules())
    (datadir / ".cache/x").rename(datadir / ".cache/x.opt")
    with pytest.raises(DatadirUnfit, match=r"\.cache as if it were a schema"):
        Survey(datadir, Rules())


@needs_root
def test_what_can_not_be_read_is_named(datadir: Path) -> None:
    (datadir / "d/a.MAI").chmod(0)
    with another_user(), pytest.raises(DatadirUnfit, match=r"the file .*/d/a\.MAI can't be read"):
        Survey(datadir, Rules())
    (datadir / "d/a.MAI").chmod(0o644)
    for name in ("lost+found", ".snapshot"):
        (datadir / name).mkdir(0o700)
    with another_user():
        with pytest.raises(DatadirUnfit, match=r"directory .*\.snapshot can't be read") as caught:
            Survey(datadir, Rules())
        ignoring = Rules(ignored=frozenset({".snapshot"}))
        assert Survey(datadir, ignoring).left_out == ("lost+found",)
    assert caught.value.hint == "run this as root, or as the datadir's owner, the OS user root"
    datadir.chmod(0)
    with another_user(), pytest.raises(DatadirUnfit, match="Permission denied"):
        Survey(datadir, Rules())


@needs_root
def test_nobody_is_told_to_move_a_system_schema(datadir: Path) -> None:
    """The datadir's owner gets no such hint, and neither does another user.

    Another user has to run this as root or as the datadir's owner.
    """
    os.chown(datadir, NOBODY, -1)
    name = pwd.getpwuid(NOBODY).pw_name
    for folder, cure in (("mysql", "make it readable"), (".snapshot", "ignore_db_dirs")):
        (datadir / folder).mkdir(0o700)
        with another_user(), pytest.raises(DatadirUnfit, match="can't be read") as caught:
            Survey(datadir, Rules())
        assert cure in caught.value.hint
        with another_user(STRANGER), pytest.raises(DatadirUnfit, match="can't be read") as caught:
            Survey(datadir, Rules())
        assert f"as root, or as the datadir's owner, the OS user {name}" in caught.value.hint
        (datadir / folder).rmdir()
    (datadir / "d/a.MAI").chmod(0)
    with another_user(STRANGER), pytest.raises(DatadirUnfit, match=r"a\.MAI can't be") as caught:
        Survey(datadir, Rules())
    assert f"the OS user {name}" in caught.value.hint


def frm(number: int, name: bytes = b"", default: int = 0, keys: int = 5) -> bytes:
    """Return a `.frm` in the layout of MariaDB 10.11.

    The name of an engine follows the default values.
    """
    head = bytearray(64)
    head[:2], head[3], head[61] = b"\xfe\x01", number, default
    head[6:8] = (64).to_bytes(2, "little")
    head[14:16] = keys.to_bytes(2, "little")
    head[16:18] = (7).to_bytes(2, "little")
    extra = b"\x03\0con" + len(name).to_bytes(2, "little") + name
    head[55:59] = (len(extra) if name else 0).to_bytes(4, "little")
    return bytes(head) + bytes(keys + 7) + extra


@pytest.mark.parametrize(
    ("content", "engine"),
    [
        (b"TYPE=VIEW\nquery=select 1\n" + bytes(64), None),
        (b"", None),
        (frm(6), "MEMORY"),
        (frm(18), "FEDERATED"),
        (frm(20, default=42), "Aria"),
        (frm(47, b"CONNECT"), "CONNECT"),
        (frm(46), "engine number 46"),
        (frm(46, b"CONNECT")[:70], "engine number 46"),
        (frm(46, b"\x1b[2J"), "engine number 46"),
    ],
)
def test_the_engine_that_a_definition_names(content: bytes, engine: str | None) -> None:
    assert table_engine(content) == engine


def test_tables_whose_data_is_elsewhere(datadir: Path) -> None:
    nowhere = {"m": frm(6), "v": b"TYPE=VIEW\n", "f": frm(18), "s": frm(49, b"SPIDER")}
    for name, content in {**nowhere, "a": frm(47, b"CONNECT")}.items():
        (datadir / f"d/{name}.frm").write_bytes(content)
    Survey(datadir, Rules())
    (datadir / "d/far.frm").write_bytes(frm(47, b"CONNECT"))
    with pytest.raises(DatadirUnfit, match=r"d\.far is of the engine CONNECT") as caught:
        Survey(datadir, Rules())
    assert "uncopied_engines" in caught.value.hint
    Survey(datadir, Rules(accepted=frozenset({"connect"})))
    (datadir / "d/far.frm").write_bytes(frm(48, b"ROCKSDB"))
    survey = Survey(datadir, Rules())
    assert survey.rocksdb_lost(lambda _path: False)
    assert not survey.rocksdb_lost(lambda path: path == "#rocksdb/CURRENT")


def test_a_backtick_in_the_name_of_a_table_that_is_not_innodbs(datadir: Path) -> None:
    for name in ("i@0060.frm", "i@0060.ibd", "p#P#x@0060.MAD"):
        (datadir / "d" / name).write_bytes(b"x")
    Survey(datadir, Rules())
    (datadir / "s@0060").mkdir()
    for path, table in (("d/a@0060b.MYD", "d.a`b"), ("s@0060/t#P#p0.MAI", "s`.t")):
        (datadir / path).write_bytes(b"x")
        with pytest.raises(DatadirUnfit, match=rf"the table {table} has a backtick") as caught:
            Survey(datadir, Rules())
        assert "rename" in caught.value.hint
        Survey(datadir, Rules(backticks=True))
        (datadir / path).unlink()


def test_birth_times(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    born = birth_time(tmp_path / "x")
    assert born == 0 or born == pytest.approx((tmp_path / "x").stat().st_ctime, abs=1)
    assert birth_time(tmp_path / "none") is None


def test_a_definition_without_data_is_named_though_the_table_is_gone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    survey = Survey(tmp_path, Rules())
    assert list(survey.broken({1: b"busy@0020two/t@002dx.frm"})) == ["busy two.t-x"]
