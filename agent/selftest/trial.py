"""Checks of the group `trial` (`--full`): a real backup, its restore, and a server on the restore.

That server listens only on a socket in a private directory.
"""

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from agent import wiring
from agent.database.server import Database, DatabaseSettings
from agent.engine.backup_options import server_options
from agent.engine.process import Child
from agent.errors import AgentError, BackupUnknown, DatabaseError, EngineFailed
from agent.machine.account import agent_user, become
from agent.machine.as_user import done_as
from agent.machine.os_user import OsUser, owner_of
from agent.model import BackupRequest, CreateTask, ErrorInfo, Record
from agent.operations.backup.create import BackupOperation
from agent.operations.delete.family import DeleteOperation
from agent.operations.resources import BackupResources
from agent.operations.restore.chain import RestoreOperation
from agent.pipeline.meter import Meter
from agent.selftest.check import Check, CheckOutcome, amount, failed, passed, span
from agent.selftest.context import Context, log
from agent.stop import Stop
from agent.store.protocol import Container

_BASE = (
    "database: privileges",
    "database: engine version",
    "database: extractor",
    "database: datadir",
    "keys: active",
    "store: put",
    "store: manifest",
    "configuration: state folder",
    "host: state space",
)
_START_SECONDS = 120.0
_LIST_SECONDS = 20.0
_LOOK_SECONDS = 0.1
_CHECK_SECONDS = 3600.0
_SERVERS = {"mariadb": "mariadbd", "mysql": "mysqld"}


class _Group:
    """The checks of the trial, on one backup.

    The end of the group removes the objects, files and processes of each check.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._id = str(uuid4())
        self._record: Record | None = None
        self._socket: Path | None = None

    @cached_property
    def _resources(self) -> BackupResources:
        resources = wiring.backup_resources(self._context.config)
        self._leave_root()
        self._context.after_group.callback(resources.store.close)
        if not resources.scratch.exists():
            # if an agent uses the directory by then, it is not empty and stays
            self._context.after_group.callback(_remove_empty, resources.scratch)
        return resources

    def _leave_root(self) -> None:
        """Become the agent's user if root runs this, so that a crash leaves only that user's files.

        Every object that needs a secret is built before. This group is the last one, so no later
        check needs root.
        """
        context = self._context
        for built in (context.store, context.database):
            log.debug("built for the trial: %s", type(built).__name__)
        if user := agent_user(context.config.agent.state_folder):
            become(user)

    @cached_property
    def _folder(self) -> Path:
        """Return the target of the restore, below the first restore root or the state directory."""
        agent = self._context.config.agent
        root = agent.restore_roots[0] if agent.restore_roots else agent.state_folder
        return root / f"self-test-{self._id}"

    def backup(self) -> CheckOutcome:
        """Make a full backup, as a task does.

        If it fails, its bytes are deleted at once, and its record at the end of the group.
        """
        meter = Meter()
        request = BackupRequest(id=self._id, name="self-test", description="a trial: deleted soon")
        operation = BackupOperation(
            self._resources,
            CreateTask(task_id=str(uuid4()), backup=request),
            meter=meter,
            stop=Stop(),
            observe_lsn=lambda _key, _lsn: "",
            on_begin=lambda _record: None,
            on_finished=lambda _record: None,
        )
        self._context.after_group.callback(_logged, self._delete)
        with _abandoned(operation):
            self._record = operation.run()
        stored = self._record.stored
        size = amount(stored.stored_bytes) if stored else "nothing"
        return passed(f"{amount(meter.raw_bytes)} read in {span(meter.seconds)}, {size} stored")

    def restore(self) -> CheckOutcome:
        meter = Meter()
        self._context.after_group.callback(shutil.rmtree, self._folder, ignore_errors=True)
        RestoreOperation(self._resources, meter=meter, stop=Stop()).run(self._id, self._folder)
        return passed(
            f"{amount(meter.raw_bytes)} restored in {span(meter.seconds)} into {self._folder}"
        )

    def server(self) -> CheckOutcome:
        """Check that a private server on the restored datadir answers."""
        # not below the restored datadir: the path of a socket has room for 107 bytes only
        scratch = Path(tempfile.mkdtemp(prefix="backup-agent-"))
        self._context.after_group.callback(shutil.rmtree, scratch, ignore_errors=True)
        self._socket = scratch / "s"
        program = _SERVERS[self._context.database.server().type]
        user = _server_user(self._folder)
        argv = _argv(program, self._folder, scratch, self._socket, user)
        if user is not None:
            # only after root has written to it, because its owner could put a link there
            os.chown(scratch, user.uid, user.gid)
        child = Child(
            argv,
            setting="PATH of this self-test",
            user=user,
            writable=[self._folder, scratch],
        )
        self._context.after_group.callback(child.close)
        started = time.monotonic()
        server = _answer(self._database, child, started + _START_SECONDS)
        return passed(f"{program} {server} answers after {span(time.monotonic() - started)}")

    def tables(self) -> CheckOutcome:
        said = self._database.check_tables()
        bad = [f"{table}: {text}" for table, text in said.items() if text != "OK"]
        if bad:
            return failed(
                f"{len(bad)} of {len(said)} tables fail CHECK TABLE: {'; '.join(bad[:3])}",
                "run CHECK TABLE on the live server, repair the tables that fail there, and run "
                "this again",
            )
        return passed(f"{len(said)} tables pass CHECK TABLE")

    def removal(self) -> CheckOutcome:
        self._context.after_group.close()
        store = self._context.store
        left = [row.name for row in store.list(Container.SEGMENTS, f"{self._id}/")]
        left += [row.name for row in store.list(Container.OBJECTS, self._id)]
        if left or self._folder.exists():
            return failed(
                f"the trial's files are not all deleted: {', '.join(left[:3]) or self._folder}",
                f"backup-agent backup-delete {self._id} --local; rm -r {self._folder}",
            )
        return passed("the trial's backup, directory and server are removed")

    @property
    def _database(self) -> Database:
        settings = DatabaseSettings(self._socket or Path("-"), "root", "", _CHECK_SECONDS)
        return Database(settings)

    def _delete(self) -> None:
        with suppress(BackupUnknown):
            DeleteOperation(
                self._resources.store,
                self._resources.catalogue,
                connections=self._resources.path.connections,
                meter=Meter(),
                stop=Stop(),
                on_begin=lambda _record: None,
            ).run(self._id)


def checks(context: Context) -> Sequence[Check]:
    group = _Group(context)
    return [
        Check("backup", group.backup, _BASE),
        Check("restore", group.restore, ("backup",)),
        Check("server", group.server, ("restore",)),
        Check("tables", group.tables, ("server",)),
        Check("removal", group.removal, ("backup",)),
    ]


@contextmanager
def _abandoned(operation: BackupOperation) -> Iterator[None]:
    """Abandon the backup if the block fails or is interrupted.

    Then the backup has a FAILED record and no bytes.
    """
    try:
        yield
    # also for an interrupt and a defect, which must leave no bytes in the store; raised again
    except BaseException as error:
        operation.abandon(ErrorInfo.of(error))
        raise


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _logged(undo: Callable[[], None]) -> None:
    """Call `undo`, and log an AgentError instead of raising it."""
    try:
        undo()
    except AgentError as error:
        log.warning("can't delete the self-test's backup: %s", error)


def _server_user(datadir: Path) -> OsUser | None:
    """Return the owner of a restored datadir, or None for this process's own user.

    Also None if the owner can't enter the directories above it, such as root's state directory.
    """
    user = owner_of(datadir)
    if user is None:
        return None
    with Child(["ls", str(datadir)], setting="PATH of this self-test", user=user) as child:
        return user if child.wait(_LIST_SECONDS) == 0 else None


def _argv(
    program: str, datadir: Path, scratch: Path, socket: Path, user: OsUser | None
) -> list[str]:
    """Return the command line of a server that only this user can reach.

    Its options for InnoDB's layout are those that the engine noted in the datadir. The events,
    plugins and user-defined functions that the restored tables could start are off.
    """
    options = scratch / "server.cnf"
    content = done_as(user, datadir, lambda: server_options(datadir))
    options.write_text(content, encoding="utf-8")
    if user is not None:
        os.chown(options, user.uid, user.gid)
    return [
        program,
        f"--defaults-file={options}",
        f"--datadir={datadir}",
        *([] if user else [f"--user={getpass.getuser()}"]),
        f"--socket={socket}",
        f"--pid-file={scratch / 'pid'}",
        f"--tmpdir={scratch}",
        "--skip-networking",
        "--skip-grant-tables",
        "--skip-log-bin",
        "--skip-slave-start",
        "--event-scheduler=DISABLED",
    ]


def _answer(database: Database, child: Child, deadline: float) -> str:
    """Wait for a server that is starting, and return its version.

    Raises:
        EngineFailed: the server ends, or does not answer before `deadline` (a time.monotonic()
            value).
    """
    while True:
        try:
            return database.server().version
        except DatabaseError as error:
            if not child.running() or time.monotonic() > deadline:
                last = "; ".join(child.log.lines()[-3:])
                raise EngineFailed(
                    f"no server answers on the restored datadir: {last or error}",
                    hint="compare the server's version with the engine's, and read the lines "
                    "above; the backup may not be restorable",
                ) from error
            time.sleep(_LOOK_SECONDS)
