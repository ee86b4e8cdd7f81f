"""Trove with everything around it, and what a user does with it."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import pika
from pika.exceptions import ChannelClosedByBroker

from tests.stack.keystone import REGION, Account, KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.process import ServerProcess, StackError, free_port, poll, port_answers
from tests.stack.rabbitmq import RabbitMQ
from tests.stack.stack import Servers
from tests.stack.swift import SwiftServer
from tests.stack.trove import images
from tests.stack.trove.api import ApiError, TroveApi
from tests.stack.trove.build import Stage
from tests.stack.trove.cloud import IMAGE_ID, PATHS, USER_NETWORK_ID
from tests.stack.trove.compute import FLAVOR
from tests.stack.trove.configuration import Configuration
from tests.stack.trove.instance import Instance

VENV: Final = Path(os.environ.get("TROVE_VENV", images.CHECKOUT / ".venv-trove"))
VERSION: Final = "10.11"
INSTANCE_SECONDS: Final = 120.0
BACKUP_SECONDS: Final = 120.0
_SERVICES: Final = ("trove-conductor", "trove-taskmanager", "trove-api")
_QUEUES: Final = {"trove-taskmanager": "taskmanager", "trove-conductor": "trove-conductor"}
_HERE: Final = Path(__file__).parent


class TroveStack(Servers):
    """Keystone, Swift, RabbitMQ, MariaDB, Trove's three services and the stand-ins, in `folder`.

    As a context manager, it runs inside the block. Nothing that it started outlives the block, also
    if an error, Ctrl-C or SIGTERM ends it. Use it from the main thread, as root. `folder` should
    have a short path, because sockets are in it.

    `token_seconds` is the life of each token. `options` and `guest_options` are more options of
    [DEFAULT] for trove.conf and for the guest agents' file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        token_seconds: int = 3600,
        options: Mapping[str, object] | None = None,
        guest_options: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.keystone = KeystoneServer(folder / "keystone", token_seconds=token_seconds)
        self.swift = SwiftServer(folder / "swift", keystone=self.keystone)
        self.rabbitmq = RabbitMQ(folder / "rabbitmq")
        self.mariadb = MariaDB(folder / "mariadb")
        self.account = Account("trove", secrets.token_hex(8), "Default")
        self.port, self._cloud_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.images_file = folder / "images" / "images.json"
        self.configuration = Configuration(
            folder,
            self.port,
            VENV,
            self.keystone,
            self.rabbitmq,
            self.mariadb,
            self.account,
            options or {},
            guest_options or {},
        )
        self._cloud: ServerProcess | None = None
        self._services: dict[str, ServerProcess] = {}
        self._token, self._token_until = "", 0.0
        self.api = TroveApi(self.address, self.keystone.project_id, self.user_token)

    # --- its life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all servers and wait until they answer."""
        self.images_file.parent.mkdir(exist_ok=True)
        self.use_image("trove")
        self.rabbitmq.launch()
        self.keystone.launch()
        self.swift.launch()
        self._start_cloud()
        self.mariadb.install()
        self.mariadb.start()
        self.mariadb.query("CREATE DATABASE trove CHARACTER SET utf8mb3")
        self.configuration.write()
        schema = self._program("python", "-I", str(_HERE / "schema.py"), self._conf, VERSION)
        with (self.folder / "schema.log").open("wb") as log:
            made = subprocess.Popen([*schema, IMAGE_ID], stdout=log, stderr=log)
            self.keystone.wait_ready()
            self._fill_keystone()
            self.swift.wait_ready()
            self.rabbitmq.wait_ready()
            if made.wait(120):
                raise StackError(f"no tables:\n{(self.folder / 'schema.log').read_text()[-3000:]}")
        for name in _SERVICES:
            self.start_service(name)
        self._services["trove-api"].wait_ready(lambda: port_answers(self.port), 60)
        # an order to a service that has no queue yet would be lost
        for name, queue in _QUEUES.items():
            self._services[name].wait_ready(partial(self._has_consumer, queue), 60)

    def stop(self) -> None:
        """End everything, even if ending one of them fails."""
        with ExitStack() as ends:
            for server in (self.rabbitmq, self.mariadb, self.swift, self.keystone):
                ends.callback(server.stop)
            for name in self._services:
                ends.callback(self.stop_service, name)
            if self._cloud:
                ends.callback(self._cloud.stop)

    def start_service(self, name: str) -> None:
        """Start one of Trove's services, as in `trove-conductor`."""
        argv = self._program(name, "--config-file", self._conf)
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._services[name] = ServerProcess(argv, self.folder / f"{name}.log", env)

    def stop_service(self, name: str, signum: int = signal.SIGKILL) -> None:
        """End one of Trove's services. SIGKILL by default: it saves seconds, and loses nothing."""
        self._services[name].stop(signum)

    # --- what a user does ----------------------------------------------------------------------

    def use_image(
        self,
        name: str,
        tags: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
        files: Mapping[str, Path] | None = None,
        directory: str = "",
    ) -> None:
        """Let the backup image be Trove's own ("trove") or this project's ("drop-in").

        Its programs are those of this checkout: see `use_built` for a built image. It applies to
        each container from now on. `tags` are the tags that the registry has. `environment` and
        `files` are what an operator puts into the image: variables, and files or directories of
        this machine by their path in the image (read-only). A file must be in
        `images_file.parent`, because machines see nothing else of /tmp. `directory` is the
        working directory, if it isn't that of the image.
        """
        programs, own = {
            "trove": (VENV / "bin", VENV / "src" / "backup"),
            "drop-in": (Path(sys.executable).parent, images.CHECKOUT / "trove" / "image"),
        }[name]
        backup = images.Image(
            [VERSION] if tags is None else tags,
            str(programs),
            directory or str(own),
            environment=dict(environment or {}),
            files={target: str(source) for target, source in (files or {}).items()},
        )
        self._use(backup)

    def use_built(self, stage: Stage) -> None:
        """Let the backup image be a built one, which is in the directory of `images_file`."""
        self._use(stage.image([VERSION]))

    def _use(self, backup: images.Image) -> None:
        database = images.Image(
            [VERSION], str(_HERE / "image"), entrypoint=["docker-entrypoint.sh"]
        )
        images.write(self.images_file, {images.DATABASE: database, images.BACKUP: backup})

    def create_instance(
        self,
        name: str,
        restore_from_backup: str | None = None,
        *,
        gigabytes: int = 1,
        address: bool = False,
        replica_of: Instance | None = None,
        wait: bool = True,
    ) -> Instance:
        """Make an instance, empty, from a backup of that id, or as a replica. Wait for HEALTHY.

        With `address` its database listens on an address of loopback. A replica and its source
        need one.
        """
        body: dict[str, Any] = {"name": name}
        if replica_of:
            body["replica_of"] = replica_of.id
        else:
            body["flavorRef"] = FLAVOR["id"]
            body["volume"] = {"size": gigabytes}
            body["datastore"] = {"type": "mariadb", "version": VERSION}
        if address or replica_of:
            body["nics"] = [{"network_id": USER_NETWORK_ID}]
        if restore_from_backup:
            body["restorePoint"] = {"backupRef": restore_from_backup}
        made = self.api.call("POST", "/instances", {"instance": body})["instance"]["id"]
        if wait:
            self.wait_instance(made)
        return self.instance(made)

    def wait_instance(self, instance_id: str, seconds: float = INSTANCE_SECONDS) -> dict[str, Any]:
        """Wait until an instance is ACTIVE and HEALTHY. Raise StackError if it fails."""

        def ready() -> bool:
            view = self.api.instance(instance_id)
            if view["status"] in ("ERROR", "FAILED"):
                raise StackError(f"{view}\n{self._guest_tail(instance_id)}")
            return view["status"] in ("ACTIVE", "HEALTHY") and (
                view["operating_status"] == "HEALTHY"
            )

        try:
            poll(f"instance {instance_id}", ready, seconds)
        except StackError as error:
            raise StackError(f"{error}\n{self._guest_tail(instance_id)}") from error
        return self.api.instance(instance_id)

    def instance(self, instance_id: str) -> Instance:
        """Return a running instance. Wait until its machine is booted."""
        poll("a machine", lambda: instance_id in self._machines(), 30)
        row = self._machines()[instance_id]
        return Instance(instance_id, instance_id, Path(row["home"]), _inner(row["pid"]))

    def delete_instance(self, instance_id: str, seconds: float = INSTANCE_SECONDS) -> None:
        """Delete an instance, and wait until it is gone."""
        self.api.call("DELETE", f"/instances/{instance_id}")

        def gone() -> bool:
            try:
                self.api.instance(instance_id)
            except ApiError as error:
                return error.status == 404
            return False

        poll(f"instance {instance_id} deleted", gone, seconds)

    def create_backup(self, name: str, instance: Instance, parent: str | None = None) -> str:
        """Order a backup, and return its id at once."""
        body = {"name": name, "instance": instance.id}
        if parent:
            body["parent_id"] = parent
        return str(self.api.call("POST", "/backups", {"backup": body})["backup"]["id"])

    def wait_backup(self, backup_id: str, seconds: float = BACKUP_SECONDS) -> dict[str, Any]:
        """Wait for the end of a backup. Return its view, with `status` COMPLETED or FAILED."""
        poll(
            f"backup {backup_id} ended",
            lambda: self.api.backup(backup_id)["status"] in ("COMPLETED", "FAILED"),
            seconds,
        )
        return self.api.backup(backup_id)

    def backup(self, name: str, instance: Instance, parent: str | None = None) -> dict[str, Any]:
        """Make a backup that must be COMPLETED. Return its view."""
        view = self.wait_backup(self.create_backup(name, instance, parent))
        if view["status"] != "COMPLETED":
            raise StackError(f"{view}\n{self._guest_tail(instance.id)}")
        return view

    def delete_backup(self, backup_id: str, seconds: float = BACKUP_SECONDS) -> None:
        """Delete a backup with its children, and wait until it is gone from Trove."""
        self.api.call("DELETE", f"/backups/{backup_id}")

        def gone() -> bool:
            return backup_id not in [one["id"] for one in self.api.backups()]

        poll(f"backup {backup_id} deleted", gone, seconds)

    # --- its real clients ----------------------------------------------------------------------

    def client(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the client `trove` as the user."""
        return self._run(self._program("trove", *arguments))

    def openstack(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the client `openstack` as the user."""
        return self._run(self._program("openstack", *arguments))

    def client_environment(self) -> dict[str, str]:
        """Return the variables by which OpenStack's clients log in as the user."""
        return {
            "OS_AUTH_URL": self.keystone.auth_url,
            "OS_IDENTITY_API_VERSION": "3",
            "OS_USERNAME": self.keystone.agent.name,
            "OS_PASSWORD": self.keystone.agent.password,
            "OS_USER_DOMAIN_NAME": self.keystone.agent.domain,
            "OS_PROJECT_NAME": self.keystone.project,
            "OS_PROJECT_DOMAIN_NAME": self.keystone.project_domain,
            "OS_REGION_NAME": REGION,
        }

    def user_token(self) -> str:
        """Return a token of the user. A token is used for half of its life, at most a minute."""
        if time.monotonic() > self._token_until:
            self._token = self.keystone.token(self.keystone.agent)
            self._token_until = time.monotonic() + min(60, self.keystone.token_seconds / 2)
        return self._token

    def objects(self, container: str = "database_backups") -> list[dict[str, Any]]:
        """Return the rows of the user's container in Swift. It need not exist."""
        try:
            return list(json.loads(self._ask_swift("GET", f"{container}?format=json")))
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return []
                raise

    def delete_objects(self, container: str, prefix: str) -> None:
        """Delete the objects with names that begin with `prefix`, but not what they join."""
        for row in self.objects(container):
            if str(row["name"]).startswith(prefix):
                self._ask_swift("DELETE", f"{container}/{row['name']}")

    def container_quota(self, container: str, size: int | None) -> None:
        """Set the quota of the user's container in bytes, or remove it."""
        value = "" if size is None else str(size)
        self._ask_swift("POST", container, {"X-Container-Meta-Quota-Bytes": value})

    def _ask_swift(self, method: str, path: str, headers: Mapping[str, str] = {}) -> bytes:
        """Send a request of the user to Swift, and return the body of the answer."""
        request = urllib.request.Request(  # noqa: S310 - the URL is Swift's own
            f"{self.swift.storage_url}/{path}",
            method=method,
            headers={"X-Auth-Token": self.user_token(), **headers},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return bytes(answer.read())

    # --- inside --------------------------------------------------------------------------------

    @property
    def _conf(self) -> str:
        return str(self.configuration.trove_conf)

    def _program(self, name: str, *arguments: str) -> list[str]:
        return [str(VENV / "bin" / name), *arguments]

    def _run(self, argv: list[str]) -> "subprocess.CompletedProcess[str]":
        environment = {key: value for key, value in os.environ.items() if key[:3] != "OS_"}
        return subprocess.run(
            argv,
            env=environment | self.client_environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def _has_consumer(self, queue: str) -> bool:
        """Return True if a service reads that queue of RabbitMQ."""
        with pika.BlockingConnection(self.rabbitmq.parameters()) as connection:
            try:
                found = connection.channel().queue_declare(queue, passive=True)
            except ChannelClosedByBroker:
                return False
            return bool(found.method.consumer_count)

    def _start_cloud(self) -> None:
        options = {
            "port": self._cloud_port,
            "trove_programs": str(VENV / "bin"),
            "images": str(self.images_file),
            "kept": [str(images.CHECKOUT), str(VENV), sys.base_prefix, _base(VENV)],
        }
        folder = self.folder
        (folder / "options.json").write_text(json.dumps(options))
        argv = [sys.executable, "-m", "tests.stack.trove.cloud", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(images.CHECKOUT)}
        self._cloud = ServerProcess(argv, folder / "cloud.log", environment)

    def _fill_keystone(self) -> None:
        """Make Trove's user, and the catalogue."""
        keystone = self.keystone
        self.keystone.add_object_store(self.swift.address)
        row = {"name": self.account.name, "password": self.account.password, "domain_id": "default"}
        user = keystone.call("POST", "/users", {"user": row})["user"]["id"]
        [project] = keystone.call("GET", f"/projects?name={keystone.service_project}")["projects"]
        for role in ("admin", "service"):
            [found] = keystone.call("GET", f"/roles?name={role}")["roles"]
            path = f"/projects/{project['id']}/users/{user}/roles/{found['id']}"
            keystone.call("PUT", path)
        cloud = f"http://127.0.0.1:{self._cloud_port}"
        endpoints = {kind: cloud + path for kind, path in PATHS.items()}
        endpoints["database"] = f"{self.address}/v1.0/$(project_id)s"
        for kind, url in endpoints.items():
            made = keystone.call("POST", "/services", {"service": {"type": kind, "name": kind}})
            row = {"service_id": made["service"]["id"], "region_id": REGION}
            for interface in ("public", "internal", "admin"):
                endpoint = {**row, "interface": interface, "url": url}
                keystone.call("POST", "/endpoints", {"endpoint": endpoint})

    def _machines(self) -> dict[str, dict[str, Any]]:
        """Return the directory and the pid of each machine, by its instance."""
        file = self.folder / "vm" / "servers.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def _guest_tail(self, instance_id: str) -> str:
        """Return the end of the logs that tell why an instance or its backup failed."""
        logs = [self.folder / "trove-taskmanager.log"]
        if row := self._machines().get(instance_id):
            logs.append(Path(row["home"], "log", "trove-guestagent.log"))
        texts = [log.read_text(errors="replace").splitlines()[-40:] for log in logs if log.exists()]
        lines = [line for text in texts for line in text if "Deprecat" not in line]
        return "\n".join(lines)


def _base(venv: Path) -> str:
    """Return the prefix of the Python that a venv was made with."""
    lines = (venv / "pyvenv.cfg").read_text().splitlines()
    [home] = [line.partition("=")[2].strip() for line in lines if line.startswith("home")]
    return str(Path(home).parent)


def _inner(pid: int) -> int:
    """Return the pid of the first process inside a machine, whose `unshare` is `pid`."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    poll("a machine's first process", lambda: bool(children.read_text().split()), 10)
    return int(children.read_text().split()[0])
