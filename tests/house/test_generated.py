"""Generated documents match the code, and are complete."""

import json
import re
from typing import Any

import pytest
import yaml

from agent.broker import wire
from agent.errors import AgentError
from agent.model import Report
from tests.house.generate import asyncapi, configuration, error_codes, examples
from tests.house.generate.documents import DOCUMENTS
from tests.house.generate.meanings import MEANINGS
from tests.house.source import CHECKOUT
from tests.house.test_docs import tree

Json = dict[str, Any]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_is_not_stale(name: str) -> None:
    assert (CHECKOUT / name).read_text() == DOCUMENTS[name](), "run script/docs"


def test_every_error_says_what_it_means() -> None:
    coded = [kind for kind in tree() if kind.__dict__.get("code")]
    text = error_codes.text()
    assert [kind.code for kind in coded if f"| `{kind.code}` | " not in text] == []
    silent = [kind.__name__ for kind in coded if not kind.__dict__.get("__doc__")]
    assert silent == [], "an error's docstring says what it means, in docs/errors.md too"


def test_an_error_family_without_a_title_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # a copy, because an item that is put back would be the last one of the dict
    families = error_codes._FAMILIES.copy()
    del families["StoreError"]
    monkeypatch.setattr(error_codes, "_FAMILIES", families)
    with pytest.raises(LookupError, match="StoreError"):
        error_codes.text()


def test_a_key_without_a_meaning_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEANINGS, "store.attic", "nothing")
    with pytest.raises(LookupError, match=r"store\.attic"):
        configuration.text()
    monkeypatch.delitem(MEANINGS, "store.url")
    with pytest.raises(LookupError, match=r"store\.url"):
        configuration.text()


@pytest.fixture(scope="module")
def document() -> Json:
    loaded: Json = yaml.safe_load((CHECKOUT / "docs/asyncapi.yaml").read_text())
    return loaded


def references(node: object) -> list[str]:
    """Return every `$ref` below a node."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for value in node for found in references(value)]
    return []


def resolved(document: Json, reference: str) -> Any:
    """Return the part of the document to which a `$ref` points.

    Raises:
        KeyError: there is no such part.
    """
    node: Any = document
    for step in reference.removeprefix("#/").split("/"):
        node = node[step]
    return node


def test_every_reference_of_the_messages_leads_somewhere(document: Json) -> None:
    found = references(document)
    assert len(found) > 30
    for reference in found:
        assert resolved(document, reference)


def test_the_form_is_that_of_asyncapi_3(document: Json) -> None:
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    assert set(document) <= {
        *("asyncapi", "id", "info", "servers", "defaultContentType"),
        *("channels", "operations", "components"),
    }
    assert set(document["channels"]) == {wire.TASK_EXCHANGE, wire.REPORT_EXCHANGE, wire.DEAD}
    for channel in document["channels"].values():
        assert set(channel) <= {"address", "description", "messages", "parameters", "bindings"}
        named = set(re.findall(r"{(\w+)}", channel["address"]))
        assert named == set(channel.get("parameters", {}))
        assert channel["bindings"]["amqp"]["is"] == "routingKey"
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        of_channel = resolved(document, operation["channel"]["$ref"])["messages"]
        assert len(operation["messages"]) == len(of_channel)
    for name in (*document["components"]["messages"], *document["components"]["schemas"]):
        assert re.fullmatch(r"[\w.-]+", name)


def test_every_task_and_the_report_is_in_it_with_examples(document: Json) -> None:
    messages = document["components"]["messages"]
    assert set(messages) == {*asyncapi.task_models(), "report", "dead"} == set(examples.SUMMARIES)
    for name in asyncapi.task_models():
        for example in messages[name]["examples"]:
            body = json.dumps(example["payload"]).encode()
            assert wire.decode_task(body).type == name
    for example in messages["report"]["examples"]:
        report = wire.decode_report(json.dumps(example["payload"]).encode())
        assert report.status == example["name"]
        assert isinstance(report, Report)


def test_every_hint_of_an_example_is_a_real_error(document: Json) -> None:
    codes = {kind.code for kind in tree(AgentError)}
    reports = document["components"]["messages"]["report"]["examples"]
    named = [one["payload"]["error"]["code"] for one in reports if "error" in one["payload"]]
    assert named
    assert set(named) <= codes
