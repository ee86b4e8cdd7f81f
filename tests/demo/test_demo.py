"""The demo's foundations: differences are found, forged records refused, Ctrl-C cleans up."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey
from tests.conftest import need
from tests.demo import foreign
from tests.demo.changes import differences
from tests.house.source import CHECKOUT
from tests.stack.fixtures_swift import need_swift
from tests.stack.rabbitmq import SERVER

MASTER = bytes(range(32))


def test_differences() -> None:
    source = {"shop.a": 1, "shop.b": 2}
    assert differences(source, dict(source)) == []
    assert differences(source, {"shop.a": 1}) == ["shop.b is missing"]
    assert differences(source, {**source, "shop.c": 3}) == ["shop.c should not exist"]
    assert differences(source, {"shop.a": 1, "shop.b": 9}) == ["shop.b has checksum 9 instead of 2"]


class _Swift:
    """A stub that answers each GET with the same object."""

    def __init__(self, stored: bytes) -> None:
        self._stored = stored

    def get_object(self, _container: str, _name: str) -> tuple[dict[str, str], bytes]:
        return {}, self._stored


def test_the_foreign_reader_refuses_a_forged_record() -> None:
    signed = Keyring({"k": MasterKey("k", MASTER)}, "k").sign(b'{"id": "one"}')
    read: Any = foreign.read_record
    assert read(_Swift(signed), "c", "one", MASTER) == json.loads(b'{"id": "one"}')
    with pytest.raises(InvalidSignature):
        read(_Swift(signed.replace(b"one", b"two")), "c", "two", MASTER)


def test_the_foreign_reader_uses_nothing_of_ours() -> None:
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    argv = [sys.executable, "-I", "-c", code, foreign.__file__]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    assert "tink" in loaded.split()
    assert not {"agent", "tests"} & set(loaded.split())


def test_a_place_without_room_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    """Run script/demo itself, in a checkout in which bootstrap would leave a file."""
    (tmp_path / "script").mkdir()
    (tmp_path / "tests").symlink_to(CHECKOUT / "tests")
    for name in ("demo", "help"):
        (tmp_path / "script" / name).write_bytes((CHECKOUT / "script" / name).read_bytes())
    for name in ("demo", "bootstrap"):
        script = tmp_path / "script" / name
        if name == "bootstrap":
            script.write_text("#!/bin/sh\ntouch installed\nexit 7\n")
        script.chmod(0o755)
    room = shutil.disk_usage(tempfile.gettempdir()).free > 620 << 30
    for argument, code, says in (
        ("100000", 7 if room else 1, "" if room else "set TMPDIR to a folder with more space"),
        ("3", 2, "--rows-mb must be between"),
        ("16", 7, ""),
    ):
        argv = [str(tmp_path / "script" / "demo"), "--rows-mb", argument]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert (tmp_path / "installed").exists() == (code == 7)
        (tmp_path / "installed").unlink(missing_ok=True)


def test_ctrl_c_leaves_nothing(scratch: Path) -> None:
    need("mariadbd", "epmd", SERVER)
    need_swift()
    # pytest's tmp_path is too long for the path of a socket
    folder = scratch / "demo"
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.demo", "--rows-mb", "16"]
    env = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if line.startswith("[2/"):
                demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert list(folder.iterdir()) == []
