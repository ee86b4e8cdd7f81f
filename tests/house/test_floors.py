"""Imports go down only (ARCHITECTURE.md): a module uses its own room and the floors below it.

The rooms of floor 2, the edges, don't use each other either. Imports count wherever they
stand: inside a function, under TYPE_CHECKING, relative, or by name through importlib.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.source import CHECKOUT, modules, tree_of

# Room by its longest prefix, and the floor it is on.
FLOORS = {
    "agent.crash_points": 0,
    "agent.errors": 0,
    "agent.model": 0,
    "agent.model.values": 0,
    "agent.codec": 1,
    "agent.database.flavours": 1,
    "agent.keys.ids": 1,
    "agent.keys.keyring": 1,
    "agent.records.object_names": 1,
    "agent.store.policy": 1,
    "agent.broker.wire": 1,
    "agent.machine.account": 2,
    "agent.store": 2,
    "agent.engine": 2,
    "agent.broker": 2,
    "agent.database.server": 2,
    "agent.database.datadir": 2,
    "agent.machine.host": 2,
    "agent.journal": 2,
    "agent.machine.lock": 2,
    "agent.machine.systemd": 2,
    "agent.records.cache": 2,
    "agent.records.ancestry": 3,
    "agent.records.catalogue": 3,
    "agent.records.descendants": 3,
    "agent.records.reading": 3,
    "agent.records.manifest": 3,
    "agent.pipeline": 3,
    "agent.records.presence": 3,
    "agent.operations": 4,
    "agent.tasks.executor": 5,
    "agent.tasks.cancellation": 5,
    "agent.tasks.recovery": 5,
    "agent.tasks.reports": 5,
    "agent.tasks.worker": 5,
    "agent.tasks.stores": 5,
    "agent.__main__": 6,
    "agent.wiring": 6,
    "agent.cli": 6,
    "agent.config.settings": 6,
    "agent.config.secrets": 6,
    "agent.selftest": 6,
    "agent.daemon": 6,
}
# A package's __init__ counts with the lowest of its members.
PACKAGE_FLOORS = {"agent": 0, "agent.broker": 1}
EDGES = 2

# One room knows each of these libraries.
OWNERS = {
    "pika": "agent.broker",
    "psutil": "agent.machine.host",
    "pymysql": "agent.database.server",
    "requests": "agent.store",
    "sqlite3": "agent.journal",
    "swiftclient": "agent.store",
}
# What floors 0 and 1 do without: I/O and threads.
IMPURE = {"asyncio", "concurrent", "multiprocessing", "queue", "select", "socket", "subprocess"}
IMPURE |= {"tempfile", "threading"}


def room_of(module: str) -> tuple[str, int]:
    """The room and floor of a module of the agent; LookupError where it has none."""
    if module in PACKAGE_FLOORS:
        return module, PACKAGE_FLOORS[module]
    room = module
    while room not in FLOORS:
        if "." not in room:
            raise LookupError(f"{module} is on no floor: add its room to FLOORS")
        room = room.rpartition(".")[0]
    return room, FLOORS[room]


def imports(module: str, tree: ast.Module, known: frozenset[str], package: bool) -> Iterator[str]:
    """Names of all modules that `tree`, the source of `module`, imports.

    `known` tells modules from other names in `from x import y`; `package`: it's an __init__.
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
    """What is wrong with `module` importing `used`, if anything."""
    top = used.partition(".")[0]
    room, floor = room_of(module)
    if used == "?":
        return f"{module} imports a module by a name that can't be checked"
    if top in ("tests", "benchmarks"):
        return f"{module} imports {used}"
    if top != "agent":
        return _foreign_fault(module, top, floor)
    used_room, used_floor = room_of(used)
    if room == used_room or used_floor < floor:
        return None
    if used_floor > floor:
        return f"{module} (floor {floor}) imports {used} (floor {used_floor}): up"
    if floor == EDGES:
        return f"{module} imports {used}: sideways, to another edge"
    return None


def _foreign_fault(module: str, library: str, floor: int) -> str | None:
    owner = OWNERS.get(library)
    if owner and room_of(module)[0] != owner:
        return f"{module} imports {library}: only {owner} knows it"
    if floor < EDGES and library in IMPURE:
        return f"{module} (floor {floor}) imports {library}: floors 0 and 1 are pure"
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


def test_the_document_has_each_room_on_its_floor() -> None:
    text = (CHECKOUT / "ARCHITECTURE.md").read_text()
    rows = {int(row[1]): row[2] for row in re.finditer(r"^\| (\d) \w+ \| (.*) \| ", text, re.M)}
    paths = {room: room.replace(".", "/") for room in FLOORS if room != "agent.__main__"}
    assert set(paths) <= set(modules())
    assert [
        room
        for room, path in paths.items()
        if f"`{path}/`" not in rows[FLOORS[room]] and f"`{path}.py`" not in rows[FLOORS[room]]
    ] == []


def test_a_module_without_a_floor_is_noticed() -> None:
    with pytest.raises(LookupError, match=r"agent\.attic is on no floor"):
        room_of("agent.attic")


KNOWN = frozenset(
    f"agent{name}"
    for name in (
        *("", ".errors", ".model", ".broker", ".broker.amqp", ".broker.wire", ".journal"),
        *(".store", ".store.swift", ".store.protocol", ".pipeline", ".pipeline.upload"),
        *(".runner", ".cli", ".cli.main"),
    )
)


@pytest.mark.parametrize(
    ("module", "source", "word"),
    [
        ("agent.model", "import agent.tasks.worker", "up"),
        ("agent.model", "import os, agent.store.swift.store as s", "up"),
        ("agent.journal", "from agent import runner", "up"),
        ("agent.journal", "from agent.pipeline.upload import send", "up"),
        ("agent.tasks.worker", "def f():\n    from agent.cli import main", "up"),
        ("agent.tasks.worker", "class A:\n    def f(self):\n        import agent.cli.main", "up"),
        ("agent.model", "if TYPE_CHECKING:\n    from agent.store import protocol", "up"),
        ("agent.store.swift.store", "from ..pipeline import upload", "up"),
        ("agent.store.swift.store", "from .. import runner", "up"),
        ("agent.broker.wire", "from .amqp import Broker", "up"),
        ("agent.broker.wire", "from . import amqp", "up"),
        ("agent.journal", "importlib.import_module('agent.tasks.worker')", "up"),
        ("agent.journal", "__import__('agent.cli.main')", "up"),
        ("agent.journal", "importlib.import_module(name)", "can't be checked"),
        ("agent.journal", "from agent.store.swift.store import SwiftStore", "sideways"),
        ("agent.store.swift.store", "def f():\n    from agent.broker import amqp", "sideways"),
        ("agent.tasks.worker", "from tests.stack import process", "imports tests"),
        ("agent.tasks.worker", "import pika.exceptions", "only agent.broker"),
        ("agent.broker.wire", "import pika", "only agent.broker"),
        ("agent.model", "import threading", "pure"),
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
        ("agent.store.swift.store", "from .protocol import Store\nfrom ..errors import StoreBusy"),
        ("agent.broker.amqp", "from agent.broker.wire import decode\nimport pika"),
        ("agent.pipeline.upload", "from agent.store.protocol import Store\nimport threading"),
        ("agent.cli.main", "from agent import __version__"),
    ],
)
def test_the_walker_allows(module: str, source: str) -> None:
    assert faults_of(module, ast.parse(source), KNOWN, package=False) == []


def test_the_walker_reads_relative_imports_of_a_package() -> None:
    source = ast.parse("from .amqp import Broker\nfrom .. import runner")
    used = list(imports("agent.broker", source, KNOWN, package=True))
    assert used == ["agent.broker.amqp", "agent.tasks.worker"]
