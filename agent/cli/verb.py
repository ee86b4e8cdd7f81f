"""What all verbs share: how they are registered, how typed values are checked, how they end."""

import argparse
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from agent.config.settings import DEFAULT_PATH, load
from agent.errors import UsageWrong
from agent.model import Frozen, is_uuid

# What the first argument is follows from the verb's `configuration`.
Command = Callable[[Any, argparse.Namespace], int]
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Asked = TypeVar("Asked", bound=Frozen)
CONFIG_HELP = f"the configuration (default: {DEFAULT_PATH})"
_EXAMPLE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


class Help(argparse.HelpFormatter):
    """Wraps the paragraphs of a text, but for those that begin with a space."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if part.startswith(" ") else super(Help, self)._fill_text(part, width, indent)
            for part in text.split("\n\n")
        )


def epilog(more: str, examples: Sequence[str]) -> str:
    """Return how a help ends: a paragraph, and commands to copy."""
    lines = "\n".join(f"  backup-agent {example}" for example in examples)
    return "\n\n".join(part for part in (more, lines and f"examples:\n\n{lines}") if part)


def add_verb(
    verbs: Verbs,
    name: str,
    do: Command,
    summary: str,
    *,
    configuration: Callable[[Path], Any] = load,
    more: str = "",
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """A parser for one verb; `do` is called with the configuration and what was typed.

    `configuration` makes the former of the path of agent.toml: a whole Config, unless the verb
    has to work where there is none. `more` and `examples` end its help; the latter are what is
    typed behind the verb.
    """
    verb = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog(more, [f"{name} {example}".rstrip() for example in examples]),
        formatter_class=Help,
    )
    verb.set_defaults(do=do, configuration=configuration)
    # behind the verb as well as before it
    verb.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)
    return verb


def add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_store(verb: argparse.ArgumentParser) -> None:
    """`--store URL`, for what is done in this process; see embedded.py."""
    verb.add_argument(
        "--store",
        metavar="URL",
        help="the store instead of [store] url, as file:///path; needs no agent.toml",
    )


def on_signals(end: Callable[[], object]) -> None:
    """Have `end` called on SIGINT and SIGTERM from now on, as often as they come.

    On a thread of its own: the one that the signal interrupts may hold a lock that `end` takes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=end, daemon=True).start())


def uuid_argument(text: str) -> str:
    """The type of an argument that is an id."""
    if not is_uuid(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a UUID in lower case, such as {_EXAMPLE}"
        )
    return text


def asked(kind: type[Asked], **values: Any) -> Asked:
    """A request with what was typed; UsageWrong where it can't be asked for."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        says = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            says = "it is empty or holds a control character"
        raise UsageWrong(
            f"the {first['loc'][0]} can't be used: {says}",
            hint="names have 1 to 255 characters, descriptions at most 1024, all on one line",
        ) from None
