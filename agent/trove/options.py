"""The command line of Trove's backup/main.py, as its releases 20 to 26 give it.

Source: cli_opts in https://opendev.org/openstack/trove/src/branch/master/backup/main.py. Options of
other releases are ignored with a warning, so that an upgrade of Trove does not end its backups.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import Final, NoReturn

from agent.engine.mariadb import MariadbBackup
from agent.engine.xtrabackup import XtraBackup
from agent.errors import UsageWrong
from agent.model import is_uuid

log = logging.getLogger(__name__)

# The drivers of Trove that xtrabackup or mariadb-backup make the backups of.
MARIADB: Final = "mariabackup"
DRIVERS: Final = (MARIADB, "xtrabackup", "innobackupex")
DATADIR: Final = "/var/lib/mysql/data"
_TEXTS: Final = (
    *("backup-id", "storage-driver", "driver", "swift-url", "backup-encryption-key"),
    *("db-user", "db-password", "db-host", "db-datadir"),
    *("os-token", "os-auth-url", "os-region-name", "os-tenant-id"),
    *("swift-container", "swift-extra-metadata", "restore-from", "restore-checksum"),
    *("parent-location", "parent-checksum", "pg-wal-archive-dir"),
)
# Each of these can also be given as `--no...`.
_FLAGS: Final = ("backup", "incremental", "swift-api-insecure")


class Options(argparse.Namespace):
    """The options of one run, with an empty text for those that are not given."""

    backup: bool
    incremental: bool
    swift_api_insecure: bool
    backup_id: str
    storage_driver: str
    driver: str
    swift_url: str
    backup_encryption_key: str
    db_user: str
    db_password: str
    db_host: str
    db_datadir: str
    os_token: str
    os_auth_url: str
    os_region_name: str
    os_tenant_id: str
    swift_container: str
    swift_extra_metadata: str
    restore_from: str
    restore_checksum: str
    parent_location: str
    parent_checksum: str

    @property
    def engine(self) -> str:
        """Return the engine that makes the backups of the driver."""
        return MariadbBackup.name if self.driver == MARIADB else XtraBackup.name

    @property
    def metadata(self) -> dict[str, str]:
        """Return the pairs of --swift-extra-metadata, which has the form `key:value,key:value`.

        Raises:
            UsageWrong: it has another form.
        """
        pairs = [pair.partition(":") for pair in self.swift_extra_metadata.split(",") if pair]
        if not all(key.strip() and colon for key, colon, _ in pairs):
            raise UsageWrong("--swift-extra-metadata is not of the form key:value,key:value")
        return {key.strip(): value.strip() for key, _, value in pairs}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageWrong(message, hint=_HINT)


_HINT: Final = (
    "this program is run by Trove's guest agent. trove/README.md of backup-agent describes its use"
)


def parse(arguments: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        UsageWrong: an option lacks its value, or one that the run needs is missing.
    """
    parser = _Parser(prog="main.py", add_help=False, allow_abbrev=False)
    for name in _TEXTS:
        parser.add_argument(f"--{name}", default="")
    for name in _FLAGS:
        key = name.replace("-", "_")
        parser.add_argument(f"--{name}", action="store_true", dest=key)
        parser.add_argument(f"--no{name}", action="store_false", dest=key)
    _refuse_twice(arguments)
    options, others = parser.parse_known_args(arguments, Options())
    _warn_of(others)
    _check(options)
    options.db_datadir = options.db_datadir or DATADIR
    options.swift_container = options.swift_container or "database_backups"
    return options


def _refuse_twice(arguments: Sequence[str]) -> None:
    """Refuse an option that is given twice. Trove puts texts of users unquoted into the command.

    Raises:
        UsageWrong: one is.
    """
    names = [one.partition("=")[0] for one in arguments if one.startswith("--")]
    names = [name[2:].removeprefix("no") if name[4:] in _FLAGS else name[2:] for name in names]
    known = {*_TEXTS, *_FLAGS}
    twice = sorted({f"--{name}" for name in names if name in known and names.count(name) > 1})
    if twice:
        raise UsageWrong(
            f"{' and '.join(twice)[:200]} is given twice",
            hint="a name that a user chose, such as that of the container, has an option in it",
        )


def _warn_of(others: Sequence[str]) -> None:
    """Warn of unknown arguments, of which only the names are shown. A value may be a secret."""
    for name in sorted({one.partition("=")[0] for one in others if one.startswith("--")}):
        log.warning("the option %s is not known and is ignored", name[:80])
    if any(not one.startswith("--") for one in others):
        log.warning(
            "an argument that is no option is ignored. If a password has blanks or quotes, Trove "
            "gives only a part of it"
        )


def _check(options: Options) -> None:
    if options.driver and options.driver not in DRIVERS:
        raise UsageWrong(
            f"--driver={options.driver[:80]} is not supported",
            hint=f"this image makes backups with {', '.join(DRIVERS)}. Set another "
            "backup_docker_image in the section of that datastore",
        )
    if options.storage_driver not in ("", "swift"):
        raise UsageWrong(
            f"--storage-driver={options.storage_driver[:80]} is not supported, only swift",
            hint="set storage_strategy = swift in trove-guestagent.conf",
        )
    needed = {"os_token": options.os_token}
    if not options.swift_url:
        needed |= {"os_auth_url": options.os_auth_url, "os_tenant_id": options.os_tenant_id}
    if options.backup:
        needed |= {"backup_id": options.backup_id, "db_user": options.db_user}
        if options.incremental:
            needed["parent_location"] = options.parent_location
    else:
        needed["restore_from"] = options.restore_from
    missing = [f"--{name.replace('_', '-')}" for name, value in needed.items() if not value]
    if missing:
        raise UsageWrong(f"{' and '.join(missing)} must be given", hint=_HINT)
    if options.backup and not is_uuid(options.backup_id):
        raise UsageWrong(f"--backup-id={options.backup_id[:80]!r} is not a UUID", hint=_HINT)
