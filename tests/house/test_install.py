"""What `script/install` leaves behind: the agent as the checkout has it, and a clean checkout."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.house.source import CHECKOUT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose files may be changed."""
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
    """A virtual environment that has all packages already, those of this one."""
    made = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", made], check=True)
    [packages] = made.glob("lib/*/site-packages")
    (packages / "those-here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


def install(checkout: Path, environment: Path) -> str:
    """Run it elsewhere than in the checkout, with a relative path; return what it says."""
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
