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
from typing import Final

from tests.stack.trove import mounts

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# What a machine's mounts would show of the machine or of this machine's own database.
HIDDEN: Final = ("/etc/trove", "/opt/trove-guestagent", "/var/lib/mysql", "/var/lib/mysqld")
_LAYERS: Final = Path("/run/layers")
_DEVICES: Final = ("full", "null", "random", "urandom", "zero")
# A descriptor of the source, the path in the container, and `ro` or `rw`.
_Volumes = list[tuple[int, str, str]]


def make_own_root(root: Path, volumes: _Volumes) -> None:
    """Make the image's root file system that of the container. What it writes is lost with it."""
    mounts.memory(_LAYERS)
    mounts.overlay(root, _LAYERS / "root")
    mounts.processes(root / "proc")
    mounts.memory(root / "dev")
    mounts.memory(root / "dev" / "shm", options="mode=1777")
    for device in _DEVICES:
        mounts.bind(f"/dev/{device}", root / "dev" / device)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd{target}")
    mounts.bind("/etc/resolv.conf", root / "etc" / "resolv.conf")
    # the root comes first: a link such as /var/run leads to a directory of the image
    os.chroot(root)
    _bind(volumes)


def make_mounts(kept: list[Path], volumes: _Volumes) -> None:
    """Give the container a root like the machine's, which is lost with it, and its volumes.

    It may write to /etc, /home, /opt, /root, /run, /tmp and /var.
    """
    for name in ("run", "home", "root"):
        mounts.hide(Path("/", name), kept)
    mounts.hide(Path("/tmp"), kept, options="mode=1777")
    for name in ("etc", "opt", "var"):
        mounts.overlay(Path("/", name), _LAYERS / name)
    for target in HIDDEN:
        mounts.memory(Path(target))
    _bind(volumes)
    mounts.freeze(Path("/"))


def _open(binds: list[list[str]]) -> _Volumes:
    """Open the volumes, because the mounts of the container may hide their paths."""
    return [(os.open(_made(source), os.O_PATH), target, mode) for source, target, mode in binds]


def _bind(volumes: _Volumes) -> None:
    for descriptor, target, mode in sorted(volumes, key=lambda one: len(one[1])):
        mounts.bind(f"/proc/self/fd/{descriptor}", Path(target), read_only=mode == "ro")
        os.close(descriptor)


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
    files = [[source, target, "ro"] for target, source in specification["files"].items()]
    volumes = _open([*specification["binds"], *files])
    if specification["root"]:
        make_own_root(Path(specification["root"]), volumes)
    else:
        make_mounts([Path(path) for path in specification["kept"]], volumes)
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
