"""The last LSN seen of each datadir, in the journal's file.

The function works inside a transaction of the journal, on the connection that it is given.
"""

import secrets
import sqlite3
from typing import Final

_MAX_LINEAGES: Final = 64


def observe(db: sqlite3.Connection, lineage_key: str, lsn: int) -> str:
    """Note a datadir's LSN, and return its generation, which changes when the LSN goes back."""
    row = db.execute(
        "SELECT lsn, generation FROM lineages WHERE lineage = ?", (lineage_key,)
    ).fetchone()
    last, generation = row or (lsn, "")
    if lsn < last:
        generation = secrets.token_hex(8)
    db.execute(
        "INSERT OR REPLACE INTO lineages (lineage, lsn, generation) VALUES (?, ?, ?)",
        (lineage_key, lsn, generation),
    )
    db.execute(
        "DELETE FROM lineages WHERE position IN"
        " (SELECT position FROM lineages ORDER BY position DESC LIMIT -1 OFFSET ?)",
        (_MAX_LINEAGES,),
    )
    return str(generation)
