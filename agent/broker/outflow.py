"""Reports out: publish the outbox in order, and keep what no queue takes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from agent.broker import wire
from agent.broker.amqp import properties
from agent.broker.pace import Pace, Voice, wait
from agent.broker.session import Channel, Session
from agent.crash import Point, reached
from agent.errors import JournalError, QueueFull, Unroutable

T = TypeVar("T")
_IDLE_SECONDS: Final = 30.0


class Outgoing(Protocol):
    """A report to be published."""

    @property
    def seq(self) -> int: ...
    @property
    def routing_key(self) -> str: ...
    @property
    def body(self) -> bytes: ...


class Outbox(Protocol):
    """Where reports wait: called from the link's thread, lowest number first."""

    def next_report(self) -> Outgoing | None: ...
    def sent(self, seq: int) -> None: ...


class Outflow:
    """Publishes one outbox; `trouble` says that a queue which takes reports is full."""

    def __init__(self, outbox: Outbox, pace: Pace) -> None:
        self.trouble = ""
        self._outbox = outbox
        self._pace = pace
        self._voice = Voice()

    async def run(self, session: Session) -> None:
        """Publish the outbox as it fills; returns when the link stops and it is empty."""
        channel = await session.channel()
        await channel.confirm()
        pace, failures = self._pace, 0
        while True:
            pace.awake.clear()
            report = await self._insist(self._outbox.next_report)
            if report is None:
                if pace.stopping.is_set():
                    return
                await wait(pace.awake, _IDLE_SECONDS)
                continue
            try:
                await self._send(channel, report)
            except (Unroutable, QueueFull) as error:
                self.trouble = str(error) if isinstance(error, QueueFull) else ""
                self._voice.complain(logging.WARNING, f"{error}; {error.hint}")
                if pace.stopping.is_set():
                    return
                await self._wait(error, failures)
                failures += 1
            else:
                if failures:
                    self._voice.tell(logging.INFO, "reports are taken again")
                self.trouble, failures = "", 0

    async def _wait(self, error: Unroutable | QueueFull, failures: int) -> None:
        """A further report is a reason to try at once: its reader may have come.

        Not if a queue is full: each report of a running task would be one more try.
        """
        seconds = self._pace.pauses.after(failures)
        if isinstance(error, QueueFull):
            await self._pace.pause(seconds)
        else:
            await wait(self._pace.awake, seconds)

    async def _send(self, channel: Channel, report: Outgoing) -> None:
        await channel.publish(
            wire.REPORT_EXCHANGE,
            report.routing_key,
            report.body,
            properties(message_id=str(report.seq), app_id="backup-agent"),
        )
        reached(Point.PUBLISHED)
        await self._insist(partial(self._outbox.sent, report.seq))

    async def _insist(self, step: Callable[[], T]) -> T:
        """Do a step of the outbox until it can be read or written; JournalError if the link stops.

        The connection is not given up for that: what is published stays published, and a task
        that is held would go back to its queue.
        """
        failures = 0
        while True:
            try:
                return step()
            except JournalError as error:
                self._voice.complain(logging.ERROR, f"reports wait: {error}; {error.hint}")
                if self._pace.stopping.is_set():
                    raise
                await self._pace.pause(self._pace.pauses.after(failures))
                failures += 1
