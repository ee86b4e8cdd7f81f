"""One private server process that is started, waited for, and ended by its pid.

Servers are started from the main thread. The kernel's parent-death signal then ends them even
if the test run itself is killed.
"""

import contextlib
import ctypes
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_RANDOM = random.SystemRandom()  # hypothesis seeds the shared one


class StackError(Exception):
    """A private server could not be started. The message holds the end of its log."""


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 on which nothing listens at the moment.

    The port is below the range that Linux uses for outgoing connections (32768 and up). A
    connection in that range could take the port of a server that is down, and the server could
    not start again.
    """
    for _ in range(100):
        port = _RANDOM.randrange(15_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise StackError("no free port was found")


def poll(what: str, ready: Callable[[], bool], seconds: float) -> None:
    """Wait until `ready()` is true. Raise StackError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise StackError(f"{what}: not reached after {seconds} s")
        time.sleep(0.02)


def port_answers(port: int) -> bool:
    """Return True if a server accepts connections on that port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ServerProcess:
    """A child process that writes its log to a file."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None):
        self.name = Path(argv[0]).name
        self.log = log
        with log.open("ab") as sink:
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None as long as the end of the process has not been seen."""
        return self._child.returncode

    def running(self) -> bool:
        return self._child.poll() is None

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()` is true.

        Raise StackError with the end of the log if the process ends before that, or with the
        description if `seconds` pass.
        """

        def up() -> bool:
            if not self.running():
                raise StackError(f"{self.name} ended with {self._child.returncode}:\n{self.tail()}")
            return ready()

        poll(f"{self.name} ready", up, seconds)

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def send(self, signum: int) -> None:
        if self.running():
            self._child.send_signal(signum)

    def stop(self, signum: int = signal.SIGTERM, seconds: float = 20) -> None:
        """Send `signum`, and kill the process after `seconds`. Do nothing if it has ended."""
        self.send(signum)
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
