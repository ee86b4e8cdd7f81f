"""The plan of the self-test: the names of all groups and their checks, in order.

Other programs rely on these names. Each group has its own module with its checks. run.py compares
them with this plan: a check that is missing, or that is not in the plan, counts as a failure.
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
        "metrics",
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
# The group that `--full` adds.
TRIAL: Final[dict[str, tuple[str, ...]]] = {
    "trial": ("backup", "restore", "server", "tables", "removal"),
}


def chosen(only: tuple[str, ...] = (), *, full: bool = False) -> dict[str, tuple[str, ...]]:
    """Return the requested part of the plan.

    `only` names the requested groups. If it is empty, return the groups of PLAN, and with `full`
    also the group of TRIAL.
    """
    whole = PLAN | TRIAL
    wanted = only or tuple(whole if full else PLAN)
    return {group: names for group, names in whole.items() if group in wanted}
