"""Stored backups with valid keys, record, segments and stream, but with hostile content.

An attacker who holds the keys of a machine could do the same, for example on a rooted VM of the
same tenant. The backups are made from a real backup of the golden tables by the engine of this
machine, because no engine prepares a backup of another series.
"""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from agent.codec.aead import SLAB, SealingStream
from agent.errors import AgentError, ContentRefused
from agent.keys.keyring import Keyring
from agent.model import Record, Stored
from agent.records.object_names import Segment, encode_list, list_name, list_ref, segment_name
from agent.store.protocol import Container, Store
from tests.codec.streams import head, remove, rename, whole
from tests.golden import make, places, rescue
from tests.operations.stored import place_record, put
from tests.pipeline.path import PLAN, MemorySource, SegmentSink as Sent, upload

REWRITE = 2
_CODE = """
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) {
    FILE *file = fopen(CANARY, "a");
    if (file) { fputs("loaded", file); fclose(file); }
}
"""


class Original(NamedTuple):
    """The record and the xbstream of a real full backup."""

    record: Record
    stream: bytes


def original(folder: Path) -> Original:
    """Make and return the backup from which the hostile ones are made.

    `folder` must have no other use.
    """
    with make.original(folder) as (_, config):
        made = make.backup(config, "original")
    store, key = folder / make.STORE.name, folder / "keys" / f"{make.KEY_ID}.key"
    done = rescue.read(places.record_file(made, store), key, places.segments(made, store))
    assert done.returncode == 0, done.stderr
    return Original(Record.model_validate(places.record(made, store)), done.stdout)


def store_backup(store: Store, keys: Keyring, made: Original, **changes: object) -> Record:
    """Store a stream as a COMPLETED full backup, and return its record.

    `changes` are further fields of the record.
    """
    stream = made.stream
    record = made.record.model_copy(update={"id": str(uuid4()), "attempt": str(uuid4())})
    data_key, sent = os.urandom(32), Sent()
    upload(MemorySource(stream), sent.send, sealing=SealingStream(data_key, record.id.encode()))
    rows = []
    for number, body in enumerate(sent.joined()):
        name = segment_name(record.id, record.attempt, number)
        rows.append(Segment(len(body), put(store, Container.SEGMENTS, name, body).etag))
    encoded = encode_list(rows)
    put(store, Container.SEGMENTS, list_name(record.id, record.attempt, 0), encoded)
    stored = Stored(
        raw_bytes=len(stream),
        compressed_bytes=sum(row.size for row in rows),
        stored_bytes=sum(row.size for row in rows),
        segment_size=PLAN.slabs_per_segment * SLAB,
        segment_count=len(rows),
        lists=(list_ref(encoded),),
        slo_etag="0" * 32,
    )
    update = {"stored": stored, "keys": keys.wrap_all(data_key), **changes}
    record = record.model_copy(update=update)
    place_record(store, keys, record)
    return record


Planted = dict[str, tuple[int, int, bytes]]


class Case(NamedTuple):
    """A hostile stream, and the errors that its restore may end with.

    If there are none, the restore succeeds. `in_stream` is True if the stream itself is hostile,
    and not only the content of its files.
    """

    stream: bytes
    errors: tuple[type[AgentError], ...] = (ContentRefused,)
    in_stream: bool = False


def plugin(folder: Path, canary: Path) -> bytes:
    """Return a library that creates `canary` when it is loaded, or b"" without a compiler."""
    (folder / "plugin.c").write_text(f'#define CANARY "{canary}"\n{_CODE}')
    argv = ["cc", "-shared", "-fPIC", "-o", f"{folder}/plugin.so", f"{folder}/plugin.c"]
    try:
        subprocess.run(argv, check=True, capture_output=True)
    except FileNotFoundError:
        return b""
    return (folder / "plugin.so").read_bytes()


def cases(good: bytes, outside: Path, library: bytes = b"") -> dict[str, Case]:
    """Return all cases, made from the stream `good` and aimed at the canaries in `outside`.

    `plant` makes the canaries. `library` is a plugin made by `plugin`.
    """
    far = bytes(outside)
    return {**_streams(good, far), **_options(good, outside, library), **_files(good, far)}


def _streams(good: bytes, far: bytes) -> dict[str, Case]:
    """Return the cases with a stream that attacks paths itself."""
    streams = {
        "rename out": good + rename(b"ibdata1", far + b"/new"),
        "rename above": good + rename(b"ibdata1", b"../../../outside/new"),
        "rename in": good + rename(far + b"/canary", b"canary"),
        "remove": good + remove(far + b"/canary"),
        "remove above": good + remove(b"../../../outside/canary"),
        "write": whole(far + b"/new", b"x") + good,
        "write above": whole(b"../../../outside/new", b"x") + good,
        "rewrite": good + whole(far + b"/canary", b"x", REWRITE),
        "no xbstream": b"x" * 65536,
        "unknown chunk": good + head(b"L", b"link", 1),
        "cut": good[:-10],
    }
    return {name: Case(stream, in_stream=True) for name, stream in streams.items()}


def _options(good: bytes, outside: Path, library: bytes) -> dict[str, Case]:
    """Return the cases with a hostile option file in the backup."""
    load = "plugin_load=file_key_management=file_key_management"
    own = whole(b"file_key_management.so", library)

    def case(text: str, more: bytes = b"") -> Case:
        lines = f"[mysqld]\ninnodb_page_size=16384\n{text}\n".encode()
        return Case(good + whole(b"backup-my.cnf", lines, REWRITE) + more)

    return {
        "plugin of its own": case(f"plugin_dir=./\n{load}", own)._replace(errors=()),
        "another plugin": case("plugin_dir=./\nplugin_load=evil", own),
        "plugin by path": case(f"plugin_load=x={outside}/x", own),
        "included options": case("!include ./more.cnf", whole(b"more.cnf", b"x")),
        "another group": case("[mariadb-backup]\nexport=1"),
        "system tablespace outside": case("innodb_data_file_path=../../../outside/canary:65536"),
        "temporary files outside": case(f"tmpdir={outside}"),
        "options that are a folder": Case(
            good + remove(b"backup-my.cnf") + whole(b"backup-my.cnf/x", b"x")
        ),
        "plugins without end": case(f"plugin_load={'key_management' * 400}!"),
        "undo outside": case(f"innodb_undo_directory={outside}")._replace(errors=()),
        "log outside": case(f"innodb_log_group_home_dir={outside}")._replace(errors=()),
    }


def _files(good: bytes, far: bytes) -> dict[str, Case]:
    """Return the cases with hostile files that the engine reads at prepare."""
    table = b"golden/numbers.ibd"
    return {
        "link": Case(good + whole(b"golden/numbers.isl", far + b"/golden/numbers.ibd"), ()),
        "link to another's": Case(good + whole(b"golden/far.isl", far + b"/canary.ibd"), ()),
        "link in place of the table": Case(
            good + remove(table) + whole(b"golden/numbers.isl", far + b"/golden/numbers.ibd"), ()
        ),
        "renamed at prepare": Case(good + whole(table + b".ren", b"../../../outside/new.ibd")),
        "renamed to a long name at prepare": Case(
            good + whole(table + b".ren", b"n" * 255 + b"/" + b"n" * 251)
        ),
        "made at prepare": Case(good + whole(b"golden/x.new", b"x" * 65536), ()),
        "another note of the engine": Case(good + rename(b"ibdata1", b"xtrabackup_checkpoints")),
        "schema renamed": Case(good + rename(b"golden", b"other")),
    }


def plant(outside: Path) -> Planted:
    """Make the canaries, and return their state."""
    (outside / "golden").mkdir(parents=True)
    outside.chmod(0o777)
    (outside / "golden").chmod(0o777)
    for name in ("canary", "canary.ibd", "golden/numbers.ibd"):
        (outside / name).write_bytes(b"x" * 65536)
        (outside / name).chmod(0o666)
    return seen(outside)


def seen(outside: Path) -> Planted:
    """Return the state of every file below `outside`, by its relative path.

    The state is the inode, the time of the last change in nanoseconds, and the content.
    """
    return {
        str(path.relative_to(outside)): (
            path.stat().st_ino,
            path.stat().st_mtime_ns,
            path.read_bytes(),
        )
        for path in sorted(outside.rglob("*"))
        if path.is_file()
    }
