"""A program that restores a chain of backups WITHOUT backup-agent.

It proves that the stored form is public. It uses none of this project's code, only software that
anyone can install: python-swiftclient fetches, `cryptography` checks the records and unwraps the
data keys, Google's `tink` opens the stream, and `gunzip`, `mbstream` and `mariadb-backup --prepare`
do the rest. docs/format.md describes the form of each part.

    python tests/demo/foreign.py --auth-url http://.../auth/v1.0 --user U --key-file F \\
        --container C --master-key FILE --into FOLDER BACKUP-ID
"""

import argparse
import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import tink
from cryptography.hazmat.primitives import hashes, hmac, keywrap
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from swiftclient.client import Connection
from tink import secret_key_access, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

PIECE = 1 << 20
CHECKPOINTS = ("xtrabackup_checkpoints", "mariadb_backup_checkpoints")


class Damaged(Exception):
    """A stored byte contradicts the record or the format."""


def derive(master: bytes, purpose: str) -> bytes:
    """Derive one of the two keys of a master key, for the purpose `wrap` or `mac`."""
    info = f"backup-agent v1 {purpose}".encode()
    return HKDF(hashes.SHA256(), 32, None, info).derive(master)


def read_record(swift: Connection, container: str, backup_id: str, master: bytes) -> dict[str, Any]:
    """Return the record of a backup. Raise InvalidSignature if its MAC doesn't fit line 1."""
    _, raw = swift.get_object(container, f"{backup_id}.json")
    line, seal = raw.splitlines()
    mac = hmac.HMAC(derive(master, "mac"), hashes.SHA256())
    mac.update(line)
    mac.verify(bytes.fromhex(json.loads(seal)["mac"]))
    record: dict[str, Any] = json.loads(line)
    return record


def unwrap(record: dict[str, Any], master_id: str, master: bytes) -> bytes:
    """Return the data key of a backup (RFC 3394)."""
    [wrapped] = [key["wrapped"] for key in record["keys"] if key["id"] == master_id]
    return keywrap.aes_key_unwrap(derive(master, "wrap"), base64.b64decode(wrapped))


def tink_primitive(data_key: bytes) -> streaming_aead.StreamingAead:
    """Return Tink's AES256_GCM_HKDF_1MB with that key."""
    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=1 << 20, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256
    )
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(params=params, key_value=data_key)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=key.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    keyset.key.add(
        key_data=data, key_id=1, status=tink_pb2.ENABLED, output_prefix_type=tink_pb2.RAW
    )
    handle = tink.proto_keyset_format.parse(keyset.SerializeToString(), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


def fetch(swift: Connection, container: str, record: dict[str, Any], path: Path) -> None:
    """Fetch the whole object in one GET, as Swift joins its segments."""
    name = f"{record['id']}.xbstream.gz.enc"
    _, body = swift.get_object(container, name, resp_chunk_size=PIECE)
    with path.open("wb") as file:
        for piece in body:
            file.write(piece)
    expected = record["stored"]["stored_bytes"]
    if path.stat().st_size != expected:
        raise Damaged(f"{name} has {path.stat().st_size} bytes, its record says {expected}")


def unpack(sealed: Path, data_key: bytes, record: dict[str, Any], folder: Path) -> None:
    """Decrypt, inflate and extract a stream piece by piece, into a directory made here."""
    folder.mkdir()
    with (
        subprocess.Popen(["mbstream", "-x", "-C", folder], stdin=subprocess.PIPE) as mbstream,
        subprocess.Popen(["gunzip", "-c"], stdin=subprocess.PIPE, stdout=mbstream.stdin) as gunzip,
    ):
        assert mbstream.stdin
        assert gunzip.stdin
        mbstream.stdin.close()
        with tink_primitive(data_key).new_decrypting_stream(
            sealed.open("rb"), record["id"].encode()
        ) as opened:
            while piece := opened.read(PIECE):
                gunzip.stdin.write(piece)
        gunzip.stdin.close()
    if gunzip.returncode or mbstream.returncode:
        raise Damaged(f"gunzip: {gunzip.returncode}, mbstream: {mbstream.returncode}")
    check_lsns(folder, record)


def check_lsns(folder: Path, record: dict[str, Any]) -> None:
    """Compare the engine's file of LSNs with the record.

    The file must exist, because mbstream exits with 0 on empty input, too.
    """
    notes = [folder / name for name in CHECKPOINTS if (folder / name).exists()]
    if not notes:
        raise Damaged(f"backup {record['id']} holds no checkpoints file")
    found = dict(line.split(" = ") for line in notes[0].read_text().splitlines() if " = " in line)
    if (int(found["from_lsn"]), int(found["to_lsn"])) != (record["from_lsn"], record["to_lsn"]):
        raise Damaged(f"backup {record['id']} has the LSNs {found}, not those of its record")


def prepare(target: Path, incremental: Path | None) -> None:
    """Make the copy consistent, or apply an incremental to it."""
    argv = ["mariadb-backup", "--prepare", f"--target-dir={target}"]
    argv += [f"--incremental-dir={incremental}"] if incremental else []
    subprocess.run(argv, check=True, stdout=sys.stderr)


def restore(options: argparse.Namespace) -> None:
    """Restore the chain of the backup, beginning with the full one, into `options.into`."""
    master = base64.b64decode(options.master_key.read_text())
    key = options.key_file.read_text().strip()
    swift = Connection(options.auth_url, options.user, key, auth_version="1")
    chain = [read_record(swift, options.container, options.backup, master)]
    while chain[0]["parent_id"]:
        chain.insert(0, read_record(swift, options.container, chain[0]["parent_id"], master))
    for record in chain:
        began = time.monotonic()
        full = record["parent_id"] is None
        folder = options.into if full else options.into.with_name(f"{options.into.name}.part")
        sealed = options.into.with_name("sealed")
        fetch(swift, options.container, record, sealed)
        unpack(sealed, unwrap(record, options.master_key.stem, master), record, folder)
        sealed.unlink()
        prepare(options.into, None if full else folder)
        sizes = record["stored"]
        print(
            f"{record['name']}: {sizes['stored_bytes']:,} bytes fetched, "
            f"{sizes['raw_bytes']:,} unpacked and prepared, {time.monotonic() - began:.1f} s"
        )
    swift.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Restore a chain without backup-agent.")
    for name in ("--auth-url", "--user", "--container"):
        parser.add_argument(name, required=True)
    for name in ("--key-file", "--master-key", "--into"):
        parser.add_argument(name, required=True, type=Path)
    parser.add_argument("backup")
    restore(parser.parse_args())
    if "agent" in sys.modules:
        raise SystemExit("this restore must not use the agent's code, but `agent` was imported")


if __name__ == "__main__":
    main()
