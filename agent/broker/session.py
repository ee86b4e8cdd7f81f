"""One connection to RabbitMQ whose operations are awaited, each with a deadline.

pika tells everything by callback; here a callback resolves a future. Not known here: what
the messages mean, and what to do when the connection is lost.
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
from pika.exceptions import ChannelClosedByBroker
from pika.frame import Header
from pika.spec import Basic

from agent.broker.amqp import NOT_FOUND, BrokerSettings, parameters
from agent.errors import BrokerSilent, BrokerUnreachable, QueueFull, Unroutable

_CLOSE_SECONDS = 2.0
_CONTENT_HEADER = struct.Struct(">BHLHHQ")


class Fate(Enum):
    """What the broker did with a published message."""

    KEPT = "kept"
    RETURNED = "returned"
    REFUSED = "refused"


class Delivery(NamedTuple):
    """A message as it came; `tag` is what acknowledges it.

    `redelivered` says that somebody had it before, and did not acknowledge it. `key` is the
    routing key that the sender named, which the broker has checked if there are topic permissions.
    """

    tag: int
    body: bytes
    redelivered: bool
    key: str


class _Connection(AsyncioConnection):  # type: ignore[misc]  # pika has no types
    """pika's connection, which reads over the properties of a message.

    They are any sender's, nobody here needs them, and pika fails on some that RabbitMQ lets
    through (a time that Python has no name for): it would drop the connection, and again at
    each redelivery. pika has no public way to read a message without them.
    """

    def _read_frame(self) -> tuple[int, Any]:
        # AMQP 0-9-1, 4.2.6: type, channel, size; class, weight, body size, then the properties
        buffer = self._frame_buffer
        if len(buffer) >= _CONTENT_HEADER.size and buffer[0] == spec.FRAME_HEADER:
            _, channel, size, _, _, body_size = _CONTENT_HEADER.unpack_from(buffer)
            end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
            if end <= len(buffer) and buffer[end - 1] == spec.FRAME_END:
                return end, Header(channel, body_size, pika.BasicProperties())
        return super()._read_frame()  # type: ignore[no-any-return]


class Channel:
    """A channel in confirm mode. After any error it is of no further use."""

    def __init__(self, raw: Any, settings: BrokerSettings):
        self._raw = raw
        self._settings = settings
        self._waiting: set[asyncio.Future[Any]] = set()
        self._lost: BaseException | None = None
        self._deliveries: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._published = 0
        self._confirms: dict[int, asyncio.Future[Fate]] = {}
        self._returned = False
        raw.add_on_close_callback(lambda _channel, reason: self._lose(reason))
        raw.add_on_cancel_callback(self._on_cancelled)
        raw.add_on_return_callback(self._on_returned)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Run one method of pika's channel that the broker answers; its answer."""
        self.check()
        answer = self._future()
        getattr(self._raw, method)(callback=_resolver(answer), **arguments)
        return await _in_time(self._settings, answer)

    async def confirm(self) -> None:
        """Ask for a confirmation of each message published from here on."""
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
        """Publish and wait for the broker's confirmation.

        Unroutable if no queue took it, QueueFull if the broker refuses to keep it, BrokerSilent
        if it doesn't say in time.
        """
        self.check()
        self._raw.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        self._published += 1
        confirm = self._confirms[self._published] = self._future()
        fate = await _in_time(self._settings, confirm)
        if fate is Fate.RETURNED:
            raise Unroutable(f"no queue takes messages of {routing_key} from {exchange}")
        if fate is Fate.REFUSED:
            raise QueueFull(f"a queue that takes {routing_key} from {exchange} is full")

    async def consume(self, queue: str, prefetch: int) -> str:
        """Begin to take deliveries, at most `prefetch` unacknowledged; the consumer's tag."""
        await self.call("basic_qos", prefetch_count=prefetch)
        answer = await self.call(
            "basic_consume", queue=queue, on_message_callback=self._on_delivery
        )
        return str(answer.method.consumer_tag)

    async def delivery(self) -> Delivery:
        """The next message, however long that takes."""
        while not self._deliveries:
            self._arrived.clear()
            self.check()
            await self._arrived.wait()
        return self._deliveries.popleft()

    def ack(self, delivery: Delivery) -> None:
        """Tell the broker that it may forget a message."""
        self.check()
        self._raw.basic_ack(delivery.tag)

    def requeue(self, delivery: Delivery) -> None:
        """Give a message back to its queue."""
        self.check()
        self._raw.basic_nack(delivery.tag, requeue=True)

    def close(self) -> None:
        """Close it without waiting; what it holds goes back to its queue."""
        if self._raw.is_open:
            self._raw.close()

    def _future(self) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def check(self) -> None:
        """Raise why the channel is of no further use, if it is."""
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
                future.set_result(Fate.REFUSED)
            else:
                future.set_result(Fate.RETURNED if returned and number == tag else Fate.KEPT)


class Session:
    """An open connection; use it from the event loop that opened it."""

    def __init__(self, connection: Any, settings: BrokerSettings, ended: asyncio.Future[Any]):
        self._connection = connection
        self._settings = settings
        self._ended = ended

    @classmethod
    async def open(cls, settings: BrokerSettings, client: str) -> "Session":
        """Connect and log in, within the settings' `connect_seconds`."""
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
        return cls(connection, settings, ended)

    async def channel(self) -> Channel:
        """Another channel."""
        opened = asyncio.get_running_loop().create_future()
        self._connection.channel(on_open_callback=_resolver(opened))
        return Channel(await self._unless_ended(opened), self._settings)

    async def lost(self) -> NoReturn:
        """Wait until the connection is lost; raises why."""
        raise await asyncio.shield(self._ended)

    async def exists(self, method: str, **arguments: Any) -> bool:
        """Whether a passive declaration finds its exchange or queue."""
        return await self.find(method, **arguments) is not None

    async def find(self, method: str, **arguments: Any) -> Any | None:
        """The broker's answer to a passive declaration; None where there is no such thing."""
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
        """Close the connection: in good order if the broker answers within two seconds."""
        if self._connection.is_open:
            self._connection.close()
        await asyncio.wait({self._ended}, timeout=_CLOSE_SECONDS)
        if not self._ended.done():
            # pika has no public way to drop a connection whose other side keeps silent.
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
    """Give up a connection that is being opened, and wait until its socket is closed."""
    if not (connection.is_closing or connection.is_closed):
        connection.close()
    await asyncio.wait({ended if opened.done() else opened}, timeout=_CLOSE_SECONDS)
    if opened.done():
        opened.exception()  # or asyncio complains that nobody asked for it


async def _in_time(settings: BrokerSettings, answer: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(settings.answer_seconds):
            return await answer
    except TimeoutError:
        raise BrokerSilent(
            f"{settings.where} did not answer within {settings.answer_seconds:g} s"
        ) from None


def _resolver(future: asyncio.Future[Any]) -> Callable[..., None]:
    """A callback that resolves the future with its first argument."""

    def resolve(result: Any, *_more: object) -> None:
        if not future.done():
            future.set_result(result)

    return resolve


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
