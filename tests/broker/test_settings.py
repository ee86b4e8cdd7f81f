"""Tests of the broker's URL and of parts that must not be in it."""

import logging
from pathlib import Path

import pika
import pytest
from pika.adapters.utils import connection_workflow
from pika.exceptions import AMQPError

from agent.broker.amqp import Address, BrokerSettings, broker_error, parameters, translated
from agent.errors import BrokerDenied, BrokerError, BrokerUnreachable, ConfigInvalid
from agent.machine.tls import ClientCertificate
from tests.stack.certificate import Authority

SECRET = "hunter2-not-in-any-text"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://u@h/v", Address(False, "h", 5672, "u", "v")),
        ("amqps://u@h/v", Address(True, "h", 5671, "u", "v")),
        ("amqp://u@h:99/v", Address(False, "h", 99, "u", "v")),
        ("amqp://u@h", Address(False, "h", 5672, "u", "/")),
        ("amqp://u@h/", Address(False, "h", 5672, "u", "/")),
        ("amqp://u@h/%2F", Address(False, "h", 5672, "u", "/")),
        ("amqp://u@h/a%2Fb%20c", Address(False, "h", 5672, "u", "a/b c")),
        ("amqp://u%40x@[::1]:5/v", Address(False, "::1", 5, "u@x", "v")),
    ],
)
def test_a_url_names_an_address(url: str, address: Address) -> None:
    assert BrokerSettings(url, SECRET).address == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must begin with amqp"),
        ("http://u@h/v", "must begin with amqp"),
        (f"amqp://u:{SECRET}@h/v", "holds a password"),
        ("amqp://u:@h/v", "holds a password"),
        ("amqp://h/v", "must have the form"),
        ("amqp://u@/v", "must have the form"),
        ("amqp://u@h/v/w", "must have the form"),
        ("amqp://u@h/v?heartbeat=0", "must have the form"),
        ("amqp://u@h/v#x", "must have the form"),
        ("amqp://u@h:port/v", "is not a URL"),
        ("amqp://u@h:70000/v", "is not a URL"),
        ("amqp://u@h/%ff", "is not a URL"),
        ("amqp://u@[h/v", "is not a URL"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url: str, says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says) as caught:
        BrokerSettings(url, SECRET)
    assert SECRET not in str(caught.value)


def test_the_password_is_in_no_text() -> None:
    settings = BrokerSettings("amqp://u@h/v", SECRET)
    assert SECRET not in repr(settings)
    assert SECRET not in settings.where
    assert parameters(settings, "x").credentials.password == SECRET


def test_a_certificate_authority_needs_tls_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="begins with amqps"):
        BrokerSettings("amqp://u@h/v", SECRET, ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigInvalid, match=r"ca_file .*ca\.pem"):
        BrokerSettings("amqps://u@h/v", SECRET, ca_file=tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigInvalid, match=r"ca_file .*ca\.pem"):
        BrokerSettings("amqps://u@h/v", SECRET, ca_file=tmp_path / "ca.pem")


def test_a_certificate_is_a_login_of_its_own(tmp_path: Path) -> None:
    own = Authority(tmp_path).issue("own", client=True)
    certificate = ClientCertificate(own, own, lambda: None)
    with pytest.raises(ConfigInvalid, match=r"certificate_file needs .* begins with amqps"):
        BrokerSettings("amqp://u@h/v", "", certificate=certificate)
    with pytest.raises(ConfigInvalid, match="must have the form"):
        BrokerSettings("amqps://h/v", SECRET, certificate=certificate)
    alone = BrokerSettings("amqps://h/v", "", certificate=certificate)
    assert parameters(alone, "x").credentials.TYPE == "EXTERNAL"
    both = BrokerSettings("amqps://u@h/v", SECRET, certificate=certificate)
    assert parameters(both, "x").credentials.TYPE == "PLAIN"
    assert "PRIVATE" not in repr(both)


def test_the_files_are_read_for_each_connection(tmp_path: Path) -> None:
    own = Authority(tmp_path).issue("own", client=True)
    checked: list[None] = []
    certificate = ClientCertificate(own, own, lambda: checked.append(None))
    settings = BrokerSettings("amqps://h/v", "", certificate=certificate)
    for count in (2, 3):
        parameters(settings, "x")
        assert len(checked) == count
    own.unlink()
    with pytest.raises(ConfigInvalid, match=f"certificate_file: {own} can't be read"):
        parameters(settings, "x")


def test_pika_does_not_log_what_we_say() -> None:
    parameters(BrokerSettings("amqp://u@h/v", SECRET), "x")
    assert not logging.getLogger("pika.connection").isEnabledFor(logging.ERROR)


def _errors_of(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _errors_of(child))]


@pytest.mark.parametrize(
    "kind",
    _errors_of(AMQPError) + _errors_of(connection_workflow.AMQPConnectorException),
    ids=lambda kind: kind.__name__,
)
def test_no_error_of_pika_is_left_unmapped(kind: type[BaseException]) -> None:
    settings = BrokerSettings("amqp://u@h/v", SECRET)
    error = kind.__new__(kind, 541, "why")
    error.args = (541, "why")
    if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
        error.exceptions = (OSError("why"),)
    if isinstance(error, connection_workflow.AMQPConnectorPhaseErrorBase):
        error.exception = OSError("why")
    with pytest.raises(BrokerError, match="h:5672"), translated(settings):
        raise error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (pika.exceptions.ProbableAuthenticationError("x"), BrokerDenied, "the user u"),
        (pika.exceptions.ProbableAccessDeniedError("x"), BrokerDenied, "virtual host v"),
        (pika.exceptions.ConnectionClosedByBroker(530, "no vhost"), BrokerDenied, "no vhost"),
        (pika.exceptions.ChannelClosedByBroker(403, "no right"), BrokerDenied, "no right"),
        (pika.exceptions.ChannelClosedByBroker(406, "differs"), BrokerDenied, "differs"),
        (pika.exceptions.ConnectionClosedByBroker(320, "bye"), BrokerUnreachable, "bye"),
        (pika.exceptions.AMQPHeartbeatTimeout("no beat"), BrokerUnreachable, "no beat"),
        (TimeoutError(), BrokerUnreachable, "TimeoutError"),
        (connection_workflow.AMQPConnectorStackTimeout(), BrokerUnreachable, "no answer in time"),
    ],
)
def test_an_error_says_what_happened(
    error: BaseException, kind: type[BrokerError], says: str
) -> None:
    told = broker_error(BrokerSettings("amqp://u@h/v", SECRET), error)
    assert type(told) is kind
    assert says in str(told)
