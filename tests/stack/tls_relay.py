"""A listener with TLS that passes connections on to a plain port, as stunnel does.

Its certificate can be changed, so one real server behind it can show any certificate.
"""

import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BLOCK = 1 << 16


class TlsRelay:
    """A relay of TLS connections to `target`, a plain port.

    `certificate` is a PEM file with key and certificate. It is read for each connection. With
    `newest`, the relay speaks no newer version of TLS. With `client_ca` it demands a certificate of
    its clients. `greetings` counts the connections.
    """

    def __init__(
        self,
        target: int,
        certificate: Path,
        newest: ssl.TLSVersion | None = None,
        client_ca: Path | None = None,
    ) -> None:
        self.certificate = certificate
        self.greetings = 0
        self._target = target
        self._newest = newest
        self._client_ca = client_ca
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections."""
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
                self.greetings += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        if self._newest:
            # the oldest versions need the lowest level of security
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = self._newest
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._client_ca)
        return context

    def _serve(self, client: socket.socket) -> None:
        # a client that refuses the certificate is what tests want
        with client, suppress(OSError):
            client.settimeout(10)
            with (
                self._context().wrap_socket(client, server_side=True) as shown,
                socket.create_connection(("127.0.0.1", self._target)) as plain,
            ):
                self._open += [shown, plain]
                shown.settimeout(None)
                _pump(shown, plain)


def _pump(shown: ssl.SSLSocket, plain: socket.socket) -> None:
    """Copy in both directions until one side ends. One thread, because TLS sockets need it."""
    while True:
        ready, _, _ = select.select([shown, plain], [], [])
        for source, target in ((shown, plain), (plain, shown)):
            if source in ready:
                block = source.recv(_BLOCK)
                while source is shown and shown.pending():
                    block += shown.recv(_BLOCK)
                if not block:
                    return
                target.sendall(block)


@contextmanager
def relayed(
    target: int,
    certificate: Path,
    newest: ssl.TLSVersion | None = None,
    client_ca: Path | None = None,
) -> Iterator[TlsRelay]:
    relay = TlsRelay(target, certificate, newest, client_ca)
    try:
        yield relay
    finally:
        relay.close()
