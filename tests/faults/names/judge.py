"""The run of one script, and the verdict on its backups.

A COMPLETED backup must be restored equal. The error of a FAILED one must contain the name of a
suspicious object that exists. If no suspicious object exists, the failure is a false alarm.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pymysql

from tests.faults.names.busy import LOG, Busy
from tests.faults.names.content import Content, content, differences, unwell
from tests.faults.names.files import Files, files, leftovers
from tests.faults.names.generate import BUSY_SCHEMAS
from tests.faults.names.rig import Failure, Rig, Settings, Templates, ended, started
from tests.faults.names.script import Script
from tests.stack.mariadb import MariaDB

_SHOWN = 12
# A server's messages about a directory that belongs to no schema, and about a MyISAM table that was
# open when it was copied. The server repairs the table when it opens it, and its rows are equal.
_HARMLESS = re.compile(r"Invalid \(old\?\) table or database name|marked as crashed")
# No incremental can add `.delta` to such a name: a file's name has at most 255 bytes, and a path in
# an incremental at most 400.
_TOO_LONG = re.compile(r"[^/\s]{250}|\S{395}|no restore takes more than")


class Outcome(NamedTuple):
    """The outcome of a script.

    `fault` is the kind of fault, or empty if there is none. `verdict` names a result without
    fault, for counting.
    """

    verdict: str
    fault: str = ""
    detail: str = ""


class _Made(NamedTuple):
    """A COMPLETED backup, and the content of the server and its datadir when it ended."""

    id: str
    content: Content
    files: Files
    busy: Busy | None


def tried(
    templates: Templates, script: Script, *, swift: bool = False, engine: Settings | None = None
) -> Outcome:
    """Run the script on its own servers, which are removed afterwards.

    `engine` has keys for the section `engine` of the agent's configuration.
    """
    with Rig(templates, script, swift=swift, engine=engine) as rig:
        made: list[_Made] = []
        for phase in range(script.backups):
            try:
                done = _backed_up(rig, phase, made[-1].id if made else None)
            except pymysql.MySQLError:
                if rig.server.running():
                    raise
                # this is a defect of the server, not of the agent or the engine
                return Outcome("no verdict: the server crashed")
            if isinstance(done, Failure):
                outcome = refusal(rig.suspects, done)
                if outcome.fault or not made:
                    return outcome
                lost = _restored(rig, made[-1], made[:-1])
                return lost if lost.fault else outcome
            made.append(done)
        return _restored(rig, made[-1], made[:-1])


def _backed_up(rig: Rig, phase: int, parent: str | None) -> "_Made | Failure":
    with rig.stepping() as stepping:
        stepping.do_all(rig.script.phase(phase))
    if rig.script.flushed:
        rig.server.query("FLUSH TABLES")
    steps = rig.script.phase(phase, busy=True)
    with Busy(rig, steps) if steps else nullcontext() as busy:
        done = rig.back_up(parent)
    if steps:
        rig.suspects += BUSY_SCHEMAS
    if isinstance(done, Failure):
        return done
    there = content(rig.server, but=(*BUSY_SCHEMAS, LOG) if busy else ())
    for schema in leftovers(rig.server.datadir):
        there.pop(f"schema {schema!r}", None)
    closed = rig.script.flushed and not busy
    found = {} if busy else files(rig.server.datadir, closed=closed, but=rig.strays)
    return _Made(done, there, found, busy)


def refusal(suspects: Sequence[str], failure: Failure) -> Outcome:
    """Judge a FAILED backup by the names of the suspicious objects on its server."""
    said = f"{failure.code}: {failure.words}"
    if failure.code in ("internal", "traceback"):
        return Outcome("", failure.code, said)
    if _TOO_LONG.search(failure.words):
        return Outcome(f"refused {failure.code}", detail=said)
    if not suspects:
        return Outcome("", f"false alarm {failure.code}", said)
    if not any(name in failure.words for name in _aliases(suspects)):
        return Outcome("", f"unnamed {failure.code}", f"{said}\nsuspects: {suspects}")
    return Outcome(f"refused {failure.code}", detail=said)


def _aliases(suspects: Sequence[str]) -> list[str]:
    """Return the names in the form of SQL and in the form of file names.

    Suspects have plain letters, so that only signs are encoded.
    """
    encoded = [
        "".join(sign if sign.isalnum() or sign == "_" else f"@{ord(sign):04x}" for sign in name)
        for name in suspects
    ]
    return [*suspects, *encoded]


def _restored(rig: Rig, last: _Made, before: Sequence[_Made]) -> Outcome:
    target = rig.target
    done = rig.restore(last.id, target)
    if isinstance(done, Failure):
        return Outcome("", f"restore {done.code}", f"{done.code}: {done.words}")
    if last.files:
        closed = rig.script.flushed
        lost = differences(last.files, files(target, closed=closed, but=rig.strays))
        if lost:
            return Outcome("", "files", "\n".join(lost[:_SHOWN]))
    server = rig.copy_of(target)
    with ended(server):
        if log := started(server):
            return Outcome("", "start", log)
        try:
            lost = _lost(server, last, before) or _complaints(server, rig.server)
        except pymysql.MySQLError as error:
            return Outcome("", "copy", f"{error}: {complaints(server.folder / 'server.log')[-3:]}")
    return Outcome("", "content", "\n".join(lost[:_SHOWN])) if lost else Outcome("equal")


def _lost(server: MariaDB, last: _Made, before: Sequence[_Made]) -> list[str]:
    busy = last.busy
    late = next((made.busy for made in reversed(before) if made.busy), None)
    hidden = (*BUSY_SCHEMAS, LOG) if busy else (LOG,) if late else ()
    there = content(server, but=hidden)
    right = {name: said for name, said in last.content.items() if LOG not in name}
    lost = differences(right, there)
    if busy:
        held = content(server, BUSY_SCHEMAS)
        found = [differences(state, held) for state in busy.right(server)]
        lost += [f"busy: {line}" for line in min(found, key=len)] if all(found) else []
    return lost or unwell(server, there)


def _complaints(copy: MariaDB, original: MariaDB) -> list[str]:
    """Return the errors in the log of a copy's server that the original's has not."""
    known = {line.partition("[ERROR]")[2] for line in complaints(original.folder / "server.log")}
    found = complaints(copy.folder / "server.log")
    return [line for line in found if line.partition("[ERROR]")[2] not in known]


def complaints(log: Path) -> list[str]:
    """Return the lines of a server's log that are errors."""
    lines = log.read_text(errors="replace").splitlines()
    return [line for line in lines if "[ERROR]" in line and not _HARMLESS.search(line)]
