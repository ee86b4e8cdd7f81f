"""Backups cancelled at random moments. Backup and cancel have one end each, and the ends agree."""

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from agent.model import BackupRequest, CancelTask, CreateTask, Limits
from tests.faults.holdings import in_swift
from tests.faults.ledger import Ledger
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.agent import Agent
from tests.stack.process import poll

LEAST: Final[Mapping[str, int]] = {"cancel": 10}
_SHORT: Final = 3
# About the time of a full and of an incremental backup, plus a margin, in seconds.
_LASTS: Final = {"full": 2.5, "incremental": 1.8}
_LIMITS: Final = Limits(bytes_per_second=24 << 20)
# The promise is 5 s. The rest allows for a machine that is busy with other work.
_SECONDS: Final = 8.0
# The ends that agree: of the backup, of the cancel, of the record.
_AGREED: Final = {("CANCELLED", "DONE", "CANCELLED"), ("DONE", "FAILED too_late", "COMPLETED")}


def trials(plan: Plan) -> Iterator[Trial]:
    count = LEAST["cancel"] if plan.full else _SHORT

    def do(bench: Bench) -> Seen:
        chances = plan.random("cancel")
        kinds = [("full", "incremental")[number % 2] for number in range(count)]
        moments = [(kind, chances.random() * _LASTS[kind]) for kind in kinds]
        with bench.agent("cancel", {"pipeline": {"segment_bytes": 1 << 20}}) as agent:
            agent.start()
            return _moments(agent, moments)

    yield Trial("cancel", "moments", f"{count} backups cancelled at random moments", do)


def _moments(agent: Agent, moments: list[tuple[str, float]]) -> Seen:
    base = str(agent.create("base")["id"])
    ends: Counter[str] = Counter()
    slowest = 0.0
    with Ledger(agent) as ledger:
        for kind, seconds in moments:
            parent = base if kind == "incremental" else None
            ended, took = _cancelled_after(agent, ledger, parent, seconds)
            ends[f"{kind} {ended}"] += 1
            slowest = max(slowest, took)
    # no stray objects remain, and of a cancelled backup only its record remains
    in_swift(agent).check()
    assert agent.create("next", "--parent", base)["status"] == "COMPLETED"
    said = ", ".join(f"{count} x {end}" for end, count in sorted(ends.items()))
    return Seen(f"{said}; the slowest end after {slowest:.1f} s", len(moments))


def _cancelled_after(
    agent: Agent, ledger: Ledger, parent: str | None, seconds: float
) -> tuple[str, float]:
    """Send a backup and cancel it after `seconds`. Return its end and how soon it ended."""
    request = BackupRequest(id=str(uuid.uuid4()), name="cancelled", parent_id=parent)
    task = CreateTask(task_id=str(uuid.uuid4()), backup=request, limits=_LIMITS)
    cancel = CancelTask(task_id=str(uuid.uuid4()), cancels=task.task_id)
    both = (task.task_id, cancel.task_id)
    agent.send(task)
    until = time.monotonic() + seconds
    poll("the time to cancel is reached", lambda: time.monotonic() >= until, seconds + 1)
    agent.send(cancel)
    sent = time.monotonic()
    ledger.wait_for_ends(both, 30)
    took = time.monotonic() - sent
    ledger.check(both)
    told, answer = (_told(ledger, task_id) for task_id in both)
    told = told.split()[0]
    assert told != "CANCELLED" or took < _SECONDS, f"cancelled after {took:.1f} s"
    records = in_swift(agent).check()
    # a backup that had not begun has no record
    record = str(records[request.id]["status"]) if request.id in records else told
    assert (told, answer, record) in _AGREED, f"backup {told}, cancel {answer}, record {record}"
    return told, took


def _told(ledger: Ledger, task_id: str) -> str:
    report = ledger.final(task_id) or {}
    code = report.get("error", {}).get("code", "")
    return f"{report.get('status')} {code}".strip()
