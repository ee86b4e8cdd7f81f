"""The common verdict on an agent that was killed and started again.

Each task has one final report, and the report is true. The store holds nothing false and, after
`gc`, no object without a backup. Nothing else is left of the interrupted work. The next backups
succeed, and restore the content that the tables held.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from agent.model import CreateTask, DeleteTask, RestoreTask, Task
from tests.faults.holdings import RecordLine, in_swift
from tests.faults.rig import Rig, told
from tests.stack.process import poll

DONE: Final = "DONE"
CUT_OFF: Final = "FAILED interrupted"
# Orphans are collected when they are a day old by the store's clock.
TOMORROW: Final = {"match": ".", "times": 99_999, "action": "date", "seconds": 25 * 3600}
_Expected = Mapping[str, Collection[str]]
_Records = Mapping[str, RecordLine]


def judge(rig: Rig, expected: _Expected, *, cut: int = 1, thorough: bool = True) -> str:
    """Check an agent after a crash and return the observations as text.

    Raise AssertionError if a check fails, or StackError if a final report doesn't arrive.

    `expected` maps task ids to the final reports allowed, which is DONE for an id that it lacks.
    At most `cut` tasks may have another end than DONE. `thorough` always runs gc. It also
    restores and compares each backup that was COMPLETED in the meantime and the next one. If it
    is false, gc runs only if there are orphans, and only the next backup is restored, and only
    if its chain contains one of the COMPLETED backups.
    """
    rig.ask(rig.ping())
    rig.end()
    rig.ledger.check(rig.asked)
    ends = {task_id: told(rig.ledger.final(task_id) or {}) for task_id in rig.asked}
    wrong = {one: end for one, end in ends.items() if end not in expected.get(one, [DONE])}
    assert not wrong, f"{_words(rig, wrong)}, which is unexpected"
    assert sum(end != DONE for end in ends.values()) <= cut, f"too many failed: {_words(rig, ends)}"
    _nothing_left(rig)
    orphans = collect(rig) if thorough or _untidy(rig) else 0
    records = in_swift(rig.agent).check()
    for task in rig.asked.values():
        _true(rig, task, ends[task.task_id], records)
    said = f"{_words(rig, ends)}; {orphans} orphans; {rig.ledger.repeated} repeated reports"
    _next_backups(rig, records, thorough=thorough)
    return said


def _untidy(rig: Rig) -> bool:
    try:
        in_swift(rig.agent).check()
    except AssertionError:
        return True
    return False


def collect(rig: Rig) -> int:
    """Collect orphans with the clock a day ahead. Return the number of deleted objects."""
    before = in_swift(rig.agent)
    rig.swift.inject([TOMORROW])
    done = rig.agent.cli("gc")
    rig.swift.clear_faults()
    assert done.returncode == 0, done.stderr
    return before.total() - in_swift(rig.agent).total()


def _words(rig: Rig, ends: Mapping[str, str]) -> str:
    return ", ".join(f"{rig.asked[task_id].type} {end}" for task_id, end in ends.items())


def _nothing_left(rig: Rig) -> None:
    poll("no process of the killed agent is left", lambda: not rig.leftovers(), 10)
    scratch = rig.agent.folder / "state" / "scratch"
    assert not scratch.exists() or not any(scratch.iterdir()), "the scratch directory isn't empty"


def _true(rig: Rig, task: Task, end: str, records: _Records) -> None:
    """Check a final report against the store, and against the target of a restore."""
    if isinstance(task, CreateTask):
        backup = (rig.ledger.final(task.task_id) or {}).get("backup") or {}
        status = records.get(task.backup.id, {}).get("status")
        assert (end == DONE) == (status == "COMPLETED"), f"{end}, but the record is {status}"
        assert backup.get("status") == status, f"{backup} was reported, the record is {status}"
    elif isinstance(task, DeleteTask):
        assert not in_swift(rig.agent).of(task.backup_id), "deleted, but objects exist"
    elif isinstance(task, RestoreTask):
        _restored_or_nothing(rig, task, end)


def _restored_or_nothing(rig: Rig, task: RestoreTask, end: str) -> None:
    target = Path(task.target)
    if end == DONE:
        assert rig.restored(target) == rig.content[task.backup_id], "the restored content differs"
    elif target.exists():
        target.rmdir()  # fails unless it is empty
    beside = [path.name for path in target.parent.iterdir()]
    assert not beside, f"{beside} is left beside the target"


def _next_backups(rig: Rig, records: _Records, *, thorough: bool) -> None:
    """Make a full backup, and an incremental on the last COMPLETED one. Restore the incremental."""
    completed = [one for one in rig.content if _status(records, one) == "COMPLETED"]
    nobodys = {one for one in records if _status(records, one) == "COMPLETED"} - set(completed)
    assert not nobodys, f"no task requested {nobodys}"
    made = [task.backup.id for task in rig.asked.values() if isinstance(task, CreateTask)]
    full, child = rig.full(), rig.incremental(completed[-1])
    rig.settled()
    rig.ask(full, child)
    rig.end()
    for task in (full, child):
        end = told(rig.ledger.final(task.task_id) or {})
        assert end == DONE, f"the next backup is {end}"
    records = in_swift(rig.agent).check()
    chain = _chain(records, child.backup.id)
    whole = set(made) & set(completed)
    if thorough or whole & set(chain):
        _restore(rig, chain[-1])
    for backup_id in whole - set(chain) if thorough else ():
        _restore(rig, backup_id)
    _tidy(rig, records, full.backup.id, chain)


def _chain(records: _Records, backup_id: str) -> list[str]:
    """Return the ids from the full backup to this one."""
    chain = [backup_id]
    while parent := records[chain[0]]["parent_id"]:
        chain.insert(0, parent)
    return chain


def _status(records: _Records, backup_id: str) -> str | None:
    return records.get(backup_id, {}).get("status")


def _restore(rig: Rig, backup_id: str) -> None:
    target = rig.folder / "restored"
    done = rig.agent.cli("restore", "--local", backup_id, target)
    assert done.returncode == 0, done.stderr
    assert rig.restored(target) == rig.content[backup_id], f"the content of {backup_id} differs"


def _tidy(rig: Rig, records: _Records, full: str, chain: list[str]) -> None:
    """Keep that backup and that chain, and let the daemon delete the others."""
    rig.kept, rig.older = [full], chain
    others = set(records) - {full, *chain}
    roots = [one for one in others if records[one]["parent_id"] not in others]
    rig.ask(*map(rig.delete, roots))
    rig.end()
    rig.ledger.check(rig.asked)
    left = in_swift(rig.agent).check()
    assert set(left) == {full, *chain}, f"left after the deletes: {sorted(left)}"
    rig.settled()
    rig.content = {one: rig.content[one] for one in [*chain, full]}
