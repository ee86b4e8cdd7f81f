"""XtraBackup's command lines, log and failures.

The stand-in is as strict as the real program.
"""

import logging
from pathlib import Path

import pytest

from agent.codec.metadata import parse_binlog_info
from agent.codec.xbstream import XbstreamParser
from agent.engine.checkpoints import read_checkpoints
from agent.engine.xtrabackup import XtraBackup
from agent.errors import (
    AgentError,
    DatabaseDenied,
    DatabaseUnreachable,
    EngineFailed,
    EngineUnproved,
    EngineUnsupported,
    ExtractFailed,
    LockTimeout,
    PrepareFailed,
    RedoOverwritten,
)
from tests.engine.percona import (
    VERSIONS,
    calls,
    full_stream,
    incremental_stream,
    xtrabackup,
)
from tests.engine.scripts import child_of, script
from tests.engine.test_runs import read_all, says
from tests.stack.mariadb import AGENT_PASSWORD

MEMORY = 64 << 20
# The options in the --help of 2.4.20 that a backup uses.
KNOWN = {"backup", "target-dir", "stream", "parallel", "log-copy-interval", "open-files-limit"}
KNOWN |= {"slave-info", "galera-info", "ftwrl-wait-timeout", "ftwrl-wait-threshold"}
KNOWN |= {"lock-ddl-timeout", "backup-lock-timeout", "no-version-check"}


def backup(engine: XtraBackup, workdir: Path, from_lsn: int | None = None) -> bytes:
    """Return the stream of a backup. Check that it leaves no option file with a secret."""
    try:
        with engine.start_backup(workdir, from_lsn) as run:
            stream = child_of(run).stdout.readall()
            run.finish(20)
            return stream
    finally:
        assert list(workdir.glob("*.cnf")) == []


def extract(engine: XtraBackup, stream: bytes, folder: Path) -> None:
    folder.mkdir()
    with engine.start_extract(folder) as run:
        run.write(stream)
        run.finish()


def prepare(engine: XtraBackup, target: Path, beside: Path | None, *, last: bool) -> None:
    with engine.start_prepare(target, beside, MEMORY, last=last) as run:
        run.finish()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_version_is_the_programs(tmp_path: Path, version: str) -> None:
    assert xtrabackup(tmp_path, version).version() == version


def test_a_link_of_another_name_states_its_version(tmp_path: Path) -> None:
    """2.4 begins the line with the name by which it was called."""
    plain = xtrabackup(tmp_path, "2.4.20")
    (tmp_path / "xtrabackup-2.4").symlink_to(tmp_path / "xtrabackup")
    assert xtrabackup(tmp_path, "2.4.20", program=str(tmp_path / "xtrabackup-2.4")).version()
    assert plain.version() == "2.4.20"


def test_a_program_that_states_no_version_is_quoted(tmp_path: Path) -> None:
    words = "xtrabackup: [ERROR] unknown variable in /etc/my.cnf"
    program = script(tmp_path / "broken", f"print({words!r}, file=sys.stderr)\nsys.exit(1)")
    with pytest.raises(EngineFailed, match=r"unknown variable in /etc/my\.cnf"):
        xtrabackup(tmp_path, program=program).version()


def test_another_program_states_no_version_of_it(tmp_path: Path) -> None:
    line = "mariadb-backup based on MariaDB server 10.11.6-MariaDB debian-linux-gnu (x86_64)"
    program = script(tmp_path / "other", says(line))
    with pytest.raises(EngineFailed, match="version of xtrabackup") as caught:
        xtrabackup(tmp_path, program=program).version()
    assert "[engine] kind" in caught.value.hint


@pytest.mark.parametrize("version", VERSIONS)
def test_a_backup_of_each_series(tmp_path: Path, version: str) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    assert backup(xtrabackup(tmp_path, version), tmp_path) == b"bytes"
    (name, first, *options) = calls(tmp_path)[0]
    assert (name, first) == ("xtrabackup", f"--defaults-file={tmp_path}/engine.cnf")
    assert {"--backup", "--stream=xbstream", "--slave-info", "--no-version-check"} < set(options)
    joined = " ".join(options)
    assert {"--ftwrl-wait-timeout=60", "--ftwrl-wait-threshold=2"} < set(options)
    # 2.4 silently ignores a name that it doesn't know.
    assert {one[2:].partition("=")[0] for one in options} <= KNOWN
    for word in ("incremental", "safe-slave", "consumer", "server-version-check", AGENT_PASSWORD):
        assert word not in joined


def test_an_incremental_goes_from_the_lsn_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    backup(xtrabackup(tmp_path), tmp_path, 12345)
    assert calls(tmp_path)[0][-1] == "--incremental-lsn=12345"


def test_a_replicas_sql_thread_is_stopped_where_asked(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    backup(xtrabackup(tmp_path, safe_slave_backup=True), tmp_path)
    assert {"--safe-slave-backup", "--safe-slave-backup-timeout=300"} < set(calls(tmp_path)[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_redo_log_consumer_where_asked_and_known(
    tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    with caplog.at_level(logging.WARNING):
        backup(xtrabackup(tmp_path, version, register_redo_log_consumer=True), tmp_path)
    known = version in ("8.0.35-30", "8.4.0-1")
    assert ("--register-redo-log-consumer" in calls(tmp_path)[-1]) == known
    assert ("has no --register-redo-log-consumer" in caplog.text) == (not known)


def test_a_version_that_was_stated_is_not_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    engine = xtrabackup(tmp_path, "8.0.35-30", register_redo_log_consumer=True)
    engine.version()
    backup(engine, tmp_path)
    assert ["--version" in call for call in calls(tmp_path)] == [True, False]


@pytest.mark.parametrize(
    ("line", "kind", "hint"),
    [
        ("log block numbers mismatch:", RedoOverwritten, "innodb_redo_log_capacity"),
        (
            "it looks like InnoDB log has wrapped around before xtrabackup could process all",
            RedoOverwritten,
            "register_redo_log_consumer",
        ),
        ("could not find redo log file with LSN 8811", RedoOverwritten, "innodb_redo_log_capacity"),
        ("Unsupported server version: '9.1.0'", EngineUnsupported, "docs/engines.md"),
        ("Error: Unsupported server version: '8.0.36'.", EngineUnsupported, "docs/engines.md"),
        ("Unsupported redo log format (5).", EngineUnsupported, "docs/engines.md"),
        ("missing required privilege BACKUP_ADMIN on *.*", DatabaseDenied, "docs/engines.md"),
        (
            "failed to execute query 'SHOW ENGINE INNODB STATUS' : 1227 (42000) Access denied; "
            "you need (at least one of) the PROCESS privilege(s) for this operation",
            DatabaseDenied,
            "docs/engines.md",
        ),
        (
            "failed to execute query 'SELECT' : 1142 (42000) SELECT command denied to user "
            "'agent'@'localhost' for table 'log_status'",
            DatabaseDenied,
            "docs/engines.md",
        ),
        (
            "Failed to connect to MySQL server: Access denied for user 'agent'@'localhost'",
            DatabaseDenied,
            "password_file",
        ),
        (
            "Failed to connect to MySQL server: Can't connect to local MySQL server (2)",
            DatabaseUnreachable,
            "socket",
        ),
        (
            "The --slave-info option requires GTID enabled or --safe-slave-backup option used",
            EngineFailed,
            "safe_slave_backup = true",
        ),
        ("Slave_open_temp_tables did not become zero after 300 seconds", EngineFailed, "row-based"),
        (
            "failed to execute query 'LOCK INSTANCE FOR BACKUP' : 1205 (HY000) Lock wait timeout "
            "exceeded; try restarting transaction",
            LockTimeout,
            "PROCESSLIST",
        ),
        ("Unable to obtain lock. Please try again later.", LockTimeout, "PROCESSLIST"),
        ("Operating system error number 24: Too many open files", EngineFailed, "LimitNOFILE"),
        ("something else", EngineFailed, "last lines"),
    ],
)
@pytest.mark.parametrize("version", ["2.4.20", "8.0.35-30"])
def test_each_cause_of_a_failure_is_named(
    tmp_path: Path, version: str, line: str, kind: type[AgentError], hint: str
) -> None:
    with pytest.raises(AgentError) as caught:
        backup(xtrabackup(tmp_path, version, [line]), tmp_path)
    assert type(caught.value) is kind
    assert hint in caught.value.hint
    assert "xtrabackup ended with status 1: " in str(caught.value)
    assert line in str(caught.value)
    assert "MY-011825" not in str(caught.value)


STATEMENT_DENIED = (
    "Error: failed to execute query 'STOP SLAVE SQL_THREAD': 1045 (28000) Zugriff verweigert"
)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (STATEMENT_DENIED, DatabaseDenied),
        ("Error: failed to execute query 'SHOW SLAVE STATUS': 1227 (42000) Kein", DatabaseDenied),
        ("Error: failed to execute query 'SELECT 1': 1142 (42000) Kein Zugriff", DatabaseDenied),
        ("Error: failed to execute query 'FLUSH': 1205 (HY000) Zeit um", LockTimeout),
        ("Error: failed to execute query 'SET': 2006 (HY000) weg", DatabaseUnreachable),
        ("InnoDB: Encryption can't find master key, please check the keyring", EngineFailed),
    ],
)
def test_what_the_server_says_is_known_by_its_number(
    tmp_path: Path, line: str, kind: type[AgentError]
) -> None:
    with pytest.raises(AgentError) as caught:
        backup(xtrabackup(tmp_path, "2.4.20", [line]), tmp_path)
    assert type(caught.value) is kind
    assert line in str(caught.value)
    assert ("keyring-file-data" in caught.value.hint) == (kind is EngineFailed)


def test_the_redo_hint_names_options_of_that_series_only(tmp_path: Path) -> None:
    hints = {}
    for version in ("2.4.20", "8.0.35-30"):
        engine = xtrabackup(tmp_path, version, ["log block numbers mismatch:"])
        assert engine.version() == version
        with pytest.raises(RedoOverwritten) as caught:
            backup(engine, tmp_path)
        hints[version] = caught.value.hint
    assert "innodb_log_file_size" in hints["2.4.20"]
    assert "capacity" not in hints["2.4.20"]
    assert "consumer" not in hints["2.4.20"]
    assert "register_redo_log_consumer" in hints["8.0.35-30"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_redo_logs_counter_is_not_quoted_as_last_words(tmp_path: Path, version: str) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    with xtrabackup(tmp_path, version).start_backup(tmp_path, None) as run:
        read_all(run)
        run.finish(20)
        assert "scanned" not in "".join(child_of(run).log.lines())
    with pytest.raises(EngineFailed, match="odd") as caught:
        backup(xtrabackup(tmp_path, version, ["something odd"]), tmp_path)
    assert "scanned" not in str(caught.value)


def test_other_peoples_statements_are_not_quoted(tmp_path: Path) -> None:
    secret = "SET PASSWORD = 'hunter2' /* log block numbers mismatch */"
    lines = [
        f"Waiting for query 486 (duration 4 sec): {secret}261130 07:30:14 >> log scanned up to (1)",
        f"Waiting for query 487 (duration 9 sec): {secret}Unable to obtain lock. Please try again.",
    ]
    with pytest.raises(LockTimeout) as caught:
        backup(xtrabackup(tmp_path, "2.4.20", lines), tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "Waiting for query 487 (duration 9 sec) ... Unable to obtain lock." in str(caught.value)


def test_a_cause_is_not_lost_in_a_flood(tmp_path: Path) -> None:
    lines = ["log block numbers mismatch:", *["chatter"] * 200]
    with pytest.raises(RedoOverwritten) as caught:
        backup(xtrabackup(tmp_path, says=lines), tmp_path)
    assert "innodb_redo_log_capacity" in caught.value.hint


def test_an_option_that_it_does_not_know_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"status 255: .*requires an argument"):
        backup(xtrabackup(tmp_path, parallel=""), tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "170101 12:00:00 completed OK!",
        "2024-01-01T12:00:00.000000-00:00 0 [Note] [MY-011825] [Xtrabackup] completed OK!",
        "2024-01-01T12:00:00.000000Z 0 [Note] [MY-011825] [Xtrabackup] completed OK!",
    ],
)
def test_the_closing_line_in_all_its_forms(tmp_path: Path, line: str) -> None:
    program = script(tmp_path / "says", says(line))
    assert backup(xtrabackup(tmp_path, program=program), tmp_path) == b""


@pytest.mark.parametrize(
    "line",
    [
        "[00] 2024-05-06 07:08:09 completed OK!",
        "2024-01-01T12:00:00.000000-00:00 0 [ERROR] [MY-011825] [Xtrabackup] completed OK!",
        "170101 12:00:00 completed OK",
        "170101 12:00:00 innobackupex: prints completed OK!",
    ],
)
def test_anything_else_is_no_proof(tmp_path: Path, line: str) -> None:
    program = script(tmp_path / "says", says(line))
    with pytest.raises(EngineUnproved):
        backup(xtrabackup(tmp_path, program=program), tmp_path)


def test_the_stream_of_8_0_is_read_whole() -> None:
    gtids = b"binlog.000007\t157\t1-1:1-5,\n2-2:1-7:9,\n3-3:tag:1\n"
    parser = XbstreamParser()
    parser.feed(memoryview(full_stream(50, gtids)))
    parser.finish()
    for name in ("mysql.ibd", "undo_001", "shop/part#p#p0.ibd", "shop/packed.ibd", "ts1.ibd"):
        assert parser.contains(name)
    assert set(parser.spaces.values()) == {0xFFFFFFFE, 1, 7, 8, 9, 11}
    assert parser.metadata.keys() == {
        *("binlog_info", "slave_info", "checkpoints", "info", "options")
    }
    position = parse_binlog_info(parser.metadata["binlog_info"])
    assert position is not None
    assert position.gtid == "1-1:1-5,2-2:1-7:9,3-3:tag:1"


@pytest.mark.parametrize("content", [b"\t0\n", b"\t0\t1-1:1-5\n"])
def test_a_binlog_position_without_a_binlog_is_none(content: bytes) -> None:
    assert parse_binlog_info(content) is None


def test_extraction_makes_the_files_holes_included(tmp_path: Path) -> None:
    extract(xtrabackup(tmp_path), full_stream(50), tmp_path / "target")
    packed = (tmp_path / "target/shop/packed.ibd").read_bytes()
    assert packed[34:38] == bytes([0, 0, 0, 9])
    assert len(packed) == 2 * (16 << 10)
    assert read_checkpoints(tmp_path / "target").to_lsn == 50
    assert calls(tmp_path) == [["xbstream", "-x", "-C", str(tmp_path / "target")]]


def test_a_cut_stream_is_not_extracted(tmp_path: Path) -> None:
    with pytest.raises(ExtractFailed):
        extract(xtrabackup(tmp_path), full_stream(50)[:1000], tmp_path / "target")


def test_all_but_the_last_of_a_chain_are_prepared_without_rollback(tmp_path: Path) -> None:
    engine, target = xtrabackup(tmp_path), tmp_path / "target"
    extract(engine, full_stream(50), target)
    prepare(engine, target, None, last=False)
    for from_lsn, to_lsn in ((50, 60), (60, 70)):
        beside = tmp_path / f"from-{from_lsn}"
        extract(engine, incremental_stream(from_lsn, to_lsn), beside)
        prepare(engine, target, beside, last=to_lsn == 70)
    assert read_checkpoints(target).backup_type == "full-prepared"
    assert read_checkpoints(target).to_lsn == 70


def test_what_was_rolled_back_takes_no_incremental(tmp_path: Path) -> None:
    engine, target, beside = xtrabackup(tmp_path), tmp_path / "target", tmp_path / "beside"
    extract(engine, full_stream(50), target)
    extract(engine, incremental_stream(50, 60), beside)
    prepare(engine, target, None, last=True)
    with pytest.raises(PrepareFailed, match="needs target prepared with --apply-log-only"):
        prepare(engine, target, beside, last=True)


def test_the_secret_is_not_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"bytes")
    with xtrabackup(tmp_path).start_backup(tmp_path, None) as run:
        (option_file,) = tmp_path.glob("*.cnf")
        assert option_file.stat().st_mode & 0o777 == 0o600
        read_all(run)
        run.finish(20)
        assert AGENT_PASSWORD not in "".join(child_of(run).log.lines())
