"""Swift that refuses, hangs up, stalls, lies, is full, frozen or killed during real backups.

A backup whose requests could be repeated is restored and compared. Any other backup is FAILED with
the cause, and nothing of it is left after the store answers again.
"""

import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, Self

from swiftclient.client import Connection

from agent.model import BackupRequest, CreateTask, Limits
from tests.e2e.objects import Objects
from tests.faults.ledger import Ledger
from tests.faults.rig import told
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import MariaDB
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

LEAST: Final = {"swift": 50}
_MIB: Final = 1 << 20
_ATTEMPTS: Final = 4
_ROWS: Final = 4000  # about 5 MiB that deflate can't compress
_TOKEN_SECONDS: Final = 3
_OVERRIDES: Final[Tables] = {
    "agent": {"progress_seconds": 0.2},
    "pipeline": {"segment_bytes": _MIB, "connections": 2},
    "store": {"attempts": _ATTEMPTS, "timeout_seconds": 2},
}
# the requests of a backup, by the object that they write
_SEGMENT: Final = r"_segments/[^?]*/\d{8}$"
_LIST: Final = r"_segments/[^?]*/list-"
_OBJECT: Final = r"multipart-manifest=put"
_RECORD: Final = r"\.json$"
_EACH: Final = (_SEGMENT, _LIST, _OBJECT, _RECORD)
_DONE: Final = "DONE"
_HTML: Final = "<html><h1>Internal Error</h1></html>"
Rule = dict[str, Any]


class Case(NamedTuple):
    """A case of the trial.

    `rules` apply from the beginning. `act` is called during the backup. `ends` are the allowed
    ends.
    """

    name: str
    done: str
    ends: str | tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    act: "Callable[[Rig], None] | None" = None


class Rig:
    """An agent with its own Swift, whose tokens live for a few seconds."""

    def __init__(self, bench: Bench) -> None:
        self.folder = bench.folder / f"swift-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True)
        self.mariadb = bench.mariadb
        self._ends = ExitStack()
        try:
            self._fill()
            self.swift = SwiftServer(self.folder / "swift", token_life=_TOKEN_SECONDS)
            self._ends.callback(self.swift.stop)
            self.swift.start()
            self.agent = Agent(
                self.folder / "agent", bench.rabbitmq, self.swift, self.mariadb, _OVERRIDES
            )
            self._ends.callback(self.agent.stop)
            self.agent.start()
            self.ledger = self._ends.enter_context(Ledger(self.agent))
        except BaseException:
            self._ends.close()
            raise

    def _fill(self) -> None:
        self._ends.callback(self.mariadb.query, "DROP SCHEMA IF EXISTS faulty")
        self.mariadb.execute_many(
            "CREATE SCHEMA faulty",
            "CREATE TABLE faulty.t (id INT PRIMARY KEY, word VARBINARY(1000))",
            f"INSERT INTO faulty.t SELECT seq, RANDOM_BYTES(1000) FROM faulty.seq_1_to_{_ROWS}",
        )
        self.mariadb.checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ends.close()

    @contextmanager
    def objects(self) -> Iterator[Objects]:
        """Yield the stored objects, through a separate login that lives as long as any other."""
        found = Objects(self.agent)
        try:
            yield found
        finally:
            found.close()

    def ask(self, *, slow: bool) -> CreateTask:
        """Send a create task and return it. A slow backup takes about 3 s."""
        request = BackupRequest(id=str(uuid.uuid4()), name="swift")
        limits = Limits(bytes_per_second=8 * _MIB) if slow else Limits()
        task = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=limits)
        self.agent.send(task)
        return task

    def under_way(self, backup_id: str) -> None:
        """Wait until the backup has stored a segment."""
        word = f"PUT /v1/AUTH_test/{self._container}_segments/{backup_id}/"
        poll("a segment is stored", lambda: any(word in line for line in self.swift.requests()), 30)

    @property
    def _container(self) -> str:
        return f"database_backups_{self.agent.tenant_id}"

    def set_quota(self, more: int | None) -> None:
        """Let the segments grow by `more` bytes. None removes the quota."""
        connection = Connection(self.swift.auth_url, self.swift.user, self.swift.key, retries=0)
        container = f"{self._container}_segments"
        used = int(connection.head_container(container)["x-container-bytes-used"])
        quota = "" if more is None else str(used + more)
        connection.post_container(container, {"X-Container-Meta-Quota-Bytes": quota})
        connection.close()

    def restored(self, backup_id: str) -> dict[str, int]:
        """Restore a backup and return the checksums of its tables."""
        folder = self.folder / f"back-{backup_id}"
        done = self.agent.cli("restore", "--local", backup_id, folder)
        assert done.returncode == 0, done.stderr
        server = MariaDB(self.folder / "second", datadir=folder)
        server.start()
        try:
            return server.checksums()
        finally:
            server.stop()
            shutil.rmtree(folder)


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield all cases, or the most telling ones in the short form. They share one rig."""
    for case in _short() if not plan.full else (*_short(), *_repaired(), *_given_up()):
        yield Trial("swift", case.name, case.done, partial(_do, case))


def _short() -> Iterator[Case]:
    yield Case(
        "storm",
        "503, 429, 401, a cut body, a wrong ETag, a lost answer, one after another",
        _DONE,
        (
            {"method": "PUT", "match": _SEGMENT, "status": 503, "times": 2},
            {"method": "PUT", "match": _SEGMENT, "action": "cut", "after": _MIB // 2},
            {"method": "PUT", "match": _SEGMENT, "action": "wrong_etag"},
            {"method": "PUT", "match": _LIST, "status": 429, "headers": {"Retry-After": "1"}},
            {"method": "PUT", "match": _OBJECT, "status": 401},
            {"method": "PUT", "match": _RECORD, "action": "mute", "times": 2},
        ),
    )
    yield Case(
        "busy-always",
        "503 to each segment, more often than the agent tries",
        "FAILED store_busy",
        (_put(_SEGMENT, status=503, times=999),),
    )
    yield Case("quota", "a quota of half a segment more", "FAILED store_full", act=_no_room)


def _repaired() -> Iterator[Case]:
    """Yield faults on each kind of request, each less often than the agent tries."""
    for name, fault in (
        ("503", {"status": 503, "times": _ATTEMPTS - 1}),
        ("500", {"status": 500, "body": _HTML}),
        ("408", {"status": 408}),
        ("429", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("401", {"status": 401}),
        ("cut", {"action": "cut", "after": 100}),
        ("stall", {"action": "stall", "seconds": 4}),
        ("wrong-etag", {"action": "wrong_etag"}),
        ("lost-answer", {"action": "mute"}),
    ):
        rules = tuple(_put(match, **fault) for match in _EACH)
        yield Case(name, f"{fault} to a segment, a list, the object, the record", _DONE, rules)
    drip = {"method": "GET", "match": _RECORD, "action": "drip", "seconds": 0.5}
    yield Case("drip", "a byte of a record every 0.5 s", _DONE, (drip,))
    yield Case("frozen", "SIGSTOP of Swift during a backup, SIGCONT 3 s later", _DONE, act=_frozen)
    yield Case("expired", "tokens that live for 3 s, all the time", _DONE, act=_patient)
    # whether four attempts outlast the restart depends on the machine
    either = (_DONE, "FAILED store_unreachable")
    yield Case("killed", "kill -9 of Swift during a backup, back at once", either, act=_killed)


def _given_up() -> Iterator[Case]:
    """Yield faults that outlast all attempts, or that no retry can help against."""
    for name, code, match, fault in (
        ("busy-list", "store_busy", _LIST, {"status": 503}),
        ("busy-object", "store_busy", _OBJECT, {"status": 503}),
        ("silent", "store_silent", _SEGMENT, {"action": "stall", "seconds": 4}),
        ("wrong-etag-always", "store_mismatch", _SEGMENT, {"action": "wrong_etag"}),
        ("cut-always", "store_unreachable", _SEGMENT, {"action": "cut", "after": 0}),
        ("too-large", "store_rejected", _SEGMENT, {"status": 413}),
        ("no-room", "store_full", _SEGMENT, {"status": 507}),
        ("forbidden", "store_denied", _SEGMENT, {"status": 403}),
    ):
        rule = _put(match, times=999, **fault)
        yield Case(name, f"{fault} to each", f"FAILED {code}", (rule,))


def _put(match: str, **fault: Any) -> Rule:
    return {"method": "PUT", "match": match, **fault}


# --- actions during a backup ---------------------------------------------------------------


def _no_room(rig: Rig) -> None:
    rig.set_quota(_MIB // 2)


def _killed(rig: Rig) -> None:
    rig.swift.kill()
    rig.swift.start()


def _frozen(rig: Rig) -> None:
    os.kill(rig.swift.pid, signal.SIGSTOP)
    try:
        # freeze it for longer than the agent's timeout, so that all open requests are repeated
        said = rig.agent.log.read_text().count("retry in")
        poll("it tries again", lambda: rig.agent.log.read_text().count("retry in") > said, 10)
    finally:
        os.kill(rig.swift.pid, signal.SIGCONT)


def _patient(rig: Rig) -> None:
    logins = len(_logins(rig))
    poll("a token expires", lambda: len(_logins(rig)) > logins, 4 * _TOKEN_SECONDS)


def _logins(rig: Rig) -> list[str]:
    return [line for line in rig.swift.requests() if "/auth/" in line]


# --- the verdict ---------------------------------------------------------------------------


def _do(case: Case, bench: Bench) -> Seen:
    rig = bench.shared(Rig)
    begun = len(rig.swift.requests())
    rig.swift.inject(list(case.rules))
    try:
        task = rig.ask(slow=case.act is not None)
        if case.act is not None:
            rig.under_way(task.backup.id)
            case.act(rig)
        rig.ledger.wait_for_ends([task.task_id], 60)
    finally:
        rig.swift.clear_faults()
        if case.act is _no_room:
            rig.set_quota(None)
    done = [line.split()[2] for line in rig.swift.requests()[begun:]]
    faults = {fault: done.count(fault) for fault in sorted(set(done) - {"-"})}
    assert len(faults) == len({rule.get("action", "status") for rule in case.rules}), faults
    end = told(rig.ledger.final(task.task_id) or {})
    ends = (case.ends,) if isinstance(case.ends, str) else case.ends
    assert end in ends, f"{end}, not {ends}"
    kept = _check_good(rig, task) if end == _DONE else _check_gone(rig, task)
    rig.ledger.pump()
    rig.ledger.check([task.task_id])
    made = ", ".join(f"{count} x {fault}" for fault, count in faults.items())
    text = f"{f'injected {made}: ' if made else ''}{end}, {kept}"
    return Seen(text, max(1, len(case.rules)))


def _check_good(rig: Rig, task: CreateTask) -> str:
    assert rig.restored(task.backup.id) == rig.mariadb.checksums()
    return "restored and equal"


def _check_gone(rig: Rig, task: CreateTask) -> str:
    """Check that the record says FAILED and no byte is left."""
    with rig.objects() as objects:
        # Swift could not be told when the backup failed, so the agent does it later
        poll(
            "the backup is FAILED", lambda: objects.record(task.backup.id)["status"] == "FAILED", 60
        )
        prefix = f"{task.backup.id}/"
        poll("nothing is left", lambda: not objects.names(objects.segments, prefix), 60)
        left = [name for name in objects.names(objects.container) if task.backup.id in name]
    assert left == [f"{task.backup.id}.json"], left
    return "nothing left"
