"""Incrementals on parents that Trove's own image made: is the parent a backup of this datadir?"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.codec.test_openssl_enc import FORMS
from tests.dropin.foreign import Stream, TroveStorage, copied, encrypted
from tests.dropin.image import Image
from tests.dropin.test_restore import change
from tests.stack.fixtures_mariadb import private_server
from tests.stack.mariadb import SMALL_SERVER, MariaDB, checksums_of
from tests.stack.swift import SwiftServer


@pytest.fixture
def image(tmp_path: Path, small_server: MariaDB, swift: SwiftServer) -> Image:
    return Image(tmp_path, small_server, swift)


def test_an_object_without_an_lsn_is_read_for_it(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    parent = trove.joined(full, headers=False)
    change(image)
    arguments = image.arguments("11111111-2222-4333-8444-555555555555", parent)
    done = image.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "all of it is read before the backup begins" in done.stderr
    with image.request("HEAD", "/11111111-2222-4333-8444-555555555555.xbstream.gz") as answer:
        checksum = answer.headers["ETag"].strip('"')
    location = parent.location.replace(parent.id, "11111111-2222-4333-8444-555555555555")
    made = parent._replace(checksum=checksum, location=location)
    back = tmp_path / "back"
    restored = image.restore(made, back)
    assert restored.returncode == 0, restored.stderr
    assert checksums_of(back, tmp_path / "server") == image.mariadb.checksums()


def test_an_incremental_of_trove_is_no_parent(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """Nothing shows of which datadir it is. Trove doesn't compare instances."""
    change(image)
    second = copied(image.mariadb, tmp_path, full.lsn)
    last = image.failed(trove.plain(second, trove.plain(full)))
    assert "FAILED parent_unusable" in last
    assert "an incremental that Trove's own code made" in last


def test_an_incremental_that_names_no_parent(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    change(image)
    second = copied(image.mariadb, tmp_path, full.lsn)
    last = image.failed(trove.joined(second, headers=False))
    assert "FAILED parent_unusable" in last
    assert "doesn't name its own parent" in last


def test_a_damaged_object_without_an_lsn(image: Image, trove: TroveStorage, full: Stream) -> None:
    cut = full._replace(stored=full.stored[:-1000])
    last = image.failed(trove.joined(cut, headers=False))
    assert "FAILED parent_unusable" in last
    assert "ends in the middle of gzip member" in last


def test_an_encrypted_parent(image: Image, trove: TroveStorage, full: Stream) -> None:
    last = image.failed(trove.plain(encrypted(full, FORMS[0]), suffix=".enc"))
    assert "FAILED parent_unusable" in last
    assert "encrypted with openssl" in last


@pytest.fixture(scope="module")
def other(scratch: Path) -> Iterator[MariaDB]:
    with private_server(scratch / "other-parents") as mariadb:
        yield mariadb


def test_a_datadir_without_tables_proves_nothing(
    swift: SwiftServer, tmp_path: Path, other: MariaDB
) -> None:
    other.query("DROP SCHEMA IF EXISTS shop")
    image = Image(tmp_path, other, swift)
    last = image.failed(TroveStorage(image).plain(copied(other, tmp_path)))
    assert "FAILED parent_unusable" in last
    assert "nothing shows" in last


def test_a_backup_of_another_server_with_the_same_schema(
    image: Image, trove: TroveStorage, tmp_path: Path, other: MariaDB
) -> None:
    """Another page has the same LSN, an older one is here, or no page is the same in both."""
    other.load_rows(1)
    stranger = copied(other, tmp_path)
    for made in (trove.plain(stranger), trove.joined(stranger, headers=False)):
        last = image.failed(made)
        assert re.search("FAILED (lineage_changed|parent_unusable)", last)
        assert "another datadir" in last or "nothing shows" in last


def test_a_datadir_that_was_restored_from_an_older_backup(
    image: Image, trove: TroveStorage, full: Stream, tmp_path: Path
) -> None:
    """It has the same tables, and went on without what the newer backup has."""
    older = trove.plain(full)
    image.mariadb.query("UPDATE shop.events SET kind = kind + 1 WHERE id % 50 = 0")
    image.mariadb.checkpoint()
    newer = trove.plain(copied(image.mariadb, tmp_path))
    assert image.restore(older, tmp_path / "back").returncode == 0
    again = MariaDB(tmp_path / "server", datadir=tmp_path / "back", options=SMALL_SERVER)
    try:
        again.start()
        again.load_rows(8, schema="more")
        again.checkpoint()
        assert _lsn(again) > int(_header_lsn(image, newer.id))
        restored = Image(tmp_path, again, image.swift, container=image.container)
        last = restored.failed(newer)
    finally:
        again.stop()
    assert "FAILED lineage_changed" in last


def _lsn(server: MariaDB) -> int:
    [(value,)] = server.query(
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS "
        "WHERE VARIABLE_NAME = 'innodb_lsn_current'"
    )
    return int(value)


def _header_lsn(image: Image, backup_id: str) -> str:
    with image.request("HEAD", f"/{backup_id}.xbstream.gz") as answer:
        return str(answer.headers["X-Object-Meta-Lsn"])
