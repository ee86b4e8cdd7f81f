"""docs/open_backup.py on the golden backup.

These tests check its output, and its messages about wrong input.
"""

import ast
import base64
import gzip
import hashlib
import json
import os
import pty
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from agent.keys.keyring import Keyring
from agent.keys.master import parse_key_text
from agent.records.object_names import Segment, encode_list, list_ref
from tests.codec.streams import end, head, payload, remove, rename, seek, sparse, whole
from tests.golden import places, rescue

FULL = places.expected().full
RECORD = places.record_file(FULL)
MIB = 1 << 20


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a copy of the full backup's segments, which a test may damage."""
    return Path(shutil.copytree(places.segments(FULL), tmp_path / "segments"))


def refused(done: "subprocess.CompletedProcess[bytes]", *words: str) -> None:
    """Check that the reader failed with these words, without a traceback.

    It must also warn that its output is incomplete.
    """
    told = done.stderr.decode()
    assert done.returncode == 1, told
    assert "Traceback" not in told
    assert "FAILED: " in told
    assert "NOT ALL CAME OUT" in told
    assert [word for word in words if word not in told] == [], told


def test_it_is_short_and_needs_little() -> None:
    text = rescue.READER.read_text()
    lines = text.count("\n")
    assert lines < 280
    assert f"one file of {lines} lines" in rescue.PAGE.read_text()
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography"}


@pytest.mark.parametrize("key", [places.MASTER, places.RECOVERY], ids=["master", "recovery"])
def test_folder_object_and_pipe_give_the_same(tmp_path: Path, key: Path) -> None:
    sealed = tmp_path / "object"
    sealed.write_bytes(places.joined(FULL))
    whole = [
        rescue.read(RECORD, key, places.segments(FULL)),
        rescue.read(RECORD, key, sealed),
        rescue.read(RECORD, key, "-", given=places.joined(FULL)),
    ]
    assert [done.returncode for done in whole] == [0, 0, 0], whole[0].stderr
    assert len({hashlib.sha256(done.stdout).digest() for done in whole}) == 1
    assert len(whole[0].stdout) == places.record(FULL)["stored"]["raw_bytes"]
    assert whole[0].stdout.startswith(b"XBSTCK01")
    warned = b"RECORD NOT CHECKED" in whole[0].stderr
    assert warned is (key == places.RECOVERY)


def test_a_recovery_key_with_a_passphrase(tmp_path: Path) -> None:
    private = load_pem_private_key(places.RECOVERY.read_bytes(), None)
    closed = tmp_path / "closed.pem"
    lock = BestAvailableEncryption(b"correct horse")
    closed.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    assert ask(closed, b"correct horse\n") == 0
    assert ask(closed, b"wrong horse\n") == 1


def ask(key: Path, typed: bytes) -> int:
    """Run the reader on a terminal of its own and type a passphrase. Return its exit status."""
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        argv = [sys.executable, rescue.READER, RECORD, key, places.segments(FULL)]
        os.execv(sys.executable, [str(word) for word in argv])  # noqa: S606
    asked = b""
    while b"passphrase" not in asked:
        asked += os.read(terminal, 1024)
    os.write(terminal, typed)
    try:
        while os.read(terminal, 1024):
            continue
    except OSError:  # the terminal's other end is closed
        asked = b""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


Damage = Callable[[Path], None]


def flip(segments: Path) -> None:
    body = bytearray((segments / "00000001").read_bytes())
    body[100] ^= 1
    (segments / "00000001").write_bytes(body)


def cut(segments: Path) -> None:
    os.truncate(segments / "00000001", 1000)


def empty(segments: Path) -> None:
    os.truncate(segments / "00000001", 0)


def swap(segments: Path) -> None:
    (segments / "00000000").rename(segments / "third")
    (segments / "00000001").rename(segments / "00000000")
    (segments / "third").rename(segments / "00000001")


def lose(segments: Path) -> None:
    (segments / "00000000").unlink()


def of_another(segments: Path) -> None:
    shutil.copy(places.segments(places.expected().incremental) / "00000000", segments / "00000000")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, ["segment 00000001 is damaged"]),
        (cut, ["segment 00000001 is damaged, cut"]),
        (empty, ["(1048576 bytes) is not what the record lists (1109518)"]),
        (swap, ["segment 00000000 is damaged"]),
        (lose, ["lacks 1 segments: download 00000000"]),
        (of_another, ["segment 00000000 is damaged, cut, or of another backup"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_segments_are_refused(stored: Path, damage: Damage, words: list[str]) -> None:
    damage(stored)
    refused(rescue.read(RECORD, places.MASTER, stored), *words)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (0, "(0 bytes) is not what the record lists"),
        (20, "segment 00000000 is damaged, cut"),
        (MIB - 1, "segment 00000000 is damaged, cut"),
        (MIB, "(1048576 bytes) is not what the record lists"),
        (MIB + 1, "segment 00000001 is damaged, cut"),
        (1109517, "segment 00000001 is damaged, cut"),
    ],
)
def test_an_early_end_is_noticed(length: int, words: str) -> None:
    refused(rescue.read(RECORD, places.MASTER, "-", given=places.joined(FULL)[:length]), words)


def test_too_much_is_refused() -> None:
    refused(rescue.read(RECORD, places.MASTER, "-", given=places.joined(FULL) + b"x"))


def test_another_master_key_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "golden.key"
    other.write_text(base64.b64encode(bytes(32)).decode() + "\n")
    refused(rescue.read(RECORD, other, places.segments(FULL)), "master key 'golden' is needed")


def test_another_recovery_key_is_refused(tmp_path: Path) -> None:
    pem = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        check=True,
        capture_output=True,
    ).stdout
    (tmp_path / "other.pem").write_bytes(pem)
    done = rescue.read(RECORD, tmp_path / "other.pem", places.segments(FULL))
    refused(done, "this key does not open it; these do: ['golden', 'golden-offline']")


@pytest.mark.parametrize("content", ["", "no key\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    refused(rescue.read(RECORD, tmp_path / "key", places.segments(FULL)))


def test_the_record_of_another_backup_is_refused() -> None:
    other = places.record_file(places.expected().incremental)
    done = rescue.read(other, places.MASTER, places.segments(FULL))
    refused(done, "segment 00000000 is damaged, cut, or of another backup")
    done = rescue.read(RECORD, places.MASTER, places.segments(places.expected().incremental))
    refused(done, "lacks 1 segments")


@pytest.mark.parametrize("key", [places.MASTER, places.RECOVERY], ids=["master", "recovery"])
def test_a_changed_record_is_refused(tmp_path: Path, key: Path) -> None:
    changed = tmp_path / "record.json"
    other_id = places.expected().incremental
    changed.write_bytes(RECORD.read_bytes().replace(FULL.encode(), other_id.encode()))
    refused(rescue.read(changed, key, places.segments(FULL)))


@pytest.mark.parametrize("lines", [b"", b"<html>\n", b"{}\n", b'{"a": 1}\n{"b": 2}\n'])
def test_what_is_no_record_is_refused(tmp_path: Path, lines: bytes) -> None:
    (tmp_path / "record").write_bytes(lines)
    done = rescue.read(tmp_path / "record", places.MASTER, places.segments(FULL))
    refused(done, "is not a whole record")


HOSTILE: dict[str, dict[str, object]] = {
    "an endless count": {"stored": places.record(FULL)["stored"] | {"segment_count": 10**15}},
    "segments of nothing": {"stored": places.record(FULL)["stored"] | {"segment_size": 0}},
    "keys that are none": {"keys": [1]},
    "what steers a terminal": {"status": "\x1b[2J"},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_record_is_refused(tmp_path: Path, what: str) -> None:
    """With a recovery key, no signature check protects the reader from such a record."""
    (tmp_path / "record").write_text(
        json.dumps(places.record(FULL) | HOSTILE[what]) + '\n{"key_id": "golden", "mac": ""}\n'
    )
    done = rescue.read(tmp_path / "record", places.RECOVERY, places.segments(FULL))
    refused(done)
    assert b"\x1b" not in done.stderr


def test_an_empty_key_file_is_not_the_word_none(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    record = unsealed(tmp_path, noise(2))
    refused(rescue.read(record, tmp_path / "key", tmp_path), "is no key")


def test_missing_files_are_named(tmp_path: Path) -> None:
    refused(rescue.read(tmp_path / "none", places.MASTER, tmp_path), "No such file or directory")
    refused(rescue.read(RECORD, places.MASTER, tmp_path / "x"), "No such file or directory")


def test_nothing_goes_to_a_terminal() -> None:
    ours, terminal = pty.openpty()
    argv = [sys.executable, str(rescue.READER), str(RECORD), str(places.MASTER), "-"]
    done = subprocess.run(
        argv, stdout=terminal, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False
    )
    os.close(terminal)
    os.close(ours)
    assert done.returncode == 1
    assert b"not to a terminal" in done.stderr


def unsealed(folder: Path, members: list[bytes], *, raw: int = 0, lost: int = 0) -> Path:
    """Store a backup of these gzip members without encryption. Return the file of its record.

    The record counts `raw` bytes too many, and `lost` bytes at the end are not stored.
    """
    plain = b"".join(gzip.compress(member, 1) for member in members)
    plain = plain[: len(plain) - lost]
    parts = [plain[at : at + MIB] for at in range(0, len(plain), MIB)]
    for number, part in enumerate(parts):
        (folder / f"{number:08d}").write_bytes(part)
    record = places.record(FULL) | {"cipher": "none", "keys": []}
    rows = [Segment(len(part), hashlib.md5(part).hexdigest()) for part in parts]
    record["stored"] |= {
        "raw_bytes": sum(map(len, members)) + raw,
        "stored_bytes": len(plain),
        "segment_count": len(parts),
        "lists": [list_ref(encode_list(rows)).model_dump()],
    }
    key = parse_key_text("golden", places.MASTER.read_text())
    file = folder / "record.json"
    file.write_bytes(Keyring({key.id: key}, key.id).sign(json.dumps(record).encode()))
    return file


def noise(count: int) -> list[bytes]:
    """Return an xbstream in blocks that can't be compressed.

    Each block is a little longer than the one before.
    """
    blocks = [random.Random(at).randbytes(MIB // 4 + at) for at in range(count)]
    start = payload(b"noise", b"".join(blocks))[: -sum(map(len, blocks))]
    return [start + blocks[0], *blocks[1:-1], blocks[-1] + end(b"noise")]


@pytest.mark.parametrize("key", [places.MASTER, "none"])
def test_a_backup_that_was_not_encrypted(tmp_path: Path, key: Path | str) -> None:
    record = unsealed(tmp_path, noise(10))
    done = rescue.read(record, key, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"".join(noise(10))
    assert (b"RECORD NOT CHECKED" in done.stderr) is (key == "none")


@pytest.mark.parametrize(("at", "words"), [(30, "decompress"), (4, "is not what the record lists")])
def test_a_change_of_what_is_not_encrypted_is_noticed(tmp_path: Path, at: int, words: str) -> None:
    record = unsealed(tmp_path, noise(10))
    body = bytearray((tmp_path / "00000000").read_bytes())
    body[at] ^= 0xFF  # in the deflated bytes, or in the time that gzip notes, which no CRC covers
    (tmp_path / "00000000").write_bytes(body)
    refused(rescue.read(record, places.MASTER, tmp_path), words)


def test_a_recovery_key_does_not_take_the_word_of_a_record_for_it(tmp_path: Path) -> None:
    record = unsealed(tmp_path, noise(2))
    refused(rescue.read(record, places.RECOVERY, tmp_path), "not encrypted", "give")


@pytest.mark.parametrize(
    ("raw", "lost", "words"),
    [
        (1, 0, "bytes came out, the record says"),
        (-1, 0, "bytes come out, the record says"),
        (0, 4, "end too early"),
    ],
)
def test_what_comes_out_is_what_the_record_says(
    tmp_path: Path, raw: int, lost: int, words: str
) -> None:
    record = unsealed(tmp_path, noise(3), raw=raw, lost=lost)
    refused(rescue.read(record, places.MASTER, tmp_path), words)


GOOD = whole(b"d/t.ibd", b"rows")
ODD = {
    "rename out": rename(b"d/t.ibd", b"../x"),
    "rename in": rename(b"/srv/x", b"d/x"),
    "remove": remove(b"d/../../x"),
    "payload": whole(b"/srv/x", b"1"),
    "seek": seek(b"../x", 1),
    "sparse": sparse(b"../x", [(0, 1)], b"1"),
    "end": end(b".."),
    "nul": end(b"a\0b"),
    "long": end(b"a" * 512),
    "endless": end(b"a" * 700),
    "no path": head(b"E", b""),
    "unknown": head(b"L", b"link", 1),
    "no type": head(b"", b"x"),
    "cut": whole(b"a", b"12345")[:-16],
    "cut head": GOOD[:13],
    "bomb": whole(b"a", b"1", 0)[:15] + b"\xff" * 20,
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("block", [1, 1 << 20], ids=["bytes", "block"])
def test_nothing_of_a_hostile_chunk_comes_out(tmp_path: Path, what: str, block: int) -> None:
    stream = GOOD + ODD[what] + GOOD
    pieces = [stream[at : at + block] for at in range(0, len(stream), block)]
    done = rescue.read(unsealed(tmp_path, pieces), places.MASTER, tmp_path)
    refused(done)
    assert done.stdout.startswith(GOOD)
    assert b"srv" not in done.stdout
    assert b".." not in done.stdout
    assert len(done.stdout) <= len(GOOD) + 40


def test_every_kind_of_chunk_comes_out_as_it_was(tmp_path: Path) -> None:
    stream = b"".join(
        (
            GOOD,
            seek(b"d/s.ibd", 4096),
            payload(b"d/s.ibd", b"rows", 4096),
            end(b"d/s.ibd"),
            sparse(b"d/p.ibd", [(0, 4), (100, 3)], b"ibd1234"),
            end(b"d/p.ibd"),
            whole(b"d/t.ibd", b"again", 2),
            seek(b"z", 0),
            end(b"z"),
            rename(b"d/t.ibd", b"d/u.ibd"),
            remove(b"d/s.ibd"),
        )
    )
    for block in (1, 16, len(stream)):
        pieces = [stream[at : at + block] for at in range(0, len(stream), block)]
        done = rescue.read(unsealed(tmp_path, pieces), places.MASTER, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == stream


def test_what_mbstream_stops_at_is_mended(tmp_path: Path) -> None:
    stream = (
        GOOD + payload(b"d/o", b"12") + rename(b"d/t.ibd", b"d/u.ibd") + end(b"d/o") + end(b"x")
    )
    done = rescue.read(unsealed(tmp_path, [stream]), places.MASTER, tmp_path)
    assert done.returncode == 0, done.stderr
    cut = len(stream) - len(end(b"d/o") + end(b"x"))
    assert done.stdout == stream[:cut] + payload(b"d/o", b"", 2) + stream[cut:]
    (tmp_path / "target").mkdir()
    argv = ["mbstream", "-x", "-C", str(tmp_path / "target")]
    taken = subprocess.run(argv, input=done.stdout, capture_output=True, check=False)
    assert taken.returncode == 0, taken.stderr
    assert (tmp_path / "target" / "d" / "o").read_bytes() == b"12"


def test_memory_stays_small(tmp_path: Path) -> None:
    """This holds even if a few hundred KiB expand to 200 MiB."""
    record = unsealed(tmp_path, [whole(b"zeros", bytes(200 * MIB))])
    # The figure of a child includes its parent's memory at the fork, so a small process forks it.
    small = (
        "import resource, subprocess, sys; "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    argv = [str(rescue.READER), str(record), str(places.MASTER), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", small, sys.executable, *argv], capture_output=True, check=True
    )
    assert 8 << 10 < int(done.stdout) < 64 << 10  # KiB
