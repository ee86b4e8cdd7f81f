"""An XtraBackup engine for tests, which runs the stand-in programs.

This module also builds the streams of such backups and reads the recorded calls of the programs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.engine.process import Child
from agent.engine.xtrabackup import XtraBackup, XtraBackupSettings
from tests.codec.streams import end, sparse, whole
from tests.engine.scripts import script
from tests.stack.mariadb import AGENT_PASSWORD

VERSIONS = ("2.4.20", "8.0.27-19", "8.0.35-30", "8.4.0-1")
_STANDIN = Path(__file__).with_name("standin.py")
_PAGE = 16 << 10
# The tablespaces that a MySQL 8.0 with the files of `full_stream` would list.
SPACES = {
    0xFFFFFFFE: "mysql.ibd",
    1: "sys/sys_config.ibd",
    7: "shop/orders.ibd",
    8: "shop/part#p#p0.ibd",
    9: "shop/packed.ibd",
    11: "ts1.ibd",
}


def xtrabackup(
    folder: Path, version: str = "8.0.35-30", says: Sequence[str] = (), **changes: Any
) -> XtraBackup:
    """Return an engine that runs the stand-in. A backup writes the file `stream` of `folder`."""
    paths = {
        role: script(folder / role, _body(role, folder, version, says))
        for role in ("xtrabackup", "xbstream")
    }
    plain: dict[str, Any] = {
        "socket": folder / "server.sock",
        "user": "agent",
        "password": AGENT_PASSWORD,
        "program": paths["xtrabackup"],
        "extractor": paths["xbstream"],
    }
    return _Recorded(XtraBackupSettings(**(plain | changes)), folder / "calls")


class _Recorded(XtraBackup):
    """An engine that records the arguments of each program.

    It records them itself, because a confined program can't write the file `calls`.
    """

    def __init__(self, settings: XtraBackupSettings, calls: Path) -> None:
        super().__init__(settings)
        self._calls = calls

    def _child(self, argv: list[str], **how: Any) -> Child:
        with self._calls.open("a") as calls:
            calls.write(json.dumps([Path(argv[0]).name, *argv[1:]]) + "\n")
        return super()._child(argv, **how)


def _body(role: str, folder: Path, version: str, says: Sequence[str]) -> str:
    given = {
        "ROLE": role,
        "VERSION": version,
        "STREAM": str(folder / "stream"),
        "SAYS": list(says),
    }
    return f"import runpy\nrunpy.run_path({str(_STANDIN)!r}, {given!r}, '__main__')"


def calls(folder: Path) -> list[list[str]]:
    """Return the calls of the programs so far, each as the program's name and its arguments."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def page(space: int) -> bytes:
    """Return the first page of a tablespace with the number `space`."""
    return bytes(34) + space.to_bytes(4, "big") + bytes(_PAGE - 38)


def info(from_lsn: int, incremental: str) -> bytes:
    """Return an xtrabackup_info file in the form that 2.4.20 was seen to write.

    The line `tool_command` holds the argv, so it may contain any text, such as `partial = Y`.
    """
    return (
        "uuid = 1\ntool_name = xtrabackup\ntool_command = --x='partial = Y'\n"
        f"innodb_from_lsn = {from_lsn}\ninnodb_to_lsn = 1\npartial = N\n"
        f"incremental = {incremental}\nformat = xbstream\ncompact = N\ncompressed = N\n"
        "encrypted = N\n"
    ).encode()


def _meta(path: str, space: int) -> bytes:
    note = f"page_size = 16384\nzip_size = 0\nspace_id = {space}\nspace_flags = 0\n"
    return whole(f"{path}.meta".encode(), note.encode())


def full_stream(to_lsn: int, binlog: bytes = b"binlog.000007\t157\n") -> bytes:
    """Return the files of a full backup of a small 8.0 server. One of them is page-compressed."""
    note = (
        b"backup_type = full-backuped\nfrom_lsn = 0\nto_lsn = %d\nlast_lsn = %d\nflushed_lsn = 1\n"
    )
    packed = page(9)[:4096]
    holes = [(0, 4096), (_PAGE - 4096, 4096), (_PAGE - 4096, 0)]
    return b"".join(
        (
            whole(b"ibdata1", bytes(_PAGE)),
            whole(b"mysql.ibd", page(0xFFFFFFFE)),
            whole(b"undo_001", page(0xFFFFFFEF)),
            whole(b"sys/sys_config.ibd", page(1)),
            whole(b"shop/orders.ibd", page(7)),
            whole(b"shop/part#p#p0.ibd", page(8)),
            sparse(b"shop/packed.ibd", holes, packed + packed),
            end(b"shop/packed.ibd"),
            whole(b"ts1.ibd", page(11)),
            whole(b"xtrabackup_tablespaces", b"{}"),
            whole(b"xtrabackup_binlog_info", binlog),
            whole(b"xtrabackup_slave_info", b""),
            whole(b"xtrabackup_logfile", bytes(2560)),
            whole(b"xtrabackup_checkpoints", note % (to_lsn, to_lsn)),
            whole(b"xtrabackup_info", info(0, "N")),
            whole(b"backup-my.cnf", b"[mysqld]\ninnodb_page_size=16384\n"),
            whole(b"ib_buffer_pool", b"1,2\n"),
        )
    )


def incremental_stream(from_lsn: int, to_lsn: int) -> bytes:
    note = b"backup_type = incremental\nfrom_lsn = %d\nto_lsn = %d\nlast_lsn = %d\n"
    return b"".join(
        (
            *(_meta(path, space) for space, path in SPACES.items()),
            whole(b"shop/orders.ibd.delta", b"xtra" + bytes(_PAGE - 4)),
            whole(b"xtrabackup_logfile", bytes(2560)),
            whole(b"xtrabackup_checkpoints", note % (from_lsn, to_lsn, to_lsn)),
            whole(b"xtrabackup_info", info(from_lsn, "Y")),
        )
    )
