"""Two agents never share a state folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigInvalid, JournalError
from agent.lock import only_agent

_HOLDER = """
import sys
from pathlib import Path
from agent.lock import only_agent
with only_agent(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_refused_until_the_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "state" / "lock"
    command = [sys.executable, "-c", _HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigInvalid, match="another agent runs already") as refused:
            only_agent(path).__enter__()
        assert refused.value.exit_status == 2
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
    with pytest.raises(JournalError, match="can't be made"), only_agent(tmp_path / "file" / "lock"):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_left_to_that_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ConfigInvalid, match="number 65534") as refused:
        only_agent(tmp_path / "lock").__enter__()
    assert "sudo -u '#65534'" in refused.value.hint
    assert list(tmp_path.iterdir()) == []
