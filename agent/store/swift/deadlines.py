"""One timer thread that ends the overdue requests of a session."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_IDLE_SECONDS: Final = 5.0  # the thread ends after so long without a deadline


class _Deadline(NamedTuple):
    at: float
    act: Callable[[], None]


class Deadlines:
    """Deadlines of running blocks, with one thread that calls the action of each overdue one.

    The thread starts with the first deadline and ends after 5 seconds without one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, _Deadline] = {}
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None

    @contextmanager
    def after(self, seconds: float, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` once in another thread if the block lasts longer than `seconds`."""
        key, due = object(), _Deadline(time.monotonic() + seconds, act)
        with self._changed:
            self._due[key] = due
            if self._thread is None:
                self._thread = threading.Thread(target=self._call_overdue, name="due", daemon=True)
                self._thread.start()
            elif due.at < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(key, None)

    def _call_overdue(self) -> None:
        while (late := self._next()) is not None:
            for due in late:
                due.act()

    def _next(self) -> list[_Deadline] | None:
        """Wait for overdue deadlines, remove them and return them.

        Return None if there is no deadline for _IDLE_SECONDS. The thread must then end.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                late = [key for key, due in self._due.items() if due.at <= now]
                if late:
                    return [self._due.pop(key) for key in late]
                idle = not self._due
                # Wake up after _IDLE_SECONDS at the latest. The block of the next deadline may end
                # long before its deadline, and then the thread can end.
                soonest = min((due.at for due in self._due.values()), default=math.inf)
                self._wakes_at = min(soonest, now + _IDLE_SECONDS)
                self._changed.wait(self._wakes_at - now)
                if idle and not self._due:
                    self._thread = None
                    return None
