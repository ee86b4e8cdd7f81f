"""Tests of messages to the systemd journal, on real datagram sockets."""

import os
import socket
import time
from pathlib import Path

from hypothesis import given, strategies as st

from agent.machine.journald import JournalSocket, encode, is_journal
from tests.stack.journal import Journal, fields_of

NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_no_value_makes_a_field(fields: dict[str, str]) -> None:
    assert list(fields_of(encode(fields))) == list(fields.items())


def test_a_value_that_is_no_utf_8_is_escaped() -> None:
    assert list(fields_of(encode({"A": "x\udc80\nB=y"}))) == [("A", "x\\udc80\nB=y")]


def test_a_message_arrives(tmp_path: Path) -> None:
    sender = JournalSocket(tmp_path / "socket")
    assert not sender.usable()
    assert not sender.send({"MESSAGE": "lost"})
    with Journal(tmp_path / "socket") as journal:
        assert sender.usable()
        assert sender.send({"MESSAGE": "two\nlines", "PRIORITY": "6"})
        assert journal.wait_for("two") == {"MESSAGE": "two\nlines", "PRIORITY": "6"}


def test_what_is_no_socket_of_a_journal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not JournalSocket(tmp_path / "file").usable()
    assert not JournalSocket(tmp_path / ("x" * 200)).send({"MESSAGE": "a path that is too long"})


def test_a_message_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    with Journal(tmp_path / "socket") as journal:
        sender = JournalSocket(journal.path)
        assert not sender.send({"MESSAGE": "x" * (64 << 20)})
        assert sender.send({"MESSAGE": "the next"})
        journal.wait_for("the next")


def test_a_journal_that_does_not_read_holds_only_one_message(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "socket"))
        sender = JournalSocket(tmp_path / "socket")
        began = time.monotonic()
        assert any(not sender.send({"MESSAGE": "x"}) for _ in range(10_000))
        assert 0.5 < time.monotonic() - began < 10
        began = time.monotonic()
        assert not any(sender.send({"MESSAGE": "x"}) for _ in range(100))
        assert time.monotonic() - began < 0.5
        # a journal that reads again gets the next message
        deaf.recv(64)
        assert sender.send({"MESSAGE": "x"})


def test_a_stream_to_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        found = os.fstat(log.fileno())
        named = f"{found.st_dev}:{found.st_ino}"
        assert is_journal(log.fileno(), {"JOURNAL_STREAM": named})
        assert not is_journal(log.fileno(), {"JOURNAL_STREAM": named + "1"})
        assert not is_journal(log.fileno(), {})
        closed = log.fileno()
    assert not is_journal(closed, {"JOURNAL_STREAM": named})
