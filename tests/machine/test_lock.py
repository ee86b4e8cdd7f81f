"""Tests of the locks.

Two agents never share a state directory, and never back up the same datadir at the same time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigInvalid, InstanceBusy, JournalError
from agent.machine.lock import only_agent, only_backup
from tests.stack.mariadb import MariaDB

_HOLDER = """
import sys
from pathlib import Path
from agent.machine.lock import only_agent, only_backup
with {"agent": only_agent, "backup": only_backup}[sys.argv[2]](Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lock"
    command = [sys.executable, "-c", _HOLDER, str(path), "agent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InstanceBusy, match="another agent runs already") as refused:
            only_agent(path).__enter__()
        assert refused.value.exit_status == 1
        holder.kill()
    with only_agent(path):
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_holders_own_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), only_agent(tmp_path / "lock"):
        raise BlockingIOError
    with only_agent(tmp_path / "lock"):
        pass


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(JournalError, match="can't create or open the lock file"),
        only_agent(tmp_path / "file" / "lock"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_left_to_that_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(
        ConfigInvalid, match="belongs to nobody, but this process runs as root"
    ) as refused:
        only_agent(tmp_path / "lock").__enter__()
    assert "systemctl start backup-agent" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_one_backup_at_a_time_of_a_datadir_whose_server_runs(mariadb: MariaDB) -> None:
    """The server locks its files but not the directory. The agent creates no file there."""
    before = sorted(mariadb.datadir.iterdir())
    command = [sys.executable, "-c", _HOLDER, str(mariadb.datadir), "backup"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InstanceBusy, match=f"process {holder.pid} makes"):
            only_backup(mariadb.datadir).__enter__()
        assert sorted(mariadb.datadir.iterdir()) == before
        holder.kill()
    with only_backup(mariadb.datadir):
        pass


def test_a_datadir_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="can't open the datadir"):
        only_backup(tmp_path / "missing").__enter__()
