"""The pipeline of a simple shell script: the engine, gzip, and one serial upload."""

import subprocess
import time
from pathlib import Path
from typing import IO, NamedTuple, cast

from swiftclient.client import Connection

from tests.stack.agent import write_private
from tests.stack.stack import Stack

_CHUNK = 1 << 20


class Naive(NamedTuple):
    """The seconds taken, and the bytes that arrived in Swift."""

    seconds: float
    stored_bytes: int


def naive_backup(stack: Stack) -> Naive:
    """Run `mariadb-backup | gzip | one PUT`, without encryption and verification."""
    folder = stack.folder / "naive"
    folder.mkdir(exist_ok=True)
    options = folder / "engine.cnf"
    write_private(options, f"[mariadb-backup]\nuser=root\nsocket={stack.mariadb.socket}\n")
    swift = Connection(stack.swift.auth_url, stack.swift.user, stack.swift.key, retries=0)
    swift.put_container("naive")
    started = time.monotonic()
    stored = _run(swift, options, folder)
    seconds = time.monotonic() - started
    swift.close()
    return Naive(seconds, stored)


def _run(swift: Connection, options: Path, folder: Path) -> int:
    argv = ["mariadb-backup", f"--defaults-extra-file={options}", "--backup"]
    argv += ["--stream=xbstream", "--parallel=2", f"--target-dir={folder / 'target'}"]
    with (
        (folder / "engine.log").open("wb") as log,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log) as engine,
        subprocess.Popen(["gzip"], stdin=engine.stdout, stdout=subprocess.PIPE) as gzip,
    ):
        body = cast("IO[bytes]", gzip.stdout)
        swift.put_object("naive", "backup", body, chunk_size=_CHUNK)
        if engine.wait() or gzip.wait():
            raise RuntimeError(f"the naive backup failed: {(folder / 'engine.log').read_text()}")
    headers = swift.head_object("naive", "backup")
    return int(headers["content-length"])
