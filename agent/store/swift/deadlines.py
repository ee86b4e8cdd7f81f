"""What is done too late is cut: one thread that looks after the requests of a session."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_IDLE_SECONDS: Final = 5.0  # how long the thread waits for more to look after


class _Due(NamedTuple):
    at: float
    act: Callable[[], None]


class Deadlines:
    """Calls what is still due when its time has come; its thread ends when nothing is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, _Due] = {}
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None

    @contextmanager
    def after(self, seconds: float, act: Callable[[], None]) -> Iterator[None]:
        """Call `act` in another thread, once, if the block lasts longer than `seconds`."""
        key, due = object(), _Due(time.monotonic() + seconds, act)
        with self._changed:
            self._due[key] = due
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_after, name="due", daemon=True)
                self._thread.start()
            elif due.at < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._due.pop(key, None)

    def _look_after(self) -> None:
        while (late := self._next()) is not None:
            for due in late:
                due.act()

    def _next(self) -> list[_Due] | None:
        """Wait for what is late; None, and the thread is to end, where nothing comes."""
        with self._changed:
            while True:
                now = time.monotonic()
                late = [key for key, due in self._due.items() if due.at <= now]
                if late:
                    return [self._due.pop(key) for key in late]
                idle = not self._due
                # looks again after that time in any case: what was due may be done long before
                soonest = min((due.at for due in self._due.values()), default=math.inf)
                self._wakes_at = min(soonest, now + _IDLE_SECONDS)
                self._changed.wait(self._wakes_at - now)
                if idle and not self._due:
                    self._thread = None
                    return None
