"""`python -m agent` is `backup-agent`, and begins here.

An interrupt while modules are imported ends the process without a traceback.
"""

import signal
import sys


def start() -> int:
    """Run the command line of this process; return its exit status."""
    # Python's own handler, unless whoever started this has interrupts ignored
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from agent.cli import main, streams

    streams.set_up()
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main.main()
    finally:
        if ours:
            # nothing is left to be cleaned up: the interpreter's end needs no traceback, either
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(start())
