"""How long an engine may be silent, and what counts as activity.

The engines are scripts, and a real one.
"""

import os
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.engine.process import Child
from agent.engine.runs import BackupRun
from agent.errors import EngineFailed, EngineKilled, EngineSilent
from tests.engine.scripts import child_of, known, script
from tests.engine.test_runs import SAYS_OK

SILENT = 0.4
WAITS = "time.sleep(60)"


def engine(folder: Path, body: str, silent: float = SILENT) -> MariadbBackup:
    """Return an engine with one script for both of its programs."""
    program = script(folder / "mariadb-backup", body)
    return MariadbBackup(
        MariadbBackupSettings(
            socket=folder / "server.sock",
            user="agent",
            password="",
            program=program,
            extractor=program,
            silent_seconds=silent,
            grace_seconds=0.3,
        )
    )


def read(run: BackupRun) -> int:
    """Read a run's stream to its end, as the data path does. Return its length in bytes."""
    buffer, total = memoryview(bytearray(1 << 20)), 0
    while count := run.read_into(buffer):
        total += count
    return total


@contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


@pytest.mark.parametrize("deaf", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"])
def test_an_engine_that_says_nothing_is_ended(tmp_path: Path, deaf: str) -> None:
    body = f"{deaf}os.write(2, b'the last word\\n')\nos.write(1, b'on')\n{WAITS}"
    with engine(tmp_path, body).start_backup(tmp_path, None) as run:
        assert run.read_into(memoryview(bytearray(2))) == 2
        with takes(SILENT / 2, 5), pytest.raises(EngineSilent, match="the last word") as caught:
            read(run)
        assert f"for {SILENT:g} s" in str(caught.value)
        assert "silent_seconds" in caught.value.hint
    assert not known(child_of(run).pid)
    assert not (tmp_path / "engine.cnf").exists()


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_word_on_either_pipe_is_a_sign_of_life(tmp_path: Path, descriptor: int) -> None:
    words = f"for n in range(12):\n    os.write({descriptor}, b'word\\n')\n    time.sleep(0.1)\n"
    with engine(tmp_path, f"{words}{SAYS_OK}").start_backup(tmp_path, None) as run:
        with takes(2 * SILENT, 20):
            read(run)
        run.finish()


def test_time_in_which_nobody_reads_does_not_count(tmp_path: Path) -> None:
    """A slow store or a limited rate causes this. An engine that can't write stays silent."""
    size = 3 << 20
    body = f"os.write(1, bytes({size}))\n{SAYS_OK}"
    with engine(tmp_path, body, silent=0.2).start_backup(tmp_path, None) as run:
        threading.Event().wait(0.6)
        assert read(run) == size
        run.finish()


def test_an_extractor_that_takes_nothing_is_ended(tmp_path: Path) -> None:
    with (
        engine(tmp_path, WAITS).start_extract(tmp_path) as run,
        takes(SILENT / 2, 5),
        pytest.raises(EngineSilent, match="has read nothing for"),
    ):
        run.write(bytes(8 << 20))
    assert not known(child_of(run).pid)


def test_an_extractor_that_is_slow_gets_all(tmp_path: Path) -> None:
    size = 5 << 20
    reads = "while chunk := os.read(0, 1 << 19):\n    got += len(chunk)\n    time.sleep(0.1)\n"
    body = f"got = 0\n{reads}sys.exit(got != {size})"
    with engine(tmp_path, body).start_extract(tmp_path) as run:
        run.write(memoryview(bytes(size)))
        run.finish()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_foreign_signal_is_named(tmp_path: Path, name: str) -> None:
    dies = f"os.write(2, b'half\\n')\nos.kill(os.getpid(), signal.{name})"
    body = f"signal.signal(signal.SIGINT, signal.SIG_DFL)\n{dies}"
    said = rf"ended by {name}, which the agent did not send.*half"
    ours = engine(tmp_path, body)
    with ours.start_backup(tmp_path, None) as run:
        read(run)
        with pytest.raises(EngineKilled, match=said) as caught:
            run.finish()
    assert "out-of-memory" in caught.value.hint
    with ours.start_extract(tmp_path) as extracting, pytest.raises(EngineKilled, match=said):
        extracting.write(bytes(8 << 20))
    with (
        ours.start_prepare(tmp_path, None, 1 << 26, last=True) as preparing,
        pytest.raises(EngineKilled, match=said),
    ):
        preparing.finish()


def test_a_crash_of_its_own_is_a_failure(tmp_path: Path) -> None:
    body = "os.kill(os.getpid(), signal.SIGSEGV)"
    with engine(tmp_path, body).start_backup(tmp_path, None) as run:
        read(run)
        with pytest.raises(EngineFailed, match="signal 11"):
            run.finish()


def test_a_stopped_engine_is_ended(tmp_path: Path) -> None:
    body = f"os.write(1, b'on')\nos.kill(os.getpid(), signal.SIGSTOP)\n{WAITS}"
    with (
        engine(tmp_path, body).start_backup(tmp_path, None) as run,
        pytest.raises(EngineSilent, match="last log lines: none"),
    ):
        read(run)
    assert not known(child_of(run).pid)


def test_waiting_costs_little(tmp_path: Path) -> None:
    """The data path waits once for each read of up to a MiB."""
    with Child(
        [script(tmp_path / "full", f"os.write(1, bytes(10))\n{WAITS}")], setting="", stdout=True
    ) as child:
        child.wait_ready(child.stdout, select.POLLIN, 20)
        began = time.process_time()
        for _ in range(1000):
            child.wait_ready(child.stdout, select.POLLIN, 20)
        assert time.process_time() - began < 0.2
        assert os.read(child.stdout.fileno(), 20) == bytes(10)
