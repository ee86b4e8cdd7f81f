"""Tests of docs/format.md.

The golden vectors can be opened, and the recipe with Tink for other programs works.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.codec.aead import SLAB, OpeningStream, SealingStream, room, start
from agent.codec.gzip_members import deflate_member, inflate_member
from agent.keys.keyring import Keyring, RecordState
from agent.keys.master import MasterKey, key_text
from agent.keys.recovery import parse_recovery_key
from agent.model import WrappedKey
from agent.records.object_names import Segment, encode_list, list_ref
from tests.codec.tink_reader import tink_open
from tests.records.made import recovery_secret

HERE = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())
MASTER = MasterKey(VECTORS["keys"]["id"], bytes.fromhex(VECTORS["keys"]["master_key"]))


def pattern(length: int) -> bytes:
    """Return the plaintext of the vectors, in which byte n is n modulo 251."""
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def seal(plain: bytes) -> bytes:
    given = VECTORS["sealed"]
    salt, prefix = bytes.fromhex(given["salt"]), bytes.fromhex(given["prefix"])
    key, associated = bytes.fromhex(given["data_key"]), given["associated"].encode()
    stream = SealingStream(key, associated, salt=salt, prefix=prefix)
    sealed = b""
    index = 0
    while plain or not index:
        slab = memoryview(bytearray(SLAB))
        piece, plain = plain[: room(index)], plain[room(index) :]
        slab[start(index) : start(index) + len(piece)] = piece
        sealed += slab[: stream.seal(slab, index, len(piece), not plain)]
        index += 1
    return sealed


def test_sealed_streams() -> None:
    given = VECTORS["sealed"]
    key, associated = bytes.fromhex(given["data_key"]), given["associated"].encode()
    assert len(given["cases"]) == 4
    for case in given["cases"]:
        plain = pattern(case["plaintext_bytes"])
        sealed = seal(plain)
        assert sealed[:64].hex() == case["first_64_bytes"]
        assert len(sealed) == case["sealed_bytes"]
        assert hashlib.sha256(sealed).hexdigest() == case["sha256"]
        assert tink_open(key, associated, sealed) == plain


def test_small_sealed_stream_opens() -> None:
    given = VECTORS["sealed"]
    stored = memoryview(bytearray.fromhex(given["whole_small_stream"]))
    stream = OpeningStream(bytes.fromhex(given["data_key"]), given["associated"].encode())
    assert bytes(stream.open(stored, 0, True)) == pattern(8)


def test_member_inflates() -> None:
    given = VECTORS["member"]
    assert inflate_member(bytes.fromhex(given["bytes"])) == given["block"].encode()


def test_wrapped_key() -> None:
    given = VECTORS["keys"]
    data_key = bytes.fromhex(given["data_key"])
    assert MASTER.wrap(data_key).wrapped == given["wrapped"]
    assert MASTER.unwrap(WrappedKey(id=MASTER.id, wrapped=given["wrapped"])) == data_key


def test_recovery_entry() -> None:
    given = VECTORS["recovery"]
    secret = recovery_secret(given["id"], given["private"].encode())
    entry = WrappedKey(id=given["id"], alg="RSA-OAEP-256", wrapped=given["wrapped"])
    assert secret.unwrap(entry).hex() == given["data_key"]
    public = parse_recovery_key(given["id"], given["public"].encode())
    assert secret.public.pem() == public.pem() == given["public"].encode()
    again = public.wrap(bytes.fromhex(given["data_key"]))
    assert (again.id, again.alg, len(again.wrapped)) == ("offline-1", "RSA-OAEP-256", 512)
    assert secret.unwrap(again).hex() == given["data_key"]


def test_record_envelope() -> None:
    given = VECTORS["record"]
    ring = Keyring({MASTER.id: MASTER}, MASTER.id)
    assert ring.sign(given["line"].encode()) == given["object"].encode()
    assert ring.check(given["object"].encode()) == (RecordState.OK, given["line"].encode())


def test_segment_list() -> None:
    given = VECTORS["segment_list"]
    encoded = encode_list([Segment(*row) for row in given["segments"]])
    assert encoded == given["object"].encode()
    assert list_ref(encoded).sha256 == given["sha256"]


def test_the_documented_recipe_opens_a_backup(tmp_path: Path) -> None:
    text = (HERE.parents[1] / "docs" / "restore-without-the-agent.md").read_text()
    (recipe,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "open_backup.py").write_text(recipe)
    given = VECTORS["sealed"]
    plain = b"".join(deflate_member(pattern(1 << 20)) for _ in range(400))
    assert len(plain) > SLAB
    (tmp_path / "sealed").write_bytes(seal(plain))
    wrapped = MASTER.wrap(bytes.fromhex(given["data_key"])).model_dump()
    line = json.dumps({"id": given["associated"], "keys": [wrapped]}).encode()
    ring = Keyring({MASTER.id: MASTER}, MASTER.id)
    (tmp_path / "record.json").write_bytes(ring.sign(line))
    (tmp_path / f"{MASTER.id}.key").write_text(key_text(MASTER.secret) + "\n")
    command = [sys.executable, "open_backup.py", f"{MASTER.id}.key", "record.json", "sealed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == plain
