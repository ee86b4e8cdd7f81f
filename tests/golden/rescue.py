"""Helpers that run the commands of docs/restore-without-the-agent.md, and the reader in docs/."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.house.source import CHECKOUT

DOCS: Final = CHECKOUT / "docs"
READER: Final = DOCS / "open_backup.py"
PAGE: Final = DOCS / "restore-without-the-agent.md"
_BLOCK: Final = re.compile(r"<!-- run: (\w+) -->\n```sh\n(.*?)```", re.DOTALL)


def blocks() -> dict[str, str]:
    """Return the commands of the page by the names in the comments before them."""
    return dict(_BLOCK.findall(PAGE.read_text()))


def follow(
    names: list[str], folder: Path, settings: dict[str, str | Path]
) -> "subprocess.CompletedProcess[str]":
    """Type the named blocks one after the other, in `folder`, with these shell variables.

    A person does the same: each block at the prompt, and no block after one that fails.
    """
    stop = 'status=$?; [ "$status" = 0 ] || exit "$status"\n'
    return _shell(["-c", "".join(blocks()[name] + stop for name in names)], folder, settings)


def at_a_prompt(
    typed: str, folder: Path, settings: dict[str, str | Path]
) -> "subprocess.CompletedProcess[str]":
    """Type these lines, to the last one, at the prompt of an interactive shell."""
    options = ["--norc", "--noprofile", "-i"]
    return _shell(options, folder, settings, given=typed)


def _shell(
    arguments: list[str], folder: Path, settings: dict[str, str | Path], given: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run `bash` in `folder` with the standard input `given`."""
    bin_folder = Path(sys.executable).parent  # python3 with `cryptography`, and swift
    variables = {"DOCS": DOCS, **settings, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", *arguments],
        cwd=folder,
        env={name: str(value) for name, value in variables.items()},
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        # an interactive shell would take the terminal of the user who runs the tests
        start_new_session=True,
    )


def read(
    record: Path, key: Path | str, stored: Path | str, given: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """Run the reader with the standard input `given`."""
    argv = [sys.executable, "-I", str(READER), str(record), str(key), str(stored)]
    return subprocess.run(argv, input=given, capture_output=True, timeout=60, check=False)
