"""Open one stored backup of backup-agent WITHOUT backup-agent: segments in, xbstream out.

    python3 open_backup.py RECORD KEY STORED | mbstream -x -C EMPTY_DIRECTORY

RECORD  the file <id>.json; or the whole object <id>.xbstream.gz of a backup under OpenStack Trove,
        which has its record at its end
KEY     a master key <id>.key, or a recovery private key in PEM (asks for its passphrase);
        the word "none" for a backup that was never encrypted
STORED  the directory with the downloaded segments 00000000, 00000001, ...; or the joined
        object <id>.xbstream.gz.enc; or "-" for that object on standard input.
        Under Trove: the object again

It needs only Python 3.9 and the package `cryptography` (Debian: python3-cryptography).
Exit status 0: every byte came out and was checked. More: docs/restore-without-the-agent.md
"""

import base64
import getpass
import hashlib
import hmac
import json
import sys
import zlib
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MIB = 1 << 20


def failed(text):
    """Return an exception that prints `text`, escaped for terminals, and ends with status 1."""
    return SystemExit(f"open_backup: FAILED: {repr(str(text))[1:-1]}\nNOT ALL CAME OUT: delete it")


def derive(master, purpose):
    """Derive the key for `purpose` ("wrap" or "mac") from a master key."""
    return HKDF(hashes.SHA256(), 32, None, b"backup-agent v1 " + purpose).derive(master)


def read_key(path):
    """Return a master key's bytes, a recovery key (an object), or b"" if `path` is "none"."""
    data = b"" if path == "none" else Path(path).read_bytes()
    try:
        if path == "none" or len(data.strip()) == 44:
            return base64.b64decode(data.strip(), validate=True)
        phrase = getpass.getpass(f"passphrase of {path}: ") if b"ENCRYPTED" in data else ""
        return serialization.load_pem_private_key(data, phrase.encode() or None)
    except (ValueError, TypeError):
        raise failed(f"{path} is no key (base64 or PEM), or the passphrase is wrong") from None


def at_the_end(path):
    """Return the record at the end of an object under Trove, or the whole file if it has none."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 34))
        end = file.read()  # the last gzip member, which tells the length of the others
        length = number(end[16:24]) if end[10:16] == b"\x0c\0BL\x08\0" else size
        if length > 64 * MIB:
            raise failed(f"{path} is not a record, and none is at its end")
        file.seek(max(0, size - length))
        members, texts, at = file.read(length), [], 0
    while length < size and at < length - 34:  # each has its text behind 16 bytes
        texts.append(members[at + 16 : at + 16 + number(members[at + 14 : at + 16])])
        at += 26 + len(texts[-1])
    return b"".join(texts) or members


def read_record(path, key):
    """Return the record in line 1. Line 2 is its MAC, which only a master key can check."""
    line, _, seal = at_the_end(path).partition(b"\n")
    seal = seal.split(b"\n")[0]
    try:
        record, sealed = json.loads(line), json.loads(seal)
        record = record.get("record", record)
        # under Trove, without a key, nothing is signed
        signer, mac = (None, "") if sealed == {} else (sealed["key_id"], sealed["mac"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise failed(f"{path} is not a whole record: download <id>.json again") from None
    if not key or not isinstance(key, bytes):
        print(f"WARNING: RECORD NOT CHECKED: it takes the master key {signer!r}", file=sys.stderr)
    elif not mac:
        raise failed(f'{path} is not signed: give "none" as key if you believe it')
    elif mac != hmac.new(derive(key, b"mac"), line, "sha256").hexdigest():
        raise failed(f"{path} was changed (download it again), or master key {signer!r} is needed")
    if record["format"] != 1 or record["status"] != "COMPLETED":
        raise failed(f"the backup is {record['status']}, of format {record['format']}: not usable")
    return record


def unwrap(record, key):
    """Return the backup's data key. The record holds it, wrapped with each key that opens it."""
    kind = "A256KW" if isinstance(key, bytes) else "RSA-OAEP-256"
    for entry in (one for one in record["keys"] if key and one["alg"] == kind):
        wrapped, sha256 = base64.b64decode(entry["wrapped"]), hashes.SHA256()
        try:
            if kind == "A256KW":
                return keywrap.aes_key_unwrap(derive(key, b"wrap"), wrapped)
            return key.decrypt(wrapped, padding.OAEP(padding.MGF1(sha256), sha256, None))
        except (ValueError, keywrap.InvalidUnwrap):
            continue  # wrapped by another key
    raise failed(f"this key does not open it; these do: {[one['id'] for one in record['keys']]}")


def pieces(path, stored, alone):
    """Yield the stored bytes, 1 MiB at a time. They must match the lists of the record.

    `alone` is False if the record follows them in the same file.
    """
    size, whole, total, files = stored["segment_size"], stored["stored_bytes"], 0, [Path(path)]
    if files[0].is_dir():
        most = sum(1 for _ in files[0].iterdir()) + 9  # with a larger count at least 9 are missing
        files = [files[0] / f"{number:08d}" for number in range(min(stored["segment_count"], most))]
        if gone := [file.name for file in files if not file.exists()]:
            raise failed(f"{path} lacks {len(gone)} segments: download {', '.join(gone[:9])}")
    lines, md5 = [], hashlib.md5()  # noqa: S324 - the hash that Swift uses
    for file in files:
        with open(0 if path == "-" else file, "rb") as opened:
            while piece := opened.read(min(MIB, whole - total)):
                total += len(piece)
                md5.update(piece)
                if total % size == 0 or total == whole:  # a segment ends here
                    lines.append(f"{(total - 1) % size + 1} {md5.hexdigest()}\n")
                    md5 = hashlib.md5()  # noqa: S324
                yield piece
            total += len(opened.read(1)) if alone else 0
    lists = ["".join(lines[at : at + 1000]).encode() for at in range(0, len(lines), 1000)]
    hashes_found = [hashlib.sha256(one).hexdigest() for one in lists]  # docs/format.md
    if total != whole or hashes_found != [one["sha256"] for one in stored["lists"]]:
        raise failed(f"{path} ({total} bytes) is not what the record lists ({whole}): download it")


def decrypted(sealed, key, record):
    """Yield the plaintext. Each MiB has a tag, which fails if that MiB was changed or moved."""
    last, prefix, aes = (record["stored"]["stored_bytes"] - 1) // MIB, b"", None
    for number, piece in enumerate(sealed):
        if number == 0:
            salt, prefix, piece = piece[1:33], piece[33:40], piece[40:]
            aes = AESGCM(HKDF(hashes.SHA256(), 32, salt, record["id"].encode()).derive(key))
        nonce = prefix + number.to_bytes(4, "big") + (b"\1" if number == last else b"\0")
        try:
            yield aes.decrypt(nonce, piece, None)
        except (InvalidTag, ValueError):
            segment = f"{number * MIB // record['stored']['segment_size']:08d}"
            raise failed(f"segment {segment} is damaged, cut, or of another backup") from None


def inflated(stream):
    """Yield the contents of the gzip members, in order. zlib checks the CRC of each."""
    member = zlib.decompressobj(31)
    for data in stream:
        while data:
            member = zlib.decompressobj(31) if member.eof else member
            yield member.decompress(data, MIB)
            data = member.unused_data or member.unconsumed_tail
    if not member.eof:
        raise failed("the stored bytes end too early")


class Reader:
    """A buffer that returns the stream's bytes in any amount."""

    def __init__(self, pieces):
        self.pieces, self.held, self.at, self.total = pieces, b"", 0, 0

    def take(self, size, least=None):
        """Return the next `size` bytes. Fail if there are fewer than `least` (default: `size`)."""
        while len(self.held) - self.at < size and (piece := next(self.pieces, None)) is not None:
            self.held, self.at = self.held[self.at :] + piece, 0
        taken = self.held[self.at : self.at + size]
        self.back(-len(taken))
        if len(taken) < (size if least is None else least):
            raise failed("the xbstream ends in the middle of a chunk")
        return taken

    def back(self, size):
        """Put the last `size` bytes back."""
        self.at, self.total = self.at - size, self.total - size


def number(field):
    return int.from_bytes(field, "little")


def plain(path):
    """Return the path if it stays inside. mbstream does not check the paths of R and D."""
    if (
        not path
        or len(path) > 506
        or path[:1] == b"/"
        or b"\0" in path
        or b".." in path.split(b"/")
    ):
        raise failed(f"whoever made this backup put the path {path!r} into it: do not restore it")
    return path


def judged(stream):
    """Yield the xbstream chunk by chunk (agent/codec/xbstream.py), after a check of its paths.

    mbstream stops at the first E after an R if no P is between them. So add an empty P there.
    """
    magic, ends, renamed = b"XBSTCK01", {}, False  # the length so far of each unfinished file
    while head := stream.take(14, least=0):
        kind, left = head[9:10], 0  # bytes of payload that follow
        if head[:8] != magic or len(head) < 14 or kind not in b"PERDS":
            raise failed("this is no xbstream, or it has chunks of an unknown type")
        head += (path := plain(stream.take(min(number(head[10:]), 512))))
        if kind == b"P":  # length, offset, CRC
            head += stream.take(20)
            left, renamed = number(head[-20:-12]), False
            ends[path] = number(head[-12:-4]) + left
            if path.endswith(b".ren"):  # the name that the prepare gives a table
                name, whole = stream.take(min(left, 512)), ends[path] == left
                head, left = head + plain(name if whole else b"/" + name), 0
        elif kind == b"E":
            at, empty = ends.pop(path, 0), head[:9] + b"P" + head[10:] + bytes(8)
            head = empty + at.to_bytes(8, "little") + bytes(4) + head if renamed else head
            renamed = False
        elif kind == b"R":  # the other path
            size = stream.take(4)
            head, renamed = head + size + plain(stream.take(min(number(size), 512))), True
            if head.endswith(b".ren"):
                raise failed("it renames a file to what only an engine writes: do not restore it")
        elif kind == b"S":  # MariaDB: an offset; Percona: entries, length, offset, CRC, map
            head += stream.take(8)
            following = stream.take(16, least=0)
            if following[:8] == magic or len(following) < 16:
                stream.back(len(following))
                ends[path] = number(head[-8:])
            else:
                left = number(head[-8:-4]) * 8 + number(head[-4:] + following[:4])
                head += following
        yield head
        while left:
            yield (piece := stream.take(min(left, MIB)))
            left -= len(piece)


def main(record_path, key_path, stored_path):
    key = read_key(key_path)
    record = read_record(record_path, key)
    stream = pieces(stored_path, record["stored"], stored_path != record_path)
    whole = record["stored"]["raw_bytes"]
    if record["cipher"] != "none":
        stream = decrypted(stream, unwrap(record, key), record)
    elif not isinstance(key, bytes):  # this unchecked record may be forged
        raise failed('the record says "not encrypted": give "none" as key if you believe it')
    raw = Reader(inflated(stream))
    for data in judged(raw):
        if raw.total > whole:
            raise failed(f"more than {whole} bytes come out, the record says {whole}")
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    if raw.total != whole:
        raise failed(f"{raw.total} bytes came out, the record says {whole}")
    print(f"OK: all {whole} bytes came out; parent: {record['parent_id']!r}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.stdout.isatty():
        sys.exit(__doc__ + "\nIts output must go into a pipe or a file, not to a terminal.")
    try:
        main(*sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - a hostile record may raise any
        raise failed(str(error) or type(error).__name__) from None
