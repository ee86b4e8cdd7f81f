"""Threads that inherit the task that they work for.

`about_task` names the task of the calling thread, and `subject` returns it for a log line. A thread
of Python begins without it. Therefore the agent starts the threads of a task with the classes of
this module, which pass it on.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Final, NamedTuple


class Subject(NamedTuple):
    """The ids of the task and of the backup that a thread works for, "" if there is none."""

    task_id: str = ""
    backup_id: str = ""


_NOTHING: Final = Subject()
_SUBJECT: ContextVar[Subject] = ContextVar("subject", default=_NOTHING)


def subject() -> Subject:
    """Return the ids that the calling thread works for."""
    return _SUBJECT.get()


@contextmanager
def about_task(task_id: str, backup_id: str | None = None) -> Iterator[None]:
    """Work for a task, and for the backup that it is about, inside the block."""
    before = _SUBJECT.set(Subject(task_id, backup_id or ""))
    try:
        yield
    finally:
        _SUBJECT.reset(before)


@contextmanager
def about_backup(backup_id: str) -> Iterator[None]:
    """Work for another backup of the same task inside the block."""
    before = _SUBJECT.set(subject()._replace(backup_id=backup_id))
    try:
        yield
    finally:
        _SUBJECT.reset(before)


class Thread(threading.Thread):
    """A thread that works for the same task as the thread that makes it."""

    def __init__(
        self, target: Callable[..., object], *args: object, name: str, daemon: bool = False
    ) -> None:
        inherited = (target, *args)
        super().__init__(target=copy_context().run, args=inherited, name=name, daemon=daemon)


class Workers(ThreadPoolExecutor):
    """A pool of threads that work for the same task as the thread that makes the pool."""

    def __init__(self, most: int, name: str) -> None:
        super().__init__(most, name, initializer=_SUBJECT.set, initargs=(subject(),))


class Timer(threading.Timer):
    """A timer whose function works for the same task as the thread that makes the timer."""

    def __init__(self, seconds: float, function: Callable[..., object], *args: object) -> None:
        super().__init__(seconds, copy_context().run, (function, *args))
        self.daemon = True
