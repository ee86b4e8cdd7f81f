"""`backup-agent`: arguments in, tables or JSON out, errors as what, why and what to do.

Exit status: 0 done, 1 the operation failed, 2 usage or configuration.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from agent import __version__
from agent.cli import commands
from agent.config import DEFAULT_PATH, load
from agent.errors import AgentError
from agent.model import canonical_uuid


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if arguments.command == "run" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Other libraries' own INFO is about their requests, not about backups.
    for library in ("swiftclient", "urllib3", "requests"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        status: int = arguments.do(load(arguments.config), arguments)
    except AgentError as error:
        print(f"backup-agent: {error.code}: {error}\n  what to do: {error.hint}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("backup-agent: interrupted", file=sys.stderr)
        return 1
    return status


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
    return verb


def _uuid(text: str) -> str:
    try:
        return canonical_uuid(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None
