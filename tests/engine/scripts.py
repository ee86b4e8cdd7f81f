"""Small programs that replace the engine, because the real one can't be made to misbehave."""

import os
import sys
import threading
from pathlib import Path

from agent.engine.process import Child
from agent.engine.runs import Run


def script(path: Path, body: str) -> str:
    """Write an executable Python program and return its path."""
    path.write_text(f"#!{sys.executable} -I\nimport os, signal, subprocess, sys, time\n{body}\n")
    path.chmod(0o755)
    open_way(path)
    return str(path)


def child_of(run: Run) -> Child:
    """Return the program of a run. Only tests need it."""
    return run._child


def held() -> tuple[int, int]:
    """Return the number of threads and the number of open descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def nothing_left_since(before: tuple[int, int]) -> bool:
    """Return True if this process has no more threads and descriptors than `before`.

    It may have fewer, because threads of earlier tests may end in the meantime.
    """
    return all(here <= there for here, there in zip(held(), before, strict=True))


def open_way(path: Path) -> None:
    """Let every user reach `path`, because a restore by root runs its programs as another user."""
    for folder in path.parents:
        if folder.stat().st_uid == os.getuid() and folder.parent != folder:
            folder.chmod(folder.stat().st_mode | 0o011)


# Its prepare writes its process id in its working directory, because it may write nowhere else.
_PATIENT = """#!/bin/sh
case " $* " in *" --prepare "*)
    if {condition}; then
        for one in "$@"; do
            case $one in --target-dir=*) echo $$ >"${{one#*=}}/begun" ;; esac
        done
        {prepare}
    fi
esac
exec mariadb-backup "$@"
"""


def patient(path: Path, prepare: str, condition: str = "true") -> str:
    """Write an engine and return its path. Its prepares run the shell code `prepare`.

    They run it only if `condition`, which is shell code too. The engine is a shell script, because
    a user other than root may be unable to start this Python.
    """
    path.write_text(_PATIENT.format(condition=condition, prepare=prepare))
    path.chmod(0o755)
    open_way(path)
    return str(path)


def preparing(folder: Path) -> list[int]:
    """Return the ids of the processes that wrote a `begun` file below a restore's target."""
    return [int(text) for path in folder.rglob("begun") if (text := path.read_text())]


def known(pid: int) -> bool:
    """Return True if the kernel still has a process with this id, which may be a zombie."""
    return Path(f"/proc/{pid}").exists()
