"""The least rights on the broker for each user, as RabbitMQ's patterns of names.

https://www.rabbitmq.com/docs/access-control says which operation needs which right. `delete` needs
`configure`, and so does `declare` without `passive`. To bind a queue, a user needs `write` on the
queue and `read` on the exchange. No user here has those rights for a task queue. The default
exchange (`amq.default`) reaches every queue, so no user may write to it either.
"""

from typing import Final, NamedTuple

from agent.broker import wire

_NOTHING: Final = "^$"


class Rights(NamedTuple):
    """The rights of one user, as regular expressions.

    `configure`, `write` and `read` match names of exchanges and queues. `publish` and `subscribe`
    match routing keys of the exchange `backup.reports`.
    """

    configure: str
    write: str
    read: str
    publish: str
    subscribe: str

    def commands(self, vhost: str, user: str) -> str:
        """Return the commands that give a user these rights and revoke all others."""
        return (
            f"rabbitmqctl set_permissions -p {vhost} {user} "
            f"'{self.configure}' '{self.write}' '{self.read}'; "
            f"rabbitmqctl set_topic_permissions -p {vhost} {user} {wire.REPORT_EXCHANGE} "
            f"'{self.publish}' '{self.subscribe}'"
        )


def agent_rights(instance_id: str) -> Rights:
    """Return the rights of an agent.

    It may take its own tasks, and send its own reports and dead letters. The task queue and its
    binding must exist already, because an agent has no right to create a queue. The owner of a
    queue can let its dead letters be published under any routing key, and the broker does not check
    that key. So an agent with that right could forge the reports of another instance.
    """
    return Rights(
        configure=_NOTHING,
        write=r"^backup\.(reports|dead)$",
        read=rf"^backup\.tasks\.{instance_id}$",
        publish=rf"^{instance_id}\.",
        subscribe=_NOTHING,
    )


def operator_rights(instance_id: str) -> Rights:
    """Return the rights of the commands on one instance's machine.

    They may send tasks to that instance and follow its reports.
    """
    own = rf"backup\.client\.{instance_id}\..*"
    return Rights(
        configure=f"^{own}$",
        write=rf"^(backup\.own\.{instance_id}|{own})$",
        read=rf"^(backup\.reports|{own})$",
        publish=_NOTHING,
        subscribe=rf"^{instance_id}\.",
    )


def control_rights() -> Rights:
    """Return the rights of a control plane.

    It may send tasks to all instances, and read all reports and dead letters. The names of its own
    queues begin with `backup.control.` or `backup.client.`. The agent itself does not need them.
    `script/broker-definitions` repeats them, and a test compares both and tries them on a broker.
    """
    own = r"backup\.(client|control)\..*"
    return Rights(
        configure=f"^{own}$",
        write=rf"^(backup\.tasks|{own})$",
        read=rf"^(backup\.reports|backup\.dead|{own})$",
        publish=_NOTHING,
        subscribe=".*",
    )
