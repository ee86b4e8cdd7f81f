"""One machine for all system tests: booted, provisioned, and gone at their end.

Whoever asks for these tests wants them: what they lack fails them, and skips nothing.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack.process import StackError
from tests.system.agent import SystemAgent
from tests.system.machine import CHECKOUT, CHECKOUT_INSIDE, Machine

# Debian's, because that is what the machine has
_PYTHON = "/usr/bin/python3"
_PROGRAMS = ("systemd-nspawn", "nsenter", "unshare", "mariadbd", "mariadb-backup", _PYTHON)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    if os.geteuid():
        pytest.fail("the system tests boot a container: run script/test system as root")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.fail(f"the system tests need {', '.join(missing)}: run script/bootstrap system")
    path = Path(tempfile.mkdtemp(prefix="backup-agent-system-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def wheels(folder: Path) -> Path:
    """All packages that the machine installs: it has no network."""
    wheels = folder / "wheels"
    for pins in ("constraints.txt", "constraints-swift.txt"):
        pip = [sys.executable, "-m", "pip", "--python", _PYTHON, "--disable-pip-version-check"]
        # as they are: a wheel that was built here would have another hash than the pin
        argv = [*pip, "download", "--quiet", "--require-hashes", "--only-binary=:all:"]
        argv += ["-r", str(CHECKOUT / pins), "-d", str(wheels)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=170, check=False)
        if done.returncode:
            raise StackError(f"pip download failed:\n{done.stdout}\n{done.stderr}")
    return wheels


@pytest.fixture(scope="session")
def machine(folder: Path, wheels: Path) -> Iterator[Machine]:
    """With all three roles of script/provision, and some 100 MiB of rows."""
    with Machine(folder / "machine", wheels) as one:
        one.run(f"{CHECKOUT_INSIDE}/script/provision", "control", "db", "agent", seconds=300)
        one.run("mariadb", text=_ROWS)
        yield one


@pytest.fixture
def agent(machine: Machine) -> Iterator[SystemAgent]:
    """The agent's unit, running; whatever a test changed about it is undone."""
    one = SystemAgent(machine)
    one.restart()
    yield one
    one.undo_drop_in()


_ROWS = """\
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id INT PRIMARY KEY, remark VARCHAR(300), total DECIMAL(12, 2));
INSERT INTO shop.orders
  SELECT seq, CONCAT(SHA2(seq, 512), SHA1(seq), ' order ', seq), CRC32(seq) / 100
  FROM shop.seq_1_to_300000;
"""
