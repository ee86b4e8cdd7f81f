"""Events, pauses between tries, and logging of lasting problems, for the parts of a link."""

import asyncio
import contextlib
import logging
import random
from typing import Final, NamedTuple

_LOG = logging.getLogger("agent.broker.link")


class Pauses(NamedTuple):
    """Pauses between tries, in seconds.

    After a failure the pause is `first`. It grows up to `longest`. `hold` is the pause between two
    offers of a task that can't be kept. `check` is the pause between two checks that the exchanges,
    queues and bindings still exist.
    """

    first: float = 1.0
    longest: float = 30.0
    hold: float = 5.0
    check: float = 60.0

    def after(self, failures: int) -> float:
        """Return the pause in seconds after `failures` earlier failures in a row.

        It doubles with each failure, up to `longest`. Jitter shortens it by up to half.
        """
        delay = min(self.longest, self.first * 2.0 ** min(failures, 16))
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - only spreads reconnections


DEFAULT_PAUSES: Final = Pauses()


class Pace:
    """The events and pauses of one link's loop.

    `stopping` is set when the link stops. `awake` is set if the outbox may hold a report.
    """

    def __init__(self, pauses: Pauses) -> None:
        self.pauses = pauses
        self.stopping = asyncio.Event()
        self.awake = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the link stops."""
        await wait(self.stopping, seconds)


class ProblemLog:
    """The log of one part of a link, which logs a problem once for as long as it lasts."""

    def __init__(self) -> None:
        self._trouble = ""

    def complain(self, level: int, text: str) -> None:
        """Log a problem, unless it is the same one as at the last call."""
        if text != self._trouble:
            _LOG.log(level, "%s", text)
        self._trouble = text

    def tell(self, level: int, text: str) -> None:
        """Log an event that ends the problem."""
        _LOG.log(level, "%s", text)
        self.calm()

    def calm(self) -> None:
        """Note that the problem has ended, so that the same one would be logged again."""
        self._trouble = ""


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for at most `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
