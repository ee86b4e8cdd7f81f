"""The engines' own small files in a stream: checkpoints, what was asked for, binlog position."""

import re
from typing import Final, NamedTuple

from agent.errors import StreamInvalid
from agent.model import BinlogPosition

# Each begins where a line does, and gives nothing back that it has taken: the time that it takes
# grows with the file's length, whatever is in the file.
_CHECKPOINT_LINE: Final = re.compile(r"^(\w++) = (\S*+)", re.MULTILINE)
_INFO_LINE: Final = re.compile(r"^(\w++) = (.*)$", re.MULTILINE)
# The file's name may hold anything, tabs included: log_bin is the operator's to choose.
_BINLOG_INFO: Final = re.compile(
    r"([^\0]{1,512})\t(\d{1,20}+)(?:\t([\w:,.\s-]*+))?", re.ASCII | re.DOTALL
)


class Checkpoints(NamedTuple):
    """What `xtrabackup_checkpoints` says; a next incremental goes from `to_lsn`."""

    backup_type: str
    from_lsn: int
    to_lsn: int
    last_lsn: int


def parse_checkpoints(content: bytes) -> Checkpoints:
    """Read `xtrabackup_checkpoints`; StreamInvalid where a value is missing or no LSN."""
    values = dict(_CHECKPOINT_LINE.findall(content.decode("ascii", "replace")))
    lsns = [values.get(name, "") for name in ("from_lsn", "to_lsn", "last_lsn")]
    backup_type = values.get("backup_type", "")
    if not backup_type or not all(re.fullmatch(r"[0-9]{1,20}", lsn) for lsn in lsns):
        raise StreamInvalid("the engine's checkpoints file in the stream can't be read")
    return Checkpoints(backup_type, *map(int, lsns))


def parse_info(content: bytes) -> dict[str, str]:
    """Read `xtrabackup_info` or `mariadb_backup_info`: the last value of each name.

    Values that the server or the operator chose come first in it.
    """
    return dict(_INFO_LINE.findall(content.decode("utf-8", "replace")))


def parse_binlog_info(content: bytes) -> BinlogPosition | None:
    """Read `xtrabackup_binlog_info`: file, position and GTID set, separated by tabs.

    None without a binary log: it is empty, or names no file; StreamInvalid for garbage.
    """
    if not content.strip() or content.startswith(b"\t0"):
        return None
    match = _BINLOG_INFO.fullmatch(content.decode("utf-8", "replace").rstrip())
    if not match:
        raise StreamInvalid("the engine's binlog position in the stream can't be read")
    file, position, gtid = match.groups()
    # MySQL puts each server's part of a GTID set on a line of its own
    return BinlogPosition(file=file, position=int(position), gtid="".join((gtid or "").split()))
