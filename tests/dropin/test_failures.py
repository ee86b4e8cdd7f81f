"""Backups that fail: the last line tells the cause, and nothing of them is left."""

import urllib.error
import uuid

import pytest

from tests.dropin.image import Image, Made


@pytest.fixture
def full(image: Image) -> Made:
    return image.backup()


def test_a_wrong_password(image: Image) -> None:
    last = image.failed(None, "--db-password=wrong")
    assert "FAILED database_denied" in last


def test_an_engine_that_fails(image: Image) -> None:
    last = image.failed(
        None, BACKUP_AGENT_ENGINE__PROGRAM="/bin/false", BACKUP_AGENT_ENGINE__KIND="mariadb-backup"
    )
    assert "FAILED engine" in last


def test_a_token_that_expired(image: Image) -> None:
    last = image.failed(None, "--os-token=expired")
    assert "FAILED token_expired" in last


def test_a_quota_of_the_container(image: Image) -> None:
    image.request("PUT", "", {"X-Container-Meta-Quota-Bytes": "1000000"}).close()
    assert "FAILED store_full" in image.failed()


def test_a_wrong_checksum_of_the_parent(image: Image, full: Made) -> None:
    last = image.failed(full._replace(checksum="0" * 32))
    assert "FAILED parent_unusable" in last
    assert "replaced or changed" in last


def test_a_parent_that_was_deleted(image: Image, full: Made) -> None:
    image.delete(full)
    assert "FAILED parent_unusable" in image.failed(full)


@pytest.mark.parametrize("number", [0, -1])
def test_a_parent_that_lost_a_segment(image: Image, full: Made, number: int) -> None:
    segments = [name for name in image.names() if name.rpartition("/")[2].isdigit()]
    image.request("DELETE", f"/{segments[number]}").close()
    assert "FAILED parent_unusable" in image.failed(full)


def test_a_name_that_is_no_location(image: Image) -> None:
    made = Made(str(uuid.uuid4()), "0" * 32, "ftp://nowhere")
    assert "FAILED usage_wrong" in image.failed(made)


@pytest.mark.parametrize("name", ["a/b", "..", "a\u00a0b"])
def test_a_container_that_no_location_names(image: Image, name: str) -> None:
    last = image.failed(None, f"--swift-container={name}")
    assert "FAILED usage_wrong" in last


def test_options_in_the_name_of_a_container(image: Image) -> None:
    """Trove puts the name unquoted into the command line, which Docker then splits."""
    arguments = image.arguments(str(uuid.uuid4()))
    for smuggled in ("--swift-url=http://127.0.0.1:9/v1/A", "--nobackup"):
        done = image.run(*arguments, smuggled)
        assert done.returncode == 2
        assert "is given twice" in done.stderr.splitlines()[-1]


def test_metadata_that_is_no_header(image: Image) -> None:
    last = image.failed(None, f"--swift-extra-metadata=datastore:{'x' * 300}")
    assert "FAILED usage_wrong" in last


def test_the_store_breaks_while_the_object_is_written(image: Image) -> None:
    """The next run removes what this one could not."""
    rule = {"match": r"\.xbstream\.gz\?multipart", "method": "PUT", "action": "mute", "times": 99}
    image.swift.inject([rule])
    arguments = image.arguments(str(uuid.uuid4()))
    done = image.run(
        *arguments, BACKUP_AGENT_STORE__TIMEOUT_SECONDS="1", BACKUP_AGENT_STORE__ATTEMPTS="1"
    )
    assert done.returncode == 1, done.stderr
    image.swift.clear_faults()
    image.delete(image.backup())
    assert image.names() == []


def test_a_failure_costs_no_earlier_backup(image: Image, full: Made) -> None:
    image.failed(None, "--db-password=wrong")
    with image.request("HEAD", f"/{full.id}.xbstream.gz") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError):
        image.request("HEAD", "/nothing")
