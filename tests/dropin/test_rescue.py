"""Backups of the image are opened by docs/open_backup.py alone."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.keys.master import key_text
from tests.dropin.image import Image

SCRIPT = Path(__file__).parents[2] / "docs" / "open_backup.py"


@pytest.mark.parametrize("sealed", [True, False])
def test_the_rescue_script_opens_a_whole_object(
    image: Image, tmp_path: Path, request: pytest.FixtureRequest, sealed: bool
) -> None:
    if sealed:
        request.getfixturevalue("sealing")
    made = image.backup()
    downloaded = tmp_path / "backup.xbstream.gz"
    with image.request("GET", f"/{made.id}.xbstream.gz") as answer:
        downloaded.write_bytes(answer.read())
    key = tmp_path / "keys" / "trove.key" if sealed else "none"
    page = (SCRIPT.parent / "restore-without-the-agent.md").read_text()
    found = re.search(r"<!-- run: trove -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert found
    shutil.copy(SCRIPT, tmp_path)
    opened = subprocess.run(
        ["bash", "-c", found[1]],
        cwd=tmp_path,
        env={"ID": "backup", "KEY": str(key), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert opened.returncode == 0, opened.stderr
    assert ("NOT CHECKED" in opened.stderr) is not sealed
    assert (tmp_path / "backup" / "xtrabackup_checkpoints").exists()


def test_the_rescue_script_refuses_an_unsigned_record_if_a_key_is_given(
    image: Image, tmp_path: Path
) -> None:
    """Whoever can write to the store could replace an encrypted backup by such an object."""
    made = image.backup()
    downloaded = tmp_path / "backup.xbstream.gz"
    with image.request("GET", f"/{made.id}.xbstream.gz") as answer:
        downloaded.write_bytes(answer.read())
    key = tmp_path / "k.key"
    key.write_text(key_text(bytes(32)))
    opened = subprocess.run(
        [sys.executable, str(SCRIPT), str(downloaded), str(key), str(downloaded)],
        capture_output=True,
        check=False,
    )
    assert opened.returncode == 1
    assert b"not signed" in opened.stderr
    assert opened.stdout == b""


def test_the_rescue_script_notices_a_changed_record(sealing: Image, tmp_path: Path) -> None:
    made = sealing.backup()
    with sealing.request("GET", f"/{made.id}.xbstream.gz") as answer:
        body = bytearray(answer.read())
    at = body.rindex(b'"to_lsn":') + 9
    body[at] = ord("9") if body[at] != ord("9") else ord("8")
    downloaded = tmp_path / "backup.xbstream.gz"
    downloaded.write_bytes(body)
    key = str(tmp_path / "keys" / "trove.key")
    opened = subprocess.run(
        [sys.executable, str(SCRIPT), str(downloaded), key, str(downloaded)],
        capture_output=True,
        check=False,
    )
    assert opened.returncode == 1
    assert b"was changed" in opened.stderr
