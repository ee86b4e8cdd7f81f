"""The programs that the demo runs. Each one is ended cleanly, even if the demo is interrupted.

They run in separate sessions, so that Ctrl-C reaches the demo only. The demo then ends them one
after the other and waits for them.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.demo.story import DemoFailed

_PATIENCE_SECONDS = 30.0


def run(argv: Sequence[str], *, log: Path | None = None, seconds: float = 600) -> str:
    """Run a program and return its output. Raise DemoFailed unless it exits with 0.

    Its standard error goes into `log`, or to the demo's own, so that a progress bar is visible.
    """
    name = Path(argv[0]).name
    with open(log or os.devnull, "ab") as sink:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink if log else None,
            text=True,
            start_new_session=True,
        )
    with child:
        try:
            output, _ = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(child)
            raise DemoFailed(f"{name} did not end in {seconds:.0f} s") from None
        except BaseException:
            _end(child)
            raise
    if child.returncode:
        told = last_lines(log.read_text(errors="replace")) if log else ""
        raise DemoFailed(f"{name} ended with exit status {child.returncode}\n{output}{told}")
    return output


def _end(child: "subprocess.Popen[str]") -> None:
    """Interrupt the program and its children, and kill those that remain."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_PATIENCE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def last_lines(text: str, count: int = 15) -> str:
    """Return the last lines of a log."""
    return "\n".join(text.splitlines()[-count:])
