"""Parts of the self-test that inspect the machine and the server, each tested alone."""

import os
import resource
from pathlib import Path

import pytest

from agent.machine import host
from agent.machine.lock import activity_of_holder, only_agent
from agent.selftest.check import Verdict, amount, span
from agent.selftest.configuration import _state_folder
from agent.selftest.database import _grants, _redo_size
from agent.selftest.host import _lacks
from tests.selftest.site import Site, labels


def test_the_memory_limit_of_a_cgroup_counts_what_is_left(tmp_path: Path) -> None:
    inner = tmp_path / "system.slice" / "agent.service"
    inner.mkdir(parents=True)
    for folder, limit, used, cache in ((inner, "1000", 700, 100), (inner.parent, "max", 1, 0)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nslab 1\n")
    assert host._memory_left("/system.slice/agent.service", tmp_path) == [400]
    assert host._memory_left("/system.slice", tmp_path) == []
    assert host._memory_left("/elsewhere", tmp_path) == []


def test_the_machine_says_something() -> None:
    assert host.available_bytes() > 1 << 20
    assert host.open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert host.cpu_flags() & {"fpu", "fp"}
    assert host.clock_synchronised() in (True, False)


def test_flags_of_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(host, "_CPUINFO", info)
    info.write_text("processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd aes pmull\n\n")
    assert host.cpu_flags() == {"fp", "asimd", "aes", "pmull"}
    info.unlink()
    assert host.cpu_flags() == frozenset()


def test_a_lock_that_is_held(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lock"
    assert activity_of_holder(path) is None
    with only_agent(path):
        assert activity_of_holder(path) == ""
        other = tmp_path / "other"
        other.touch()
        assert activity_of_holder(other) is None
    assert activity_of_holder(path) is None


def test_an_agent_that_runs(site: Site) -> None:
    """A running agent keeps its lock. That it runs is no fault."""
    lock = site.agent.folder / "state" / "lock"
    with only_agent(lock):
        results = site.look("host")
    lock.unlink()
    assert labels(results, Verdict.FAIL) == set()
    assert [one.found.split()[0] for one in results if one.name == "agent"] == ["one"]


def test_a_limit_of_open_files_that_is_too_low(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # patched, because a process can't raise a limit again that it has lowered
    monkeypatch.setattr(host, "open_files", lambda: (200, 200))
    results = site.look("host")
    assert labels(results, Verdict.FAIL) == {"host: open files"}
    [said] = [one for one in results if one.name == "open files"]
    assert "LimitNOFILE=" in said.cure


def test_grants_that_can_be_typed() -> None:
    table = "SELECT ON performance_schema.log_status"
    assert _grants(["PROCESS", "SLAVE MONITOR", table], "u") == (
        "GRANT PROCESS, REPLICA MONITOR ON *.* TO 'u'@'localhost'; "
        "GRANT SELECT ON performance_schema.log_status TO 'u'@'localhost';"
    )
    assert _grants([table], "u").startswith("GRANT SELECT ON")


def test_the_redo_log_of_each_server() -> None:
    assert _redo_size({"innodb_log_file_size": "100"}) == (100, "1 file")
    files = {"innodb_log_file_size": "100", "innodb_log_files_in_group": "2"}
    assert _redo_size(files) == (200, "2 files")
    assert _redo_size({**files, "innodb_redo_log_capacity": "300"}) == (300, "one capacity")


def test_words_for_amounts() -> None:
    assert [amount(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
    assert [span(n) for n in (0.25, 90, 600, 7200)] == ["0.2 s", "90.0 s", "10.0 min", "2.0 h"]


def test_folders_that_cannot_be_reached(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        state, root = _state_folder(closed / "state"), _lacks(closed / "root", None, 3.0)
    finally:
        os.seteuid(user)
    assert state.verdict == Verdict.FAIL
    assert "can't be reached: Permission denied" in state.found
    assert root == "it can't be reached"
