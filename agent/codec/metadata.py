"""Parsers for the engines' own small files in a stream.

The files hold the checkpoints, the options of the backup, and the position in the binary log.
"""

import re
from typing import Final, NamedTuple

from agent.errors import StreamInvalid
from agent.model import BinlogPosition

# Each pattern begins at the start of a line and uses possessive quantifiers, which never backtrack.
# So the time that it takes is proportional to the file's length, for any content of the file.
_CHECKPOINT_LINE: Final = re.compile(r"^(\w++) = (\S*+)", re.MULTILINE)
_INFO_LINE: Final = re.compile(r"^(\w++) = (.*)$", re.MULTILINE)
# The name of a binary log may contain any characters, even tabs, because the operator chooses it
# with log_bin.
_BINLOG_INFO: Final = re.compile(
    r"([^\0]{1,512})\t(\d{1,20}+)(?:\t([\w:,.\s-]*+))?", re.ASCII | re.DOTALL
)


class Checkpoints(NamedTuple):
    """The content of `xtrabackup_checkpoints`.

    The next incremental starts at `to_lsn`.
    """

    backup_type: str
    from_lsn: int
    to_lsn: int
    last_lsn: int


def parse_checkpoints(content: bytes) -> Checkpoints:
    """Read `xtrabackup_checkpoints`.

    Raises:
        StreamInvalid: a value is missing, or is not an LSN.
    """
    values = dict(_CHECKPOINT_LINE.findall(content.decode("ascii", "replace")))
    lsns = [values.get(name, "") for name in ("from_lsn", "to_lsn", "last_lsn")]
    backup_type = values.get("backup_type", "")
    if not backup_type or not all(re.fullmatch(r"[0-9]{1,20}", lsn) for lsn in lsns):
        raise StreamInvalid("the engine's checkpoints file in the stream can't be read")
    return Checkpoints(backup_type, *map(int, lsns))


def parse_info(content: bytes) -> dict[str, str]:
    """Read `xtrabackup_info` or `mariadb_backup_info`, and return the last value of each name.

    The last value is the engine's own, because the values that the server or the operator chose
    come first in the file.
    """
    return dict(_INFO_LINE.findall(content.decode("utf-8", "replace")))


def parse_binlog_info(content: bytes) -> BinlogPosition | None:
    """Read `xtrabackup_binlog_info`, which has file, position and GTID set, separated by tabs.

    Return None if the server has no binary log. The content is empty or names no file then.

    Raises:
        StreamInvalid: the content has another form.
    """
    if not content.strip() or content.startswith(b"\t0"):
        return None
    match = _BINLOG_INFO.fullmatch(content.decode("utf-8", "replace").rstrip())
    if not match:
        raise StreamInvalid("the engine's binlog position in the stream can't be read")
    file, position, gtid = match.groups()
    # MySQL writes the part of each server in a GTID set on a separate line.
    return BinlogPosition(file=file, position=int(position), gtid="".join((gtid or "").split()))
