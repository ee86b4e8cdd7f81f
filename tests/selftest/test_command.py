"""`backup-agent self-test` as an operator runs it: lines, counts, and nothing left behind."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import uuid

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from agent.broker import wire
from agent.selftest.plan import PLAN, TRIAL
from tests.selftest.site import OF_THE_MACHINE, Site, waiting_reports
from tests.stack.process import poll
from tests.stack.swift import SwiftServer

LINE = re.compile(r"(PASS|WARN|FAIL|SKIP)  ([a-z ]+): ([a-z ]+)  - \S.*")
COUNT = re.compile(r"(\d+) checks: (\d+) passed, (\d+) warnings, 0 failed, 0 skipped; [\d.]+ s")


def declared(site: Site) -> set[str]:
    """Return the queues and exchanges of an agent that exist on the broker."""
    queues = [wire.DEAD, wire.task_queue(site.agent.instance_id)]
    wanted = [("queue", name) for name in queues]
    wanted += [("exchange", name) for name in (wire.TASK_EXCHANGE, wire.DEAD)]
    found = set()
    with pika.BlockingConnection(site.agent.rabbitmq.parameters()) as connection:
        for kind, name in wanted:
            channel = connection.channel()
            with contextlib.suppress(ChannelClosedByBroker):
                getattr(channel, f"{kind}_declare")(name, passive=True)
                found.add(f"{kind} {name}")
    return found


def test_every_check_passes_and_nothing_is_left_behind(whole_site: Site) -> None:
    """Run the whole program as it is installed, with streams of their real length."""
    site = whole_site
    site.look("store")  # this creates the containers, which stay
    before = (site.stored(), site.entries(), declared(site))
    done = site.agent.cli("self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert (site.stored(), site.entries(), declared(site)) == before
    *lines, last = done.stdout.splitlines()
    shown = [match for line in lines if (match := LINE.fullmatch(line))]
    others = [line for line in lines if not LINE.fullmatch(line)]
    assert all(line.startswith("      what to do: ") for line in others)
    assert [(match[2], match[3]) for match in shown] == [
        (group, name) for group, names in PLAN.items() for name in names
    ]
    warned = {f"{match[2]}: {match[3]}" for match in shown if match[1] == "WARN"}
    assert warned <= OF_THE_MACHINE
    assert len(others) == len(warned)
    counts = COUNT.fullmatch(last)
    assert counts, last
    assert int(counts[1]) == len(shown) == int(counts[2]) + int(counts[3])
    assert done.stdout.isascii()
    assert waiting_reports(site.agent) == 0
    assert site.agent.rabbitmq.password not in done.stdout


def test_a_failure_as_json_and_as_exit_status(site: Site) -> None:
    (site.agent.folder / "store-key").chmod(0o640)
    done = site.agent.cli("self-test", "--json", "--only", "configuration", "--only", "keys")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    [failed] = [one for one in told["results"] if one["verdict"] == "FAIL"]
    assert (failed["group"], failed["name"]) == ("configuration", "store key")
    assert failed["cure"].startswith("chmod 0600 ")
    assert told["checks"] == len(PLAN["configuration"]) + len(PLAN["keys"])
    assert told["failed"] == 1
    assert told["seconds"] >= 0


@pytest.mark.parametrize("arguments", [("--only", "everything"), ("--only",)])
def test_wrong_usage(site: Site, arguments: tuple[str, ...]) -> None:
    done = site.agent.cli("self-test", *arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr


def test_before_anything_is_there(site: Site) -> None:
    """The command prints no traceback on a machine without any file of the agent."""
    argv = [sys.executable, "-m", "agent", "--config", f"/nowhere/{uuid.uuid4()}", "self-test"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.startswith("FAIL  configuration: file  - ")
    assert ", 1 failed, " in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_takes_away_what_it_had_put(
    site: Site, swift: SwiftServer, number: signal.Signals
) -> None:
    before = site.stored()
    # the first segment of the stream is stored, and a later one is under way
    swift.inject(
        [{"method": "PUT", "match": "/00000002$", "times": 9, "action": "stall", "seconds": 2}]
    )
    process = site.agent.spawn("self-test", "--only", "data-path")
    poll("something is stored", lambda: site.stored() != before, 30)
    process.stop(number, 30)
    assert process.returncode == 1
    assert site.stored() == before
    assert "Traceback" not in process.tail()


def test_a_real_backup_and_a_trial_restore(site: Site) -> None:
    before = (site.stored(), site.entries())
    results = site.look(*TRIAL)
    assert [(one.verdict.value, one.name) for one in results] == [
        ("PASS", name) for name in TRIAL["trial"]
    ], results
    assert (site.stored(), site.entries()) == before
