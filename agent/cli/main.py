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

from agent import __version__
from agent.cli import commands, tables
from agent.config import DEFAULT_PATH, load
from agent.errors import AgentError
from agent.model import canonical_uuid, printable

_EXAMPLE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    _set_up_output(logging.INFO if arguments.command == "run" else logging.WARNING)
    try:
        status: int = arguments.do(load(arguments.config), arguments)
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
    return status


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
    _add(verbs, "run", commands.run, "run the daemon")
    listing = _add(verbs, "backup-list", commands.backup_list, "list all backups")
    show = _add(verbs, "backup-show", commands.backup_show, "show one backup")
    show.add_argument("backup", type=_uuid)
    create = _add(verbs, "backup-create", commands.backup_create, "ask an agent for a backup")
    create.add_argument("instance", type=_uuid)
    create.add_argument("name")
    create.add_argument("--description", default="")
    create.add_argument("--parent", type=_uuid, help="make an incremental on this backup")
    restore = _add(verbs, "restore", commands.restore, "restore a backup and its chain")
    restore.add_argument("backup", type=_uuid)
    restore.add_argument("target", type=Path, help="an empty or missing folder")
    restore.add_argument("--local", action="store_true", help="do it here, without a broker")
    restore.add_argument("--instance", type=_uuid, help="which agent (this one's by default)")
    for verb in (listing, show, create, restore):
        verb.add_argument("--json", action="store_true", help="for programs")
    for verb in (create, restore):
        verb.add_argument("--wait", action="store_true", help="follow it to its end")
    return parser


def _add(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    do: commands.Command,
    summary: str,
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=summary, description=summary)
    verb.set_defaults(do=do)
    # behind the verb as well as before it
    verb.add_argument("--config", type=Path, default=argparse.SUPPRESS, help="agent.toml")
    return verb


def _uuid(text: str) -> str:
    try:
        return canonical_uuid(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a UUID in lower case, such as {_EXAMPLE}"
        ) from None
