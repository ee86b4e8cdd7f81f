"""For each fault of the broker, the store or the stream, exactly the right check fails."""

from pathlib import Path

import pytest
from swiftclient import client

from agent.selftest import datapath
from agent.selftest.check import Verdict
from agent.selftest.context import Context
from agent.selftest.plan import chosen
from agent.selftest.run import Run
from tests.selftest.site import Site, fails, labels, warns
from tests.stack.agent import write_private
from tests.stack.process import free_port
from tests.stack.swift import SwiftServer

# --- broker -----------------------------------------------------------------------------------


def test_a_broker_that_does_not_run(site: Site) -> None:
    url = f"amqp://agent@127.0.0.1:{free_port()}/backup"
    site.write({"broker": {"url": url}})
    fails(site.look(), "broker: reach", "start RabbitMQ", "[broker] url")


def test_a_virtual_host_that_is_not_there(site: Site) -> None:
    site.write({"broker": {"url": site.agent.rabbitmq.url + "-missing"}})
    fails(site.look(), "broker: login", "rabbitmqctl add_vhost backup-missing")


def test_a_wrong_broker_password(site: Site, tmp_path: Path) -> None:
    write_private(tmp_path / "wrong", "not the password")
    site.write({"broker": {"password_file": tmp_path / "wrong"}})
    fails(site.look(), "broker: login", "[broker] password_file")


def test_no_broker_at_all(site: Site, tmp_path: Path) -> None:
    """Check the embedded use, which has only commands, and a folder as the store."""
    config = site.agent.config
    site.write({"store": {"url": f"file://{tmp_path}/backups"}})
    text = config.read_text()
    write_private(config, text[: text.index("[broker]")] + text[text.index("[store]") :])
    results = site.look()
    warns(results)
    assert labels(results, Verdict.SKIP) == {one.label for one in results if one.group == "broker"}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- store ------------------------------------------------------------------------------------


def test_a_wrong_store_key(site: Site, tmp_path: Path) -> None:
    write_private(tmp_path / "wrong", "not the key")
    site.write({"store": {"key_file": tmp_path / "wrong"}})
    fails(site.look(), "store: login", "[store] user and key_file")


def test_a_store_that_does_not_run(site: Site) -> None:
    site.write({"store": {"url": f"swift:http://127.0.0.1:{free_port()}/auth/v1.0"}})
    fails(site.look("store", "data path"), "store: login", "[store] url")


def test_an_account_that_may_make_no_container(site: Site) -> None:
    site.write({"store": {"user": SwiftServer.reader}})
    fails(site.look(), "store: container", "the account's rights")


def test_a_store_in_the_datadir(site: Site) -> None:
    folder = site.agent.mariadb.datadir / "bk"
    site.write({"store": {"url": f"file://{folder}"}})
    fails(site.look(), "store: container", "a folder outside of it")
    assert not folder.exists()


def test_a_store_elsewhere_without_tls(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.selftest.store.is_this_machine", lambda _name: False)
    results = site.look("store")
    assert labels(results, Verdict.WARN) == {"store: login"}
    assert not labels(results, Verdict.FAIL)
    [login] = [one for one in results if one.name == "login"]
    assert "has no TLS" in login.found
    assert "https://" in login.cure


def test_a_container_that_takes_no_objects(site: Site, swift: SwiftServer) -> None:
    swift.inject([{"method": "PUT", "match": "/database_[^/]*/", "times": 99, "status": 403}])
    fails(site.look(), "store: put", "right to write")


def test_a_full_container(site: Site, swift: SwiftServer) -> None:
    site.look("store")
    container = f"database_backups_{site.agent.tenant_id}_segments"
    quota = "X-Container-Meta-Quota-Bytes"
    url, token = client.get_auth_1_0(swift.auth_url, swift.user, swift.key)
    client.post_container(url, token, container, {quota: "1"})
    try:
        fails(site.look(), "store: put", "raise the quota")
    finally:
        client.post_container(url, token, container, {quota: ""})


def test_a_clock_that_is_an_hour_off(site: Site, swift: SwiftServer) -> None:
    swift.inject([{"match": "", "times": 9999, "action": "date", "seconds": 3600}])
    fails(site.look(), "store: clock", "NTP")


@pytest.mark.parametrize(("seconds", "verdict"), [(-3600, "FAIL"), (20, "WARN"), (-20, "WARN")])
def test_a_clock_that_is_off(site: Site, swift: SwiftServer, seconds: int, verdict: str) -> None:
    swift.inject([{"match": "", "times": 9999, "action": "date", "seconds": seconds}])
    assert labels(site.look("store"), Verdict(verdict)) == {"store: clock"}


def test_a_store_that_falls_silent_in_the_stream(site: Site, swift: SwiftServer) -> None:
    """The self-test deletes the segments that it has stored, as far as the store permits."""
    swift.inject([{"method": "PUT", "match": "/0000000[1-9]$", "times": 99, "status": 503}])
    before = site.stored()
    fails(site.look("data path"), "data path: round trip", "try again later")
    assert site.stored() == before


# --- data path --------------------------------------------------------------------------------


def test_damage_that_nobody_notices(site: Site, swift: SwiftServer) -> None:
    """The store loses the damaged segment, so that the self-test reads an intact one."""
    first = {"method": "PUT", "match": "/00000000$", "action": "stall", "seconds": 0}
    swift.inject([first, {"method": "PUT", "match": "/00000000$", "action": "lose"}])
    fails(site.look("data path"), "data path: damage", "defect")


def test_a_wrong_key_that_opens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys are equal here, because `os.urandom` returns zeros."""
    monkeypatch.setattr("os.urandom", bytes)
    fails(site.look("data path"), "data path: wrong key", "defect")


def test_bytes_that_come_back_changed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(datapath._Pattern):
        def rewind(self) -> None:
            super().rewind()
            self._view = memoryview(bytes(len(self._view)))

    monkeypatch.setattr(datapath, "_Pattern", Forgetful)
    fails(site.look("data path"), "data path: round trip")


def test_a_datadir_that_takes_more_than_a_day(site: Site) -> None:
    context = Context(site.agent.config, {})
    context.datadir_bytes = 1 << 50
    run = Run(context, lambda _result: None)
    run.all(chosen(("data path",)))
    warns(run.results, "data path: estimate")
