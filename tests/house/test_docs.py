"""Documents, and the drawing of the error tree, name only things that exist."""

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from agent import errors
from agent.cli import main as cli
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
    *(
        name
        for name in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md")
        if (CHECKOUT / name).exists()
    ),
    *(f"docs/{path.name}" for path in sorted((CHECKOUT / "docs").glob("*.md"))),
    "trove/README.md",
]
_FOLDERS = "agent|benchmarks|docs|script|systemd|tests|trove"
_PATH = re.compile(rf"(?<![\w./~-])(?:{_FOLDERS})/[\w./-]*")
# The branches of the drawing are four columns wide.
_BRANCH = re.compile(r"^(?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)")


def missing_paths(text: str) -> list[str]:
    """Return the paths of this checkout that `text` names and that don't exist."""
    named = (match.group().rstrip("./-") for match in _PATH.finditer(text))
    return [path for path in named if not (CHECKOUT / path).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_in_documents_exist(name: str) -> None:
    assert missing_paths((CHECKOUT / name).read_text()) == []


def test_a_missing_path_is_noticed() -> None:
    text = "See `agent/errors/`, agent/attic.py, (script/none). Not /etc/agent/x or tests/."
    assert missing_paths(text) == ["agent/attic.py", "script/none"]


_TEST = re.compile(r"(tests/[\w/]+\.py)::((?:\w+::)?\w+)")


def missing_tests(text: str) -> list[str]:
    """Return the tests that `text` names as `tests/x.py::name` and that don't exist."""
    return [
        match.group() for match in _TEST.finditer(text) if match[2] not in known_tests(match[1])
    ]


def known_tests(name: str) -> set[str]:
    """Return the names of a file's tests in pytest's form, `test_x` or `TestX::test_y`."""
    path = CHECKOUT / name
    if not path.exists():
        return set()
    found = set()
    for node in tree_of(path).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = (one for one in inside if isinstance(one, ast.FunctionDef))
        found |= {owner + one.name for one in functions if one.name.startswith("test_")}
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tests_in_documents_exist(name: str) -> None:
    assert missing_tests((CHECKOUT / name).read_text()) == []


def test_a_missing_test_is_noticed() -> None:
    here = "tests/house/test_docs.py"
    in_a_class = "tests/keys/test_keys.py::TestMasterKey::test_text_round_trip"
    there = [f"{here}::test_a_missing_test_is_noticed", in_a_class]
    gone = [f"{here}::test_x", f"{here}::missing_tests", "tests/none.py::test_y"]
    assert missing_tests(" ".join(f"`{one}`" for one in there + gone)) == gone


# A piece of code in a document is a fenced block, an indented line, or a span in backticks.
_CODE = re.compile(r"^```\w*\n(.*?)^```|^ {4}(.*?)$|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"(?<![\w.-])backup-agent +(?!v1 )([a-z-][^\n|;>&#()]+)")


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `backup-agent` of each command that a document shows."""
    for match in _CODE.finditer(text):
        code = next(group for group in match.groups() if group is not None)
        for command in _COMMAND.finditer(code.replace("\\\n", " ")):
            yield command.group(1).split()


def unknown_words(words: list[str]) -> Iterator[str]:
    """Yield the verb, or the options, that no parser takes."""
    parser = cli._parser()
    [verbs] = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    rest = [word.strip("[],.") for word in words]
    while rest and rest[0].startswith("--"):
        option = rest.pop(0)
        rest = rest[1:] if option == "--config" else rest
        if option not in parser._option_string_actions:
            yield option
    if not rest:
        return
    verb = verbs.choices.get(rest[0])
    if verb is None:
        yield rest[0]
        return
    known = verb._option_string_actions
    yield from (word for word in rest if word.startswith("--") and word not in known)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_in_documents_exist(name: str) -> None:
    shown = list(commands((CHECKOUT / name).read_text()))
    assert [" ".join(words) for words in shown if list(unknown_words(words))] == []


def test_an_unknown_command_is_noticed() -> None:
    text = (
        "Use `backup-agent backup-lst`, or\n\n    $ backup-agent backup-list --jsn\n\n"
        "```\n/opt/backup-agent --config x run\nbackup-agent --confg y run\n```\n"
        "but backup-agent itself and `backup-agent: failed` are no commands."
    )
    assert [list(unknown_words(words)) for words in commands(text)] == [
        *(["backup-lst"], ["--jsn"], [], ["--confg", "y"])
    ]


def test_the_reader_says_what_the_page_explains() -> None:
    page = (CHECKOUT / "docs/restore-without-the-agent.md").read_text()
    table = page.partition("| it says |")[2].partition("\n\n")[0]
    said = [
        span
        for row in table.splitlines()[2:]
        for span in re.findall(r"`([^`]+)`", row.split(" | ")[0])
    ]
    assert len(said) > 10
    reader = (CHECKOUT / "docs/open_backup.py").read_text()
    of_the_system = ("No ", "Permission", "Broken", "Error -3")
    ours = [span for span in said if not span.startswith(of_the_system)]
    assert [span for span in ours if span not in reader] == []


def test_every_field_of_a_record_is_documented() -> None:
    text = (CHECKOUT / "docs/format.md").read_text()
    models = (Record, Stored, Lineage, BinlogPosition, Datastore, WrappedKey, Measured, ErrorInfo)
    names = {name for model in models for name in model.model_fields}
    assert sorted(name for name in names if not re.search(rf"[`\"]{name}[`\"]", text)) == []


def tree(kind: type[AgentError] = AgentError) -> Iterator[type[AgentError]]:
    """Yield the classes of the error tree, each before its children."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith(f"{errors.__name__}."):
            yield from tree(child)


def drawn() -> Iterator[tuple[str, str, str, bool]]:
    """Yield the rows of the drawing.

    A row has the class, its parent, its code or "", and True if the drawing marks it as
    `retryable`.
    """
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
