"""The program that Trove's guest agent starts in the image: `python3 main.py --backup ...`.

Releases of Trove before 24 call `/usr/bin/python3`. That interpreter doesn't have the agent.
"""

import importlib.util
import os
import sys

PYTHON = "/opt/backup-agent/bin/python"


def main() -> None:
    if importlib.util.find_spec("agent") is None and sys.executable != PYTHON:
        os.execv(PYTHON, [PYTHON, *sys.argv])  # noqa: S606 - a fixed program of the image
    from agent.trove.__main__ import start

    start()


if __name__ == "__main__":
    main()
