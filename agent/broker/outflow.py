"""Reports out: publish the outbox in order, and keep what no queue takes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import BrokerSettings, properties, refusal
from agent.broker.pace import Pace, Voice, wait
from agent.broker.session import Channel, Session
from agent.crash_points import Point, reached
from agent.errors import BrokerError, JournalError, QueueFull, Unroutable
from agent.model import Report

T = TypeVar("T")
_IDLE_SECONDS: Final = 30.0


class Outbox(Protocol):
    """Where reports wait: called from the link's thread, lowest number first."""

    def next_report(self) -> Report | None: ...
    def sent(self, seq: int) -> None: ...


class Outflow:
    """Publishes one outbox; `trouble` says why the broker takes no report that has readers."""

    def __init__(self, settings: BrokerSettings, outbox: Outbox, pace: Pace) -> None:
        self.trouble = ""
        self._settings = settings
        self._outbox = outbox
        self._pace = pace
        self._voice = Voice()
        self._channel: Channel | None = None

    async def run(self, session: Session) -> None:
        """Publish the outbox as it fills; returns when the link stops and it is empty."""
        self._channel = None
        pace, failures = self._pace, 0
        while True:
            pace.awake.clear()
            report = await self._insist(self._outbox.next_report)
            if report is None:
                if pace.stopping.is_set():
                    return
                await wait(pace.awake, _IDLE_SECONDS)
                continue
            refused = await self._send(session, report)
            if refused is None:
                if failures:
                    self._voice.tell(logging.INFO, "reports are taken again")
                self.trouble, failures = "", 0
                continue
            self.trouble = "" if isinstance(refused, Unroutable) else str(refused)
            self._voice.complain(logging.WARNING, f"{refused}; {refused.hint}")
            if pace.stopping.is_set():
                return
            await self._wait(refused, failures)
            failures += 1

    async def _wait(self, refused: BrokerError, failures: int) -> None:
        """Wait longer each time. A further report is no reason to try at once.

        Each report of a running task would be one more try. But if a report has no reader, one may
        have come.
        """
        seconds = self._pace.pauses.after(failures)
        if isinstance(refused, Unroutable):
            await wait(self._pace.awake, seconds)
        else:
            await self._pace.pause(seconds)

    async def _send(self, session: Session, report: Report) -> BrokerError | None:
        """Publish one report; return why it is not taken.

        A missing exchange or right closes the channel. It is no reason to give up the connection:
        what is missing may be there again at the next try.
        """
        try:
            await self._publish(session, report)
        except (Unroutable, QueueFull) as error:
            return error
        except ChannelClosedByBroker as error:
            self._channel = None
            return refusal(self._settings, error, "no report can be sent")
        reached(Point.PUBLISHED)
        await self._insist(partial(self._outbox.sent, report.seq))
        return None

    async def _publish(self, session: Session, report: Report) -> None:
        if self._channel is None:
            self._channel = await session.channel()
            await self._channel.confirm()
        told = properties(message_id=str(report.seq), app_id="backup-agent")
        key, body = wire.routing_key(report), wire.encode_report(report)
        await self._channel.publish(wire.REPORT_EXCHANGE, key, body, told)

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
