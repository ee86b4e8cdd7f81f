"""A server on a UNIX socket that speaks the part of Docker's API that Trove's guest agent uses."""

import json
import re
import secrets
import socketserver
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.stack.trove import images
from tests.stack.trove.containers import STDERR, STDOUT, Container, Engine, framed

VERSION: Final = "1.44"
_STREAM: Final = "application/vnd.docker.raw-stream"


class NoSuchThing(Exception):
    """The request names a container or an image that isn't there."""


class DockerServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Docker's engine on a machine. `images_file` is its registry (see images.py)."""

    daemon_threads = True

    def __init__(self, socket: Path, engine: Engine, images_file: Path) -> None:
        super().__init__(str(socket), Handler)
        self.engine = engine
        self.images_file = images_file
        self.pulled: set[str] = set()
        self.networks: dict[str, dict[str, str]] = {}


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: the end of the connection is the end of the answer."""

    server: DockerServer

    def log_message(self, *_: object) -> None:
        return

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_HEAD(self) -> None:
        self._dispatch("HEAD")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_DELETE(self) -> None:
        self._dispatch("DELETE")

    def _dispatch(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length)
        self.body: dict[str, Any] = json.loads(text) if text.strip() else {}
        path = re.sub(r"^/v[0-9.]+/", "/", unquote(parts.path))
        try:
            for (verb, pattern), action in _ROUTES.items():
                match = re.fullmatch(pattern, path)
                if verb == method and match:
                    action(self, *match.groups())
                    return
            self._answer(501, {"message": f"this stand-in has no {method} {path}"})
        except NoSuchThing as error:
            self._answer(404, {"message": str(error)})

    def _answer(self, status: int, body: Any = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self._head(status, "application/json", len(text))
        self.wfile.write(text)

    def _head(self, status: int, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Api-Version", VERSION)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def _container(self, reference: str) -> Container:
        found = self.server.engine.find(reference)
        if found is None:
            raise NoSuchThing(f"No such container: {reference}")
        return found

    # --- the engine and its images -------------------------------------------------------------

    def ping(self) -> None:
        self._head(200, "text/plain", 2)
        self.wfile.write(b"OK")

    def version(self) -> None:
        self._answer(200, {"Version": "stand-in", "ApiVersion": VERSION, "MinAPIVersion": "1.24"})

    def networks(self) -> None:
        self._answer(200, list(self.server.networks.values()))

    def network(self, key: str) -> None:
        if key not in self.server.networks:
            raise NoSuchThing(f"network {key} not found")
        self._answer(200, self.server.networks[key])

    def make_network(self) -> None:
        key = secrets.token_hex(32)
        self.server.networks[key] = {"Id": key, "Name": self.body["Name"]}
        self._answer(201, {"Id": key, "Warning": ""})

    def distribution(self, reference: str) -> None:
        self._registered(reference)
        digest = f"sha256:{reference.encode().hex():0<64.64}"
        self._answer(200, {"Descriptor": {"digest": digest}, "Platforms": []})

    def image(self, reference: str) -> None:
        if reference not in self.server.pulled:
            raise NoSuchThing(f"No such image: {reference}")
        self._answer(200, {"Id": f"sha256:{reference}", "RepoTags": [reference]})

    def pull(self) -> None:
        reference = f"{self.query['fromImage']}:{self.query.get('tag', 'latest')}"
        self._registered(reference)
        self.server.pulled.add(reference)
        self._answer(200, {"status": f"Pulled {reference}"})

    def prune(self) -> None:
        self._answer(200, {"ImagesDeleted": None, "SpaceReclaimed": 0})

    def _registered(self, reference: str) -> images.Image:
        found = images.find(self.server.images_file, reference)
        if found is None:
            raise NoSuchThing(f"manifest for {reference} not found")
        return found

    # --- containers ----------------------------------------------------------------------------

    def create(self) -> None:
        reference = self.body["Image"]
        if reference not in self.server.pulled:
            raise NoSuchThing(f"No such image: {reference}")
        name = self.query.get("name", "")
        if name and self.server.engine.find(name):
            self._answer(409, {"message": f'The container name "/{name}" is already in use'})
            return
        container = self.server.engine.create(name, self.body)
        self._answer(201, {"Id": container.id, "Warnings": []})

    def inspect(self, reference: str) -> None:
        self._answer(200, self._container(reference).inspect())

    def start(self, reference: str) -> None:
        self._container(reference).start()
        self._answer(204)

    def stop(self, reference: str) -> None:
        self._container(reference).stop(float(self.query.get("t", 10)))
        self._answer(204)

    def restart(self, reference: str) -> None:
        container = self._container(reference)
        container.stop(float(self.query.get("t", 10)))
        container.start()
        self._answer(204)

    def kill(self, reference: str) -> None:
        self._container(reference).kill()
        self._answer(204)

    def wait(self, reference: str) -> None:
        container = self._container(reference)
        container.ended.wait()
        self._answer(200, {"StatusCode": container.exit_code})

    def remove(self, reference: str) -> None:
        container = self._container(reference)
        if container.status == "running":
            if not self._flag("force"):
                self._answer(409, {"message": "You cannot remove a running container"})
                return
            container.kill()
        self.server.engine.remove(container)
        self._answer(204)

    def logs(self, reference: str) -> None:
        container = self._container(reference)
        if self._flag("follow"):
            container.ended.wait()
        wanted = {"stdout": STDOUT, "stderr": STDERR}
        streams = {stream for name, stream in wanted.items() if self._flag(name)}
        tail = self.query.get("tail", "all")
        self._head(200, _STREAM)
        self.wfile.write(framed(container.logs(streams, None if tail == "all" else int(tail))))

    # --- commands in a container ---------------------------------------------------------------

    def execution(self, reference: str) -> None:
        key = secrets.token_hex(32)
        container = self._container(reference)
        self.server.engine.executions[key] = (container, self.body["Cmd"], None)
        self._answer(201, {"Id": key})

    def execute(self, key: str) -> None:
        container, command, _ = self.server.engine.executions[key]
        # The client reads the head and the rest in different ways, so the rest comes later.
        self._head(200, _STREAM)
        self.wfile.flush()
        status, output, errors = container.execute(command)
        self.server.engine.executions[key] = (container, command, status)
        frames = [(STDOUT, output), (STDERR, errors)]
        self.wfile.write(framed([frame for frame in frames if frame[1]]))

    def execution_state(self, key: str) -> None:
        _, _, status = self.server.engine.executions[key]
        self._answer(200, {"ID": key, "Running": status is None, "ExitCode": status})


_ONE: Final = r"/containers/([^/]+)"
_ROUTES: Final[dict[tuple[str, str], Callable[..., None]]] = {
    ("GET", "/_ping"): Handler.ping,
    ("HEAD", "/_ping"): Handler.ping,
    ("GET", "/version"): Handler.version,
    ("GET", "/networks"): Handler.networks,
    ("GET", "/networks/([^/]+)"): Handler.network,
    ("POST", "/networks/create"): Handler.make_network,
    ("GET", "/distribution/(.+)/json"): Handler.distribution,
    ("GET", "/images/(.+)/json"): Handler.image,
    ("POST", "/images/create"): Handler.pull,
    ("POST", "/images/prune"): Handler.prune,
    ("POST", "/containers/create"): Handler.create,
    ("GET", f"{_ONE}/json"): Handler.inspect,
    ("POST", f"{_ONE}/start"): Handler.start,
    ("POST", f"{_ONE}/stop"): Handler.stop,
    ("POST", f"{_ONE}/restart"): Handler.restart,
    ("POST", f"{_ONE}/kill"): Handler.kill,
    ("POST", f"{_ONE}/wait"): Handler.wait,
    ("DELETE", _ONE): Handler.remove,
    ("GET", f"{_ONE}/logs"): Handler.logs,
    ("POST", f"{_ONE}/exec"): Handler.execution,
    ("POST", "/exec/([^/]+)/start"): Handler.execute,
    ("GET", "/exec/([^/]+)/json"): Handler.execution_state,
}
