"""How to reach RabbitMQ: settings, the connection's parameters, and foreign errors in our words.

Only the modules of this folder use pika.
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
# AMQP 0-9-1 reply codes: access-refused, not-found; precondition-failed, not-allowed
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
_DENIALS: Final = (ACCESS_REFUSED, 406, 530)

_LOGIN_HINT: Final = (
    "set [broker] control_url and control_password_file to a user who may do this: see Rights on "
    "the broker in docs/operations.md"
)
_MISSING_HINT: Final = (
    "have what is missing made: an agent that may make it does within a minute, else "
    "script/broker-definitions does: see Rights on the broker in docs/operations.md"
)


class Address(NamedTuple):
    """What a broker URL names."""

    tls: bool
    host: str
    port: int
    user: str
    vhost: str


@dataclass(frozen=True)
class BrokerSettings:
    """Where the broker is and how to use it; ConfigInvalid where the URL can't be used.

    `url` is `amqp://user@host:port/vhost` (`amqps` for TLS; the virtual host percent-encoded,
    `/` where there is none). `rights` are those that the user should have, if that is
    known. All waits are bounded by `connect_seconds` for a connection and `answer_seconds` for the
    broker's answer to one request.
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
            _tls(self)  # so that a file that can't be used is said at once

    @property
    def address(self) -> Address:
        return _parse(self.url)

    @property
    def where(self) -> str:
        """The broker's name in messages."""
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
        raise ConfigInvalid("[broker] url holds a password; put it into [broker] password_file")
    if not parts.hostname or not user or _has_extra(parts):
        raise ConfigInvalid("[broker] url must have the form amqp://user@host:port/vhost")
    return Address(
        parts.scheme == "amqps", parts.hostname, port or _PORTS[parts.scheme], user, vhost
    )


def _has_extra(parts: SplitResult) -> bool:
    return bool(parts.query or parts.fragment or "/" in parts.path[1:])


def parameters(settings: BrokerSettings, client: str) -> pika.ConnectionParameters:
    """pika's form of the settings; `client` is the name that the broker shows of us."""
    # Its errors are raised as ours, and it would log each of them with a traceback as well.
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
    """Those of every message: JSON that outlives a restart of the broker."""
    return pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=_PERSISTENT, **more)


def _tls(settings: BrokerSettings) -> pika.SSLOptions:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigInvalid(f"[broker] ca_file {settings.ca_file}: {error}") from error
    return pika.SSLOptions(context, settings.address.host)


@contextmanager
def translated(settings: BrokerSettings) -> Iterator[None]:
    """The one place where errors of pika, TLS and sockets become BrokerError."""
    try:
        yield
    except (AMQPError, AMQPConnectorException, OSError) as error:
        raise broker_error(settings, error) from error


def broker_error(settings: BrokerSettings, error: BaseException) -> BrokerError:
    """What a foreign error means to whoever reads our log."""
    cause = _cause(error)
    address = settings.address
    if isinstance(cause, AuthenticationError | ProbableAuthenticationError):
        return BrokerDenied(
            f"{settings.where} refuses the user {address.user}: wrong password?",
            hint=f"put the password of {address.user} into [broker] password_file, or set it: "
            f"rabbitmqctl change_password {address.user}",
        )
    if isinstance(cause, ProbableAccessDeniedError):
        return BrokerDenied(
            f"{settings.where} refuses the virtual host {address.vhost} to {address.user}",
            hint=f"correct it in [broker] url, or: rabbitmqctl add_vhost {address.vhost}; "
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
            f"{settings.where}: no TLS connection: {cause}",
            hint="check that [broker] ca_file holds the authority of the broker's certificate",
        )
    return BrokerUnreachable(f"{settings.where} can't be reached: {_text(cause)}")


def refusal(settings: BrokerSettings, error: BaseException, what: str) -> BrokerError:
    """Return the error in our words, with `what` could not be done because of it."""
    said = broker_error(settings, error)
    return type(said)(f"{what}: {said}", hint=said.hint)


def _rights_hint(settings: BrokerSettings) -> str:
    address = settings.address
    if settings.rights is None:
        return _LOGIN_HINT
    return (
        f"{settings.rights.commands(address.vhost, address.user)}; what is missing beside that "
        "makes script/broker-definitions, see Rights on the broker in docs/operations.md"
    )


def _cause(error: BaseException) -> BaseException:
    """pika wraps the error of a failed connection in up to three others."""
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
    # pika gives up a handshake that takes too long by closing the connection itself.
    if isinstance(error, AMQPConnectorStackTimeout | ConnectionOpenAborted):
        return "no answer in time"
    words = ", ".join(str(part) for part in error.args)
    return words or type(error).__name__
