"""What the parts of a link share: when to stop, how long to pause, and how to log trouble once."""

import asyncio
import contextlib
import logging
import random
from typing import Final, NamedTuple

_LOG = logging.getLogger("agent.broker.link")


class Pauses(NamedTuple):
    """Seconds between tries.

    `first` and `longest` after a failure, `hold` between tries to hand over a task that can't be
    kept, `check` between looks at whether the exchanges, queues and bindings are still there.
    """

    first: float = 1.0
    longest: float = 30.0
    hold: float = 5.0
    check: float = 60.0

    def after(self, failures: int) -> float:
        """The pause after so many failures in a row: doubled each time, with jitter."""
        delay = min(self.longest, self.first * 2.0 ** min(failures, 16))
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - only spreads reconnections


DEFAULT_PAUSES: Final = Pauses()


class Pace:
    """The events of one link's loop. `awake` is set if there may be something in the outbox."""

    def __init__(self, pauses: Pauses) -> None:
        self.pauses = pauses
        self.stopping = asyncio.Event()
        self.awake = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait, but not longer than until the link stops."""
        await wait(self.stopping, seconds)


class Voice:
    """One part's lines in the log: what keeps it from its work is logged once while it lasts."""

    def __init__(self) -> None:
        self._trouble = ""

    def complain(self, level: int, text: str) -> None:
        """Log a trouble, unless it is the one that lasts."""
        if text != self._trouble:
            _LOG.log(level, "%s", text)
        self._trouble = text

    def tell(self, level: int, text: str) -> None:
        """Log what happened, by which the trouble is over."""
        _LOG.log(level, "%s", text)
        self.calm()

    def calm(self) -> None:
        """Take note that the trouble is over: the same one would be logged again."""
        self._trouble = ""


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
