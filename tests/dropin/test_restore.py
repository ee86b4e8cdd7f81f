"""Restores by the image's command line."""

import signal
import uuid
from pathlib import Path

import pytest

from agent.crash_points import VARIABLE
from tests.dropin.image import Image, Made
from tests.stack.mariadb import checksums_of

SEGMENTS = {"BACKUP_AGENT_PIPELINE__SEGMENT_BYTES": str(1 << 20)}


def change(image: Image) -> None:
    """Change the database, so that an incremental has something to store."""
    schema = f"s{uuid.uuid4().hex}"
    image.mariadb.query(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.t AS SELECT 1 AS a")
    image.mariadb.checkpoint()


def chain_of(image: Image) -> Made:
    full = image.backup(None, **SEGMENTS)
    change(image)
    first = image.backup(full)
    change(image)
    return image.backup(first)


def test_a_chain_comes_back_as_an_equal_database(image: Image, tmp_path: Path) -> None:
    last = chain_of(image)
    before = image.mariadb.checksums()
    done = image.restore(last, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == before
    assert (tmp_path / "back" / "xtrabackup_binlog_info").exists()  # a replica needs it


def test_an_encrypted_chain_comes_back(sealing: Image, tmp_path: Path) -> None:
    last = chain_of(sealing)
    with sealing.request("GET", f"/{last.id}.xbstream.gz") as answer:
        assert not answer.read(2).startswith(b"\x1f\x8b")
        assert answer.headers["X-Object-Meta-Cipher"] == "AES256_GCM_HKDF_1MB"
    before = sealing.mariadb.checksums()
    done = sealing.restore(last, tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert checksums_of(tmp_path / "back", tmp_path / "server") == before


def test_an_encrypted_backup_needs_the_key(sealing: Image, tmp_path: Path) -> None:
    made = sealing.backup()
    sealing.environment.clear()
    done = sealing.restore(made, tmp_path / "back")
    assert done.returncode == 1
    assert "FAILED key_not_here" in done.stderr.splitlines()[-1]


def test_a_backup_of_the_time_before_the_key_comes_back(
    image: Image, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    full = image.backup()
    request.getfixturevalue("sealing")
    change(image)
    last = image.backup(full)
    done = image.restore(last, tmp_path / "back")
    assert done.returncode == 0, done.stderr


def test_with_a_key_here_something_must_vouch_for_an_unsigned_backup(
    image: Image, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = image.backup()
    with image.request("GET", f"/{made.id}.xbstream.gz") as answer:
        image.put(f"/{made.id}.plain.gz", answer.read())
    request.getfixturevalue("sealing")
    plain = made._replace(location=made.location.replace(".xbstream", ".plain"))
    for number, one in enumerate((made, plain)):
        last = failed(image, one._replace(checksum="None"), tmp_path / str(number))
        assert "FAILED plaintext_refused" in last


def failed(image: Image, made: Made, target: Path) -> str:
    """Restore a backup that can't be restored, and return the last line."""
    done = image.restore(made, target)
    assert done.returncode not in (0, None)
    assert list(target.iterdir()) == []
    return done.stderr.splitlines()[-1]


def test_a_wrong_checksum(image: Image, tmp_path: Path) -> None:
    made = image.backup()
    last = failed(image, made._replace(checksum="0" * 32), tmp_path / "back")
    assert "FAILED data_damaged" in last


def test_a_missing_parent(image: Image, tmp_path: Path) -> None:
    full = image.backup()
    change(image)
    last = image.backup(full)
    image.delete(full)
    assert "FAILED backup_unusable" in failed(image, last, tmp_path / "back")


@pytest.mark.parametrize("change", ["lost", "changed"])
def test_a_damaged_segment(image: Image, tmp_path: Path, change: str) -> None:
    made = image.backup(None, **SEGMENTS)
    names = [name for name in image.names() if name.rpartition("/")[2].isdigit()]
    name = f"/{names[len(names) // 2]}"
    if change == "lost":
        image.request("DELETE", name).close()
    else:
        with image.request("GET", name) as answer:
            body = bytearray(answer.read())
        body[len(body) // 2] ^= 1
        image.put(name, bytes(body))
    assert "FAILED data_damaged" in failed(image, made, tmp_path / "back")


@pytest.mark.parametrize("point", ["restore-extracted", "restore-prepared"])
def test_the_next_restore_removes_what_a_killed_one_left(
    image: Image, tmp_path: Path, point: str
) -> None:
    made, target = image.backup(), tmp_path / "back"
    target.mkdir()
    arguments = image.restore_arguments(made, target)
    assert image.run(*arguments, **{VARIABLE: point}).returncode == -signal.SIGKILL
    assert list(target.iterdir())
    done = image.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert not [one for one in target.iterdir() if one.name.startswith(".backup-agent")]
