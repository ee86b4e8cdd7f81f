"""`script/install` installs the agent of the checkout, and leaves the checkout clean."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.house.source import CHECKOUT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the checkout, in which a test may change files."""
    copied = tmp_path / "checkout"
    copied.mkdir()
    for name in ("agent", "script"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / name, copied / name, ignore=hidden)
    for name in ("constraints.txt", "pyproject.toml", "README.md"):
        shutil.copy(CHECKOUT / name, copied)
    return copied


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Return a virtual environment that has all packages of the running one."""
    made = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", made], check=True)
    [packages] = made.glob("lib/*/site-packages")
    (packages / "those-here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def install(checkout: Path, environment: Path) -> str:
    """Run `script/install` outside the checkout, with a relative path. Return its output."""
    argv = [str(checkout / "script" / "install"), environment.name]
    done = subprocess.run(
        argv, cwd=environment.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_upgrade_brings_no_removed_module_back(checkout: Path, environment: Path) -> None:
    removed = checkout / "agent" / "removed.py"
    removed.touch()
    before = set(checkout.rglob("*"))
    assert f"is {environment}/bin/backup-agent" in install(checkout, environment)
    assert list(environment.glob("lib/*/site-packages/agent/removed.py"))
    assert set(checkout.rglob("*")) == before
    removed.unlink()
    install(checkout, environment)
    assert list(environment.glob("lib/*/site-packages/agent/cli"))
    assert not list(environment.glob("lib/*/site-packages/agent/removed.py"))
