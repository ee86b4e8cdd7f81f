"""One child process: in a process group of its own, its standard error always drained.

A child inherits nothing of this process's environment: neither option files of a home folder
nor variables such as MYSQL_UNIX_PORT or LD_PRELOAD may change what an engine does.

Children aren't tied to this process by a parent-death signal: that signal follows the
*thread* that forked, and setting it needs Python code between fork and exec, which can
deadlock in a process with threads. When the agent dies its pipes close, so a child that
streams ends at its next write or read; the rest is ended by systemd with the unit, or by the
agent's next start, which knows its children by a variable in their environment.

XtraBackup ties itself to the *thread* that started it (PR_SET_PDEATHSIG). So start a Child on
the thread that waits for its end. A confined child is started by the thread that drains its
standard error: what a thread gave up for itself can't be had back.
"""

import contextlib
import fcntl
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import IO, Self, cast

from agent.engine.log_tail import LogTail
from agent.errors import EngineFailed, EngineMissing, EngineSilent
from agent.machine.confine import confine_thread
from agent.machine.os_user import OsUser
from agent.machine.passage import open_way

PIPE_BYTES = 1 << 20
GRACE_SECONDS = 3.0
_KILLED_SECONDS = 10.0
_DRAIN_SECONDS = 5.0
_ENVIRONMENT = MappingProxyType(
    {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
    }
)
# Debian's word for the home folder of a user that has none.
_NO_HOME = "/nonexistent"
_UMASK = 0o077
# What the agent's systemd unit has as LimitNOFILE.
_OPEN_FILES = 524_288


class Child:
    """A started program. Close it, or use it in a `with`, so that nothing is left behind.

    `interrupt()` and `kill()` may come from any thread; the rest from the one that owns it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        setting: str,
        stdin: bool = False,
        stdout: bool = False,
        keep: re.Pattern[str] | None = None,
        losses: re.Pattern[str] | None = None,
        niceness: int = 0,
        grace: float = GRACE_SECONDS,
        environment: Mapping[str, str] = MappingProxyType({}),
        user: OsUser | None = None,
        folders: Sequence[int] = (),
        writable: Sequence[Path] | None = None,
    ) -> None:
        """Start `argv`; `setting` is what the operator corrects if the program is missing.

        `niceness` is for the whole group. Unless an I/O priority was inherited the kernel
        derives it from that. `environment` is the child's, beside PATH, LC_ALL, and a HOME that
        does not exist. `user` is who it runs as: this process's own user if None, and another
        one only if this process is root. `folders` are descriptors of open folders that the
        child gets under the same numbers, so that it may use those whose parents are closed to
        it. `writable` are the only folders below which it may write (confine.py), if given.

        Raises:
            EngineMissing, EngineFailed: the program can't be started.
        """
        self.name = Path(argv[0]).name
        self.log = LogTail(keep, losses)
        self._grace = grace
        self._killer: threading.Timer | None = None
        self._lock = threading.Lock()
        start = partial(_start, argv, setting, stdin, stdout, environment, user, folders)
        self._drainer = threading.Thread(target=self._drain, name=f"{self.name} log", daemon=True)
        self._popen = start() if writable is None else self._start_confined(start, writable, user)
        with ExitStack() as undo:
            undo.callback(self.close)
            if writable is None:
                self._drainer.start()
            _dump_no_core(self._popen.pid)
            for pipe in (self._popen.stdin, self._popen.stdout):
                _enlarge(pipe)
            _be_nice(self._popen.pid, niceness)
            undo.pop_all()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> FileIO:
        """The raw read end: `readinto` returns what there is, 0 at the end."""
        return cast(FileIO, self._popen.stdout)

    @property
    def stdin(self) -> FileIO:
        """The raw write end: a write may take a part only; BrokenPipeError once it has ended."""
        return cast(FileIO, self._popen.stdin)

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs or wasn't waited for."""
        return self._popen.returncode

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def interrupted(self) -> bool:
        return self._killer is not None

    def interrupt(self) -> None:
        """Send SIGINT to the group, and SIGKILL after the grace; returns at once.

        Not SIGTERM: mariadb-backup blocks it and would finish as if nothing had been said.
        """
        with self._lock:
            if self._killer is not None or self.returncode is not None:
                return
            self._killer = threading.Timer(self._grace, self.kill)
            self._killer.daemon = True
            self._killer.start()
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to the group; nothing happens where it has ended."""
        self._signal(signal.SIGKILL)

    def wait_ready(self, pipe: FileIO, event: int, seconds: float) -> None:
        """Wait until `pipe` can be read (select.POLLIN) or written (POLLOUT), or has ended.

        EngineSilent, and an interrupt, where it can't be for `seconds` in which no word came
        on standard error either. Time outside of this call doesn't count.
        """
        poller = select.poll()
        poller.register(pipe, event)
        began = time.monotonic()
        left = seconds
        while not poller.poll(left * 1000):
            left = max(began, self.log.heard) + seconds - time.monotonic()
            if left <= 0:
                self.interrupt()
                did = "written nothing" if event == select.POLLIN else "read nothing"
                raise EngineSilent(
                    f"{self.name} has {did} for {seconds:g} s; its last words: "
                    f"{'; '.join(self.log.lines()[-2:]) or 'none'}"
                )

    def wait(self, seconds: float) -> int:
        """Wait for the end and return the exit status; EngineSilent (and SIGKILL) if too late."""
        try:
            status = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.close()
            raise EngineSilent(
                f"{self.name} did not end within {seconds:g} s and was killed"
            ) from None
        self._release()
        return status

    def close(self) -> None:
        """Kill what still runs, reap it and close the pipes; may be called again."""
        if self.returncode is None:
            self.kill()
            # a process stuck in the kernel can't be reaped; nobody is to wait for it for ever
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_KILLED_SECONDS)
        self._release()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _release(self) -> None:
        if self._killer is not None:
            self._killer.cancel()
        if self._drainer.is_alive():
            self._drainer.join(_DRAIN_SECONDS)

    def _signal(self, signum: int) -> None:
        # once reaped, its number may be another process's
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signum)

    def _start_confined(
        self,
        start: Callable[[], "subprocess.Popen[bytes]"],
        writable: Sequence[Path],
        user: OsUser | None,
    ) -> "subprocess.Popen[bytes]":
        """Start the child on the draining thread, which gives up writing elsewhere before."""
        started: Future[subprocess.Popen[bytes]] = Future()

        def begin() -> None:
            try:
                if user is not None:
                    open_way(user, writable)
                confine_thread(writable)
                self._popen = start()
            except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
                started.set_exception(error)
                return
            started.set_result(self._popen)
            self._drain()

        self._drainer = threading.Thread(target=begin, name=f"{self.name} log", daemon=True)
        self._drainer.start()
        try:
            return started.result()
        except OSError as error:
            raise EngineFailed(f"can't confine {self.name}: {error.strerror}") from error

    def _drain(self) -> None:
        with cast(FileIO, self._popen.stderr) as pipe:
            while block := pipe.read(1 << 16):
                self.log.feed(block)
        self.log.end()


def _start(
    argv: Sequence[str],
    setting: str,
    stdin: bool,
    stdout: bool,
    added: Mapping[str, str],
    user: OsUser | None,
    folders: Sequence[int],
) -> "subprocess.Popen[bytes]":
    program, *arguments = argv
    if user is not None:
        _raise_file_limit()
    try:
        return subprocess.Popen(  # noqa: S603 - a list; the program is the operator's setting
            [_located(program), *arguments],
            bufsize=0,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**_ENVIRONMENT, "HOME": _NO_HOME, **added},
            # an unprivileged child may be unable to stay in the agent's own folder
            cwd="/",
            umask=_UMASK,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=user.groups if user else None,
            pass_fds=folders,
            start_new_session=True,
        )
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise EngineMissing(
            f"can't start {program}: {error.strerror}",
            hint=f"install the program {Path(program).name}, or set {setting} to its path",
        ) from error
    except OSError as error:
        raise EngineFailed(f"can't start {program}: {error.strerror}") from error


def _located(program: str) -> str:
    """Return the program's path by the agent's own PATH; the child's is a fixed one."""
    found = shutil.which(program) or program
    return os.path.abspath(found) if "/" in found else found


def _raise_file_limit() -> None:
    """Raise the hard limit of open files as root may; another user's child can't any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _OPEN_FILES))


def _dump_no_core(pid: int) -> None:
    """Have no core file written: it would hold rows and the password."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _enlarge(pipe: IO[bytes] | None) -> None:
    """Give a pipe 1 MiB where the user's limit on pipe memory allows it."""
    if pipe is not None:
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _be_nice(group: int, niceness: int) -> None:
    """Lower the CPU priority of every thread of the group, never raise it.

    Root needs CAP_SYS_NICE for another user's processes, and containers lack it. Without it they
    keep the priority that they have inherited.
    """
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > inherited:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, group, niceness)
