"""The fuzzer finds losses, accepts correct copies, and reduces a script that shows a fault."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.scripts import script
from tests.faults.names.content import content, differences
from tests.faults.names.files import files
from tests.faults.names.generate import script as generated
from tests.faults.names.judge import refusal, tried
from tests.faults.names.rig import Failure, Rig, Templates
from tests.faults.names.script import Script, Step
from tests.faults.names.shrink import shrunk
from tests.faults.trial import Bench
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.swift import SwiftServer

_ARIA = "CREATE TABLE d.`a-b` (id INT PRIMARY KEY) ENGINE=Aria"
_STEPS = (
    Step(0, "CREATE DATABASE d"),
    Step(0, _ARIA),
    Step(0, "INSERT INTO d.`a-b` VALUES (1), (2)"),
    Step(0, "CREATE TABLE d.t (id INT PRIMARY KEY)"),
    Step(0, "INSERT INTO d.t VALUES (1)"),
)


@pytest.fixture(scope="module")
def templates(scratch: Path) -> Iterator[Templates]:
    """Yield empty datadirs. No trial here sends a message or uses Swift."""
    folder = scratch / f"names-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    rabbitmq, swift = RabbitMQ(folder / "rabbitmq"), SwiftServer(folder / "swift")
    with Templates(Bench(folder, rabbitmq, swift, MariaDB(folder / "mariadb"))) as templates:
        yield templates


def test_a_seed_gives_the_same_script_again() -> None:
    assert generated("4 2") == generated("4 2")
    assert generated("4 2").steps != generated("4 3").steps


def test_every_seed_gives_a_script() -> None:
    made = [generated(f"9 {number}") for number in range(300)]
    assert all(one.phase(0) for one in made)
    assert sum(any(step.busy for step in one.steps) for one in made) > 50
    assert sum(any(step.suspects for step in one.steps) for one in made) > 50
    assert (
        sum(step.sql.startswith("CREATE DATABASE") for step in generated("9", many=True).steps)
        > 199
    )


def test_what_is_lost_or_changed_is_seen(templates: Templates) -> None:
    with Rig(templates, Script("-", _STEPS), swift=False) as rig:
        with rig.stepping() as stepping:
            stepping.do_all(rig.script.steps)
        assert rig.refused == []
        rig.server.query("FLUSH TABLES")
        before = content(rig.server)
        for change, told in _CHANGES.items():
            rig.server.query(change)
            after = content(rig.server)
            assert [line.split(":")[0] for line in differences(before, after)] == told, change
            before = after


_CHANGES = {
    "UPDATE d.t SET id = 7": ["rows `d`.`t`"],
    "TRUNCATE d.`a-b`": ["rows `d`.`a-b`"],
    "ALTER TABLE d.t COMMENT 'x'": ["made `d`.`t`"],
    "CREATE DATABASE e": ["schema 'e'"],
    "CREATE TRIGGER d.g BEFORE INSERT ON d.t FOR EACH ROW SET @a = 1": ["trigger `d`.`g`"],
    "CREATE PROCEDURE d.p() SELECT 1": ["rows `mysql`.`proc`"],
    "RENAME TABLE d.t TO d.u": [
        *("made `d`.`t`", "made `d`.`u`", "rows `d`.`t`", "rows `d`.`u`", "trigger `d`.`g`"),
    ],
}


def test_files_that_are_lost_or_stay_are_seen(tmp_path: Path) -> None:
    for name in ("d/a.frm", "d/a.MAD", "d/a.MAI", "d/t.ibd", "d/notes.txt", "lost+found/x.frm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    strays = {"lost+found"}
    before = files(tmp_path, closed=True, but=strays)
    assert set(before) == {"d/a.frm", "d/a.MAD", "d/a.MAI", "d/t.ibd"}
    (tmp_path / "d/a.frm").write_text("another")
    (tmp_path / "d/a.MAD").unlink()
    (tmp_path / "d/t.ibd").write_text("InnoDB's bytes are told by its tables")
    (tmp_path / "d/dropped.MYD").write_text("")
    lost = differences(before, files(tmp_path, closed=True, but=strays))
    assert [line.split(":")[0] for line in lost] == ["d/a.MAD", "d/a.frm", "d/dropped.MYD"]


@pytest.mark.parametrize(
    ("code", "words", "suspects", "fault"),
    [
        ("stream_incomplete", "d/t.MAD is not in the stream", ["t"], ""),
        ("stream_incomplete", "d/a@002db.MAD is not in the stream", ["a-b"], ""),
        ("stream_incomplete", "it is incomplete", ["a-b"], "unnamed stream_incomplete"),
        ("stream_incomplete", "d/t.MAD is not there", [], "false alarm stream_incomplete"),
        ("parent_unusable", f"the name {'x' * 251}.ibd is too long", [], ""),
        ("internal", "d/t.MAD", ["t"], "internal"),
        ("traceback", "Traceback ... t", ["t"], "traceback"),
    ],
)
def test_a_refusal_names_what_is_suspicious(
    code: str, words: str, suspects: list[str], fault: str
) -> None:
    outcome = refusal(suspects, Failure(code, words))
    assert outcome.fault == fault
    assert outcome.verdict == ("" if fault else f"refused {code}")


def test_a_backup_that_lacks_a_table_is_found_and_made_small(templates: Templates) -> None:
    """The engine leaves a schema out and the agent reports it, but the judge sees no reason."""
    made = Script("-", (*_STEPS, Step(0, "CREATE DATABASE e"), Step(1, "CREATE TABLE e.t (a INT)")))

    def shows(other: Script) -> bool:
        with_table = any(step.sql == _ARIA for step in other.steps)
        return with_table and any("CREATE DATABASE d" in step.sql for step in other.steps)

    outcome = tried(templates, made)
    assert outcome.verdict == "equal", outcome
    small = shrunk(made, shows, 10)
    assert [step.sql for step in small.steps] == ["CREATE DATABASE d", _ARIA]
    assert small.backups == 1
    fault = tried(templates, small, engine={"program": _leaving_out(templates)}).fault
    assert fault == "false alarm stream_incomplete"
    assert _ARIA in small.told()


def _leaving_out(templates: Templates) -> str:
    return script(
        templates.folder / "mariadb-backup",
        "import os, sys\n"
        "more = ['--databases-exclude=d'] if '--backup' in sys.argv else []\n"
        "os.execvp('mariadb-backup', ['mariadb-backup', *sys.argv[1:], *more])",
    )
