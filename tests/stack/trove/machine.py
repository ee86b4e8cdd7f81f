"""The first process of a machine that Nova would boot: mounts, Docker and the guest agent.

Usage: machine FOLDER, under `unshare --mount --pid --fork`. FOLDER holds options.json, which
compute.py writes. The machine sees the programs of this machine, and has its own /etc, /opt, /run,
/tmp and /var. FOLDER keeps the guest agent's log (log/), the database's socket (mysqld/) and the
output of each container (containers/).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from tests.stack.trove import mounts
from tests.stack.trove.containers import Container, Engine
from tests.stack.trove.docker_api import DockerServer
from tests.stack.trove.images import CHECKOUT, SYSTEM_PATH, find

HOME: Final = Path("/run/machine")
_SUDO: Final = Path("/run/bin/sudo")
_RESTART_SECONDS: Final = 0.5
_UID: Final = "1001"  # Trove's default for the database's user


def main() -> int:
    folder = Path(sys.argv[1])
    options = json.loads((folder / "options.json").read_text())
    kept = [Path(path) for path in options["kept"]]
    make_mounts(folder, kept, options["volume_gigabytes"])
    for path, text in options["files"].items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    start_docker(kept, Path(options["images"]))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    make_sudo()
    while True:
        # like systemd on a machine of Trove's. Containers outlive the guest agent.
        start_guest(options).wait()
        time.sleep(_RESTART_SECONDS)


def make_mounts(folder: Path, kept: list[Path], gigabytes: int) -> None:
    """Give this machine its own directories, an empty volume and a user database without `_UID`."""
    home = os.open(folder, os.O_PATH)
    mounts.memory(Path("/run"))
    mounts.bind(f"/proc/self/fd/{home}", HOME)
    for name in ("etc", "opt", "var"):
        mounts.overlay(Path("/", name), Path("/run/layers", name))
    mounts.hide(Path("/tmp"), kept, options="mode=1777")
    mounts.memory(Path("/var/lib/mysql"), device="/dev/vdb", options=f"mode=0755,size={gigabytes}G")
    mounts.memory(Path("/etc/mysql"))
    mounts.bind(HOME / "mysqld", Path("/var/lib/mysqld"))
    mounts.bind(HOME / "log", Path("/var/log/trove"))
    Path("/opt/trove-guestagent").mkdir(exist_ok=True)
    for name, column in (("passwd", 2), ("group", 2)):
        file = Path("/etc", name)
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join(row for row in rows if row.split(":")[column] != _UID))


def start_docker(kept: list[Path], images_file: Path) -> None:
    """Start the stand-in for Docker in a thread. It listens when this returns."""

    def make(name: str, configuration: dict[str, Any]) -> Container:
        image = find(images_file, configuration["Image"])
        if image is None:
            raise LookupError(configuration["Image"])
        return Container(name, image, configuration, HOME / "containers", kept)

    server = DockerServer(Path("/run/docker.sock"), Engine(make), images_file)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def make_sudo() -> None:
    """Give the guest agent a `sudo` that runs the command as the root that the agent is."""
    _SUDO.parent.mkdir()
    _SUDO.write_text('#!/bin/sh\nexec "$@"\n')
    _SUDO.chmod(0o755)


def start_guest(options: dict[str, Any]) -> "subprocess.Popen[bytes]":
    """Start the real guest agent."""
    program = Path(options["trove_programs"], "trove-guestagent")
    with (HOME / "log" / "guest.out").open("ab") as sink:
        return subprocess.Popen(
            [str(program), "--config-dir=/etc/trove/conf.d"],
            cwd="/",
            env={
                "PATH": f"{_SUDO.parent}:{SYSTEM_PATH}",
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "DOCKER_HOST": "unix:///run/docker.sock",
            },
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    raise SystemExit(main())
