"""Make and restore one backup with Trove's own image code and with the drop-in, and compare them.

    sudo script/bootstrap trove
    sudo .venv/bin/python -m benchmarks.trove --rows-mb 1000 --runs 2

Both get the command line that Trove's guest agent gives them, the same database and the same Swift.
A figure is the time of the whole process. Only the ratio of two figures of one run is meaningful on
another machine. It needs root: each program runs in a mount namespace, as in a container.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from tests.dropin.image import MAIN, RESULT, Image, Made
from tests.stack.mariadb import MariaDB
from tests.stack.swift import SwiftServer

_VENV = Path(__file__).parents[1] / ".venv-trove"
_DATA = "/var/lib/mysql"


class _Program(NamedTuple):
    """One image: its interpreter, and the directory with its main.py."""

    name: str
    python: Path
    directory: Path


_PROGRAMS = (
    _Program("Trove's own", _VENV / "bin" / "python", _VENV / "src" / "backup"),
    _Program("drop-in", Path(__file__).parents[1] / ".venv" / "bin" / "python", MAIN.parent),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows-mb", type=int, default=1000, help="MiB of rows to load")
    parser.add_argument("--runs", type=int, default=2, help="runs of each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backup-agent-bench-") as name:
        folder = Path(name)
        mariadb, swift = MariaDB(folder / "mariadb"), SwiftServer(folder / "swift")
        mariadb.install()
        try:
            swift.start()
            mariadb.start()
            mariadb.load_rows(arguments.rows_mb)
            mariadb.checkpoint()
            print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
            bench = Bench(folder, Image(folder, mariadb, swift))
            for number in range(arguments.runs):
                bench.run(number + 1)
        finally:
            mariadb.stop()
            swift.stop()


class Bench:
    """The runs of both programs on one database and one Swift."""

    def __init__(self, folder: Path, image: Image) -> None:
        self._folder = folder
        self._image = image
        self._etc = folder / "etc"
        self._etc.mkdir()
        (self._etc / "my.cnf").write_text(
            f"[mysqld]\ndatadir={_DATA}/data\n[client]\nsocket={image.mariadb.socket}\n"
        )
        self._image.request("PUT", "").close()

    def run(self, number: int) -> None:
        """Make and restore a backup with each program, and print the times and their ratios."""
        made, seconds = {}, {}
        for program in _PROGRAMS:
            began = time.monotonic()
            made[program.name] = self._backup(program)
            seconds[program.name] = time.monotonic() - began
        restored = {}
        for program in _PROGRAMS:
            began = time.monotonic()
            self._restore(program, made[program.name])
            restored[program.name] = time.monotonic() - began
            self._image.delete(made[program.name])
        for what, found in (("backup", seconds), ("restore", restored)):
            slow, fast = (found[program.name] for program in _PROGRAMS)
            print(
                f"run {number}: {what}: {_PROGRAMS[0].name} {slow:.1f} s, {_PROGRAMS[1].name} "
                f"{fast:.1f} s, {slow / fast:.1f} times as fast",
                flush=True,
            )

    def _backup(self, program: _Program) -> Made:
        backup_id = str(uuid.uuid4())
        datadir = self._image.mariadb.datadir
        output = self._main(program, datadir, self._image.arguments(backup_id))
        lines = [line for line in output.splitlines() if "Backup successfully" in line]
        found = RESULT.match(lines[-1]) if lines else None
        if found is None:
            raise RuntimeError(f"{program.name} made no backup:\n{output}")
        return Made(backup_id, found["checksum"], found["location"])

    def _restore(self, program: _Program, made: Made) -> None:
        target = self._folder / f"restored-{made.id}"
        target.mkdir()
        arguments = self._image.restore_arguments(made, Path(f"{_DATA}/data"))[:-1]
        output = self._main(program, target, arguments)
        if not (target / "ibdata1").exists():
            raise RuntimeError(f"{program.name} restored nothing:\n{output}")
        shutil.rmtree(target)

    def _main(self, program: _Program, datadir: Path, arguments: list[str]) -> str:
        """Run a main.py with the mounts that Trove gives a container. Return all its output."""
        mounts = (
            f"mount -t tmpfs none {_DATA} && mkdir {_DATA}/data && "
            f"mount --bind {datadir} {_DATA}/data && mount --bind {self._etc} /etc/mysql && "
            f'cd {program.directory} && exec {program.python} main.py "$@"'
        )
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mounts, "sh", *arguments],
            env=self._image.variables | {"PATH": f"{program.python.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program.name} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr


if __name__ == "__main__":
    main()
