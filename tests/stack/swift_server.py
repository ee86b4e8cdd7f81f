"""All servers of a small OpenStack Swift in one process, for tests.

This runs under the interpreter that has Swift installed, with `-I`, because its directory holds a
module named `swift` that would hide the real one. Usage: swift_server.py FOLDER. FOLDER holds the
file options.json, which tests/stack/swift.py writes.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import eventlet  # type: ignore[import-not-found,unused-ignore]
import eventlet.wsgi  # type: ignore[import-not-found,unused-ignore]
import swift.common.utils  # type: ignore[import-not-found,unused-ignore]

FOLDER = Path(sys.argv[1])
# `bind` is the proxy's address. Only the proxy connects to the other servers. `keystone` has the
# settings of the middlewares that take the place of tempauth.
OPTIONS = {"bind": "127.0.0.1", "keystone": None} | json.loads(
    (FOLDER / "options.json").read_text()
)
SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = backup-agent
swift_hash_path_suffix = tests
[swift-constraints]
container_listing_limit = {listing_limit}
max_file_size = {max_file_size}
"""
# Swift reads its limits and storage policies when its server modules are imported.
(FOLDER / "swift.conf").write_text(SWIFT_CONF.format(**OPTIONS))
swift.common.utils.SWIFT_CONF_FILE = str(FOLDER / "swift.conf")
swift.common.utils.monkey_patch()

from swift.common import wsgi  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from swift.common.http_protocol import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    SwiftHttpProtocol,
)
from swift.common.ring import RingBuilder  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

# error_suppression_limit keeps consecutive errors from disabling the only storage node.
PROXY_CONF = """\
[DEFAULT]
bind_ip = {bind}
bind_port = {proxy}
swift_dir = {folder}
workers = 0
{tls}
[pipeline:main]
pipeline = catch_errors bulk {auth} copy container_quotas slo inner dlo listing_formats
    proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
error_suppression_limit = 1000000
client_chunk_size = 1048576
object_chunk_size = 1048576
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:bulk]
use = egg:swift#bulk
{auth_filters}
[filter:copy]
use = egg:swift#copy
[filter:container_quotas]
use = egg:swift#container_quotas
[filter:slo]
use = egg:swift#slo
max_manifest_segments = {manifest_segments}
rate_limit_under_size = 0
yield_frequency = 0
[filter:inner]
paste.filter_factory = __main__:inner_faults
[filter:dlo]
use = egg:swift#dlo
[filter:listing_formats]
use = egg:swift#listing_formats
"""
TEMPAUTH_CONF = """\
[filter:tempauth]
use = egg:swift#tempauth
token_life = {token_life}
user_test_tester = {key} .admin
user_test_reader = {key}
"""
# token_cache_time: -1 makes each request ask Keystone for its token, which costs 4 ms. With a cache
# a revoked token would be accepted for some minutes.
# http_connect_timeout: by default a request waits forever for a frozen Keystone.
KEYSTONE_CONF = """\
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = {auth_url}
auth_url = {auth_url}
auth_type = password
username = {username}
password = {password}
user_domain_name = {domain}
project_name = {project}
project_domain_name = {domain}
cafile = {cafile}
http_connect_timeout = 3
http_request_max_retries = 1
delay_auth_decision = true
include_service_catalog = false
service_token_roles_required = true
token_cache_time = {token_cache_seconds}
[filter:keystoneauth]
use = egg:swift#keystoneauth
reseller_prefix = {prefixes}
operator_roles = member
allow_names_in_acls = false
"""
STORAGE_CONF = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
network_chunk_size = 1048576
disk_chunk_size = 1048576
"""


class Cache:
    """The part of Swift's memcache client that the proxy uses, with its values in this process."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, raise_on_error: bool = False) -> Any:
        value, until = self._values.get(key, (None, 0.0))
        return None if until and until <= time.time() else value

    def set(self, key: str, value: Any, time: float = 0, **_: Any) -> None:
        # like Swift's client: a time above 30 days is a timestamp, otherwise seconds to live
        until = time if not time or time > 30 * 86400 else now() + time
        self._values[key] = (json.loads(json.dumps(value)), until)

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        total = max(0, int(self.get(key) or 0) + delta)
        self.set(key, total, time)
        return total

    def delete(self, key: str, server_key: str | None = None) -> None:
        self._values.pop(key, None)


def now() -> float:
    return time.time()


class Faults:
    """A middleware that answers wrongly by the rules in faults.json and logs all requests.

    A rule applies to the first `times` requests that match its method and path. The count starts
    again each time the file is replaced. Rules with `inner` apply in the filter behind the
    middleware of large objects, which also sees the requests that this middleware makes itself.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], *, inner: bool = False) -> None:
        self._app = app
        self._inner = inner
        self._file = FOLDER / "faults.json"
        self._log = (FOLDER / "requests.log").open("a", buffering=1)
        self._version: tuple[int, int] = (0, 0)
        self._rules: list[dict[str, Any]] = []
        self._cache = Cache()

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        if not self._inner:
            environ["swift.cache"] = self._cache
        target = environ["PATH_INFO"]
        if environ.get("QUERY_STRING"):
            target += "?" + environ["QUERY_STRING"]
        rule = self._rule(environ["REQUEST_METHOD"], target)
        action = rule.get("action", "status") if rule else "-"
        newest = " newest" if environ.get("HTTP_X_NEWEST") else ""
        if not self._inner:
            self._log.write(f"{environ['REQUEST_METHOD']} {target} {action}{newest}\n")
        if rule is None:
            return self._app(environ, start)
        handler: Callable[..., Iterable[bytes]] = getattr(self, f"_{action}")
        return handler(rule, environ, start)

    def _rule(self, method: str, target: str) -> dict[str, Any] | None:
        if not self._file.exists():
            return None
        stat = self._file.stat()
        if (stat.st_ino, stat.st_mtime_ns) != self._version:
            self._version = (stat.st_ino, stat.st_mtime_ns)
            self._rules = json.loads(self._file.read_text())
        for rule in self._rules:
            left = rule.setdefault("times", 1)
            fits = rule.get("method", method) == method and re.search(rule["match"], target)
            if fits and left and rule.get("inner", False) == self._inner:
                rule["times"] = left - 1
                return dict(rule)
        return None

    def _status(self, rule: Environ, environ: Environ, start: StartResponse) -> list[bytes]:
        """Answer `status` with `headers` and `body`, without reading the request's body."""
        body = rule.get("body", "").encode()
        headers = {"Content-Length": str(len(body)), **rule.get("headers", {})}
        start(f"{rule['status']} Fault", list(headers.items()))
        return [body]

    def _cut(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """End the connection after `after` bytes of the request's or the answer's body."""
        after = rule.get("after", 65536)
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            environ["wsgi.input"].read(after)
            return self._broken(environ, [])
        return self._broken(environ, _first(self._app(environ, start), after))

    def _broken(self, environ: Environ, body: Iterable[bytes]) -> Iterator[bytes]:
        yield from body
        # Close the connection while bytes of the request are unread. eventlet still holds the
        # descriptor's number. The error then keeps eventlet from reading on.
        with Path(os.devnull).open("r+b") as nothing:
            os.dup2(nothing.fileno(), environ["eventlet.input"].get_socket().fileno())
        raise ConnectionResetError("cut on purpose")

    def _stall(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """Perform the request after `seconds`."""
        eventlet.sleep(rule["seconds"])
        return self._app(environ, start)

    def _drip(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterator[bytes]:
        """Perform the request, and answer one byte every `seconds`."""
        for piece in self._app(environ, start):
            for at in range(len(piece)):
                yield piece[at : at + 1]
                eventlet.sleep(rule["seconds"])

    def _mute(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """Perform the request, and end the connection instead of answering."""
        for _ in self._app(environ, lambda *_: None):
            continue
        return self._broken(environ, [])

    def _wrong_etag(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterator[bytes]:
        """Perform the request, and answer with a false ETag, also in the body if it reports one."""
        statuses = []

        def falsified(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            statuses.append(status)
            kept = [(name, value) for name, value in headers if name.lower() != "etag"]
            return start(status, [*kept, ("Etag", "0" * 32)], *rest)

        for piece in self._app(environ, falsified):
            late = statuses[0].startswith("202")
            yield re.sub(rb"[0-9a-f]{32}", b"0" * 32, piece) if late else piece

    def _date(self, rule: Environ, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        """Perform the request, and date the answer `seconds` from now."""

        def dated(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [(name, value) for name, value in headers if name.lower() != "date"]
            return start(status, [*kept, ("Date", formatdate(now() + rule["seconds"]))], *rest)

        return self._app(environ, dated)

    def _lose(self, rule: Environ, environ: Environ, start: StartResponse) -> list[bytes]:
        """Answer that a PUT is stored, and drop its data."""
        while environ["wsgi.input"].read(1 << 20):
            pass
        start("201 Created", [("Content-Length", "0"), ("Etag", environ.get("HTTP_ETAG", ""))])
        return []


def inner_faults(_configuration: Any, **_: Any) -> Callable[..., Faults]:
    """Return the filter for the `inner` rules (a factory for PasteDeploy)."""
    return lambda app: Faults(app, inner=True)


def _first(body: Iterable[bytes], count: int) -> Iterator[bytes]:
    for piece in body:
        yield piece[:count]
        count -= len(piece)
        if count <= 0:
            return


def build_ring(kind: str, port: int) -> None:
    """Build a ring of one replica on one device, unless it exists.

    A ring that exists is kept, so that a restart finds its objects.
    """
    ring = FOLDER / f"{kind}.ring.gz"
    if ring.exists():
        return
    builder = RingBuilder(4, 1, 0)
    node = {"ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1}
    builder.add_dev({"region": 1, "zone": 1, **node})
    builder.rebalance(seed=1)
    builder.get_ring().save(str(ring))


def write_configuration() -> None:
    pem = OPTIONS["certificate"]
    tls = f"cert_file = {pem}\nkey_file = {pem}" if pem else ""
    if identity := OPTIONS["keystone"]:
        auth, filters = "authtoken keystoneauth", KEYSTONE_CONF.format(**identity)
    else:
        auth, filters = "tempauth", TEMPAUTH_CONF.format(**OPTIONS)
    settings = {"folder": FOLDER, "tls": tls, "auth": auth, "auth_filters": filters, **OPTIONS}
    (FOLDER / "proxy.conf").write_text(PROXY_CONF.format(**settings))
    for kind in ("account", "container", "object"):
        text = STORAGE_CONF.format(kind=kind, port=OPTIONS[kind], folder=FOLDER)
        (FOLDER / f"{kind}.conf").write_text(text)
        (FOLDER / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        build_ring(kind, OPTIONS[kind])


def serve(kind: str) -> Any:
    """Start one server in its own green thread."""
    app, conf, _, _ = wsgi.init_request_processor(str(FOLDER / f"{kind}.conf"), f"{kind}-server")
    return eventlet.spawn(
        eventlet.wsgi.server,
        wsgi.get_socket(conf),
        Faults(app) if kind == "proxy" else app,
        log_output=False,
        protocol=SwiftHttpProtocol,
        capitalize_response_headers=False,
    )


def main() -> None:
    os.environ["TZ"] = "UTC+0"
    time.tzset()
    write_configuration()
    # start the proxy last, so that all servers answer when its port does
    servers = [serve(kind) for kind in ("account", "container", "object", "proxy")]
    for server in servers:
        server.wait()


main()
