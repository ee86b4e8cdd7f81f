"""A server and an agent for one script, and the script's deeds on files."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

import pymysql

from tests.engine.scripts import open_way
from tests.faults.names.command import Commands
from tests.faults.names.script import Script, Step
from tests.faults.trial import Bench
from tests.stack.agent import Agent, Tables
from tests.stack.mariadb import SMALL_SERVER, MariaDB
from tests.stack.process import StackError

_PLUGINS: Final = {"plugin-load-add": "ha_archive;ha_blackhole"}
# Options that a datadir is made with and that can't be changed later.
_INBORN: Final = (
    "innodb-page-size",
    "innodb-data-file-path",
    "innodb-undo-tablespaces",
    "lower-case-table-names",
    "innodb-checksum-algorithm",
)
_COMPLAINT: Final = re.compile(r"^backup-agent: (\w+): (.*)", re.MULTILINE | re.DOTALL)


Settings = dict[str, object]


class Failure(NamedTuple):
    """The error's code and the whole message of a failed command."""

    code: str
    words: str


class Templates:
    """Empty datadirs by the options with which they are made, and the runner of commands."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.folder = bench.folder / f"names-{os.urandom(4).hex()}"
        self.folder.mkdir(parents=True)
        self._made: dict[tuple[str, ...], Path] = {}
        self.commands = Commands(self.folder)

    def copy(self, options: dict[str, str], target: Path) -> None:
        """Put an empty datadir for those options at `target`."""
        key = tuple(options.get(name, "") for name in _INBORN)
        if key not in self._made:
            folder = self.folder / f"template-{len(self._made)}"
            server = MariaDB(folder, options=options)
            server.install([f"--{name}={options[name]}" for name in _INBORN if name in options])
            server.start()
            server.create_agent_user()
            server.stop()
            self._made[key] = folder
        shutil.copytree(self._made[key] / "data", target, symlinks=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with self.commands:
            shutil.rmtree(self.folder, ignore_errors=True)


class Rig:
    """A server on which a script's steps are run, and an agent with its own store."""

    def __init__(
        self,
        templates: Templates,
        script: Script,
        *,
        swift: bool,
        engine: Settings | None = None,
    ) -> None:
        self.script = script
        self.templates = templates
        self.folder = templates.folder / f"trial-{os.urandom(4).hex()}"
        self.options = {**SMALL_SERVER, **_PLUGINS, **script.options}
        self.ext = self.folder / "ext"
        self.ext.mkdir(parents=True)
        # a short path, since long names stand behind it
        self.target = Path(tempfile.mkdtemp(prefix="ba-")) / "back"
        self.server = MariaDB(self.folder / "server", options=self.options)
        templates.copy(self.options, self.server.datadir)
        self.server.start()
        self.server.create_agent_user()
        self.agent = self._agent(swift, engine or {})
        # a schema may have that name only if no file of the server has it
        free = "innodb-data-file-path" in script.options
        self.suspects: list[str] = ["ibdata1"] if free else []
        self.refused: list[str] = []
        self.strays: set[str] = set()

    def _agent(self, swift: bool, engine: Settings) -> Agent:
        url = f"file://{self.folder}/store"
        store: dict[str, object] = {} if swift else {"url": url, "user": None, "key_file": None}
        pipeline: Settings = {"bytes_per_second": self.script.bytes_per_second}
        pipeline["segment_bytes"] = 1 << 20
        overrides: Tables = {"store": store, "pipeline": pipeline, "engine": engine}
        bench = self.templates.bench
        agent = Agent(self.folder / "agent", bench.rabbitmq, bench.swift, self.server, overrides)
        agent.write()
        return agent

    def close(self) -> None:
        self.server.kill()
        for folder in (self.folder, self.target.parent):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # --- steps ---------------------------------------------------------------------------

    @contextmanager
    def stepping(self) -> Iterator["Steps"]:
        """Yield a connection that performs steps one after the other."""
        with self.server.connect() as connection, connection.cursor() as cursor:
            yield Steps(self, cursor)

    # --- the agent's commands ------------------------------------------------------------

    def back_up(self, parent: str | None) -> str | Failure:
        """Make a backup with the command line. Return its id or the failure."""
        arguments = ["backup-create", "--local", "--json", "names"]
        return self._run(*arguments, *(["--parent", parent] if parent else []))

    def restore(self, backup: str, target: Path) -> str | Failure:
        # as it is where the server's OS user is the one that restores
        for folder in filter(Path.is_dir, self.ext.rglob("*")):
            open_way(folder / "file")
        return self._run("restore", "--local", "--json", backup, target)

    def _run(self, *arguments: str | Path) -> str | Failure:
        done = self.templates.commands.run("--config", self.agent.config, *arguments)
        if done.status == 0:
            found = re.search(r'"id": "([^"]+)"', done.stdout)
            return found[1] if found else done.stdout
        complaint = _COMPLAINT.search(done.stderr)
        if complaint is None:
            return Failure("traceback", f"status {done.status}: {done.stderr[-2000:]}")
        return Failure(complaint[1], complaint[2])

    def copy_of(self, datadir: Path) -> MariaDB:
        """Return a server for a restored datadir, with the same options."""
        if not self.script.beside:
            self.server.kill()
            self.ext.rename(self.folder / "ext away")
            self.server.datadir.rename(self.folder / "data away")
        return MariaDB(self.folder / "copy", datadir, options=self.options)


class Steps:
    """A connection that performs steps. A step that the server refuses is only noted."""

    def __init__(self, rig: Rig, cursor: "pymysql.cursors.Cursor") -> None:
        self._rig = rig
        self._cursor = cursor

    def do(self, step: Step) -> bool:
        """Perform a step. Return True if the server accepted it."""
        try:
            if step.sql:
                self._cursor.execute(step.sql.replace("{ext}", str(self._rig.ext)))
            else:
                _DEEDS[step.deed[0]](self._rig, *step.deed[1:])
        except (pymysql.MySQLError, OSError) as error:
            self._rig.refused.append(f"{step.told()}: {error}")
            if "RENAME TABLE" in step.sql:
                # InnoDB's log has the name in spite of the error, and the engine looks for its file
                self._rig.suspects += re.findall(r"`((?:[^`]|``)+)`", step.sql)
            return False
        self._rig.suspects += step.suspects
        if "``" in step.sql:
            # mariadb-backup doesn't escape names in its BACKUP LOCK, which then shows in the error
            self._rig.suspects += ["BACKUP LOCK", "has a backtick"]
        return True

    def do_all(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.do(step)


def _export(rig: Rig, schema: str, table: str) -> None:
    for end in ("ibd", "cfg"):
        shutil.copy(rig.server.datadir / schema / f"{table}.{end}", rig.ext / f"{table}.{end}.kept")


def _import(rig: Rig, schema: str, table: str) -> None:
    for end in ("ibd", "cfg"):
        shutil.copy(rig.ext / f"{table}.{end}.kept", rig.server.datadir / schema / f"{table}.{end}")


def _move(rig: Rig, schema: str) -> None:
    shutil.move(rig.server.datadir / schema, rig.ext / schema)
    (rig.server.datadir / schema).symlink_to(rig.ext / schema)


def _duplicate(rig: Rig, schema: str, table: str, copy: str) -> None:
    folder = rig.server.datadir / schema
    shutil.copy(folder / f"{table}.ibd", folder / f"{copy}.ibd")
    rig.strays.add(f"{schema}/{copy}.ibd")


def _stray(rig: Rig, schema: str, name: str) -> None:
    """Make a file of a few bytes, or a directory of root's if the name ends in a slash."""
    folder = rig.server.datadir
    if schema:
        encoded = rig.server.query(
            f"SELECT CAST(CONVERT({_text(schema)} USING filename) AS BINARY)"
        )
        folder = folder / encoded[0][0].decode()
    path = folder / name
    if not folder.is_dir():
        raise OSError(f"{folder} does not exist")
    rig.strays.add(
        str((path if schema else folder / name.split("/")[0]).relative_to(rig.server.datadir))
    )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if name.endswith("/"):
        path.mkdir(mode=0o700, exist_ok=True)
    elif not path.exists():
        path.write_bytes(b"not a table\n" * 9)


def _text(value: str) -> str:
    return "_utf8mb4 0x" + value.encode().hex()


_DEEDS: Final[Mapping[str, Callable[..., None]]] = {
    "export": _export,
    "import": _import,
    "move": _move,
    "duplicate": _duplicate,
    "stray": _stray,
}


def started(server: MariaDB) -> str | None:
    """Start a server. Return the end of its log if it doesn't answer, else None."""
    try:
        server.start()
    except StackError as error:
        return str(error)[-1500:]
    return None


@contextmanager
def ended(server: MariaDB) -> Iterator[None]:
    with ExitStack() as end:
        end.callback(server.kill)
        yield
