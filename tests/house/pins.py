"""The pins of packages, each with its hashes. `script/pins` updates the hashes.

pip reports the packages that it would install for each version of Python and each machine that we
support, and the SHA-256 of each file. One pin has the hashes of all of them. To raise a version,
edit it and run `script/pins`.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.house.source import CHECKOUT

FILES: Final = (
    "constraints.txt",
    "constraints-dev.txt",
    "constraints-swift.txt",
    "constraints-trove.txt",
)
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
MACHINES: Final = ("x86_64", "aarch64")
# Wheels for these versions of glibc run on Debian 12, which has 2.36, and on later releases.
_GLIBC: Final = tuple(f"2_{minor}" for minor in range(36, 16, -1))
_AT_ONCE: Final = 4
_SECONDS: Final = 600
_PIN: Final = re.compile(r"([A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*)((?: \\\n    --hash=[^\s\\]+)*)\n")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})(?!\S)")


def pins(text: str) -> dict[str, list[str]]:
    """Return the SHA-256 hashes of each pin `name==version`.

    Raises:
        ValueError: the text has any other line, a pin twice, or a hash that is no SHA-256.
    """
    found, end = {}, 0
    for match in _PIN.finditer(text):
        if match.start() != end or match[1] in found:
            break
        found[match[1]], end = _HASH.findall(match[2]), match.end()
        if len(found[match[1]]) != match[2].count("--hash"):
            raise ValueError(f"{match[1]} has a hash that is no SHA-256")
    if end != len(text):
        raise ValueError(f"not one hashed pin after the other: {text[end:].splitlines()[0]}")
    return found


def written(hashes: Mapping[str, set[str]]) -> str:
    """Return the text of a file with these pins."""
    rows = (
        " \\\n    ".join([pin, *(f"--hash=sha256:{one}" for one in sorted(found))]) + "\n"
        for pin, found in hashes.items()
    )
    return "".join(rows)


def name_of(pin: str) -> str:
    """Return a pinned package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower()


def main() -> None:
    """Rewrite the hashes of each file. A file stays as it is if pip finds no wheel for a pin."""
    for file in FILES:
        path = CHECKOUT / file
        asked = list(pins(path.read_text()))
        found: dict[str, set[str]] = {pin: set() for pin in asked}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for name, digest in _all(pool, asked):
                [pin] = [one for one in asked if name_of(one) == name]
                found[pin].add(digest)
        text = written(found)
        print(f"{file}: {'as it was' if text == path.read_text() else 'written'}")
        path.write_text(text)


def _all(pool: ThreadPoolExecutor, asked: list[str]) -> Iterator[tuple[str, str]]:
    runs = [pool.submit(_wheels, asked, *one) for one in product(PYTHONS, MACHINES)]
    for run in runs:
        yield from run.result()


def _wheels(asked: list[str], python: str, machine: str) -> list[tuple[str, str]]:
    """Return the name and SHA-256 of each wheel that pip takes for this Python and machine."""
    with TemporaryDirectory() as folder:
        unhashed, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        unhashed.write_text("\n".join(asked))
        argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        argv += ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"]
        argv += [f"--target={folder}/none", f"--report={report}", f"--python-version={python}"]
        argv += [f"--platform=manylinux_{glibc}_{machine}" for glibc in _GLIBC]
        done = subprocess.run(
            [*argv, f"--platform=manylinux2014_{machine}", "-r", str(unhashed)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            sys.exit(f"no wheel for Python {python} on {machine}:\n{done.stderr}")
        rows = json.loads(report.read_text())["install"]
    return [
        (
            name_of(row["metadata"]["name"]),
            row["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
