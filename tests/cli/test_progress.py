"""The progress bar appears on a terminal only, and leaves nothing behind."""

import io
import os
import pty
import sys
import threading

import pytest

from agent.cli.progress import ProgressBar, watch
from agent.model import Progress
from agent.pipeline.meter import Meter
from tests.stack.process import poll


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _progress(percent: float | None) -> Progress:
    return Progress(raw_bytes=256 << 20, stored_bytes=1, bytes_per_second=1.0, percent=percent)


def test_bytes_rate_and_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("base") as bar:
        bar.show(_progress(25.0))
        bar.show(_progress(25.0))
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("base:  25%")
    assert "256M/1.00G" in last
    assert "B/s" in last


def test_a_terminal_that_does_not_know_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of `docker exec -t` or `script` may have 0 columns."""
    controller, terminal = pty.openpty()
    assert os.get_terminal_size(terminal).columns == 0
    with open(controller, "rb", buffering=0) as shown, open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with ProgressBar("base") as bar:
            bar.show(_progress(25.0))
        os.set_blocking(controller, False)
        drawn = bytearray()

        def shows_it() -> bool:
            drawn.extend(shown.read(4096) or b"")
            return b"base:  25%" in drawn

        poll("the bar is drawn", shows_it, 10)


def test_a_size_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressBar("inc.001") as bar:
        bar.show(_progress(None))
    assert "inc.001: 256MB" in terminal.getvalue()


def test_nothing_is_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("base") as bar:
        bar.show(_progress(25.0))
    assert capsys.readouterr() == ("", "")


def test_watching_a_meter_ends_with_the_block_even_if_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[int] = []
    meter, bar = Meter(), ProgressBar("restore")
    monkeypatch.setattr(bar, "show", lambda progress: shown.append(progress.raw_bytes))
    before = set(threading.enumerate())

    def work() -> None:
        with watch(meter, bar):
            meter.add(raw=5)
            poll("the meter is shown", lambda: 5 in shown, 10)
            meter.add(raw=7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert shown[-1] == 12
    # threads of other tests may have ended meanwhile
    assert set(threading.enumerate()) <= before
