"""The work directory of a run, handed to the OS user that the engine runs as."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from agent.engine.relay import Relay
from agent.errors import EngineFailed
from agent.machine.os_user import OsUser

_SOCKET: Final = "server.sock"


class LentWorkdir:
    """The work directory of one run, as the engine's process reaches it.

    The directories above the work directory are closed to other OS users. So the engine's process
    inherits an open descriptor, `folder`, and reaches the directory through /proc/self/fd. No other
    process can reach it. `path` is the path that the engine uses, and `socket` is the server's
    socket for the engine. If the engine runs as this process's own user, `folder` is None, and
    `path` and `socket` are the original ones.
    """

    def __init__(self, workdir: Path, socket: Path, user: OsUser | None, *, relayed: bool) -> None:
        """Open `workdir` for `user`.

        With `relayed`, the engine connects to a relay, which connects to the server's `socket` as
        this process's own user. If `user` is None, nothing is opened.

        Raises:
            EngineFailed: the directory can't be opened, or the relay can't listen.
        """
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
        """Make the user the owner of `files`, in the given order.

        Do nothing if there is no user.

        Raises:
            EngineFailed: the owner can't be changed.
        """
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
        """End the relay and close the descriptor.

        Further calls do nothing.
        """
        self._undo.close()
