"""Which storage engine a `.frm` file names, and which files of data its table has.

The layout is that of MariaDB's sql/table.cc (open_binary_frm): the engine's number is byte 3 of
the head, 20 for a partitioned table, whose partitions' engine is byte 61. Numbers from 45 on are
given by the server as plugins are loaded; such a file has the engine's name behind the default
values. MySQL to 5.7 has the same layout.
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
# The files without which a table of these engines is broken.
_DATA: Final = {
    9: (b".MYI", b".MYD"),
    10: (b".MRG",),
    16: (b".ARZ",),
    17: (b".CSV",),
    42: (b".MAI", b".MAD"),
}


class Definition(NamedTuple):
    """What the head of a `.frm` says: the engine's number, of partitions if there are some."""

    number: int
    partitioned: bool

    @property
    def data(self) -> tuple[bytes, ...]:
        """How the names of the files end that the table, or each partition, needs."""
        return _DATA.get(self.number, ())


def definition(head: bytes | bytearray) -> Definition | None:
    """Read the first 64 bytes of a `.frm`; None for a view, and if they aren't all there."""
    if len(head) < HEAD_BYTES or head[:2] != _MAGIC:
        return None
    partitioned = head[3] == _PARTITIONED
    return Definition(head[61] if partitioned else head[3], partitioned)


def table_engine(content: bytes) -> str | None:
    """Return the name of the engine, `engine number N` if none is told; None for a view."""
    found = definition(content[:HEAD_BYTES])
    if found is None:
        return None
    return _NAMES.get(found.number) or _stated(content) or f"engine number {found.number}"


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
