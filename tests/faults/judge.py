"""The one verdict on an agent that was killed and started again.

Each task has one final report, and it is true; the store holds nothing false and, after `gc`,
nothing that belongs to nobody; nothing else is left of what was cut off; and the next backups
work, and bring back what the tables held.
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
# Orphans are collected when they are a day old by the store's own time.
TOMORROW: Final = {"match": ".", "times": 99_999, "action": "date", "seconds": 25 * 3600}
_Expected = Mapping[str, Collection[str]]
_Records = Mapping[str, RecordLine]


def judge(rig: Rig, expected: _Expected, *, cut: int = 1, thorough: bool = True) -> str:
    """AssertionError, or StackError where an end doesn't come; else what was seen, in words.

    `expected` has what the final reports of tasks may tell, by their ids: DONE where it has
    none. At most `cut` tasks may have ended otherwise. `thorough` runs gc whether there are
    orphans or not, and restores and compares every backup that was COMPLETED meanwhile and the
    next one; else only the last of those.
    """
    rig.ask(rig.ping())
    rig.end()
    rig.ledger.check(rig.asked)
    ends = {task_id: told(rig.ledger.final(task_id) or {}) for task_id in rig.asked}
    wrong = {one: end for one, end in ends.items() if end not in expected.get(one, [DONE])}
    assert not wrong, f"{_words(rig, wrong)}, which is not as expected"
    assert sum(end != DONE for end in ends.values()) <= cut, f"too many: {_words(rig, ends)}"
    _nothing_left(rig)
    orphans = collect(rig) if thorough or _untidy(rig) else 0
    records = in_swift(rig.agent).check()
    for task in rig.asked.values():
        _true(rig, task, ends[task.task_id], records)
    said = f"{_words(rig, ends)}; {orphans} orphans; {rig.ledger.repeated} reports came twice"
    _next_backups(rig, records, thorough=thorough)
    return said


def _untidy(rig: Rig) -> bool:
    try:
        in_swift(rig.agent).check()
    except AssertionError:
        return True
    return False


def collect(rig: Rig) -> int:
    """Collect orphans as if it were tomorrow; how many objects went."""
    before = in_swift(rig.agent)
    rig.swift.inject([TOMORROW])
    done = rig.agent.cli("gc")
    rig.swift.clear_faults()
    assert done.returncode == 0, done.stderr
    return before.total() - in_swift(rig.agent).total()


def _words(rig: Rig, ends: Mapping[str, str]) -> str:
    return ", ".join(f"{rig.asked[task_id].type} {end}" for task_id, end in ends.items())


def _nothing_left(rig: Rig) -> None:
    poll("no process of the dead agent's is left", lambda: not rig.leftovers(), 10)
    scratch = rig.agent.folder / "state" / "scratch"
    assert not scratch.exists() or not any(scratch.iterdir()), "the scratch folder isn't empty"


def _true(rig: Rig, task: Task, end: str, records: _Records) -> None:
    """What a final report says is so in the store, and in the folder of a restore."""
    if isinstance(task, CreateTask):
        backup = (rig.ledger.final(task.task_id) or {}).get("backup") or {}
        status = records.get(task.backup.id, {}).get("status")
        assert (end == DONE) == (status == "COMPLETED"), f"{end}, but the record is {status}"
        assert backup.get("status") == status, f"{backup} was told, the record is {status}"
    elif isinstance(task, DeleteTask):
        assert not in_swift(rig.agent).of(task.backup_id), "deleted, and there"
    elif isinstance(task, RestoreTask):
        _restored_or_nothing(rig, task, end)


def _restored_or_nothing(rig: Rig, task: RestoreTask, end: str) -> None:
    target = Path(task.target)
    if end == DONE:
        assert rig.restored(target) == rig.content[task.backup_id], "restored otherwise"
    elif target.exists():
        target.rmdir()  # fails unless it is empty
    beside = [path.name for path in target.parent.iterdir()]
    assert not beside, f"{beside} is left where the target was"


def _next_backups(rig: Rig, records: _Records, *, thorough: bool) -> None:
    """A full backup, and an incremental on the last COMPLETED one, which is then restored."""
    completed = [one for one in rig.content if _status(records, one) == "COMPLETED"]
    nobodys = {one for one in records if _status(records, one) == "COMPLETED"} - set(completed)
    assert not nobodys, f"nobody asked for {nobodys}"
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
    """The ids from the full backup to this one."""
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
    assert rig.restored(target) == rig.content[backup_id], f"{backup_id} was restored otherwise"


def _tidy(rig: Rig, records: _Records, full: str, chain: list[str]) -> None:
    """Keep that backup and that chain; the daemon deletes the others."""
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
