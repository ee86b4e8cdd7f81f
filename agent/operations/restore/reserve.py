"""Keep a reserve of free space on the filesystem that a restore writes to.

That filesystem may be the one of the running database, and every client that may send a task can
request a restore. So a restore never takes the last of the space. The space that it needs for
certain is checked before it begins. More need shows only while it runs, such as when an engine
extends a file, so the free space is watched, too.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from agent.errors import AgentError, SpaceLacking, TargetRefused
from agent.machine.host import Space, nearest, space_of
from agent.operations.restore.target import errors_translated
from agent.pipeline.meter import every
from agent.stop import Stop

_LOOK_SECONDS: Final = 0.2


def check_space(target: Path, needed: int, percent: float) -> None:
    """Check that `needed` bytes fit in `target` and leave `percent` of its filesystem free.

    Raises:
        SpaceLacking: they don't fit, or less than `percent` is free already.
        TargetRefused: this process may not write there.
    """
    with errors_translated(target):
        there = nearest(target)
        if not os.access(there, os.W_OK | os.X_OK):
            raise TargetRefused(f"the restore may not write in {there}: permission denied")
        space = space_of(there)
    kept = _kept(space, percent)
    if space.free - needed < kept:
        raise SpaceLacking(
            f"the restore needs {needed} bytes in {there} and has to leave {kept} bytes "
            f"({percent:g} %) free, but only {space.free} are free"
        )


def space_watched(target: Path, percent: float, stop: Stop) -> AbstractContextManager[None]:
    """Watch the space during a block, and request `stop` if less than `percent` is free.

    The cause is SpaceLacking. Both the bytes and the files that can still be made are watched, five
    times a second.
    """

    def look() -> None:
        try:
            space = space_of(target)
        except AgentError as error:
            stop.request(error)
            return
        if space.free < (kept := _kept(space, percent)):
            stop.request(
                SpaceLacking(
                    f"only {space.free} bytes are free at {target}, but {kept} have to stay free"
                )
            )
        elif space.free_files < space.files * percent / 100:
            stop.request(
                SpaceLacking(
                    f"the filesystem at {target} has room for only {space.free_files} more files, "
                    f"but {percent:g} % of its {space.files} have to stay free"
                )
            )

    return every(_LOOK_SECONDS, look, name="space watch")


def _kept(space: Space, percent: float) -> int:
    return int(space.total * percent / 100)
