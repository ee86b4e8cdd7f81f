"""The entry point of the image's main.py, which is also `python -m agent.trove`."""

import os
import sys
from typing import NoReturn


def start() -> NoReturn:
    """Run the command line of this process and end the process at once with its exit status.

    Trove takes a backup for good only if the status is 0. So nothing may come between its last step
    and the end, such as the clean-up of an interpreter that a signal can interrupt.
    """
    from agent.cli import logs, streams

    streams.set_up()
    logs.catch_strays()
    from agent.trove.main import main

    status = main()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    start()
