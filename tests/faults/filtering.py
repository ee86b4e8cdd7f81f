"""A wrapper of the real mariadb-backup that falsifies its arguments or output. A script runs it.

A test gives it, as the global `MODE`, the path of a file that holds one of the words below. With
any other word it only starts the program.

- `unproved`: the closing `completed OK!` is missing
- `cut`: the last 64 KiB of the stream are missing
- `gap`: one table's file is missing, and the stream is otherwise complete
- `future`: an incremental starts at an LSN that the server will not reach for a long time
- `flood`: 10 MiB of lines and one unfinished line of 10 MiB are on standard error
- `flooded cause`: a line with the cause, the same flood, exit status 1
"""

import os
import struct
import subprocess
import sys
from pathlib import Path

MODE: str = globals()["MODE"]
PROGRAM = "mariadb-backup"
LEFT_OUT = b"./shop/events.ibd"
FUTURE = 10**12
CUT = 64 << 10


def main(arguments: list[str]) -> None:
    mode = Path(MODE).read_text() if "--backup" in arguments else ""
    if mode.startswith("flood"):
        if mode == "flooded cause":
            say("[00] FATAL ERROR: 2024-05-06 07:08:09 the sky has fallen")
        flood()
        if mode == "flooded cause":
            sys.exit(1)
    if mode == "future":
        arguments = [later(argument) for argument in arguments]
    if mode in ("unproved", "cut", "gap"):
        filtered(arguments, mode)
    else:
        os.execvp(PROGRAM, [PROGRAM, *arguments])  # noqa: S606


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def flood() -> None:
    line = "x" * 1023
    for _ in range(10 << 10):
        say(line)
    for _ in range(10):
        print("y" * (1 << 20), end="", file=sys.stderr)
    say("")


def later(argument: str) -> str:
    name, _, value = argument.partition("=")
    return f"{name}={int(value) + FUTURE}" if name == "--incremental-lsn" else argument


def filtered(arguments: list[str], mode: str) -> None:
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, check=False)
    stream = done.stdout
    if mode == "cut":
        stream = stream[:-CUT]
    if mode == "gap":
        stream = without(stream, LEFT_OUT)
    sys.stdout.buffer.write(stream)
    sys.stdout.buffer.flush()
    for line in done.stderr.decode(errors="replace").splitlines():
        if mode != "unproved" or "completed OK!" not in line:
            say(line)
    sys.exit(done.returncode)


def without(stream: bytes, left_out: bytes) -> bytes:
    """Return the xbstream without the chunks of one file."""
    kept, at = [], 0
    while at < len(stream):
        end = at + 14 + struct.unpack_from("<I", stream, at + 10)[0]
        name, kind = stream[at + 14 : end], stream[at + 9 : at + 10]
        if kind != b"E":
            assert kind == b"P", f"a chunk of type {kind!r}"
            end += 20 + struct.unpack_from("<Q", stream, end)[0]
        if name.removeprefix(b"./") != left_out.removeprefix(b"./"):
            kept.append(stream[at:end])
        at = end
    whole = b"".join(kept)
    assert len(whole) < len(stream), "there is no such file in the stream"
    return whole


if __name__ == "__main__":
    main(sys.argv[1:])
