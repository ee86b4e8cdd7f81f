"""Backups by the image's command line: what Trove reads of them, and what is in the container."""

import gzip
import subprocess
from pathlib import Path

from tests.dropin.image import Image


def test_a_full_backup_is_one_object_that_gzip_and_mbstream_read(
    image: Image, tmp_path: Path
) -> None:
    image.mariadb.checkpoint()  # or the engine names the newest tables `.new`
    made = image.backup()
    answer = image.request("HEAD", f"/{made.id}.xbstream.gz")
    assert answer.headers["ETag"].strip('"') == made.checksum
    assert made.location == f"{image.swift.storage_url}/{image.container}/{made.id}.xbstream.gz"
    assert answer.headers["X-Static-Large-Object"] == "True"
    assert answer.headers["X-Object-Meta-Datastore"] == "mariadb"
    assert answer.headers["X-Object-Meta-Datastore-Version"] == "10.11"
    assert int(answer.headers["X-Object-Meta-Lsn"]) > 0
    raw = gzip.decompress(image.request("GET", f"/{made.id}.xbstream.gz").read())
    extract = ["mbstream", "-x", "-C", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    subprocess.run(extract, input=raw, check=True, timeout=60)
    assert (tmp_path / "out" / "shop" / "orders.ibd").exists()


def test_a_delete_of_the_object_leaves_nothing(image: Image) -> None:
    full = image.backup()
    image.mariadb.checkpoint()
    incremental = image.backup(full)
    assert image.names()
    for made in (incremental, full):
        image.delete(made)
    assert image.names() == []


def test_standard_output_has_the_result_and_nothing_else(image: Image) -> None:
    done = image.run(*image.arguments("11111111-2222-4333-8444-555555555555"))
    assert done.stdout.count("\n") == 1
    assert image.token not in done.stderr
