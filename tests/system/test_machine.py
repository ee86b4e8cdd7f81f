"""The tests' own machine leaves nothing behind, and Vagrant accepts the Vagrantfile."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.stack.process import poll
from tests.system.machine import CHECKOUT, Machine


def test_nothing_of_a_machine_is_left(folder: Path) -> None:
    with Machine(folder / "short", folder) as machine:
        assert machine.output("cat", "/proc/1/comm") == "systemd"
        assert machine.left_behind()
    assert machine.left_behind() == []


def test_nothing_is_left_of_a_machine_that_lost_its_container(folder: Path) -> None:
    with Machine(folder / "crashed", folder) as machine:
        machine.crash()
        poll("all of the machine is gone", lambda: not machine.left_behind(), 10)


def test_vagrant_takes_the_vagrantfile(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VAGRANT_CWD": str(CHECKOUT)}
    try:
        done = subprocess.run(
            ["vagrant", "validate", "--ignore-provider"],
            env=environment | {"VAGRANT_DOTFILE_PATH": str(tmp_path / "state")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except FileNotFoundError:
        pytest.fail("the system tests need vagrant: run script/bootstrap system")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
