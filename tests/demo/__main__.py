"""The demo's start and end: its directory, its signals, its exit status."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import psutil

from tests.demo import trove
from tests.demo.demo import STEPS, Demo
from tests.demo.place import arguments, check_folder
from tests.demo.story import DemoFailed, Story
from tests.demo.trove import TroveDemo
from tests.stack.process import StackError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal that requests the end."""


def _interrupt(signum: int, _: FrameType | None) -> None:
    _ignore_signals()
    raise Interrupted(signal.Signals(signum).name)


def _ignore_signals() -> None:
    """Ignore further signals, so that a second Ctrl-C during the clean-up leaves nothing behind."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def clear_environment() -> None:
    """Drop variables that would change the agent's configuration or its way to loopback."""
    for name in [name for name in os.environ if name.startswith("BACKUP_AGENT_")]:
        del os.environ[name]
    os.environ.update(NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a directory for all files, which is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="backup-agent-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def check_nothing_left(folder: Path) -> None:
    """Raise DemoFailed if a child process, or a process that names the directory, still runs."""
    left = [child for child in psutil.Process().children(recursive=True) if child.is_running()]
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
        if any(str(folder) in word for word in words):
            left.append(process)
    if left or folder.exists():
        raise DemoFailed(f"left behind: {left}, {folder if folder.exists() else 'no files'}")


def show(mebibytes: int, story: Story, demo: type[Demo | TroveDemo]) -> None:
    """Run a demo in a directory and with servers that are removed afterwards."""
    with scratch_folder() as folder:
        story.text(f"All files are in {folder}, which is removed at the end.")
        check_folder(folder, mebibytes)
        with ExitStack() as ends:
            try:
                demo(folder, mebibytes, ends, story).run()
            finally:
                _ignore_signals()
    check_nothing_left(folder)


def main() -> int:
    """Return 0 only if every step proved its claim, 1 after a failure, 130 after Ctrl-C."""
    typed = arguments()
    clear_environment()
    demo = TroveDemo if typed.trove else Demo
    story = Story(trove.STEPS if typed.trove else STEPS)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        show(typed.rows_mb, story, demo)
    except Interrupted as signum:
        story.text(f"\n{signum}: stopped. All servers are ended and all files are removed.")
        return 130
    except (DemoFailed, StackError) as error:
        story.text(f"\nDEMO FAILED: {error}")
        return 1
    story.text(
        f"\nDEMO OK in {story.seconds:.0f} s: backed up, restored, every table is the same; "
        "no server runs and no file is left"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
