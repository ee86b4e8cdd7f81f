"""The scratch folder of a run, given to the OS user that the engine runs as."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from agent.engine.relay import Relay
from agent.errors import EngineFailed
from agent.machine.os_user import OsUser

_SOCKET: Final = "server.sock"


class Loan:
    """One run's folder as its engine sees it: `path`, `socket`, and the descriptor `folder`.

    The folders above it are closed to another user. So that one gets an open descriptor of it,
    and goes through /proc/self/fd. Nobody else can.
    """

    def __init__(self, workdir: Path, socket: Path, user: OsUser | None, *, relayed: bool) -> None:
        """Open `workdir` for `user`. With `relayed` the server's `socket` is reached as this
        process's own user. Without a user all is as it is. EngineFailed."""
        self.path, self.socket = workdir, socket
        self.folder: int | None = None
        self._user = user
        self._undo = ExitStack()
        if user is None:
            return
        with ExitStack() as undo:
            try:
                self.folder = os.open(workdir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise EngineFailed(f"can't open {workdir}: {error.strerror}") from error
            undo.callback(os.close, self.folder)
            self.path = Path(f"/proc/self/fd/{self.folder}")
            if relayed:
                undo.callback((workdir / _SOCKET).unlink, missing_ok=True)
                self.socket = self.path / _SOCKET
                undo.callback(Relay(str(self.socket), socket, user).close)
            self._undo = undo.pop_all()

    def give(self, *files: Path) -> None:
        """Make `files` and then their folder the user's own; EngineFailed."""
        if self._user is None:
            return
        try:
            for path in files:
                os.chown(path, self._user.uid, self._user.gid)
        except OSError as error:
            raise EngineFailed(
                f"can't give {files[0].parent} to the engine's OS user: {error.strerror}"
            ) from error

    def close(self) -> None:
        """End the relay and close the descriptor; may be called again."""
        self._undo.close()
