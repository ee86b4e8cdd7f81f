"""Trials with a RabbitMQ that is killed, stopped, frozen or full.

These faults may delay reports, but may not lose any. The agent's reports are collected from a
durable queue, in order. Each (agent_run_id, seq) counts once, as the docs tell consumers to do.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final
from uuid import uuid4

from agent.model import PingTask
from tests.faults.ledger import Ledger
from tests.faults.own_broker import alarm, impatient, quorum, separate_broker, silent
from tests.faults.slow import (
    all_reported,
    completed,
    in_words,
    log,
    more,
    record,
    rows,
    slow_backup,
    statuses,
    until,
)
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.process import poll

LEAST: Final[Mapping[str, int]] = {"broker": 10}
_KILLS: Final = 2


def trials(plan: Plan) -> Iterator[Trial]:
    """Yield the trials. Most with their own broker or long waits run in the full form only."""
    said: list[tuple[str, str, Callable[[Bench], Seen]]] = [
        ("away", "kill -9 of RabbitMQ during a backup, back long after the backup's end", away),
        ("twice", "one task sent twice, during and after its run", twice),
        ("unbound", "no queue bound for reports until all tasks are done", unbound),
        ("lost-journal", "the journal is removed between two runs", lost_journal),
    ]
    if plan.full:
        said += [
            ("killed", f"kill -9 of RabbitMQ {_KILLS} times during a backup, back at once", killed),
            ("consumer-timeout", "a broker that lets no consumer hold a task for 2 s", impatient),
            ("silent", "RabbitMQ is frozen when a report is published", silent),
            ("alarm", "RabbitMQ has a memory alarm and accepts no messages", alarm),
            ("quorum", "kill -9 of RabbitMQ during a backup, with a quorum queue", quorum),
        ]
    for name, done, do in said:
        yield Trial("broker", name, done, do)


def away(bench: Bench) -> Seen:
    """Let a backup end in the store while the broker is down, then check all reports."""
    with (
        separate_broker(bench) as own,
        own.agent("away") as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        task = slow_backup(own, agent, seconds=3)
        until(ledger, task.task_id, "RUNNING")
        own.rabbitmq.kill()
        try:
            completed(agent, task)
            before = len(ledger.reports)
            poll("the backup is done", lambda: f"task {task.task_id} is done" in log(agent), 30)
            assert agent.running()
        finally:
            own.rabbitmq.start()
        late = all_reported(ledger, task.task_id) - before
        # one is the final report, the other one was on the broker when it was killed
        assert late <= 2, f"{late} reports had waited, so progress reports were not merged"
        assert "broker_unreachable: RabbitMQ at" in log(agent)
        return Seen(f"COMPLETED without a broker, then {in_words(ledger)}")


def killed(bench: Bench) -> Seen:
    """Do the same as `away`, but restart the broker during the backup and kill it again."""
    with (
        separate_broker(bench) as own,
        rows(own, 30),
        own.agent("killed") as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        task = slow_backup(own, agent, seconds=15 * _KILLS)
        until(ledger, task.task_id, "RUNNING")
        for _ in range(_KILLS):
            own.rabbitmq.kill()
            own.rabbitmq.start()
            assert record(agent, task)["status"] == "BUILDING", "the backup ended too early"
            seen = len(ledger.reports)
            ledger.reopen()
            more(ledger, seen)
        completed(agent, task)
        all_reported(ledger, task.task_id)
        return Seen(f"COMPLETED, {in_words(ledger)}", _KILLS)


def twice(bench: Bench) -> Seen:
    """Send one task twice, and check that the second is answered from the journal only."""
    with bench.agent("twice") as agent, Ledger(agent) as ledger:
        agent.start()
        task = slow_backup(bench, agent, seconds=1)
        agent.send(task)
        ledger.wait_for_ends([task.task_id], 60)
        attempt = record(agent, task)["attempt"]
        agent.send(task)

        def answered() -> bool:
            ledger.pump()
            return len([one for one in statuses(ledger, task) if one == "DONE"]) == 2

        poll("the second task is answered", answered, 30)
        assert "RUNNING" in statuses(ledger, task)
        assert record(agent, task)["attempt"] == attempt, "the task was performed twice"
        assert log(agent).count(f"task {task.task_id} (backup.create) begins") == 1
        first, second = [one for one in ledger.of(task.task_id) if one["status"] == "DONE"]
        again = {key: second[key] for key in ("agent_run_id", "seq", "at")}
        assert second == first | again, "the second answer differs from the first"
        assert second["seq"] > first["seq"]
        return Seen("begun once, DONE reported twice with different numbers only")


def unbound(bench: Bench) -> Seen:
    """Run a backup and some pings while no queue receives reports."""
    with bench.agent("unbound") as agent:
        agent.start()
        task = slow_backup(bench, agent, seconds=1)
        pings = [PingTask(task_id=str(uuid4())) for _ in range(3)]
        for ping in pings:
            agent.send(ping)
        poll("all tasks are done", lambda: f"task {task.task_id} is done" in log(agent), 60)
        assert log(agent).count("no queue takes messages") == 1
        with Ledger(agent) as ledger:
            # a further report makes the agent try again at once
            pings.append(PingTask(task_id=str(uuid4())))
            agent.send(pings[-1])
            ids = [task.task_id, *(ping.task_id for ping in pings)]
            ledger.wait_for_ends(ids, 60)
            ledger.check(ids)
            ends = [one["task_id"] for one in ledger.reports if one["status"] == "DONE"]
            assert sorted(ends) == sorted(ids), "a task doesn't have exactly one final report"
            return Seen(f"logged once; {in_words(ledger)} after a queue was bound")


def lost_journal(bench: Bench) -> Seen:
    """Check that report numbers still grow after a loss, because they follow the clock."""
    with bench.agent("lost") as agent, Ledger(agent) as ledger:
        runs = []
        for _ in range(2):
            agent.start()
            ping = PingTask(task_id=str(uuid4()))
            agent.send(ping)
            ledger.wait_for_ends([ping.task_id], 30)
            ledger.check([ping.task_id])
            runs.append(ledger.of(ping.task_id)[-1])
            agent.stop()
            for file in (agent.folder / "state").glob("journal.sqlite*"):
                file.unlink()
        assert runs[0]["agent_run_id"] != runs[1]["agent_run_id"]
        return Seen(f"numbers grew by {runs[1]['seq'] - runs[0]['seq']} across the loss")
