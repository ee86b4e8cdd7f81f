"""One machine for all system tests, which is booted, provisioned, and removed at their end.

These tests run only on request. Therefore a missing program fails them instead of skipping them.
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

# Debian's Python, because the machine has the same one
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
    """Download all packages that the machine installs, because it has no network."""
    wheels = folder / "wheels"
    for pins in ("constraints.txt", "constraints-swift.txt"):
        pip = [sys.executable, "-m", "pip", "--python", _PYTHON, "--disable-pip-version-check"]
        # take only published wheels: a wheel built here would have another hash than the pin
        argv = [*pip, "download", "--quiet", "--require-hashes", "--only-binary=:all:"]
        argv += ["-r", str(CHECKOUT / pins), "-d", str(wheels)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=170, check=False)
        if done.returncode:
            raise StackError(f"pip download failed:\n{done.stdout}\n{done.stderr}")
    return wheels


@pytest.fixture(scope="session")
def machine(folder: Path, wheels: Path) -> Iterator[Machine]:
    """Yield a machine with all three roles of script/provision and about 100 MiB of rows."""
    with Machine(folder / "machine", wheels) as one:
        one.run(f"{CHECKOUT_INSIDE}/script/provision", "control", "db", "agent", seconds=300)
        one.run("mariadb", text=_ROWS)
        yield one


@pytest.fixture
def agent(machine: Machine) -> Iterator[SystemAgent]:
    """Yield the agent's unit, running. A test's changes to the unit are undone."""
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
