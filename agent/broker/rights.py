"""The least rights on the broker, as RabbitMQ's patterns of names.

https://www.rabbitmq.com/docs/access-control says which operation needs which. `declare` without
`passive`, and `delete`, need `configure`; to bind a queue takes `write` on it and `read` on the
exchange. Nobody here gets those for a queue of tasks. The default exchange (`amq.default`) reaches
every queue, so nobody may write to it either.
"""

from typing import Final, NamedTuple

from agent.broker import wire

_NOTHING: Final = "^$"


class Rights(NamedTuple):
    """What one user may do; `publish` and `subscribe` are routing keys of `backup.reports`."""

    configure: str
    write: str
    read: str
    publish: str
    subscribe: str

    def commands(self, vhost: str, user: str) -> str:
        """The commands that give a user these rights, and take all others away."""
        return (
            f"rabbitmqctl set_permissions -p {vhost} {user} "
            f"'{self.configure}' '{self.write}' '{self.read}'; "
            f"rabbitmqctl set_topic_permissions -p {vhost} {user} {wire.REPORT_EXCHANGE} "
            f"'{self.publish}' '{self.subscribe}'"
        )


def agent_rights(instance_id: str) -> Rights:
    """Those of an agent: take its own tasks, send its own reports and dead letters.

    The queue of tasks and its binding have to be there. No right to make a queue: its owner could
    have dead letters of it published under any routing key, unchecked, also others' reports.
    """
    return Rights(
        configure=_NOTHING,
        write=r"^backup\.(reports|dead)$",
        read=rf"^backup\.tasks\.{instance_id}$",
        publish=rf"^{instance_id}\.",
        subscribe=_NOTHING,
    )


def operator_rights(instance_id: str) -> Rights:
    """Those of the commands on one instance's machine: send it tasks, follow its reports."""
    own = rf"backup\.client\.{instance_id}\..*"
    return Rights(
        configure=f"^{own}$",
        write=rf"^(backup\.own\.{instance_id}|{own})$",
        read=rf"^(backup\.reports|{own})$",
        publish=_NOTHING,
        subscribe=rf"^{instance_id}\.",
    )


def control_rights() -> Rights:
    """Those of a control plane: send tasks to all instances, read all reports and dead letters.

    Its own queues are named `backup.control.` and something.
    """
    own = r"backup\.(client|control)\..*"
    return Rights(
        configure=f"^{own}$",
        write=rf"^(backup\.tasks|{own})$",
        read=rf"^(backup\.reports|backup\.dead|{own})$",
        publish=_NOTHING,
        subscribe=".*",
    )
