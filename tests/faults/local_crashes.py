"""`backup-create --local` into a directory, killed at a named place, and another one after it."""

import json
import signal
import uuid
from typing import Final, NamedTuple

from agent.crash_points import VARIABLE
from tests.faults.holdings import in_folder
from tests.faults.rig import SEGMENTS, Rig, change
from tests.stack.agent import Agent, Tables
from tests.stack.process import poll


class LocalPlace(NamedTuple):
    """A place at which the command is killed, and the status that the next one gives its record."""

    at: str
    status: str


_CREATE: Final = ("backup-create", "--local")
LOCAL_PLACES: Final = (
    LocalPlace("record-begun", "FAILED"),
    LocalPlace("segment-stored:3", "FAILED"),
    LocalPlace("record-journalled", "COMPLETED"),
    LocalPlace("object-stored", "COMPLETED"),
    LocalPlace("reported", "COMPLETED"),
)


def killed_and_repeated(rig: Rig, place: LocalPlace) -> str:
    """Kill a full backup there, then check the full and the incremental backup that follow."""
    agent = _folder_agent(rig)
    change(rig.mariadb)
    died = agent.cli(*_CREATE, "killed", environment={VARIABLE: place.at})
    assert died.returncode == -signal.SIGKILL, died.stderr
    [cut_off] = in_folder(agent.folder / "backups").records()
    following = _created(agent, "next")
    checksums = change(rig.mariadb)
    parent = cut_off if place.status == "COMPLETED" else following
    child = _created(agent, "child", "--parent", parent)
    records = in_folder(agent.folder / "backups").check()
    assert set(records) == {cut_off, following, child}
    assert records[cut_off]["status"] == place.status, f"its status is {records[cut_off]['status']}"
    target = agent.folder / "restore" / "back"
    done = agent.cli("restore", "--local", child, target)
    assert done.returncode == 0, done.stderr
    assert rig.restored(target) == checksums, "the restored content differs"
    poll("no process of the killed command is left", lambda: not rig.leftovers(agent.folder), 10)
    return f"its record is {place.status}, a full and a child follow and are restored"


def _created(agent: Agent, *arguments: str) -> str:
    """Return the id of a backup that must succeed."""
    done = agent.cli(*_CREATE, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def _folder_agent(rig: Rig) -> Agent:
    folder = rig.folder / f"local-{uuid.uuid4().hex[:8]}"
    store: dict[str, object] = {"url": f"file://{folder}/backups", "user": None, "key_file": None}
    overrides: Tables = {"store": store, "pipeline": {"segment_bytes": SEGMENTS}}
    agent = Agent(folder, rig.agent.rabbitmq, rig.swift, rig.mariadb, overrides)
    agent.write()
    return agent
