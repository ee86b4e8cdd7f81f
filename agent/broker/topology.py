"""The exchanges and queues that an agent needs on the broker: made where they aren't there."""

from typing import Any, Final, NamedTuple

from agent.broker import wire
from agent.broker.amqp import BrokerSettings
from agent.broker.session import Session

_DEAD_MESSAGES: Final = 10_000
_DEAD_BYTES: Final = 64 * 1024 * 1024


class Made(NamedTuple):
    """An exchange or a queue that was not there before; `kind` tells which."""

    kind: str
    name: str


async def declare(session: Session, settings: BrokerSettings, instance_id: str) -> list[Made]:
    """Make what one instance's tasks and reports need; what of it was not there yet.

    What exists is taken as it is: its owner may have chosen other arguments.
    """
    made = []
    for exchange, kind in (
        (wire.TASK_EXCHANGE, "direct"),
        (wire.REPORT_EXCHANGE, "topic"),
        (wire.DEAD, "fanout"),
    ):
        if not await session.exists("exchange_declare", exchange=exchange):
            await _create(session, "exchange_declare", exchange=exchange, exchange_type=kind)
            made.append(Made("exchange", exchange))
    limits = {"x-max-length": _DEAD_MESSAGES, "x-max-length-bytes": _DEAD_BYTES}
    once = {"x-single-active-consumer": True, "x-dead-letter-exchange": wire.DEAD}
    queue = wire.task_queue(instance_id)
    for name, exchange, key, arguments in (
        (wire.DEAD, wire.DEAD, "", limits),
        (queue, wire.TASK_EXCHANGE, instance_id, once),
    ):
        if not await session.exists("queue_declare", queue=name):
            typed: dict[str, Any] = {**arguments, "x-queue-type": settings.queue_type}
            await _create(session, "queue_declare", queue=name, arguments=typed)
            made.append(Made("queue", name))
        channel = await session.channel()
        await channel.call("queue_bind", queue=name, exchange=exchange, routing_key=key)
        channel.close()
    return made


async def _create(session: Session, method: str, **arguments: Any) -> None:
    channel = await session.channel()
    await channel.call(method, durable=True, **arguments)
    channel.close()
