"""A file with the metrics, for the textfile collector of Prometheus' node_exporter.

It stays when the agent ends. The times in it stay true, so that the alert on the age of the last
backup goes on. A file that is gone would end that alert.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Final

from agent.errors import ConfigInvalid, JournalError
from agent.machine.host import replace_file
from agent.metrics.threads import begin

log = logging.getLogger(__name__)

_SECONDS: Final = 30.0
# node_exporter runs as another user.
_MODE: Final = 0o644


def write(path: Path, text: Callable[[], bytes]) -> None:
    """Replace the file by the metrics that `text` returns.

    Raises:
        ConfigInvalid: the file can't be written.
        JournalError: the metrics can't be read.
    """
    content = text().decode()
    try:
        replace_file(path, content, mode=_MODE)
    except OSError as error:
        raise ConfigInvalid(
            f"[metrics] textfile: can't write {path}: {error.strerror}",
            hint=f"make the directory {path.parent} and let the agent's OS user write there; the "
            "unit needs a ReadWritePaths= for it (systemctl edit backup-agent)",
        ) from error


class Textfile:
    """A thread that writes the file at once, every 30 s, and after `wake`.

    A write that fails is logged once, until a write succeeds. It must not keep the agent from
    making backups.
    """

    def __init__(self, path: Path, text: Callable[[], bytes]) -> None:
        self._path = path
        self._text = text
        self._work = Event()
        self._ending = self._failed = False
        self._thread = begin("metrics file", self._run)

    def wake(self) -> None:
        """Write the file now. Any thread may call this. It returns at once."""
        self._work.set()

    def close(self) -> None:
        """Write the file once more, and end the thread."""
        self._ending = True
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending:
            self._try()
            self._work.wait(_SECONDS)
            self._work.clear()
        # what a write that was under way at the end has read may be out of date
        self._try()

    def _try(self) -> None:
        try:
            write(self._path, self._text)
        except (ConfigInvalid, JournalError) as error:
            if not self._failed:
                log.error(
                    "%s. The agent works without it, and tries again every %.0f s. What to do: %s",
                    error,
                    _SECONDS,
                    error.hint,
                )
            self._failed = True
        else:
            self._failed = False
