"""Make the golden backup again: `python -m tests.golden.make`.

It is a full backup and an incremental of a tiny private MariaDB. The agent itself makes them, in a
store of the kind `file:///`. The keys that open them and the checksums of their tables are kept
beside them. The backups prove that later versions still restore the data that this version stored.
So they are not made again. If the version number of the format changes, make another set in places
of its own, and let the tests restore both. The keys protect nothing else.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.stack.mariadb import MariaDB

HOME: Final = Path(__file__).parent
STORE: Final = HOME / "store"
KEYS: Final = HOME / "keys"
EXPECTED: Final = HOME / "expected.json"
SUMS: Final = HOME / "SHA256SUMS"
KEY_ID: Final = "golden"
RECOVERY_ID: Final = "golden-offline"
TENANT: Final = "golden"
CONTAINER: Final = f"database_backups_{TENANT}"
_CONTENT: Final = (
    "CREATE SCHEMA golden",
    "CREATE TABLE golden.numbers (id INT PRIMARY KEY, noise VARBINARY(512), word TEXT)",
    # random bytes can't be compressed, so that there are several segments of 1 MiB
    "INSERT INTO golden.numbers SELECT seq, CONCAT("
    + ", ".join(f"UNHEX(SHA2(CONCAT(seq, '{part}'), 512))" for part in range(8))
    + "), CONCAT('łódź ', seq) FROM golden.seq_1_to_1500",
    "CREATE TABLE golden.`odd näme` (a INT PRIMARY KEY) PARTITION BY HASH(a) PARTITIONS 2",
    "INSERT INTO golden.`odd näme` VALUES (1), (2), (3)",
)
_CHANGES: Final = (
    "UPDATE golden.numbers SET word = REVERSE(word) WHERE id BETWEEN 20 AND 60",
    "DELETE FROM golden.numbers WHERE id BETWEEN 900 AND 910",
    "CREATE TABLE golden.added AS SELECT seq AS id, SHA1(seq) AS token FROM golden.seq_1_to_200",
    "DROP TABLE golden.`odd näme`",
)


@contextmanager
def original(folder: Path) -> Iterator[tuple[MariaDB, Path]]:
    """Yield a server in `folder` with the golden tables, and the configuration of an agent.

    The keys of the agent are made already.
    """
    server = MariaDB(folder / "mariadb")
    server.install()
    try:
        server.start()
        server.create_agent_user()
        _shrink(server)
        server.execute_many(*_CONTENT)
        server.checkpoint()
        config = _configure(folder, server)
        _run(config, "keygen", "--folder", folder / "keys", KEY_ID)
        _run(config, "keygen", "--folder", folder / "keys", RECOVERY_ID, "--recovery",
             "--private", folder / "keys" / "recovery.pem")  # fmt: skip
        yield server, config
    finally:
        server.stop()


def make(folder: Path) -> None:
    """Run a server in `folder`, make both backups and put them into this package's directory."""
    with original(folder) as (server, config):
        full = backup(config, "golden full")
        checksums = {"full": server.checksums()}
        server.execute_many(*_CHANGES)
        server.checkpoint()
        child = backup(config, "golden inc.001", "--parent", full)
        checksums["incremental"] = server.checksums()
    for kept in (STORE, KEYS):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / kept.name, kept, ignore=shutil.ignore_patterns("%tmp"))
    expected = {"full": full, "incremental": child, "checksums": checksums}
    EXPECTED.write_text(json.dumps(expected, indent=2) + "\n")
    SUMS.write_text(sums())


def sums() -> str:
    """Return the SHA-256 of every golden file, in the form of `sha256sum`."""
    files = [file for folder in (STORE, KEYS) for file in sorted(folder.rglob("*"))]
    return "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(HOME)}\n"
        for file in [*files, EXPECTED, *sorted(HOME.glob("journal-*.sql"))]
        if file.is_file()
    )


def _shrink(server: MariaDB) -> None:
    """Drop the server's own help texts, which are larger than all the rest."""
    for table in ("topic", "keyword", "relation", "category"):
        server.query(f"TRUNCATE TABLE mysql.help_{table}")


def _configure(folder: Path, server: MariaDB) -> Path:
    config = folder / "agent.toml"
    config.write_text(
        f"""
        [agent]
        instance_id = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
        tenant_id = "{TENANT}"
        state_folder = "{folder}/state"
        [store]
        url = "file://{folder}/store"
        [database]
        socket = "{server.socket}"
        user = "{server.agent_user}"
        password_file = "{server.password_file}"
        [keys]
        folder = "{folder}/keys"
        active = "{KEY_ID}"
        recovery = ["{RECOVERY_ID}"]
        [pipeline]
        segment_bytes = 1048576
        level = 3
        """
    )
    return config


def backup(config: Path, name: str, *arguments: str) -> str:
    """Let the agent make a backup. Return its id."""
    backup_id: str = json.loads(
        _run(config, "backup-create", "--local", name, "--json", *arguments)
    )["id"]
    return backup_id


def _run(config: Path, *arguments: str | Path) -> str:
    argv = [sys.executable, "-m", "agent", "--config", str(config), *map(str, arguments)]
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="golden-", dir="/tmp") as scratch:
        make(Path(scratch))
