"""Stop all parts of one piece of work after its first failure, or on a request from outside."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Stop:
    """The stop request that all threads of one piece of work share.

    It keeps the first cause and wakes every waiting thread. It ignores later causes, because they
    are consequences of the first.

    Code that can block must wait with `wait`, or register with `on_stop` an action that unblocks
    it. Such an action kills the engine, closes a socket or notifies a condition.
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
        """Return the first cause, or None if no stop was requested."""
        return self._cause

    @property
    def seconds(self) -> float:
        """Return the seconds since the first cause, or 0 if no stop was requested."""
        return time.monotonic() - self._since if self._cause is not None else 0.0

    def request(self, cause: BaseException) -> bool:
        """Stop the work because of `cause`.

        The first call sets the cause and runs the registered actions. Later calls change nothing.

        Returns:
            True if the work is stopped. False if `ignore` excluded causes of this type.
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
        # The exit stack calls all actions, even if one of them raises.
        with contextlib.ExitStack() as stack:
            for action in actions:
                stack.callback(action)
        return True

    def ignore(self, causes: type[BaseException] = BaseException) -> None:
        """Ignore later stop requests of this type, or raise the cause that is already set."""
        with self._lock:
            if self._cause is None:
                self._ignored = causes
        self.check()

    def check(self) -> None:
        """Raise the cause if a stop was requested."""
        if self._cause is not None:
            raise self._cause

    def wait(self, seconds: float) -> None:
        """Wait `seconds`, or raise the cause as soon as a stop is requested."""
        self._event.wait(seconds)
        self.check()

    @contextlib.contextmanager
    def on_stop(self, action: Callable[[], None]) -> Iterator[None]:
        """Call `action` once if a stop is requested inside the block, or was requested before."""
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
        """Request a stop with an exception of the block as the cause, and suppress the exception.

        This is for the top function of a thread.
        """
        try:
            yield
        except BaseException as error:  # noqa: BLE001 - a thread's top; the cause is kept
            self.request(error)

    def join(self, thread: threading.Thread) -> None:
        """Wait for the end of a thread.

        An exception that interrupts the wait, such as KeyboardInterrupt, becomes the cause of a
        stop. The wait goes on after it.
        """
        while thread.is_alive():
            with self.guard():
                thread.join()
