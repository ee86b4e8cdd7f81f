"""A limit of the time that a cleanup may wait for the store."""

from collections.abc import Iterator
from contextlib import contextmanager

from agent.errors import StoreSilent
from agent.stop import Stop
from agent.threads import Timer


@contextmanager
def patience(seconds: float, what: str) -> Iterator[Stop]:
    """Yield a Stop that fails with StoreSilent after max(1, `seconds`) seconds.

    `what` is the message of that error.
    """
    late = Stop()
    timer = Timer(max(1.0, seconds), late.request, StoreSilent(what))
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
