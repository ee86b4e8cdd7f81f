"""The space that a restore leaves on the filesystem that it writes to.

That filesystem may be the running database's own, and a restore is asked for by whoever may send
a task. So it never takes the last of it: neither what is known before, nor what shows meanwhile,
as when an engine extends a file.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from agent.errors import AgentError, SpaceLacking, TargetRefused
from agent.machine.host import Space, nearest, space_of
from agent.operations.restore.target import usable
from agent.pipeline.meter import every
from agent.stop import Stop

_LOOK_SECONDS: Final = 0.2


def check_space(target: Path, needed: int, percent: float) -> None:
    """Check that `needed` bytes fit in `target` and leave `percent` of its filesystem free.

    Raises:
        SpaceLacking: they don't, or less than that is free already.
        TargetRefused: nothing may be written there.
    """
    with usable(target):
        there = nearest(target)
        if not os.access(there, os.W_OK | os.X_OK):
            raise TargetRefused(f"restoring has to write in {there}, which is not allowed")
        space = space_of(there)
    kept = _kept(space, percent)
    if space.free - needed < kept:
        raise SpaceLacking(
            f"restoring needs {needed} bytes under {there} and has to leave {kept} "
            f"({percent:g} %), {space.free} are free"
        )


def space_watched(target: Path, percent: float, stop: Stop) -> AbstractContextManager[None]:
    """Request `stop` with SpaceLacking as soon as less than `percent` of the space is free."""

    def look() -> None:
        try:
            space = space_of(target)
        except AgentError as error:
            stop.request(error)
            return
        if space.free < (kept := _kept(space, percent)):
            stop.request(
                SpaceLacking(f"{space.free} bytes are left at {target}, {kept} have to stay free")
            )
        elif space.free_files < space.files * percent / 100:
            stop.request(SpaceLacking(f"{space.free_files} files can be made yet at {target}"))

    return every(_LOOK_SECONDS, look, name="space watch")


def _kept(space: Space, percent: float) -> int:
    return int(space.total * percent / 100)
