"""A byte-rate limit for the data path."""

import time

from agent.stop import Stop

# A pause shorter than this isn't worth the wake-up; the debt is carried on instead.
_SHORTEST_PAUSE = 0.01
# Time that the work itself took counts as paced, up to this much: idle time is no credit.
_CREDIT = 0.25


class Pace:
    """Delays whoever spends bytes, so that the mean rate stays at `bytes_per_second`."""

    def __init__(self, bytes_per_second: int | None, stop: Stop) -> None:
        self._rate = bytes_per_second
        self._stop = stop
        self._due = time.monotonic()

    def spend(self, count: int) -> None:
        """Account for `count` bytes; waits while ahead of the rate. Idle time allows no burst."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now - _CREDIT) + count / self._rate
        if self._due - now > _SHORTEST_PAUSE:
            self._stop.wait(self._due - now)
