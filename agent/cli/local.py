"""`backup-create --local`: a whole backup in this process, as the daemon would make it.

It is a task of the journal like any other, so whatever kills this process, the next run with
that store, or the daemon's next start with it, brings the backup to its end or clears it away.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from agent import wiring
from agent.cli.embedded import FreshKey
from agent.cli.progress import ProgressBar
from agent.cli.verb import on_signals
from agent.config.settings import Config
from agent.errors import Interrupted, StoreUnreachable
from agent.journal import Journal
from agent.machine.account import agent_user, become
from agent.machine.host import lower_priority
from agent.model import CreateTask, Report, ReportDraft, TaskStatus, printable, utc_now
from agent.stop import Stop
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores
from agent.wiring import AgentRun

_PROGRESS_SECONDS: Final = 1.0
# After a signal: time to write the record and remove the segments before the store's
# requests are no longer repeated.
_PATIENCE_SECONDS: Final = 20.0
# The first word of what the lock file says meanwhile.
LOCAL: Final = "backup-create"
_AGENT_RUNS: Final = (
    "if that is the daemon, remove the --local flag, so that it makes the backup; while its broker "
    "is away, `systemctl stop backup-agent`, run this again, and `systemctl start backup-agent`. "
    "If it is another backup-create --local, wait for its end"
)


def create_here(
    config: Config, task: CreateTask, fresh: FreshKey | None = None, *, store_override: bool
) -> Report:
    """Make the backup; its final report. `store_override` says that --store named the store.

    `fresh` is the key where the configuration has none; it is written once the backup begins.

    On a machine with an installed agent root becomes the agent's user, once the secrets are read.
    InstanceBusy where the agent or another of these runs, StoreUnreachable where the store fell
    silent and nobody knows yet how the backup ended.
    """
    lower_priority()
    # how the task ended is said by who asked for it; a defect's traceback is said here
    logging.getLogger("agent.tasks.executor").addFilter(
        lambda record: record.levelno < logging.ERROR or record.exc_info is not None
    )
    if fresh is None:
        resources = wiring.backup_resources(config, exclusive=True)
    else:
        config = fresh.config
        resources = wiring.backup_resources(config, exclusive=True, keys=fresh.keyring)
        resources = replace(resources, keep_key=fresh.keep)
    stores = wiring.task_stores(config, resources)
    if user := agent_user(config.agent.state_folder):
        become(user)
    with (
        wiring.agent_run(
            config,
            resources,
            stores,
            note=f"{LOCAL} {utc_now()}",
            wake=lambda: screen.show(),
            progress_seconds=min(config.agent.progress_seconds, _PROGRESS_SECONDS),
            store_override=store_override,
            busy_hint=_AGENT_RUNS,
        ) as run,
        ProgressBar(printable(task.backup.name)) as bar,
    ):
        screen = _Screen(run.journal, task.task_id, bar)
        return _perform(run, stores, task, screen, sends=config.broker is not None)


def _perform(
    run: AgentRun, stores: TaskStores, task: CreateTask, screen: "_Screen", *, sends: bool
) -> Report:
    executor = run.executor
    executor.recovery.run()
    if not sends:
        run.journal.take_reports()  # those of interrupted tasks, which no daemon will send
    begun = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.RUNNING)
    run.journal.accept(task, begun)
    with _stoppable(executor, stores) as stop:
        executor.perform(task, stop)
    if screen.last is None:
        executor.recovery.run()
    if screen.last is None:
        raise StoreUnreachable(
            f"the store fell silent, and nobody knows yet whether backup {task.backup.id} is whole",
            hint="see to the store; the next backup-create --local, or the agent's next start, "
            "brings it to its end or clears it away",
        )
    return screen.last


class _Screen:
    """Shows the task's reports as they are made, and takes them out of the outbox.

    Nobody else would ever send them. Reports of the daemon's tasks stay for the daemon.
    """

    def __init__(self, journal: Journal, task_id: str, bar: ProgressBar) -> None:
        self._journal = journal
        self._task_id = task_id
        self._bar = bar
        self._lock = threading.Lock()
        self.last: Report | None = None

    def show(self) -> None:
        with self._lock:
            for report in self._journal.take_reports(self._task_id):
                if report.progress:
                    self._bar.show(report.progress)
                if report.status is TaskStatus.DONE and report.sizes:
                    self._bar.finish(report.sizes["raw_bytes"])
                if report.status.final:
                    self.last = report


@contextmanager
def _stoppable(executor: Executor, stores: TaskStores) -> Iterator[Stop]:
    """A stop that SIGINT and SIGTERM request while the block runs."""
    stop, done = Stop(), threading.Event()

    def end() -> None:
        executor.end()
        stop.request(Interrupted("the backup was interrupted", hint="make another one"))
        if not done.wait(_PATIENCE_SECONDS):
            stores.abort()

    on_signals(end)
    try:
        yield stop
    finally:
        done.set()
