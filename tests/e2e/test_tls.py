"""TLS to a real RabbitMQ that demands client certificates, and to real Keystone and Swift."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import wiring
from agent.broker.amqp import BrokerSettings
from agent.broker.client import ControlClient
from agent.config.reading import load
from agent.errors import AgentError, BrokerDenied, BrokerUnreachable, BrokerUntrusted, ConfigInvalid
from agent.machine.tls import ClientCertificate
from agent.selftest.check import Verdict
from tests.broker.probe import settings_for
from tests.broker.site import Site
from tests.conftest import need
from tests.house.source import CHECKOUT
from tests.selftest.site import look
from tests.stack.agent import Agent
from tests.stack.certificate import HOUR, Authority
from tests.stack.fixtures_keystone import need_keystone
from tests.stack.keystone import KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.process import poll
from tests.stack.proxy import proxied
from tests.stack.rabbitmq import SERVER, USER, VHOST, RabbitMQ
from tests.stack.swift import SwiftServer
from tests.stack.tls_relay import relayed

# Variables that make other programs trust another authority, or go through a proxy.
NONSENSE = {
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "/nowhere/ca.pem"),
    **dict.fromkeys(
        ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"
    ),
    "SSL_CERT_DIR": "/nowhere",
    "PYTHONHTTPSVERIFY": "0",
}

OLD = (-2 * HOUR, -HOUR)


class Door(NamedTuple):
    """A Swift behind a Keystone, as the configuration of an agent names it."""

    auth_url: str
    storage_url: str
    user: str
    key: str


class Place(NamedTuple):
    """Three servers that speak TLS, with certificates of `authority`."""

    authority: Authority
    unknown: Authority
    rabbitmq: RabbitMQ
    keystone: KeystoneServer
    swift: SwiftServer

    @property
    def door(self) -> Door:
        user = self.keystone.agent
        return Door(self.keystone.auth_url, self.swift.storage_url, user.name, user.password)

    def certificate(self, name: str, authority: Authority | None = None, **more: Any) -> Path:
        return (authority or self.authority).issue(name, client=True, **more)

    def settings(self, own: Path | None, **more: Any) -> BrokerSettings:
        """Return settings for the login by the certificate `own`, unless `more` has a password."""
        values = {
            "url": f"amqps://127.0.0.1:{self.rabbitmq.tls_port}/{VHOST}",
            "password": "",
            "ca_file": self.authority.file,
            "certificate": ClientCertificate(own, own, lambda: None) if own else None,
        }
        return settings_for(self.rabbitmq, **(values | more))


@pytest.fixture(scope="module")
def place(scratch: Path) -> Iterator[Place]:
    need("epmd", SERVER)
    need_keystone()
    authority = Authority(scratch / "tls-place" / "known")
    server = authority.issue("server")
    rabbitmq = RabbitMQ(scratch / "tls-rabbitmq", tls=server, client_ca=authority.file)
    folder = scratch / "tls-place"
    keystone = KeystoneServer(folder / "keystone", certificate=server, ca_file=authority.file)
    swift = SwiftServer(folder / "swift", certificate=server, keystone=keystone)
    servers: tuple[RabbitMQ | KeystoneServer | SwiftServer, ...] = (rabbitmq, keystone, swift)
    with ExitStack() as ends:
        for one in servers:
            ends.callback(one.stop)
            one.launch()
        for one in servers:
            one.wait_ready()
        keystone.add_object_store(swift.address)
        yield Place(authority, Authority(folder, "stranger"), rabbitmq, keystone, swift)


@pytest.fixture(scope="module")
def agent(scratch: Path, place: Place, mariadb: MariaDB) -> Iterator[Agent]:
    """Yield an agent whose two users have certificates and no passwords."""
    agent = Agent(scratch / "tls-agent", place.rabbitmq, place.door, mariadb)
    script = CHECKOUT / "script" / "broker-definitions"
    made = subprocess.run(
        [script, "instance", agent.instance_id, "-", "-"],
        env={**os.environ, "QUEUE_TYPE": "classic"},
        capture_output=True,
        text=True,
        check=True,
    )
    place.rabbitmq.define(made.stdout)
    own, operator = (
        place.certificate(f"{role}-{agent.instance_id}", valid=(-HOUR, 1000 * HOUR))
        for role in ("agent", "operator")
    )
    url = f"amqps://127.0.0.1:{place.rabbitmq.tls_port}/{VHOST}"
    agent.overrides = {
        "broker": {
            "url": url,
            "control_url": url,
            "password_file": None,
            "ca_file": place.authority.file,
            "certificate_file": own,
            "key_file": own,
            "control_certificate_file": operator,
            "control_key_file": operator,
        },
        "store": login(place.keystone) | {"ca_file": place.authority.file},
    }
    agent.write()
    yield agent
    agent.stop()


def login(keystone: KeystoneServer) -> dict[str, object]:
    """Return the keys of [store] for the login of the user `agent`."""
    return {
        "auth": "v3password",
        "user_domain": keystone.agent.domain,
        "project": keystone.project,
        "project_domain": keystone.project_domain,
    }


def refusal(settings: BrokerSettings) -> AgentError:
    with pytest.raises(AgentError) as caught, ControlClient(settings):
        pass
    return caught.value


def test_a_backup_and_a_restore_whatever_the_environment_says(agent: Agent) -> None:
    agent.start(NONSENSE)
    checked = agent.cli("self-test", environment=NONSENSE)
    assert "FAIL" not in checked.stdout, checked.stdout
    assert "PASS  broker: login" in checked.stdout
    assert "as the user of the agent's certificate in the virtual host backup" in checked.stdout
    made = agent.cli(
        "backup-create", agent.instance_id, "tls", "--wait", "--json", environment=NONSENSE
    )
    assert made.returncode == 0, made.stderr
    target = agent.folder / "restore" / "tls"
    backup = json.loads(made.stdout)["id"]
    restored = agent.cli("restore", backup, target, "--wait", environment=NONSENSE)
    assert restored.returncode == 0, restored.stderr
    assert (target / "ibdata1").exists()
    assert agent.stop() == 0


def test_the_user_of_a_certificate_has_no_password(agent: Agent, place: Place) -> None:
    user = f"agent-{agent.instance_id}"
    url = f"amqps://{user}@127.0.0.1:{place.rabbitmq.tls_port}/{VHOST}"
    for password in ("", "word"):
        settings = place.settings(place.certificate("another"), url=url, password=password)
        error = refusal(settings)
        assert type(error) is BrokerDenied
        assert user in str(error)


def test_a_certificate_and_a_password(place: Place) -> None:
    """The certificate is for the connection only. The user is that of the URL."""
    url, word = place.rabbitmq.tls_url, place.rabbitmq.password
    stranger = place.certificate("stranger")
    with ControlClient(place.settings(stranger, url=url, password=word)):
        pass
    error = refusal(place.settings(stranger, url=url, password="wrong"))
    assert f"refuses the user {USER}: wrong password?" in str(error)


def test_a_certificate_of_a_user_that_does_not_exist(place: Place) -> None:
    error = refusal(place.settings(place.certificate("nobody-at-all")))
    assert type(error) is BrokerDenied
    assert "is there a user with the certificate's name?" in str(error)
    assert "ssl_cert_login_from" in error.hint


def test_a_broker_that_offers_no_login_by_certificate(place: Place) -> None:
    """RabbitMQ offers it only on a TLS connection with a certificate of the client."""
    with relayed(place.rabbitmq.port, place.authority.issue("relay")) as relay:
        url = f"amqps://127.0.0.1:{relay.port}/{VHOST}"
        error = refusal(place.settings(place.certificate(USER), url=url))
    assert type(error) is BrokerDenied
    assert "offers no login by certificate" in str(error)
    assert "rabbitmq_auth_mechanism_ssl" in error.hint


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("none", "demands a certificate of the agent"),
        ("expired", "says that the agent's certificate has expired"),
        ("unknown", "doesn't know the authority of the agent's certificate"),
    ],
)
def test_a_certificate_that_the_broker_refuses(place: Place, fault: str, says: str) -> None:
    """The reason is known even if the connection is reset before the agent can read it."""
    files = {
        "none": None,
        "expired": place.certificate(USER, valid=OLD),
        "unknown": place.certificate(USER, place.unknown),
    }
    for resets in (0, 1):
        with proxied(place.rabbitmq.tls_port, resets) as proxy:
            url = f"amqps://{USER}@127.0.0.1:{proxy.port}/{VHOST}"
            error = refusal(place.settings(files[fault], url=url, password="any"))
        assert type(error) is BrokerUntrusted
        assert says in str(error)
        assert "[broker] certificate_file and key_file" in error.hint


def test_a_reset_connection_is_no_refused_certificate(place: Place) -> None:
    with proxied(place.rabbitmq.tls_port, 2) as proxy:
        url = f"amqps://127.0.0.1:{proxy.port}/{VHOST}"
        error = refusal(place.settings(place.certificate(USER), url=url))
    assert type(error) is BrokerUnreachable
    assert error.retryable


@pytest.mark.parametrize("renewed", ["the agent's", "the broker's"])
def test_a_link_connects_when_a_certificate_is_renewed(
    place: Place, tmp_path: Path, renewed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It tries for ever, and logs the reason once."""
    agents = renewed == "the agent's"
    with ExitStack() as cleanup:
        file = place.authority.issue(USER, client=agents, valid=OLD)
        if agents:
            settings = place.settings(file)
            says = "says that the agent's certificate has expired"
        else:
            relay = cleanup.enter_context(relayed(place.rabbitmq.port, file))
            url = f"amqps://{USER}@127.0.0.1:{relay.port}/{VHOST}"
            settings = place.settings(None, url=url, password=place.rabbitmq.password)
            says = "the server's certificate, or the one of its authority, has expired"
        site = Site(place.rabbitmq, tmp_path, cleanup)
        link = site.link(settings=settings)
        poll("the reason is shown", lambda: says in link.trouble, 10)
        beats = link.beats
        poll("it has tried again", lambda: link.beats > beats + 1, 10)
        assert link.alive()
        assert caplog.text.count(says) == 1
        assert "broker_untrusted" in caplog.text
        assert place.authority.issue(USER, client=agents) == file
        assert link.consuming.wait(10)
        assert link.trouble == ""


def test_a_key_that_others_can_read(agent: Agent) -> None:
    config = load(agent.config)
    assert config.broker is not None
    assert config.broker.key_file is not None
    config.broker.key_file.chmod(0o644)
    try:
        with pytest.raises(ConfigInvalid, match=r"^\[broker\] key_file: .* by others"):
            wiring.broker(config)
    finally:
        config.broker.key_file.chmod(0o600)


def test_the_self_test_names_each_fault(agent: Agent, place: Place) -> None:
    """There is one FAIL for each edge. Checks that need it are skipped."""
    usual = {name: dict(keys) for name, keys in agent.overrides.items()}
    faults = {
        "is not for 127.0.0.1": place.authority.issue("wrong", names=["db.example.com"]),
        "has expired": place.authority.issue("old", valid=OLD),
        "unknown authority": place.unknown.issue("foreign"),
    }
    try:
        for says, certificate in faults.items():
            with relayed(place.rabbitmq.port, certificate) as relay:
                agent.overrides["broker"]["url"] = f"amqps://127.0.0.1:{relay.port}/{VHOST}"
                agent.overrides["store"]["url"] = f"swift:https://127.0.0.1:{relay.port}/v3"
                agent.write()
                results = look(agent.config, "broker", "store")
            failed = [one for one in results if one.verdict is Verdict.FAIL]
            assert [one.label for one in failed] == ["broker: login", "store: login"]
            for one in failed:
                assert says in one.found
                assert "openssl s_client" in one.cure
    finally:
        agent.overrides = usual
        agent.write()


def test_a_command_with_an_untrusted_broker_says_what_works_without(
    agent: Agent, place: Place
) -> None:
    variable = "BACKUP_AGENT_BROKER__CONTROL_URL"
    with relayed(place.rabbitmq.port, place.unknown.issue("foreign")) as relay:
        done = agent.cli(
            *("backup-create", agent.instance_id, "any"),
            environment={variable: f"amqps://127.0.0.1:{relay.port}/{VHOST}"},
        )
    assert done.returncode == 1
    assert done.stderr.startswith("backup-agent: broker_untrusted: ")
    assert "[broker] ca_file" in done.stderr
    assert "--local, which needs no broker" in done.stderr


def test_the_self_test_warns_before_the_agents_certificate_expires(
    agent: Agent, place: Place
) -> None:
    usual = agent.overrides["broker"]
    soon = place.certificate(f"agent-{agent.instance_id}", valid=(-HOUR, 13 * 24 * HOUR))
    try:
        agent.overrides["broker"] = usual | {"certificate_file": soon, "key_file": soon}
        agent.write()
        [login] = [one for one in look(agent.config, "broker") if one.label == "broker: login"]
        assert login.verdict is Verdict.WARN
        assert f"renew {soon}" in login.cure
    finally:
        agent.overrides["broker"] = usual
        agent.write()


def test_an_untrusted_store_fails_a_backup_at_once_and_lets_a_delete_wait(
    agent: Agent, place: Place, tmp_path: Path
) -> None:
    """The authority of the store changes while the agent runs. It reads the file again."""
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(place.authority.file.read_bytes())
    usual = agent.overrides
    agent.overrides = usual | {"store": login(place.keystone) | {"ca_file": ca_file}}
    agent.start()
    try:
        backup = agent.create("kept")["id"]
        place.swift.stop()  # so that no connection stays open
        _replace(ca_file, place.unknown.file)
        place.swift.start()
        made = agent.cli("backup-create", agent.instance_id, "refused", "--wait")
        assert made.returncode == 1
        assert "store_untrusted" in made.stderr
        assert "comes from an unknown authority" in made.stderr
        assert "retry in" not in agent.log.read_text()

        _replace(ca_file, place.authority.file)
        stall = {"method": "DELETE", "match": "_segments", "action": "stall", "seconds": 60}
        place.swift.inject([stall | {"times": 99}])
        deleting = agent.spawn("backup-delete", backup, "--wait")
        poll("it deletes", lambda: "_segments" in _last_stall(place.swift), 20)
        place.swift.kill()
        place.swift.clear_faults()
        _replace(ca_file, place.unknown.file)
        place.swift.start()
        waits = re.compile("waits for the store.*comes from an unknown authority")
        poll("the delete waits", lambda: bool(waits.search(agent.log.read_text())), 60)
        assert deleting.running()
        _replace(ca_file, place.authority.file)
        poll("the delete ends", lambda: not deleting.running(), 60)
        assert deleting.returncode == 0
    finally:
        agent.stop()
        agent.overrides = usual
        agent.write()
    assert "backup_unknown" in agent.cli("backup-show", backup).stderr


def _last_stall(swift: SwiftServer) -> str:
    """Return the last request that was stalled, or ""."""
    return next((line for line in reversed(swift.requests()) if line.endswith("stall")), "")


def _replace(path: Path, content: Path) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(content.read_bytes())
    draft.replace(path)
