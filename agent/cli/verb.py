"""Helpers that the verbs share.

They register a verb and its options, check the values of arguments, and handle signals.
"""

import argparse
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from agent.cli.logs import QUIET, VERBOSE
from agent.config.reading import load
from agent.config.settings import DEFAULT_PATH
from agent.errors import UsageWrong
from agent.model import Frozen, is_uuid

# The first argument is the return value of the verb's function `configuration`.
Command = Callable[[Any, argparse.Namespace], int]
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Request = TypeVar("Request", bound=Frozen)
QUIET_HELP = "show only errors, the result, and notes about a key that was made"
VERBOSE_HELP = "log more, for the search of a problem; never a secret"
CONFIG_HELP = f"the configuration file (default: {DEFAULT_PATH})"
_EXAMPLE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


class Help(argparse.HelpFormatter):
    """A help formatter that wraps each paragraph, unless the paragraph begins with a space."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if part.startswith(" ") else super(Help, self)._fill_text(part, width, indent)
            for part in text.split("\n\n")
        )


def epilog(more: str, examples: Sequence[str]) -> str:
    """Return the end of a help text, which is a paragraph and commands to copy."""
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
    """Register one verb and return its parser.

    `do` is called with the configuration and the parsed arguments. It returns the exit status.
    `configuration` makes the configuration from the path of agent.toml. The result is a whole
    Config, unless the verb must work without an agent.toml. `more` and `examples` end the help of
    the verb. An example is the text to type after the verb.
    """
    verb = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog(more, [f"{name} {example}".rstrip() for example in examples]),
        formatter_class=Help,
    )
    verb.set_defaults(do=do, configuration=configuration)
    # These may stand after the verb as well as before it.
    verb.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)
    add_noise(verb, default=argparse.SUPPRESS)
    return verb


def add_noise(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    """Add the flags `--quiet` and `--verbose`, which set `noise`."""
    noise = parser.add_mutually_exclusive_group()
    for word, text in ((QUIET, QUIET_HELP), (VERBOSE, VERBOSE_HELP)):
        noise.add_argument(
            f"--{word}", dest="noise", action="store_const", const=word, default=default, help=text
        )


def add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_store(verb: argparse.ArgumentParser) -> None:
    """Add the option `--store URL`, for work that is done in this process (see embedded.py)."""
    verb.add_argument(
        "--store",
        metavar="URL",
        help="the store to use instead of [store] url, such as file:///path; needs no agent.toml",
    )


def on_signals(end: Callable[[], object]) -> None:
    """Call `end` each time that SIGINT or SIGTERM comes after this call.

    `end` runs on a thread of its own, because the thread that the signal interrupts may hold a
    lock that `end` takes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: threading.Thread(target=end, daemon=True).start())


def uuid_argument(text: str) -> str:
    """Return `text`, or raise ArgumentTypeError if it is not a lower-case UUID.

    This is the argparse type of an argument that is an id.
    """
    if not is_uuid(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a UUID in lower case, such as {_EXAMPLE}"
        )
    return text


def build_request(kind: type[Request], **values: Any) -> Request:
    """Return a request with the typed values, or raise UsageWrong if a value is not allowed."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        says = first["msg"]
        if first["type"] == "string_pattern_mismatch":
            says = "it is empty or contains a control character"
        raise UsageWrong(
            f"the {first['loc'][0]} can't be used: {says}",
            hint="use 1 to 255 characters for a name and at most 1024 for a description, all on "
            "one line",
        ) from None
