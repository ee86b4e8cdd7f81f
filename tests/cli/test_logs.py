"""A log line has one form, its ids, and no power over a terminal or another line."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from hypothesis import example, given, strategies as st

from agent.cli import logs
from agent.cli.log_lines import JsonLines, TextLines, journal_fields
from agent.cli.progress import ProgressBar
from agent.machine.journald import encode
from agent.model import Progress, printable
from agent.threads import Subject, about_task
from tests.stack.journal import Journal, fields_of
from tests.stack.process import poll

TASK: Final = "6f6c1a9e-3f0b-4d53-9c0e-4f5d6a0f2b11"
BACKUP: Final = "af5c1a9e-3f0b-4d53-9c0e-4f5d6a0f2b22"
NO_CONFIGURATION: Final = ("--config", "/nonexistent/agent.toml")
HEAD: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) (\S+): (.*)")
IDS: Final = re.compile(r"(.*) \[(?:task=(\S+))? ?(?:backup=(\S+))?\]", re.DOTALL)
HOSTILE: Final = (
    f'x\n2026-12-01 00:00:00,000 ERROR agent.tasks: forged [task={TASK}]\r\x1b[2J\x9b1m\x00"\\'
)
# every character, also the lone surrogates that stand for bytes of a name that is no UTF-8
ANY_TEXT: Final = st.text(st.characters())
SUBJECTS: Final = st.sampled_from([Subject(), Subject(TASK), Subject("", BACKUP), (TASK, BACKUP)])


def record(message: str, *values: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("agent.x", logging.ERROR, __file__, 7, message, values, info)


def raised(text: str) -> BaseException:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


# --- each form can be parsed back, whatever is logged ------------------------------------------


def parse_text(line: str) -> tuple[str, str, str, list[str]]:
    """Return the message, the ids of the task and of the backup, and the lines of a traceback."""
    first, *more = line.split("\n")
    head = HEAD.fullmatch(first)
    assert head
    assert (head[1], head[2]) == ("ERROR", "agent.x")
    assert all(one.startswith("  ") for one in more)
    if not head[3].endswith("]"):
        return head[3], "", "", more
    ids = IDS.fullmatch(head[3])
    assert ids
    return ids[1], ids[2] or "", ids[3] or "", more


@given(ANY_TEXT, SUBJECTS, ANY_TEXT)
@example(HOSTILE, Subject(), HOSTILE)
@example(f"a [task={TASK}]", Subject(), "")
@example("a []", Subject("", BACKUP), "")
def test_text(message: str, about: Subject, fault: str) -> None:
    with about_task(*about):
        line = TextLines().format(record("%s", message, error=raised(fault)))
    said, task_id, backup_id, more = parse_text(line)
    assert (said, task_id, backup_id) == (printable(message), *about)
    assert more[0] == "  Traceback (most recent call last):"
    assert all(one.isprintable() for one in line.split("\n"))
    line.encode()


@given(ANY_TEXT, SUBJECTS, ANY_TEXT)
@example(HOSTILE, Subject(), HOSTILE)
def test_json(message: str, about: Subject, fault: str) -> None:
    with about_task(*about):
        line = JsonLines().format(record("%s", message, error=raised(fault)))
    assert line.isascii()
    assert line.isprintable()
    pairs = json.loads(line, object_pairs_hook=list)
    found = dict(pairs)
    assert len(found) == len(pairs)
    assert found["message"] == printable(message)
    assert (found["task_id"], found["backup_id"]) == tuple(one or None for one in about)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["time"])
    assert (found["level"], found["logger"]) == ("ERROR", "agent.x")
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert all(one.isprintable() for one in found["exception"].split("\n"))


@given(ANY_TEXT, SUBJECTS, ANY_TEXT)
@example(HOSTILE, Subject(), HOSTILE)
def test_journal(message: str, about: Subject, fault: str) -> None:
    with about_task(*about):
        listed = list(fields_of(encode(journal_fields(record("%s", message, error=raised(fault))))))
    found = dict(listed)
    assert len(found) == len(listed)
    assert found["MESSAGE"].startswith(printable(message))
    assert found["MESSAGE"].isprintable()
    assert found["EXCEPTION_TEXT"].startswith("Traceback (most recent call last):\n")
    names = ("BACKUP_AGENT_TASK_ID", "BACKUP_AGENT_BACKUP_ID")
    assert tuple(found.get(name, "") for name in names) == tuple(about)
    known = {*names, "MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER", "EXCEPTION_TEXT"}
    assert found.keys() <= known | {"CODE_FILE", "CODE_LINE", "CODE_FUNC"}
    assert (found["PRIORITY"], found["CODE_LINE"]) == ("3", "7")


@pytest.mark.parametrize("text", ["x", "\U0001f600", "\x00", '"\\'])
def test_a_line_is_bounded(text: str) -> None:
    """journald cuts a line of a stream after 48 KiB. A JSON object must not be cut."""
    huge = record("%s", text * 100_000, error=raised((text * 1000 + "\n") * 1000))
    lines = JsonLines().format(huge)
    assert len(lines) < 48 << 10
    found = json.loads(lines)
    assert re.search(r"\.\.\. \(\d+ characters cut\)$", found["message"])
    assert re.match(r"\.\.\. \(\d+ lines cut\)\n", found["exception"])
    assert max(len(one) for one in TextLines().format(huge).split("\n")) < 48 << 10
    assert len(encode(journal_fields(huge))) < 128 << 10


def test_the_end_of_a_traceback_is_kept() -> None:
    text = TextLines().format(record("m", error=raised("line\n" * 100_000 + "the cause")))
    assert text.endswith("\n  the cause")
    assert journal_fields(record("m", error=raised("the cause")))["MESSAGE"] == (
        "m: RuntimeError: the cause"
    )


def test_values_that_do_not_fit_their_text_lose_no_line() -> None:
    assert " ERROR agent.x: %d apples (without its values: " in TextLines().format(
        record("%d apples", "no number")
    )


# --- a process ---------------------------------------------------------------------------------

# A program that logs as `run` does. It takes the form, the noise and the journal's socket.
PROGRAM: Final = """
import logging, sys, threading, warnings
from pathlib import Path
from agent.cli import logs, streams
from agent.config.settings import LogSection
from agent.machine import journald
from agent.threads import about_task
streams.set_up()
logs.catch_strays()
form, level, noise, journald.SOCKET = *sys.argv[1:4], Path(sys.argv[4])
print(logs.set_up(LogSection(format=form, level=level), daemon=True, noise=noise or None))
log = logging.getLogger("agent.trial")
with about_task("TASK", "BACKUP"):
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)("an agent's %s", level)
for library in ("swiftclient", "urllib3", "requests", "pika", "keystoneauth", "other"):
    for level in ("debug", "info"):
        getattr(logging.getLogger(library), level)("a library's %s", level)
def fail():
    raise ValueError("a thread's\\x1b[2J")
thread = threading.Thread(target=fail, name="of the test")
thread.start()
thread.join()
warnings.warn("a library's\\nwarning")
raise LookupError("the process's")
""".replace("TASK", TASK, 1).replace("BACKUP", BACKUP, 1)


def logged(
    tmp_path: Path,
    form: str = "auto",
    level: str = "info",
    noise: str = "",
    *,
    stream: bool = False,
) -> tuple[str, list[str]]:
    """Run PROGRAM. Return the form of its log and its lines on standard error.

    If `stream` is True, standard error seems to lead to the journal.
    """
    log = tmp_path / "log"
    with log.open("wb") as sink:
        found = os.fstat(sink.fileno())
        named = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"} if stream else {}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, form, level, noise, str(tmp_path / "journal")],
            env={**os.environ, **named},
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    return done.stdout.strip(), log.read_text().splitlines()


def test_one_event_a_line_of_text(tmp_path: Path) -> None:
    form, lines = logged(tmp_path)
    assert form == "text"
    events = [line for line in lines if not line.startswith("  ")]
    heads = [HEAD.fullmatch(line) for line in events]
    assert [head and head[3] for head in heads] == [
        *(
            f"an agent's {level} [task={TASK} backup={BACKUP}]"
            for level in ("info", "warning", "error")
        ),
        "the thread of the test failed",
        *[one for head in heads if head and "UserWarning" in (one := head[3])],
        "the program failed because of a defect",
    ]
    assert "  ValueError: a thread's?[2J" in lines
    assert lines[-1] == "  LookupError: the process's"


def test_one_event_a_line_of_json(tmp_path: Path) -> None:
    form, lines = logged(tmp_path, "json", stream=True)
    assert form == "json"
    assert [line[:4] for line in lines] == ["<6>{", "<4>{", *["<3>{"], "<2>{", "<4>{", "<2>{"]
    found = [json.loads(line[3:]) for line in lines]
    assert [one["task_id"] for one in found] == [TASK] * 3 + [None] * 3
    assert [one["backup_id"] for one in found] == [BACKUP] * 3 + [None] * 3
    assert found[3]["exception"].endswith("ValueError: a thread's?[2J")
    assert "a library's?warning" in found[4]["message"]


def test_the_journal_gets_fields(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        form, lines = logged(tmp_path, stream=True)
        last = journal.wait_for("the program failed")
    assert (form, lines) == ("journal", [])
    assert last["EXCEPTION_TEXT"].endswith("\nLookupError: the process's")
    assert [one["PRIORITY"] for one in journal.messages] == ["6", "4", "3", "2", "4", "2"]
    first = journal.messages[0]
    code = {name: first.pop(name) for name in ("CODE_FILE", "CODE_LINE", "CODE_FUNC")}
    assert code["CODE_FUNC"] == "<module>"
    assert first == {
        "MESSAGE": "an agent's info",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "backup-agent",
        "LOGGER": "agent.trial",
        "BACKUP_AGENT_TASK_ID": TASK,
        "BACKUP_AGENT_BACKUP_ID": BACKUP,
    }


@pytest.mark.parametrize("form", ["auto", "journal"])
def test_without_a_journal_no_line_is_lost(tmp_path: Path, form: str) -> None:
    said, lines = logged(tmp_path, form, stream=True)
    assert said == ("journal" if form == "journal" else "text")
    assert [line[:3] for line in lines if HEAD.fullmatch(line[3:])] == [
        *("<6>", "<4>", "<3>", "<2>", "<4>", "<2>")
    ]
    assert f"[task={TASK} backup={BACKUP}]" in lines[0]
    assert all(re.match(r"<\d>", line) for line in lines)


def test_a_stream_that_is_not_the_journal(tmp_path: Path) -> None:
    """A shell that a unit started has the variable too, and its commands may write to a file."""
    with Journal(tmp_path / "journal") as journal:
        assert logged(tmp_path)[0] == "text"
    assert journal.messages == []


@pytest.mark.parametrize(
    ("level", "noise", "count"),
    [
        ("info", "quiet", 1),
        ("error", "", 1),
        ("warning", "", 2),
        ("error", "verbose", 4),
        ("debug", "", 4),
    ],
)
def test_levels(tmp_path: Path, level: str, noise: str, count: int) -> None:
    text = "\n".join(logged(tmp_path, "text", level, noise)[1])
    assert text.count("an agent's") == count
    assert "a library's debug" not in text
    assert "a library's info" not in text
    assert ("UserWarning" in text) == (count > 1)


# --- commands ----------------------------------------------------------------------------------


def command(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agent", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("place", [0, 1])
def test_quiet_and_verbose_before_and_after_the_verb(tmp_path: Path, place: int) -> None:
    def said(*flags: str) -> str:
        words = ["backup-list", "--store", f"file://{tmp_path}/none"]
        done = command(
            *words[:place], *flags, *words[place:], BACKUP_AGENT_AGENT__STATE_FOLDER=str(tmp_path)
        )
        assert done.returncode == 0
        return done.stderr

    assert "note: no backups found" in said()
    assert said("--quiet") == ""
    assert "note: no backups found" in said("--verbose")


def test_both_are_refused() -> None:
    done = command("--quiet", "--verbose", "backup-list")
    assert done.returncode == 2
    assert "not allowed with argument --quiet" in done.stderr


def test_an_error_is_shown_with_quiet() -> None:
    done = command("--quiet", "backup-list", *NO_CONFIGURATION)
    assert done.returncode == 2
    assert done.stderr.startswith("backup-agent: config_invalid: ")
    assert len(done.stderr.splitlines()) == 2


def test_a_wrong_configuration_is_reported_in_the_form_that_it_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("[log]\nformat = 'json'\n[agent]\nunknown = 1\n")
    done = command("run", "--config", str(path))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    found = json.loads(line)
    assert found["level"] == "ERROR"
    assert found["message"].startswith("config_invalid: the configuration ")
    assert "; what to do: correct that file" in found["message"]
    # a command is for people
    assert command("backup-list", "--config", str(path)).stderr.startswith(
        "backup-agent: config_invalid: "
    )


@pytest.mark.parametrize("text", ["[log]\nformat = 'xml'\n", "log = 3\n", "[log\n"])
def test_a_wrong_section_is_reported_as_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    done = command("run", "--config", str(path))
    assert done.returncode == 2
    assert done.stderr.startswith("backup-agent: config_invalid: ")
    assert "Traceback" not in done.stderr


def on_terminal(tmp_path: Path, *words: str, **environment: str) -> str:
    """Run a command whose standard error is a terminal. Return what the terminal gets."""
    controller, terminal = pty.openpty()
    with open(controller, "rb", buffering=0) as shown, open(terminal, "wb", buffering=0) as stderr:
        subprocess.run(
            [sys.executable, "-m", "agent", *words],
            env={**os.environ, "BACKUP_AGENT_CRASH_AT": "accepted", **environment},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            timeout=60,
            check=False,
        )
        os.set_blocking(controller, False)
        return (shown.read(1 << 20) or b"").decode()


def test_a_terminal_gets_text_from_a_command(tmp_path: Path) -> None:
    form = {"BACKUP_AGENT_LOG__FORMAT": "json"}
    said = on_terminal(tmp_path, "backup-list", *NO_CONFIGURATION, **form)
    assert HEAD.match(said)
    assert "BACKUP_AGENT_CRASH_AT is set" in said
    # `run` obeys the configuration, so that its form can be seen
    first, second = on_terminal(tmp_path, "run", *NO_CONFIGURATION, **form).splitlines()
    assert json.loads(first)["level"] == "CRITICAL"
    assert json.loads(second)["message"].startswith("config_invalid: ")


def test_a_line_stands_above_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    with open(controller, "rb", buffering=0) as shown, open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with ProgressBar("base") as bar:
            bar.show(Progress(raw_bytes=1 << 20, stored_bytes=1, bytes_per_second=1.0))
            logs.ErrorLines(TextLines()).handle(record("a line"))
        os.set_blocking(controller, False)
        parts: list[bytes] = []

        def whole() -> bool:
            # the kernel may pass it on in several parts
            parts.append(shown.read(1 << 20) or b"")
            return b"base: 1.00MB" in b"".join(parts).partition(b"a line")[2]

        poll("the bar stands below the line", whole, 10)
        text = b"".join(parts).decode()
    # what a terminal shows of a line stands behind its last carriage return
    rows = [row.removesuffix("\r").rpartition("\r")[2] for row in text.split("\n")]
    assert "base: 1.00MB" in text
    assert HEAD.fullmatch(rows[0])
    assert rows[1].startswith("base: 1.00MB")
