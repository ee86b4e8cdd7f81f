"""Records, keyrings and keys for tests that need no backup behind them."""

from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey
from agent.keys.recovery import RecoverySecret
from agent.model import BackupStatus, Datastore, Lineage, Record, Stored

INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"


def keyring(key_id: str = "k1", *, fill: int = 7) -> Keyring:
    return Keyring({key_id: MasterKey(key_id, bytes([fill]) * 32)}, key_id)


def recovery_secret(key_id: str, pem: bytes, passphrase: bytes = b"") -> RecoverySecret:
    """Return the private half of a recovery key from its PEM text.

    Raise ValueError or TypeError if the text and the passphrase give no key.
    """
    private = load_pem_private_key(pem, passphrase or None)
    assert isinstance(private, RSAPrivateKey)
    return RecoverySecret(key_id, private)


def record(**changes: Any) -> Record:
    """Return a BUILDING record of a full backup, with `changes` to its fields."""
    values: dict[str, Any] = {
        "id": str(uuid4()),
        "name": "base",
        "instance_id": INSTANCE,
        "datastore": Datastore(type="mariadb", version="10.11"),
        "status": BackupStatus.BUILDING,
        "created": "2026-02-03T04:05:06Z",
        "updated": "2026-02-03T04:05:06Z",
        "attempt": str(uuid4()),
        "lineage": Lineage(inode=12, birth=1700000000),
        "from_lsn": 0,
        "server_version": "10.11.6-MariaDB",
        "engine": "mariadb-backup",
        "engine_version": "10.11.6",
        "keys": keyring().wrap_all(bytes(32)),
    }
    return Record(**values | changes)


def completed(parent: Record | None = None, *, to_lsn: int = 100, **changes: Any) -> Record:
    """Return a COMPLETED record that continues `parent`, or of a full backup if it is None."""
    values: dict[str, Any] = {
        "status": BackupStatus.COMPLETED,
        "parent_id": parent.id if parent else None,
        "from_lsn": (parent.to_lsn or 0) if parent else 0,
        "to_lsn": to_lsn,
        "stored": stored(),
    }
    return record(**values | changes)


def stored(**changes: Any) -> Stored:
    values: dict[str, Any] = {
        "raw_bytes": 10,
        "compressed_bytes": 5,
        "stored_bytes": 6,
        "segment_size": 1 << 20,
        "segment_count": 1,
        "lists": (),
        "slo_etag": "0" * 32,
    }
    return Stored(**values | changes)
