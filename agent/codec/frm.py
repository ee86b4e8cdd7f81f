"""Which storage engine a `.frm` file names, for tables that have no file of data beside it.

The layout is that of MariaDB's sql/table.cc (open_binary_frm): the engine's number is byte 3 of
the head, 20 for a partitioned table, whose partitions' engine is byte 61. Numbers from 45 on are
given by the server as plugins are loaded; such a file has the engine's name behind the default
values. MySQL to 5.7 has the same layout.
"""

from typing import Final

HEAD_BYTES: Final = 64
_MAGIC: Final = b"\xfe\x01"
_PARTITIONED: Final = 20
_NAMES: Final = {
    6: "MEMORY",
    9: "MyISAM",
    10: "MRG_MyISAM",
    12: "InnoDB",
    14: "ndbcluster",
    15: "EXAMPLE",
    16: "ARCHIVE",
    17: "CSV",
    18: "FEDERATED",
    19: "BLACKHOLE",
    28: "PERFORMANCE_SCHEMA",
    41: "S3",
    42: "Aria",
    43: "TokuDB",
    44: "SEQUENCE",
}


def table_engine(content: bytes) -> str | None:
    """Return the name of the engine, `engine number N` if none is told; None for a view."""
    if len(content) < HEAD_BYTES or content[:2] != _MAGIC:
        return None
    number = content[61] if content[3] == _PARTITIONED else content[3]
    return _NAMES.get(number) or _stated(content) or f"engine number {number}"


def _stated(content: bytes) -> str:
    """Return the engine's name from behind the record of default values, or nothing."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "little")

    keys = number(14, 2)
    at = number(6, 2) + (number(47, 4) if keys == 0xFFFF else keys) + number(16, 2)
    if not number(55, 4):
        return ""
    at += 2 + number(at, 2)  # the connect string
    name = content[at + 2 : at + 2 + number(at, 2)].decode("ascii", "replace")
    return name if name.replace("_", "").isalnum() else ""
