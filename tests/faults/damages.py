"""Damages to stored objects and records. Each kind is a function of chance.

These damages are left out, because they change nothing for our readers or can't be seen by design:

- the object that joins the segments (SLO), sub-manifests and checks, which only other tools read;
- the digests beside the bytes, which give an early warning, while those that count are inside;
- a complete older state of record, lists and segments, see docs/format.md for the reason;
- a change that leaves every byte as it was.
"""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

from agent.errors import (
    AgentError,
    BackupUnknown,
    BackupUnusable,
    DataError,
    StoreMismatch,
)
from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey
from agent.model import BackupStatus, Record
from agent.records.object_names import attempt_prefix, list_name, record_name
from agent.store.protocol import Container
from tests.faults.chain import Chain, Place

Changes = Mapping[Place, bytes | None]
Damage = Callable[[Random, Chain], Changes]

REFUSALS: Final[tuple[type[AgentError], ...]] = (
    DataError,
    BackupUnknown,
    BackupUnusable,
    StoreMismatch,
)


# --- segments ------------------------------------------------------------------------------


def flip(chance: Random, chain: Chain) -> Changes:
    """Flip one bit of a segment, a list or a record."""
    place, body = _any_object(chance, chain)
    changed = bytearray(body)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return {place: bytes(changed)}


def flip_segment(chance: Random, chain: Chain) -> Changes:
    place, body = _segment(chance, chain)
    changed = bytearray(body)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return {place: bytes(changed)}


def overwrite(chance: Random, chain: Chain) -> Changes:
    """Overwrite a run of a segment with random bytes."""
    place, body = _segment(chance, chain)
    count = chance.randrange(4, 4096)
    at = chance.randrange(len(body) - count)
    return {place: body[:at] + chance.randbytes(count) + body[at + count :]}


def cut(chance: Random, chain: Chain) -> Changes:
    place, body = _any_object(chance, chain)
    return {place: body[: chance.randrange(len(body))]}


def extend(chance: Random, chain: Chain) -> Changes:
    place, body = _any_object(chance, chain)
    return {place: body + chance.randbytes(chance.choice((1, 16, 1000)))}


def swap(chance: Random, chain: Chain) -> Changes:
    """Exchange two segments of one backup."""
    first, second = _two(chance, chain)
    return {first: chain.objects[second], second: chain.objects[first]}


def duplicate(chance: Random, chain: Chain) -> Changes:
    """Put a copy of a segment in the place of another one."""
    first, second = _two(chance, chain)
    return {first: chain.objects[second]}


def swap_slabs(chance: Random, chain: Chain) -> Changes:
    """Exchange two parts of a segment."""
    place, body = _segment(chance, chain)
    half = chance.randrange(1, len(body))
    return {place: body[half:] + body[:half]}


def lose(chance: Random, chain: Chain) -> Changes:
    place, _ = _any_object(chance, chain)
    return {place: None}


def lose_last(chance: Random, chain: Chain) -> Changes:
    """Delete the end of the stream, which is its last segments."""
    names = chain.names(_backup(chance, chain))
    return {(Container.SEGMENTS, name): None for name in names[-chance.randint(1, 3) :]}


def of_older_attempt(chance: Random, chain: Chain) -> Changes:
    """Replace a segment or list by the one of the first attempt in the same place."""
    prefix = attempt_prefix(chain.full.id, chain.full.attempt)
    older = [(name.rsplit("/", 1)[1], body) for (_, name), body in _segment_shelf(chain.older)]
    known = [
        (tail, body) for tail, body in older if (Container.SEGMENTS, prefix + tail) in chain.objects
    ]
    tail, body = chance.choice(known)
    return {(Container.SEGMENTS, prefix + tail): body}


def all_of_older_attempt(_chance: Random, chain: Chain) -> Changes:
    """Store all segments of the first attempt under the names of the second."""
    prefix = attempt_prefix(chain.full.id, chain.full.attempt)
    return {
        (Container.SEGMENTS, prefix + name.rsplit("/", 1)[1]): body
        for (_, name), body in _segment_shelf(chain.older)
        if name.rsplit("/", 1)[1].isdigit()
    }


def of_another_backup(chance: Random, chain: Chain) -> Changes:
    """Replace a segment by another backup's segment in the same place."""
    mine, theirs = _pair(chance, chain)
    number = chance.randrange(min(len(chain.names(mine)), len(chain.names(theirs))))
    body = chain.objects[Container.SEGMENTS, chain.names(theirs)[number]]
    return {(Container.SEGMENTS, chain.names(mine)[number]): body}


# --- lists ---------------------------------------------------------------------------------


def list_of_another_backup(chance: Random, chain: Chain) -> Changes:
    mine, theirs = _pair(chance, chain)
    return {_list(mine): chain.objects[_list(theirs)]}


def exchange_lists(_chance: Random, chain: Chain) -> Changes:
    first, second = _list(chain.full), _list(chain.incremental)
    return {first: chain.objects[second], second: chain.objects[first]}


def reorder_list(chance: Random, chain: Chain) -> Changes:
    """Reorder the lines of a list, repeat one, or drop one."""
    place = _list(_backup(chance, chain))
    lines = chain.objects[place].splitlines(keepends=True)
    changed = list(lines)
    kind = chance.randrange(3)
    if kind == 0:
        while changed == lines:
            chance.shuffle(changed)
    elif kind == 1:
        changed.insert(chance.randrange(len(lines)), chance.choice(lines))
    else:
        del changed[chance.randrange(len(lines))]
    return {place: b"".join(changed)}


# --- records -------------------------------------------------------------------------------


def record_of_another_backup(chance: Random, chain: Chain) -> Changes:
    mine, theirs = _pair(chance, chain)
    return {_record(mine): chain.objects[_record(theirs)]}


def record_of_older_attempt(_chance: Random, chain: Chain) -> Changes:
    """Roll the record back to the first attempt, whose segments are deleted."""
    return {_record(chain.full): chain.older[_record(chain.full)]}


def change_record(chance: Random, chain: Chain) -> Changes:
    """Change a field of a record and keep the old MAC."""
    record = _backup(chance, chain)
    line, seal = chain.objects[_record(record)].splitlines(keepends=True)
    return {_record(record): _changed(chance, line) + seal}


def mac_of_another_record(chance: Random, chain: Chain) -> Changes:
    mine, theirs = _pair(chance, chain)
    line = chain.objects[_record(mine)].splitlines(keepends=True)[0]
    line = chance.choice((line, _changed(chance, line)))
    return {_record(mine): line + chain.objects[_record(theirs)].splitlines(keepends=True)[1]}


def sign_with_another_key(chance: Random, chain: Chain) -> Changes:
    """Sign a valid or changed record by another key, which has our key's id or its own."""
    record = _backup(chance, chain)
    line = chain.objects[_record(record)].splitlines()[0]
    key = MasterKey(chance.choice((chain.keyring.active.id, "foreign")), chance.randbytes(32))
    forger = Keyring({key.id: key}, key.id)
    return {_record(record): forger.sign(chance.choice((line, _changed(chance, line).strip())))}


def say_plaintext(chance: Random, chain: Chain) -> Changes:
    """Make the record say that nothing is encrypted, with the old MAC or even a valid one."""
    record = _backup(chance, chain)
    plain = record.model_copy(update={"cipher": "none", "keys": ()})
    line = plain.model_dump_json().encode()
    seal = chain.objects[_record(record)].splitlines(keepends=True)[1]
    return {_record(record): chance.choice((line + b"\n" + seal, chain.keyring.sign(line)))}


def give_up_status(chance: Random, chain: Chain) -> Changes:
    """Sign a record with another status. Only a COMPLETED backup may be restored."""
    record = _backup(chance, chain)
    status = chance.choice([one for one in BackupStatus if one is not BackupStatus.COMPLETED])
    line = record.model_copy(update={"status": status}).model_dump_json().encode()
    return {_record(record): chain.keyring.sign(line)}


def other_data_key(chance: Random, chain: Chain) -> Changes:
    """Sign a record with the wrapped data key of another attempt."""
    mine, theirs = _pair(chance, chain)
    line = mine.model_copy(update={"keys": theirs.keys}).model_dump_json().encode()
    return {_record(mine): chain.keyring.sign(line)}


def no_record(chance: Random, chain: Chain) -> Changes:
    """Replace a record by bytes that are no record."""
    body = chance.choice((b"", b"{}\n", b"[]\n{}\n", chance.randbytes(500), b"\n\n", b"null\n{}"))
    return {_record(_backup(chance, chain)): body}


KINDS: Final[tuple[Damage, ...]] = (
    flip,
    flip_segment,
    overwrite,
    cut,
    extend,
    swap,
    duplicate,
    swap_slabs,
    lose,
    lose_last,
    of_older_attempt,
    all_of_older_attempt,
    of_another_backup,
    list_of_another_backup,
    exchange_lists,
    reorder_list,
    record_of_another_backup,
    record_of_older_attempt,
    change_record,
    mac_of_another_record,
    sign_with_another_key,
    say_plaintext,
    give_up_status,
    other_data_key,
    no_record,
)


# --- chance --------------------------------------------------------------------------------


def _backup(chance: Random, chain: Chain) -> Record:
    return chance.choice((chain.full, chain.incremental))


def _pair(chance: Random, chain: Chain) -> tuple[Record, Record]:
    """Return a backup of the chain, and another backup."""
    mine = _backup(chance, chain)
    others = [one for one in (chain.full, chain.incremental, chain.other) if one.id != mine.id]
    return mine, chance.choice(others)


def _segment(chance: Random, chain: Chain) -> tuple[Place, bytes]:
    place = (Container.SEGMENTS, chance.choice(chain.names(_backup(chance, chain))))
    return place, chain.objects[place]


def _two(chance: Random, chain: Chain) -> tuple[Place, Place]:
    first, second = chance.sample(chain.names(_backup(chance, chain)), 2)
    return (Container.SEGMENTS, first), (Container.SEGMENTS, second)


def _any_object(chance: Random, chain: Chain) -> tuple[Place, bytes]:
    record = _backup(chance, chain)
    place = chance.choice((_record(record), _list(record), _segment(chance, chain)[0]))
    return place, chain.objects[place]


def _segment_shelf(objects: Mapping[Place, bytes]) -> list[tuple[Place, bytes]]:
    return [(place, body) for place, body in objects.items() if place[0] is Container.SEGMENTS]


def _list(record: Record) -> Place:
    return Container.SEGMENTS, list_name(record.id, record.attempt, 0)


def _record(record: Record) -> Place:
    return Container.OBJECTS, record_name(record.id)


def _changed(chance: Random, line: bytes) -> bytes:
    """Return line 1 of a record with the value of one field changed, at any depth."""
    record: dict[str, Any] = json.loads(line)
    inside = record
    while True:
        name = chance.choice(sorted(inside))
        if not isinstance(inside[name], dict):
            break
        inside = inside[name]
    inside[name] = chance.choice([one for one in _OTHER_VALUES if one != inside[name]])
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


_OTHER_VALUES: Final[tuple[object, ...]] = (
    None,
    0,
    1,
    "",
    "none",
    "COMPLETED",
    [],
    "../../etc",
    1 << 60,
    True,
)
