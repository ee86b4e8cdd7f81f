"""Runs of an engine's programs, and the proof that each must give before it counts as successful.

Use a run in a `with` block. The end of the block kills a program that still runs. Any thread may
call `interrupt()`. After that the run's other methods may fail, and the caller knows the reason.
"""

import contextlib
import os
import re
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

from agent.engine.log_tail import without_head
from agent.engine.process import Child
from agent.errors import (
    AgentError,
    EngineFailed,
    EngineKilled,
    EngineUnproved,
    ExtractFailed,
    PrepareFailed,
)

FINISH_SECONDS = 60.0
PREPARE_SECONDS = 24 * 3600.0
# Signals by which a program ends through a fault of its own. All others come from outside.
_CRASHES = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
)
_SHOWN_LINES = 4
_NO_OUTPUT = "it wrote nothing to standard error"


class Cause(NamedTuple):
    """A pattern of log lines that explain a failure, and the error that they stand for.

    `hint` replaces the error's own hint, unless it is None.
    """

    pattern: re.Pattern[str]
    error: type[AgentError]
    hint: str | None = None


class Run:
    """The base class of all runs."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def interrupt(self) -> None:
        """Send SIGINT to the program at once, and SIGKILL after the grace time of the child.

        The grace time is 3 seconds by default. Return without waiting.
        """
        self._child.interrupt()

    def close(self) -> None:
        """Kill the program if it still runs, and release its resources."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _describe_end(self, status: int) -> str:
        """Return one line with the program's exit status or signal, and its lines about errors."""
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        if self._child.interrupted:
            ended = f"{ended} after it was interrupted"
        return f"{self._child.name} ended with {ended}: {self._log_excerpt()}"

    def _log_excerpt(self) -> str:
        """Return the last kept lines of the log, or else its last lines, in one line."""
        lines = self._child.log.kept() or self._child.log.lines()
        return "; ".join(map(without_head, lines[-_SHOWN_LINES:])) or _NO_OUTPUT

    def _check_signal(self, status: int) -> None:
        """Check that no foreign signal has ended the program.

        A foreign signal is one that neither this agent nor the program itself has sent.

        Raises:
            EngineKilled: such a signal ended the program.
        """
        if status >= 0 or self._child.interrupted or -status in _CRASHES:
            return
        name = signal.Signals(-status).name if -status < signal.SIGRTMIN else f"signal {-status}"
        raise EngineKilled(
            f"{self._child.name} was ended by {name}, which the agent did not send; its last "
            f"log lines: {self._log_excerpt()}"
        )

    def _failure(
        self, status: int, causes: tuple[Cause, ...], otherwise: type[AgentError]
    ) -> AgentError:
        """Return the error of the first cause that the log shows, or else an `otherwise` error."""
        description = self._describe_end(status)
        log = "\n".join(self._child.log.messages())
        for cause in causes:
            if cause.pattern.search(log):
                return cause.error(description, hint=cause.hint)
        return otherwise(description)

    def _completed(self, proof: re.Pattern[str]) -> bool:
        """Return True if `proof` matches the whole last line of the log."""
        lines = self._child.log.lines()
        return bool(lines) and proof.fullmatch(lines[-1]) is not None


class BackupRun(Run):
    """A running backup.

    Call `read_into()` until the end of the stream, and then `finish()`.
    """

    def __init__(
        self,
        child: Child,
        secret_file: Path,
        proof: re.Pattern[str],
        causes: tuple[Cause, ...],
        silent_seconds: float,
        *,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Take over `child`, the program that writes the stream.

        `secret_file` is the option file with the password, which is deleted at the end. `proof` is
        the pattern of the closing line. `silent_seconds` is how long the program may write nothing.
        `close()` calls `release` after the program has ended.
        """
        super().__init__(child)
        self._secret_file = secret_file
        self._release = release
        self._proof = proof
        self._causes = causes
        self._silent_seconds = silent_seconds

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes of the stream into `buffer`, and return their number.

        Return 0 at the end of the stream, after a success or a failure. The time between two calls
        doesn't count as silence.

        Raises:
            EngineSilent: the program has written nothing for too long, neither to the stream nor
                to standard error. It is interrupted.
        """
        self._child.wait_ready(self._child.stdout, select.POLLIN, self._silent_seconds)
        return self._child.stdout.readinto(buffer)

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Wait for the end and require exit status 0 and the closing line `completed OK!`.

        Raises:
            EngineKilled: a foreign signal ended the program.
            DatabaseDenied, DatabaseUnreachable, LockTimeout, RedoOverwritten, EngineUnsupported,
                EngineFailed: the program failed, for the cause that its log shows.
            EngineUnproved: the status is 0, but the closing line is missing, or another line
                reports lost data.
            EngineSilent: the program doesn't end within `seconds`.
        """
        status = self._child.wait(seconds)
        self._secret_file.unlink(missing_ok=True)
        self._check_signal(status)
        if status:
            raise self._failure(status, self._causes, EngineFailed)
        if not self._completed(self._proof):
            raise EngineUnproved(
                f"{self._child.name} ended with status 0 but without its closing 'completed OK!'"
            )
        if self._child.log.lost is not None:
            raise EngineUnproved(
                f"{self._child.name} says 'completed OK!' and also: {self._child.log.lost}",
                hint="the engine lost data while it copied: check the disk, create and drop no "
                "schema while a backup runs, and back up again",
            )

    def words_about(self, path: str) -> str:
        """Return the program's log lines about problems with a file, or "" if there are none.

        `path` is the file's name in the stream.
        """
        said = [line for line in self._child.log.kept() if f"/{path}" in line]
        return "; ".join(map(without_head, said[:_SHOWN_LINES]))

    def close(self) -> None:
        """Kill the program if it still runs, delete the option file and release all resources."""
        super().close()
        self._secret_file.unlink(missing_ok=True)
        self._release()


class ExtractRun(Run):
    """A running extraction.

    Call `write()` with the bytes of the stream, and then `finish()`.
    """

    def __init__(self, child: Child, silent_seconds: float) -> None:
        super().__init__(child)
        self._silent_seconds = silent_seconds
        self._written = 0
        # Non-blocking writes let this process wait with a deadline. The program's own end of the
        # pipe still blocks.
        os.set_blocking(child.stdin.fileno(), False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of the next bytes to the program, and wait while it is busy.

        Raises:
            ExtractFailed: the program ended before its input did. The message holds its log lines.
            EngineKilled: a foreign signal ended the program.
            EngineSilent: the program has read nothing and written nothing to standard error for too
                long. It is interrupted.
        """
        view = memoryview(data)
        try:
            while len(view):
                # If the pipe is full, write() returns None or a smaller number.
                count = self._child.stdin.write(view) or 0
                self._written += count
                view = view[count:]
                if view:
                    self._wait_for_room()
        except BrokenPipeError:
            status = self._child.wait(FINISH_SECONDS)
            self._check_signal(status)
            raise ExtractFailed(self._describe_end(status)) from None

    def _wait_for_room(self) -> None:
        self._child.wait_ready(self._child.stdin, select.POLLOUT, self._silent_seconds)

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Close the input and wait for a successful end.

        The end is successful if the exit status is 0, standard error is empty and there was some
        input. mbstream also exits with status 0 if its input is empty, and if a file exists
        already. It reports an existing file only on standard error, so all output there counts as
        a failure.

        Raises:
            ExtractFailed: the extraction failed, or its input was empty.
            EngineKilled: a foreign signal ended the program.
            EngineSilent: the program doesn't end within `seconds`.
        """
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        status = self._child.wait(seconds)
        self._check_signal(status)
        if status or self._child.log.lines():
            raise ExtractFailed(self._describe_end(status))
        if not self._written:
            raise ExtractFailed(f"{self._child.name} was given an empty stream")


class PrepareRun(Run):
    """A running prepare of an extracted backup."""

    def __init__(
        self, child: Child, proof: re.Pattern[str], causes: tuple[Cause, ...] = ()
    ) -> None:
        super().__init__(child)
        self._proof = proof
        self._causes = causes

    def finish(self, seconds: float = PREPARE_SECONDS) -> None:
        """Wait for the end and require exit status 0 and the closing line `completed OK!`.

        Silence is no failure here. The program writes nothing for a long time while it rolls back a
        large transaction or applies a large file.

        Raises:
            PrepareFailed: the status or the closing line is wrong, or a line reports lost data.
            EngineKilled: a foreign signal ended the program.
            EngineSilent: the program doesn't end within `seconds`.
        """
        status = self._child.wait(seconds)
        self._check_signal(status)
        if status or not self._completed(self._proof):
            raise self._failure(status, self._causes, PrepareFailed)
        if self._child.log.lost is not None:
            raise PrepareFailed(
                f"{self._child.name} says 'completed OK!' and also: {self._child.log.lost}",
                hint="rows of the named table would be lost. Restore again, or restore an earlier "
                "backup. If there is no other backup, docs/restore-without-the-agent.md describes "
                "how to save the other tables",
            )
