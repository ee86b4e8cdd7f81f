"""Exit statuses, and errors that name the failure, its cause and its fix."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from agent.cli import cancel, remote
from agent.cli.log_lines import TextLines
from agent.cli.main import main
from agent.config import reading
from agent.model import CancelTask

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
LEAST = f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "t"\n'


@pytest.fixture(autouse=True)
def logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(LEAST)
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: command"),
        (["backup-destroy"], "invalid choice: 'backup-destroy'"),
        (["backup-show"], "required: backup"),
        (["backup-show", "42"], "'42' is not a UUID"),
        (["backup-show", INSTANCE.upper()], "is not a UUID"),
        (["backup-show", f"../{INSTANCE}"], "is not a UUID"),
        (["backup-create", "db1", "base"], "'db1' is not a UUID"),
        (["backup-create", INSTANCE], "required: name"),
        (["backup-create", INSTANCE, "inc", "--parent", "base"], "'base' is not a UUID"),
        (["backup-delete"], "required: backup"),
        (["backup-delete", "base"], "'base' is not a UUID"),
        (["backup-delete", INSTANCE, "--instance", "here"], "'here' is not a UUID"),
        (["restore", INSTANCE], "required: target"),
        (["restore", INSTANCE, "/x", "--instance", "here"], "'here' is not a UUID"),
        (["backup-list", "--jsonn"], "unrecognized arguments: --jsonn"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], config: Path, arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(config), *arguments])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert "usage: backup-agent" in shown.err
    assert shown.out == ""


def _failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that has a wrong configuration, and return its standard error.

    The first line says what failed and why, the second line says how to fix it.
    """
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    what, todo = shown.err.splitlines()
    assert what.startswith(("backup-agent: config_invalid: ", "backup-agent: key_unusable: "))
    assert todo.startswith("  what to do: ")
    assert len(todo) > len("  what to do: ")
    return shown.err


@pytest.mark.parametrize("verb", [("backup-list",), ("run",), ("backup-show", INSTANCE)])
def test_a_missing_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: tuple[str, ...]
) -> None:
    path = tmp_path / "none.toml"
    said = _failed(capsys, "--config", str(path), *verb)
    assert f"{path} can't be read: No such file" in said
    assert "--config" in said


def test_a_stranger_is_told_how_to_begin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usual = tmp_path / "etc" / "agent.toml"
    monkeypatch.setattr(reading, "DEFAULT_PATH", usual)
    said = _failed(capsys, "--config", str(usual), "backup-list")
    assert "make it (the README has an example)" in said
    assert "--store file:///FOLDER" in said


def test_an_id_that_is_none_is_told_plainly(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    config.write_text(LEAST.replace(INSTANCE, "db1"))
    said = _failed(capsys, "--config", str(config), "status")
    assert "[agent] instance_id: not a UUID in its canonical lower-case form" in said


def test_a_broker_that_is_away_is_not_the_end(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    config.write_text(LEAST + '[broker]\nurl = "amqp://x@127.0.0.1:1/"\n')
    for verb in (("backup-create", INSTANCE, "b"), ("backup-delete", INSTANCE)):
        assert main(["--config", str(config), *verb, "--json"]) == 1
        shown = capsys.readouterr()
        assert json.loads(shown.out)["error"]["code"] == "broker_unreachable"
        assert "on the machine itself with --local" in shown.err
    assert main(["--config", str(config), "cancel", INSTANCE]) == 1
    assert "--local" not in capsys.readouterr().err


def test_wrong_usage_is_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["backup-show", "42", "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage_wrong"
    assert "'42' is not a UUID" in error["message"]
    assert main(["backup-list", "--store", "here", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage_wrong"


def test_a_wrong_configuration(
    capsys: pytest.CaptureFixture[str], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_AGENT_PIPELINE__LEVEL", "11")
    assert "[pipeline] level: " in _failed(capsys, "--config", str(config), "backup-list")


@pytest.mark.parametrize(
    ("verb", "section"),
    [
        (("backup-list",), "store"),
        (("backup-show", INSTANCE), "store"),
        (("backup-create", INSTANCE, "base"), "broker"),
        (("restore", INSTANCE, "/srv/x"), "broker"),
        (("restore", INSTANCE, "/srv/x", "--local"), "keys"),
    ],
)
def test_a_section_that_the_verb_needs_is_missing(
    capsys: pytest.CaptureFixture[str], config: Path, verb: tuple[str, ...], section: str
) -> None:
    said = _failed(capsys, "--config", str(config), *verb)
    assert f"no section [{section}]" in said
    # `run` has no --local, so the hint names the verbs that have it
    named = "backup-create, restore and backup-delete don't need it" in said
    assert named is (section == "broker")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("",), "the name"),
        (("new\nline",), "control character"),
        (("\x1b[2J",), "control character"),
        (("n" * 256,), "at most 255"),
        (("bad\udcff",), "the name"),
        (("x", "--description", "d" * 1025), "the description"),
    ],
)
def test_a_backup_that_cannot_be_asked_for(
    capsys: pytest.CaptureFixture[str], config: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert main(["--config", str(config), "backup-create", INSTANCE, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("backup-agent: usage_wrong: ")
    assert says in shown.err
    assert "\x1b" not in shown.err
    assert len(shown.err.splitlines()) == 2


def test_the_configuration_may_be_named_behind_the_verb(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "behind.toml"
    assert str(path) in _failed(capsys, "backup-list", "--config", str(path))


def test_what_a_stranger_wrote_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _failed(capsys, "--config", f"{tmp_path}/\x1b[2J\x9b1m\n\u202e", "backup-list")
    formatter = TextLines()
    wrote = logging.LogRecord("x", 40, "", 1, "a\n2026 INFO b\x1b[2J\x9b1m", None, None)
    assert formatter.format(wrote).endswith(" ERROR x: a?2026 INFO b?[2J?1m")


def test_a_crash_point_in_the_environment_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    missing = ["--config", str(tmp_path / "none"), "backup-list"]
    main(missing)
    assert not caplog.messages
    monkeypatch.setenv("BACKUP_AGENT_CRASH_AT", "accepted")
    main(missing)
    assert ["kills itself at accepted" in said for said in caplog.messages] == [True]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, says in (("--version", "."), ("--help", "backup-create")):
        with pytest.raises(SystemExit) as ended:
            main([argument])
        assert ended.value.code == 0
        assert says in capsys.readouterr().out


def test_the_program_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "--config", str(tmp_path / "none"), "backup-list"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert "what to do: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_who_no_longer_waits_is_told_how_to_go_on() -> None:
    ping, own = (str(uuid4()) for _ in range(2))
    hint = remote._what_next(INSTANCE, ping)
    assert hint.endswith(f"backup-agent cancel --instance {INSTANCE} {ping}")
    # a cancel can't be cancelled
    hint = cancel._what_next(INSTANCE, CancelTask(task_id=own, cancels=ping))
    assert hint.endswith(f"backup-agent cancel --wait --instance {INSTANCE} {ping}")
    assert own not in hint
