"""Restores of what Trove's own image has stored, alone and continued by the drop-in."""

import gzip
from pathlib import Path

import pytest

from tests.codec.test_openssl_enc import FORMS
from tests.dropin.foreign import KEY, SEGMENT, Stream, TroveStorage, copied, encrypted
from tests.dropin.image import Image, Made
from tests.dropin.test_restore import change
from tests.stack.mariadb import checksums_of


def restored(image: Image, made: Made, folder: Path, key: str = "") -> dict[str, int]:
    """Restore a backup that must be good, and return the checksums of its tables."""
    target = folder / "back"
    target.mkdir()
    arguments = image.restore_arguments(made, target)
    done = image.run(*arguments, *([f"--backup-encryption-key={key}"] if key else []))
    assert done.returncode == 0, done.stderr
    return checksums_of(target, folder / "server")


def test_a_plain_object(image: Image, trove: TroveStorage, full: Stream, tmp_path: Path) -> None:
    assert restored(image, trove.plain(full), tmp_path) == full.tables


@pytest.mark.parametrize("headers", [True, False])
def test_a_manifest(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path, headers: bool
) -> None:
    assert len(full.stored) > 2 * SEGMENT
    made = trove.joined(full, headers=headers)
    assert restored(image, made, tmp_path) == full.tables


def test_a_last_segment_without_bytes(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """Trove stores it if the stream ends with a segment. Swift accepts it as the last one."""
    made = trove.joined(full, end=[b""])
    assert restored(image, made, tmp_path) == full.tables


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[1])
def test_what_openssl_encrypted(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path, form: tuple[str, ...]
) -> None:
    made = trove.joined(encrypted(full, form), suffix=".enc")
    assert restored(image, made, tmp_path, KEY) == full.tables


def test_a_chain_of_trove(image: Image, trove: TroveStorage, full: Stream, tmp_path: Path) -> None:
    first = trove.joined(full)
    change(image)
    second = copied(image.mariadb, tmp_path, full.lsn)
    middle = trove.plain(second, first)
    change(image)
    last = copied(image.mariadb, tmp_path, second.lsn)
    assert restored(image, trove.plain(last, middle), tmp_path) == last.tables


@pytest.mark.parametrize("kind", ["plain", "joined"])
def test_a_chain_that_goes_on_with_the_drop_in(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path, kind: str
) -> None:
    parent = trove.plain(full) if kind == "plain" else trove.joined(full)
    change(image)
    first = image.backup(parent)
    change(image)
    last = image.backup(first)
    assert restored(image, last, tmp_path) == image.mariadb.checksums()


# --- failures ----------------------------------------------------------------------------------


def failed(image: Image, made: Made, folder: Path, key: str = "") -> str:
    """Restore a backup that can't be restored, and return the last line."""
    target = folder / "back"
    target.mkdir()
    arguments = image.restore_arguments(made, target)
    keys = [f"--backup-encryption-key={key}"] if key else []
    done = image.run(*arguments, *keys, BACKUP_AGENT_STORE__ATTEMPTS="1")
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    assert list(target.iterdir()) == []
    return done.stderr.splitlines()[-1]


def changed(stored: bytes) -> bytes:
    """Return the bytes with one bit changed in their middle."""
    body = bytearray(stored)
    body[len(body) // 2] ^= 1
    return bytes(body)


def test_a_changed_byte_in_a_plain_object(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """Trove noted the checksum of the bytes that it stored, but the store has others."""
    made = trove.plain(full)
    image.put(f"/{made.id}.xbstream.gz", changed(full.stored))
    last = failed(image, made, tmp_path)
    assert "FAILED data_damaged" in last
    assert "replaced or changed" in last


def test_a_byte_that_was_changed_before_it_was_stored(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """All checksums of the store are right. Only that of gzip, at its end, shows the change."""
    stored = full.stored[:-8] + bytes(4) + full.stored[-4:]
    last = failed(image, trove.plain(full._replace(stored=stored)), tmp_path)
    assert "FAILED data_damaged" in last
    assert "fails its CRC-32" in last


@pytest.mark.parametrize("change", ["lost", "changed", "shortened"])
def test_a_segment_in_the_middle(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path, change: str
) -> None:
    made = trove.joined(full)
    name = f"/{made.id}_00000001"
    if change == "lost":
        image.request("DELETE", name).close()
    else:
        part = full.stored[SEGMENT : 2 * SEGMENT]
        image.put(name, part[:-1] if change == "shortened" else changed(part))
    assert "FAILED data_damaged" in failed(image, made, tmp_path)


def test_a_gzip_stream_that_ends_too_early(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    last = failed(image, trove.plain(full._replace(stored=full.stored[:-100])), tmp_path)
    assert "FAILED data_damaged" in last
    assert "ends in the middle of gzip member 0" in last


def test_an_object_that_is_no_gzip(image: Image, trove: TroveStorage, tmp_path: Path) -> None:
    last = failed(image, trove.plain(Stream(b"# a note\n" * 1000, 1, {})), tmp_path)
    assert "FAILED data_damaged" in last
    assert "not gzip" in last


def test_a_gzip_stream_of_something_else(image: Image, trove: TroveStorage, tmp_path: Path) -> None:
    last = failed(image, trove.plain(Stream(gzip.compress(b"# a note\n" * 9), 1, {})), tmp_path)
    assert "FAILED content_refused" in last


@pytest.mark.parametrize(("key", "says"), [("wrong", "does not decrypt"), ("", "no key is given")])
def test_an_openssl_key(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path, key: str, says: str
) -> None:
    made = trove.plain(encrypted(full, FORMS[2]), suffix=".enc")
    last = failed(image, made, tmp_path, key)
    assert "FAILED key_not_here" in last
    assert says in last


def test_another_checksum(image: Image, trove: TroveStorage, full: Stream, tmp_path: Path) -> None:
    made = trove.joined(full)._replace(checksum="0" * 32)
    assert "FAILED data_damaged" in failed(image, made, tmp_path)


def test_an_incremental_that_names_no_parent(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """Trove 14 to 23 noted the parent of a large backup in their own database only."""
    change(image)
    rest = copied(image.mariadb, tmp_path, full.lsn)
    first, second = trove.joined(full), trove.joined(rest, headers=False)
    last = failed(image, second, tmp_path)
    assert "FAILED backup_unusable" in last
    assert "names no parent" in last
    parent = {"Parent-Location": first.location, "Parent-Checksum": first.checksum}
    headers = {f"X-Object-Meta-{name}": value for name, value in parent.items()}
    image.request("POST", f"/{second.id}.xbstream.gz", headers).close()
    (tmp_path / "back").rmdir()
    assert restored(image, second, tmp_path) == image.mariadb.checksums()
