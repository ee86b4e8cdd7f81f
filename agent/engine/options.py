"""What an operator may tell an engine: [engine] options, each known to leave a copy whole.

A list of what is allowed, because the engines take many spellings of what is not: underscores,
abbreviations, and the prefixes `--skip-`, `--loose-`, `--maximum-`. An option is allowed in one
spelling, `--name=value`.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from agent.errors import ConfigInvalid

_MARIADB: Final = "mariadb-backup"
_XTRABACKUP: Final = "xtrabackup"
_BOTH: Final = (_MARIADB, _XTRABACKUP)
_NUMBER: Final = r"[1-9]\d{0,7}"
_SWITCH: Final = r"0|1|ON|OFF"
_PATH: Final = r"/[^\x00-\x1f]+"


class _Allowed(NamedTuple):
    """An option's values, the engines that have it, and whether a prepare takes it, too."""

    value: str
    engines: tuple[str, ...] = _BOTH
    prepare: bool = False


_ALLOWED: Final = {
    # how much of the machine it takes
    "parallel": _Allowed(r"[1-9]\d{0,2}"),
    "throttle": _Allowed(_NUMBER),
    "log-copy-interval": _Allowed(r"[1-9]\d{0,3}"),
    "open-files-limit": _Allowed(_NUMBER),
    "read-buffer-size": _Allowed(_NUMBER, (_XTRABACKUP,)),
    # how it reads
    "innodb-flush-method": _Allowed(r"[A-Za-z_]+"),
    "innodb-io-capacity": _Allowed(_NUMBER),
    "innodb-read-io-threads": _Allowed(r"[1-9]\d?", prepare=True),
    "innodb-use-native-aio": _Allowed(_SWITCH, prepare=True),
    # what it waits for before it locks, and whether it keeps DDL out
    "ftwrl-wait-threshold": _Allowed(_NUMBER, (_XTRABACKUP,)),
    "ftwrl-wait-query-type": _Allowed(r"all|update", (_XTRABACKUP,)),
    "lock-ddl": _Allowed(r"1|ON", (_XTRABACKUP,)),
    # where the keys of encrypted tablespaces are
    "keyring-file-data": _Allowed(_PATH, (_XTRABACKUP,), prepare=True),
    "component-keyring-config": _Allowed(_PATH, (_XTRABACKUP,), prepare=True),
    "server-id": _Allowed(_NUMBER, (_XTRABACKUP,)),
}
_FORM: Final = re.compile(r"--([a-z][a-z-]*)=(.+)", re.DOTALL)
# Why the others are refused: the first that is found in the name tells.
_REASONS: Final = (
    (
        r"database|table|exclude|partial|no.?lock|no.?backup.?lock|close.?file|per.?table|corrupt",
        "it may leave data out of the copy",
    ),
    (
        r"stream|compress|encrypt|incremental|apply|export|prepare|^backup$|copy|move|history|lsndir",
        "it changes what the backup is",
    ),
    (
        r"timeout|safe.?slave|use.?memory|redo.?log.?consumer|slave.?info|galera.?info",
        "the agent sets it, by other keys of agent.toml or by itself",
    ),
    (
        r"dir|path|file|default|home|plugin|user|password|host|port|socket|protocol|login|ssl|tls|key",
        "paths, plugins and the login are the agent's own",
    ),
)


def check_options(options: Sequence[str], kind: str | None = None) -> None:
    """Check [engine] options; `kind` is the engine that alone may be used, if any.

    Raises:
        ConfigInvalid: one is not allowed, is misspelt, or stands there twice.
    """
    names = [_checked(option, kind) for option in options]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigInvalid(f"--{twice} stands there twice", hint="remove one of the two")


def options_of(options: Sequence[str], engine: str, *, prepare: bool = False) -> list[str]:
    """Return those of the options that this engine takes, of a backup or of a prepare."""
    taken = []
    for option in options:
        allowed = _ALLOWED[option[2:].partition("=")[0]]
        if engine in allowed.engines and (allowed.prepare or not prepare):
            taken.append(option)
    return taken


def _checked(option: str, kind: str | None) -> str:
    """Return the option's name; ConfigInvalid."""
    found = _FORM.fullmatch(option)
    allowed = _ALLOWED.get(found[1]) if found else None
    if found is None or allowed is None:
        raise ConfigInvalid(
            f"{option!r} may not be set: {_reason(option)}",
            hint=f"take one of these, in this spelling: {_listed()}",
        )
    if re.fullmatch(allowed.value, found[2]) is None:
        raise ConfigInvalid(
            f"{option!r} has a value that --{found[1]} may not have",
            hint=f"it must match the pattern {allowed.value}",
        )
    if kind is not None and kind not in allowed.engines:
        raise ConfigInvalid(
            f"{kind} has no option --{found[1]}", hint='remove it, or set [engine] kind = "auto"'
        )
    return found[1]


def _reason(option: str) -> str:
    name = option.lstrip("-").partition("=")[0].lower().replace("_", "-")
    for pattern, reason in _REASONS:
        if re.search(pattern, name):
            return reason
    return "it is none of those that are known to leave the copy whole"


def _listed() -> str:
    return ", ".join(f"--{name}=..." for name in _ALLOWED)
