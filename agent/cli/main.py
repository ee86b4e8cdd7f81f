"""`backup-agent`: arguments in, tables or JSON out, errors as what, why and what to do.

Exit status: 0 done, 1 the operation failed, 2 usage or configuration. With --json a failure is
one JSON object with the key `error`.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

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
    streams,
    tables,
)
from agent.cli.verb import CONFIG_HELP, Help, add_verb, epilog
from agent.config.settings import DEFAULT_PATH, Config
from agent.crash_points import VARIABLE, armed
from agent.daemon import Daemon
from agent.errors import AgentError, Interrupted, OutputFailed, UsageWrong
from agent.model import printable

log = logging.getLogger(__name__)

_SUMMARY = (
    "Back up a MySQL or MariaDB server to OpenStack Swift or to a folder, and restore what was "
    "backed up."
)
_MORE = (
    "`backup-agent COMMAND --help` explains a command. Exit status: 0 done, 1 the operation "
    "failed, 2 wrong usage or configuration. With --json a failure is one JSON object with the key "
    "`error`."
)
_EXAMPLES = (
    "backup-create --local --store file:///var/backups/db base",
    "backup-list --store file:///var/backups/db",
    "restore --local --store file:///var/backups/db BACKUP /srv/restored",
    "backup-create --wait INSTANCE base",
    "self-test",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        try:
            return _run_verb(words, "--json" in words)
        finally:
            streams.flushed()
    except OutputFailed as error:
        streams.discard()
        tables.complain(error.code, str(error), error.hint)
    except BrokenPipeError:
        streams.discard()  # whoever read the output has seen enough
    return 1


def _run_verb(words: Sequence[str], as_json: bool) -> int:
    try:
        arguments = _parser(as_json=as_json).parse_args(words)
        as_json = getattr(arguments, "json", False)
        _set_up_output(logging.INFO if arguments.command == "run" else logging.WARNING)
        if place := armed():
            log.critical(
                "%s is set, for tests alone: this process kills itself at %s", VARIABLE, place
            )
        ended: int = arguments.do(_configuration(arguments), arguments)
    except OutputFailed:
        raise
    except AgentError as error:
        return tables.fail(error, for_program=as_json)
    except KeyboardInterrupt:
        interrupted = Interrupted("the command was interrupted", hint="run it again")
        return tables.fail(interrupted, for_program=as_json)
    return ended


class _JsonParser(argparse.ArgumentParser):
    """Says wrong usage as JSON, too."""

    def error(self, message: str) -> NoReturn:
        print(tables.as_json(tables.error_object(UsageWrong(message))))
        super().error(message)


class _OneLine(logging.Formatter):
    """Nothing that a name or a foreign program says can begin a line or steer a terminal.

    Each line, also of a traceback, has its priority for the journal of systemd.
    """

    def format(self, record: logging.LogRecord) -> str:
        mark = streams.priority(record.levelno)
        return "\n".join(mark + line for line in super().format(record).splitlines())

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
            stream.reconfigure(errors="backslashreplace")


def _parser(*, as_json: bool = False) -> argparse.ArgumentParser:
    kind = _JsonParser if as_json else argparse.ArgumentParser
    parser = kind(
        prog="backup-agent",
        description=_SUMMARY,
        epilog=epilog(_MORE, _EXAMPLES),
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help=CONFIG_HELP)
    verbs = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="command"
    )
    add_verb(verbs, "run", _run, "run the daemon, which takes tasks from RabbitMQ")
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
    Daemon(config).run()
    return 0
