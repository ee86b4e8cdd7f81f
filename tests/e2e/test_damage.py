"""Changed bytes in the store are refused, and nothing of them is left in the target."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.objects import Objects
from tests.stack.agent import Agent

Damage = Callable[[Objects, list[str]], list[str]]


@pytest.fixture(scope="module")
def small_segments(agent_session: Agent) -> Iterator[Agent]:
    """Yield the session's agent with segments of 1 MiB, so that a backup has many.

    It requests a truncated segment twice, and not five times with pauses between.
    """
    agent_session.stop()
    agent_session.overrides = {
        "pipeline": {"segment_bytes": 1 << 20},
        "store": {"attempts": 2},
    }
    agent_session.start()
    yield agent_session
    agent_session.stop()
    agent_session.overrides = {}


@pytest.fixture(scope="module")
def stored(small_segments: Agent) -> str:
    return str(small_segments.create("to be damaged")["id"])


def flip_one_bit(objects: Objects, names: list[str]) -> list[str]:
    body = bytearray(objects.get(objects.segments, names[5]))
    body[len(body) // 2] ^= 0x10
    objects.put(objects.segments, names[5], bytes(body))
    return [names[5]]


def cut_the_tail(objects: Objects, names: list[str]) -> list[str]:
    body = objects.get(objects.segments, names[-1])
    objects.put(objects.segments, names[-1], body[:-1])
    return [names[-1]]


def swap_two(objects: Objects, names: list[str]) -> list[str]:
    third, fourth = (objects.get(objects.segments, name) for name in names[3:5])
    objects.put(objects.segments, names[3], fourth)
    objects.put(objects.segments, names[4], third)
    return names[3:5]


def lose_one(objects: Objects, names: list[str]) -> list[str]:
    objects.delete(objects.segments, names[2])
    return [names[2]]


@pytest.mark.parametrize("damage", [flip_one_bit, cut_the_tail, swap_two, lose_one])
def test_a_damaged_segment_fails_the_restore(
    small_segments: Agent, stored: str, tmp_path: Path, damage: Damage
) -> None:
    objects = Objects(small_segments)
    names = objects.segment_names(stored)
    assert len(names) > 8
    whole = {name: objects.get(objects.segments, name) for name in names}
    changed = damage(objects, names)
    done = small_segments.cli("restore", "--local", stored, tmp_path / "back")
    for name in changed:
        objects.put(objects.segments, name, whole[name])
    objects.close()
    assert done.returncode == 1
    assert "data_damaged" in done.stderr
    assert "what to do:" in done.stderr
    assert not (tmp_path / "back").exists()


def test_a_record_of_another_backup_is_refused(
    small_segments: Agent, stored: str, tmp_path: Path
) -> None:
    other = str(small_segments.create("other")["id"])
    objects = Objects(small_segments)
    name = f"{stored}.json"
    whole = objects.get(objects.container, name)
    objects.put(objects.container, name, objects.get(objects.container, f"{other}.json"))
    done = small_segments.cli("restore", "--local", stored, tmp_path / "back")
    listed = small_segments.cli("backup-list").stdout
    objects.put(objects.container, name, whole)
    objects.close()
    assert "record_damaged" in done.stderr
    assert "UNREADABLE" in listed
    assert other in listed


def test_a_changed_record_is_refused(small_segments: Agent, stored: str, tmp_path: Path) -> None:
    objects = Objects(small_segments)
    name = f"{stored}.json"
    whole = objects.get(objects.container, name)
    objects.put(objects.container, name, whole.replace(b'"from_lsn":0', b'"from_lsn":1'))
    done = small_segments.cli("restore", "--local", stored, tmp_path / "back")
    objects.put(objects.container, name, whole)
    objects.close()
    assert "record_damaged" in done.stderr


def test_another_key_opens_nothing(small_segments: Agent, stored: str, tmp_path: Path) -> None:
    key = small_segments.folder / "keys" / "stack.key"
    right = key.read_text()
    key.write_text("A" * 43 + "=\n")
    try:
        done = small_segments.cli("restore", "--local", stored, tmp_path / "back")
    finally:
        key.write_text(right)
    assert done.returncode == 1
    assert "key_not_here" in done.stderr
    assert not (tmp_path / "back").exists()


def test_a_target_that_is_not_empty_is_left_alone(
    small_segments: Agent, stored: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("data")
    done = small_segments.cli("restore", "--local", stored, tmp_path)
    assert done.returncode == 1
    assert "target_refused" in done.stderr
    assert (tmp_path / "precious").read_text() == "data"
