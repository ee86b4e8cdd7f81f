"""Read the storage engine of a table, and the table's data files, from its `.frm` file.

The layout is that of MariaDB's sql/table.cc (open_binary_frm). The engine's number is byte 3 of
the head. It is 20 for a partitioned table, of which byte 61 is the engine's number of the
partitions. The server assigns the numbers from 45 on when it loads plugins. Such a file has the
engine's name after the default values. MySQL up to 5.7 has the same layout.
"""

from typing import Final, NamedTuple

HEAD_BYTES: Final = 64
INNODB: Final = 12
_MAGIC: Final = b"\xfe\x01"
_PARTITIONED: Final = 20
_NAMES: Final = {
    6: "MEMORY",
    9: "MyISAM",
    10: "MRG_MyISAM",
    INNODB: "InnoDB",
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
# The ends of the names of the files that a table of these engines needs, by the engine's number.
_DATA: Final = {
    9: (b".MYI", b".MYD"),
    10: (b".MRG",),
    16: (b".ARZ",),
    17: (b".CSV",),
    42: (b".MAI", b".MAD"),
}


class Definition(NamedTuple):
    """The facts in the head of a `.frm` file.

    `number` is the engine's number. For a partitioned table it is that of the partitions.
    """

    number: int
    partitioned: bool

    @property
    def data(self) -> tuple[bytes, ...]:
        """Return the ends of the names of the files that the table, or each partition, needs."""
        return _DATA.get(self.number, ())


def definition(head: bytes | bytearray) -> Definition | None:
    """Read the first 64 bytes of a `.frm` file.

    Return None if the file is of a view, or if `head` has fewer bytes.
    """
    if len(head) < HEAD_BYTES or head[:2] != _MAGIC:
        return None
    partitioned = head[3] == _PARTITIONED
    return Definition(head[61] if partitioned else head[3], partitioned)


def table_engine(content: bytes) -> str | None:
    """Return the name of the engine, or None for a view or a file that is too short.

    The result is `engine number N` if the name is unknown and the file doesn't have it.
    """
    found = definition(content[:HEAD_BYTES])
    if found is None:
        return None
    return _NAMES.get(found.number) or _stated(content) or f"engine number {found.number}"


def _stated(content: bytes) -> str:
    """Return the engine's name after the record of default values, or an empty string."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(content[at : at + size], "little")

    keys = number(14, 2)
    at = number(6, 2) + (number(47, 4) if keys == 0xFFFF else keys) + number(16, 2)
    if not number(55, 4):
        return ""
    at += 2 + number(at, 2)  # skip the connect string
    name = content[at + 2 : at + 2 + number(at, 2)].decode("ascii", "replace")
    return name if name.replace("_", "").isalnum() else ""
