"""Trials with their own RabbitMQ: impatient, frozen, out of memory, or with quorum queues."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from uuid import uuid4

import pika
from pika.exceptions import ChannelClosedByBroker

from agent.model import PingTask
from tests.faults.ledger import Ledger
from tests.faults.slow import all_reported, completed, in_words, log, record, slow_backup, until
from tests.faults.trial import Bench, Seen
from tests.stack.agent import Agent, Tables
from tests.stack.process import poll
from tests.stack.rabbitmq import RabbitMQ

# longer than the time that agent.broker.amqp waits for an answer
_SILENT_SECONDS: Final = 60


def impatient(bench: Bench) -> Seen:
    """Run a backup on a broker that closes the channel of a consumer that holds a task for 2 s.

    The agent acknowledges at once and is not affected.
    """
    with separate_broker(bench, consumer_timeout_ms=2000, channel_tick_ms=200) as own:
        told = _held_too_long(own.rabbitmq)
        with own.agent("impatient") as agent, Ledger(agent) as ledger:
            agent.start()
            task = slow_backup(own, agent, seconds=8)
            ledger.wait_for_ends([task.task_id], 90)
            ledger.check([task.task_id])
            end = ledger.final(task.task_id)
            assert end is not None
            assert end["status"] == "DONE", end
            assert record(agent, task)["measured"]["seconds"] > 4, "not longer than the timeout"
            assert log(agent).count("connected to RabbitMQ") == 1
            assert ledger.repeated == 0
    return Seen(f"a consumer that held a task lost it ({told}); the agent's link was not disturbed")


def silent(bench: Bench) -> Seen:
    """Freeze the broker by SIGSTOP: connections stay open and nothing is confirmed."""
    with (
        separate_broker(bench) as own,
        own.agent("silent") as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        task = slow_backup(own, agent, seconds=4)
        until(ledger, task.task_id, "RUNNING")
        own.rabbitmq.freeze()
        try:
            poll("the link gives up", lambda: "broker_silent: " in log(agent), _SILENT_SECONDS)
            completed(agent, task)
        finally:
            own.rabbitmq.thaw()
        all_reported(ledger, task.task_id)
        return Seen(f"broker_silent in the log, COMPLETED meanwhile, then {in_words(ledger)}")


def alarm(bench: Bench) -> Seen:
    """Set a memory alarm, so that the broker answers everything except publishing."""
    with (
        separate_broker(bench) as own,
        own.agent("alarm") as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        task = slow_backup(own, agent, seconds=4)
        until(ledger, task.task_id, "RUNNING")
        own.rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1")
        poll("the link gives up", lambda: "broker_silent: " in log(agent), _SILENT_SECONDS)
        completed(agent, task)
        own.rabbitmq.control("set_vm_memory_high_watermark", "0.8")
        all_reported(ledger, task.task_id)
        return Seen(f"broker_silent in the log, COMPLETED meanwhile, then {in_words(ledger)}")


def quorum(bench: Bench) -> Seen:
    """Kill a broker with a quorum queue after a clean restart (reason: tests/stack/agent.py)."""
    overrides: Tables = {"broker": {"queue_type": "quorum"}}
    with (
        separate_broker(bench) as own,
        own.agent("quorum", overrides) as agent,
        Ledger(agent, durable=True) as ledger,
    ):
        agent.start()
        own.rabbitmq.stop()
        own.rabbitmq.start()
        ledger.reopen()
        _serving_again(agent, 2)
        task = slow_backup(own, agent, seconds=3)
        waiting = PingTask(task_id=str(uuid4()))
        until(ledger, task.task_id, "RUNNING")
        own.rabbitmq.kill()
        own.rabbitmq.start()
        _serving_again(agent, 3)
        agent.send(waiting)
        all_reported(ledger, task.task_id, waiting.task_id)
        completed(agent, task)
        return Seen(f"the queue was consumed again, {in_words(ledger)}")


@contextmanager
def separate_broker(
    bench: Bench, consumer_timeout_ms: int | None = None, channel_tick_ms: int | None = None
) -> Iterator[Bench]:
    """Yield the bench with a separate RabbitMQ for one trial."""
    folder = bench.folder / f"rabbitmq-{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    server = RabbitMQ(folder, consumer_timeout_ms, channel_tick_ms)
    try:
        server.start()
        yield replace(bench, rabbitmq=server)
    finally:
        server.stop()


def _held_too_long(server: RabbitMQ) -> str:
    """Hold a message until the broker closes the channel, and return the broker's reason."""
    connection = pika.BlockingConnection(server.parameters())
    channel = connection.channel()
    queue = channel.queue_declare("held", durable=True).method.queue
    channel.basic_publish("", queue, b"x")
    channel.basic_consume(queue, lambda *_: None)
    said: list[str] = []

    def closed() -> bool:
        try:
            # the answer to the next request is that the channel was closed
            channel.queue_declare(queue, passive=True)
        except ChannelClosedByBroker as error:
            said.append(f"{error.reply_code} {error.reply_text}")
        return bool(said)

    try:
        poll("the broker closes the channel", closed, 30)
    finally:
        connection.close()
    return said[0][:80]


def _serving_again(agent: Agent, times: int) -> None:
    served = f"consuming backup.tasks.{agent.instance_id}"

    def count() -> int:
        return log(agent).count(served) - log(agent).count(f"not {served}")

    poll(f"the agent consumes for the {times}th time", lambda: count() >= times, 60)
