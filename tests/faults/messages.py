"""Hostile task messages, and more messages than an agent can handle.

Every message must be answered by a final report about the id that it names, or be in `backup.dead`
with a reason. Nothing may be changed that doesn't belong to the instance.
"""

import json
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import pika
import psutil

from agent import wiring
from agent.broker import wire
from agent.config.reading import load
from tests.e2e.objects import Objects
from tests.faults.mutations import Mutator
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.records.made import completed
from tests.stack.agent import Agent
from tests.stack.process import poll

LEAST: Final = {"message": 10_000, "flood": 1}
_BATCH: Final = 500
_FLOOD: Final = 3_000
_GROWTH: Final = 50 << 20
_JOURNAL_TASKS: Final = 1_000
_NOWHERE: Final = {"backup_id": str(uuid.uuid4()), "target": "/nowhere/at/all"}
_JOURNAL_BYTES: Final = 16 << 20


def trials(plan: Plan) -> Iterator[Trial]:
    count = LEAST["message"] if plan.full else 200
    yield Trial(
        "message",
        "mutated",
        f"{count} task messages with wrong fields, bytes and properties",
        lambda bench: _mutated(bench, plan.random("messages"), count),
    )
    if plan.full:
        yield Trial("flood", "tasks", f"{_FLOOD} tasks while the worker is busy", _flood)


class Answers:
    """The connection of a sender of tasks, which also receives final reports and dead letters."""

    def __init__(self, agent: Agent) -> None:
        self._instance_id = agent.instance_id
        self._connection = pika.BlockingConnection(agent.rabbitmq.parameters())
        self._channel = self._connection.channel()
        queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(queue, wire.REPORT_EXCHANGE, f"{agent.instance_id}.#")
        self._channel.basic_consume(queue, self._on_report, auto_ack=True)
        self._channel.basic_consume(wire.DEAD, self._on_dead, auto_ack=True)
        self.final: dict[str, dict[str, Any]] = {}
        self.dead: dict[bytes, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._connection.close()

    def _on_report(self, _channel: object, _method: object, _told: object, body: bytes) -> None:
        report = json.loads(body)
        if report["status"] in ("DONE", "FAILED", "CANCELLED"):
            self.final[report["task_id"]] = report

    def _on_dead(self, _channel: object, _method: object, told: Any, body: bytes) -> None:
        self.dead[body] = (told.headers or {}).get("x-reason", "")

    def send(self, body: bytes, told: pika.BasicProperties | None = None) -> None:
        self._channel.basic_publish(wire.TASK_EXCHANGE, self._instance_id, body, told)

    def waiting(self, queue: str) -> int:
        """Return the number of messages in a queue that no consumer has received."""
        return int(self._channel.queue_declare(queue, passive=True).method.message_count)

    def wait_for(self, bodies: Sequence[bytes], seconds: float) -> None:
        """Wait until every message has an answer or is dead."""
        left = list(bodies)

        def done() -> bool:
            self._connection.process_data_events(0)
            left[:] = [body for body in left if not self._accounted(body)]
            return not left

        try:
            poll("all messages are answered", done, seconds)
        finally:
            assert not left, f"{len(left)} messages without an answer: {left[0][:300]!r}"

    def _accounted(self, body: bytes) -> bool:
        return _named(body) in self.final or bool(self.dead.get(body[: wire.MAX_TASK_BYTES]))


def _named(body: bytes) -> str:
    """Return the task id in a message, read independently of the agent's code."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return str(found.get("task_id", "")) if isinstance(found, dict) else ""


class Canaries:
    """Property of others that must not change: objects, files, a queue with a task in it."""

    def __init__(self, agent: Agent, answers: Answers) -> None:
        self.ids = [str(uuid.uuid4()) for _ in range(2)]
        self.other = f"database_backups_{uuid.uuid4().hex}"
        self._agent = agent
        self._answers = answers
        self._objects = Objects(agent)
        self.own = self._objects.container
        self._queue = wire.task_queue(str(uuid.uuid4()))
        self._plant_objects()
        self._plant_files()
        self._seen = self._look()

    def close(self) -> None:
        channel = self._answers._channel
        channel.queue_delete(self._queue)
        self._objects.close()

    def _plant_objects(self) -> None:
        """Store whole backups in another tenant's container, and damaged records in our own."""
        keys = wiring.keyring(load(self._agent.config))
        good = {
            backup_id: keys.sign(completed(id=backup_id).model_dump_json().encode())
            for backup_id in self.ids
        }
        for container, records in ((self.own, {}), (self.other, good)):
            for group in (container, f"{container}_segments"):
                self._objects._swift.put_container(group)
            for backup_id in self.ids:
                record = records.get(backup_id, b"{}\n{}\n")
                self._objects.put(container, f"{backup_id}.json", record)
                self._objects.put(container, f"{backup_id}.xbstream.gz.enc", b"object")
                name = f"{backup_id}/{uuid.uuid4()}/00000000"
                self._objects.put(f"{container}_segments", name, b"segment")

    def _plant_files(self) -> None:
        root = self._agent.folder / "restore"
        beside = self._agent.folder / "beside"
        for folder in (root / "occupied", beside):
            folder.mkdir()
            (folder / "keep").write_text("keep")
        (root / "link").symlink_to(beside)
        self._answers._channel.queue_declare(self._queue, durable=True)
        self._answers._channel.basic_publish("", self._queue, b"{}")

    def check(self) -> None:
        """Raise AssertionError if any of it has changed."""
        assert self._look() == self._seen

    def _look(self) -> list[object]:
        seen: list[object] = []
        for container in (self.own, self.other):
            for group in (container, f"{container}_segments"):
                _, rows = self._objects._swift.get_container(group, full_listing=True)
                seen += [(group, row["name"], row["hash"], row["last_modified"]) for row in rows]
        for folder in ("restore", "beside", "keys"):
            seen += sorted(_files(self._agent.folder / folder))
        channel = self._answers._channel
        seen.append(channel.queue_declare(self._queue, passive=True).method.message_count)
        return seen


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for path in folder.rglob("*"):
        stat = path.lstat()
        yield str(path), stat.st_size, stat.st_mtime_ns


@contextmanager
def _agent(bench: Bench, name: str) -> Iterator[Agent]:
    """Start an agent without a database, so that a create fails at once."""
    overrides: dict[str, dict[str, object]] = {
        "database": {"socket": "/nonexistent/mysqld.sock"},
        "store": {"storage_urls": [bench.swift.storage_url]},
    }
    with bench.agent(name, overrides) as agent:
        agent.start()
        yield agent


def _properties(chance: random.Random) -> pika.BasicProperties | None:
    """Return message properties that a careless or hostile sender may set."""
    if chance.random() < 0.7:
        return None
    return pika.BasicProperties(
        content_type=chance.choice(["application/json", "text/html", "\u202e", None]),
        content_encoding=chance.choice(["gzip", "utf-16", None]),
        headers=chance.choice([None, {}, {"x-death": "never"}, {"a": [1, {"b": None}]}]),
        reply_to=chance.choice([None, "amq.rabbitmq.reply-to.none", "x" * 255]),
        correlation_id=chance.choice([None, "\x00"]),
        priority=chance.choice([None, 255]),
        timestamp=chance.choice([None, 0, 2**63]),
        delivery_mode=chance.choice([None, 1, 2]),
    )


def _mutated(bench: Bench, chance: random.Random, count: int) -> Seen:
    with _agent(bench, "messages") as agent, Answers(agent) as answers:
        canaries = Canaries(agent, answers)
        words = {
            "root": str(agent.folder / "restore"),
            "state": str(agent.folder / "state"),
            "own": canaries.own,
            "other": canaries.other,
            "url": bench.swift.storage_url,
        }
        mutator = Mutator(chance, words, canaries.ids)
        daemon = psutil.Process(agent.daemon.pid)
        sizes = []
        for begun in range(0, count, _BATCH):
            bodies = [mutator.message() for _ in range(min(_BATCH, count - begun))]
            for body in bodies:
                answers.send(body, _properties(chance))
            answers.wait_for(bodies, 120)
            sizes.append(daemon.memory_info().rss)
        grown = max(sizes) - sizes[0]
        canaries.check()
        canaries.close()
        assert agent.running(), "the daemon has ended"
        assert grown <= _GROWTH, f"the daemon grew by {grown >> 20} MiB"
        dead, final = len(answers.dead), len(answers.final)
        assert min(dead, final) > count // 10, (dead, final)
    return Seen(f"{final} reported, {dead} dead, {grown >> 20} MiB more, nothing changed", count)


def _flood(bench: Bench) -> Seen:
    with _agent(bench, "flood") as agent, Answers(agent) as answers:
        daemon = psutil.Process(agent.daemon.pid)
        before = daemon.memory_info().rss
        container = f"database_backups_{agent.tenant_id}"
        bench.swift.inject([{"match": container, "action": "stall", "seconds": 20}])
        bodies = [_task("backup.delete", backup_id=str(uuid.uuid4()))]
        bodies += [_task("backup.restore", **_NOWHERE) for _ in range(_FLOOD)]
        for body in bodies:
            answers.send(body)
        queue = wire.task_queue(agent.instance_id)
        kept = _FLOOD - _JOURNAL_TASKS
        poll("the journal is full", lambda: "tasks are unfinished" in agent.log.read_text(), 60)
        waiting = answers.waiting(queue)
        assert kept - 1 <= waiting <= kept + 1, f"{waiting} tasks wait on the broker"
        answers.wait_for(bodies, 300)
        grown = daemon.memory_info().rss - before
        size = sum(os.path.getsize(path) for path in (agent.folder / "state").glob("journal*"))
        assert agent.running()
        assert grown <= _GROWTH, f"the daemon grew by {grown >> 20} MiB"
        assert size <= _JOURNAL_BYTES, f"the journal has {size >> 20} MiB"
    return Seen(f"{waiting} waited on the broker, journal {size >> 10} KiB, {grown >> 20} MiB more")


def _task(kind: str, **fields: str) -> bytes:
    return json.dumps({"version": 1, "task_id": str(uuid.uuid4()), "type": kind, **fields}).encode()
