"""Modules and functions stay small, and no error is swallowed."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.source import functions, modules, tree_of

MODULE_LINES = 500
FUNCTION_LINES = 50
BROAD = {"Exception", "BaseException"}
# The functions that may catch everything, as `module:function`, and the reason for each.
BROAD_ALLOWED = {
    "agent.engine.process:begin": "the top of a thread: the caller of its start raises the error",
    "agent.stop:guard": "the top of a thread: its error stops the whole run",
    "agent.tasks.create:_make": "a backup past its commit is done, also if a later step failed",
    "agent.tasks.executor:_perform": "the task boundary: every failure becomes the task's report",
    "agent.tasks.worker:_run": "the top of the worker thread: the daemon reports its error",
}
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def broad_excepts(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the functions that catch everything.

    The name is `<module>` outside of a function.
    """
    owners = dict.fromkeys(ast.walk(tree), "<module>")
    for function in functions(tree):
        owners.update(dict.fromkeys(ast.walk(function), function.name))
    for node, owner in owners.items():
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            if node.type is None or _is_broad(node.type):
                yield owner
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            yield from (owner for argument in node.args if _is_broad(argument))


def _raises_again(handler: ast.ExceptHandler) -> bool:
    """Return True if a handler only cleans up.

    It ends with a bare `raise`, and has no other way out.
    """
    last = handler.body[-1]
    ways_out = (ast.Return, ast.Break, ast.Continue)
    others = [node for node in ast.walk(handler) if isinstance(node, ways_out)]
    return isinstance(last, ast.Raise) and last.exc is None and not others


def _is_broad(caught: ast.expr) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(ast.unparse(kind).rpartition(".")[2] in BROAD for kind in kinds)


def silent_excepts(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of the handlers that do nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and all(map(_does_nothing, node.body)):
            yield node.lineno


def _does_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass) or constant


def long_functions(tree: ast.Module) -> Iterator[str]:
    for function in functions(tree):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{function.name}: {lines} lines"


@pytest.mark.parametrize("module", modules())
def test_module(module: str) -> None:
    """Each module is short, has a docstring, and is finished."""
    text = modules()[module].read_text()
    tree = tree_of(modules()[module])
    assert text.count("\n") <= MODULE_LINES
    assert ast.get_docstring(tree), "a module begins with a docstring that says what it is"
    assert list(long_functions(tree)) == []
    assert list(silent_excepts(tree)) == []
    assert UNFINISHED.findall(text) == []


def test_only_the_allowed_catch_everything() -> None:
    found = {
        f"{module}:{function}"
        for module, path in modules().items()
        for function in broad_excepts(tree_of(path))
    }
    assert found == BROAD_ALLOWED.keys()
    assert len(BROAD_ALLOWED) <= 5


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    g()\nexcept:\n    h()",
        "try:\n    g()\nexcept Exception as error:\n    h()",
        "try:\n    g()\nexcept (OSError, builtins.BaseException):\n    h()",
        "with contextlib.suppress(Exception):\n    g()",
        "try:\n    g()\nexcept Exception as error:\n    raise A from error",
        "for x in y:\n    try:\n        g()\n    except Exception:\n        if h():\n"
        "            continue\n        raise",
    ],
)
def test_a_broad_except_is_noticed(source: str) -> None:
    inside = "def f():\n" + "\n".join(f"    {line}" for line in source.splitlines())
    assert list(broad_excepts(ast.parse(source))) == ["<module>"]
    assert list(broad_excepts(ast.parse(inside))) == ["f"]


def test_cleaning_up_and_raising_again_is_not_catching() -> None:
    source = "try:\n    g()\nexcept BaseException:\n    h()\n    raise"
    assert list(broad_excepts(ast.parse(source))) == []


def test_a_silent_except_is_noticed() -> None:
    source = (
        "try:\n    g()\nexcept OSError:\n    pass\nexcept KeyError:\n    ...\nexcept A:\n    h()"
    )
    assert list(silent_excepts(ast.parse(source))) == [3, 5]


def test_a_long_function_is_noticed() -> None:
    body = "    x = 1\n"
    assert list(long_functions(ast.parse("def f():\n" + body * (FUNCTION_LINES - 1)))) == []
    [text] = long_functions(ast.parse("class A:\n  def f(self):\n" + body * FUNCTION_LINES))
    assert text == f"f: {FUNCTION_LINES + 1} lines"
