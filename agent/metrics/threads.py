"""Threads that backups do not depend on."""

import logging
from collections.abc import Callable
from threading import Thread

log = logging.getLogger(__name__)


def begin(name: str, work: Callable[[], None]) -> Thread:
    """Run `work` on a thread of that name. If it fails, log that the agent works on without it.

    Backups are more important than metrics. Prometheus sees that a port is silent, and that a file
    grows old.
    """

    def run() -> None:
        whole = False
        try:
            work()
            whole = True
        finally:
            if not whole:
                log.critical("the thread %s failed. The agent works on without it", name)

    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread
