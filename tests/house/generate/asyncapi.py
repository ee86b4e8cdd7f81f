"""docs/asyncapi.yaml (AsyncAPI 3.0), which describes the messages on RabbitMQ.

It is made from agent/model/. Source of its form:
https://www.asyncapi.com/docs/reference/specification/v3.0.0 and its AMQP bindings, version 0.3.0.
"""

import json
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agent.broker import wire
from agent.model import Report, Task
from tests.house.generate import examples

Json = dict[str, Any]
_VERSION: Final = "0.3.0"  # of the AMQP bindings
_SCHEMAS: Final = "#/components/schemas/"
_HEAD: Final = """\
# The messages that backup-agent takes from RabbitMQ and sends to it.
# script/docs makes this file from agent/model/. Don't edit it.
"""
_TASKS: Final = (
    "Tasks for one instance. Its agent makes the exchange, the queue backup.tasks.<instance_id> "
    "and its binding if they are missing and it has the right. The queue is durable, has a single "
    "active consumer, and sends its dead letters to backup.dead. Send tasks as mandatory: if a "
    "task is returned, its instance has no queue. Text must be Unicode without lone surrogates. No "
    "field may occur twice in one object. A task_id that is sent twice is done once and answered "
    f"twice. A task has at most {wire.MAX_TASK_BYTES} bytes."
)
_REPORTS: Final = (
    "The agent's reports about a task. The last three words of the routing key are the task's type "
    "(which contains a dot) and its status. So 'ID.#' selects all reports of an instance, and "
    "'#.FAILED' selects all failures. Reports are delivered at least once: drop a report if its "
    "(agent_run_id, seq) was seen before. If no queue takes a report, or a full queue refuses it, "
    "the agent keeps it. Drop a report if the routing key of its delivery is not the report's own: "
    "another sender sent it."
)
_DEAD: Final = (
    "Messages to the task queue that are no valid tasks, with the reason in the headers. The body "
    f"is cut to {wire.MAX_TASK_BYTES} bytes. If the agent finds a task id in the body, in any "
    "spelling, it also sends a report FAILED with the canonical spelling."
)


def text() -> str:
    """Return the whole document as YAML."""
    # The way over JSON copies objects that are used twice, so that YAML needs no anchors.
    plain = json.loads(json.dumps(document()))
    body: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=96)
    return _HEAD + body


def task_models() -> dict[str, type[BaseModel]]:
    """Return the models of tasks by their `type`."""
    union = get_args(Task)[0]
    return {model.model_fields["type"].default: model for model in get_args(union)}


def document() -> Json:
    """Return the document as plain dictionaries."""
    tasks = task_models()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "backup-agent",
            "version": "1",
            "description": "Backup tasks for MySQL and MariaDB, and reports about them. The "
            "version is that of the messages (their field `version`).",
        },
        "defaultContentType": wire.CONTENT_TYPE,
        "channels": {
            wire.TASK_EXCHANGE: _channel("{instance_id}", "direct", _TASKS, list(tasks)),
            wire.REPORT_EXCHANGE: _channel(
                "{instance_id}.{type}.{status}", "topic", _REPORTS, ["report"]
            ),
            wire.DEAD: _channel("", "fanout", _DEAD, ["dead"]),
        },
        "operations": {
            "takeTask": _operation("receive", wire.TASK_EXCHANGE, list(tasks)),
            "sendReport": _operation("send", wire.REPORT_EXCHANGE, ["report"]),
            "sendDead": _operation("send", wire.DEAD, ["dead"]),
        },
        "components": {"messages": _messages(tasks), "schemas": _schemas(tasks)},
    }


_PARAMETERS: Final[Json] = {
    "instance_id": {"description": "the instance's UUID, in lower case"},
    "type": {"description": "the task's type, such as backup.create"},
    "status": {"enum": ["ACCEPTED", "RUNNING", "DONE", "FAILED", "CANCELLED"]},
}


def _channel(address: str, kind: str, description: str, messages: list[str]) -> Json:
    exchange = wire.DEAD
    exchange = {"direct": wire.TASK_EXCHANGE, "topic": wire.REPORT_EXCHANGE}.get(kind, exchange)
    channel: Json = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": kind, "durable": True, "autoDelete": False},
                "bindingVersion": _VERSION,
            }
        },
    }
    used = {name: said for name, said in _PARAMETERS.items() if f"{{{name}}}" in address}
    return channel | ({"parameters": used} if used else {})


def _operation(action: str, channel: str, messages: list[str]) -> Json:
    amqp = {"ack": True} if action == "receive" else {"deliveryMode": 2, "mandatory": True}
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
        "bindings": {"amqp": amqp | {"bindingVersion": _VERSION}},
    }


def _messages(tasks: dict[str, type[BaseModel]]) -> Json:
    found: Json = {
        name: _message(examples.SUMMARIES[name], model, name) for name, model in tasks.items()
    }
    found["report"] = _message(examples.SUMMARIES["report"], Report, "report")
    found["dead"] = {
        "summary": examples.SUMMARIES["dead"],
        "headers": {
            "type": "object",
            "properties": {
                "x-reason": {"type": "string", "description": "the error's code"},
                "x-message": {"type": "string", "description": "what is wrong with the message"},
            },
        },
        "payload": {"description": "the received body"},
    }
    return found


def _message(summary: str, model: type[BaseModel], name: str) -> Json:
    shown = [
        {"name": label, "payload": json.loads(encoded)}
        for label, encoded in examples.encoded(name).items()
    ]
    return {
        "summary": summary,
        "contentType": wire.CONTENT_TYPE,
        "payload": {"$ref": _SCHEMAS + model.__name__},
        "examples": shown,
    }


def _schemas(tasks: dict[str, type[BaseModel]]) -> Json:
    models: list[type[BaseModel]] = [*tasks.values(), Report]
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}"
    )
    schemas: Json = found["$defs"]
    return schemas
