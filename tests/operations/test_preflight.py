"""The layout of a run.

Segments are so large that one backup in the store may have them all.
"""

from pathlib import Path
from typing import cast

import pytest

from agent.database.server import Database, DatabaseSettings, ServerInfo
from agent.engine.choice import EngineVersion
from agent.engine.protocol import Engine
from agent.errors import ConfigInvalid, StoreRejected
from agent.machine.host import datadir_bytes
from agent.model import Lineage
from agent.operations.backup.preflight import InstanceState, copied_bytes, plan_data_path
from agent.operations.resources import PathSettings
from agent.pipeline.buffers import Plan
from agent.store.protocol import StoreLimits
from tests.engine.test_mariadb import backup, engine_of
from tests.stack.mariadb import AGENT_PASSWORD, MariaDB

MIB, GIB = 1 << 20, 1 << 30
NESTED = StoreLimits(1000, 5 * GIB, nesting=True)
FLAT = StoreLimits(1000, 5 * GIB, nesting=False)


def planned(
    limits: StoreLimits, datadir: int, *, memory: int = 128 * MIB, segment: int = 16 * MIB
) -> Plan:
    path = PathSettings(
        memory_bytes=memory, segment_bytes=segment, connections=4, cores=64, level=1
    )
    server = ServerInfo("mariadb", "10.11.6-MariaDB", None, Path("/data"))
    chosen = EngineVersion(cast(Engine, None), "10.11.6-MariaDB")
    found = InstanceState(server, 1, Lineage(inode=1, birth=1), datadir, chosen)
    return plan_data_path(path, limits, found, None)


@pytest.mark.parametrize("limits", [NESTED, FLAT])
def test_a_small_database_has_segments_as_configured(limits: StoreLimits) -> None:
    assert planned(limits, 12 * GIB).segment_bytes == 16 * MIB


def test_without_nesting_segments_grow_with_the_datadir() -> None:
    plan = planned(FLAT, 40 * GIB)
    assert plan.segment_bytes > 16 * MIB
    # a quarter more than the datadir fits
    assert 1000 * plan.segment_bytes >= 50 * GIB > 1000 * (plan.segment_bytes - MIB)
    assert plan.memory_bytes <= 128 * MIB
    assert planned(NESTED, 40 * GIB).segment_bytes == 16 * MIB


def test_even_nested_manifests_have_an_end() -> None:
    assert planned(NESTED, 10**6 * MIB, segment=MIB).segment_bytes == 2 * MIB


def test_segments_that_memory_does_not_hold_are_refused() -> None:
    with pytest.raises(StoreRejected, match="has at most 1000 segments") as raised:
        planned(FLAT, 100 * GIB)
    assert "memory_bytes" in raised.value.hint
    wanted = int(raised.value.hint.split()[-3])
    assert planned(FLAT, 100 * GIB, memory=wanted).segment_bytes >= 125 * MIB


def test_segments_that_the_store_does_not_take_are_refused() -> None:
    with pytest.raises(StoreRejected, match=rf"at most {8 * MIB} bytes") as raised:
        planned(NESTED._replace(object_bytes=8 * MIB), GIB)
    assert raised.value.hint == "lower [pipeline] segment_bytes"
    with pytest.raises(StoreRejected, match=rf"at most {5 * GIB} bytes"):
        planned(FLAT, 5 * 10**12, memory=1 << 40)


def test_a_configuration_that_can_not_work_is_said_to_be_one() -> None:
    with pytest.raises(ConfigInvalid, match="memory_bytes"):
        planned(NESTED, GIB, memory=16 * MIB)


def test_how_much_is_copied_is_known_before(mariadb: MariaDB, tmp_path: Path) -> None:
    """The redo log of 128 MiB doesn't count.

    When it was counted, the percentage and the time left were wrong until the end.
    """
    database = Database(DatabaseSettings(mariadb.socket, mariadb.agent_user, AGENT_PASSWORD))
    whole = datadir_bytes(mariadb.datadir)
    expected = copied_bytes(database, mariadb.datadir, whole)
    backup(engine_of(mariadb), tmp_path / "stream")
    size = (tmp_path / "stream").stat().st_size
    assert whole > 1.3 * size
    assert expected == pytest.approx(size, rel=0.1)
