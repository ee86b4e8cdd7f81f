"""The threads of a task inherit its ids, because agent/threads.py starts them."""

import ast
from collections.abc import Iterator

from tests.house.source import modules, tree_of

_STARTERS = {"Thread", "Timer", "ThreadPoolExecutor"}
# These threads work for no task: those of the daemon, of its metrics, of a signal, and the one that
# cuts the requests of all tasks.
_OTHERS = {
    "agent.broker.link": 1,
    "agent.cli.verb": 1,
    "agent.metrics.threads": 1,
    "agent.store.swift.deadlines": 1,
    "agent.tasks.worker": 1,
}


def starts(tree: ast.Module) -> Iterator[int]:
    """Yield the line of each call that makes a thread of Python's own kind."""
    taken = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("threading", "concurrent.futures")
        for alias in node.names
        if alias.name in _STARTERS
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            whole = isinstance(called, ast.Attribute) and called.attr in _STARTERS
            if whole or (isinstance(called, ast.Name) and called.id in taken):
                yield node.lineno


def test_no_thread_of_a_task_is_started_otherwise() -> None:
    found = {
        module: len(lines)
        for module, path in modules().items()
        if module != "agent.threads" and (lines := list(starts(tree_of(path))))
    }
    assert found == _OTHERS


def test_the_walker_finds_each_form() -> None:
    source = (
        "import threading, concurrent.futures as f\n"
        "from threading import Thread as T\n"
        "threading.Timer(1, g)\n"
        "f.ThreadPoolExecutor(2)\n"
        "T(target=g)\n"
    )
    assert sorted(starts(ast.parse(source))) == [3, 4, 5]
    ours = "from agent.threads import Thread, Workers\nThread(g, name='x')\nWorkers(2, 'y')\n"
    assert list(starts(ast.parse(ours))) == []
