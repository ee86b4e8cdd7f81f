"""A machine that boots systemd: a container of systemd-nspawn on a temporary copy of this one.

It sees the checkout and a directory of wheels, has no network except its own loopback, and keeps
its writes in memory. Nothing of it is left after its first process ends.
"""

import contextlib
import re
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Final, Self

import psutil

from tests.stack.process import ServerProcess, StackError, poll

CHECKOUT: Final = Path(__file__).parents[2]
CHECKOUT_INSIDE: Final = "/srv/backup-agent"
WHEELS_INSIDE: Final = "/srv/wheels"
_ENVIRONMENT: Final = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    # pip's setting for a machine without network
    "PIP_NO_INDEX=1",
    f"PIP_FIND_LINKS={WHEELS_INSIDE}",
)
_CGROUPS: Final = Path("/sys/fs/cgroup")


class Machine:
    """A machine with its scratch in `folder`. As a context manager it runs inside the block."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder = folder
        self.name = f"backup-agent-{uuid.uuid4().hex[:8]}"
        self._wheels = wheels
        self._container: ServerProcess | None = None
        self._leader: psutil.Process | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Boot the machine, and wait until systemd has finished starting its units."""
        scratch = self.folder / "scratch"
        scratch.mkdir(parents=True)
        # run it in a separate process tree, which dies with this process in any case
        argv = ["unshare", "--mount", "--propagation", "private", "--pid", "--mount-proc"]
        argv += ["--fork", "--kill-child", str(Path(__file__).with_name("boot"))]
        argv += [str(scratch), self.name]
        argv += [f"{CHECKOUT}:{CHECKOUT_INSIDE}", f"{self._wheels}:{WHEELS_INSIDE}"]
        self._container = ServerProcess(argv, self.folder / "console.log")
        self._container.wait_ready(self._booted, 60)

    def stop(self) -> None:
        """End the machine at once, as a power failure would.

        Raise StackError if any process or mount of it is left.
        """
        if self._container is None:
            return
        if self._leader is not None and self._leader.is_running():
            # everything inside dies with its first process, and systemd-nspawn then cleans up
            self._leader.kill()
            self._container.stop(signal.SIGCONT, 10)
        self._container.stop(signal.SIGKILL)
        poll("the machine's processes are gone", lambda: not self.left_behind(), 10)
        for folder in self._cgroups():
            for inner in sorted(folder.glob("**/"), reverse=True):
                inner.rmdir()
        self._container = None

    def crash(self) -> None:
        """Kill the program that holds the machine. The rest ends as when the tests are killed."""
        assert self._container is not None
        self._container.stop(signal.SIGKILL)

    def left_behind(self) -> list[str]:
        """Return the machine's processes and mounts that still exist."""
        listed = [folder / "cgroup.procs" for top in self._cgroups() for folder in top.glob("**/")]
        found = [f"process {pid}" for path in listed for pid in _words(path)]
        mounts = Path("/proc/self/mounts").read_text()
        return found + ([f"mounts below {self.folder}"] if str(self.folder) in mounts else [])

    def run(
        self, *argv: str | Path, text: str | None = None, seconds: float = 120, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program in the machine as root, with `text` on its standard input.

        Raise StackError if it fails, unless `check` is false.
        """
        done = subprocess.run(
            self.argv(*argv),
            input=text or "",
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if check and done.returncode:
            raise StackError(f"{argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def output(self, *argv: str | Path) -> str:
        """Return the output of a program that must succeed, without the last newline."""
        return self.run(*argv).stdout.removesuffix("\n")

    def argv(self, *argv: str | Path) -> list[str]:
        """Return the command that runs `argv` in the machine as root."""
        assert self._leader is not None, "the machine has not booted"
        enter = ["nsenter", f"--target={self._leader.pid}", "--mount", "--uts", "--ipc", "--net"]
        enter += ["--pid", "--cgroup", "--root", "--wd", "env", "--ignore-environment"]
        return [*enter, *_ENVIRONMENT, *map(str, argv)]

    def _booted(self) -> bool:
        if self._leader is None:
            self._leader = self._first_process()
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _first_process(self) -> psutil.Process | None:
        assert self._container is not None
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            for process in psutil.Process(self._container.pid).children(recursive=True):
                status = Path(f"/proc/{process.pid}/status").read_text()
                # its pid on this machine, in the tree of systemd-nspawn, and inside (proc(5))
                if re.search(r"^NSpid:\t\d+\t\d+\t1$", status, re.MULTILINE):
                    return process
        return None

    def _cgroups(self) -> list[Path]:
        places = (_CGROUPS, _CGROUPS / "unified", _CGROUPS / "systemd")
        return [place / self.name for place in places if (place / self.name).is_dir()]


def _words(path: Path) -> list[str]:
    """Return the words of a file, or none if it has been deleted meanwhile."""
    with contextlib.suppress(OSError):
        return path.read_text().split()
    return []
