"""What the demo rests on: differences show, forged records fail, Ctrl-C cleans up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature

from agent.keys import Keyring, MasterKey
from tests.conftest import need
from tests.demo import foreign
from tests.demo.changes import differences
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
    """Answers a GET with what it holds."""

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


def test_ctrl_c_leaves_nothing(scratch: Path) -> None:
    need("mariadbd", "epmd", SERVER)
    need_swift()
    # not pytest's tmp_path, which is too long for the path of a socket
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
