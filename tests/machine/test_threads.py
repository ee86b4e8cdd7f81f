"""Threads inherit the task of the thread that starts them, and no thread keeps one for ever."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread as PlainThread

import pytest

from agent.threads import Subject, Thread, Timer, Workers, about_backup, about_task, subject


def in_thread(look: Callable[[Subject], None]) -> None:
    thread = Thread(lambda text: look(subject()._replace(backup_id=text)), "b", name="x")
    thread.start()
    thread.join()


def in_timer(look: Callable[[Subject], None]) -> None:
    timer = Timer(0.0, lambda text: look(subject()._replace(backup_id=text)), "b")
    assert timer.daemon
    timer.start()
    timer.join()


def in_pool(look: Callable[[Subject], None]) -> None:
    with Workers(2, "x") as workers:
        for _ in range(4):
            workers.submit(lambda: look(subject()))


@pytest.mark.parametrize("start", [in_thread, in_timer, in_pool])
def test_it_is_inherited(start: Callable[[Callable[[Subject], None]], None]) -> None:
    seen = SimpleQueue[Subject]()
    with about_task("t", "b"):
        start(seen.put)
    found = {seen.get() for _ in range(seen.qsize())}
    assert found == {Subject("t", "b")}
    assert subject() == Subject()


def test_a_thread_of_python_inherits_nothing() -> None:
    """Else agent.threads would not be needed."""
    seen: list[Subject] = []
    with about_task("t", "b"):
        thread = PlainThread(target=lambda: seen.append(subject()))
        thread.start()
        thread.join()
    assert seen == [Subject()]


def test_a_block_in_a_block() -> None:
    with about_task("one", "b1"):
        with about_backup("b2"):
            assert subject() == Subject("one", "b2")
        with about_task("two"):
            assert subject() == Subject("two", "")
        assert subject() == Subject("one", "b1")
    assert subject() == Subject()
