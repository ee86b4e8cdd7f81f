"""A real socket that plays the systemd journal and records the messages with their fields."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.stack.process import poll


def fields_of(datagram: bytes) -> Iterator[tuple[str, str]]:
    """Yield the fields of a message, as https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ defines them.

    Raises:
        ValueError: the message doesn't follow the protocol, or isn't UTF-8.
    """
    while datagram:
        line, found, datagram = datagram.partition(b"\n")
        if not found:
            raise ValueError("a field without an end")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[:8], "little")
            value, end, datagram = datagram[8 : 8 + size], datagram[8 + size :][:1], datagram[9:]
            datagram = datagram[size:]
            if len(value) != size or end != b"\n":
                raise ValueError("a field with another length")
        yield name.decode("ascii"), value.decode()


class Journal:
    """A listener on the journal's socket `path`, used in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()

    def wait_for(self, text: str, seconds: float = 20) -> dict[str, str]:
        """Return the first message that contains `text`, and wait for it."""

        def found() -> list[dict[str, str]]:
            return [one for one in self.messages if text in one["MESSAGE"]]

        poll(f"a message with {text!r}", lambda: bool(found()), seconds)
        return found()[0]

    def _listen(self) -> None:
        while datagram := self._socket.recv(1 << 20):
            listed = list(fields_of(datagram))
            assert len(dict(listed)) == len(listed), f"a field twice: {listed}"
            self.messages.append(dict(listed))
