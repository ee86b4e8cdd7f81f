"""How the files of tables are read for imports.

The cases are files that can't be read, files that are deleted, and the choice of files.
"""

import time
from pathlib import Path

import pytest

from agent.database.datadir import birth_time
from agent.database.server import Tablespace
from agent.errors import DatadirUnfit, LineageChanged
from agent.model import Record
from agent.model.values import utc
from agent.operations.backup.imports import check_imports
from tests.records.made import completed


def parent(**changes: object) -> Record:
    return completed(to_lsn=50).model_copy(update={"last_table_id": 20, **changes})


def check(datadir: Path, parent: Record, table_id: int = 30) -> None:
    check_imports(parent, {5: Tablespace("d/t.ibd", 0, table_id)}, datadir, lambda: None)


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    folder = tmp_path / "d"
    folder.mkdir()
    return folder


def test_what_can_not_be_read_is_named(schema: Path) -> None:
    table, link = schema / "t.ibd", schema / "t.isl"
    table.symlink_to(table)
    with pytest.raises(DatadirUnfit, match=rf"can't read {table}: Too many levels") as caught:
        check(schema.parent, parent())
    assert "OS user" in caught.value.hint
    table.unlink()
    # The kernel answers EIO for the first page of this file.
    link.write_text("/proc/self/mem\n")
    for record in (parent(), parent(last_table_id=None)):
        with pytest.raises(DatadirUnfit, match=r"can't read /proc/self/mem: Input/output error"):
            check(schema.parent, record)
    link.unlink()
    link.mkdir()
    with pytest.raises(DatadirUnfit, match=rf"can't read {link}: Is a directory"):
        check(schema.parent, parent())


def test_a_table_that_is_gone_is_passed_over(schema: Path) -> None:
    check(schema.parent, parent())
    (schema / "t.isl").write_text(f"{schema}/elsewhere.ibd")
    check(schema.parent, parent())
    schema.joinpath("t.isl").unlink()
    schema.rmdir()
    check(schema.parent, parent(last_table_id=None))


def page(lsn: int, size: int = 16 << 10) -> bytes:
    return bytes(16) + lsn.to_bytes(8, "big") + b"\1" + bytes(size - 25)


def test_what_was_there_when_the_parents_tables_were_listed_may_have_old_pages(
    schema: Path,
) -> None:
    """A table may be made, and a file put in its place, in the second in which the parent ended."""
    table = schema / "t.ibd"
    table.write_bytes(page(0) + page(40))
    born = birth_time(table)
    if not born:
        pytest.skip("the filesystem of the temporary folder keeps no birth times")
    check(schema.parent, parent(updated=utc(born), listed_at=born), table_id=20)
    for late in (parent(updated=utc(born), listed_at=born - 0.01), parent(updated=utc(born - 1))):
        with pytest.raises(LineageChanged, match=r"d/t\.ibd"):
            check(schema.parent, late, table_id=20)


def test_what_the_parent_lacks_is_read_and_what_it_holds_is_not(schema: Path) -> None:
    (schema / "t.ibd").write_bytes(page(0) + page(40))
    later = parent(absent_table_ids=(15, 17), listed_at=time.time() + 60)
    for held in (14, 16, 20):
        check(schema.parent, later, table_id=held)
    for absent in (15, 17, 21):
        with pytest.raises(LineageChanged, match=r"d/t\.ibd"):
            check(schema.parent, later, table_id=absent)


def test_a_record_without_the_list_lacks_nothing_up_to_its_last() -> None:
    record = parent()
    text = record.model_dump_json(exclude={"absent_table_ids", "listed_at"})
    assert Record.model_validate_json(text) == record


def test_a_general_tablespace_may_have_old_pages(schema: Path) -> None:
    """Tables are made in it, and it also holds tables of the parent."""
    (schema.parent / "ts1.ibd").write_bytes(page(0) + page(40) + page(60))
    listing = {5: Tablespace("ts1.ibd", 0), 6: Tablespace("d/t.ibd", 0, 30)}
    later = parent(listed_at=time.time() + 60)
    check_imports(later, listing, schema.parent, lambda: None)


def test_a_page_that_is_being_written_is_no_old_page(schema: Path) -> None:
    """The kernel may show a write of a page in two parts."""
    first = bytes(16 << 10)
    page = bytes(16) + (1 << 40).to_bytes(8) + b"\x22" * ((16 << 10) - 24)
    torn = bytes(8 << 10) + page[8 << 10 :]
    (schema / "t.ibd").write_bytes(first + torn)
    with pytest.raises(LineageChanged):
        check(schema.parent, parent())

    def write() -> None:
        # called when a block has been read
        (schema / "t.ibd").write_bytes(first + page)

    check_imports(parent(), {5: Tablespace("d/t.ibd", 0, 30)}, schema.parent, write)
