"""Conversion of messages between bytes and models, and the names of exchanges and queues.

Each message is one task or one report, as JSON in UTF-8. "Tasks and reports" in the README shows
both.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn
from uuid import UUID, uuid4

from pydantic import ValidationError

from agent.errors import MessageUnreadable
from agent.model import MESSAGE_VERSION, TASK, Report, Task, TaskStore, printable
from agent.model.values import VISIBLE

TASK_EXCHANGE: Final = "backup.tasks"
REPORT_EXCHANGE: Final = "backup.reports"
# An agent sends this message to itself as a task is sent, to test that its queue is bound.
PROBE: Final = b'{"version":1,"type":"agent.probe"}'
DEAD: Final = "backup.dead"  # the exchange of dead letters, and its one queue
MAX_TASK_BYTES: Final = 64 * 1024
MAX_REPORT_BYTES: Final = 1024 * 1024
CONTENT_TYPE: Final = "application/json"
_MAX_REASON = 200
_TOKEN: Final = re.compile(VISIBLE, re.ASCII)
_UUID: Final = re.compile(r"(?:urn:uuid:)?\{?([0-9a-f-]{32,36})\}?", re.IGNORECASE)
# The task id in a message that is not JSON.
_NAMED: Final = re.compile(rb'"task_id"\s*:\s*"([!-~]{32,64})"')


def task_queue(instance_id: str) -> str:
    """Return the name of an instance's task queue.

    The queue is bound to TASK_EXCHANGE with the instance's id as routing key.
    """
    return f"{TASK_EXCHANGE}.{instance_id}"


def own_exchange(instance_id: str) -> str:
    """Return the name of the exchange that sends messages only to one instance's task queue.

    It exists if the broker has users that may send tasks to no other instance.
    """
    return f"backup.own.{instance_id}"


def client_queue(instance_id: str) -> str:
    """Return a unique name for a client's private queue of the instance's reports."""
    return f"backup.client.{instance_id}.{uuid4()}"


def routing_key(report: Report) -> str:
    """Return the routing key `<instance_id>.<task type>.<task status>`.

    It has four words, because the task type contains a dot.
    """
    return f"{report.instance_id}.{report.type}.{report.status}"


def reports_of(instance_id: str) -> str:
    """Return the binding key that selects every report of one instance."""
    return f"{instance_id}.#"


def encode_task(task: Task) -> bytes:
    """Return the task as a message without its token, which the agent never writes down."""
    return task.model_dump_json(exclude_none=True, exclude={"store": {"token"}}).encode()


def encode_report(report: Report) -> bytes:
    return report.model_dump_json(exclude_none=True).encode()


def decode_task(body: bytes) -> Task:
    """Return the task in a message.

    Raises:
        MessageUnreadable: the message is not a task. The text names the wrong field, if there is
            one.
    """
    _check_version(_parse(body, MAX_TASK_BYTES))
    try:
        task = TASK.validate_json(body, strict=True)
    except ValidationError as error:
        raise MessageUnreadable(_reason("task", error)) from None
    if task.named_store is not None:
        _check_login(task.named_store)
    return task


def _check_version(message: dict[str, Any]) -> None:
    """Refuse a task of a later version, whose type and fields may mean anything.

    Raises:
        MessageUnreadable: the version is a later one.
    """
    version = message.get("version")
    if isinstance(version, int) and version > MESSAGE_VERSION:
        raise MessageUnreadable(
            f"not a task: field version: this agent knows version {MESSAGE_VERSION}, and not "
            f"{str(version)[:20]}",
            hint="upgrade this agent, or let the sender use the version that the agent knows",
        )


def _check_login(store: TaskStore) -> None:
    """Check the account and the token of a task from the wire.

    The model allows an account without a token, because tasks in the journal have that.

    Raises:
        MessageUnreadable: a token comes without its account, an account comes without its token, or
            the token has a wrong form.
    """
    if store.storage_url is not None and store.project_id is not None:
        raise MessageUnreadable("not a task: field store: storage_url excludes project_id")
    if (store.account is None) != (store.token is None):
        raise MessageUnreadable(
            "not a task: field store: storage_url (or project_id) and token come together or not "
            "at all"
        )
    if store.token is not None and not _TOKEN.fullmatch(store.token.get_secret_value()):
        raise MessageUnreadable(
            "not a task: field store.token: not 1 to 4096 visible ASCII characters"
        )


def decode_report(body: bytes) -> Report:
    """Return the report in a message.

    Raises:
        MessageUnreadable: the message is not a report.
    """
    _parse(body, MAX_REPORT_BYTES)
    try:
        return Report.model_validate_json(body)
    except ValidationError as error:
        raise MessageUnreadable(_reason("report", error)) from None


def task_id_of(body: bytes) -> str | None:
    """Return the task id of an unreadable task in its canonical spelling, or None.

    The id is found in any spelling, and even if the message is not JSON, because its sender waits
    for an answer.
    """
    value = _peek(body, "task_id")
    if value is None and (named := _NAMED.search(body[:MAX_TASK_BYTES])):
        value = named[1].decode("ascii")
    spelt = _UUID.fullmatch((value or "").strip())
    digits = spelt[1].replace("-", "") if spelt else ""
    return str(UUID(digits)) if len(digits) == 32 else None


def task_type_of(body: bytes) -> str | None:
    """Return the task type of an unreadable task, or None if it does not have the form of a type.

    That form is two words of ASCII letters with a dot between them, and at most 64 characters.
    """
    value = _peek(body, "type")
    words = value.split(".") if value else []
    plain = len(words) == 2 and all(word.isascii() and word.isalpha() for word in words)
    return value if plain and value is not None and len(value) <= 64 else None


def _peek(body: bytes, field: str) -> str | None:
    try:
        value = _parse(body, MAX_TASK_BYTES).get(field)
    except MessageUnreadable:
        return None
    return value if isinstance(value, str) else None


def _parse(body: bytes, limit: int) -> dict[str, Any]:
    if len(body) > limit:
        raise MessageUnreadable(f"the message has {len(body)} bytes; the limit is {limit}")
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise MessageUnreadable(f"the message isn't UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise MessageUnreadable(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise MessageUnreadable("the message is nested too deeply") from None
    except ValueError:  # an integer of more digits than Python converts
        raise MessageUnreadable("the message holds a number that is too long") from None
    if not isinstance(value, dict):
        raise MessageUnreadable("the message isn't a JSON object")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # If a name occurs twice, one reader may take the first value and another reader the second.
    # Then they would do different tasks.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise MessageUnreadable("a field occurs twice in one object of the message")
    return fields


def _no_constant(_name: str) -> NoReturn:
    raise MessageUnreadable("the message holds NaN or Infinity, which JSON doesn't have")


def _reason(what: str, error: ValidationError) -> str:
    """Return the fault of the first bad field, without the value that was sent."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "union_tag_invalid":
        return "not a task: field type: this agent does not know this type of task"
    where = ".".join(str(part)[:40] for part in first["loc"][:6]) or "(whole)"
    text = f"not a {what}: field {printable(where)[:80]}: {printable(first['msg'])}"
    return text[:_MAX_REASON]
