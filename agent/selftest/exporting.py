"""The check of [metrics]: the port is free or the agent's own, and the file can be written."""

import math
import os
import socket
import time
from pathlib import Path
from typing import Final

from agent.config.settings import Config
from agent.machine.lock import activity_of_holder
from agent.selftest.check import CheckOutcome, Verdict, failed, passed, warned

_SECONDS: Final = 5.0
_MOST_BYTES: Final = 1 << 20
# The age of a file that a daemon still writes. It does so every 30 s.
_FRESH_SECONDS: Final = 120.0
_UNITS: Final = "`systemctl edit` for both units, backup-agent and backup-agent-self-test"


def metrics(config: Config) -> CheckOutcome:
    """Check the port and the file of [metrics]. The daemon works without them if they fail."""
    section = config.metrics
    runs = activity_of_holder(config.agent.lock_file) is not None
    found = []
    if section.address is not None:
        found.append(_port(*section.address, runs=runs))
    if section.textfile is not None:
        found.append(_file(section.textfile))
    if not found:
        return passed("[metrics] is not set: Prometheus learns nothing of this agent")
    for verdict in (Verdict.FAIL, Verdict.WARN):
        for outcome in found:
            if outcome.verdict is verdict:
                return outcome
    return passed("; ".join(outcome.found for outcome in found))


def _port(host: str, port: int, *, runs: bool) -> CheckOutcome:
    text = _answer(host, port)
    if text is None:
        return _bind(host, port, runs=runs)
    if runs and b"\nbackup_agent_info{" in text:
        return passed(f"the running agent answers on port {port}")
    return failed(
        f"another program listens on port {port} of {host}",
        f"`ss -ltnp sport = :{port}` shows it. Name a free port as [metrics] listen",
    )


def _answer(host: str, port: int) -> bytes | None:
    """Return what the program on that port says about metrics, or None if there is no program."""
    deadline = time.monotonic() + _SECONDS
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return _received(connection, deadline)
    except ConnectionRefusedError:
        return None
    except OSError:
        return b""


def _received(connection: socket.socket, deadline: float) -> bytes:
    """Return the bytes that come before the end of the connection, the limit or the deadline.

    Raises:
        OSError: the connection failed, or nothing came for the rest of the time.
    """
    received = bytearray()
    # a limit for each read alone would let a program that drips bytes hold the self-test
    while len(received) < _MOST_BYTES and (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        more = connection.recv(_MOST_BYTES - len(received))
        if not more:
            break
        received += more
    return bytes(received)


def _bind(host: str, port: int, *, runs: bool) -> CheckOutcome:
    if runs:
        return warned(
            f"an agent runs, but has no metrics on port {port}",
            "systemctl restart backup-agent: it reads agent.toml at its start. If a "
            "backup-create --local runs, that is normal",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            return failed(
                f"this process can't listen on port {port} of {host}: {error.strerror}",
                f"write SocketBindAllow=tcp:{port} below [Service], with {_UNITS}. Ports below "
                "1024 are for root",
            )
    return passed(f"port {port} is free")


def _file(path: Path) -> CheckOutcome:
    if _age(path) < _FRESH_SECONDS:
        return passed(f"{path} is up to date")
    if path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK):
        return passed(f"{path.parent} can be written to")
    return failed(
        f"{path.parent} does not exist, or can't be written to",
        "make it, and let the agent's OS user write there. If it runs as a unit, write "
        f"ReadWritePaths={path.parent} below [Service], with {_UNITS}",
    )


def _age(path: Path) -> float:
    """Return the age of a file in seconds. A file that can't be found is infinitely old."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
