"""Settings and connection parameters for RabbitMQ, and the translation of its errors.

Only the modules of this package use pika.
"""

import logging
import ssl
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
from agent.errors import BrokerDenied, BrokerError, BrokerUnreachable, ConfigInvalid

QueueType = Literal["quorum", "classic"]
_PERSISTENT: Final = 2
_PORTS: Final = {"amqp": 5672, "amqps": 5671}
# AMQP 0-9-1 reply codes: 403 access-refused, 404 not-found, 406 precondition-failed,
# 530 not-allowed.
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
_DENIALS: Final = (ACCESS_REFUSED, 406, 530)

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
    """The parts of a broker URL."""

    tls: bool
    host: str
    port: int
    user: str
    vhost: str


@dataclass(frozen=True)
class BrokerSettings:
    """The address of the broker, the login, and the deadlines.

    `url` has the form `amqp://user@host:port/vhost`, with `amqps` for TLS. The virtual host is
    percent-encoded. It is `/` if the URL names none. `rights` are the rights that the user should
    have, or None if they are not known. `heartbeat` is in seconds. Each wait has a deadline:
    `connect_seconds` for a connection, `answer_seconds` for the broker's answer to one request.

    Raises:
        ConfigInvalid: the URL can't be used, `ca_file` is set for a URL without TLS, or `ca_file`
            can't be read as certificates.
    """

    url: str
    password: str = field(repr=False)
    ca_file: Path | None = None
    queue_type: QueueType = "quorum"
    rights: Rights | None = None
    heartbeat: int = 30
    connect_seconds: float = 10.0
    answer_seconds: float = 30.0

    def __post_init__(self) -> None:
        address = self.address
        if self.ca_file and not address.tls:
            raise ConfigInvalid("[broker] ca_file needs a url that begins with amqps:")
        if self.ca_file:
            _tls(self)  # raise at once if the file can't be used

    @property
    def address(self) -> Address:
        return _parse(self.url)

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
    if not parts.hostname or not user or _has_extra(parts):
        raise ConfigInvalid("[broker] url must have the form amqp://user@host:port/vhost")
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
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, settings.password),
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
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigInvalid(f"[broker] ca_file {settings.ca_file}: {error}") from error
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
    if isinstance(cause, AuthenticationError | ProbableAuthenticationError):
        return BrokerDenied(
            f"{settings.where} refuses the user {address.user}: wrong password?",
            hint=f"put the password of {address.user} into [broker] password_file, or set another "
            f"one with: rabbitmqctl change_password {address.user}",
        )
    if isinstance(cause, ProbableAccessDeniedError):
        return BrokerDenied(
            f"{settings.where} refuses the virtual host {address.vhost} to {address.user}",
            hint=f"correct it in [broker] url, or run: rabbitmqctl add_vhost {address.vhost}; "
            f"{_rights_hint(settings)}",
        )
    if isinstance(cause, ConnectionClosed | ChannelClosed):
        text = f"{settings.where} refuses: {cause.reply_text}"
        if cause.reply_code == ACCESS_REFUSED:
            return BrokerDenied(text, hint=_rights_hint(settings))
        if cause.reply_code == NOT_FOUND:
            return BrokerUnreachable(text, hint=_MISSING_HINT)
        return BrokerDenied(text) if cause.reply_code in _DENIALS else BrokerUnreachable(text)
    if isinstance(cause, ssl.SSLError):
        return BrokerUnreachable(
            f"{settings.where}: the TLS connection failed: {cause}",
            hint="check that [broker] ca_file holds the authority that signed the certificate of "
            "the broker",
        )
    return BrokerUnreachable(f"{settings.where} can't be reached: {_text(cause)}")


def refusal(settings: BrokerSettings, error: BaseException, what: str) -> BrokerError:
    """Return the BrokerError for the failed step `what`, which the message begins with."""
    translation = broker_error(settings, error)
    return type(translation)(f"{what}: {translation}", hint=translation.hint)


def _rights_hint(settings: BrokerSettings) -> str:
    address = settings.address
    if settings.rights is None:
        return _LOGIN_HINT
    return (
        f"{settings.rights.commands(address.vhost, address.user)}; for missing exchanges, queues "
        "and bindings run script/broker-definitions. See Rights on the broker in "
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


def _wraps(error: BaseException) -> bool:
    return bool(error.args) and isinstance(error.args[0], BaseException)


def _text(error: BaseException) -> str:
    # When a handshake takes too long, pika closes the connection itself.
    if isinstance(error, AMQPConnectorStackTimeout | ConnectionOpenAborted):
        return "no answer in time"
    words = ", ".join(str(part) for part in error.args)
    return words or type(error).__name__
