"""A private OpenStack Keystone with users, projects and a catalogue, and calls of its real API."""

import json
import secrets
import signal
import ssl
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tests.stack.openstack import swift_python
from tests.stack.process import ServerProcess, StackError, free_port, port_answers

REGION: Final = "RegionOne"
# Each interface of the object store has its own account of the project (its own reseller prefix),
# so that a test can tell from the URL, and from the stored objects, which one was used.
PREFIXES: Final = {"public": "AUTH", "internal": "INTERNAL", "admin": "ADMIN"}
_TIMEOUT: Final = 20.0


@dataclass(frozen=True)
class Account:
    """A user with a password, and the name of the user's domain."""

    name: str
    password: str
    domain: str

    @property
    def identity(self) -> dict[str, Any]:
        user = {"name": self.name, "domain": {"name": self.domain}, "password": self.password}
        return {"methods": ["password"], "password": {"user": user}}


@dataclass(frozen=True)
class ApplicationCredential:
    """An application credential. `secret` is known only to its maker."""

    id: str
    name: str
    secret: str
    user_id: str


class KeystoneServer:
    """Keystone v3 (SQLite, fernet tokens) on a free loopback port.

    The user `agent` of the domain `people` has the role `member` on the project `backups` of the
    domain `storage`. The user `reader` has no role there, but one on the project `other`, on which
    `agent` has none. The user `swift` is the service user of Swift and of Ceph's gateway.

    `token_seconds` is the life of each token. `certificate` is a PEM file with key and
    certificate. If it is given, Keystone speaks TLS. `ca_file` has the certificate of its authority
    if it is not self-signed. `start()` works again on the same directory.
    """

    project: Final = "backups"
    other_project: Final = "other"
    project_domain: Final = "storage"
    service_project: Final = "service"

    def __init__(
        self,
        folder: Path,
        *,
        token_seconds: int = 3600,
        certificate: Path | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self.folder = folder
        self.certificate = certificate
        self.ca_file = ca_file or certificate
        self.token_seconds = token_seconds
        self.port = free_port()
        self.auth_url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}/v3"
        self.project_id, self.other_project_id = uuid.uuid4().hex, uuid.uuid4().hex
        self.admin = Account("admin", secrets.token_hex(8), "Default")
        self.service = Account("swift", secrets.token_hex(8), "Default")
        self.agent = Account("agent", secrets.token_hex(8), "people")
        self.reader = Account("reader", secrets.token_hex(8), "people")
        self._process: ServerProcess | None = None

    # --- the process ---------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def launch(self) -> None:
        """Start the process on the data of an earlier run, if there is any. Return at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "options.json").write_text(json.dumps(self._options()))
        script = Path(__file__).with_name("keystone_server.py")
        self._process = ServerProcess(
            [str(swift_python()), "-I", str(script), str(self.folder)], self.folder / "server.log"
        )

    def wait_ready(self) -> None:
        """Wait until Keystone answers (at most 60 s, on two cores 3 s)."""
        assert self._process
        self._process.wait_ready(lambda: port_answers(self.port), 60)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """End the process. Do nothing if it doesn't run."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._process:
            self._process.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """Freeze the process, so that it accepts connections and answers no request."""
        assert self._process
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send(signal.SIGCONT)

    def _options(self) -> dict[str, Any]:
        service = uuid.uuid4().hex
        projects = [
            (service, self.service_project, self.service.domain),
            (self.project_id, self.project, self.project_domain),
            (self.other_project_id, self.other_project, self.project_domain),
        ]
        users = [
            (self.service, service, ["service"]),
            (self.agent, self.project_id, ["member"]),
            (self.reader, self.other_project_id, ["member"]),
        ]
        return {
            "port": self.port,
            "auth_url": self.auth_url,
            "certificate": str(self.certificate or ""),
            "token_seconds": self.token_seconds,
            "region": REGION,
            "admin_password": self.admin.password,
            "domains": {
                name: _domain_id(name) for name in (self.agent.domain, self.project_domain)
            },
            "projects": [
                {"id": key, "name": name, "domain_id": _domain_id(domain)}
                for key, name, domain in projects
            ],
            "users": [
                {
                    "name": user.name,
                    "password": user.password,
                    "domain_id": _domain_id(user.domain),
                    "project_id": project,
                    "roles": roles,
                }
                for user, project, roles in users
            ],
        }

    # --- faults and the log --------------------------------------------------------------------

    def inject(self, rules: list[dict[str, Any]]) -> None:
        """Replace the fault rules, and start counting each rule's `times` from zero.

        A rule has `match`, a regular expression searched in the path. It may have `method`,
        `times` (1) and `action`:

        - `status` (the default) answers with `status`, `headers` and `body`.
        - `cut` ends the connection without an answer.
        - `stall` waits `seconds`, then performs the request.
        """
        draft = self.folder / "faults.draft"
        draft.write_text(json.dumps(rules))
        draft.replace(self.folder / "faults.json")

    def clear_faults(self) -> None:
        (self.folder / "faults.json").unlink(missing_ok=True)

    def requests(self) -> list[str]:
        """Return all requests so far, as lines of method, path, status and login.

        The login is the quoted name (or else the id) of the user or application credential that a
        POST of `/v3/auth/tokens` gives, and `-` otherwise. The status is `cut` if there was none.
        """
        log = self.folder / "requests.log"
        return log.read_text().splitlines() if log.exists() else []

    def logins(self, who: str) -> list[str]:
        """Return the status of each login so far of that user or application credential."""
        lines = (line.split() for line in self.requests())
        return [status for method, _, status, name in lines if name == quote(who)]

    # --- the real API --------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """Send a request as `admin`, or with `token`. Return the answer's JSON, or None.

        Raises:
            StackError: the status isn't one of success.
        """
        return self._answer(method, path, body, token or self.token(self.admin))[1]

    def token(self, user: Account, project_id: str | None = None) -> str:
        """Return a token of that user, scoped to the user's own project.

        `admin` is scoped to the project of the same name, other users to `backups`, or to the
        project of that id.
        """
        scope: dict[str, Any] = {"id": project_id or self.project_id}
        if user == self.admin:
            scope = {"name": "admin", "domain": {"name": "Default"}}
        auth = {"identity": user.identity, "scope": {"project": scope}}
        return str(self._answer("POST", "/auth/tokens", {"auth": auth})[0]["X-Subject-Token"])

    def user_id(self, user: Account) -> str:
        [row] = self.call("GET", f"/users?name={user.name}")["users"]
        return str(row["id"])

    def update_user(self, user: Account, **changes: Any) -> None:
        """Change a user, as in `enabled=False` or `password="..."`. This revokes the tokens."""
        self.call("PATCH", f"/users/{self.user_id(user)}", {"user": changes})

    def revoke_token(self, token: str) -> None:
        """Revoke one token. A login still gives another."""
        self._answer("DELETE", "/auth/tokens", None, self.token(self.admin), token)

    def add_user(self, *, role: str = "member") -> Account:
        """Make a user of the domain `people` with that role on `backups`. Return the account."""
        user = Account(f"user-{uuid.uuid4()}", secrets.token_hex(8), self.agent.domain)
        domain = _domain_id(user.domain)
        row = {"name": user.name, "password": user.password, "domain_id": domain}
        made = self.call("POST", "/users", {"user": row})["user"]["id"]
        [found] = self.call("GET", f"/roles?name={role}")["roles"]
        self.call("PUT", f"/projects/{self.project_id}/users/{made}/roles/{found['id']}")
        return user

    def add_project(self, user: Account, *, role: str = "member") -> str:
        """Make a project on which `user` has that role. Return its id."""
        row = {"name": f"project-{uuid.uuid4()}", "domain_id": _domain_id(self.project_domain)}
        made = str(self.call("POST", "/projects", {"project": row})["project"]["id"])
        [found] = self.call("GET", f"/roles?name={role}")["roles"]
        self.call("PUT", f"/projects/{made}/users/{self.user_id(user)}/roles/{found['id']}")
        return made

    def make_application_credential(
        self,
        user: Account | None = None,
        *,
        unrestricted: bool = False,
        seconds: float | None = None,
        name: str = "",
    ) -> ApplicationCredential:
        """Make an application credential as `agent`, or as that user, on `backups`.

        `unrestricted` ones may make and delete others. It expires after `seconds`, or never.
        """
        user = user or self.agent
        row: dict[str, Any] = {
            "name": name or f"credential {uuid.uuid4()}",
            "unrestricted": unrestricted,
        }
        if seconds is not None:
            until = datetime.now(UTC) + timedelta(seconds=seconds)
            row["expires_at"] = until.strftime("%Y-%m-%dT%H:%M:%S.%f")
        path = f"/users/{self.user_id(user)}/application_credentials"
        made = self.call("POST", path, {"application_credential": row}, self.token(user))
        row = made["application_credential"]
        return ApplicationCredential(row["id"], row["name"], row["secret"], path.split("/")[2])

    def delete_application_credential(self, one: ApplicationCredential) -> None:
        self.call("DELETE", f"/users/{one.user_id}/application_credentials/{one.id}")

    def add_object_store(self, address: str, *, region: str = REGION) -> None:
        """Add the endpoints of a Swift at `address`, as in http://127.0.0.1:8080, to a region.

        Each interface has its own path: see PREFIXES.
        """
        for interface, prefix in PREFIXES.items():
            url = f"{address}/v1/{prefix}_$(project_id)s"
            self.add_endpoint(interface, url, region=region)

    def add_endpoint(self, interface: str, url: str, *, region: str = REGION) -> str:
        """Add one endpoint of the object store. Return its id."""
        if region not in [one["id"] for one in self.call("GET", "/regions")["regions"]]:
            self.call("POST", "/regions", {"region": {"id": region}})
        row = {"interface": interface, "url": url, "region_id": region}
        row["service_id"] = self._object_store()
        return str(self.call("POST", "/endpoints", {"endpoint": row})["endpoint"]["id"])

    def endpoints(self) -> list[dict[str, Any]]:
        """Return the endpoints of the object store."""
        path = f"/endpoints?service_id={self._object_store()}"
        return list(self.call("GET", path)["endpoints"])

    def delete_endpoints(self) -> None:
        """Remove the object store's endpoints from the catalogue."""
        for one in self.endpoints():
            self.call("DELETE", f"/endpoints/{one['id']}")

    def _object_store(self) -> str:
        """Return the id of the service `object-store`, which is made if it doesn't exist."""
        found = self.call("GET", "/services?type=object-store")["services"]
        if not found:
            row = {"service": {"type": "object-store", "name": "swift"}}
            found = [self.call("POST", "/services", row)["service"]]
        return str(found[0]["id"])

    def _answer(
        self, method: str, path: str, body: Any = None, token: str = "", subject: str = ""
    ) -> tuple[Any, Any]:
        """Send one request with a token, about a token. Return the answer's headers and JSON."""
        tokens = {"X-Auth-Token": token, "X-Subject-Token": subject}
        request = urllib.request.Request(  # noqa: S310 - the URL is Keystone's own
            self.auth_url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | {k: v for k, v in tokens.items() if v},
        )
        tls = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
        )
        try:
            with opener.open(request, timeout=_TIMEOUT) as answer:
                text = answer.read()
                return answer.headers, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with error:
                raise StackError(f"{method} {path}: {error.code} {error.read()[:500]!r}") from error


def _domain_id(name: str) -> str:
    return "default" if name == "Default" else uuid.uuid5(uuid.NAMESPACE_DNS, name).hex
