"""A relay to the server's socket, for an engine that runs as another OS user.

The server can authenticate an account without a password by the OS user that connects
(unix_socket, auth_socket). If root runs an engine as another user, the engine can't log in to the
account `root` in this way. It connects to this relay instead. This process passes every byte on,
over a connection that it opens itself.
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
from agent.threads import Thread

log = logging.getLogger(__name__)

# The most sessions at a time. An engine opens only a few.
_MOST_CONNECTIONS: Final = 32
_BLOCK: Final = 1 << 16


class Relay:
    """A socket at `path` that passes connections of the user's processes on to the server.

    It listens until it is closed.
    """

    def __init__(self, path: str, server: Path, user: OsUser) -> None:
        """Listen at `path`, which may lead through a descriptor (/proc/self/fd).

        Raises:
            EngineFailed: the relay can't listen there.
        """
        self._server = server
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(path)
            # Other users can't reach the socket, because its directory is closed to them.
            os.chown(path, user.uid, user.gid)
            self._listener.listen()
        except OSError as error:
            self._listener.close()
            raise EngineFailed(f"can't listen for the engine: {error.strerror or error}") from error
        Thread(self._accept, name="engine's socket", daemon=True).start()

    def close(self) -> None:
        """Stop listening and end all connections.

        Further calls do nothing.
        """
        with self._lock:
            self._closed = True
            ended = {self._listener, *self._open}
        for one in ended:
            with contextlib.suppress(OSError):  # the connection has ended already
                one.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        """Accept connections until the listener ends.

        If no more connections can be accepted, close the listener and log why. An engine would wait
        without end for a connection that is never accepted. A closed listener refuses it at once.
        """
        with self._listener:
            try:
                while True:
                    self._accept_one()
            except (OSError, RuntimeError) as error:  # RuntimeError if no thread can be started
                if not self._closed:
                    log.warning("no more connections of the engine can be accepted: %s", error)

    def _accept_one(self) -> None:
        """Accept one connection and connect it to the server, unless the engine has given it up.

        Raises:
            OSError: no connection can be accepted.
        """
        with contextlib.suppress(ConnectionAbortedError), ExitStack() as undo:
            engine, _ = self._listener.accept()
            undo.callback(engine.close)
            if self._connect(engine):
                undo.pop_all()

    def _connect(self, engine: socket.socket) -> bool:
        """Start a thread that connects `engine` to the server.

        Return False if the relay is closed or has too many connections.
        """
        server = socket.socket(socket.AF_UNIX)
        with self._lock:
            if self._closed or len(self._open) >= 2 * _MOST_CONNECTIONS:
                server.close()
                return False
            self._open |= {engine, server}
        Thread(self._pass_on, engine, server, name="engine's session", daemon=True).start()
        return True

    def _pass_on(self, engine: socket.socket, server: socket.socket) -> None:
        """Pass bytes on in both directions until both have ended."""
        # An error ends the engine's connection, and the engine reports it.
        with contextlib.suppress(OSError), engine, server:
            server.connect(str(self._server))
            back = Thread(_copy, server, engine, name="engine's session", daemon=True)
            back.start()
            _copy(engine, server)
            back.join()
        with self._lock:
            self._open -= {engine, server}


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes from `source` to `target` until `source` ends.

    Then shut down `target` for writing.
    """
    with contextlib.suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
    for one, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
        with contextlib.suppress(OSError):
            one.shutdown(way)
