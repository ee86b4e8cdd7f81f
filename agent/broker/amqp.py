"""Settings and connection parameters for RabbitMQ, and the translation of its errors.

Only the modules of this package use pika.
"""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import pika
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorException,
    AMQPConnectorPhaseErrorBase,
    AMQPConnectorStackTimeout,
)
from pika.credentials import ExternalCredentials
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AuthenticationError,
    ChannelClosed,
    ConnectionClosed,
    ConnectionOpenAborted,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from agent.broker.rights import Rights
from agent.broker.wire import CONTENT_TYPE
from agent.errors import (
    BrokerDenied,
    BrokerError,
    BrokerUnreachable,
    BrokerUntrusted,
    ConfigInvalid,
)
from agent.machine.tls import ClientCertificate, client_context, explain

QueueType = Literal["quorum", "classic"]
_PERSISTENT: Final = 2
_PORTS: Final = {"amqp": 5672, "amqps": 5671}
# AMQP 0-9-1 reply codes: 403 access-refused, 404 not-found, 406 precondition-failed,
# 530 not-allowed.
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
_DENIALS: Final = (ACCESS_REFUSED, 406, 530)

# How long to wait for a refusal. A broker that accepts the certificate sends nothing.
_ALERT_SECONDS: Final = 2.0
_FORM: Final = "[broker] url must have the form amqp://user@host:port/vhost"
_LOGIN_HINT: Final = (
    "set [broker] control_url and control_password_file to a user that has this right: see "
    "Rights on the broker in docs/operations.md"
)
_MISSING_HINT: Final = (
    "wait a minute: an agent that has the right to create the missing exchange or queue does so. "
    "Otherwise import the definitions that script/broker-definitions prints: see Rights on the "
    "broker in docs/operations.md"
)


class Address(NamedTuple):
    """The parts of a broker URL. `user` is "" if the URL names none."""

    tls: bool
    host: str
    port: int
    user: str
    vhost: str


@dataclass(frozen=True)
class BrokerSettings:
    """The address of the broker, the login, and the deadlines.

    `url` has the form `amqp://user@host:port/vhost`, with `amqps` for TLS. The virtual host is
    percent-encoded. It is `/` if the URL names none. `certificate` is shown to the broker. With a
    certificate and without a password, the login is by the certificate (EXTERNAL). The certificate
    names the user then, so the URL need not. All files are read again for each connection, so
    that renewed certificates are used.

    `rights` are the rights that the user should have, or None if they are not known. `heartbeat` is
    in seconds. Each wait has a deadline: `connect_seconds` for a connection, `answer_seconds` for
    the broker's answer to one request.

    Raises:
        ConfigInvalid: the URL can't be used, `ca_file` or `certificate` is set for a URL without
            TLS, or one of their files can't be used.
    """

    url: str
    password: str = field(repr=False)
    ca_file: Path | None = None
    certificate: ClientCertificate | None = None
    queue_type: QueueType = "quorum"
    rights: Rights | None = None
    heartbeat: int = 30
    connect_seconds: float = 10.0
    answer_seconds: float = 30.0

    def __post_init__(self) -> None:
        address = self.address
        for key, given in (("ca_file", self.ca_file), ("certificate_file", self.certificate)):
            if given and not address.tls:
                raise ConfigInvalid(f"[broker] {key} needs a url that begins with amqps:")
        if not address.user and not self.external:
            also = "; without password_file, its user may be missing" if self.certificate else ""
            raise ConfigInvalid(f"{_FORM}{also}")
        if address.tls:
            _tls(self)  # raise at once if a file can't be used

    @property
    def address(self) -> Address:
        return _parse(self.url)

    @property
    def external(self) -> bool:
        """Return True if the login is by the certificate."""
        return self.certificate is not None and not self.password

    @property
    def user(self) -> str:
        """Return the user's name for messages."""
        return self.address.user or "of the agent's certificate"

    @property
    def where(self) -> str:
        """Return the broker's name for messages."""
        return f"RabbitMQ at {self.address.host}:{self.address.port}"


def _parse(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port
        user = unquote(parts.username or "", errors="strict")
        vhost = unquote(parts.path[1:], errors="strict") or "/"
    except ValueError:
        raise ConfigInvalid("[broker] url is not a URL") from None
    if parts.scheme not in _PORTS:
        raise ConfigInvalid("[broker] url must begin with amqp: or amqps:")
    if parts.password is not None:
        raise ConfigInvalid("[broker] url holds a password: put it into [broker] password_file")
    if not parts.hostname or _has_extra(parts):
        raise ConfigInvalid(_FORM)
    return Address(
        parts.scheme == "amqps", parts.hostname, port or _PORTS[parts.scheme], user, vhost
    )


def _has_extra(parts: SplitResult) -> bool:
    return bool(parts.query or parts.fragment or "/" in parts.path[1:])


def parameters(settings: BrokerSettings, client: str) -> pika.ConnectionParameters:
    """Return the settings as pika's parameters.

    The broker shows `client` as the name of the connection.
    """
    # The agent translates pika's errors and raises them. pika would also log each of them with
    # a traceback.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    address = settings.address
    credentials = (
        ExternalCredentials()
        if settings.external
        else pika.PlainCredentials(address.user, settings.password)
    )
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=credentials,
        heartbeat=settings.heartbeat,
        blocked_connection_timeout=2 * settings.answer_seconds,
        socket_timeout=settings.connect_seconds,
        stack_timeout=settings.connect_seconds,
        connection_attempts=1,
        ssl_options=_tls(settings) if address.tls else None,
        client_properties={"connection_name": client, "product": "backup-agent"},
    )


def properties(**more: Any) -> pika.BasicProperties:
    """Return the properties of every message.

    The content is JSON, and the message survives a restart of the broker.
    """
    return pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=_PERSISTENT, **more)


def _tls(settings: BrokerSettings) -> pika.SSLOptions:
    context = client_context("broker", settings.ca_file, settings.certificate)
    return pika.SSLOptions(context, settings.address.host)


@contextmanager
def translated(settings: BrokerSettings) -> Iterator[None]:
    """Turn errors of pika, TLS and sockets into BrokerError, which no other place does."""
    try:
        yield
    except (AMQPError, AMQPConnectorException, OSError) as error:
        raise broker_error(settings, error) from error


def broker_error(settings: BrokerSettings, error: BaseException) -> BrokerError:
    """Return the BrokerError that explains an error of pika, TLS or a socket to the operator."""
    cause = _cause(error)
    address = settings.address
    if isinstance(cause, ConnectionClosed | ChannelClosed):
        return _closed(settings, cause)
    refused = isinstance(cause, AuthenticationError | ProbableAuthenticationError)
    # first, because pika may take a refused certificate for a refused login
    place = f"{_bracketed(address.host)}:{address.port}"
    fault = explain(cause, "broker", place) if address.tls else None
    if fault and (fault.untrusted or not refused):
        kind = BrokerUntrusted if fault.untrusted else BrokerUnreachable
        return kind(f"{settings.where}: {fault.reason}", hint=fault.hint)
    if refused:
        return _login_refused(settings, cause)
    if isinstance(cause, ProbableAccessDeniedError):
        return BrokerDenied(
            f"{settings.where} refuses the virtual host {address.vhost} to the user "
            f"{settings.user}",
            hint=f"correct it in [broker] url, or run: rabbitmqctl add_vhost {address.vhost}; "
            f"{_rights_hint(settings)}",
        )
    return BrokerUnreachable(f"{settings.where} can't be reached: {_text(cause)}")


def _closed(settings: BrokerSettings, cause: ConnectionClosed | ChannelClosed) -> BrokerError:
    """Return the error for a connection or channel that was closed for a reason."""
    text = f"{settings.where} refuses: {cause.reply_text}"
    if cause.reply_code == ACCESS_REFUSED:
        return BrokerDenied(text, hint=_rights_hint(settings))
    if cause.reply_code == NOT_FOUND:
        return BrokerUnreachable(text, hint=_MISSING_HINT)
    return BrokerDenied(text) if cause.reply_code in _DENIALS else BrokerUnreachable(text)


def _login_refused(settings: BrokerSettings, cause: BaseException) -> BrokerError:
    user = settings.user
    if settings.external and not isinstance(cause, ProbableAuthenticationError):
        return BrokerDenied(
            f"{settings.where} offers no login by certificate (EXTERNAL)",
            hint="run rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl, and add EXTERNAL to "
            "auth_mechanisms in rabbitmq.conf; or set [broker] password_file",
        )
    if settings.external:
        return BrokerDenied(
            f"{settings.where} refuses the user {user}: is there a user with the certificate's "
            "name?",
            hint="make a user with the name in the certificate (ssl_cert_login_from says which "
            "name), without a password: see TLS in docs/operations.md",
        )
    return BrokerDenied(
        f"{settings.where} refuses the user {user}: wrong password?",
        hint=f"put the password of {user} into [broker] password_file, or set another one with: "
        f"rabbitmqctl change_password {user}",
    )


def read_alert(settings: BrokerSettings) -> BrokerError | None:
    """Connect again without sending anything, and return the error if a certificate is refused.

    With TLS 1.3 the broker refuses the agent's certificate after the agent's side of the handshake.
    If the agent has sent data by then, the connection is reset, and the broker's reason is lost.
    """
    address = settings.address
    try:
        with socket.create_connection((address.host, address.port), _ALERT_SECONDS) as plain:
            context = _tls(settings).context
            with context.wrap_socket(plain, server_hostname=address.host) as connection:
                connection.recv(1)
    except OSError as error:
        refused = broker_error(settings, error)
        return refused if isinstance(refused, BrokerUntrusted) else None
    return None


def refusal(settings: BrokerSettings, error: BaseException, what: str) -> BrokerError:
    """Return the BrokerError for the failed step `what`, which the message begins with."""
    translation = broker_error(settings, error)
    return type(translation)(f"{what}: {translation}", hint=translation.hint)


def _rights_hint(settings: BrokerSettings) -> str:
    address = settings.address
    if settings.rights is None:
        return _LOGIN_HINT
    return (
        f"{settings.rights.commands(address.vhost, address.user or 'USER')}; for missing "
        "exchanges, queues and bindings run script/broker-definitions. See Rights on the broker in "
        "docs/operations.md"
    )


def _cause(error: BaseException) -> BaseException:
    """Return the original error, which pika wraps in up to three others if a connection fails."""
    for _ in range(5):
        if isinstance(error, AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif isinstance(error, AMQPConnectionError) and _wraps(error):
            error = error.args[0]
    return error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _wraps(error: BaseException) -> bool:
    return bool(error.args) and isinstance(error.args[0], BaseException)


def _text(error: BaseException) -> str:
    # When a handshake takes too long, pika closes the connection itself.
    if isinstance(error, AMQPConnectorStackTimeout | ConnectionOpenAborted):
        return "no answer in time"
    words = ", ".join(str(part) for part in error.args)
    return words or type(error).__name__
