"""How an engine's socket behaves if the agent can accept no more connections."""

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.engine.relay import Relay
from agent.machine.os_user import OsUser
from tests.stack.process import poll

USER = OsUser(os.geteuid(), os.getegid(), ())


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Prevent this process from opening any more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.settimeout(1)
        try:
            engine.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def test_what_can_not_be_taken_is_refused(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = scratch / "relay"
    relay = Relay(str(path), scratch / "server", USER)
    with contextlib.ExitStack() as opened:
        opened.callback(relay.close)
        engines = [opened.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        with no_more_files():
            for engine in engines:
                engine.settimeout(20)
                # The second may be refused, if the failure of the first is known already.
                with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
                    engine.connect(str(path))
                    assert engine.recv(1) == b""
        poll("it refuses", lambda: refuses(path), 10)
    assert "no more connections of the engine can be accepted: " in caplog.text
    assert "Too many open files" in caplog.text


def test_it_ends_without_a_word(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = scratch / "ended"
    Relay(str(path), scratch / "server", USER).close()
    poll("it refuses", lambda: refuses(path), 10)
    assert caplog.text == ""
