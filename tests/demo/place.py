"""The demo's command line, and the check that the disk has room for it.

`script/demo` runs this before anything is installed, so it may need only Python itself.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.demo.story import DemoFailed, megabytes

# The rows, the objects that Swift stores of them, a restored copy, and the files beside it.
_SPACE_FACTOR = 6
_SPACE_BYTES = 1 << 30
# The path of a Unix socket has at most 107 bytes (unix(7)). Up to 30 follow the directory.
_LONGEST_PATH = 76


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="script/demo",
        description="Show the whole product on private servers.",
        epilog="All files are in a folder under TMPDIR, by default /tmp, and removed at the end.",
    )
    parser.add_argument(
        "--rows-mb", type=int, default=320, metavar="N", help="MiB of rows to load (default 320)"
    )
    parser.add_argument(
        "--trove", action="store_true", help="show the drop-in under a real OpenStack Trove (root)"
    )
    typed = parser.parse_args()
    if not 16 <= typed.rows_mb <= 100_000:
        parser.error("--rows-mb must be between 16 and 100000")
    return typed


def check_folder(folder: Path, mebibytes: int) -> None:
    """Raise DemoFailed if the copies would fill the disk, or if a socket's path is too long."""
    if len(str(folder)) > _LONGEST_PATH:
        raise DemoFailed(
            f"{folder} is too long for the servers' sockets: set TMPDIR to a shorter one"
        )
    needed = _SPACE_BYTES + _SPACE_FACTOR * (mebibytes << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DemoFailed(
            f"the demo needs {megabytes(needed)} under {folder}, {megabytes(free)} are "
            "free: set TMPDIR to a folder with more space, or use a smaller --rows-mb"
        )


def main() -> None:
    """Check the place. Exit with 1 and a message if it isn't suitable."""
    try:
        check_folder(Path(tempfile.gettempdir()), arguments().rows_mb)
    except DemoFailed as error:
        sys.exit(f"DEMO FAILED: {error}; nothing was installed")


if __name__ == "__main__":
    main()
