"""Runs that are killed at any moment: the next run leaves nothing of them."""

import random
import signal
import subprocess
import sys
import time
import uuid

import pytest

from agent.crash_points import VARIABLE
from tests.dropin.image import MAIN, RESULT, Image, Made
from tests.stack.process import poll

SEGMENTS = {"BACKUP_AGENT_PIPELINE__SEGMENT_BYTES": str(1 << 20)}
_POINTS = ["record-begun", "segment-stored:1", "segment-stored:5", "lists-stored", "object-stored"]


def killed(image: Image, point: str, parent: Made | None = None) -> str:
    """Run a backup that kills itself at a crash point, and return its id."""
    backup_id = str(uuid.uuid4())
    done = image.run(*image.arguments(backup_id, parent), **SEGMENTS, **{VARIABLE: point})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout == ""
    return backup_id


def only(image: Image, *backups: Made) -> None:
    """Check that the container has these backups and nothing else."""
    assert ids(image) == {made.id for made in backups}


def ids(image: Image) -> set[str]:
    """Return the ids of the backups of which the container has anything."""
    return {name.split("/")[0].split(".")[0] for name in image.names()}


@pytest.mark.parametrize("point", _POINTS)
def test_the_next_run_removes_what_a_killed_one_left(image: Image, point: str) -> None:
    lost = killed(image, point)
    assert any(lost in name for name in image.names())
    only(image, image.backup())


def test_random_moments(image: Image) -> None:
    """tests/trove does the same at twenty moments."""
    kill_at_random(image, 4)


def kill_at_random(image: Image, moments: int) -> None:
    """Kill runs at random moments. Nothing of them is left after the next run.

    No backup that Trove was told of is lost.
    """
    kept, unsure = [image.backup(None, **SEGMENTS)], set()
    seconds = _duration(image)
    chance = random.Random(20)
    for _ in range(moments):
        ended, made = _killed_after(image, chance.uniform(0.3, seconds * 1.1))
        if made and ended == 0:
            kept.append(made)
        elif made:
            # killed in its last step: if the marker was gone, nothing removes the backup
            unsure.add(made.id)
    kept.append(image.backup())
    left = {made.id for made in kept} | (unsure & ids(image))
    assert ids(image) == left
    assert len(unsure) <= 1


def _duration(image: Image) -> float:
    began = time.monotonic()
    image.delete(image.backup(None, **SEGMENTS))
    return time.monotonic() - began


def _killed_after(image: Image, seconds: float) -> tuple[int, Made | None]:
    """Run a backup and kill it after so many seconds.

    Return its exit status, and the backup if the run told that it is complete.
    """
    backup_id = str(uuid.uuid4())
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *image.arguments(backup_id)],
        env=image.variables | SEGMENTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate(timeout=60)
    found = RESULT.match(output)
    made = Made(backup_id, found["checksum"], found["location"]) if found else None
    return process.returncode, made


def test_a_marker_that_came_late_costs_no_backup(image: Image) -> None:
    """The store may process the request for a marker after the backup is complete."""
    made = image.backup()
    [segment, *_] = [name for name in image.names() if "/" in name]
    attempt = segment.split("/")[1]
    image.request("PUT", f"/backup-agent-unfinished/{made.id}/{attempt}").close()
    other = image.backup()
    only(image, made, other)


def test_segments_that_come_late_are_removed_by_the_next_run(image: Image) -> None:
    """A proxy may have the whole body of a request when its client is gone."""
    rule = {"match": r"/0000000[2-5]$", "method": "PUT", "action": "stall", "seconds": 4}
    image.swift.inject([rule | {"times": 9}])
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *image.arguments(str(uuid.uuid4()))],
        env=image.variables | SEGMENTS,
        stderr=subprocess.DEVNULL,
    )
    poll("segments are sent", lambda: len(_stalled(image)) == 4, 30)
    process.terminate()
    assert process.wait(10) == 1
    assert segments(image) == []
    image.swift.clear_faults()
    # they are stalled for the same time, so the others are there before the next run begins
    poll("a segment comes late", lambda: segments(image) != [], 30)
    only(image, image.backup())


def segments(image: Image) -> list[str]:
    return [name for name in image.names() if "/0000000" in name]


def _stalled(image: Image) -> list[str]:
    return [line for line in image.swift.requests() if image.container in line and "stall" in line]


def test_the_answer_about_the_marker_is_lost(image: Image) -> None:
    """The backup failed for Trove, and the store refuses to remove it."""
    image.swift.inject(
        [
            {"match": "unfinished", "method": "DELETE", "action": "mute", "times": 99},
            {"match": "", "method": "DELETE", "status": 503, "times": 999},
        ]
    )
    arguments = image.arguments(str(uuid.uuid4()))
    done = image.run(*arguments, BACKUP_AGENT_STORE__ATTEMPTS="1")
    assert done.returncode == 1
    image.swift.clear_faults()
    assert len(image.names()) > 1
    only(image, image.backup())


def test_one_false_404_about_the_marker_ends_nothing(image: Image) -> None:
    image.swift.inject([{"match": "unfinished", "method": "HEAD", "status": 404, "times": 1}])
    slow = {"BACKUP_AGENT_PIPELINE__BYTES_PER_SECOND": str(5 << 20)}
    only(image, image.backup(None, **slow))


def test_a_run_on_another_machine_is_left_alone(image: Image) -> None:
    backup_id, attempt = uuid.uuid4(), uuid.uuid4()
    for name in (
        f"backup-agent-unfinished/{backup_id}/{attempt}",
        f"{backup_id}/{attempt}/00000000",
    ):
        image.request("PUT", "").close()
        image.request("PUT", f"/{name}").close()
    image.backup()
    assert sum(str(attempt) in name for name in image.names()) == 2
