"""Secrets stay in their files and in the memory of the programs that use them.

A daemon that logs everything at DEBUG makes backups, and fails some in ways that hand its own
secrets back to it, while /proc and the state directory are watched. Then all that other users can
see is searched.
"""

import base64
import json
import secrets
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swiftclient.client import get_auth

from agent.config.reading import load
from agent.config.secrets import load_keyring
from agent.model import BackupRequest, CreateTask, Limits, WrappedKey
from tests.broker.probe import probing
from tests.e2e.objects import Objects
from tests.engine.scripts import open_way
from tests.faults.leaks import Sight
from tests.faults.ledger import Ledger
from tests.faults.trial import Bench, Plan, Seen, Trial
from tests.stack.agent import KEY_ID, Agent, Tables, write_private
from tests.stack.process import ServerProcess, poll

LEAST: Final[Mapping[str, int]] = {"secret": 2}
_MIB: Final = 1 << 20
# The program with every logger at DEBUG, whichever level it or its libraries set. While the
# flag file exists, it has a defect whose error shows all the objects that a backup works with.
_VERBOSE: Final = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
logging.Logger.setLevel = lambda *_: None
import agent.operations.backup.create as backup
observe = backup.observe_instance
def spoilt(*given):
    if os.path.exists({flag!r}):
        raise RuntimeError(f"a defect: {{given!r}} {{vars(given[0])!r}}")
    return observe(*given)
backup.observe_instance = spoilt
from agent.cli.main import main
sys.exit(main())
"""
# This notes a program's arguments and environment. A look from outside comes too late, because
# mariadb-backup itself wipes the password from its arguments a moment later.
_WITNESS: Final = """#!/bin/sh
cat /proc/$$/cmdline /proc/$$/environ >> "{log}"
exec {program} "$@"
"""


def trials(_plan: Plan) -> Iterator[Trial]:
    """Yield the same trials in both forms."""
    yield Trial(
        "secret", "at-work", "backups made and failed at DEBUG, all output searched", at_work
    )
    yield Trial(
        "secret", "refused", "wrong passwords for each server, all output searched", refused
    )


# --- right secrets ---------------------------------------------------------------------------


@dataclass
class Stage:
    """A verbose daemon, the secrets given to it, and everything that was seen of it."""

    agent: Agent
    daemon: ServerProcess
    ledger: Ledger
    sight: Sight
    planted: dict[str, bytes]
    flag: Path

    def ask(self, name: str, token: str = "") -> str:
        """Send a create task, which may carry a token. Return its id."""
        task = CreateTask(
            task_id=str(uuid.uuid4()),
            backup=BackupRequest(id=str(uuid.uuid4()), name=name),
            limits=Limits(bytes_per_second=64 * _MIB),
        )
        body: dict[str, Any] = task.model_dump(mode="json", exclude_none=True)
        if token:
            body["store"] = {"storage_url": self.agent.swift.storage_url, "token": token}
        with probing(self.agent.rabbitmq) as probe:
            probe.send(self.agent.instance_id, json.dumps(body).encode())
        return task.task_id

    def end(self, task_id: str) -> dict[str, Any]:
        """Watch the daemon until a task's final report arrives, and return the report."""

        def ended() -> bool:
            self.sight.watch(self.agent, self.daemon.pid)
            self.ledger.pump()
            return self.ledger.final(task_id) is not None

        poll(f"task {task_id} has ended", ended, 60)
        end = self.ledger.final(task_id)
        assert end is not None
        return end


def at_work(bench: Bench) -> Seen:
    """Run backups (one with its own token), a store that echoes, a defect, and each command."""
    with _stage(bench) as stage:
        good = stage.end(stage.ask("watched"))
        assert good["status"] == "DONE", good
        token = get_auth(bench.swift.auth_url, bench.swift.user, bench.swift.key)[1]
        own_token = stage.end(stage.ask("with a token", token))
        assert own_token["status"] == "DONE", own_token
        stage.planted["token"] = token.encode()
        codes = _provoke(bench, stage)
        _use_commands(stage, good["backup"]["id"])
        stage.daemon.stop()
        _collect(stage)
        stage.planted["data key"] = _data_key(stage.agent, good["backup"]["id"])
        leaks = stage.sight.leaks(stage.planted)
        assert not leaks, leaks
        open_files = stage.sight.open_to_others()
        assert not open_files, open_files
        _was_watched(stage)
        return Seen(
            f"nothing of {', '.join(stage.planted)} in {len(stage.sight.texts)} places; "
            f"provoked {', '.join(codes)}"
        )


def _provoke(bench: Bench, stage: Stage) -> list[str]:
    """Cause failures that hand a secret back. Return their codes."""
    echo = f"refused: key {bench.swift.key}, token AUTH_tkfeedbeef"
    segment = {"method": "PUT", "match": "_segments/.*/0000", "times": 99, "body": echo}
    log_in = {"match": "/auth/v1.0", "times": 99, "status": 401, "body": echo}
    codes = []
    for rules in ([{**segment, "status": 403}], [{**segment, "status": 401}, log_in]):
        bench.swift.inject(rules)
        codes.append(_failed(stage, stage.ask("refused by the store")))
        bench.swift.clear_faults()
    codes.append(_failed(stage, stage.ask("an unknown token", "AUTH_tk" + secrets.token_hex(16))))
    stage.flag.touch()
    codes.append(_failed(stage, stage.ask("a defect")))
    stage.flag.unlink()
    assert "a defect: (BackupResources(" in stage.agent.log.read_text(), "no traceback was provoked"
    return codes


def _failed(stage: Stage, task_id: str) -> str:
    end = stage.end(task_id)
    assert end["status"] == "FAILED", end
    return str(end["error"]["code"])


def _use_commands(stage: Stage, backup_id: str) -> None:
    """Run the operators' commands, and add their output, successful or not."""
    agent = stage.agent
    private = agent.folder / "recovery.pem"
    for arguments in (
        ("self-test", "--json"),
        ("status", "--json"),
        ("backup-show", backup_id, "--json"),
        ("restore", "--local", backup_id, agent.folder / "restored"),
        ("keygen", "--recovery", "offline", "--private", private),
    ):
        done = agent.cli(*arguments)
        stage.sight.add(f"output of {arguments[0]}", (done.stdout + done.stderr).encode())
    lines = private.read_bytes().splitlines()
    stage.planted["recovery key"] = lines[len(lines) // 2]


def _collect(stage: Stage) -> None:
    """Add everything that is left: the store except ciphertext, logs, reports, files."""
    sight, agent = stage.sight, stage.agent
    with closing(Objects(agent)) as objects:
        for container in (objects.container, objects.segments):
            for name in objects.names(container):
                if name.endswith(".json") or "/list-" in name:
                    sight.add(f"object {name}", objects.get(container, name))
    stage.ledger.pump()
    sight.add("reports", json.dumps(stage.ledger.reports).encode())
    sight.add("the daemon's log", agent.log.read_bytes())
    for started in (
        *agent.folder.glob("*.started"),
        *(agent.folder / "restored").glob("*.started"),
    ):
        sight.add(f"start of {started.stem}", started.read_bytes())
    sight.look_at_files(agent)


def _was_watched(stage: Stage) -> None:
    """Check that the search had material: the engine ran, its file of secrets was seen."""
    sight = stage.sight
    assert any(b"mariadb-backup" in text for where, text in sight.all() if "cmdline" in where)
    assert any(b"PATH=" in text for where, text in sight.all() if "environ" in where)
    assert {"start of mariadb-backup", "start of mbstream"} <= sight.texts.keys()
    assert "DEBUG" in stage.agent.log.read_text()
    assert any(b'"COMPLETED"' in text for where, text in sight.all() if where.endswith(".json"))
    assert any(where.endswith("journal.sqlite-wal") for where in sight.texts)
    assert any(stage.planted["database password"] in text for text in sight.option_files)
    assert sight.modes["engine.cnf"] == sight.modes["journal.sqlite"] == 0o600
    assert not list((stage.agent.folder / "state").rglob("engine.cnf"))


@contextmanager
def _stage(bench: Bench) -> Iterator[Stage]:
    with _database_user(bench) as database:
        overrides: Tables = {
            "database": {"user": database.user, "password_file": database.file},
            "store": {"storage_urls": [bench.swift.storage_url], "attempts": 2},
        }
        with bench.agent("secrets", overrides) as agent, Ledger(agent) as ledger:
            agent.overrides["engine"] = {
                "program": _witnessed("mariadb-backup", agent.folder),
                "extractor": _witnessed("mbstream", agent.folder),
            }
            agent.write()
            flag = agent.folder / "defect"
            daemon = _verbose(agent, flag)
            try:
                daemon.wait_ready(lambda: "consuming backup.tasks" in agent.log.read_text(), 30)
                planted = _planted(bench, agent) | {"database password": database.password}
                yield Stage(agent, daemon, ledger, Sight(), planted, flag)
            finally:
                daemon.stop()


def _planted(bench: Bench, agent: Agent) -> dict[str, bytes]:
    master = (agent.folder / "keys" / f"{KEY_ID}.key").read_text().strip()
    return {
        "store key": bench.swift.key.encode(),
        "broker password": bench.rabbitmq.password.encode(),
        "master key": base64.b64decode(master),
        "master key's text": master.encode(),
    }


def _data_key(agent: Agent, backup_id: str) -> bytes:
    with closing(Objects(agent)) as objects:
        wrapped = objects.record(backup_id)["keys"]
    section = load(agent.config).keys
    assert section is not None
    return load_keyring(section).unwrap([WrappedKey(**one) for one in wrapped])


# --- wrong secrets ---------------------------------------------------------------------------


def refused(bench: Bench) -> Seen:
    """Let each server refuse a wrong secret, and check that no output shows a secret."""
    with _database_user(bench) as database, bench.agent("refused") as agent:
        wrong = {name: f"Wr#ng-{secrets.token_urlsafe(18)}" for name in ("db", "store", "broker")}
        agent.overrides = {
            "database": {"user": database.user, "password_file": agent.folder / "wrong-password"}
        }
        agent.write()
        for file, name in (("wrong-password", "db"), ("store-key", "store")):
            write_private(agent.folder / file, wrong[name])
        write_private(agent.folder / "broker-password", wrong["broker"])
        sight, codes = _refusals(bench, agent)
        planted = {name: text.encode() for name, text in wrong.items()} | _planted(bench, agent)
        planted["database password"] = database.password
        leaks = sight.leaks(planted)
        assert not leaks, leaks
        assert codes >= {"broker_denied", "login_denied", "database_denied"}, codes
        return Seen(f"{', '.join(sorted(codes))}; nothing of {', '.join(planted)} is shown")


def _refusals(bench: Bench, agent: Agent) -> tuple[Sight, set[str]]:
    """Run every way of being refused. Return the output seen and the errors' codes."""
    sight = Sight()
    daemon = _verbose(agent, agent.folder / "no-defect")
    try:
        daemon.wait_ready(lambda: "broker_denied" in agent.log.read_text(), 30)
        sight.watch(agent, daemon.pid)
    finally:
        daemon.stop()
    create = ("backup-create", agent.instance_id, "x")
    outputs = [agent.log.read_text()]
    for arguments in (("self-test", "--json"), create, (*create, "--local"), ("backup-list",)):
        outputs.append(_run(agent, *arguments))
    # with the right key, the store lets the backup continue to the database
    write_private(agent.folder / "store-key", bench.swift.key)
    outputs.append(_run(agent, *create, "--local"))
    for number, output in enumerate(outputs):
        sight.add(f"output {number}", output.encode())
    sight.look_at_files(agent)
    known = ("broker_denied", "login_denied", "database_denied")
    return sight, {code for code in known if any(code in output for output in outputs)}


def _run(agent: Agent, *arguments: str) -> str:
    """Run a verbose command and return all its output."""
    done = subprocess.run(
        [*_argv(agent, agent.folder / "no-defect"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


# --- small things ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Account:
    user: str
    file: Path
    password: bytes


@contextmanager
def _database_user(bench: Bench) -> Iterator[_Account]:
    """Create an account with the agent's rights and a password used nowhere else."""
    password = f"Db#{secrets.token_urlsafe(18)}"
    user = f"watched_{secrets.token_hex(4)}"
    file = bench.folder / user
    bench.folder.mkdir(parents=True, exist_ok=True)
    write_private(file, password)
    bench.mariadb.query(f"CREATE USER {user}@localhost IDENTIFIED BY '{password}'")
    bench.mariadb.query(
        f"GRANT RELOAD, PROCESS, BINLOG MONITOR, REPLICA MONITOR ON *.* TO {user}@localhost"
    )
    try:
        yield _Account(user, file, password.encode())
    finally:
        bench.mariadb.query(f"DROP USER {user}@localhost")


def _witnessed(program: str, folder: Path) -> Path:
    """Write a script that records its arguments and environment, and then becomes `program`."""
    # an extractor may write only to its target directory: mbstream -x -C FOLDER
    place = "$3" if program == "mbstream" else folder
    script = folder / program
    script.write_text(_WITNESS.format(log=f"{place}/{program}.started", program=program))
    script.chmod(0o755)
    open_way(script)
    return script


def _argv(agent: Agent, flag: Path) -> list[str]:
    return [sys.executable, "-c", _VERBOSE.format(flag=str(flag)), "--config", str(agent.config)]


def _verbose(agent: Agent, flag: Path) -> ServerProcess:
    return ServerProcess([*_argv(agent, flag), "run"], agent.log)
