"""The stack leaves no process behind, however it ends, and can play the operator's image."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.stack.process import poll
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import TroveStack
from tests.trove.conftest import need_trove

_RUN = """
import signal, sys
from pathlib import Path
from tests.stack.trove.stack import TroveStack
with TroveStack(Path(sys.argv[1])) as stack:
    stack.create_instance("one")
    print("up", flush=True)
    signal.pause()
"""


def test_a_killed_stack_leaves_no_process(tmp_path: Path) -> None:
    need_trove()
    argv = [sys.executable, "-c", _RUN, str(tmp_path / "s")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        processes = psutil.Process(run.pid).children(recursive=True)
        names = {one.name() for one in processes}
        assert {"mariadbd", "trove-guestagen", "trove-conductor"} <= names
        run.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_the_guest_agent_comes_back(trove_stack: TroveStack, source: Instance) -> None:
    killed = source.guest_agent()
    killed.kill()

    def back() -> bool:
        return [one.pid for one in source.processes("trove-guestagent")] not in ([], [killed.pid])

    poll("another guest agent", back, 20)
    trove_stack.delete_backup(trove_stack.backup("after", source)["id"])


def test_an_image_has_its_own_files_and_variables(
    trove_stack: TroveStack, source: Instance
) -> None:
    code = trove_stack.images_file.parent / "main.py"
    code.write_text(
        "import os, sys\n"
        "print(os.environ['KEY'], open('/etc/image/key').read(), os.getcwd(), flush=True)\n"
        "open('/var/tmp/left', 'x')\n"
        "print('one line of an error', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    key = code.with_name("key")
    key.write_text("sealed")
    own = "/etc/image"
    trove_stack.use_image(
        "drop-in",
        environment={"KEY": "k"},
        files={f"{own}/key": key, f"{own}/main.py": code},
        directory=own,
    )
    for _ in range(2):  # the file that one container left isn't there for the next
        backup_id = trove_stack.create_backup("own", source)
        assert trove_stack.wait_backup(backup_id)["status"] == "FAILED"
        assert source.container_logs("db_backup")[-1].read_text().splitlines() == [
            "k sealed /etc/image",
            "one line of an error",
        ]
        trove_stack.delete_backup(backup_id)
    container = source.container("db_backup")
    assert container is not None
    assert container["State"]["ExitCode"] == 3


def test_a_missing_tag_fails_the_backup(trove_stack: TroveStack, source: Instance) -> None:
    trove_stack.use_image("trove", tags=["11.4"])
    backup_id = trove_stack.create_backup("tag", source)
    assert trove_stack.wait_backup(backup_id)["status"] == "FAILED"
    assert "No backup image found" in source.guest_log.read_text()
    trove_stack.delete_backup(backup_id)
