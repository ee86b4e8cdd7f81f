"""The image's main.py as a process, with the arguments that Trove's guest agent gives it."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from agent.records.trove.names import UNFINISHED
from tests.stack.mariadb import MariaDB
from tests.stack.swift import SwiftServer

MAIN = Path(__file__).parents[2] / "trove" / "image" / "main.py"
# The pattern of trove/guestagent/datastore/service.py.
RESULT = re.compile(
    r".*Backup successfully, checksum: (?P<checksum>.*), location: (?P<location>.*)"
)
PASSWORD = "secret-of-os-admin"


class Made(NamedTuple):
    """What Trove notes of a backup."""

    id: str
    checksum: str
    location: str


@dataclass
class Image:
    """The drop-in on one database and one Swift.

    `folder` is the state directory. `environment` has further variables. A Swift behind Keystone
    needs a `token`.
    """

    folder: Path
    mariadb: MariaDB
    swift: SwiftServer
    container: str = field(default_factory=lambda: f"backups-{uuid.uuid4()}")
    environment: dict[str, str] = field(default_factory=dict)
    token: str = ""

    def __post_init__(self) -> None:
        self.token = self.token or token_of(self.swift)
        self.mariadb.query(
            f"CREATE OR REPLACE USER os_admin@localhost IDENTIFIED BY '{PASSWORD}';"
            "GRANT ALL ON *.* TO os_admin@localhost"
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run main.py to its end."""
        return subprocess.run(
            [sys.executable, str(MAIN), *arguments],
            env=self.variables | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @property
    def variables(self) -> dict[str, str]:
        prefix = "BACKUP_AGENT_"
        own = {
            f"{prefix}DATABASE__SOCKET": str(self.mariadb.socket),
            f"{prefix}AGENT__STATE_FOLDER": str(self.folder / "state"),
        }
        kept = {"PATH", "HOME", "TMPDIR"}
        return {k: v for k, v in os.environ.items() if k in kept} | own | self.environment

    def login(self) -> list[str]:
        """Return the options of the login, as Trove 26 gives them."""
        return [f"--os-token={self.token}", f"--swift-url={self.swift.storage_url}"]

    def arguments(self, backup_id: str, parent: Made | None = None) -> list[str]:
        """Return the arguments of a backup, as the guest agent of Trove 26 gives them."""
        base = [
            "--backup",
            f"--backup-id={backup_id}",
            "--storage-driver=swift",
            "--driver=mariabackup",
            *self.login(),
            "--db-host=localhost",
            "--db-user=os_admin",
            f"--db-password={PASSWORD}",
            "--swift-extra-metadata=datastore:mariadb,datastore_version:10.11",
            f"--swift-container={self.container}",
        ]
        if parent is None:
            return base
        place = [f"--parent-location={parent.location}", f"--parent-checksum={parent.checksum}"]
        return [*base, "--incremental", *place]

    def failed(self, parent: Made | None = None, *others: str, **variables: str) -> str:
        """Make a backup that must fail, and return the last line of all its output.

        The guest agent logs that line. Nothing of the backup may be left, but its marker if the
        store may still process a request.
        """
        before = self.names()
        replaced = {one.partition("=")[0] for one in others}
        given = self.arguments(str(uuid.uuid4()), parent)
        arguments = [*(one for one in given if one.partition("=")[0] not in replaced), *others]
        done = self.run(*arguments, **variables)
        assert done.returncode not in (0, None)
        assert done.stdout == ""
        assert [name for name in self.names() if not name.startswith(UNFINISHED)] == before
        return done.stderr.splitlines()[-1]

    def backup(self, parent: Made | None = None, **variables: str) -> Made:
        """Make a backup that must succeed."""
        backup_id = str(uuid.uuid4())
        done = self.run(*self.arguments(backup_id, parent), **variables)
        assert done.returncode == 0, done.stderr
        found = RESULT.match(done.stdout.splitlines()[-1])
        assert found, done.stdout
        return Made(backup_id, found["checksum"], found["location"])

    def restore_arguments(self, made: Made, target: Path) -> list[str]:
        return [
            "--nobackup",
            "--storage-driver=swift",
            "--driver=mariabackup",
            *self.login(),
            f"--restore-from={made.location}",
            f"--restore-checksum={made.checksum}",
            f"--db-datadir={target}",
        ]

    def restore(self, made: Made, target: Path) -> subprocess.CompletedProcess[str]:
        """Restore a chain into `target`, as an empty directory that Trove leaves there."""
        target.mkdir()
        return self.run(*self.restore_arguments(made, target))

    # --- what the container holds -------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all objects in the container, none if there is no container."""
        try:
            text = str(self.request("GET", "?limit=10000").read(), "utf-8")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return []
        return text.split("\n")[:-1]

    def delete(self, made: Made) -> None:
        """Delete a backup as Trove's API does."""
        self.request("DELETE", f"/{made.id}.xbstream.gz?multipart-manifest=delete").read()

    def put(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Store an object as other programs do."""
        self.request("PUT", path, headers, body).close()

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> Any:
        request = urllib.request.Request(  # noqa: S310 - a loopback URL of the test
            f"{self.swift.storage_url}/{self.container}{path}",
            method=method,
            data=body,
            headers={"X-Auth-Token": self.token} | (headers or {}),
        )
        return urllib.request.urlopen(request, timeout=30)  # noqa: S310


def token_of(swift: SwiftServer) -> str:
    """Return a token of the Swift's user."""
    headers = {"X-Auth-User": swift.user, "X-Auth-Key": swift.key}
    request = urllib.request.Request(swift.auth_url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return str(answer.headers["X-Auth-Token"])
