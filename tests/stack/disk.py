"""A small filesystem that a test can fill. The test is skipped if it can't be mounted."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest


class SmallDisk:
    """A filesystem of 16 MiB below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def mount(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True)
        options = ["-o", "size=16m,mode=0700"]
        done = subprocess.run(
            ["mount", "-t", "tmpfs", *options, "none", str(self.folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("no filesystem may be mounted here")

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        with suppress(OSError), self._filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 10))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)
