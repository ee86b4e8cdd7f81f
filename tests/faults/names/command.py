"""Repeated runs of `backup-agent` without importing it for each one.

A process that has imported the command line forks for each command, so that the command runs as it
would alone: it has its own signal handlers, priority, logging and exit.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self


class Done(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    stdout: str
    stderr: str


class Commands:
    """A runner of commands, one after the other, used in a `with` block."""

    def __init__(self, folder: Path) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, *arguments: str | Path) -> Done:
        """Run `backup-agent` with those arguments. The status is -N if signal N ended it."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        words = [str(self._out), str(self._err), *map(str, arguments)]
        stdin.write(json.dumps(words).encode() + b"\n")
        stdin.flush()
        status = int(stdout.readline())
        return Done(status, *(path.read_text(errors="replace") for path in (self._out, self._err)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()


def _serve() -> None:
    from agent.cli.main import main

    for line in sys.stdin:
        out, err, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_command(main, out, err, arguments))
        _, waited = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(waited), flush=True)


def _command(main: object, out: str, err: str, arguments: Sequence[str]) -> int:
    """Run one command in a forked child and return its exit status."""
    assert callable(main)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        status = int(main(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the interpreter does the same
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    _serve()
