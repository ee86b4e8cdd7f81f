"""Prepares of a backup of a server with encryption at rest.

They run with the server's keys, without keys, and with other keys.
"""

from pathlib import Path

import pytest

from agent.codec.mariadb_stream import MendingParser
from agent.codec.metadata import parse_checkpoints
from agent.errors import PrepareFailed
from tests.conftest import need
from tests.engine.test_mariadb import backup, engine_of, extract, prepare
from tests.stack.mariadb import SMALL_SERVER, MariaDB

KEYS = "1;" + "ab" * 32 + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the server's `keys` and the `stream` of a backup of it."""
    need("mariadbd", "mariadb-install-db", "mariadb-backup", "mbstream")
    folder = tmp_path_factory.mktemp("encrypted")
    (folder / "keys").write_text(KEYS)
    options = {
        "plugin-load-add": "file_key_management.so",
        "loose-file-key-management-filename": str(folder / "keys"),
        "innodb-encrypt-tables": "ON",
        "innodb-encrypt-log": "ON",
    }
    server = MariaDB(folder / "server", options=SMALL_SERVER | options)
    server.install()
    try:
        server.start()
        server.create_agent_user()
        server.load_rows(2)
        backup(engine_of(server), folder / "stream")
    finally:
        server.stop()
    return folder


def prepared(place: Path, name: str) -> None:
    engine = engine_of(MariaDB(place / "server"))
    extract(engine, place / "stream", place / name)
    prepare(engine, place / name)


def test_its_redo_log_is_known_whole(place: Path) -> None:
    """The log is encrypted, and each of its ends has a nonce."""
    parser = MendingParser()
    parser.mend(memoryview((place / "stream").read_bytes()))
    parser.finish()
    last = parse_checkpoints(parser.metadata["checkpoints"]).last_lsn
    assert parser.redo.fault(last) is None
    assert "it ends at LSN" in str(parser.redo.fault(last + (1 << 20)))
    parser.redo.add(memoryview(b"x"))
    assert "is damaged" in str(parser.redo.fault(last))


def test_with_its_keys_it_is_prepared(place: Path) -> None:
    (place / "keys").write_text(KEYS)
    prepared(place, "own")


@pytest.mark.parametrize(
    ("name", "keys", "hint"),
    [
        ("none", None, "its keys are not here"),
        ("other-id", "2;" + "ab" * 32 + "\n", "its keys are not here"),
        ("wrong", "1;" + "cd" * 32 + "\n", "key file or keyring on this machine is that server's"),
    ],
)
def test_without_them_the_hint_speaks_of_keys(
    place: Path, name: str, keys: str | None, hint: str
) -> None:
    (place / "keys").unlink(missing_ok=True)
    if keys is not None:
        (place / "keys").write_text(keys)
    with pytest.raises(PrepareFailed, match="mariadb-backup ended with status 1") as caught:
        prepared(place, name)
    assert hint in caught.value.hint
