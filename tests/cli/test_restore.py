"""`restore --local` ends by naming the owner of the folder on which a server will start."""

import getpass
import os
import shutil
from pathlib import Path

import pytest

from agent.cli import restore
from agent.errors import TargetRefused


def test_the_owner_is_named_and_how_to_give_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, me = tmp_path / "of me", getpass.getuser()
    target.mkdir()
    monkeypatch.setattr(restore, "_SERVER_USER", "another")
    said = restore._owner_note(target)
    assert said.startswith(f"it belongs to {me}: ")
    assert said.endswith(f"chown -R another: '{target}'")
    monkeypatch.setattr(restore, "_SERVER_USER", me)
    assert restore._owner_note(target) == f"it belongs to {me}: start a server on it as that user"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_without_a_name(tmp_path: Path) -> None:
    shutil.chown(tmp_path, 4321, 4321)
    assert "belongs to uid 4321: " in restore._owner_note(tmp_path)


def test_a_folder_that_was_removed_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(TargetRefused, match="No such file"):
        restore._owner_note(tmp_path / "gone")
