"""Runs of an engine's programs: what each must have shown before it counts as done.

A run is used in a `with` block, whose end kills what still runs. After `interrupt()`
(from any thread) the run's other methods may fail; the caller knows why it interrupted.
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
# What a program dies of by itself; every other signal comes from outside.
_CRASHES = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP}
)
_SHOWN_LINES = 4


class Cause(NamedTuple):
    """A line of the engine's log that explains its failure, and the error it stands for."""

    pattern: re.Pattern[str]
    error: type[AgentError]
    hint: str | None = None


class Run:
    """What all runs share."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def interrupt(self) -> None:
        """Stop the program: SIGINT, and SIGKILL 3 s later; returns at once."""
        self._child.interrupt()

    def close(self) -> None:
        """Kill the program where it still runs, and release everything."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _story(self, status: int) -> str:
        """One line on how the program ended: its status and its lines about errors."""
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        if self._child.interrupted:
            ended = f"{ended} after it was interrupted"
        return f"{self._child.name} ended with {ended}: {self._words()}"

    def _words(self) -> str:
        lines = self._child.log.kept() or self._child.log.lines()
        return "; ".join(map(without_head, lines[-_SHOWN_LINES:])) or "it said nothing"

    def _check_signal(self, status: int) -> None:
        """EngineKilled where a signal ended it that neither this agent sent nor it itself."""
        if status >= 0 or self._child.interrupted or -status in _CRASHES:
            return
        name = signal.Signals(-status).name if -status < signal.SIGRTMIN else f"signal {-status}"
        raise EngineKilled(
            f"{self._child.name} was ended by {name}, which the agent did not send; its last "
            f"words: {self._words()}"
        )

    def _failure(
        self, status: int, causes: tuple[Cause, ...], otherwise: type[AgentError]
    ) -> AgentError:
        """Return the error of the first cause that the log shows, else `otherwise`."""
        story = self._story(status)
        log = "\n".join(self._child.log.messages())
        for cause in causes:
            if cause.pattern.search(log):
                return cause.error(story, hint=cause.hint)
        return otherwise(story)

    def _completed(self, proof: re.Pattern[str]) -> bool:
        lines = self._child.log.lines()
        return bool(lines) and proof.fullmatch(lines[-1]) is not None


class BackupRun(Run):
    """A running backup; `read_into` to the end of its stream, then `finish()`."""

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
        """`release` is called when the program has ended."""
        super().__init__(child)
        self._secret_file = secret_file
        self._release = release
        self._proof = proof
        self._causes = causes
        self._silent_seconds = silent_seconds

    def read_into(self, buffer: memoryview) -> int:
        """Read what there is; 0 at the end of the stream, good or bad.

        EngineSilent, and an interrupt, where the program writes nothing at all for too long.
        Time in which nobody reads doesn't count.
        """
        self._child.wait_ready(self._child.stdout, select.POLLIN, self._silent_seconds)
        return self._child.stdout.readinto(buffer)

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Wait for the end and demand exit status 0 and the closing `completed OK!`.

        EngineKilled where a foreign signal ended it; DatabaseDenied, DatabaseUnreachable,
        LockTimeout, RedoOverwritten or EngineFailed by what the log says; EngineUnproved where
        the status is 0 and the closing line is missing, or another line tells of lost data;
        EngineSilent where it doesn't end.
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
                hint="the engine lost data on its way: check the disk, make and drop no schema "
                "while a backup runs, and back up again",
            )

    def words_about(self, path: str) -> str:
        """Return what the program said of trouble with a file, named as in the stream."""
        said = [line for line in self._child.log.kept() if f"/{path}" in line]
        return "; ".join(map(without_head, said[:_SHOWN_LINES]))

    def close(self) -> None:
        super().close()
        self._secret_file.unlink(missing_ok=True)
        self._release()


class ExtractRun(Run):
    """A running extraction; `write()` the stream, then `finish()`."""

    def __init__(self, child: Child, silent_seconds: float) -> None:
        super().__init__(child)
        self._silent_seconds = silent_seconds
        self._written = 0
        # so that whoever writes can wait with a deadline; the program's own end still blocks
        os.set_blocking(child.stdin.fileno(), False)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hand over the next bytes, all of them; waits while the program is busy.

        ExtractFailed with the program's own words where it has ended before its input did,
        EngineKilled where a foreign signal ended it, EngineSilent (and an interrupt) where it
        takes nothing and says nothing for too long.
        """
        view = memoryview(data)
        try:
            while len(view):
                # None, or less than all, where the pipe is full
                count = self._child.stdin.write(view) or 0
                self._written += count
                view = view[count:]
                if view:
                    self._wait_for_room()
        except BrokenPipeError:
            status = self._child.wait(FINISH_SECONDS)
            self._check_signal(status)
            raise ExtractFailed(self._story(status)) from None

    def _wait_for_room(self) -> None:
        self._child.wait_ready(self._child.stdin, select.POLLOUT, self._silent_seconds)

    def finish(self, seconds: float = FINISH_SECONDS) -> None:
        """Close the input, wait, and demand exit status 0, no complaint, and some input.

        mbstream also exits 0 on no input at all and where a file exists already; of the
        latter it only complains on standard error, so every word there is a failure.
        """
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        status = self._child.wait(seconds)
        self._check_signal(status)
        if status or self._child.log.lines():
            raise ExtractFailed(self._story(status))
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
        """Wait for the end; PrepareFailed without exit status 0 and `completed OK!`, and if a
        line tells of lost data all the same.

        EngineKilled where a foreign signal ended it. Silence is no failure here: rolling back a
        large transaction or applying a large file takes long without a word.
        """
        status = self._child.wait(seconds)
        self._check_signal(status)
        if status or not self._completed(self._proof):
            raise self._failure(status, self._causes, PrepareFailed)
        if self._child.log.lost is not None:
            raise PrepareFailed(
                f"{self._child.name} says 'completed OK!' and also: {self._child.log.lost}",
                hint="rows of the named table would be lost. Restore again, or an earlier backup; "
                "docs/restore-without-the-agent.md saves the rest, if there is no other",
            )
