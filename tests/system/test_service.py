"""The unit under a real systemd: ready, sandboxed, watched, stopped, and provisioned again."""

import json
import re
import time

import pytest

from tests.stack.process import poll
from tests.system.agent import SLOW, UNIT, SystemAgent, seconds_of
from tests.system.machine import CHECKOUT_INSIDE, Machine

# the first test boots and provisions the machine
pytestmark = pytest.mark.timeout(400)

UNITS = (UNIT, "backup-agent-self-test.service")
# With the unit's own watchdog time, a test would take minutes.
QUICK = ("WatchdogSec=5", "RestartSec=1")
RESTORED = "/var/lib/mysql-restore/one"
CHECKSUM = ("--batch", "--skip-column-names", "--execute=CHECKSUM TABLE shop.orders")


def test_exposure(machine: Machine) -> None:
    for unit in UNITS:
        said = machine.output("systemd-analyze", "security", "--no-pager", unit)
        match = re.search(r"Overall exposure level for \S+: ([\d.]+) ", said)
        assert match, said
        assert float(match[1]) <= 2.0, said


def test_systemd_has_nothing_to_complain_about(machine: Machine) -> None:
    units = (*UNITS, "backup-agent-self-test.timer", "demo-swift.service")
    done = machine.run("systemd-analyze", "verify", *units)
    assert done.stdout + done.stderr == ""


def test_active_only_while_it_could_consume(machine: Machine, agent: SystemAgent) -> None:
    """The agent waits for an absent broker for longer than the unit's start may take."""
    machine.run("systemctl", "stop", "rabbitmq-server")
    queue = f"backup.tasks.{agent.instance_id}"
    agent.wait_for("StatusText", f"not consuming {queue}")
    assert agent.show("ActiveState") == "active"

    agent.drop_in("TimeoutStartSec=5", block=False)
    began = time.monotonic()
    agent.wait_for("StatusText", "connecting to RabbitMQ at 127.0.0.1:5672")
    pid = agent.show("MainPID")

    poll("the time limit for a start has passed", lambda: time.monotonic() - began > 7, 20)
    assert agent.show("ActiveState") == "activating"
    machine.run("systemctl", "start", "rabbitmq-server")
    agent.wait_for("ActiveState", "active")
    assert agent.show("MainPID") == pid
    assert agent.show("StatusText") == f"consuming {queue}"


def key_name(machine: Machine) -> str:
    """Return the name of the one key that provisioning has made."""
    (name,) = machine.output("ls", "/etc/backup-agent/keys").split()
    return name


def test_backup_and_restore_in_the_sandbox(machine: Machine, agent: SystemAgent) -> None:
    status = machine.output("cat", f"/proc/{agent.show('MainPID')}/status")
    for line in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    mariadbd = machine.output("systemctl", "show", "--value", "--property", "MainPID", "mariadb")
    look = ("setpriv", "--reuid=mysql", "--regid=mysql", "--clear-groups", "ls")
    credentials = f"/run/credentials/{UNIT}"
    assert f"keys_{key_name(machine)}" in machine.output(*look, credentials)
    # the server has the same user, but runs in a unit with its own sandbox
    refused = machine.run(
        "nsenter", f"--target={mariadbd}", "--mount", *look, credentials, check=False
    )
    assert re.search("cannot (access|open)", refused.stderr), refused

    backup = agent.create("base")
    assert backup["status"] == "COMPLETED"
    machine.run("mariadb", text="UPDATE shop.orders SET total = 0 WHERE id % 100 = 0;")
    machine.run("mariadb", text="SET GLOBAL innodb_log_checkpoint_now = ON;")
    increment = agent.create("increment", "--parent", backup["id"])
    agent.cli("restore", "--wait", increment["id"], RESTORED)

    server = ["mariadbd", f"--datadir={RESTORED}", "--skip-networking", "--skip-log-bin"]
    server += ["--socket=/run/mysqld/restored.sock", "--pid-file=/run/mysqld/restored.pid"]
    machine.run("systemd-run", "--quiet", "--unit=restored", "--uid=mysql", *server)
    client = ("mariadb", "--socket=/run/mysqld/restored.sock")
    poll(
        "the restored server answers", lambda: not machine.run(*client, check=False).returncode, 30
    )
    restored = machine.output(*client, *CHECKSUM)
    machine.run("systemctl", "stop", "restored")
    assert restored == machine.output("mariadb", *CHECKSUM)


def test_a_stuck_agent_is_ended_and_its_task_reported_once(
    machine: Machine, agent: SystemAgent
) -> None:
    agent.drop_in(*QUICK, SLOW)
    before = agent.objects()
    reports = agent.collect()
    waiting = agent.begin_slow_backup()
    pid = agent.show("MainPID")
    machine.run("kill", "-STOP", pid)

    agent.wait_for("NRestarts", "1")
    agent.wait_for("ActiveState", "active")
    assert agent.show("MainPID") != pid
    assert "Watchdog timeout" in agent.journal()
    poll("the waiting command ends", lambda: not waiting.running(), 60)
    assert waiting.returncode == 1
    [final] = agent.final_reports(reports)
    assert (final["status"], final["error"]["code"]) == ("FAILED", "interrupted")
    assert not agent.engine_runs()
    assert_only_a_record_was_added(before, agent.objects(), final["backup"]["id"])


def test_a_stop_during_a_backup(machine: Machine, agent: SystemAgent) -> None:
    agent.drop_in(SLOW)
    before = agent.objects()
    reports = agent.collect()
    waiting = agent.begin_slow_backup()

    assert seconds_of(machine, "systemctl", "stop", UNIT) < 30
    assert (agent.show("ActiveState"), agent.show("Result")) == ("inactive", "success")
    assert not agent.engine_runs()
    poll("the waiting command ends", lambda: not waiting.running(), 60)
    assert "interrupted" in waiting.tail()
    [final] = agent.final_reports(reports)
    assert (final["status"], final["error"]["code"]) == ("FAILED", "interrupted")
    assert_only_a_record_was_added(before, agent.objects(), final["backup"]["id"])

    agent.undo_drop_in()
    agent.restart()
    assert agent.create("after the stop")["status"] == "COMPLETED"


def test_a_killed_agent_leaves_nothing_behind(machine: Machine, agent: SystemAgent) -> None:
    """systemd ends the engine and restarts the agent, which reports the task's end once."""
    agent.drop_in("RestartSec=1", SLOW)
    before = agent.objects()
    reports = agent.collect()
    waiting = agent.begin_slow_backup()
    engines = machine.output("pgrep", "--exact", "mariadb-backup").split()
    machine.run("kill", "-KILL", agent.show("MainPID"))

    agent.wait_for("NRestarts", "1")
    alive = [pid for pid in engines if not machine.run("kill", "-0", pid, check=False).returncode]
    assert alive == []
    poll("the waiting command ends", lambda: not waiting.running(), 60)
    assert "the agent ended while the task ran" in waiting.tail()
    [final] = agent.final_reports(reports)
    assert (final["status"], final["error"]["code"]) == ("FAILED", "interrupted")
    assert_only_a_record_was_added(before, agent.objects(), final["backup"]["id"])


def test_status_cancel_and_gc_beside_the_daemon(machine: Machine, agent: SystemAgent) -> None:
    agent.drop_in(SLOW)
    before = agent.objects()
    waiting = agent.begin_slow_backup()
    by_mysql = ("setpriv", "--reuid=mysql", "--regid=mysql", "--clear-groups", "backup-agent")
    shown = json.loads(machine.output(*by_mysql, "status", "--json"))
    assert shown["running"]
    [task] = shown["tasks"]
    assert (task["type"], task["status"]) == ("backup.create", "RUNNING")
    assert "0 orphans" in agent.cli("gc", "--dry-run")

    began = time.monotonic()
    assert "is cancelled" in agent.cli("cancel", "--wait", task["task_id"])
    assert time.monotonic() - began < 6
    poll("the waiting command ends", lambda: not waiting.running(), 60)
    assert "cancelled: " in waiting.tail()
    assert not agent.engine_runs()
    assert_only_a_record_was_added(before, agent.objects(), task["backup_id"])
    assert "no task waits or runs" in agent.cli("status")
    # files that root's commands made there would be unusable for the agent
    assert machine.output("find", "/var/lib/backup-agent", "!", "-user", "mysql") == ""


def assert_only_a_record_was_added(before: list[str], after: list[str], backup_id: str) -> None:
    added = [name.partition("/")[2] for name in after if name not in before]
    assert added == [f"{backup_id}.json"]


def test_the_self_test_and_its_timer(machine: Machine, agent: SystemAgent) -> None:
    unit = "backup-agent-self-test"
    done = machine.run("systemctl", "start", f"{unit}.service", check=False)
    assert done.returncode == 0, machine.output("journalctl", "--output=cat", f"--unit={unit}")
    said = machine.output("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")
    assert "PASS" in said
    assert "FAIL" not in said
    timer = ("systemctl", "show", "--value", "--property", "NextElapseUSecRealtime")
    assert machine.output(*timer, f"{unit}.timer")


def test_provisioning_again_changes_nothing(machine: Machine, agent: SystemAgent) -> None:
    kept = (
        "sh",
        "-c",
        "cd /etc/backup-agent && sha256sum agent.toml keys/* secrets/* *-password instances/*/*",
    )
    before = machine.output(*kept)
    machine.run(f"{CHECKOUT_INSIDE}/script/provision", "control", "db", "agent", seconds=300)
    assert machine.output(*kept) == before
    assert agent.show("ActiveState") == "active"


def test_no_secret_is_in_a_log_or_an_argument(machine: Machine, agent: SystemAgent) -> None:
    said = machine.output("journalctl", "--no-pager", "--output=cat")
    said += machine.output("ps", "-e", "-o", "args", "--width", "10000")
    names = ("secrets/broker-password", "secrets/store-key", "secrets/database-password")
    key = f"keys/{key_name(machine)}"
    for name in (*names, key, "operator-password", "control-password"):
        secret = machine.output("cat", f"/etc/backup-agent/{name}")
        assert len(secret) > 20
        assert secret not in said


def test_the_journal_has_the_ids_of_each_line(machine: Machine, agent: SystemAgent) -> None:
    agent.drop_in("Environment=BACKUP_AGENT_LOG__LEVEL=debug")
    reports = agent.collect()
    backup = agent.create("logged")
    [final] = agent.final_reports(reports)
    match = ("journalctl", "--no-pager", f"--unit={UNIT}")
    found = machine.output(*match, "--output=json", f"BACKUP_AGENT_TASK_ID={final['task_id']}")
    events = [json.loads(line) for line in found.splitlines()]
    said = [event["MESSAGE"] for event in events]
    assert f"task {final['task_id']} is done" in said
    # a line of a thread of the data path
    assert any("_segments/" in message for message in said)
    for event in events:
        assert event["SYSLOG_IDENTIFIER"] == "backup-agent"
        assert (event["_TRANSPORT"], event["_COMM"]) == ("journal", "backup-agent")
        assert event["LOGGER"].startswith("agent.")
    assert {event.get("BACKUP_AGENT_BACKUP_ID", backup["id"]) for event in events} == {backup["id"]}
    assert {event["PRIORITY"] for event in events} == {"6", "7"}
    # all that the agent itself wrote came this way
    stream = machine.output(*match, "--output=cat", "_TRANSPORT=stdout", "_COMM=backup-agent")
    assert stream == ""


def test_metrics_in_the_sandbox(machine: Machine, agent: SystemAgent) -> None:
    """The unit must allow the port and the directory, as docs/metrics.md says.

    The agent works without them. A container can't have the filters of SocketBindDeny=, so only the
    directory is refused here.
    """
    folder = "/var/lib/prometheus/node-exporter"
    machine.run("install", "-d", "-g", "mysql", "-m", "775", folder)
    settings = (
        "Environment=BACKUP_AGENT_METRICS__LISTEN=127.0.0.1:9399",
        f"Environment=BACKUP_AGENT_METRICS__TEXTFILE={folder}/a.prom",
    )
    agent.drop_in(*settings)
    agent.wait_for("ActiveState", "active")
    error = f"can't write {folder}/a.prom: Read-only file system"
    poll("the error is in the journal", lambda: error in agent.journal(), 20)
    agent.drop_in(*settings, "SocketBindAllow=tcp:9399", f"ReadWritePaths={folder}")
    metrics = machine.output("curl", "--silent", "--fail", "http://127.0.0.1:9399/metrics")
    assert "\nbackup_agent_consuming 1.0\n" in metrics
    # the daemon writes the file at once, but its start does not wait for that
    of_nobody = ("setpriv", "--reuid=nobody", "--clear-groups", "cat", f"{folder}/a.prom")
    poll(
        "the file is written",
        lambda: "backup_agent_info{" in machine.run(*of_nobody, check=False).stdout,
        20,
    )
