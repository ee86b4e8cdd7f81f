"""Kills of the agent by SIGKILL: at named places, at random moments, and during recovery."""

import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, NamedTuple

from agent.crash_points import VARIABLE, Point
from agent.model import CancelTask, DeleteTask, Task
from tests.faults.holdings import in_swift
from tests.faults.judge import CUT_OFF, DONE, TOMORROW, judge
from tests.faults.local_crashes import LOCAL_PLACES, LocalPlace, killed_and_repeated
from tests.faults.rig import Rig
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.process import poll

MOMENTS: Final = 50
_SHORT_MOMENTS: Final = 2
_SHORT_PLACES: Final = 3
# The approximate time of a mixed run, in seconds. The full form measures it.
_SHORT_SECONDS: Final = 3.0
_DOUBLES: Final = 6


class Place(NamedTuple):
    """A place at which the agent is killed, the tasks it runs, and the ends they may report.

    `at` is the crash point. A number after it, as in `segment-stored:3`, is the pass that kills.
    """

    at: str
    scenario: Callable[[Rig], list[Task]]
    ends: tuple[str, ...]


def _full(rig: Rig) -> list[Task]:
    return [rig.full()]


def _incremental(rig: Rig) -> list[Task]:
    return [rig.incremental(rig.kept[-1])]


def _restore(rig: Rig) -> list[Task]:
    return [rig.restore()]


def _delete(rig: Rig) -> list[Task]:
    return [rig.delete()]


def _ping(rig: Rig) -> list[Task]:
    return [rig.ping()]


def _failing(rig: Rig) -> list[Task]:
    """Return a full backup, one segment of which the store answers with a false ETag each time."""
    task = rig.full()
    match = f"{task.backup.id}/.*/00000002"
    rig.swift.inject([{"method": "PUT", "match": match, "times": 99, "action": "wrong_etag"}])
    return [task]


def _retried(rig: Rig) -> list[Task]:
    return [rig.full(retry=True)]


def _retried_child(rig: Rig) -> list[Task]:
    return [rig.incremental(rig.kept[-1], retry=True)]


def _retried_restore(rig: Rig) -> list[Task]:
    return [rig.restore(retry=True)]


_FAILED: Final = (CUT_OFF,)
_DAMAGED: Final = ("FAILED store_mismatch",)
_SETTLED: Final = (DONE,)

PLACES: Final = (
    Place("accepted", _full, _SETTLED),
    Place("accepted", _ping, _SETTLED),
    Place("claimed", _full, _FAILED),
    Place("record-begun", _full, _FAILED),
    Place("segment-stored:3", _full, _FAILED),
    Place("lists-stored", _incremental, _FAILED),
    Place("record-journalled", _full, _SETTLED),
    Place("object-stored", _incremental, _SETTLED),
    Place("record-completed", _full, _SETTLED),
    Place("record-failed", _failing, _DAMAGED),
    Place("bytes-removed", _failing, _DAMAGED),
    Place("reported", _full, _SETTLED),
    Place("published:2", _ping, _SETTLED),
    Place("restore-extracted", _restore, _FAILED),
    Place("restore-prepared", _restore, _FAILED),
    Place("delete-condemned", _delete, _SETTLED),
    Place("delete-bytes", _delete, _SETTLED),
    Place("delete-forgotten", _delete, _SETTLED),
)
RETRIED: Final = (
    Place("claimed", _retried, _SETTLED),
    Place("segment-stored:3", _retried, _SETTLED),
    Place("lists-stored", _retried_child, _SETTLED),
    Place("restore-extracted", _retried_restore, _SETTLED),
)
LEAST: Final[Mapping[str, int]] = {
    "crash point": len(Point),
    "random moment": MOMENTS,
    "crash in recovery": _DOUBLES,
    "retried crash": len(RETRIED),
    "local crash": len(LOCAL_PLACES),
}


class _Shared:
    """The shared rig, made for the first trial that needs it and again after a failed trial."""

    def __init__(self) -> None:
        self._rig: Rig | None = None

    @contextmanager
    def use(self, bench: Bench) -> Iterator[Rig]:
        if self._rig is None:
            self._rig = Rig(bench)
            bench.kept.callback(self._end)
        try:
            yield self._rig
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        if self._rig is not None:
            rig, self._rig = self._rig, None
            rig.close()


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield all trials, or a choice by the seed that omits no crash point over many seeds."""
    shared = _Shared()
    chance = plan.random("crashes")
    points = list(_point_trials(shared, plan))
    moments = [_moment(shared, plan, number) for number in range(MOMENTS)]
    doubles = [_double(shared, plan, number) for number in range(_DOUBLES)]
    retried = [_at_place(shared, plan, "retried crash", place) for place in RETRIED]
    local = [_local(shared, plan, place) for place in LOCAL_PLACES]
    if plan.full:
        yield from [*points, *moments, *doubles, *retried, *local]
    else:
        yield from chance.sample(points, _SHORT_PLACES)
        yield from moments[:_SHORT_MOMENTS]
        yield chance.choice([*doubles, *retried, *local])


# --- at a place ----------------------------------------------------------------------------


def _point_trials(shared: _Shared, plan: Plan) -> Iterator[Trial]:
    for place in PLACES:
        yield _at_place(shared, plan, "crash point", place)
    yield _trial(shared, plan, "crash point", "recovered", "killed after it settled", _recovered)
    yield _trial(shared, plan, "crash point", "cancel-journalled", "killed", _cancel_journalled)
    for point in (Point.GC_FOUND, Point.GC_REMOVED):
        done = "gc is killed there and run again"
        yield _trial(shared, plan, "crash point", point, done, _collecting(point))


def _trial(
    shared: _Shared, plan: Plan, kind: str, name: str, done: str, act: Callable[[Rig, bool], str]
) -> Trial:
    def do(bench: Bench) -> Seen:
        with shared.use(bench) as rig:
            return Seen(act(rig, plan.full))

    return Trial(kind, name, done, do)


def _at_place(shared: _Shared, plan: Plan, kind: str, place: Place) -> Trial:
    def act(rig: Rig, full: bool) -> str:
        rig.restart({VARIABLE: place.at})
        tasks = place.scenario(rig)
        rig.ask(*tasks)
        rig.wait_for_death()
        rig.swift.clear_faults()
        rig.agent.start()
        return judge(rig, {task.task_id: place.ends for task in tasks}, thorough=full)

    what = place.scenario.__name__.strip("_").replace("_", " ")
    return _trial(shared, plan, kind, f"{place.at} of {what}", "kill -9 there", act)


def _local(shared: _Shared, plan: Plan, place: LocalPlace) -> Trial:
    done = "backup-create --local is killed there, and another one follows"
    name = f"local {place.at}"

    def act(rig: Rig, full: bool) -> str:
        return killed_and_repeated(rig, place)

    return _trial(shared, plan, "local crash", name, done, act)


def _recovered(rig: Rig, full: bool) -> str:
    """Crash in the middle of a backup, and again after recovery has settled it."""
    rig.restart({VARIABLE: "segment-stored:2"})
    task = rig.full()
    rig.ask(task)
    rig.wait_for_death()
    rig.agent.launch({VARIABLE: Point.RECOVERED})
    rig.wait_for_death()
    rig.agent.start()
    return judge(rig, {task.task_id: _FAILED}, thorough=full)


def _cancel_journalled(rig: Rig, full: bool) -> str:
    rig.restart({VARIABLE: Point.CANCEL_JOURNALLED})
    task = rig.full(slow=True)
    rig.ask(task)
    poll("the backup has begun", lambda: rig.statuses()[task.task_id] == "RUNNING", 30)
    rig.ask(CancelTask(task_id=str(uuid.uuid4()), cancels=task.task_id))
    rig.wait_for_death()
    rig.agent.start()
    return judge(rig, {task.task_id: ("CANCELLED cancelled",)}, thorough=full)


def _collecting(point: Point) -> Callable[[Rig, bool], str]:
    def act(rig: Rig, full: bool) -> str:
        orphans = rig.plant_orphans(3)
        rig.swift.inject([TOMORROW])
        died = rig.agent.cli("gc", environment={VARIABLE: point})
        rig.swift.clear_faults()
        assert died.returncode == -signal.SIGKILL, died.stderr
        left = [name for name in orphans if name in in_swift(rig.agent).segments]
        assert len(left) == 3 - (point is Point.GC_REMOVED), f"{len(left)} orphans are left"
        return judge(rig, {}, cut=0, thorough=full)

    return act


# --- at a random moment --------------------------------------------------------------------


def _mixed(rig: Rig) -> list[Task]:
    """Return one task each: a full, an incremental, a delete of a family, a restore."""
    return [rig.full(), rig.incremental(rig.kept[-1]), rig.delete(), rig.restore()]


def _ends(tasks: list[Task]) -> dict[str, tuple[str, ...]]:
    """Map each task to its allowed ends. An interrupted delete is repeated, others may fail."""
    return {
        task.task_id: _SETTLED if isinstance(task, DeleteTask) else (DONE, CUT_OFF)
        for task in tasks
    }


def _measured(rig: Rig, *, full: bool) -> float:
    """Return the seconds of an undisturbed mixed run, which only the full form measures, once."""
    if not full:
        return _SHORT_SECONDS
    if not rig.mixed_seconds:
        rig.ask(*_mixed(rig))
        began = time.monotonic()
        rig.end()
        rig.mixed_seconds = time.monotonic() - began
        judge(rig, {}, cut=0, thorough=False)
    return rig.mixed_seconds


def _moment(shared: _Shared, plan: Plan, number: int) -> Trial:
    share = plan.random(f"moment {number}").random()
    everything = bool(number % 2)

    def act(rig: Rig, full: bool) -> str:
        seconds = _measured(rig, full=full)
        tasks = _mixed(rig)
        rig.ask(*tasks)
        _kill_after(rig, share * seconds, everything=everything)
        at = _state(rig, tasks)
        rig.agent.start()
        seen = judge(rig, _ends(tasks), thorough=full)
        return f"seed {plan.seed}, {share * seconds:.3f} of {seconds:.3f} s, at {at}: {seen}"

    whom = "the agent and its children" if everything else "the agent alone"
    done = f"kill -9 of {whom} after {share:.4f} of a mixed run"
    return _trial(shared, plan, "random moment", f"moment-{number:02d}", done, act)


def _kill_after(rig: Rig, seconds: float, *, everything: bool) -> None:
    until = time.monotonic() + seconds
    poll("the time to kill is reached", lambda: time.monotonic() >= until, seconds + 1)
    rig.kill(everything=everything)


def _state(rig: Rig, tasks: list[Task]) -> str:
    """Return the latest reported status of each task, joined by slashes."""
    statuses = rig.statuses()
    return "/".join(statuses[task.task_id] for task in tasks)


def _double(shared: _Shared, plan: Plan, number: int) -> Trial:
    chance = plan.random(f"double {number}")
    share, again = chance.random(), chance.random()

    def act(rig: Rig, full: bool) -> str:
        seconds = _measured(rig, full=full)
        tasks = _mixed(rig)
        rig.ask(*tasks)
        _kill_after(rig, share * seconds, everything=False)
        rig.agent.launch()
        _kill_after(rig, again, everything=bool(number % 2))
        rig.agent.start()
        seen = judge(rig, _ends(tasks), cut=2, thorough=full)
        return f"seed {plan.seed}, {share * seconds:.3f} of {seconds:.3f} s: {seen}"

    done = f"kill -9 after {share:.4f} of a mixed run, and {again:.3f} s after the restart"
    return _trial(shared, plan, "crash in recovery", f"double-{number}", done, act)
