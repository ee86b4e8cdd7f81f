"""Tests that a start ends the processes that a killed agent left, and no others."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psutil
import pytest

from agent.machine.host import end_processes
from tests.stack.process import poll

VARIABLE = "BACKUP_AGENT_CHILD_OF"
# It ignores SIGTERM and has a child, like a script around an engine.
_STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
Start = Callable[[str | None], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield a function that starts a process with a value of the variable, or without it."""
    with ExitStack() as ends:

        def begin(value: str | None) -> "subprocess.Popen[bytes]":
            environment = {"PATH": os.environ["PATH"]} | ({VARIABLE: value} if value else {})
            child = subprocess.Popen(
                [sys.executable, "-c", _STUBBORN],
                env=environment,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            ends.callback(_end, child)
            return child

        yield begin


def _end(child: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        child.communicate()


def grandchild(child: "subprocess.Popen[bytes]") -> int:
    assert child.stdout is not None
    return int(child.stdout.readline())


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_those_with_exactly_that_mark_are_ended(start: Start) -> None:
    mine, other, longer, bare = (start(one) for one in ("/a/state", "/b", "/a/state/2", None))
    children = {child.pid: grandchild(child) for child in (mine, other, longer, bare)}
    killed = end_processes(VARIABLE, "/a/state", 10)
    numbers = {int(one.rpartition("(")[2].rstrip(")")) for one in killed}
    assert numbers == {mine.pid, children[mine.pid]}
    assert mine.wait(10) == -signal.SIGKILL
    poll("its child has ended, too", lambda: not runs(children[mine.pid]), 10)
    for survivor in (other, longer, bare):
        assert survivor.poll() is None
        assert runs(children[survivor.pid])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts engines as another user")
def test_root_ends_an_engine_that_runs_as_the_datadirs_owner() -> None:
    child = subprocess.Popen(
        ["/bin/sh", "-c", "echo 0; exec sleep 600"],
        env={VARIABLE: "/a/state"},
        stdout=subprocess.PIPE,
        user=65534,
        cwd="/",
    )
    try:
        assert grandchild(child) == 0
        poll("it is sleep", lambda: psutil.Process(child.pid).name() == "sleep", 10)
        assert end_processes(VARIABLE, "/b", 1) == []
        assert end_processes(VARIABLE, "/a/state", 10) == [f"sleep ({child.pid})"]
        assert child.wait(10) == -signal.SIGKILL
    finally:
        child.kill()
        child.communicate()


def test_without_root_another_users_process_is_left_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = start("/a/state")
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert end_processes(VARIABLE, "/a/state", 1) == []
    assert theirs.poll() is None
