"""A child process in its own process group, with a thread that drains its standard error.

A child inherits nothing of this process's environment. Neither option files of a home directory
nor variables such as MYSQL_UNIX_PORT or LD_PRELOAD may change the work of an engine.

No parent-death signal ties a child to this process. That signal follows the *thread* that forked.
To set it, Python code would have to run between fork and exec, which can deadlock in a process with
threads. When the agent dies, its pipes close. So a child that streams ends at its next write or
read. All other children are ended by systemd with the unit, or by the agent's next start, which
recognises its children by a variable in their environment.

XtraBackup ties itself to the *thread* that started it (PR_SET_PDEATHSIG). So start a Child on the
thread that waits for its end. A confined child is started by the thread that drains its standard
error, because a thread can't regain rights that it has given up.
"""

import contextlib
import fcntl
import logging
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
from agent.threads import Thread, Timer

log = logging.getLogger(__name__)

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
# The home directory that Debian enters for a user without one.
_NO_HOME = "/nonexistent"
_UMASK = 0o077
# The value of LimitNOFILE in the agent's systemd unit.
_OPEN_FILES = 524_288


class Child:
    """A started program.

    Close it, or use it in a `with` block, so that no process and no pipe remains. Any thread may
    call `interrupt()` and `kill()`. Only the thread that owns the object may call the other
    methods.
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
        """Start the program `argv`.

        `setting` is the configuration key that the operator corrects if the program is missing.
        `niceness` is the CPU priority of the whole process group. If no I/O priority was inherited,
        the kernel derives it from `niceness`. `grace` is the seconds between SIGINT and SIGKILL.
        `environment` are the child's variables beside PATH, LC_ALL, and a HOME that does not exist.
        `user` is the OS user that the program runs as. None means this process's own user. Another
        user is possible only if this process is root. `folders` are descriptors of open directories
        that the child gets under the same numbers. So it can use directories although their parents
        are closed to it. `writable` are the only directories below which the child may write
        (confine.py). None means no such limit.

        Raises:
            EngineMissing: the program can't be found, or may not be executed.
            EngineFailed: the program can't be started for another reason.
        """
        self.name = Path(argv[0]).name
        self.log = LogTail(keep, losses)
        self._grace = grace
        self._killer: Timer | None = None
        self._lock = threading.Lock()
        start = partial(_start, argv, setting, stdin, stdout, environment, user, folders)
        self._drainer = Thread(self._drain, name=f"{self.name} log", daemon=True)
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
        log.debug("started %s as process %d", self.name, self._popen.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdout(self) -> FileIO:
        """Return the unbuffered read end of the pipe from the child's standard output.

        Its `readinto` returns the bytes that are available, and 0 at the end.
        """
        return cast(FileIO, self._popen.stdout)

    @property
    def stdin(self) -> FileIO:
        """Return the unbuffered write end of the pipe to the child's standard input.

        A write may take only a part of the bytes. It raises BrokenPipeError if the child has ended.
        """
        return cast(FileIO, self._popen.stdin)

    @property
    def returncode(self) -> int | None:
        """Return the exit status, or the negative number of the signal that ended the child.

        None means that the child runs, or that it has not been waited for yet.
        """
        return self._popen.returncode

    def running(self) -> bool:
        """Return True if the child has not ended yet."""
        return self._popen.poll() is None

    @property
    def interrupted(self) -> bool:
        """Return True if `interrupt()` has interrupted the running child."""
        return self._killer is not None

    def interrupt(self) -> None:
        """Send SIGINT to the process group, and SIGKILL after the grace time.

        Return without waiting. SIGTERM is not used, because mariadb-backup blocks it and would
        continue to its normal end.
        """
        with self._lock:
            if self._killer is not None or self.returncode is not None:
                return
            self._killer = Timer(self._grace, self.kill)
            self._killer.start()
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to the process group, unless the child has ended and has been waited for."""
        self._signal(signal.SIGKILL)

    def wait_ready(self, pipe: FileIO, event: int, seconds: float) -> None:
        """Wait until `pipe` can be read (select.POLLIN) or written (POLLOUT), or has ended.

        Time outside of this call doesn't count as silence.

        Raises:
            EngineSilent: the pipe was not ready for `seconds`, and in that time nothing came on
                standard error either. The child is interrupted.
        """
        poller = select.poll()
        poller.register(pipe, event)
        began = time.monotonic()
        left = seconds
        while not poller.poll(left * 1000):
            left = max(began, self.log.heard) + seconds - time.monotonic()
            if left <= 0:
                # before the interrupt, because the program may report that it was interrupted
                said = "; ".join(self.log.lines()[-2:]) or "none"
                self.interrupt()
                did = "written nothing" if event == select.POLLIN else "read nothing"
                raise EngineSilent(
                    f"{self.name} has {did} for {seconds:g} s; its last log lines: {said}"
                )

    def wait(self, seconds: float) -> int:
        """Wait for the child's end and return its exit status.

        Raises:
            EngineSilent: the child didn't end within `seconds`, and was killed.
        """
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
        """Kill the child if it still runs, wait for its end and close the pipes.

        Further calls do nothing.
        """
        if self.returncode is None:
            self.kill()
            # A process that is stuck in the kernel can't be reaped. So the wait has a time limit.
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
        """Cancel a pending SIGKILL, and wait until standard error has been drained."""
        if self._killer is not None:
            self._killer.cancel()
        if self._drainer.is_alive():
            self._drainer.join(_DRAIN_SECONDS)

    def _signal(self, signum: int) -> None:
        # When the child has been reaped, another process may have its number.
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signum)

    def _start_confined(
        self,
        start: Callable[[], "subprocess.Popen[bytes]"],
        writable: Sequence[Path],
        user: OsUser | None,
    ) -> "subprocess.Popen[bytes]":
        """Start the child on the thread that drains its standard error.

        Before that, the thread gives up the right to write outside of `writable`.
        """
        started: Future[subprocess.Popen[bytes]] = Future()

        def begin() -> None:
            try:
                if user is not None:
                    open_way(user, writable)
                confine_thread(writable)
                self._popen = start()
            except BaseException as error:  # noqa: BLE001 - the waiting thread raises it again
                started.set_exception(error)
                return
            started.set_result(self._popen)
            self._drain()

        self._drainer = Thread(begin, name=f"{self.name} log", daemon=True)
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
            # The agent's working directory may be closed to an unprivileged child.
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
    """Return the program's path, found by the agent's own PATH.

    The child's PATH is a fixed one, so the lookup has to happen here.
    """
    found = shutil.which(program) or program
    return os.path.abspath(found) if "/" in found else found


def _raise_file_limit() -> None:
    """Raise the hard limit of open files, which only root can do.

    A child that runs as another user can't raise it any more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _OPEN_FILES:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _OPEN_FILES))


def _dump_no_core(pid: int) -> None:
    """Turn off core files of the process `pid`, which would hold rows and the password."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _enlarge(pipe: IO[bytes] | None) -> None:
    """Enlarge a pipe to 1 MiB if the user's limit on pipe memory allows it."""
    if pipe is not None:
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _be_nice(group: int, niceness: int) -> None:
    """Lower the CPU priority of every thread of the process group.

    Never raise it. Root needs CAP_SYS_NICE to change another user's processes, and containers lack
    it. Without it the processes keep the priority that they have inherited.
    """
    inherited = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > inherited:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, group, niceness)
