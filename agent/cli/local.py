"""A whole backup in this process, for `backup-create --local`.

It is made as the daemon would make it. It is a task of the journal like any other task. So if
this process is killed, the next run with that store, or the daemon's next start with it,
completes the backup or removes it.
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
# Seconds after a signal in which the record is written and the segments are removed. After that,
# requests to the store are not retried any more.
_PATIENCE_SECONDS: Final = 20.0
# The first word in the lock file while a --local backup runs.
LOCAL: Final = "backup-create"
_AGENT_RUNS: Final = (
    "if that is the daemon, remove the --local flag, so that the daemon makes the backup. While "
    "its broker can't be reached, run `systemctl stop backup-agent`, this command, and "
    "`systemctl start backup-agent`. If it is another backup-create --local, wait for its end"
)


def create_here(
    config: Config, task: CreateTask, fresh: FreshKey | None = None, *, store_override: bool
) -> Report:
    """Make the backup in this process, and return its final report.

    `fresh` is the key if the configuration has none. It is written when the backup begins.
    `store_override` says that --store named the store.

    On a machine with an installed agent, root becomes the agent's user as soon as the secrets are
    read.

    Raises:
        InstanceBusy: the agent or another `backup-create --local` runs.
        StoreUnreachable: the store stopped answering, and the end of the backup is not known yet.
    """
    lower_priority()
    # The caller prints how the task ended. Only the traceback of a defect is logged here.
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
        try:
            return _perform(run, stores, task, screen, sends=config.broker is not None)
        finally:
            wiring.write_metrics(config, run)


def _perform(
    run: AgentRun, stores: TaskStores, task: CreateTask, screen: "_Screen", *, sends: bool
) -> Report:
    executor = run.executor
    executor.recovery.run()
    if not sends:
        # These are about interrupted tasks. Without a broker they can't be sent.
        run.journal.take_reports()
    begun = ReportDraft(task_id=task.task_id, type=task.type, status=TaskStatus.RUNNING)
    run.journal.accept(task, begun)
    with _stoppable(executor, stores) as stop:
        executor.perform(task, stop)
    if screen.last is None:
        executor.recovery.run()
    if screen.last is None:
        reason = executor.recovery.reason(task.task_id)
        raise StoreUnreachable(
            "the store stopped answering: it is not known yet whether backup "
            f"{task.backup.id} is complete{f' ({reason})' if reason else ''}",
            hint="check the store. The next backup-create --local, or the agent's next start, "
            "completes the backup or removes it",
        )
    return screen.last


class _Screen:
    """A display of the task's reports, which takes them out of the outbox.

    No other process would ever send them. Reports of the daemon's tasks stay for the daemon.
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
    """Yield a stop that SIGINT and SIGTERM request while the block runs.

    If the block has not ended `_PATIENCE_SECONDS` after such a signal, requests to the stores are
    not retried any more.
    """
    stop, done = Stop(), threading.Event()

    def end() -> None:
        executor.end()
        stop.request(Interrupted("the backup was interrupted", hint="make another backup"))
        if not done.wait(_PATIENCE_SECONDS):
            stores.abort()

    on_signals(end)
    try:
        yield stop
    finally:
        done.set()
