"""Children end on request, their output is always drained, and they leave nothing behind."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from agent.engine import process
from agent.engine.log_tail import KEPT_LINES, LINE_BYTES, TAIL_LINES, LogTail
from agent.engine.process import PIPE_BYTES, Child
from agent.errors import EngineFailed, EngineMissing, EngineSilent
from tests.conftest import need
from tests.engine.scripts import held, known, nothing_left_since, script
from tests.stack.process import poll

SETTING = "[engine] program"
IGNORES_SIGINT = "signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True)"


@given(st.lists(st.binary(max_size=300), max_size=30))
def test_tail_is_the_same_however_the_bytes_are_cut(blocks: list[bytes]) -> None:
    cut, whole = LogTail(), LogTail()
    for block in blocks:
        cut.feed(block)
    whole.feed(b"".join(blocks))
    for tail in (cut, whole):
        tail.end()
    lines = b"".join(blocks).split(b"\n")
    if all(len(line) <= LINE_BYTES for line in lines):
        assert cut.lines() == whole.lines()
        texts = [line.decode(errors="replace").rstrip() for line in lines]
        assert whole.lines() == [text for text in texts if text][-TAIL_LINES:]


def test_tail_is_bounded_and_keeps_what_tells() -> None:
    tail = LogTail(re.compile("ERROR"))
    tail.feed(b"ERROR the cause\n")
    for _ in range(1000):
        tail.feed(b"x" * 10_000)
        tail.feed(b"\nERROR again\nnoise\n" * 10)
    assert len(tail.lines()) == TAIL_LINES
    assert len(tail.kept()) == KEPT_LINES
    assert tail.kept()[0] == "ERROR the cause"
    assert max(map(len, tail.lines())) == LINE_BYTES
    for _ in range(100):
        tail.feed(b"y" * 10_000)
        assert len(tail._partial) == LINE_BYTES


_TIME = "[01] 2024-05-06 07:08:09 "
_NAMED = (
    "Copied file ./d/Failed@0020to.MYD for table `d`.`Failed to`, 0 bytes",
    "Streaming ./d/Failed to.frm to <STDOUT>",
    "        ...done",
    "Skip table Failed to.x at it is in exclude list",
    "Error on BACKUP LOCK for aria table `Failed to`.`x` Failed to`y`",
    "Skip table d.n\nFATAL ERROR: Failed to\n\nFailed to at it is in exclude list",
    "Copied file ./d/a@000a.MYD for table `d`.`a\n[00] FATAL ERROR: Failed to`, 1024 bytes",
)


@pytest.mark.parametrize("line", _NAMED)
def test_a_name_is_no_message(line: str) -> None:
    tail = LogTail(re.compile("Failed to"), re.compile("Failed to"))
    tail.feed(f"{_TIME}{line}\n".encode() * 30)
    assert tail.kept() == []
    assert not any("Failed to" in said for said in tail.messages())
    tail.feed(f"{_TIME}FATAL ERROR: Failed to `x`\n".encode())
    assert tail.kept() == [f"{_TIME}FATAL ERROR: Failed to `x`"]
    assert tail.messages()[0] == f"{_TIME}FATAL ERROR: Failed to ..."


def test_a_name_that_does_not_end_hides_no_loss_and_little_else() -> None:
    tail = LogTail(re.compile("Failed to"), re.compile("lost|Failed"))
    tail.feed(f"{_TIME}Skip table d.n\n{_TIME}lost rows\n".encode())
    assert tail.lost == "lost rows"
    tail.feed(b"x\n" * 63 + b"Failed to\n")
    assert tail.kept() == ["Failed to"]


def test_tail_hides_password_hashes() -> None:
    tail = LogTail()
    tail.feed(b"1.GRANT RELOAD ON *.* TO `a`@`b` IDENTIFIED BY PASSWORD '*69F1'\n")
    tail.feed(b"GRANT USAGE ON *.* TO `a`@`b` IDENTIFIED VIA ed25519 USING '69F1' OR unix_socket\n")
    assert "69F1" not in "".join(tail.lines())
    assert len(tail.lines()) == 2


def test_a_flood_on_standard_error_blocks_nothing(tmp_path: Path) -> None:
    body = (
        "sys.stderr.write('noise ' * 20 + '\\n' + 'y' * 10_000_000 + '\\nlast\\n')\nprint('done')"
    )
    with Child([script(tmp_path / "flood", body)], setting=SETTING, stdout=True) as child:
        assert child.stdout.read() == b"done\n"
        assert child.wait(20) == 0
        assert child.log.lines()[-1] == "last"


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_missing_program_names_the_setting(tmp_path: Path, mode: int | None) -> None:
    program = tmp_path / "mariadb-backup"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    with pytest.raises(EngineMissing, match=re.escape(str(program))) as caught:
        Child([str(program)], setting=SETTING)
    assert SETTING in caught.value.hint


def test_a_file_that_is_no_program_is_an_engine_error(tmp_path: Path) -> None:
    program = tmp_path / "engine"
    program.write_bytes(b"\0\1\2")
    program.chmod(0o755)
    with pytest.raises(EngineFailed, match="can't start"):
        Child([str(program)], setting=SETTING)


def test_interrupt_is_sigint_first(tmp_path: Path) -> None:
    body = (
        "def end(*_):\n    print('ending', file=sys.stderr)\n    sys.exit(7)\n"
        "signal.signal(signal.SIGINT, end)\nprint('on', flush=True)\ntime.sleep(60)"
    )
    with Child([script(tmp_path / "polite", body)], setting=SETTING, stdout=True) as child:
        assert child.stdout.read(10) == b"on\n"
        child.interrupt()
        assert child.wait(10) == 7
        assert child.log.lines() == ["ending"]
        assert child.interrupted


def test_what_ignores_sigint_is_killed_after_the_grace(tmp_path: Path) -> None:
    program = script(tmp_path / "deaf", f"{IGNORES_SIGINT}\ntime.sleep(60)")
    with Child([program], setting=SETTING, stdout=True, grace=0.5) as child:
        assert child.stdout.read(10) == b"on\n"
        began = time.monotonic()
        child.interrupt()
        child.interrupt()
        assert time.monotonic() - began < 0.3
        assert child.wait(10) == -signal.SIGKILL
        assert 0.5 <= time.monotonic() - began < 3


def test_the_whole_group_goes_and_nothing_is_left(tmp_path: Path) -> None:
    body = "other = subprocess.Popen(['sleep', '60'])\nprint(other.pid, flush=True)\ntime.sleep(60)"
    with Child([script(tmp_path / "parent", body)], setting=SETTING, stdout=True) as child:
        grandchild = int(child.stdout.read(20))
        assert known(grandchild)
    assert not known(child.pid)
    assert child.returncode == -signal.SIGKILL
    # Init reaps orphans, but not at once.
    poll("the grandchild is dead", lambda: not _runs(grandchild), 5)
    child.close()
    child.interrupt()


def test_waiting_has_a_deadline(tmp_path: Path) -> None:
    with (
        Child([script(tmp_path / "sleeper", "time.sleep(60)")], setting=SETTING) as child,
        pytest.raises(EngineSilent, match=r"sleeper did not end within 0\.2 s"),
    ):
        child.wait(0.2)
    assert not known(child.pid)


def test_a_child_inherits_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"MYSQL_PWD": "secret", "MYSQL_TCP_PORT": "1", "MYSQL_UNIX_PORT": "/none"}
    hostile |= {"MYSQL_HOME": "/h", "MARIADB_HOME": "/h", "LD_LIBRARY_PATH": "/h", "TMPDIR": "/h"}
    hostile |= {"LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "BACKUP_AGENT_STORE__USER": "someone"}
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    program = script(tmp_path / "shows", "print(sorted(os.environ.items()), os.getcwd())")
    mark = {"MARK": "1"}
    with Child([program], setting=SETTING, stdout=True, environment=mark) as child:
        shown = child.stdout.read(10_000).decode()
    expected = {"HOME": "/nonexistent", "LC_ALL": "C.UTF-8", "MARK": "1"}
    expected["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert shown == f"{sorted(expected.items())} /\n"


def test_a_program_is_found_by_the_agents_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "only-here", "print(sys.argv[0])")
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    with Child(["only-here"], setting=SETTING, stdout=True) as child:
        assert child.stdout.read(1000).decode() == f"{tmp_path}/only-here\n"
    monkeypatch.chdir(tmp_path)
    with Child(["./only-here"], setting=SETTING, stdout=True) as child:
        assert child.stdout.read(1000).decode() == f"{tmp_path}/only-here\n"


def test_priority_pipes_umask_and_core_files(tmp_path: Path) -> None:
    body = "print(oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_CORE), flush=True)"
    program = script(tmp_path / "shows", f"import resource\nsys.stdin.read(1)\n{body}")
    with Child([program], setting=SETTING, stdin=True, stdout=True, niceness=7) as child:
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == max(7, os.nice(0))
        for pipe in (child.stdin, child.stdout):
            assert fcntl.fcntl(pipe.fileno(), fcntl.F_GETPIPE_SZ) == PIPE_BYTES
        child.stdin.close()
        assert child.stdout.read(100) == b"0o77 (0, 0)\n"
        assert child.wait(10) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_child_without_the_right_to_set_its_priority() -> None:
    """Most containers have no CAP_SYS_NICE."""
    need("setpriv")
    code = (
        "from agent.machine.os_user import OsUser\nfrom agent.engine.process import Child\n"
        "with Child(['true'], setting='', niceness=19, user=OsUser(54321, 54322, ())) as child:\n"
        "    print(child.wait(10))"
    )
    argv = ["setpriv", "--bounding-set", "-sys_nice", sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("confined", [False, True])
def test_nothing_is_left_of_a_child_that_can_not_be_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: bool
) -> None:
    def fail(pid: int, _niceness: int) -> None:
        pids.append(pid)
        raise OSError("no priority")

    pids: list[int] = []
    monkeypatch.setattr(process, "_be_nice", fail)
    before = held()
    writable = [tmp_path] if confined else None
    with pytest.raises(OSError, match="no priority"):
        Child(["sleep", "60"], setting=SETTING, stdin=True, stdout=True, writable=writable)
    assert [pid for pid in pids if known(pid)] == []
    assert nothing_left_since(before)


def test_a_streaming_child_dies_with_the_agent(tmp_path: Path) -> None:
    endless = script(tmp_path / "endless", "while True: os.write(1, bytes(65536))")
    agent = (
        "import signal\nfrom agent.engine.process import Child\n"
        f"child = Child([{endless!r}], setting='', stdout=True)\n"
        "child.stdout.read(1)\nprint(child.pid, flush=True)\nsignal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _runs(pid)
        parent.kill()
    poll("the child is gone", lambda: not _runs(pid), 5)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
