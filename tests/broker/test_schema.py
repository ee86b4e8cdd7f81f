"""Tests that docs/asyncapi.yaml admits exactly the messages that the agent takes."""

import copy
import json
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hypothesis import event, given, settings, strategies as st

from agent.broker import wire
from agent.errors import MessageUnreadable
from tests.broker.schema import REF, valid
from tests.house.generate import examples
from tests.house.generate.asyncapi import task_models
from tests.house.source import CHECKOUT

SCHEMAS = yaml.safe_load((CHECKOUT / "docs" / "asyncapi.yaml").read_text())["components"]["schemas"]
PAYLOAD = {"anyOf": [{"$ref": REF + model.__name__} for model in task_models().values()]}
ID = "7f3c1f5e-8d0b-4a51-9a52-2f1a6d0a9b11"
STORE = {"storage_url": "https://a/b", "token": "gAAAA", "container": "c"}
CREATE: dict[str, Any] = {
    "version": 1,
    "task_id": ID,
    "type": "backup.create",
    "backup": {
        "id": ID,
        "name": "nightly",
        "description": "",
        "parent_id": ID,
        "datastore": {"type": "mariadb", "version": "10.11", "version_id": None},
    },
    "on_broken_chain": "full",
    "limits": {"cores": 2, "bytes_per_second": 1 << 20},
    "retry": True,
    "store": STORE,
}
SEEDS = [CREATE] + [
    json.loads(body) for name in task_models() for body in examples.encoded(name).values()
]

odd = st.sampled_from(
    [
        *(ID, ID.upper(), ID + "\n", "{" + ID + "}", ID.replace("-", "")),
        *("", " ", "\n", "a\n", "\x7f", "\x85", "\ufeff", "é"),
        *("x" * 256, "x" * 1025, "x" * 4097, "fail", "stream", "a.b-c_d", "../x", "t k"),
        *("https://a/b", "https://a/\u2003", "https://é/b", "https://u@a/b", "file:///etc"),
    ]
)
values = st.one_of(
    odd,
    st.sampled_from([None, True, False, 0, 1, -1, 1.0, 2.0, 2.5, 1024, 1025, 1024.0, 2**20, 2**70]),
    st.sampled_from([[], {}, [1], {"token": "t"}, {"id": ID, "name": "n"}, STORE]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all fields, at any depth."""
    if not isinstance(value, dict):
        return []
    found = [(*path, name) for name in value]
    return found + [deeper for name in value for deeper in places(value[name], (*path, name))]


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a valid task, then change, drop or add up to three fields."""
    message: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(message) or [("task_id",)]))
        holder = message
        for name in path[:-1]:
            holder = holder[name]
        action = draw(st.sampled_from(["change", "drop", "add"]))
        if action == "drop":
            holder.pop(path[-1], None)
        else:
            name = path[-1] if action == "change" else draw(st.sampled_from(["x", *CREATE, *STORE]))
            holder[name] = copy.deepcopy(draw(values))
    return message


def accepted(message: dict[str, Any]) -> bool:
    try:
        wire.decode_task(json.dumps(message).encode())
    except MessageUnreadable:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(messages())
def test_the_schema_admits_what_the_agent_takes(message: dict[str, Any]) -> None:
    taken = accepted(message)
    event("taken" if taken else "refused")
    assert valid(message, PAYLOAD, SCHEMAS) is taken


def changed(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CREATE | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("message", "taken"),
    [
        (changed(), True),
        (changed(version=...), True),
        (changed(version=1.0), True),
        (changed(version=True), False),
        (changed(type=...), False),
        (changed(task_id=ID.upper()), False),
        (changed(task_id=ID + "\n"), False),
        (changed(store=None), True),
        (changed(store={}), True),
        (changed(store={"storage_url": None}), True),
        (changed(store={"storage_url": "https://a/b"}), False),
        (changed(store={"storage_url": "https://a/b", "token": None}), False),
        (changed(store={"token": "t"}), False),
        (changed(store={"project_id": "p", "token": "t"}), True),
        (changed(store={"project_id": "p"}), False),
        (changed(store={"project_id": "p/", "token": "t"}), False),
        (changed(store=STORE | {"project_id": "p"}), False),
        (changed(store=STORE | {"token": ""}), False),
        (changed(store=STORE | {"token": "t" * 4097}), False),
        (changed(store=STORE | {"storage_url": "https://a/\u0085"}), False),
        (changed(limits={"cores": 2.0}), True),
        (changed(limits={"cores": True}), False),
        (changed(retry=1), False),
        (changed(backup=CREATE["backup"] | {"name": "a\n"}), False),
        ({"task_id": ID}, False),
        ([CREATE], False),
    ],
)
def test_the_cases_that_were_seen(message: Any, taken: bool) -> None:
    assert (accepted(message), valid(message, PAYLOAD, SCHEMAS)) == (taken, taken)


UPPER = str(uuid4()).upper()


@pytest.mark.parametrize(
    "body",
    [
        b'{"task_id": "%b"}',
        b'{"task_id": " urn:uuid:%b"}',
        b'{"task_id": "{%b}", "type": 7}',
        b'{"task_id": "%b", "type": "agent.ping", "type": "agent.ping"}',
        b'{"x": NaN, "task_id" : "%b"}',
        b'{"task_id": "%b", "x": "' + b"x" * wire.MAX_TASK_BYTES + b'"}',
        b'\xff{"task_id": "%b"',
    ],
)
def test_an_id_is_found_however_it_is_spelt_and_in_what_is_no_json(body: bytes) -> None:
    assert wire.task_id_of(body.replace(b"%b", UPPER.encode())) == UPPER.lower()
    plain = UPPER.replace("-", "").encode()
    assert wire.task_id_of(body.replace(b"%b", plain)) == UPPER.lower()
