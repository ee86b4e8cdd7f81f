"""A small OpenStack Keystone in one process, for tests.

This runs under the interpreter that has Keystone installed, with `-I`, because its directory holds
a module named `keystone` that would hide the real one. Usage: keystone_server.py FOLDER. FOLDER
holds the file options.json, which tests/stack/keystone.py writes. The database and the keys are
made if they don't exist. Keystone's own migrations and bootstrap take half a second when they run
in this process, so that nothing needs to be kept between runs.
"""

import json
import os
import re
import socket
import ssl
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Keystone imports eventlet but doesn't use it here
warnings.simplefilter("ignore")

FOLDER = Path(sys.argv[1])
OPTIONS = json.loads((FOLDER / "options.json").read_text())
# Keystone parses the arguments of its process
del sys.argv[1:]

import keystone.conf  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
import keystone.server  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
from keystone.cmd.bootstrap import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    Bootstrapper,
)
from keystone.common import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    fernet_utils,
    provider_api,
)
from keystone.common.sql import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    upgrades,
)
from keystone.server.flask import (  # type: ignore[import-not-found,unused-ignore]  # noqa: E402
    application,
    core,
)
from werkzeug import serving  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

# Four rounds are the fewest of bcrypt. A login then costs no CPU for the password's hash.
CONF = """\
[DEFAULT]
log_file = {folder}/keystone.log
default_log_levels = keystone=WARNING,keystone.common.password_hashing=ERROR
[database]
connection = sqlite:///{folder}/keystone.db
sqlite_synchronous = false
[cache]
enabled = true
backend = oslo_cache.dict
[token]
expiration = {token_seconds}
allow_expired_window = 3600
[fernet_tokens]
key_repository = {folder}/fernet-keys
[fernet_receipts]
key_repository = {folder}/fernet-keys
[credential]
key_repository = {folder}/credential-keys
[identity]
password_hash_rounds = 4
"""


def make_keys() -> None:
    """Make the keys of tokens and of credentials, unless they exist."""
    for kind, group in (("fernet", "fernet_tokens"), ("credential", "credential")):
        folder = FOLDER / f"{kind}-keys"
        keys = fernet_utils.FernetUtils(str(folder), 3, group)
        keys.create_key_directory()
        if not any(folder.iterdir()):
            keys.initialize_key_repository()


def bootstrap() -> None:
    """Make the database, the administrator, the roles, and the identity service's endpoints.

    It does what `keystone-manage` does as `db_sync` and `bootstrap`, and may be repeated.
    """
    upgrades.offline_sync_database_to_version(None)
    one = Bootstrapper()
    one.admin_username = one.project_name = one.admin_role_name = "admin"
    one.admin_password = OPTIONS["admin_password"]
    one.service_name = "keystone"
    one.region_id = OPTIONS["region"]
    one.public_url = one.internal_url = one.admin_url = OPTIONS["auth_url"]
    one.bootstrap()


def seed() -> None:
    """Make the domains, projects, users and role assignments that options.json lists."""
    providers = provider_api.ProviderAPIs
    known = {one["name"] for one in providers.resource_api.list_domains()}
    if known >= set(OPTIONS["domains"]):
        return
    for name, key in OPTIONS["domains"].items():
        providers.resource_api.create_domain(key, {"id": key, "name": name, "enabled": True})
    for project in OPTIONS["projects"]:
        row = {"description": "", "enabled": True, "parent_id": project["domain_id"], **project}
        providers.resource_api.create_project(project["id"], row)
    roles = {one["name"]: one["id"] for one in providers.role_api.list_roles()}
    for user in OPTIONS["users"]:
        project, granted = user.pop("project_id"), user.pop("roles")
        made = providers.identity_api.create_user({"enabled": True, **user})
        for role in granted:
            providers.assignment_api.create_grant(
                roles[role], user_id=made["id"], project_id=project
            )


class Recorder:
    """A middleware that logs all requests, and answers wrongly by the rules in faults.json.

    tests/stack/keystone.py describes the log and the rules.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._file = FOLDER / "faults.json"
        self._log = (FOLDER / "requests.log").open("a", buffering=1)
        self._version: tuple[int, int] = (0, 0)
        self._rules: list[dict[str, Any]] = []

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        who = self._who(environ) if (method, path) == ("POST", "/v3/auth/tokens") else "-"

        def logged(status: str, *rest: Any) -> Any:
            # a line is written before the answer, so that a client finds its own request
            self._log.write(f"{method} {path} {status[:3]} {who}\n")
            return start(status, *rest)

        rule = self._rule(method, path)
        if rule.get("action") == "cut":
            self._log.write(f"{method} {path} cut {who}\n")
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError("cut on purpose")
        if rule.get("action") == "stall":
            time.sleep(rule["seconds"])
        elif rule:
            body = rule.get("body", "").encode()
            headers = {"Content-Length": str(len(body)), **rule.get("headers", {})}
            logged(f"{rule['status']} Fault", list(headers.items()))
            return [body]
        return self._app(environ, logged)

    def _who(self, environ: Environ) -> str:
        """Return the user or application credential that a login names, and keep the body."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        try:
            identity = json.loads(body)["auth"]["identity"]
            given = identity[identity["methods"][0]]
            given = given.get("user", given) if "password" in identity else given
            return quote(given.get("name") or given["id"])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "-"

    def _rule(self, method: str, path: str) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        stat = self._file.stat()
        if (stat.st_ino, stat.st_mtime_ns) != self._version:
            self._version = (stat.st_ino, stat.st_mtime_ns)
            self._rules = json.loads(self._file.read_text())
        for rule in self._rules:
            left = rule.setdefault("times", 1)
            if left and rule.get("method", method) == method and re.search(rule["match"], path):
                rule["times"] = left - 1
                return rule
        return {}


class Handler(serving.WSGIRequestHandler):  # type: ignore[misc,unused-ignore]
    """A handler of HTTP/1.1 connections without werkzeug's own log."""

    def log_request(self, *_: object) -> None:
        return


def main() -> None:
    os.environ["TZ"] = "UTC+0"
    time.tzset()
    (FOLDER / "keystone.conf").write_text(CONF.format(folder=FOLDER, **OPTIONS))
    keystone.server.configure(config_files=[str(FOLDER / "keystone.conf")])
    make_keys()
    bootstrap()
    seed()
    app = core.setup_app_middleware(application.application_factory("public"))
    tls = None
    if OPTIONS["certificate"]:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(OPTIONS["certificate"])
    serving.make_server(
        "127.0.0.1",
        OPTIONS["port"],
        Recorder(app),
        threaded=True,
        request_handler=Handler,
        ssl_context=tls,
    ).serve_forever()


main()
