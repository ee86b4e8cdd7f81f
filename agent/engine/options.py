"""The options that an operator may pass to an engine in [engine] options.

Each is known to leave a copy complete. This is a list of the allowed options, and not of the
forbidden ones, because the engines accept many spellings of an option. They accept underscores,
abbreviations, and the prefixes `--skip-`, `--loose-` and `--maximum-`. An option is allowed in one
spelling only, `--name=value`.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.errors import ConfigInvalid

_MARIADB: Final = "mariadb-backup"
_XTRABACKUP: Final = "xtrabackup"
_ALL: Final = (_MARIADB, _XTRABACKUP)
_NUMBER: Final = r"[1-9]\d{0,7}"
_SWITCH: Final = r"0|1|ON|OFF"
_PATH: Final = r"/[^\x00-\x1f]+"


class _Allowed(NamedTuple):
    """The rule of one allowed option.

    `value` is the pattern of its values, and `engines` are the engines that have it. `prepare` is
    True if a prepare takes the option, too.
    """

    value: str
    engines: tuple[str, ...] = _ALL
    prepare: bool = False


_ALLOWED: Final = {
    # the load on the machine
    "parallel": _Allowed(r"[1-9]\d{0,2}"),
    "throttle": _Allowed(_NUMBER),
    "log-copy-interval": _Allowed(r"[1-9]\d{0,3}"),
    "open-files-limit": _Allowed(_NUMBER),
    "read-buffer-size": _Allowed(_NUMBER, (_XTRABACKUP,)),
    # the way in which the engine reads
    "innodb-flush-method": _Allowed(r"[A-Za-z_]+"),
    "innodb-io-capacity": _Allowed(_NUMBER),
    "innodb-read-io-threads": _Allowed(r"[1-9]\d?", prepare=True),
    "innodb-use-native-aio": _Allowed(_SWITCH, prepare=True),
    # the queries that the engine waits for before it locks, and the lock against DDL
    "ftwrl-wait-threshold": _Allowed(_NUMBER, (_XTRABACKUP,)),
    "ftwrl-wait-query-type": _Allowed(r"all|update", (_XTRABACKUP,)),
    "lock-ddl": _Allowed(r"1|ON", (_XTRABACKUP,)),
    # the location of the keys of encrypted tablespaces
    "keyring-file-data": _Allowed(_PATH, (_XTRABACKUP,), prepare=True),
    "component-keyring-config": _Allowed(_PATH, (_XTRABACKUP,), prepare=True),
    "server-id": _Allowed(_NUMBER, (_XTRABACKUP,)),
}
_FORM: Final = re.compile(r"--([a-z][a-z-]*)=(.+)", re.DOTALL)
# The reasons for which other options are refused. The first pattern that is found in the option's
# name gives the reason.
_REASONS: Final = (
    (
        r"database|table|exclude|partial|no.?lock|no.?backup.?lock|close.?file|per.?table|corrupt",
        "it may leave data out of the copy",
    ),
    (
        r"stream|compress|encrypt|incremental|apply|export|prepare|^backup$|copy|move|history|lsndir",
        "it changes the type or the form of the backup",
    ),
    (
        r"timeout|safe.?slave|use.?memory|redo.?log.?consumer|slave.?info|galera.?info",
        "the agent sets it, from other keys of agent.toml or by itself",
    ),
    (
        r"dir|path|file|default|home|plugin|user|password|host|port|socket|protocol|login|ssl|tls|key",
        "the agent sets the paths, the plugins and the login itself",
    ),
)


def check_options(options: Sequence[str], kind: str | None = None) -> None:
    """Check the options of [engine] options.

    `kind` is the name of the only engine that may be used. None means that both may be used.

    Raises:
        ConfigInvalid: an option is not allowed, is misspelt, or is given twice.
    """
    names = [_checked(option, kind) for option in options]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigInvalid(f"--{twice} is given twice", hint="remove one of the two")


def options_of(options: Sequence[str], engine: str, *, prepare: bool = False) -> list[str]:
    """Return the options that `engine` takes in a backup, or in a prepare if `prepare` is set.

    They must have been checked before.
    """
    taken = []
    for option in options:
        allowed = _ALLOWED[option[2:].partition("=")[0]]
        if engine in allowed.engines and (allowed.prepare or not prepare):
            taken.append(option)
    return taken


def _checked(option: str, kind: str | None) -> str:
    """Check one option and return its name.

    Raises:
        ConfigInvalid: the option is not allowed, or its value is not, or `kind` does not have it.
    """
    found = _FORM.fullmatch(option)
    allowed = _ALLOWED.get(found[1]) if found else None
    if found is None or allowed is None:
        raise ConfigInvalid(
            f"{option!r} may not be set: {_reason(option)}",
            hint=f"use one of these options, in this spelling: {_listed()}",
        )
    if re.fullmatch(allowed.value, found[2]) is None:
        raise ConfigInvalid(
            f"{option!r} has a value that is not allowed for --{found[1]}",
            hint=f"the value must match the pattern {allowed.value}",
        )
    if kind is not None and kind not in allowed.engines:
        raise ConfigInvalid(
            f"{kind} has no option --{found[1]}",
            hint='remove the option, or set [engine] kind = "auto"',
        )
    return found[1]


def _reason(option: str) -> str:
    name = option.lstrip("-").partition("=")[0].lower().replace("_", "-")
    for pattern, reason in _REASONS:
        if re.search(pattern, name):
            return reason
    return "it is not known to leave the copy complete"


def _listed() -> str:
    return ", ".join(f"--{name}=..." for name in _ALLOWED)
