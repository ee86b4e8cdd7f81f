"""The entry point of the command `backup-agent`, which is also `python -m agent`.

An interrupt (SIGINT) while modules are imported ends the process without a traceback.
"""

import signal
import sys


def start() -> int:
    """Run the command line of this process and return its exit status."""
    # The handler is Python's own, unless the parent process made this one ignore SIGINT.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from agent.cli import logs, main, streams

    streams.set_up()
    logs.catch_strays()
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main.main()
    finally:
        if ours:
            # Nothing is left to clean up, so an interrupt while the interpreter exits needs no
            # traceback either.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(start())
