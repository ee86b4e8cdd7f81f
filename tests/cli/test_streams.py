"""No traceback if a standard stream is full, closed or broken, or after any interrupt."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.cli import log_lines, streams

PROGRAM = [sys.executable, "-m", "agent"]
NO_CONFIGURATION = ("--config", "/nonexistent/agent.toml")
STATE = "BACKUP_AGENT_AGENT__STATE_FOLDER"


def run(*arguments: str, state: Path | None = None, **options: Any) -> tuple[int, str]:
    """Run a command and return its exit status and its standard error."""
    environment = {**os.environ, **({STATE: str(state)} if state else {})}
    ended = subprocess.run(
        [*PROGRAM, *arguments],
        env=environment,
        timeout=60,
        check=False,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options},
    )
    return ended.returncode, (ended.stderr or b"").decode()


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("backup-list", "--store", "file:///nonexistent/here"),
        ("self-test", *NO_CONFIGURATION, "--only", "configuration"),
    ],
)
def test_an_output_that_is_full_or_closed(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        status, said = run(*arguments, state=tmp_path, stdout=full)
    assert status == 1
    assert "output_failed: standard output can't be written: No space left" in said
    assert "Traceback" not in said
    status, said = run(*arguments, state=tmp_path, preexec_fn=closing(1))
    assert status == 1
    assert "output_failed: standard output can't be written: Bad file descriptor" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [("--help",), ("self-test", *NO_CONFIGURATION)])
def test_a_reader_that_leaves(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        status, said = run(*arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (status, said) == (1, "")


def test_standard_error_that_is_full_or_closed() -> None:
    with Path("/dev/full").open("wb") as full:
        assert run("backup-list", *NO_CONFIGURATION, stderr=full) == (2, "")
    assert run("backup-list", *NO_CONFIGURATION, preexec_fn=closing(2)) == (2, "")
    assert run("run", *NO_CONFIGURATION, preexec_fn=closing(0, 1, 2)) == (2, "")


def test_no_file_of_the_agent_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """A key file that is opened as descriptor 1 would get the page for the escrow appended."""
    status, _ = run("keygen", "k", "--folder", str(tmp_path), preexec_fn=closing(0, 1, 2))
    assert status == 1  # the page for the escrow could not be printed
    assert len((tmp_path / "k.key").read_text()) == 45


def test_an_error_is_said_although_its_json_is_not() -> None:
    with Path("/dev/full").open("wb") as full:
        status, said = run("backup-list", "--json", *NO_CONFIGURATION, stdout=full)
    assert status == 1
    assert "config_invalid" in said
    assert "output_failed" in said


@pytest.mark.parametrize("module", ["pydantic", "tqdm"])
def test_an_interrupt_while_modules_are_imported(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise ImportError('went on')\n"
    )
    ended = subprocess.run(
        [*PROGRAM, "backup-list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        # what a shell starts in the background inherits that it is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, b"")


def test_an_interrupt_of_a_verb_is_an_error_in_json(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom agent.cli import listing, main\n"
        "def stop(*_):\n    raise KeyboardInterrupt\n"
        "listing.backup_list = stop\n"
        "sys.exit(main.main(['backup-list', '--json', '--store', 'file:///x']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, STATE: str(tmp_path)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["error"]["code"] == "interrupted"
    assert ended.stderr.startswith(b"backup-agent: interrupted: ")


def logged(tmp_path: Path, *arguments: str, journal: bool) -> list[str]:
    """Run a command and return its lines on standard output and standard error.

    If `journal` is True, both streams seem to be the systemd journal.
    """
    log = tmp_path / "log"
    with log.open("wb") as sink:
        found = os.fstat(sink.fileno())
        inode = found.st_ino if journal else found.st_ino + 1
        stream = {"JOURNAL_STREAM": f"{found.st_dev}:{inode}"}
        subprocess.run(
            [*PROGRAM, *arguments],
            env={
                **os.environ,
                **stream,
                "BACKUP_AGENT_CRASH_AT": "accepted",
                "BACKUP_AGENT_LOG__FORMAT": "text",
            },
            stdout=sink,
            stderr=sink,
            timeout=60,
            check=False,
        )
    return log.read_text().splitlines()


def test_the_journal_is_told_priorities(tmp_path: Path) -> None:
    lines = logged(tmp_path, "run", *NO_CONFIGURATION, journal=True)
    assert [line[:3] for line in lines] == ["<2>", "<3>", "<3>"]
    assert "config_invalid" in lines[1]
    plain = logged(tmp_path, "run", *NO_CONFIGURATION, journal=False)
    assert len(plain) == len(lines)
    assert not any(line.startswith("<") for line in plain)
    found = logged(tmp_path, "self-test", *NO_CONFIGURATION, journal=True)
    assert [line for line in found if "FAIL" in line and not line.startswith("<3>")] == []
    assert any(line.startswith("<3>FAIL") for line in found)
    assert any(line.startswith("<6>SKIP") for line in found)


def test_a_tracebacks_lines_have_a_priority_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as sink:
        found = os.fstat(sink.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert streams.priority(logging.ERROR, sink.fileno()) == "<3>"
        assert streams.priority(logging.INFO, sink.fileno()) == "<6>"
    monkeypatch.setattr(streams, "priority", lambda level, number=2: f"<{level}>")
    try:
        raise ValueError("two\nlines \x1b[2J")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "m", None, sys.exc_info())
    lines = log_lines.TextLines().format(record).splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<40>") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("<40>  ") for line in lines[1:])


def test_a_full_pipe_that_does_not_block_ends_no_program(tmp_path: Path) -> None:
    """Another program with the same pipe or terminal may have set O_NONBLOCK."""
    script = (
        "import logging\n"
        "from agent.cli import logs, streams\n"
        "from agent.config.settings import LogSection\n"
        "streams.set_up()\n"
        "logs.set_up(LogSection(format='{form}'), daemon=True, noise=None)\n"
        "for number in range(3000):\n"
        "    logging.getLogger('agent.x').info('line %d of many', number)\n"
        "print('done')\n"
    )
    for form in ("text", "json"):
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        argv = [sys.executable, "-c", script.format(form=form)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=False)
        os.close(reader)
        os.close(writer)
        assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_configuration_that_can_not_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    for verb in ("run", "backup-list"):
        status, said = run("--config", str(path), verb)
        assert status == 2
        assert "config_invalid" in said
        assert "File name too long" in said
        assert "Traceback" not in said
