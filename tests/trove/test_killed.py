"""Runs of the drop-in that are killed at twenty random moments."""

from pathlib import Path

from tests.dropin.image import Image
from tests.dropin.test_killed import kill_at_random
from tests.stack.mariadb import MariaDB
from tests.stack.swift import SwiftServer


def test_twenty_random_moments(tmp_path: Path, mariadb: MariaDB, swift: SwiftServer) -> None:
    kill_at_random(Image(tmp_path, mariadb, swift), 20)
