"""Stand-ins for Nova, Neutron, Cinder and Glance: the few calls that Trove makes, on one port.

Usage: cloud FOLDER. FOLDER holds options.json, which stack.py writes. They trust each token.
Requests are answered one at a time by the main thread, because a machine ends with the thread that
started it.
"""

import json
import re
import secrets
import signal
import sys
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.stack.trove.compute import FLAVOR, Compute

_FILTERS: Final = ("device_id", "name", "network_id", "port_id")
# The first part of each service's path, by its type in Keystone's catalogue.
PATHS: Final = {
    "compute": "/compute/v2.1",
    "network": "/network",
    "volumev3": "/volume/v3/$(project_id)s",
    "image": "/image",
}
IMAGE_ID: Final = "11111111-2222-4333-8444-555555555555"
NETWORK_ID: Final = "66666666-7777-4888-8999-aaaaaaaaaaaa"
# An instance in this network has an address of its own, on which its database listens.
USER_NETWORK_ID: Final = "bbbbbbbb-cccc-4ddd-8eee-ffffffffffff"
_SUBNET: Final[dict[str, Any]] = {
    "id": "cccccccc-dddd-4eee-8fff-000000000000",
    "network_id": USER_NETWORK_ID,
    "ip_version": 4,
    "cidr": "127.0.0.0/8",
    "gateway_ip": "127.0.0.1",
    "host_routes": [],
}

Row = dict[str, Any]


class Cloud(HTTPServer):
    """All resources, in memory."""

    def __init__(self, port: int, compute: Compute) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.compute = compute
        self.volumes: dict[str, Row] = {}
        # by collection, as in `ports`
        self.network: dict[str, dict[str, Row]] = {
            "networks": {
                NETWORK_ID: {"id": NETWORK_ID, "name": "management"},
                USER_NETWORK_ID: {"id": USER_NETWORK_ID, "name": "users"},
            },
            "subnets": {_SUBNET["id"]: _SUBNET},
        }


class NotThere(Exception):
    """The request names a resource that isn't there."""


class Handler(BaseHTTPRequestHandler):
    """One request, answered with HTTP/1.0."""

    server: Cloud

    def log_message(self, template: str, *values: object) -> None:
        print(template % values, flush=True)

    def do_GET(self) -> None:
        self._dispatch("GET")

    def do_POST(self) -> None:
        self._dispatch("POST")

    def do_PUT(self) -> None:
        self._dispatch("PUT")

    def do_DELETE(self) -> None:
        self._dispatch("DELETE")

    def _dispatch(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.body: Row = json.loads(text) if text.strip() else {}
        status: int = 501
        answer: Row = {"message": f"this stand-in has no {method} {parts.path}"}
        try:
            for verb, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if verb == method and match:
                    status, answer = action(self, *match.groups())
                    break
        except NotThere as error:
            fault = {"code": 404, "message": f"Not found: {error}"}
            status, answer = 404, {"itemNotFound": fault, "NeutronError": fault}
        encoded = b"" if status == 204 else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    # --- Nova ----------------------------------------------------------------------------------

    def flavor(self, key: str) -> tuple[int, Row]:
        return 200, {"flavor": _found({FLAVOR["id"]: FLAVOR}, key)}

    def flavors(self) -> tuple[int, Row]:
        return 200, {"flavors": [FLAVOR]}

    def boot(self) -> tuple[int, Row]:
        request = self.body["server"]
        volumes = [
            self.server.volumes[one["uuid"]]
            for one in request.get("block_device_mapping_v2") or []
            if one["source_type"] == "volume"
        ]
        gigabytes = max((int(one["size"]) for one in volumes), default=FLAVOR["disk"])
        made = self.server.compute.boot(str(uuid.uuid4()), request, gigabytes)
        for volume in volumes:
            volume |= {"status": "in-use", "attachments": [{"server_id": made["id"]}]}
        for network in request.get("networks") or []:
            port = self.server.network.get("ports", {}).get(network.get("port", ""))
            if port:
                port["device_id"] = made["id"]
        return 202, {"server": made}

    def servers(self) -> tuple[int, Row]:
        """List the servers that have one of the tags, all on one page."""
        tags = {one for one in self.query.get("tags-any", "").split(",") if one}
        rows = [] if "marker" in self.query else list(self.server.compute.servers.values())
        return 200, {"servers": [row for row in rows if not tags or tags & {*row["tags"]}]}

    def one_server(self, key: str) -> tuple[int, Row]:
        return 200, {"server": _found(self.server.compute.servers, key)}

    def delete_server(self, key: str) -> tuple[int, Row]:
        _found(self.server.compute.servers, key)
        self.server.compute.delete(key)
        for volume in list(self.server.volumes.values()):
            if {"server_id": key} in volume["attachments"]:
                del self.server.volumes[volume["id"]]
        return 204, {}

    def server_groups(self) -> tuple[int, Row]:
        return 200, {"server_groups": []}

    # --- Cinder --------------------------------------------------------------------------------

    def make_volume(self) -> tuple[int, Row]:
        key = str(uuid.uuid4())
        made: Row = {"id": key, "status": "available", "attachments": [], "volume_type": None}
        self.server.volumes[key] = {**self.body["volume"], **made}
        return 202, {"volume": self.server.volumes[key]}

    def volume(self, key: str) -> tuple[int, Row]:
        return 200, {"volume": _found(self.server.volumes, key)}

    def volumes(self) -> tuple[int, Row]:
        name = self.query.get("name")
        rows = [one for one in self.server.volumes.values() if name in (None, one["name"])]
        return 200, {"volumes": rows}

    def delete_volume(self, key: str) -> tuple[int, Row]:
        _found(self.server.volumes, key)
        del self.server.volumes[key]
        return 202, {}

    def volume_types(self) -> tuple[int, Row]:
        return 200, {"volume_types": []}

    # --- Neutron -------------------------------------------------------------------------------

    def listed(self, collection: str) -> tuple[int, Row]:
        rows = self.server.network.get(collection, {}).values()
        known = {key: value for key, value in self.query.items() if key in _FILTERS}
        fitting = [row for row in rows if all(row.get(k) == v for k, v in known.items())]
        return 200, {collection.replace("-", "_"): fitting}

    def shown(self, collection: str, key: str) -> tuple[int, Row]:
        row = _found(self.server.network.get(collection, {}), key)
        return 200, {_singular(collection): row}

    def made(self, collection: str) -> tuple[int, Row]:
        row = {"id": str(uuid.uuid4()), **self.body[_singular(collection)]}
        if collection == "ports":
            row |= {"mac_address": "02:00:00:00:00:01", "fixed_ips": _addresses(row["network_id"])}
        self.server.network.setdefault(collection, {})[row["id"]] = row
        return 201, {_singular(collection): row}

    def removed(self, collection: str, key: str) -> tuple[int, Row]:
        _found(self.server.network.get(collection, {}), key)
        del self.server.network[collection][key]
        return 204, {}

    # --- Glance --------------------------------------------------------------------------------

    def image(self, key: str) -> tuple[int, Row]:
        return 200, _found({IMAGE_ID: {"id": IMAGE_ID, "name": "guest", "status": "active"}}, key)

    def schema(self, name: str) -> tuple[int, Row]:
        return 200, {"name": name, "properties": {}, "additionalProperties": {"type": "string"}}


def _addresses(network_id: str) -> list[Row]:
    """Return the addresses of a port: a random one of loopback in the users' network."""
    if network_id != USER_NETWORK_ID:
        return []
    numbers = [str(secrets.randbelow(253) + 1) for _ in range(3)]
    return [{"subnet_id": _SUBNET["id"], "ip_address": ".".join(["127", *numbers])}]


def _found(rows: dict[str, Row], key: str) -> Row:
    if key not in rows:
        raise NotThere(key)
    return rows[key]


def _singular(collection: str) -> str:
    """Return the name of one resource, as in `security_group` for `security-groups`."""
    return collection.replace("-", "_").removesuffix("s")


_ROUTES: Final[list[tuple[str, str, Callable[..., tuple[int, Row]]]]] = [
    ("GET", r"/compute/v2\.1/flavors/detail", Handler.flavors),
    ("GET", r"/compute/v2\.1/flavors/([^/]+)", Handler.flavor),
    ("POST", r"/compute/v2\.1/servers", Handler.boot),
    ("GET", r"/compute/v2\.1/servers/detail", Handler.servers),
    ("GET", r"/compute/v2\.1/servers/([^/]+)", Handler.one_server),
    ("DELETE", r"/compute/v2\.1/servers/([^/]+)", Handler.delete_server),
    ("GET", r"/compute/v2\.1/os-server-groups", Handler.server_groups),
    ("POST", r"/volume/v3/[^/]+/volumes", Handler.make_volume),
    ("GET", r"/volume/v3/[^/]+/volumes/detail", Handler.volumes),
    ("GET", r"/volume/v3/[^/]+/volumes/([^/]+)", Handler.volume),
    ("DELETE", r"/volume/v3/[^/]+/volumes/([^/]+)", Handler.delete_volume),
    ("GET", r"/volume/v3/[^/]+/types", Handler.volume_types),
    ("GET", r"/network/v2\.0/([a-z-]+)", Handler.listed),
    ("POST", r"/network/v2\.0/([a-z-]+)", Handler.made),
    ("GET", r"/network/v2\.0/([a-z-]+)/([^/]+)", Handler.shown),
    ("DELETE", r"/network/v2\.0/([a-z-]+)/([^/]+)", Handler.removed),
    ("GET", r"/image/v2/images/([^/]+)", Handler.image),
    ("GET", r"/image/v2/schemas/([^/]+)", Handler.schema),
]


def main() -> None:
    folder = Path(sys.argv[1])
    options = json.loads((folder / "options.json").read_text())
    compute = Compute(folder / "vm", options["trove_programs"], options["images"], options["kept"])
    server = Cloud(options["port"], compute)

    def leave(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    try:
        server.serve_forever()
    finally:
        for key in list(compute.servers):
            compute.delete(key)


if __name__ == "__main__":
    main()
