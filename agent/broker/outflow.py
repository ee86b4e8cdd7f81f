"""Publish the reports of the outbox in order, and keep a report that no queue takes."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.broker.amqp import BrokerSettings, properties, refusal
from agent.broker.pace import Pace, ProblemLog, wait
from agent.broker.session import Channel, Session
from agent.crash_points import Point, reached
from agent.errors import BrokerError, JournalError, QueueFull, Unroutable
from agent.model import Report
from agent.threads import about_task

_LOG = logging.getLogger("agent.broker.link")
T = TypeVar("T")
_IDLE_SECONDS: Final = 30.0


class ReportQueue(Protocol):
    """A queue of reports that wait for publication.

    The link's thread calls it. `next_report` returns the report with the lowest number, or None if
    there is none. `sent` is called when the broker has confirmed a report.
    """

    def next_report(self) -> Report | None: ...
    def sent(self, seq: int) -> None: ...


class Outflow:
    """The publisher of one outbox.

    `trouble` says why the broker takes no report. It is "" if reports are taken, and also if the
    only reason is that no queue is bound for them.
    """

    def __init__(self, settings: BrokerSettings, outbox: ReportQueue, pace: Pace) -> None:
        self.trouble = ""
        self._settings = settings
        self._outbox = outbox
        self._pace = pace
        self._problems = ProblemLog()
        self._channel: Channel | None = None

    async def run(self, session: Session) -> None:
        """Publish each report of the outbox as it comes.

        Return when the link stops and the outbox is empty, or when the link stops and the broker
        refuses a report.
        """
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
                    self._problems.tell(logging.INFO, "reports are taken again")
                self.trouble, failures = "", 0
                continue
            self.trouble = "" if isinstance(refused, Unroutable) else str(refused)
            self._problems.complain(logging.WARNING, f"{refused}; {refused.hint}")
            if pace.stopping.is_set():
                return
            await self._wait(refused, failures)
            failures += 1

    async def _wait(self, refused: BrokerError, failures: int) -> None:
        """Pause before the next try, longer after each failure.

        Another report in the outbox does not end the pause. Otherwise each report of a running
        task would be one more try. There is one exception: if no queue took the report, another
        report ends the pause, because a reader may have come in the meantime.
        """
        seconds = self._pace.pauses.after(failures)
        if isinstance(refused, Unroutable):
            await wait(self._pace.awake, seconds)
        else:
            await self._pace.pause(seconds)

    async def _send(self, session: Session, report: Report) -> BrokerError | None:
        """Publish one report, and return the reason if it is not taken, or None if it is.

        A missing exchange or right closes the channel. The connection stays open, because the
        exchange or the right may exist again at the next try.
        """
        try:
            await self._publish(session, report)
        except (Unroutable, QueueFull) as error:
            return error
        except ChannelClosedByBroker as error:
            self._channel = None
            return refusal(self._settings, error, "no report can be sent")
        reached(Point.PUBLISHED)
        with about_task(report.task_id, report.backup.id if report.backup else None):
            _LOG.debug("report %d is sent: %s", report.seq, report.status)
        await self._insist(partial(self._outbox.sent, report.seq))
        return None

    async def _publish(self, session: Session, report: Report) -> None:
        if self._channel is None:
            self._channel = await session.channel()
            await self._channel.confirm()
        message_properties = properties(message_id=str(report.seq), app_id="backup-agent")
        key, body = wire.routing_key(report), wire.encode_report(report)
        await self._channel.publish(wire.REPORT_EXCHANGE, key, body, message_properties)

    async def _insist(self, step: Callable[[], T]) -> T:
        """Retry a step of the outbox until the outbox can be read or written.

        The connection stays open meanwhile. If it were closed, a held task would go back to its
        queue. A report that is published stays published.

        Raises:
            JournalError: the step fails after the link began to stop.
        """
        failures = 0
        while True:
            try:
                return step()
            except JournalError as error:
                self._problems.complain(
                    logging.ERROR, f"reports wait in the journal: {error}; {error.hint}"
                )
                if self._pace.stopping.is_set():
                    raise
                await self._pace.pause(self._pace.pauses.after(failures))
                failures += 1
