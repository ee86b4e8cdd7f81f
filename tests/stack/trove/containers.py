"""The containers of one machine: processes with their own mounts, process ids and output."""

import contextlib
import json
import os
import secrets
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.stack.trove.images import CHECKOUT, Image

STDOUT: Final = 1
STDERR: Final = 2
# Docker asks after the container's `interval`. The tests have no time for that.
_UNTIL_HEALTHY_SECONDS: Final = 0.3
_HEALTHY_SECONDS: Final = 2.0
# The capabilities that Docker gives to root, by its documentation of `docker run`.
_RIGHTS: Final = "-all," + ",".join(
    f"+{name}"
    for name in (
        *("audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "mknod"),
        *("net_bind_service", "net_raw", "setfcap", "setgid", "setpcap", "setuid", "sys_chroot"),
    )
)


class Container:
    """One container. `configuration` is the body of Docker's request to create it."""

    def __init__(
        self,
        name: str,
        image: Image,
        configuration: dict[str, Any],
        folder: Path,
        kept: list[Path],
    ) -> None:
        self.id = secrets.token_hex(32)
        self.name = name
        self.configuration = configuration
        self.status = "created"
        self.health: str | None = None
        self.exit_code = 0
        self.created = time.time()
        self.frames: list[tuple[int, bytes]] = []
        self.ended = threading.Event()
        self._image = image
        self._folder = folder
        self._kept = kept
        self._outer: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    # --- what Docker reports -------------------------------------------------------------------

    def inspect(self) -> dict[str, Any]:
        """Return the part of Docker's description that the guest agent reads."""
        state: dict[str, Any] = {
            "Status": self.status,
            "Running": self.status == "running",
            "ExitCode": self.exit_code,
            "Pid": self._inner() or 0,
        }
        if self.health:
            state["Health"] = {"Status": self.health}
        return {
            "Id": self.id,
            "Name": f"/{self.name}",
            "State": state,
            "Image": self.configuration["Image"],
            "Config": {
                "Tty": False,
                "Image": self.configuration["Image"],
                "Cmd": self.configuration.get("Cmd"),
                "Env": [f"{key}={value}" for key, value in self.environment().items()],
                "WorkingDir": self._image.directory,
            },
            "HostConfig": {
                "Binds": self._host().get("Binds"),
                "NetworkMode": self._host().get("NetworkMode"),
                "LogConfig": {"Type": "json-file", "Config": {}},
            },
            "NetworkSettings": {"Ports": {}},
        }

    def logs(self, streams: set[int], tail: int | None = None) -> list[tuple[int, bytes]]:
        """Return the last `tail` lines of these streams, in the order in which they came."""
        lines = [
            (stream, line)
            for stream, data in self.frames
            if stream in streams
            for line in data.splitlines(keepends=True)
        ]
        return lines if tail is None else lines[-tail:]

    def environment(self) -> dict[str, str]:
        given = dict(one.split("=", 1) for one in self.configuration.get("Env") or [])
        if self._address():
            given["STAND_IN_ADDRESS"] = self._address()
        own = {"PATH": self._image.path, "HOSTNAME": self.id[:12], "HOME": "/root"}
        return own | self._image.environment | given

    # --- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the command. Do nothing if it runs."""
        with self._lock:
            if self.status == "running":
                return
            self.frames.clear()
            self.ended.clear()
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"{self.name}-{self.id[:12]}.json"
            file.write_text(json.dumps(self._specification()))
            space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            if self._host().get("NetworkMode") == "bridge":
                # its own ports, as behind Docker's bridge
                space.append("--net")
            argv = [*space, sys.executable, "-m", "tests.stack.trove.container_init", str(file)]
            self._outer = subprocess.Popen(
                argv,
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self.status = "running"
            self.health = "starting" if self.configuration.get("Healthcheck") else None
        threading.Thread(target=self._follow, args=(self._outer,), daemon=True).start()

    def stop(self, seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after `seconds`."""
        self.send(signal.SIGTERM)
        if self.status == "running" and not self.ended.wait(seconds):
            self.kill()

    def kill(self) -> None:
        """End all processes with SIGKILL. The kernel ends those that the first one started."""
        self.send(signal.SIGKILL)
        if self._outer:
            self.ended.wait(10)

    def send(self, signum: int) -> None:
        """Send a signal to the first process, if it runs."""
        inner = self._inner()
        if inner:
            with contextlib.suppress(ProcessLookupError):
                os.kill(inner, signum)

    def execute(self, command: list[str]) -> tuple[int, bytes, bytes]:
        """Run one more command inside. Return its exit status and its two outputs."""
        user, group = self._user()
        argv = ["nsenter", f"--target={self._inner() or 0}", "--mount", "--pid", "--net"]
        argv += [f"--setuid={user}", f"--setgid={group}", "--", "env", "-i"]
        argv += [f"{key}={value}" for key, value in self.environment().items()]
        done = subprocess.run([*argv, *command], capture_output=True, check=False)
        return done.returncode, done.stdout, done.stderr

    # --- inside --------------------------------------------------------------------------------

    def _host(self) -> dict[str, Any]:
        return dict(self.configuration.get("HostConfig") or {})

    def _address(self) -> str:
        """Return the address that the container has in the users' network, or nothing."""
        networks = (self.configuration.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
        found = [(one.get("IPAMConfig") or {}).get("IPv4Address") for one in networks.values()]
        return str(next(filter(None, found), ""))

    def _user(self) -> tuple[int, int]:
        user, _, group = (self.configuration.get("User") or "0:0").partition(":")
        return int(user), int(group or user)

    def _inner(self) -> int | None:
        """Return the pid of the first process, as the machine sees it."""
        if self._outer is None or self._outer.poll() is not None:
            return None
        pid = self._outer.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def _specification(self) -> dict[str, Any]:
        command = [*self._image.entrypoint, *(self.configuration.get("Cmd") or [])]
        if self._image.root:
            command = ["setpriv", f"--bounding-set={_RIGHTS}", "--", *command]
        binds = [one.split(":") for one in self._host().get("Binds") or []]
        return {
            "command": command,
            "directory": self._image.directory,
            "root": self._image.root,
            "environment": self.environment(),
            "user": self._user(),
            "files": self._image.files,
            "binds": [[source, target, *(mode or ["rw"])] for source, target, *mode in binds],
            "kept": [str(path) for path in self._kept],
        }

    def _follow(self, outer: "subprocess.Popen[bytes]") -> None:
        """Collect the output, and note the end."""
        if self.health:
            threading.Thread(target=self._check_health, daemon=True).start()
        self._collect(outer)
        self.exit_code = outer.wait()
        self.status = "exited"
        self.health = self.health and "unhealthy"
        self.ended.set()

    def _collect(self, outer: "subprocess.Popen[bytes]") -> None:
        """Read both outputs to their ends, in the order in which they come."""
        assert outer.stdout
        assert outer.stderr
        log = self._folder / f"{self.name}-{self.id[:12]}.log"
        with (
            selectors.DefaultSelector() as ready,
            outer.stdout,
            outer.stderr,
            log.open("ab", buffering=0) as file,
        ):
            ready.register(outer.stdout, selectors.EVENT_READ, STDOUT)
            ready.register(outer.stderr, selectors.EVENT_READ, STDERR)
            while ready.get_map():
                for key, _ in sorted(ready.select(), key=lambda one: int(one[0].data)):
                    if data := os.read(key.fd, 65536):
                        self.frames.append((key.data, data))
                        file.write(data)
                    else:
                        ready.unregister(key.fileobj)

    def _check_health(self) -> None:
        command = self.configuration["Healthcheck"]["Test"][1:]
        while not self.ended.wait(
            _HEALTHY_SECONDS if self.health == "healthy" else _UNTIL_HEALTHY_SECONDS
        ):
            if self._inner() and self.execute(command)[0] == 0:
                self.health = "healthy"
            elif self.health == "healthy":
                self.health = "unhealthy"


def framed(frames: list[tuple[int, bytes]]) -> bytes:
    """Return output as Docker multiplexes it: stream, three zeros, length, data."""
    return b"".join(struct.pack(">BxxxL", stream, len(data)) + data for stream, data in frames)


class Engine:
    """All containers of a machine."""

    def __init__(self, make: Callable[[str, dict[str, Any]], Container]) -> None:
        self._make = make
        self._all: dict[str, Container] = {}
        self.executions: dict[str, tuple[Container, list[str], int | None]] = {}

    def create(self, name: str, configuration: dict[str, Any]) -> Container:
        container = self._make(name or secrets.token_hex(4), configuration)
        self._all[container.id] = container
        return container

    def find(self, reference: str) -> Container | None:
        """Return the container of that name or id (or its start)."""
        for one in self._all.values():
            if one.name == reference or one.id.startswith(reference):
                return one
        return None

    def remove(self, container: Container) -> None:
        del self._all[container.id]
