"""The programs that the demo runs: each ended in good order, whatever ends the demo.

They get a session of their own, so that Ctrl-C reaches the demo alone, which then ends them
one after the other and waits for them.
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
    """Run a program and return what it printed; DemoFailed unless it exits with 0.

    Its standard error goes into `log`, or to ours, so that a progress bar shows.
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
    """Interrupt the program and its helpers; kill what stays."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(_PATIENCE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def last_lines(text: str, count: int = 15) -> str:
    """The end of a log."""
    return "\n".join(text.splitlines()[-count:])
