"""`backup-agent`: arguments in, tables or JSON out, errors as what, why and what to do.

Exit status: 0 done, 1 the operation failed, 2 usage or configuration.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent import __version__
from agent.cli import (
    cancel,
    create,
    delete,
    embedded,
    gc,
    keys,
    listing,
    restore,
    selftest,
    status,
    tables,
)
from agent.cli.verb import add_verb
from agent.config import DEFAULT_PATH, Config
from agent.crash import VARIABLE, armed
from agent.errors import AgentError, UsageWrong
from agent.model import printable
from agent.service import Service

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    _set_up_output(logging.INFO if arguments.command == "run" else logging.WARNING)
    if place := armed():
        log.critical("%s is set, for tests alone: this process kills itself at %s", VARIABLE, place)
    try:
        ended: int = arguments.do(_configuration(arguments), arguments)
        sys.stdout.flush()
    except AgentError as error:
        tables.complain(error.code, str(error), error.hint)
        return error.exit_status
    except KeyboardInterrupt:
        print("backup-agent: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # whoever read the output has seen enough; the interpreter must not flush into it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return ended


class _OneLine(logging.Formatter):
    """Nothing that a name or a foreign program says can begin a line or steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def _set_up_output(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # Other libraries' own INFO is about their requests, not about backups.
    for library in ("swiftclient", "urllib3", "requests"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that can't show a character gets its number, not a traceback
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="backup-agent", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_PATH, help=f"agent.toml ({DEFAULT_PATH})"
    )
    verbs = parser.add_subparsers(dest="command", required=True)
    add_verb(verbs, "run", _run, "run the daemon")
    for module in (listing, create, delete, gc, restore, cancel, status, keys, selftest):
        module.add(verbs)
    return parser


def _configuration(arguments: argparse.Namespace) -> Any:
    """What the verb works with: agent.toml as a rule, or a store that was named without one."""
    url = getattr(arguments, "store", None)
    if url is None:
        return arguments.configuration(arguments.config)
    if not (getattr(arguments, "local", True) or getattr(arguments, "dry_run", False)):
        raise UsageWrong(
            "--store names a store for this process, but an agent is asked to do it",
            hint="add --local, or leave --store away",
        )
    return embedded.configuration(arguments.config, url)


def _run(config: Config, _arguments: argparse.Namespace) -> int:
    Service(config).run()
    return 0
