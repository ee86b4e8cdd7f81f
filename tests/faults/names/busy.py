"""Steps performed during a backup, and the set of them that the backup must contain.

Before each step its number goes into a separate table. A backup has the content of the moment at
which the engine holds the server's last lock. The last number in the restored table therefore tells
that moment: all earlier steps are in the backup, and the step of that number may be or not.
"""

import threading
from collections.abc import Sequence
from typing import Final

from tests.faults.names.content import Content, content
from tests.faults.names.generate import BUSY_SCHEMAS
from tests.faults.names.rig import Rig
from tests.faults.names.script import Step
from tests.stack.mariadb import MariaDB

LOG: Final = "names_steps"
_LOOK_SECONDS: Final = 0.01


class Busy:
    """A thread that performs steps inside the `with` block and records the content after each."""

    def __init__(self, rig: Rig, steps: Sequence[Step]) -> None:
        self._rig = rig
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._do, daemon=True)
        self._error: BaseException | None = None
        self.states: list[Content] = []

    def __enter__(self) -> "Busy":
        self._rig.server.execute_many(
            f"CREATE OR REPLACE DATABASE {LOG}",
            f"CREATE TABLE {LOG}.steps (number INT PRIMARY KEY) ENGINE=InnoDB",
        )
        self.states.append(content(self._rig.server, BUSY_SCHEMAS))
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _do(self) -> None:
        try:
            self._all()
        except BaseException as error:  # noqa: BLE001 - __exit__ raises it again
            self._error = error

    def _locks(self) -> int:
        """Return how many BACKUP statements the server has seen."""
        [[_, count]] = self._rig.server.query("SHOW GLOBAL STATUS LIKE 'Com_backup'")
        return int(count)

    def _all(self) -> None:
        before = self._locks()
        while not (self._rig.script.at_once or self._stop.is_set() or self._locks() > before):
            self._stop.wait(_LOOK_SECONDS)
        with self._rig.stepping() as stepping:
            for number, step in enumerate(self._steps, 1):
                if self._stop.is_set():
                    return
                stepping.do(Step(0, f"INSERT INTO {LOG}.steps VALUES ({number})"))
                stepping.do(step)
                self.states.append(content(self._rig.server, BUSY_SCHEMAS))

    def right(self, restored: MariaDB) -> list[Content]:
        """Return the contents that the busy schemas of a restored server may have."""
        [[last]] = restored.query(f"SELECT COALESCE(MAX(number), 0) FROM {LOG}.steps")
        return self.states[max(0, last - 1) : last + 1]
