"""The program `backup-agent`.

It parses the arguments, runs one verb, and prints tables or JSON. An error says what failed, why,
and how to fix it.

Exit status: 0 done, 1 the operation failed, 2 wrong usage or configuration. With --json a failure
is one JSON object with the key `error`.
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
    logs,
    restore,
    selftest,
    status,
    streams,
    tables,
)
from agent.cli.verb import CONFIG_HELP, Help, add_noise, add_verb, epilog
from agent.config.reading import log_section
from agent.config.settings import DEFAULT_PATH, Config, LogSection
from agent.crash_points import VARIABLE, armed
from agent.daemon import Daemon
from agent.errors import AgentError, Interrupted, OutputFailed, UsageWrong

log = logging.getLogger(__name__)

_SUMMARY = (
    "Back up a MySQL or MariaDB server to OpenStack Swift or to a directory, and restore the "
    "backups."
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
    """Run one command and return its exit status."""
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
        streams.discard()  # the reader closed the pipe, so it wants no more output
    return 1


def _run_verb(words: Sequence[str], as_json: bool) -> int:
    form = "text"
    try:
        arguments = _parser(as_json=as_json).parse_args(words)
        as_json = getattr(arguments, "json", False)
        # A wrong configuration is reported in the form that it asks for.
        form = _set_up_output(arguments, log_section(arguments.config))
        if place := armed():
            log.critical(
                "%s is set, which is for tests only: this process kills itself at %s",
                VARIABLE,
                place,
            )
        configuration = _configuration(arguments)
        if isinstance(configuration, Config):
            form = _set_up_output(arguments, configuration.log)
        ended: int = arguments.do(configuration, arguments)
    except OutputFailed:
        raise
    except AgentError as error:
        return _failed(error, form, for_program=as_json)
    except KeyboardInterrupt:
        interrupted = Interrupted("the command was interrupted", hint="run the command again")
        return _failed(interrupted, form, for_program=as_json)
    return ended


def _set_up_output(arguments: argparse.Namespace, wanted: LogSection) -> str:
    """Set up the log and the standard streams. Return the form of the daemon's log.

    A command's own form is always text.
    """
    daemon = arguments.command == "run"
    form = logs.set_up(wanted, daemon=daemon, noise=arguments.noise)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return form if daemon else "text"


def _failed(error: AgentError, form: str, *, for_program: bool) -> int:
    """Report an error and return the exit status for it.

    It is a line of the log if programs read the log. Else it is printed for people.
    """
    if form == "text":
        return tables.fail(error, for_program=for_program)
    log.error("%s: %s; what to do: %s", error.code, error, error.hint)
    return error.exit_status


class _JsonParser(argparse.ArgumentParser):
    """A parser that also prints wrong usage as JSON."""

    def error(self, message: str) -> NoReturn:
        print(tables.as_json(tables.error_object(UsageWrong(message))))
        super().error(message)


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
    add_noise(parser, default=None)
    verbs = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="command"
    )
    add_verb(verbs, "run", _run, "run the daemon, which takes tasks from RabbitMQ")
    for module in (listing, create, delete, gc, restore, cancel, status, keys, selftest):
        module.add(verbs)
    return parser


def _configuration(arguments: argparse.Namespace) -> Any:
    """Return the configuration that the verb works with.

    Without --store it comes from agent.toml. With --store it has the store of that URL, and an
    agent.toml is not required (see embedded.py). It is not required either if the environment
    describes an OpenStack cloud.

    Raises:
        UsageWrong: --store is given for a task that an agent does.
    """
    url = getattr(arguments, "store", None)
    works_here = getattr(arguments, "local", True) or getattr(arguments, "dry_run", False)
    if url is None and works_here and hasattr(arguments, "store"):
        url = arguments.store = embedded.store_of_environment(arguments.config)
    if url is None:
        return arguments.configuration(arguments.config)
    if not works_here:
        raise UsageWrong(
            "--store names a store for this process, but this command sends a task to an agent",
            hint="add the --local flag, or remove the --store option",
        )
    return embedded.configuration(arguments.config, url)


def _run(config: Config, _arguments: argparse.Namespace) -> int:
    Daemon(config).run()
    return 0
