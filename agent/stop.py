"""The one place where work is told to stop: by its first failure, or from outside."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Stop:
    """Keeps the first cause and wakes whoever waits; later causes are consequences.

    Everything that can block either waits with `wait`, or registers with `on_stop` an
    action that unblocks it (kill the engine, close a socket, notify a condition).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._cause: BaseException | None = None
        self._ignored: type[BaseException] | tuple[()] = ()
        self._actions: list[Callable[[], None]] = []
        self._since = 0.0

    @property
    def cause(self) -> BaseException | None:
        """The first failure, or None while all is well."""
        return self._cause

    @property
    def seconds(self) -> float:
        """How long ago the first failure came; 0 while all is well."""
        return time.monotonic() - self._since if self._cause is not None else 0.0

    def request(self, cause: BaseException) -> bool:
        """Stop everything because of `cause`; a second call changes nothing.

        Whether the work is stopped; False where it was closed to such a cause.
        """
        with self._lock:
            if isinstance(cause, self._ignored):
                return False
            if self._cause is not None:
                return True
            self._cause = cause
            self._since = time.monotonic()
            actions = list(self._actions)
        self._event.set()
        # an action that raises must not keep the others from being called
        with contextlib.ExitStack() as stack:
            for action in actions:
                stack.callback(action)
        return True

    def ignore(self, causes: type[BaseException] = BaseException) -> None:
        """Ignore requests of this type from now on. Raise the cause if there is one already."""
        with self._lock:
            if self._cause is None:
                self._ignored = causes
        self.check()

    def check(self) -> None:
        """Raise the cause if there is one."""
        if self._cause is not None:
            raise self._cause

    def wait(self, seconds: float) -> None:
        """Wait that long, or raise the cause as soon as there is one."""
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def on_stop(self, action: Callable[[], None]) -> Iterator[None]:
        """Have `action` called once on a stop that comes inside the block, or came before."""
        with self._lock:
            stopped = self._cause is not None
            if not stopped:
                self._actions.append(action)
        if stopped:
            action()
        try:
            yield
        finally:
            with self._lock:
                if not stopped:
                    self._actions.remove(action)

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Make an exception of the block the cause; swallow it, for the top of a thread."""
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - a thread's top: the cause is kept
            self.request(error)

    def join(self, thread: threading.Thread) -> None:
        """Wait for a thread's end; what interrupts the waiting becomes the cause."""
        while thread.is_alive():
            with self.guard():
                thread.join()
