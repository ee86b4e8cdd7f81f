"""What the documents and the error tree's drawing name exists."""

import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from agent import errors
from agent.errors import AgentError
from agent.model import (
    BinlogPosition,
    Datastore,
    ErrorInfo,
    Lineage,
    Measured,
    Record,
    Stored,
    WrappedKey,
)
from tests.house.source import CHECKOUT, modules, tree_of

DOCUMENTS = [
    name
    for name in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "docs/format.md")
    if (CHECKOUT / name).exists()
]
_FOLDERS = "agent|benchmarks|docs|script|systemd|tests"
_PATH = re.compile(rf"(?<![\w./~-])(?:{_FOLDERS})/[\w./-]*")
# the drawing's branches are four columns wide
_BRANCH = re.compile(r"^(?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)")


def missing_paths(text: str) -> list[str]:
    """Paths of this checkout that `text` names and that aren't there."""
    named = (match.group().rstrip("./-") for match in _PATH.finditer(text))
    return [path for path in named if not (CHECKOUT / path).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_in_documents_exist(name: str) -> None:
    assert missing_paths((CHECKOUT / name).read_text()) == []


def test_a_missing_path_is_noticed() -> None:
    text = "See `agent/errors/`, agent/attic.py, (script/none). Not /etc/agent/x or tests/."
    assert missing_paths(text) == ["agent/attic.py", "script/none"]


def test_every_field_of_a_record_is_documented() -> None:
    text = (CHECKOUT / "docs/format.md").read_text()
    models = (Record, Stored, Lineage, BinlogPosition, Datastore, WrappedKey, Measured, ErrorInfo)
    names = {name for model in models for name in model.model_fields}
    assert sorted(name for name in names if not re.search(rf"[`\"]{name}[`\"]", text)) == []


def tree(kind: type[AgentError] = AgentError) -> Iterator[type[AgentError]]:
    """The classes of the error tree, each before its children."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield from tree(child)


def drawn() -> Iterator[tuple[str, str, str, bool]]:
    """Rows of the drawing: class, parent, code or "", and whether it says `retryable`."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    code_column = next(line.index("config_invalid") for line in lines if "config_invalid" in line)
    parents: list[str] = []
    for line in lines:
        match = _BRANCH.match(line)
        assert match, line
        depth = len(match["branch"]) // 4 - 1
        parents[depth:] = [match["name"]]
        words = line[code_column:].split(maxsplit=1)
        coded = bool(words) and not line[code_column].isspace()
        remark = "".join(words[1:] if coded else words)
        yield (
            match["name"],
            parents[depth - 1] if depth else "Exception",
            words[0] if coded else "",
            remark.startswith("retryable"),
        )


def test_the_drawing_is_the_tree() -> None:
    built = [(kind.__name__, kind.__base__, kind) for kind in tree()]
    assert sorted(drawn()) == sorted(
        (name, base.__name__ if base else "", kind.__dict__.get("code", ""), kind.retryable)
        for name, base, kind in built
    )


def test_codes_are_unique() -> None:
    codes = Counter(kind.__dict__["code"] for kind in tree() if kind.__dict__.get("code"))
    assert len(codes) > 20
    assert [code for code, count in codes.items() if count > 1] == []


@pytest.mark.parametrize("kind", [kind for kind in tree() if not kind.__subclasses__()])
def test_every_leaf_has_code_and_hint(kind: type[AgentError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.__dict__.get("code", ""))
    assert kind.__dict__.get("default_hint")
    assert kind.exit_status in (1, 2)


def test_errors_are_defined_in_one_module() -> None:
    names = {kind.__name__ for kind in tree()}
    strays = [
        f"{module}: {node.name}"
        for module, path in modules().items()
        if not module.startswith(errors.__name__)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).rpartition(".")[2] in names for base in node.bases)
    ]
    assert strays == []
