"""A real socket that plays the service manager in sd_notify(3) and records the messages."""

import socket
import threading
from pathlib import Path
from typing import Self

from tests.stack.process import poll


class Listener:
    """A listener on a UNIX datagram socket (a path or an abstract name), used in a `with` block."""

    def __init__(self, address: Path | str) -> None:
        self.address = Path(address)
        self.messages: list[str] = []
        name = str(address)
        name = "\0" + name[1:] if name.startswith("@") else name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(name)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def count(self, message: str) -> int:
        return self.messages.count(message)

    def wait_for(self, message: str, count: int = 1, seconds: float = 20) -> None:
        poll(f"{count} times {message}", lambda: self.count(message) >= count, seconds)

    def _listen(self) -> None:
        while message := self._socket.recv(65536):
            self.messages.append(message.decode())
