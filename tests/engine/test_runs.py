"""How runs handle an engine that lies, floods, hangs or is killed. The engines are scripts."""

import os
import re
import time
import tracemalloc
from pathlib import Path

import pytest

from agent.engine import process
from agent.engine.checkpoints import read_checkpoints
from agent.engine.mariadb import MariadbBackup, MariadbBackupSettings
from agent.engine.runs import BackupRun
from agent.errors import (
    AgentError,
    ConfigInvalid,
    DatabaseDenied,
    DatabaseUnreachable,
    EngineFailed,
    EngineMissing,
    EngineSilent,
    EngineUnproved,
    ExtractFailed,
    LockTimeout,
    PrepareFailed,
    RedoOverwritten,
)
from agent.machine.os_user import OsUser
from tests.engine.scripts import child_of, held, known, nothing_left_since, script
from tests.stack.mariadb import AGENT_PASSWORD
from tests.stack.process import poll

SAYS_OK = "print('[00] 2024-05-06 07:08:09 completed OK!', file=sys.stderr)"


def fake(folder: Path, body: str) -> MariadbBackup:
    """Return an engine with one script for both of its programs."""
    program = script(folder / "mariadb-backup", body)
    return MariadbBackup(
        MariadbBackupSettings(
            socket=folder / "server.sock",
            user="agent",
            password=AGENT_PASSWORD,
            program=program,
            extractor=program,
            grace_seconds=0.5,
        )
    )


def says(text: str) -> str:
    return f"print({text!r}, file=sys.stderr)\n"


def read_all(run: BackupRun) -> int:
    """Read a run's stream to its end. Return its length in bytes."""
    buffer, total = memoryview(bytearray(1 << 20)), 0
    while count := run.read_into(buffer):
        total += count
    return total


def finish(engine: MariadbBackup, workdir: Path) -> None:
    """Run a backup from start to end. Check that it leaves no option file with a secret."""
    try:
        with engine.start_backup(workdir, None) as run:
            read_all(run)
            run.finish(20)
    finally:
        assert list(workdir.glob("*.cnf")) == []


def test_completed(tmp_path: Path) -> None:
    finish(fake(tmp_path, f"os.write(1, b'bytes')\n{SAYS_OK}"), tmp_path)


@pytest.mark.parametrize(
    "last_words",
    ["", says("[00] 2024-05-06 07:08:09 completed OK"), SAYS_OK + "\n" + says("one thing more")],
)
def test_exit_0_without_completed_ok_proves_nothing(tmp_path: Path, last_words: str) -> None:
    with pytest.raises(EngineUnproved, match="completed OK!"):
        finish(fake(tmp_path, f"os.write(1, b'bytes')\n{last_words}"), tmp_path)


def test_completed_ok_with_another_exit_status_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="status 3"):
        finish(fake(tmp_path, f"{SAYS_OK}\nsys.exit(3)"), tmp_path)


@pytest.mark.parametrize(
    ("line", "kind", "hint"),
    [
        (
            "[00] FATAL ERROR: 2024-05-06 07:08:09 Was only able to copy log from 1 to 2, not 3",
            RedoOverwritten,
            "innodb_log_file_size",
        ),
        (
            "[00] FATAL ERROR: 2024-05-06 07:08:09 failed to execute query SHOW MASTER STATUS: "
            "Access denied; you need (at least one of) the SUPER, BINLOG MONITOR privilege(s)",
            DatabaseDenied,
            "BINLOG MONITOR",
        ),
        ("Failed to connect to MariaDB server: Access denied for user", DatabaseDenied, "user"),
        ("Failed to connect to MariaDB server: Can't connect", DatabaseUnreachable, "socket"),
        (
            "[00] FATAL ERROR: 2024-05-06 07:08:09 failed to execute query BACKUP LOCK `a`.`b`: "
            "Server has gone away",
            DatabaseUnreachable,
            "error log",
        ),
        (
            "[00] FATAL ERROR: 2024-05-06 07:08:09 failed to execute query BACKUP STAGE START: "
            "Lock wait timeout exceeded; try restarting transaction",
            LockTimeout,
            "lock_wait_seconds",
        ),
        (
            "[00] 2024-05-06 07:08:09 Unable to obtain lock. Please try again later.",
            LockTimeout,
            "",
        ),
        ("InnoDB: Too many open files in system", EngineFailed, "LimitNOFILE"),
        ("nothing that is known", EngineFailed, "last lines"),
    ],
)
def test_causes_survive_a_flood(
    tmp_path: Path, line: str, kind: type[AgentError], hint: str
) -> None:
    flood = (
        "" if "known" in line else "for n in range(5000): print('...done', n, file=sys.stderr)\n"
    )
    with pytest.raises(kind, match=re.escape(line[-20:])) as caught:
        finish(fake(tmp_path, f"{says(line)}{flood}sys.exit(1)"), tmp_path)
    assert type(caught.value) is kind
    assert hint in caught.value.hint
    assert "2024" not in str(caught.value)


def test_ten_megabytes_on_standard_error(tmp_path: Path) -> None:
    body = f"sys.stderr.write(('x' * 99 + '\\n') * 100_000)\nos.write(1, b'b')\n{SAYS_OK}"
    finish(fake(tmp_path, body), tmp_path)


def test_an_engine_that_does_not_end_is_killed(tmp_path: Path) -> None:
    engine = fake(tmp_path, "os.close(1)\ntime.sleep(60)")
    with engine.start_backup(tmp_path, None) as run:
        read_all(run)
        with pytest.raises(EngineSilent, match=r"did not end within 0\.5 s"):
            run.finish(0.5)
    assert not known(child_of(run).pid)
    assert not (tmp_path / "engine.cnf").exists()


def test_an_interrupted_engine_that_ignores_it(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.write(1, b'on')\ntime.sleep(60)"
    with fake(tmp_path, deaf).start_backup(tmp_path, None) as run:
        assert child_of(run).stdout.read(2) == b"on"
        began = time.monotonic()
        run.interrupt()
        assert read_all(run) == 0
        with pytest.raises(EngineFailed, match="signal 9 after it was interrupted"):
            run.finish()
        assert time.monotonic() - began < 3


def test_a_missing_engine_leaves_no_secret(tmp_path: Path) -> None:
    engine = fake(tmp_path, "")
    (tmp_path / "mariadb-backup").unlink()
    with pytest.raises(EngineMissing):
        engine.start_backup(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_defect_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's program needs a relay of its connections, which must end too."""

    def fail(_group: int, _niceness: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(process, "_be_nice", fail)
    before = held()
    engine = MariadbBackup(
        MariadbBackupSettings(
            socket=tmp_path / "none",
            user="root",
            password="",
            program="sleep",
            run_as=OsUser(54321, 54322, ()),
        )
    )
    with pytest.raises(ZeroDivisionError):
        engine.start_backup(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    poll("threads and descriptors are gone", lambda: nothing_left_since(before), 10)


def test_a_workdir_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="option file") as caught:
        fake(tmp_path, "").start_backup(tmp_path / "none", None)
    assert "state_folder" in caught.value.hint


def test_a_password_with_a_nul(tmp_path: Path) -> None:
    settings = MariadbBackupSettings(socket=tmp_path, user="a", password="a\0b")
    with pytest.raises(ConfigInvalid, match="NUL"):
        MariadbBackup(settings).start_backup(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_the_secret_is_never_on_the_command_line(tmp_path: Path) -> None:
    # The real engine overwrites a password in its arguments, but a moment too late.
    body = "print(sys.argv, dict(os.environ))\nprint(open(sys.argv[1].partition('=')[2]).read())"
    with fake(tmp_path, f"{body}\n{SAYS_OK}").start_backup(tmp_path, 42) as run:
        shown, _, option_file = child_of(run).stdout.read(1 << 16).decode().partition("\n")
        run.finish()
    assert "s#cret" not in shown
    assert "s#cret" in option_file
    assert "'--incremental-lsn=42'" in shown
    assert shown.split("', '")[1].startswith("--defaults-file=")


LOSSES = (
    "error: aria_read data from ./d/a.MAD failed with error 9",
    "Aria log file /data//aria_log.00000001 chunk copy error",
    "Aria lsn store read error for log file x",
    "WARNING!!! The corruption is ignored due to log-innodb-page-corruption option",
    "Failed to re-copy ./h/db.opt.",
)
HARMLESS = (
    "Copied file ./d/x.MYD for table `d`.`Aria lsn store read error`, 0 bytes",
    "Error on aria table file open ./d/dropped.MAI",
    "Warning: We assume the  table was dropped during xtrabackup execution and ignore the "
    "tablespace ./d/t.ibd",
    "error: cannot open file ib_buffer_pool",
    "Copied file ./d/y.MYD for table `d`.`Failed to re-copy `, 0 bytes",
    "Copied file ./d/z.MYD for table `d`.`The corruption is ignored`, 0 bytes",
)


@pytest.mark.parametrize("line", LOSSES)
def test_words_of_lost_data_count_more_than_a_good_end(tmp_path: Path, line: str) -> None:
    body = says(f"[00] 2024-05-06 07:08:08 {line}") + SAYS_OK
    with pytest.raises(EngineUnproved, match=re.escape(line)):
        finish(fake(tmp_path, body), tmp_path)


def test_lost_data_is_seen_after_many_words_that_tell_less(tmp_path: Path) -> None:
    flood = "".join(says(f"Error on aria table file open ./d/t{n}.MAI") for n in range(50))
    with pytest.raises(EngineUnproved, match="re-copy"):
        finish(fake(tmp_path, flood + says("Failed to re-copy ./h/db.opt.") + SAYS_OK), tmp_path)


def test_what_may_have_been_dropped_is_left_to_the_proof_by_names(tmp_path: Path) -> None:
    lines = "".join(says(f"[00] 2024-05-06 07:08:08 {line}") for line in HARMLESS)
    with fake(tmp_path, lines + SAYS_OK).start_backup(tmp_path, None) as run:
        read_all(run)
        run.finish()
        assert run.words_about("d/dropped.MAI") == HARMLESS[1]
        assert "table was dropped" in run.words_about("d/t.ibd")
        assert run.words_about("dropped.MAI") == HARMLESS[1]
        assert run.words_about("d/other.MAI") == run.words_about("ropped.MAI") == ""


UNAPPLIED = (
    "***WARNING: ./mysql/global_priv could not be opened: Error: 13",
    "***WARNING: ./d/t@0020t could not be opened: Error: 24",
    "***WARNING: ./d/t may be corrupted",
    "***WARNING: Can't read length of file './d/t.MAD'",
)
APPLIED = (
    "recovered pages: 0% 29% 51% 100% (0.0 seconds); tables to flush: 2 1 0",
    "***WARNING: './d/t' may be crashed",
    "***WARNING: ./d/#sql-1f-3 could not be opened: Error: 130",
    "Table './d/t' is crashed, skipping it. Please repair it with aria_chk -r",
    "***WARNING: 3 UNDO records skipped in UNDO phase; some tables may be left inconsistent!***",
    "2024-05-06  7:08:09 0 [Warning] InnoDB: `d`.`***WARNING: x could not be opened`",
    "[00] 2024-05-06 07:08:09 Copying ./inc/d/x.MYD to ./***WARNING:/t could not be opened",
)


@pytest.mark.parametrize("line", UNAPPLIED)
def test_what_a_prepare_could_not_apply_is_a_failure(tmp_path: Path, line: str) -> None:
    # There are more lines before and after it than the agent keeps of any kind.
    noise = "for n in range(99): print('[ERROR] a', n, file=sys.stderr)\n"
    engine = fake(tmp_path, f"{noise}{says(line)}{noise}{SAYS_OK}")
    run = engine.start_prepare(tmp_path, None, 1 << 20, last=True)
    with run, pytest.raises(PrepareFailed, match=re.escape(line)) as caught:
        run.finish()
    assert "lost" in caught.value.hint


def test_what_a_prepare_says_on_a_good_way(tmp_path: Path) -> None:
    body = "".join(map(says, APPLIED)) + SAYS_OK
    with fake(tmp_path, body).start_prepare(tmp_path, None, 1 << 20, last=True) as run:
        run.finish()


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    said = ["error: cannot open file ./d/db.opt", "Error: copy_file() failed."]
    said += ["Failed to copy file ./d/db.opt", "Backup files error"]
    body = "".join(says(f"[01] 2024-05-06 07:08:08 {line}") for line in said) + "sys.exit(1)"
    with pytest.raises(EngineFailed, match=r"cannot open file \./d/db\.opt") as caught:
        finish(fake(tmp_path, body), tmp_path)
    assert "readable for the OS user" in caught.value.hint


def test_an_extractor_that_complains_and_exits_0(tmp_path: Path) -> None:
    engine = fake(tmp_path, f"sys.stdin.read()\n{says('File exists')}")
    with engine.start_extract(tmp_path) as run:
        run.write(b"stream")
        with pytest.raises(ExtractFailed, match="status 0: File exists"):
            run.finish()


def test_an_extractor_that_ends_early_says_why(tmp_path: Path) -> None:
    engine = fake(tmp_path, f"os.read(0, 10)\n{says('Errcode: 28 No space left')}sys.exit(1)")
    with engine.start_extract(tmp_path) as run, pytest.raises(ExtractFailed, match="No space left"):
        run.write(bytes(10 << 20))


def test_an_extractor_that_hangs_is_interrupted(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nos.write(2, b'on\\n')\ntime.sleep(60)"
    with fake(tmp_path, deaf).start_extract(tmp_path) as run:
        run.interrupt()
        with pytest.raises(ExtractFailed, match="interrupted"):
            run.write(bytes(10 << 20))


def test_prepare_needs_its_own_proof(tmp_path: Path) -> None:
    engine = fake(tmp_path, says("recovered"))
    with (
        engine.start_prepare(tmp_path, None, 1 << 26, last=True) as run,
        pytest.raises(PrepareFailed),
    ):
        run.finish()
    with fake(tmp_path, SAYS_OK).start_prepare(tmp_path, None, 1 << 26, last=True) as run:
        run.finish()


def test_prepare_can_be_interrupted(tmp_path: Path) -> None:
    with fake(tmp_path, "time.sleep(60)").start_prepare(tmp_path, None, 1 << 26, last=True) as run:
        run.interrupt()
        with pytest.raises(PrepareFailed, match="interrupted"):
            run.finish()


def test_a_version_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="version"):
        fake(tmp_path, says("hello")).version()


NOTE = "backup_type = log-applied\nfrom_lsn = 0\nto_lsn = 42\nlast_lsn = 43\nother = 0\n"


@pytest.mark.parametrize("name", ["xtrabackup_checkpoints", "mariadb_backup_checkpoints"])
def test_checkpoints_under_either_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(NOTE)
    found = read_checkpoints(tmp_path)
    assert (found.from_lsn, found.to_lsn, found.last_lsn) == (0, 42, 43)


@pytest.mark.parametrize("text", [None, "", "backup_type = x\nfrom_lsn = y\n"])
def test_a_folder_without_usable_checkpoints(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "xtrabackup_checkpoints").write_text(text)
    with pytest.raises(ExtractFailed, match="xtrabackup_checkpoints"):
        read_checkpoints(tmp_path)


def test_of_checkpoints_only_the_beginning_is_read(tmp_path: Path) -> None:
    """A hostile backup may have a file of any size under that name."""
    with (tmp_path / "xtrabackup_checkpoints").open("w") as file:
        file.truncate(64 << 20)
        file.write(NOTE)
    tracemalloc.start()
    assert read_checkpoints(tmp_path).to_lsn == 42
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
