"""Identifiers that are known to cause faults: names of files, of log lines, of other alphabets."""

from random import Random
from typing import Final

# Files that the engine and the server write beside the schemas' directories.
ENGINE_FILES: Final = (
    "xtrabackup_checkpoints",
    "xtrabackup_info",
    "xtrabackup_logfile",
    "xtrabackup_binlog_info",
    "xtrabackup_slave_info",
    "xtrabackup_galera_info",
    "mariadb_backup_checkpoints",
    "mariadb_backup_info",
    "mariadb_backup_binlog_info",
    "donor_galera_info",
    "ib_buffer_pool",
)
_SERVER_FILES: Final = (
    "ibdata1",
    "ibtmp1",
    "ib_logfile0",
    "undo001",
    "aria_log_control",
    "aria_log.00000001",
    "backup-my.cnf",
    "mysql-bin",
    "binlog.000001",
    "binlog.index",
    "ddl_recovery.log",
    "multi-master.info",
    "auto.cnf",
    "db.opt",
    "mysql.ibd",
    "lost+found",
    "tmp",
)
# A schema with such a name can't be backed up: the engine also looks for files that don't exist.
NO_SCHEMAS: Final = (*ENGINE_FILES, "undo001", "innodb_corrupted_pages")
_SUFFIXES: Final = (
    *(".isl", ".ibd", ".new", ".ren", ".del", ".delta", ".meta", ".ibd.delta", ".ibd.meta"),
    *(".frm", ".MYD", ".MAI", ".CSM", ".opt", ".TRN", ".par", ".qp", ".gz", ".xbstream"),
    *("#P#p0", "#p#p0", "#P#p0#SP#s0", "#TMP#", "#REL#", "#sql", "@0020", "@@@", "$", "~"),
)
_PREFIXES: Final = (
    *("#sql-", "#sql-ib", "#sql2-", "#mysql50", "#tmp_", ".", "..", "@", "%", "-", "--", "~"),
    *("FTS_", "xtrabackup_", "xb_", "/", "./", "../", "\\", " ", "*", "?"),
)
_SIGNS: Final = (
    *("%", "%s%n%d", "\n", "\r\n", "\t", "\b", "\x1b[31mred", "'", '"', "`", "``", "\\", "\\n"),
    *("/", "../x", "a/b", "a\\b", ".", "..", "...", "a.b", "$(id)", ";", "|", "&", "<>", "{}"),
    *("[1]", "^a[.]", "*", "?", "!", "#", "# x", "-- x", "=", ",", "a,b", "a b", " ", "  x", "@"),
)
_ALPHABETS: Final = (
    *("ä", "ß", "İ", "\u0131", "ﬁ", "Å", "é", "e\u0301", "Ω", "ж", "ש", "ع", "中", "日本", "한"),
    *("\u200b", "\u202e", "\u2028", "\u2029", "\u0085", "\ufeff", "\ufffd", "\u00a0", "\ue000"),
)
_LINES: Final = (
    "completed OK!",
    "[00] 2026-11-30 09:00:00 completed OK!",
    "Error on aria table file open",
    "Log sequence number 1",
    "Log sequence number\t12",
    "Was only able to copy log from",
    "Access denied; you need",
    "Failed to connect to",
    "FATAL ERROR",
    "Lost connection to MySQL server",
    "Lock wait timeout exceeded",
    "skipping",
)
_RESERVED: Final = (
    *("con", "aux", "nul", "prn", "com1", "lpt9", "CON", "select", "table", "null", "default"),
    *("information_schemas", "mysql2", "mysql_innodb_cluster_metadata", "sys_", "test", "PERF"),
    *("mysqld", "performance_schema2", "0", "1e5", "1", "0x41", "T", "t", "Tt", "tT"),
)
_SYLLABLES: Final = ("ab", "or", "der", "cu", "st", "em", "log", "us", "er", "x", "_", "9")
_LONGEST: Final = 64  # characters


def plain(chance: Random) -> str:
    """Return a word that is the same in SQL, in a file's name and in a message."""
    return "w" + "".join(chance.choice("abcdefghkmnprstuvwxyz") for _ in range(6))


def word(chance: Random) -> str:
    """Return an identifier. Most are odd, and the server refuses a few."""
    kind = chance.random()
    if kind < 0.12:
        return plain(chance)
    if kind < 0.30:
        return chance.choice((*ENGINE_FILES, *_SERVER_FILES))
    if kind < 0.40:
        return _cut(chance.choice(_PREFIXES) + plain(chance))
    if kind < 0.52:
        return _cut(chance.choice((plain(chance), "t", "ibdata1")) + chance.choice(_SUFFIXES))
    if kind < 0.66:
        return _cut("".join(chance.choices((*_SIGNS, *_SYLLABLES), k=chance.randint(1, 3))))
    if kind < 0.78:
        return _cut("".join(chance.choices((*_ALPHABETS, *_SYLLABLES), k=chance.randint(1, 4))))
    if kind < 0.84:
        return chance.choice(_LINES)
    if kind < 0.90:
        return _long(chance)
    return chance.choice(_RESERVED)


def schema_word(chance: Random) -> str:
    """Return a `word` that is no file of the engine's, with which a schema's directory clashes."""
    while (found := word(chance)) in NO_SCHEMAS:
        pass
    return found


def quoted(*names: str) -> str:
    """Return names as quoted SQL identifiers, joined with dots."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def text(value: str) -> str:
    """Return a string literal of SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _long(chance: Random) -> str:
    unit = chance.choice(("x", "ab", "_", "9z", "ä", "中", "a.", "t#P#"))
    length = chance.choice((_LONGEST, _LONGEST, _LONGEST - 1, 50, 40))
    return (unit * _LONGEST)[:length]


def _cut(name: str) -> str:
    # the server refuses a space at the end
    return name[:_LONGEST].rstrip(" ") or "x"
