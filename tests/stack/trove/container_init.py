"""The first process of a container: it makes the mounts, runs the command and forwards signals.

Usage: container_init SPECIFICATION, under `unshare --mount --pid --fork`. The specification is a
JSON file that containers.py writes. The exit status is that of the command, as Docker reports it.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.stack.trove import mounts

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# What a machine's mounts would show of the machine or of this machine's own database.
HIDDEN: Final = ("/etc/trove", "/opt/trove-guestagent", "/var/lib/mysql", "/var/lib/mysqld")
_LAYERS: Final = Path("/run/layers")


def make_mounts(specification: dict[str, Any]) -> None:
    """Give the container a root of its own, which is lost with it, and its volumes.

    It may write to /etc, /home, /opt, /root, /run, /tmp and /var.
    """
    held = [(os.open(_made(source), os.O_PATH), *rest) for source, *rest in specification["binds"]]
    held += [
        (os.open(source, os.O_PATH), target, "ro")
        for target, source in specification["files"].items()
    ]
    kept = [Path(path) for path in specification["kept"]]
    for name in ("run", "home", "root"):
        mounts.hide(Path("/", name), kept)
    mounts.hide(Path("/tmp"), kept, options="mode=1777")
    for name in ("etc", "opt", "var"):
        mounts.overlay(Path("/", name), _LAYERS / name)
    for target in HIDDEN:
        mounts.memory(Path(target))
    for descriptor, target, mode in sorted(held, key=lambda one: len(one[1])):
        mounts.bind(f"/proc/self/fd/{descriptor}", Path(target), read_only=mode == "ro")
        os.close(descriptor)
    mounts.freeze(Path("/"))


def _made(source: str) -> str:
    """Create a volume's directory if it is missing, as Docker does."""
    if not Path(source).exists():
        Path(source).mkdir(parents=True)
    return source


def main() -> int:
    specification = json.loads(Path(sys.argv[1]).read_text())
    pending: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(signum: int, _: FrameType | None) -> None:
        if child is None:
            pending.append(signum)
        else:
            child.send_signal(signum)

    for signum in FORWARDED:
        signal.signal(signum, forward)
    make_mounts(specification)
    user, group = specification["user"]
    child = subprocess.Popen(
        specification["command"],
        cwd=specification["directory"],
        env=specification["environment"],
        stdin=subprocess.DEVNULL,
        user=user,
        group=group,
        extra_groups=[],
        start_new_session=True,
    )
    for early in pending:
        child.send_signal(early)
    status = child.wait()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    raise SystemExit(main())
