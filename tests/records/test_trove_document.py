"""The record inside an object of Trove's layout: what is accepted, and what is refused."""

import json
import uuid

import pytest

from agent.errors import (
    AgentError,
    DataDamaged,
    KeyNotHere,
    PlaintextRefused,
    RecordDamaged,
    RecordUnsupported,
    UsageWrong,
)
from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey
from agent.model import Record
from agent.records.object_names import Segment, encode_list, list_ref
from agent.records.reading import RECORD_LIMIT
from agent.records.trove.document import Document, decode_document, encode_document
from agent.records.trove.names import TroveNames, marked, parse_location
from tests.records.made import completed, stored

KEYS = Keyring({"k": MasterKey("k", bytes(32))}, "k")
OTHERS = Keyring({"k": MasterKey("k", bytes(range(32)))}, "k")
LISTS = [encode_list([Segment(5, f"{number:032x}") for number in range(3)])]


def made(*, sealed: bool = False) -> Record:
    cipher = "AES256_GCM_HKDF_1MB" if sealed else "none"
    lists = tuple(map(list_ref, LISTS))
    return completed(cipher=cipher, keys=(), stored=stored(segment_count=3, lists=lists))


def content(record: Record, keyring: Keyring | None = None) -> bytes:
    return encode_document(Document(group=999, record=record), LISTS, keyring)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("keyring", [None, KEYS])
def test_a_document_comes_back(sealed: bool, keyring: Keyring | None) -> None:
    record = made(sealed=sealed and keyring is not None)
    document, lists = decode_document(record.id, content(record, keyring), keyring, vouched=True)
    assert document.record == record
    assert lists == LISTS


def refused(error: type[AgentError], raw: bytes, record: Record, keyring: Keyring | None) -> None:
    with pytest.raises(error):
        decode_document(record.id, raw, keyring, vouched=True)


def test_an_encrypted_backup_needs_a_good_mac() -> None:
    record = made(sealed=True)
    refused(KeyNotHere, content(record, KEYS), record, None)
    refused(RecordDamaged, content(record), record, KEYS)
    refused(RecordDamaged, content(record, OTHERS), record, KEYS)
    refused(
        RecordDamaged, content(record, KEYS).replace(b'"group":999', b'"group":998'), record, KEYS
    )


def test_without_a_checksum_a_keyring_vouches_alone() -> None:
    record = made()
    with pytest.raises(PlaintextRefused):
        decode_document(record.id, content(record), KEYS, vouched=False)
    assert decode_document(record.id, content(record), None, vouched=False)


def test_a_document_of_another_backup_or_form_is_refused() -> None:
    record = made()
    with pytest.raises(RecordDamaged):
        decode_document(str(uuid.uuid4()), content(record), None, vouched=True)
    later = content(record).replace(b'"layout":1', b'"layout":2')
    refused(RecordUnsupported, later, record, None)
    row = json.loads(content(record).split(b"\n")[0])
    row["record"]["stored"] = None
    for raw in (b"", b"{}", b"\0" * 50, b"x" * (RECORD_LIMIT + 1), json.dumps(row).encode()):
        with pytest.raises((RecordDamaged, RecordUnsupported)):
            decode_document(record.id, raw, None, vouched=True)


def test_each_row_of_the_lists_is_counted() -> None:
    record = made()
    refused(DataDamaged, content(record) + b"5 " + b"0" * 32 + b"\n", record, None)
    refused(DataDamaged, content(record)[: -len(LISTS[0])], record, None)


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "ftp://h/v1/a/c/o", "http://h/c/o", "http:///v1/a/c/o"),
        *("http://h/v1/a/c/..", "http://h/v1/a/c/", "http://h/v1/a/c/o\n", "http://h/v1/a/./o"),
    ],
)
def test_what_is_no_location(url: str) -> None:
    with pytest.raises(UsageWrong):
        parse_location(url)


def test_a_location() -> None:
    found = parse_location("https://h:8080/v1/AUTH_p/my backups/8f71.xbstream.gz")
    assert found[1:] == ("my backups", "8f71.xbstream.gz")
    assert found.backup_id == "8f71"


def test_only_the_name_of_a_marker_marks() -> None:
    names = TroveNames(str(uuid.uuid4()), str(uuid.uuid4()))
    assert marked(names.marker) == names
    for name in (names.appendix, names.marker + "x", f"x{names.marker}", names.marker.upper(), ""):
        assert marked(name) is None
