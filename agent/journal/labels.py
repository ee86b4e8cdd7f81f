"""The texts under which ends of tasks are counted.

They become labels of metrics. Each has few values, and none is the text of a sender or a server.
"""

from functools import cache
from typing import Final

from agent.errors import AgentError
from agent.model import TASK_TYPES

# The type under which messages are counted that are no tasks. A type that such a message names may
# be any text of the sender's.
NO_TASK: Final = "unknown"
# The code of an error that this version doesn't know. A record from the store may name any.
OTHER_CODE: Final = "other"


def type_label(task_type: object) -> str:
    """Return a task's type, or NO_TASK if this version doesn't know it."""
    return task_type if isinstance(task_type, str) and task_type in TASK_TYPES else NO_TASK


def code_label(code: object) -> str:
    """Return the code of an error, or OTHER_CODE if this version doesn't know it.

    It is "" if there was no error.
    """
    return code if isinstance(code, str) and (not code or code in _codes()) else OTHER_CODE


@cache
def _codes() -> frozenset[str]:
    """Return the codes of all errors."""
    kinds, codes = [AgentError], set[str]()
    while kinds:
        kind = kinds.pop()
        codes.add(kind.code)
        kinds += kind.__subclasses__()
    return frozenset(codes)
