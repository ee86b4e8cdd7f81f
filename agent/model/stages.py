"""The stages of the data path, and the work that they have done."""

from typing import Final, NamedTuple

# The stages in the order of the bytes: first those of a backup, then those of a restore.
STAGES: Final = ("read", "deflate", "seal", "send", "fetch", "open", "inflate", "write")


class StageTotal(NamedTuple):
    """The work of one stage of the data path.

    `seconds` is the time in which its threads worked, summed over the threads. `bytes` is the size
    of what left the stage.
    """

    seconds: float
    bytes: int
