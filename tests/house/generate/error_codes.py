"""docs/errors.md, made from the classes of agent/errors and the drawing in its docstring."""

import re
from collections.abc import Iterator

from agent import errors
from agent.errors import AgentError
from tests.house.generate.tables import one_line, table

_HEAD = """\
# Errors

Every failure of `backup-agent` has one of these codes. A command prints the code before the
message. A FAILED report, and the record of a FAILED backup, have it in the field `error.code`. The
field `message` there says what failed and why, and `hint` says how to fix it. The meaning of a
code never changes.

    backup-agent: parent_unusable: the parent can't be used: ... is FAILED, not COMPLETED
      what to do: name a COMPLETED backup of this instance as parent, or make a full backup

*Exit* is the exit status of a command that fails with the code. *Passing* marks errors that may end
without your help. The agent retries a request to the store a few times before it fails with such a
code. Sending the task again later (under a fresh id) may help, too. The table shows the general
hint. Many messages have a more specific one.

`script/docs` makes this page from `agent/errors/`. Don't edit it.
"""
_FAMILIES = {
    "ConfigInvalid": "Configuration and usage",
    "TaskRefused": "Requests that can't be done",
    "DatabaseError": "Database server",
    "EngineError": "Engine",
    "StreamError": "The engine's stream",
    "DataError": "Stored bytes and records",
    "StoreError": "Object store",
    "BrokerError": "RabbitMQ",
    "JournalError": "The agent's journal",
}
_REST = "Any task or command"


def text() -> str:
    """Return the whole document.

    Raises:
        LookupError: a family of errors has no title.
    """
    parts = [_HEAD]
    families: dict[str, list[type[AgentError]]] = {}
    for kind in _drawn():
        if kind.__dict__.get("code"):
            families.setdefault(_family(kind), []).append(kind)
    for title in (*_FAMILIES.values(), _REST):
        parts.append(f"## {title}\n\n" + _rows(families.pop(title)))
    if families:
        raise LookupError(f"families without a title in {__name__}: {sorted(families)}")
    return "\n".join(parts)


def _drawn() -> Iterator[type[AgentError]]:
    """Yield the classes in the order of the drawing."""
    for name in re.findall(r"[├└]── (\w+)", errors.__doc__ or ""):
        yield getattr(errors, name)


def _family(kind: type[AgentError]) -> str:
    """Return the title of the branch to which a class belongs."""
    branch = kind.__mro__[kind.__mro__.index(AgentError) - 1]
    alone = branch is kind and not kind.__subclasses__()
    return _REST if alone else _FAMILIES.get(branch.__name__, branch.__name__)


def _rows(kinds: list[type[AgentError]]) -> str:
    rows = [
        (
            f"`{kind.code}`",
            one_line(kind.__doc__),
            str(kind.exit_status),
            "yes" if kind.retryable else "",
            kind.default_hint.replace("<", "\\<"),
        )
        for kind in kinds
    ]
    return table(("code", "what it means", "exit", "passing", "what to do"), rows)
