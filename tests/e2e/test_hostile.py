"""A hostile backup with valid keys leaves nothing outside, runs nothing, and is removed.

It is restored by the agent in this process, by a task, and by the rescue reader with the commands
of its page.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from agent import wiring
from agent.config.reading import load
from agent.errors import AgentError
from agent.model import RestoreTask
from agent.operations.restore.chain import RestoreOperation
from agent.pipeline.meter import Meter
from agent.stop import Stop
from tests.conftest import need
from tests.e2e.hostile import (
    Case,
    Original,
    Planted,
    cases,
    original,
    plant,
    plugin,
    seen,
    store_backup,
)
from tests.e2e.reports import Reports
from tests.golden import make, rescue
from tests.golden.places import MASTER
from tests.golden.test_golden import checksums_of, configure
from tests.stack.agent import Agent


class Place(NamedTuple):
    """A folder that every user may enter, with a store of hostile backups.

    The canaries are in `outside`.
    """

    folder: Path
    config: Path
    original: Original
    cases: dict[str, Case]
    ids: dict[str, str]
    planted: Planted

    @property
    def outside(self) -> Path:
        return self.folder / "outside"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    need("mariadb-backup", "mbstream", "mariadbd")
    folder = Path(tempfile.mkdtemp(prefix="backup-agent-hostile-"))
    folder.chmod(0o755)
    (folder / "agent").mkdir()
    config = configure(folder / "agent", folder / "store")
    (folder / "original").mkdir()
    made = original(folder / "original")
    shutil.rmtree(folder / "original")
    outside = folder / "outside"
    planted = plant(outside)
    streams = cases(made.stream, outside, plugin(folder, outside / "loaded"))
    parts = wiring.restore_resources(load(config))
    parts.store.open()
    ids = {
        name: store_backup(parts.store, parts.keyring, made._replace(stream=case.stream)).id
        for name, case in streams.items()
    }
    parts.store.close()
    yield Place(folder, config, made, streams, ids, planted)
    shutil.rmtree(folder)


NAMES = sorted(cases(b"", Path("/outside")))
# One case of each kind. The reader's own tests cover all attacks by the stream.
BY_HAND = (
    *("rename above", "remove", "plugin of its own", "plugin by path", "included options"),
    *("system tablespace outside", "link in place of the table", "renamed at prepare"),
)


def unharmed(place: Place) -> None:
    assert seen(place.outside) == place.planted
    assert {path.name for path in place.folder.iterdir()} <= {
        *("agent", "outside", "store", "target", "guide", "plugin.c", "plugin.so")
    }


def restored(place: Place, name: str) -> AgentError | None:
    """Restore a case into `target`, and return the error of the restore or None."""
    parts = wiring.restore_resources(load(place.config))
    operation = RestoreOperation(parts, meter=Meter(), stop=Stop())
    try:
        operation.run(place.ids[name], place.folder / "target")
    except AgentError as error:
        return error
    finally:
        parts.store.close()
    return None


@pytest.mark.parametrize("name", NAMES)
def test_the_agent_refuses_it_or_restores_it_inside(place: Place, name: str) -> None:
    target, expected = place.folder / "target", place.cases[name].errors
    error = restored(place, name)
    left = target.exists()
    links = list(target.rglob("*.isl"))
    shutil.rmtree(target, ignore_errors=True)
    unharmed(place)
    assert isinstance(error, expected) if expected else error is None, error
    assert left is (not expected)
    assert links == []


@pytest.mark.parametrize("name", BY_HAND)
def test_the_page_and_its_reader_lay_it_down_inside(place: Place, name: str) -> None:
    folder = place.folder / "guide"
    folder.mkdir()
    settings: dict[str, str | Path] = {
        "FOLDER": place.folder / "store",
        "CONTAINER": make.CONTAINER,
        "ID": place.ids[name],
        "KEY": MASTER,
    }
    steps = ["begin", "folder", "chain", "verify", "extract", "disarm", "prepare"]
    done = rescue.follow(steps, folder, settings)
    shutil.rmtree(folder)
    unharmed(place)
    assert "Traceback" not in done.stderr
    if place.cases[name].in_stream:
        assert done.returncode != 0
        assert "FAILED" in done.stderr


def test_what_pointed_outside_opens_inside(place: Place) -> None:
    """The table has a DATA DIRECTORY. Its file is in the backup, and its link is removed."""
    target = place.folder / "target"
    assert restored(place, "link") is None
    server = place.folder / "agent" / "server"
    assert "golden.numbers" in checksums_of(target, server)
    shutil.rmtree(target)
    unharmed(place)


def test_by_task_nothing_is_left(place: Place, agent: Agent) -> None:
    objects = wiring.restore_resources(load(agent.config))
    objects.store.open()
    with Reports(agent) as reports:
        for name in ("rename above", "another plugin"):
            hostile = place.original._replace(stream=place.cases[name].stream)
            record = store_backup(objects.store, objects.keyring, hostile)
            target = agent.folder / "restore" / "hostile"
            task = RestoreTask(task_id=str(uuid4()), backup_id=record.id, target=str(target))
            agent.send(task)
            failed = reports.wait_for(task.task_id, "FAILED")
            assert failed["error"]["code"] == "content_refused", failed
            assert not target.exists()
    objects.store.close()
    unharmed(place)
