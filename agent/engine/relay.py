"""The server's socket, reached in the name of this process's OS user.

An account without a password is known by the OS user that connects (unix_socket, auth_socket).
An engine that root runs as another user can't log in to the account `root` so. It connects
here, and this process passes every byte on over a connection of its own.
"""

import contextlib
import logging
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from agent.errors import EngineFailed
from agent.machine.os_user import OsUser

log = logging.getLogger(__name__)

# An engine opens a handful.
_CONNECTIONS: Final = 32
_BLOCK: Final = 1 << 16


class Relay:
    """Listens at `path` for the processes of `user`, until it is closed."""

    def __init__(self, path: str, server: Path, user: OsUser) -> None:
        """Listen at `path`, which may lead through a descriptor; EngineFailed."""
        self._server = server
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(path)
            # the folder lets nobody else in
            os.chown(path, user.uid, user.gid)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise EngineFailed(f"can't listen for the engine: {error.strerror or error}") from error
        threading.Thread(target=self._accept, name="engine's socket", daemon=True).start()

    def close(self) -> None:
        """End all connections; may be called again."""
        with self._lock:
            self._closed = True
            ended = {self._listener, *self._open}
        for one in ended:
            with contextlib.suppress(OSError):  # it has ended already
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        """Take connections. If no more can be taken, close the listener and log why.

        An engine whose connection nobody takes would wait in silence. A closed listener refuses it.
        """
        with self._listener:
            try:
                while True:
                    self._take()
            except (OSError, RuntimeError) as error:  # the latter: no more threads
                if not self._closed:
                    log.warning("no more connections of the engine can be taken: %s", error)

    def _take(self) -> None:
        """Take one connection, unless the engine has given it up; OSError if none can be taken."""
        with contextlib.suppress(ConnectionAbortedError), ExitStack() as undo:
            engine, _ = self._listener.accept()
            undo.callback(engine.close)
            if self._connect(engine):
                undo.pop_all()

    def _connect(self, engine: socket.socket) -> bool:
        """Connect to the server for `engine`; whether that was done."""
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            if self._closed or len(self._open) >= 2 * _CONNECTIONS:
                server.close()
                return False
            self._open |= {engine, server}
        threading.Thread(
            target=self._pass_on, args=(engine, server), name="engine's session", daemon=True
        ).start()
        return True

    def _pass_on(self, engine: socket.socket, server: socket.socket) -> None:
        """Pass bytes on in both directions until both have ended."""
        # an error is the end of the engine's connection, and the engine tells of it
        with contextlib.suppress(OSError), engine, server:
            server.connect(str(self._server))
            back = threading.Thread(target=_copy, args=(server, engine), daemon=True)
            back.start()
            _copy(engine, server)
            back.join()
        with self._lock:
            self._open -= {engine, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy until `source` ends, and tell `target` so."""
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
    for one, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            one.shutdown(way)
