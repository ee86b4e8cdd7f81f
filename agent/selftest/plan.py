"""The checks there are, by their groups and in their order: names that others rely on.

The groups' own modules do them. run.py compares: a name of this plan that was not looked at,
and one that isn't in it, is a failure.
"""

from typing import Final

PLAN: Final[dict[str, tuple[str, ...]]] = {
    "configuration": (
        "file",
        "sections",
        "environment",
        "broker password",
        "store key",
        "database password",
        "state folder",
    ),
    "host": (
        "cores",
        "memory",
        "state space",
        "restore space",
        "clock",
        "aes",
        "simd",
        "compression",
        "open files",
        "user",
        "agent",
    ),
    "database": (
        "reach",
        "login",
        "version",
        "privileges",
        "surplus privileges",
        "engine",
        "engine version",
        "extractor",
        "datadir",
        "lsn",
        "lineage",
        "redo headroom",
        "open files limit",
        "binlog",
    ),
    "keys": ("files", "active", "recovery", "encryption"),
    "broker": ("reach", "login", "declare", "round trip", "unroutable", "report readers"),
    "store": (
        "login",
        "container",
        "limits",
        "clock",
        "put",
        "get",
        "list",
        "manifest",
        "delete",
        "throughput",
    ),
    "records": ("keys", "chains"),
    "data path": ("round trip", "speed", "estimate", "wrong key", "damage", "removal"),
}
# What `--full` adds.
TRIAL: Final[dict[str, tuple[str, ...]]] = {
    "trial": ("backup", "restore", "server", "tables", "removal"),
}


def chosen(only: tuple[str, ...] = (), *, full: bool = False) -> dict[str, tuple[str, ...]]:
    """The part of the plan that was asked for: all groups, or those named."""
    whole = PLAN | TRIAL
    wanted = only or tuple(whole if full else PLAN)
    return {group: names for group, names in whole.items() if group in wanted}
