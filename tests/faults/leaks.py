"""A search for secrets, in any spelling, in everything that others can see of an agent."""

import base64
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil

from tests.stack.agent import Agent

_LOOK_SECONDS: Final = 0.2
_TOKEN: Final = re.compile(rb"AUTH_tk[0-9a-f]{4}")  # as Swift's tempauth makes them


def forms(secret: bytes) -> set[bytes]:
    """Return the spellings of a secret: raw, quoted, in hex, in base64 at any offset."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), quote(secret).encode()}
    found.add(repr(secret)[2:-1].encode())
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret)
        # drop the characters that also depend on the bytes before and after the secret
        whole = encoded[(0, 2, 3)[offset] :].rstrip(b"=")
        whole = whole if (len(secret) + offset) % 3 == 0 else whole[:-1]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


@dataclass
class Sight:
    """Everything that others could see, by its place."""

    texts: dict[str, set[bytes]] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    option_files: set[bytes] = field(default_factory=set)
    _next_look: float = 0.0

    def add(self, where: str, text: bytes) -> None:
        self.texts.setdefault(where, set()).add(text)

    def all(self) -> Iterator[tuple[str, bytes]]:
        for where, texts in self.texts.items():
            yield from ((where, text) for text in texts)

    def leaks(self, planted: Mapping[str, bytes]) -> list[str]:
        """Return the places in which a secret or one of Swift's tokens was seen."""
        spellings = {name: forms(secret) for name, secret in planted.items()}
        found = {
            f"{name} in {where}"
            for where, text in self.all()
            for name, spelt in spellings.items()
            if any(form in text for form in spelt)
        }
        found |= {f"a token in {where}" for where, text in self.all() if _TOKEN.search(text)}
        return sorted(found)

    def open_to_others(self) -> list[str]:
        """Return the files of the state directory that users other than the owner may access."""
        return [f"{name} {mode:o}" for name, mode in self.modes.items() if mode & 0o077]

    def watch(self, agent: Agent, daemon: int) -> None:
        """Look once at the daemon's process, its children and its files."""
        for process in _family(daemon):
            for name in ("cmdline", "environ"):
                path = Path(f"/proc/{process.pid}/{name}")
                try:
                    self.add(f"{name} of {process.pid}", path.read_bytes())
                except OSError:
                    continue  # the process has ended
        # every version of the journal is kept and searched at the end
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            self.look_at_files(agent)

    def look_at_files(self, agent: Agent) -> None:
        """Read all of the state directory. The engine's file of secrets is recorded separately."""
        state = agent.folder / "state"
        for path in (state, *sorted(state.rglob("*"))):
            try:
                mode, text = path.stat().st_mode, path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            self.modes[path.name] = self.modes.get(path.name, 0) | mode & 0o777
            if path.name == "engine.cnf":
                self.option_files.add(text)
            else:
                self.add(str(path), text)


def _family(daemon: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(daemon)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
