"""A limit for the byte rate of the data path."""

import time

from agent.stop import Stop

# The shortest pause in seconds. A shorter one isn't worth the wake-up, so it is added to the next.
_SHORTEST_PAUSE = 0.01
# The most seconds by which the caller may be behind the rate and still catch up. So the time that
# the work itself takes counts as a pause, but a longer idle time allows no longer burst.
_CREDIT = 0.25


class RateLimit:
    """A limiter that delays its caller, so that the mean rate is at most `bytes_per_second`.

    None means no limit.
    """

    def __init__(self, bytes_per_second: int | None, stop: Stop) -> None:
        self._rate = bytes_per_second
        self._stop = stop
        self._due = time.monotonic()

    def spend(self, count: int) -> None:
        """Count `count` bytes, and wait if they are ahead of the rate.

        Idle time allows a burst of 0.25 s at most. Raise the cause if a stop is requested during
        the wait.
        """
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _CREDIT) + count / self._rate
        if self._due - now > _SHORTEST_PAUSE:
            self._stop.wait(self._due - now)
