"""The restore of a chain in OpenStack Trove's layout, for `restore --local --trove`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.config.secrets import read_secret
from agent.config.settings import Config
from agent.errors import UsageWrong
from agent.model import printable
from agent.operations.restore.chain import ChainRestore
from agent.operations.trove.restore import open_chain
from agent.pipeline.meter import Meter
from agent.records.trove.names import parse_location
from agent.records.trove.objects import Place
from agent.stop import Stop
from agent.wiring.trove import trove_restore_resources

log = logging.getLogger(__name__)

_KEY_FILE: Final = "--openssl-key-file"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of the restore of a backup of Trove."""
    verb.add_argument(
        "--trove",
        action="store_true",
        help="with --local: the backup is one of OpenStack Trove, and BACKUP is its locationRef",
    )
    verb.add_argument(
        "--checksum",
        metavar="SUM",
        help="with --trove: the checksum that Trove noted",
    )
    verb.add_argument(
        _KEY_FILE,
        type=Path,
        metavar="FILE",
        help="with --trove: a file, mode 0600, with the backup_aes_cbc_key of backups whose names "
        "end in .enc",
    )


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UsageWrong if the options of a restore don't fit together."""
    if arguments.trove:
        parse_location(arguments.backup)
        if not arguments.local:
            raise UsageWrong(
                "--trove restores in this process", hint="add the --local flag: no agent does it"
            )
        return
    if "/" in arguments.backup:
        raise UsageWrong(
            f"{printable(arguments.backup)[:200]!r} is the location of a backup, not an id",
            hint="add the --trove flag if it is a backup of OpenStack Trove",
        )
    if arguments.checksum is not None or arguments.openssl_key_file is not None:
        raise UsageWrong(
            f"--checksum and {_KEY_FILE} are for a backup of OpenStack Trove",
            hint="add the --trove flag, or remove these options",
        )


class TroveRestore:
    """One restore. It implements agent.cli.restore.Restore."""

    def __init__(
        self, config: Config, arguments: argparse.Namespace, meter: Meter, stop: Stop
    ) -> None:
        """Read the secrets, and prepare to restore the backup that the arguments name.

        Raises:
            ConfigInvalid, KeyUnusable: the configuration or a secret can't be used.
        """
        self._place = Place(parse_location(arguments.backup), arguments.checksum)
        self._password = ""
        if arguments.openssl_key_file is not None:
            self._password = read_secret(arguments.openssl_key_file, _KEY_FILE)
        kind = config.engine.kind
        self._engine = None if kind == "auto" else kind
        self._unbound = trove_restore_resources(config)
        self._resources = self._unbound.bound(stop)
        self._meter = meter
        self._stop = stop

    def check(self) -> None:
        """Check that the chain is there and can be opened."""
        open_chain(self._resources, self._place, engine=self._engine, password=self._password)

    def run(self, target: Path) -> Sequence[tuple[str, str]]:
        """Restore the chain, and return the id and the name of each backup."""
        self._say_what_is_trusted()
        chain = open_chain(
            self._resources, self._place, engine=self._engine, password=self._password
        )
        ChainRestore(self._resources, meter=self._meter, stop=self._stop).restore(
            chain.links, target
        )
        return [(backup.backup_id, backup.backup_id) for backup in chain.backups]

    def close(self) -> None:
        self._unbound.store.abort()
        self._unbound.store.close()

    def _say_what_is_trusted(self) -> None:
        if self._place.checksum is None:
            print(
                "backup-agent: note: no --checksum was given, so the ETag that the store states "
                "now is taken. It can't show that the object was replaced",
                file=sys.stderr,
            )
        account = self._resources.store.location.split("/")[-2]
        if f"/{account}/" not in self._place.location.url:
            log.warning(
                "the location is in another account than that of the login, %s, in which the "
                "backup is looked for",
                account,
            )
