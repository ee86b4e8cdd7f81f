"""RabbitMQ killed, away, impatient, silent or full: it costs delay, and no report.

What the agent says is collected from a durable queue, in order, and each (agent_run_id, seq)
counts once, as docs tell consumers to.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final
from uuid import uuid4

from agent.model import PingTask
from tests.faults.ledger import Ledger
from tests.faults.own_broker import alarm, impatient, quorum, silent
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
    """Those that need a broker of their own, or long waits, in the full form only."""
    said: list[tuple[str, str, Callable[[Bench], Seen]]] = [
        ("away", "kill -9 of RabbitMQ amid a backup, back long after its end", away),
        ("twice", "one task sent twice, during and after it", twice),
        ("unbound", "no queue bound for reports until all is done", unbound),
        ("lost-journal", "the journal is removed between two runs", lost_journal),
    ]
    if plan.full:
        said += [
            ("killed", f"kill -9 of RabbitMQ {_KILLS} times amid a backup, back at once", killed),
            ("consumer-timeout", "a broker that lets nobody hold a task for 2 s", impatient),
            ("silent", "RabbitMQ stands still when a report is published", silent),
            ("alarm", "RabbitMQ has an alarm for memory and takes nothing", alarm),
            ("quorum", "kill -9 of RabbitMQ amid a backup, with a quorum queue", quorum),
        ]
    for name, done, do in said:
        yield Trial("broker", name, done, do)


def away(bench: Bench) -> Seen:
    """The backup ends in the store while there is no broker; then all is reported."""
    with bench.agent("away") as agent, Ledger(agent, durable=True) as ledger:
        agent.start()
        task = slow_backup(bench, agent, seconds=3)
        until(ledger, task.task_id, "RUNNING")
        bench.rabbitmq.kill()
        try:
            completed(agent, task)
            before = len(ledger.reports)
            poll("it is done", lambda: f"task {task.task_id} is done" in log(agent), 30)
            assert agent.running()
        finally:
            bench.rabbitmq.start()
        late = all_reported(ledger, task.task_id) - before
        # the end, and what the broker had when it was killed
        assert late <= 2, f"{late} reports had waited: progress isn't coalesced"
        assert "broker_unreachable: RabbitMQ at" in log(agent)
        return Seen(f"COMPLETED without a broker, then {in_words(ledger)}")


def killed(bench: Bench) -> Seen:
    """As `away`, but the broker comes back while the backup runs, to be killed again."""
    with (
        rows(bench, 30),
        bench.agent("killed") as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        task = slow_backup(bench, agent, seconds=15 * _KILLS)
        until(ledger, task.task_id, "RUNNING")
        for _ in range(_KILLS):
            bench.rabbitmq.kill()
            bench.rabbitmq.start()
            assert record(agent, task)["status"] == "BUILDING", "it was over too early"
            seen = len(ledger.reports)
            ledger.reopen()
            more(ledger, seen)
        completed(agent, task)
        all_reported(ledger, task.task_id)
        return Seen(f"COMPLETED, {in_words(ledger)}", _KILLS)


def twice(bench: Bench) -> Seen:
    """The second one is answered from the journal; nothing is done for it."""
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

        poll("the second is answered", answered, 30)
        assert "RUNNING" in statuses(ledger, task)
        assert record(agent, task)["attempt"] == attempt, "it was done twice"
        assert log(agent).count(f"task {task.task_id} (backup.create) begins") == 1
        first, second = [one for one in ledger.of(task.task_id) if one["status"] == "DONE"]
        again = {key: second[key] for key in ("agent_run_id", "seq", "at")}
        assert second == first | again, "the second answer is another one"
        assert second["seq"] > first["seq"]
        return Seen("begun once, DONE was said twice, the same but for its number")


def unbound(bench: Bench) -> Seen:
    """A backup and some pings, and nobody who reads."""
    with bench.agent("unbound") as agent:
        agent.start()
        task = slow_backup(bench, agent, seconds=1)
        pings = [PingTask(task_id=str(uuid4())) for _ in range(3)]
        for ping in pings:
            agent.send(ping)
        poll("all is done", lambda: f"task {task.task_id} is done" in log(agent), 60)
        assert log(agent).count("no queue takes messages") == 1
        with Ledger(agent) as ledger:
            # a further report is a reason to try at once
            pings.append(PingTask(task_id=str(uuid4())))
            agent.send(pings[-1])
            ids = [task.task_id, *(ping.task_id for ping in pings)]
            ledger.wait_for_ends(ids, 60)
            ledger.check(ids)
            ends = [one["task_id"] for one in ledger.reports if one["status"] == "DONE"]
            assert sorted(ends) == sorted(ids), "not one end each"
            return Seen(f"said once in the log; {in_words(ledger)} when a queue was bound")


def lost_journal(bench: Bench) -> Seen:
    """Numbers go on growing, as they follow the clock."""
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
        return Seen(f"numbers grew by {runs[1]['seq'] - runs[0]['seq']} over the loss")
