"""Imports go down only (ARCHITECTURE.md). A room uses itself and the rooms below it.

Two rooms of one floor don't use each other. The edges don't use each other either, because each of
them has foreign systems of its own. An edge takes only pure modules from another edge. Every import
counts: inside a function, under TYPE_CHECKING, relative, or by name through importlib.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.source import CHECKOUT, modules, tree_of

# The rooms directly under agent/, from the ground up.
_ROOMS = (
    ("agent.crash_points", "agent.errors", "agent.stop", "agent.threads"),
    ("agent.machine", "agent.model"),
    ("agent.broker", "agent.codec", "agent.keys", "agent.store"),
    ("agent.database", "agent.journal", "agent.pipeline", "agent.records"),
    ("agent.engine", "agent.metrics"),
    ("agent.config", "agent.operations"),
    ("agent.tasks",),
    ("agent.wiring",),
    ("agent.daemon", "agent.selftest"),
    ("agent.cli",),
    ("agent.__main__", "agent.trove"),
)
FLOORS = {room: floor for floor, rooms in enumerate(_ROOMS) for room in rooms}
EDGES = {"agent.broker", "agent.database", "agent.engine", "agent.journal", "agent.store"}
# These compute, without I/O and threads.
PURE = {
    *("agent.crash_points", "agent.errors", "agent.model", "agent.codec", "agent.keys"),
    *("agent.broker.wire", "agent.database.flavours", "agent.records.object_names"),
    "agent.store.policy",
}

# Only one room knows each of these libraries.
OWNERS = {
    "keystoneauth1": "agent.store",
    "pika": "agent.broker",
    "prometheus_client": "agent.metrics",
    "psutil": "agent.machine",
    "pymysql": "agent.database",
    "requests": "agent.store",
    "sqlite3": "agent.journal",
    "swiftclient": "agent.store",
    "yaml": "agent.config",
}
# Pure modules don't import these, because they are for I/O and threads.
IMPURE = {"asyncio", "concurrent", "multiprocessing", "queue", "select", "socket", "subprocess"}
IMPURE |= {"tempfile", "threading"}


def room_of(module: str) -> tuple[str, int]:
    """Return the room and the floor of a module of the agent.

    Raises:
        LookupError: the module is on no floor.
    """
    room = ".".join(module.split(".")[:2])
    if room == "agent":
        return room, 0
    if room not in FLOORS:
        raise LookupError(f"{module} is on no floor: add its room to FLOORS")
    return room, FLOORS[room]


def is_pure(module: str) -> bool:
    """Return True if a module, or its room, is one of those that only compute."""
    return not PURE.isdisjoint((module, room_of(module)[0]))


def imports(module: str, tree: ast.Module, known: frozenset[str], package: bool) -> Iterator[str]:
    """Yield the names of all modules that `tree`, the source of `module`, imports.

    `known` has the names of all modules, which tell modules from other names in `from x import y`.
    `package` is True if `module` is an __init__.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if package else node.level
                home = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*home, *base.split(".")] if base else home)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in known else base
        elif isinstance(node, ast.Call):
            yield from _by_name(node)


def _by_name(call: ast.Call) -> Iterator[str]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = call.func.id if isinstance(call.func, ast.Name) else name
    if name in ("import_module", "__import__"):
        target = call.args[0] if call.args else None
        literal = isinstance(target, ast.Constant) and isinstance(target.value, str)
        yield str(target.value) if literal and isinstance(target, ast.Constant) else "?"


def fault(module: str, used: str) -> str | None:
    """Return the fault of an import of `used` by `module`, or None."""
    top = used.partition(".")[0]
    room, floor = room_of(module)
    if used == "?":
        return f"{module} imports a module by a name that can't be checked"
    if top in ("tests", "benchmarks"):
        return f"{module} imports {used}"
    if top != "agent":
        return _foreign_fault(module, top)
    used_room, used_floor = room_of(used)
    if used_room == room:
        return _pure_fault(module, used)
    if used_floor > floor:
        return f"{module} (floor {floor}) imports {used} (floor {used_floor}): up"
    if used_floor == floor or ({room, used_room} <= EDGES and not is_pure(used)):
        return f"{module} imports {used}: sideways"
    return _pure_fault(module, used)


def _pure_fault(module: str, used: str) -> str | None:
    if is_pure(module) and not is_pure(used) and used != "agent":
        return f"{module} imports {used}: a pure module uses only pure modules"
    return None


def _foreign_fault(module: str, library: str) -> str | None:
    owner = OWNERS.get(library)
    if owner and room_of(module)[0] != owner:
        return f"{module} imports {library}: only {owner} knows it"
    if is_pure(module) and (owner or library in IMPURE):
        return f"{module} imports {library}: it must be pure"
    return None


def faults_of(module: str, source: ast.Module, known: frozenset[str], package: bool) -> list[str]:
    found = (fault(module, used) for used in imports(module, source, known, package))
    return [text for text in found if text]


def test_every_module_is_on_a_floor() -> None:
    assert len(modules()) > 5
    for module in modules():
        room_of(module)


def test_imports_go_down_only() -> None:
    known = frozenset(modules())
    found = [
        text
        for module, path in modules().items()
        for text in faults_of(module, tree_of(path), known, path.name == "__init__.py")
    ]
    assert found == []


def test_each_room_is_there_and_on_one_floor() -> None:
    assert len(FLOORS) == sum(map(len, _ROOMS)) <= 26
    assert len(_ROOMS) <= 11
    assert set(FLOORS) | PURE <= set(modules())


def test_the_document_has_each_room_on_its_floor() -> None:
    text = (CHECKOUT / "ARCHITECTURE.md").read_text()
    rows = {int(row[1]): row[2] for row in re.finditer(r"^\| (\d+) \| (.*) \|$", text, re.M)}
    for floor, rooms in enumerate(_ROOMS):
        for room in rooms:
            path = room.replace(".", "/")
            assert f"`{path}/`" in rows[floor] or f"`{path}.py`" in rows[floor], room


def test_a_module_without_a_floor_is_noticed() -> None:
    with pytest.raises(LookupError, match=r"agent\.attic is on no floor"):
        room_of("agent.attic")


KNOWN = frozenset(
    f"agent{name}"
    for name in (
        *("", ".errors", ".model", ".broker", ".broker.amqp", ".broker.wire", ".journal"),
        *(".store", ".store.protocol", ".store.swift", ".store.swift.store", ".pipeline"),
        *(".database.flavours", ".database.server", ".engine", ".engine.common", ".stop"),
        *(".keys", ".keys.ids", ".pipeline.upload", ".tasks", ".tasks.worker", ".cli", ".cli.main"),
    )
)


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("agent.model", "import agent.tasks.worker", "up"),
        ("agent.model", "import os, agent.store.swift.store as s", "up"),
        ("agent.journal", "from agent import tasks", "up"),
        ("agent.journal", "from agent.pipeline.upload import send", "sideways"),
        ("agent.tasks.worker", "def f():\n    from agent.cli import main", "up"),
        ("agent.tasks.worker", "class A:\n    def f(self):\n        import agent.cli.main", "up"),
        ("agent.model", "if TYPE_CHECKING:\n    from agent.store import protocol", "up"),
        ("agent.store.swift.store", "from ...pipeline import upload", "up"),
        ("agent.store.swift.store", "from ... import tasks", "up"),
        ("agent.journal", "importlib.import_module('agent.tasks.worker')", "up"),
        ("agent.journal", "__import__('agent.cli.main')", "up"),
        ("agent.journal", "importlib.import_module(name)", "can't be checked"),
        ("agent.journal", "from agent.store.swift.store import SwiftStore", "sideways"),
        ("agent.store.swift.store", "def f():\n    from agent.broker import amqp", "sideways"),
        ("agent.tasks.worker", "from tests.stack import process", "imports tests"),
        ("agent.tasks.worker", "import pika.exceptions", "only agent.broker"),
        ("agent.broker.wire", "import pika", "pure"),
        ("agent.broker.wire", "from .amqp import Broker", "pure"),
        ("agent.broker.wire", "from . import amqp", "pure"),
        ("agent.model", "import threading", "pure"),
        ("agent.keys.ids", "from agent.stop import Stop", "pure"),
        ("agent.engine.common", "from agent.database.server import Database", "sideways"),
    ],
)
def test_the_walker_catches(module: str, source: str, word: str) -> None:
    [text] = faults_of(module, ast.parse(source), KNOWN, package=False)
    assert word in text


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("agent.cli.main", "import agent.tasks.worker"),
        ("agent.tasks.worker", "from agent import journal, model"),
        ("agent.store.swift.store", "from agent.store.protocol import Store"),
        (
            "agent.store.swift.store",
            "from ..protocol import Store\nfrom ...errors import StoreBusy",
        ),
        ("agent.broker.amqp", "from agent.broker.wire import decode\nimport pika"),
        ("agent.pipeline.upload", "from agent.store.protocol import Store\nimport threading"),
        ("agent.cli.main", "from agent import __version__"),
        ("agent.engine.common", "from agent.database.flavours import numbers"),
    ],
)
def test_the_walker_allows(module: str, source: str) -> None:
    assert faults_of(module, ast.parse(source), KNOWN, package=False) == []


def test_the_walker_reads_relative_imports_of_a_package() -> None:
    source = ast.parse("from .amqp import Broker\nfrom .. import tasks")
    used = list(imports("agent.broker", source, KNOWN, package=True))
    assert used == ["agent.broker.amqp", "agent.tasks"]
