"""One connection to RabbitMQ with awaitable operations, each with a deadline.

pika reports every result by a callback. In this module each callback resolves a future. The module
does not know the meaning of the messages, nor how to react when the connection is lost.
"""

import asyncio
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, NamedTuple, NoReturn

import pika
from pika import spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import ChannelClosedByBroker, IncompatibleProtocolError
from pika.frame import Header
from pika.spec import Basic

from agent.broker.amqp import NOT_FOUND, BrokerSettings, parameters, read_alert
from agent.errors import BrokerSilent, BrokerUnreachable, QueueFull, Unroutable

_CLOSE_SECONDS = 2.0
_CONTENT_HEADER = struct.Struct(">BHLHHQ")


class Confirmation(Enum):
    """The broker's answer to a published message."""

    KEPT = "kept"
    RETURNED = "returned"
    REFUSED = "refused"


class Delivery(NamedTuple):
    """A message as it was delivered.

    `tag` is the number that acknowledges it. `redelivered` is True if the message was delivered
    before and not acknowledged. `key` is the routing key that the sender named. The broker has
    checked the sender's right to that key if topic permissions are set.
    """

    tag: int
    body: bytes
    redelivered: bool
    key: str


class _Connection(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """pika's connection, changed to skip the properties of each message.

    Any sender can choose the properties, and the agent does not need them. pika fails on some that
    RabbitMQ accepts, such as a time that Python can't represent. Then it would drop the connection,
    and drop it again at each redelivery. pika has no public way to read a message without its
    properties.
    """

    def _read_frame(self) -> tuple[int, Any]:
        # AMQP 0-9-1, 4.2.6: the frame's type, channel and size, then class, weight, body size and
        # the properties.
        buffer = self._frame_buffer
        if len(buffer) >= _CONTENT_HEADER.size and buffer[0] == spec.FRAME_HEADER:
            _, channel, size, _, _, body_size = _CONTENT_HEADER.unpack_from(buffer)
            end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
            if end <= len(buffer) and buffer[end - 1] == spec.FRAME_END:
                return end, Header(channel, body_size, pika.BasicProperties())
        return super()._read_frame()  # type: ignore[no-any-return]


class Channel:
    """A channel of a connection, which can't be used any more after an error."""

    def __init__(self, raw: Any, settings: BrokerSettings):
        self._raw = raw
        self._settings = settings
        self._waiting: set[asyncio.Future[Any]] = set()
        self._lost: BaseException | None = None
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._published = 0
        self._confirms: dict[int, asyncio.Future[Confirmation]] = {}
        self._returned = False
        raw.add_on_close_callback(lambda _channel, reason: self._lose(reason))
        raw.add_on_cancel_callback(self._on_cancelled)
        raw.add_on_return_callback(self._on_returned)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Call one method of pika's channel, and return the broker's answer."""
        self.check()
        answer = self._future()
        getattr(self._raw, method)(callback=_resolver(answer), **arguments)
        return await _in_time(self._settings, answer)

    async def confirm(self) -> None:
        """Request a confirmation of each message that is published after this call."""
        answer = self._future()
        self._raw.confirm_delivery(self._on_confirm, callback=_resolver(answer))
        await _in_time(self._settings, answer)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: pika.BasicProperties,
    ) -> None:
        """Publish a message and wait for the broker's confirmation.

        Raises:
            Unroutable: no queue took the message.
            QueueFull: the broker refuses to keep the message.
            BrokerSilent: the confirmation does not come in time.
        """
        self.check()
        self._raw.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        self._published += 1
        confirm = self._confirms[self._published] = self._future()
        confirmation = await _in_time(self._settings, confirm)
        if confirmation is Confirmation.RETURNED:
            raise Unroutable(f"no queue takes messages of {routing_key} from {exchange}")
        if confirmation is Confirmation.REFUSED:
            raise QueueFull(f"a queue that takes {routing_key} from {exchange} is full")

    async def consume(self, queue: str, prefetch: int) -> str:
        """Begin to consume a queue, and return the consumer's tag.

        At most `prefetch` messages are unacknowledged at a time.
        """
        await self.call("basic_qos", prefetch_count=prefetch)
        answer = await self.call(
            "basic_consume", queue=queue, on_message_callback=self._on_delivery
        )
        return str(answer.method.consumer_tag)

    async def delivery(self) -> Delivery:
        """Wait for the next message without a deadline, and return it."""
        while not self._deliveries:
            self._arrived.clear()
            self.check()
            await self._arrived.wait()
        return self._deliveries.popleft()

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a message, so that the broker deletes it."""
        self.check()
        self._raw.basic_ack(delivery.tag)

    def requeue(self, delivery: Delivery) -> None:
        """Give a message back to its queue."""
        self.check()
        self._raw.basic_nack(delivery.tag, requeue=True)

    def close(self) -> None:
        """Close the channel without waiting.

        Unacknowledged messages go back to their queue.
        """
        if self._raw.is_open:
            self._raw.close()

    def _future(self) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def check(self) -> None:
        """Raise the error that ended the channel, if it has ended."""
        if self._lost:
            raise self._lost

    def _lose(self, reason: BaseException) -> None:
        self._lost = reason
        for future in self._waiting:
            _fail(future, reason)
        self._arrived.set()

    def _on_cancelled(self, _frame: object) -> None:
        self._lose(BrokerUnreachable("the broker ended the consumer: its queue was deleted"))

    def _on_delivery(self, _channel: object, method: Any, _properties: object, body: bytes) -> None:
        self._deliveries.append(
            Delivery(method.delivery_tag, body, method.redelivered, method.routing_key)
        )
        self._arrived.set()

    def _on_returned(self, *_message: object) -> None:
        # RabbitMQ returns a message just before it confirms it.
        self._returned = True

    def _on_confirm(self, frame: Any) -> None:
        tag = frame.method.delivery_tag
        returned, self._returned = self._returned, False
        done = [n for n in self._confirms if n == tag or (frame.method.multiple and n < tag)]
        for number in done:
            future = self._confirms.pop(number)
            if future.done():
                continue
            if isinstance(frame.method, Basic.Nack):
                future.set_result(Confirmation.REFUSED)
            else:
                future.set_result(
                    Confirmation.RETURNED if returned and number == tag else Confirmation.KEPT
                )


class Session:
    """An open connection, to be used only from the event loop that opened it."""

    def __init__(self, connection: Any, settings: BrokerSettings, ended: asyncio.Future[Any]):
        self._connection = connection
        self._settings = settings
        self._ended = ended

    @classmethod
    async def open(cls, settings: BrokerSettings, client: str) -> "Session":
        """Connect and log in, within `connect_seconds` of the settings."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        ended: asyncio.Future[BaseException] = loop.create_future()
        connection = _Connection(
            parameters(settings, client),
            on_open_callback=_resolver(opened),
            on_open_error_callback=lambda _connection, error: _fail(opened, error),
            on_close_callback=lambda _connection, reason: _resolver(ended)(reason),
            custom_ioloop=loop,
        )
        try:
            await asyncio.shield(opened)
        except asyncio.CancelledError:
            await _abandon(connection, opened, ended)
            raise
        except IncompatibleProtocolError as error:
            # the connection ended before the broker's first answer
            if settings.address.tls:
                refused = await asyncio.to_thread(read_alert, settings)
                if refused is not None:
                    raise refused from error
            raise
        return cls(connection, settings, ended)

    async def channel(self) -> Channel:
        """Open another channel and return it."""
        opened = asyncio.get_running_loop().create_future()
        self._connection.channel(on_open_callback=_resolver(opened))
        return Channel(await self._unless_ended(opened), self._settings)

    async def lost(self) -> NoReturn:
        """Wait until the connection is lost, then raise the reason."""
        raise await asyncio.shield(self._ended)

    async def exists(self, method: str, **arguments: Any) -> bool:
        """Return True if a passive declaration finds its exchange or queue."""
        return await self.find(method, **arguments) is not None

    async def find(self, method: str, **arguments: Any) -> Any | None:
        """Return the broker's answer to a passive declaration.

        Return None if the exchange or queue does not exist.
        """
        channel = await self.channel()
        try:
            answer = await channel.call(method, passive=True, **arguments)
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            return None
        channel.close()
        return answer

    async def close(self) -> None:
        """Close the connection.

        Drop it without the closing handshake if the broker does not answer within 2 seconds.
        """
        if self._connection.is_open:
            self._connection.close()
        await asyncio.wait({self._ended}, timeout=_CLOSE_SECONDS)
        if not self._ended.done():
            # pika has no public way to drop a connection if the other side does not answer.
            self._connection._terminate_stream(None)
            await asyncio.wait({self._ended}, timeout=_CLOSE_SECONDS)

    async def _unless_ended(self, opened: asyncio.Future[Any]) -> Any:
        await _in_time(
            self._settings,
            asyncio.wait({opened, self._ended}, return_when=asyncio.FIRST_COMPLETED),
        )
        if not opened.done():
            raise self._ended.result()
        return opened.result()


async def _abandon(
    connection: Any, opened: asyncio.Future[Any], ended: asyncio.Future[Any]
) -> None:
    """Give up a connection that is being opened, and wait at most 2 s until its socket closes."""
    if not (connection.is_closing or connection.is_closed):
        connection.close()
    await asyncio.wait({ended if opened.done() else opened}, timeout=_CLOSE_SECONDS)
    if opened.done():
        opened.exception()  # otherwise asyncio logs that the exception was never retrieved


async def _in_time(settings: BrokerSettings, answer: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(settings.answer_seconds):
            return await answer
    except TimeoutError:
        raise BrokerSilent(
            f"{settings.where} did not answer within {settings.answer_seconds:g} s"
        ) from None


def _resolver(future: asyncio.Future[Any]) -> Callable[..., None]:
    """Return a callback that resolves the future with its first argument."""

    def resolve(result: Any, *_more: object) -> None:
        if not future.done():
            future.set_result(result)

    return resolve


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
