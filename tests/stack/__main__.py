"""`script/stack`: a private RabbitMQ, Swift and MariaDB for trying the agent by hand."""

import signal
import tempfile
from pathlib import Path

from tests.stack.process import StackError
from tests.stack.stack import Stack

_GUIDE = """\
MariaDB   socket {socket}
          mariadb --no-defaults --socket={socket}
RabbitMQ  {amqp_url}
          password in {agent}/broker-password
          {rabbitmqctl} list_users
Swift     {auth_url}  user {swift_user}
          key in {agent}/store-key
instance  {instance_id}
agent     {config}

In another terminal, from {checkout}:

  .venv/bin/backup-agent --config {config} run

and in a third:

  .venv/bin/backup-agent --config {config} backup-create --wait {instance_id} base
  .venv/bin/backup-agent --config {config} backup-list
  .venv/bin/backup-agent --config {config} restore --wait BACKUP {agent}/restore/one

Ctrl-C stops everything and removes it.
"""


def guide(stack: Stack) -> str:
    """Return the text that tells a person at a terminal how to reach each server."""
    config = stack.agent_toml()
    return _GUIDE.format(
        socket=stack.mariadb.socket,
        rabbitmqctl=stack.rabbitmq.control_script(),
        amqp_url=stack.rabbitmq.url,
        auth_url=stack.swift.auth_url,
        swift_user=stack.swift.user,
        instance_id=stack.instance_id,
        config=config,
        agent=config.parent,
        checkout=Path.cwd(),
    )


def main() -> int:
    """Run until Ctrl-C or SIGTERM. Return 1 if a server does not start."""
    with tempfile.TemporaryDirectory(prefix="backup-agent-stack-") as folder:
        try:
            with Stack(Path(folder)) as stack:
                print(guide(stack), flush=True)
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            print("stopped")
        except StackError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
