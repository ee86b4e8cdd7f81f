"""Queries of a test inside the machine, run there by the agent's own Python.

inside.py bind QUEUE      keep all later reports in that queue
inside.py reports QUEUE   print them, one JSON object a line, and remove them
inside.py objects         print the names of all objects in the store, one a line
"""

import sys
from pathlib import Path

import pika
import swiftclient

_SECRETS = Path("/etc/backup-agent/secrets")


def _secret(name: str) -> str:
    return (_SECRETS / name).read_text().strip()


def _reports(command: str, queue: str) -> None:
    password = Path("/etc/backup-agent/control-password").read_text().strip()
    credentials = pika.PlainCredentials("backup-control", password)
    parameters = pika.ConnectionParameters("127.0.0.1", 5672, "backup", credentials)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "backup.reports", "#")
        while command == "reports":
            method, _, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                break
            print(body.decode())


def _objects() -> None:
    store = swiftclient.Connection(
        "http://127.0.0.1:8080/auth/v1.0", "test:tester", _secret("store-key")
    )
    for container in store.get_account(full_listing=True)[1]:
        for entry in store.get_container(container["name"], full_listing=True)[1]:
            print(f"{container['name']}/{entry['name']}")


if __name__ == "__main__":
    if sys.argv[1] == "objects":
        _objects()
    else:
        _reports(*sys.argv[1:])
