"""A TCP relay in front of the broker. A test can cut its connections."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BLOCK = 1 << 16


class Proxy:
    """A relay of connections to `port`. `cut()` ends the open ones, and new ones are accepted.

    The first `resets` connections are reset when the client sends for the second time. In TLS 1.3
    the client's handshake is done then, and it hasn't read the server's answer to it.
    """

    def __init__(self, port: int, resets: int = 0) -> None:
        self._resets = resets
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections, as a network that fails would."""
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        # only a shutdown wakes the thread that waits in accept()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                self.connections += 1
                if self._resets >= self.connections:
                    _reset_second_flight(client, server)
                    continue
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(_BLOCK):
            target.sendall(block)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
    source.close()


def _reset_second_flight(client: socket.socket, server: socket.socket) -> None:
    with client, server:
        server.sendall(client.recv(_BLOCK))
        while client not in select.select([client, server], [], [])[0]:
            client.sendall(server.recv(_BLOCK))
        # closing without lingering sends RST
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def proxied(port: int, resets: int = 0) -> Iterator[Proxy]:
    proxy = Proxy(port, resets)
    try:
        yield proxy
    finally:
        proxy.close()
