"""Checks of the group `database`, which tell if the installed engine can back up the server."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent import wiring
from agent.database.datadir import LOST_FOUND, Survey
from agent.database.server import ServerInfo
from agent.engine.choice import EngineVersion
from agent.engine.protocol import Engine
from agent.errors import DatabaseDenied, DatabaseUnreachable, EngineUnsupported
from agent.operations.backup.preflight import datadir_rules
from agent.selftest.check import Check, CheckOutcome, amount, failed, passed, span, warned
from agent.selftest.context import Context

_BASE = ("configuration: file", "configuration: database password")
# The files that the engine copies: mariadb-backup's own list of extensions, and InnoDB's files.
_COPIED = {".ibd", ".frm", ".MYD", ".MYI", ".MAD", ".MAI", ".CSV", ".CSM", ".opt", ".par"}
_INNODB = ("ibdata", "ib_logfile", "undo", "aria_log", "#ib_redo")
# Bytes. MariaDB's own default is 96 MiB. MySQL's default is 100 MiB from 8.0.30 on.
_SMALL_REDO = 48 << 20
# Seconds. A shorter uptime says nothing about how fast the server writes.
_TELLING_UPTIME = 600
# The name of a missing privilege in a GRANT statement, if that name is a different one.
_GRANTED_AS = {"SLAVE MONITOR": "REPLICA MONITOR"}


def checks(context: Context) -> Sequence[Check]:
    login, datadir = ("login",), ("datadir",)
    return [
        Check("reach", lambda: _reach(context), _BASE),
        Check("login", lambda: _login(context), ("reach",)),
        Check("version", lambda: _version(context), login),
        Check("privileges", lambda: _privileges(context), login),
        Check("surplus privileges", lambda: _surplus(context), login),
        Check("engine", lambda: _engine(context), login),
        Check("engine version", lambda: _engine_version(context), ("engine",)),
        Check("extractor", lambda: _extractor(context), ("engine version",)),
        Check("datadir", lambda: _datadir(context), login),
        Check("lsn", lambda: _lsn(context), ("privileges",)),
        Check("lineage", lambda: _lineage(context), datadir),
        Check("redo headroom", lambda: _redo(context), login),
        Check("open files limit", lambda: _open_files(context), ("privileges",)),
        Check("binlog", lambda: _binlog(context), login),
    ]


def _reach(context: Context) -> CheckOutcome:
    path = context.config.database.socket
    try:
        context.database.server()
    except DatabaseUnreachable as error:
        start = "start the server (systemctl start mariadb, or mysql)"
        cure = f"{start}, or correct [database] socket = {path}"
        return failed(str(error), cure)
    except DatabaseDenied:
        return passed(f"{path} answers")
    return passed(f"{path} answers")


def _login(context: Context) -> CheckOutcome:
    user = context.config.database.user
    try:
        context.database.server()
    except DatabaseDenied as error:
        return failed(
            str(error),
            f"ALTER USER '{user}'@'localhost' IDENTIFIED BY ... with the password in [database] "
            "password_file (systemd/grants.sql makes the account), or correct [database] user",
        )
    return passed(f"as {user}")


def _version(context: Context) -> CheckOutcome:
    server = context.database.server()
    return passed(f"{server.type} {server.version}")


def _privileges(context: Context) -> CheckOutcome:
    engine = context.config.engine
    missing = context.database.missing_privileges(safe_slave_backup=engine.safe_slave_backup)
    user = context.config.database.user
    if missing:
        return failed(f"{user} lacks {', '.join(missing)}", _grants(missing, user))
    return passed(f"{user} has the privileges that a backup needs")


def _grants(privileges: Sequence[str], user: str) -> str:
    """Return GRANT statements for privileges on all databases and for privileges on one table."""
    account = f"'{user}'@'localhost'"
    on_all = [_GRANTED_AS.get(name, name) for name in privileges if " ON " not in name]
    on_some = [name for name in privileges if " ON " in name]
    whole = [f"GRANT {', '.join(on_all)} ON *.* TO {account};"] if on_all else []
    return " ".join([*whole, *(f"GRANT {name} TO {account};" for name in on_some)])


# Accounts that other programs and administrators need. Their privileges must stay.
_ADMINISTRATORS = frozenset({"root", "mysql", "admin", "debian-sys-maint", "mariadb.sys"})


def _surplus(context: Context) -> CheckOutcome:
    safe = context.config.engine.safe_slave_backup
    surplus = context.database.surplus_privileges(safe_slave_backup=safe)
    user = context.config.database.user
    if not surplus:
        return passed("none")
    if user in _ADMINISTRATORS or "ALL PRIVILEGES" in surplus:
        return warned(
            f"{user} is an administrator's account",
            "create the account of systemd/grants.sql for the agent, and name it in [database] "
            f"user; don't change {user}",
        )
    names = ", ".join(surplus)
    return warned(
        f"{user} has more privileges than a backup needs: {names}",
        f"REVOKE {names} ON *.* FROM '{user}'@'localhost'; then GRANT the privileges that the "
        "check 'database: privileges' names",
    )


def _engine(context: Context) -> CheckOutcome:
    """Check that the engine for this server can be started."""
    server = context.database.server()
    try:
        chosen = _chosen(context, server)
    except EngineUnsupported:
        return passed("an engine is installed; the next check tells if it fits this server")
    return passed(f"{chosen.engine.name} {chosen.version}")


def _engine_version(context: Context) -> CheckOutcome:
    server = context.database.server()
    chosen = _chosen(context, server)
    return passed(f"{chosen.engine.name} {chosen.version} copies {server.type} {server.version}")


def _chosen(context: Context, server: ServerInfo) -> EngineVersion:
    engines = wiring.engines(context.config, "")
    return engines.for_server(server.type, server.version, server.datadir)


def _copying(context: Context) -> Engine:
    """Return the engine that copies this server. Its program may be missing."""
    server = context.database.server()
    return wiring.engines(context.config, "").copying(server.type, server.version)


def _extractor(context: Context) -> CheckOutcome:
    program = _copying(context).extractor
    found = shutil.which(program)
    if found is None:
        return failed(
            f"{program} was not found; restores need it",
            "install the engine's whole package, or set [engine] extractor to the program's path",
        )
    return passed(found)


def _datadir(context: Context) -> CheckOutcome:
    """Check that this OS user can read the files that the engine copies.

    Also check that a backup can hold everything in the datadir.
    """
    server = context.database.server()
    datadir = server.datadir
    cure = (
        f"run the agent and this self-test as the owner of {datadir}: set User=mysql in the unit, "
        "and run systemctl start backup-agent-self-test, or this command with sudo -u mysql"
    )
    engine = context.config.engine
    accepted = frozenset(name.lower() for name in engine.uncopied_engines)
    rules = datadir_rules(context.database, _copying(context), accepted)
    if not os.access(datadir, os.R_OK | os.X_OK, effective_ids=True):
        return failed(f"{datadir} can't be read", cure)
    left_out = Survey(datadir, rules).left_out
    count = 0
    try:
        for path in _copied(datadir, rules.ignored | {LOST_FOUND}):
            count += 1
            if not os.access(path, os.R_OK):
                return failed(f"{path} can't be read", cure)
    except OSError as error:
        return failed(f"{error.filename or datadir} can't be read: {error.strerror}", cure)
    if not count:
        return failed(f"{datadir} holds no database", "run the agent on the server's own machine")
    size = amount(context.datadir_bytes or 0)
    without = f", without {', '.join(left_out)}" if left_out else ""
    return passed(f"{datadir}: {count} files readable, {size}{without}")


def _copied(datadir: Path, ignored: frozenset[str]) -> Iterator[str]:
    """Yield the paths of the files that are copied, in the datadir and in its directories.

    Raises:
        OSError: a directory can't be read.
    """
    with os.scandir(datadir) as entries:
        for entry in entries:
            if entry.name in ignored:
                continue
            if entry.is_dir(follow_symlinks=True):
                with os.scandir(entry.path) as tables:
                    yield from (one.path for one in tables if Path(one.name).suffix in _COPIED)
            elif entry.name.startswith(_INNODB) or Path(entry.name).suffix in _COPIED:
                yield entry.path


def _lsn(context: Context) -> CheckOutcome:
    return passed(f"{context.database.lsn()}")


def _lineage(context: Context) -> CheckOutcome:
    lineage = context.database.lineage()
    if not lineage.birth:
        return warned(
            f"inode {lineage.inode}; the filesystem keeps no birth times, so a replaced datadir "
            "may look like the old one",
            "keep the datadir on ext4 or xfs; make a full backup after every restore",
        )
    return passed(f"inode {lineage.inode}, birth time {lineage.birth}")


def _redo(context: Context) -> CheckOutcome:
    """Check that the redo log is large enough for a time in which the store does not answer.

    The engine copies the redo log through the same stream as the data. While the store does not
    answer, that stream stands still. This lasts as long as the request to the store is retried.
    If the server overwrites redo log that is not copied yet, the backup is lost.
    """
    size, files = _redo_size(context.database.variables(*_REDO))
    found = context.database.counters("Innodb_os_log_written", "Uptime")
    uptime = found.get("Uptime", 0)
    cure = "raise innodb_log_file_size (innodb_redo_log_capacity on MySQL 8.0.30 and later)"
    stated = f"{amount(size)} of redo log in {files}"
    if size < _SMALL_REDO:
        return warned(f"{stated}: a busy server overwrites it before it is copied", cure)
    if uptime < _TELLING_UPTIME:
        return passed(f"{stated}; the server's uptime is too short to tell how fast it fills")
    lasts = size / max(found.get("Innodb_os_log_written", 0) / uptime, 1.0)
    store = context.config.store
    silence = store.timeout_seconds * store.attempts if store else 0.0
    stated += f", full after {span(lasts)} at the mean rate since the server's start"
    if lasts < silence:
        return warned(
            f"{stated}; a backup waits up to {span(silence)} for a store that does not answer", cure
        )
    return passed(stated)


_REDO = ("innodb_log_file_size", "innodb_log_files_in_group", "innodb_redo_log_capacity")


def _redo_size(variables: dict[str, str]) -> tuple[int, str]:
    """Return the bytes of the redo log, and its parts in words, such as `2 files`.

    MySQL has one capacity from 8.0.30 on.
    """
    if "innodb_redo_log_capacity" in variables:
        return int(variables["innodb_redo_log_capacity"]), "one capacity"
    files = int(variables.get("innodb_log_files_in_group", 1))
    return int(variables["innodb_log_file_size"]) * files, f"{files} file{'s' * (files > 1)}"


def _open_files(context: Context) -> CheckOutcome:
    limit = int(context.database.variables("open_files_limit").get("open_files_limit", 0))
    tables = len(context.database.tablespaces())
    found = f"the server may open {limit} files, and has {tables} tablespaces"
    if limit < tables:
        return warned(
            f"{found}: opening and closing them slows down the start of a backup",
            f"set open_files_limit = {2 * tables} in the server's configuration",
        )
    return passed(found)


def _binlog(context: Context) -> CheckOutcome:
    if context.database.variables("log_bin").get("log_bin") == "ON":
        return passed("on: after a restore, changes up to a point in time can be applied")
    return warned(
        "off: a restore ends with the state of the backup, and later changes are lost",
        "set log_bin and server_id in the server's configuration",
    )
