"""Tests of sizes, space, cores and priority on the machine of the tests."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given, strategies as st

from agent.errors import ConfigInvalid
from agent.machine import host


@pytest.mark.parametrize(
    ("size", "gib"),
    [(0, 0.01), (1, 0.01), (15 << 20, 0.01), (16 << 20, 0.02), (1 << 30, 1.0), (5 << 29, 2.5)],
)
def test_size_in_gib(size: int, gib: float) -> None:
    assert host.size_gib(size) == gib


@given(st.integers(0, 1 << 60))
def test_size_has_two_decimals(size: int) -> None:
    gib = host.size_gib(size)
    assert gib >= 0.01
    assert gib == round(gib, 2)
    assert gib == 0.01 or abs(gib - size / (1 << 30)) <= 0.0051


def test_a_shared_filesystem_counts_allocated_bytes(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "full").write_bytes(os.urandom(300_000))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "link").symlink_to("/usr")
    found = host.datadir_bytes(tmp_path)
    assert 300_000 <= found < 400_000
    assert abs(found - _du(tmp_path)) <= 8192  # du also counts the directory itself.


def test_what_no_engine_copies_is_told_apart(tmp_path: Path) -> None:
    """No engine copies redo logs, temporary tablespaces and logs.

    Tables with names like theirs are copied.
    """
    left_out = ["ib_logfile0", "ibtmp1", "#ib_16384_0.dblwr", "#innodb_redo/#ib_redo7"]
    left_out += ["binlog.000001", "binlog.index", "relay/r.000007", "slow.log"]
    copied = ["ibdata1", "undo001", "aria_log.00000001", "d/binlog.ibd", "binlog2.000001"]
    copied += ["d/ib_logfile0", "relay/t.ibd", "binlog.000001.ibd"]
    for name in (*left_out, *copied):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(8192))
    logs = [tmp_path / "binlog", tmp_path / "relay/r", tmp_path / "slow.log", Path("/var/log/x")]
    logs += [tmp_path / "gone/x"]
    assert host.uncopied_bytes(tmp_path, logs) == 8192 * len(left_out)


def _du(folder: Path) -> int:
    argv = ["du", "--summarize", "--block-size=1", str(folder)]
    return int(subprocess.run(argv, capture_output=True, check=True).stdout.split()[0])


def test_a_filesystem_of_its_own_counts_as_a_whole() -> None:
    found = host.datadir_bytes(Path("/"))
    facts = os.statvfs("/")
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    # Other processes write to the filesystem in the meantime.
    assert found == pytest.approx(used, rel=0.05)


def test_a_datadir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="none"):
        host.datadir_bytes(tmp_path / "none")


def test_files_that_vanish_count_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stays").write_bytes(bytes(100_000))
    (tmp_path / "goes").write_bytes(bytes(100_000))
    scan = os.scandir

    def scan_and_remove(folder: Path) -> object:
        entries = scan(folder)
        (tmp_path / "goes").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", scan_and_remove)
    assert 100_000 <= host.datadir_bytes(tmp_path) < 200_000


def test_free_space_of_what_is_not_there_yet(tmp_path: Path) -> None:
    facts = os.statvfs(tmp_path)
    free = facts.f_bavail * facts.f_frsize
    assert host.free_bytes(tmp_path / "a" / "b") == pytest.approx(free, rel=0.05)
    assert host.free_bytes(tmp_path) == pytest.approx(free, rel=0.05)


def test_cores_follow_the_affinity() -> None:
    assert 1 <= host.cores() <= len(os.sched_getaffinity(0))
    one = f"{{{min(os.sched_getaffinity(0))}}}"
    code = (
        f"import os; os.sched_setaffinity(0, {one}); "
        "from agent.machine import host; print(host.cores())"
    )
    assert _python(code) == "1"


def test_cores_follow_the_quotas_of_all_cgroups_around(tmp_path: Path) -> None:
    inner = tmp_path / "system.slice" / "agent.service"
    inner.mkdir(parents=True)
    assert host._quotas("/system.slice/agent.service", tmp_path) == []
    (inner / "cpu.max").write_text("max 100000\n")
    assert host._quotas("/system.slice/agent.service", tmp_path) == []
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert host._quotas("/system.slice/agent.service", tmp_path) == [2]
    (inner / "cpu.max").write_text("50000 100000\n")
    assert host._quotas("/system.slice/agent.service", tmp_path) == [1, 2]
    assert host._quotas("/", tmp_path) == []


def test_lower_priority_is_inherited_by_threads_and_children() -> None:
    code = (
        "import os, psutil, subprocess, threading\n"
        "from agent.machine import host\n"
        "host.lower_priority(); host.lower_priority()\n"
        "seen = []\n"
        "look = lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "thread = threading.Thread(target=look)\n"
        "thread.start(); thread.join()\n"
        "child = subprocess.run(['ionice'], capture_output=True, text=True).stdout.strip()\n"
        "print(os.nice(0), seen[0], child)"
    )
    nice = max(10, os.nice(0))
    assert _python(code) == f"{nice} {nice} best-effort: prio 7"


def _python(code: str) -> str:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("localhost", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("192.0.2.1", False),
        ("no-such-host.invalid", False),
        ("a" * 300, False),
        (".", False),
    ],
)
def test_names_of_this_machine(name: str, own: bool) -> None:
    assert host.is_this_machine(name) is own


def test_an_address_of_this_machine() -> None:
    addresses = [
        row.address
        for rows in psutil.net_if_addrs().values()
        for row in rows
        if row.family is socket.AF_INET
    ]
    assert all(host.is_this_machine(address) for address in addresses)
