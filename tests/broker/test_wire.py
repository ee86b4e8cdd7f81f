"""Tests of messages.

Any input gives a task or one clear error. An encoded message decodes to the same message.
"""

import contextlib
import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from agent.broker import wire
from agent.errors import MessageUnreadable
from agent.model import (
    BackupRequest,
    CancelTask,
    CreateTask,
    Datastore,
    DeleteTask,
    ErrorInfo,
    Limits,
    PingTask,
    Progress,
    Report,
    RestoreTask,
    Task,
    TaskStatus,
    VerifyTask,
)

ID = "7f3c1f5e-8d0b-4a51-9a52-2f1a6d0a9b11"
CREATE: dict[str, Any] = {
    "version": 1,
    "task_id": ID,
    "type": "backup.create",
    "backup": {"id": ID, "name": "nightly", "parent_id": None},
    "on_broken_chain": "full",
    "limits": {"cores": 2},
}

ids = st.uuids().map(str)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=64)
datastores = st.builds(Datastore, type=texts, version=texts | st.none(), version_id=st.none())
tasks: st.SearchStrategy[Task] = st.one_of(
    st.builds(PingTask, task_id=ids),
    st.builds(CancelTask, task_id=ids, cancels=ids),
    st.builds(DeleteTask, task_id=ids, backup_id=ids),
    st.builds(RestoreTask, task_id=ids, backup_id=ids, target=texts.filter(bool)),
    st.builds(VerifyTask, task_id=ids, backup_id=ids, chain=st.booleans()),
    st.builds(
        CreateTask,
        task_id=ids,
        backup=st.builds(
            BackupRequest,
            id=ids,
            name=texts.filter(bool),
            description=texts,
            parent_id=ids | st.none(),
            datastore=datastores | st.none(),
        ),
        limits=st.builds(Limits, cores=st.integers(1, 1024) | st.none()),
    ),
)
reports = st.builds(
    Report,
    agent_run_id=ids,
    seq=st.integers(0, 2**53),
    at=st.just("2026-01-02T03:04:05Z"),
    task_id=ids,
    type=st.sampled_from(["backup.create", "agent.ping"]),
    instance_id=ids,
    status=st.sampled_from(TaskStatus),
    backup=st.none(),
    progress=st.none()
    | st.builds(
        Progress,
        raw_bytes=st.integers(0, 2**62),
        stored_bytes=st.integers(0, 2**62),
        bytes_per_second=st.floats(0, 1e12),
    ),
    error=st.none() | st.builds(ErrorInfo, code=texts, message=texts, hint=texts),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def unreadable(body: bytes) -> str:
    """Return the reason why a body is no task. Check that it is short and printable for the log."""
    with pytest.raises(MessageUnreadable) as caught:
        wire.decode_task(body)
    reason = str(caught.value)
    assert 0 < len(reason) <= 200
    assert reason.isprintable()
    return reason


def read_or_refuse(body: bytes) -> None:
    with contextlib.suppress(MessageUnreadable):
        assert wire.decode_task(body).task_id
        return
    unreadable(body)


@given(tasks)
def test_a_task_comes_back(task: Task) -> None:
    body = wire.encode_task(task)
    assert wire.decode_task(body) == task
    assert wire.task_id_of(body) == task.task_id
    assert wire.task_type_of(body) == task.type


@given(reports)
def test_a_report_comes_back(report: Report) -> None:
    assert wire.decode_report(wire.encode_report(report)) == report


@given(st.binary(max_size=200))
def test_any_bytes_are_a_task_or_unreadable(body: bytes) -> None:
    unreadable(body)
    wire.task_id_of(body)
    wire.task_type_of(body)
    with pytest.raises(MessageUnreadable):
        wire.decode_report(body)


@given(tasks, st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_task_never_raises_anything_else(
    task: Task, at: int, inserted: bytes, removed: int
) -> None:
    body = wire.encode_task(task)
    at %= len(body)
    damaged = body[:at] + inserted + body[at + removed :]
    read_or_refuse(damaged)
    assert wire.task_id_of(damaged) is None or len(str(wire.task_id_of(damaged))) == 36


@given(
    st.sampled_from(["version", "task_id", "type", "backup", "on_broken_chain", "limits", "more"]),
    json_values,
)
def test_a_task_with_any_other_value_never_raises_anything_else(name: str, value: object) -> None:
    body = json.dumps(CREATE | {name: value}).encode()
    read_or_refuse(body)
    wire.task_id_of(body)
    wire.task_type_of(body)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task_id": ID.upper()}, "field backup.create.task_id: Value error, not a UUID in its"),
        ({"task_id": "../../etc"}, "field backup.create.task_id"),
        ({"task_id": 7}, "field backup.create.task_id"),
        ({"version": 2}, "field version: this agent knows version 1, and not 2"),
        ({"version": 10**4000, "type": "later"}, "field version: this agent knows version 1"),
        ({"version": 0}, "field backup.create.version"),
        ({"type": "backup.steal"}, "field type: this agent does not know this type of task"),
        ({"type": None}, "field type"),
        ({"backup": None}, "field backup.create.backup"),
        ({"backup": {"id": ID}}, "field backup.create.backup.name: Field required"),
        ({"backup": {"id": ID, "name": "a\nb"}}, "field backup.create.backup.name"),
        ({"backup": {"id": ID, "name": "x" * 256}}, "field backup.create.backup.name"),
        ({"limits": {"cores": "2"}}, "field backup.create.limits.cores: Input should be a valid"),
        ({"limits": {"cores": 0}}, "field backup.create.limits.cores"),
        ({"store": {"token": "t"}}, "and token come together or not at all"),
        (
            {"store": {"storage_url": "https://a/b"}},
            "and token come together or not at all",
        ),
        ({"store": {"project_id": "p"}}, "and token come together or not at all"),
        (
            {"store": {"project_id": "p", "storage_url": "https://a/b", "token": "t"}},
            "storage_url excludes project_id",
        ),
        ({"store": {"storage_url": "https://a/b", "token": ""}}, "field store.token: not 1 to"),
        ({"store": {"storage_url": "https://a/b", "token": "etc etc"}}, "field store.token: not"),
        ({"store": {"storage_url": "https://a/b", "token": "etc\r\n"}}, "field store.token: not"),
        ({"store": {"storage_url": "https://a/b", "token": "etc" * 2000}}, "field store.token"),
        ({"store": {"storage_url": "https://a/b", "token": 7}}, "field backup.create.store.token"),
        ({"store": {"storage_url": "file:///etc", "token": "t"}}, "create.store.storage_url"),
        ({"store": {"container": "../etc"}}, "field backup.create.store.container"),
        ({"store": {"container": "a\n"}}, "field backup.create.store.container"),
        ({"surprise": 1}, "field backup.create.surprise: Extra inputs are not permitted"),
        ({"\u202e" + "x" * 500: 1}, "field backup.create.?xxx"),
    ],
)
def test_the_reason_names_the_field(changes: dict[str, Any], says: str) -> None:
    reason = unreadable(json.dumps(CREATE | changes).encode())
    assert says in reason
    assert "etc" not in reason


def test_a_task_of_a_later_version_asks_for_an_upgrade() -> None:
    body = json.dumps(CREATE | {"version": 2, "type": "backup.move", "more": 1}).encode()
    with pytest.raises(MessageUnreadable, match="this agent knows version 1, and not 2") as caught:
        wire.decode_task(body)
    assert "upgrade this agent" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "isn't a JSON object"),
        (b"\xff{}", "isn't UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds NaN"),
        (b'{"task_id": "a", "task_id": "b"}', "occurs twice"),
        (b'{"a": {"b": 1, "b": 1}}', "occurs twice"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "number that is too long"),
        (b'{"a": "' + b"x" * 65_536 + b'"}', "has 65545 bytes; the limit is 65536"),
        (b'{"type": "agent.ping", "task_id": "\\ud800"}', "field"),
    ],
)
def test_what_is_no_json_object_is_told(body: bytes, says: str) -> None:
    assert says in unreadable(body)


def test_a_token_is_read_and_never_written() -> None:
    store = {"storage_url": "https://a/b", "token": "gAAAAA", "container": "c"}
    task = wire.decode_task(json.dumps(CREATE | {"store": store}).encode())
    assert isinstance(task, CreateTask)
    assert task.store is not None
    assert task.store.token is not None
    assert task.store.token.get_secret_value() == "gAAAAA"
    written = json.loads(wire.encode_task(task))["store"]
    assert written == {"storage_url": "https://a/b", "container": "c"}


def test_an_unreadable_task_may_still_name_itself() -> None:
    body = json.dumps({"task_id": ID, "type": "backup.steal", "x": 1}).encode()
    assert wire.task_id_of(body) == ID
    assert wire.task_type_of(body) == "backup.steal"


@pytest.mark.parametrize("value", [None, 7, "", "x" * 100, ID[:-1], ID + "0", "0x" + ID[2:]])
def test_only_an_id_is_taken_from_an_unreadable_task(value: object) -> None:
    assert wire.task_id_of(json.dumps({"task_id": value}).encode()) is None


@pytest.mark.parametrize("value", [None, 7, "", "a", "a.b.c", "a.*", "#.#", "x" * 60 + ".yyyyyy"])
def test_only_a_plain_type_is_taken_from_an_unreadable_task(value: object) -> None:
    # The type becomes a part of a routing key.
    assert wire.task_type_of(json.dumps({"type": value}).encode()) is None


def test_names_on_the_broker() -> None:
    instance = str(uuid4())
    report = Report(
        agent_run_id=ID,
        seq=1,
        at="2026-01-02T03:04:05Z",
        task_id=ID,
        type="backup.create",
        instance_id=instance,
        status=TaskStatus.DONE,
    )
    assert wire.routing_key(report) == f"{instance}.backup.create.DONE"
    assert wire.reports_of(instance) == f"{instance}.#"
    assert wire.task_queue(instance) == f"backup.tasks.{instance}"
