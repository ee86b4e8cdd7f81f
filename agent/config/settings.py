"""The sections and keys of agent.toml as frozen models. agent/config/reading.py reads them.

agent.toml itself never contains a secret. Each secret has a key `*_file`, which names a file with
the secret. A relative path starts at the directory of agent.toml.
"""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from agent.engine.options import check_options
from agent.errors import ConfigInvalid
from agent.model import Frozen, Id, ProjectId
from agent.store.policy import parse_url

DEFAULT_PATH = Path("/etc/backup-agent/agent.toml")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("must be an absolute path without '..'")
    return path


Absolute = Annotated[Path, AfterValidator(_absolute)]


def _storage_url(text: str) -> str:
    parse_url(text)
    return text


StorageUrl = Annotated[
    str, Field(pattern=r"^https?://[^@\s]+[^@\s/]$"), AfterValidator(_storage_url)
]


class AgentSection(Frozen):
    """The identity of this agent, and the directories that it uses."""

    instance_id: Id
    tenant_id: Name
    state_folder: Absolute = Path("/var/lib/backup-agent")
    restore_roots: tuple[Absolute, ...] = ()
    restore_reserve_percent: Annotated[float, Field(ge=0, le=90)] = 3.0
    progress_seconds: Annotated[float, Field(ge=0.1, le=3600)] = 5.0

    @property
    def lock_file(self) -> Path:
        """Return the file that the running agent keeps locked."""
        return self.state_folder / "lock"

    @property
    def journal_file(self) -> Path:
        return self.state_folder / "journal.sqlite"

    @property
    def scratch_folder(self) -> Path:
        """Return the directory for files of running engines."""
        return self.state_folder / "scratch"

    @property
    def keys_folder(self) -> Path:
        """Return the directory for the key that a run with `--store` makes."""
        return self.state_folder / "keys"


class BrokerSection(Frozen):
    """The broker that tasks come from.

    The commands that send tasks log in with `control_url`. None means `url`. A certificate without
    a password file is the login itself.
    """

    url: str
    password_file: Absolute | None = None
    control_url: str | None = None
    control_password_file: Absolute | None = None
    queue_type: Literal["quorum", "classic"] = "quorum"
    ca_file: Absolute | None = None
    certificate_file: Absolute | None = None
    key_file: Absolute | None = None
    control_certificate_file: Absolute | None = None
    control_key_file: Absolute | None = None

    @model_validator(mode="after")
    def _whole_certificates(self) -> Self:
        for prefix in ("", "control_"):
            certificate, key = f"{prefix}certificate_file", f"{prefix}key_file"
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                raise ValueError(f"{certificate} and {key} need each other")
        if self.control_certificate_file and self.control_url is None:
            raise ValueError("control_certificate_file needs control_url")
        return self


# The Swift of an OpenStack cloud, which clouds.yaml or the environment describes.
CLOUD_URL = "swift:"
# The URL of a store: the kind of the store, a colon, and the store's address.
_STORE_URL = r"^(swift:https?://|swift:$|file:///)"


def names_store(url: str) -> bool:
    """Return True if `url` begins like the URL of a store that this version knows."""
    return re.match(_STORE_URL, url) is not None


# The keys of a login, and for each kind of login those that it needs and those that it may have. An
# application credential has a project of its own.
LOGIN_KEYS = (
    *("auth", "user", "key_file", "application_credential"),
    *("project", "user_domain", "project_domain"),
)
_CATALOGUE = ("region", "interface")
_KEYS_OF_LOGIN = {
    "v1": (("user", "key_file"), ()),
    "v3password": (("user", "key_file", "project"), ("user_domain", "project_domain", *_CATALOGUE)),
    "v3applicationcredential": (("application_credential", "key_file"), _CATALOGUE),
    "v3token": (("key_file", "project"), ("project_domain", *_CATALOGUE)),
}


class StoreSection(Frozen):
    """The store of the backups.

    `url` is `swift:` and the URL of a login, or `file:///` and a directory. `auth` is the kind of
    that login. `swift:` alone is the Swift of the cloud named `cloud` in clouds.yaml, or of the
    cloud that the variables `OS_*` describe.
    """

    url: Annotated[str, Field(pattern=_STORE_URL)] = CLOUD_URL
    auth: Literal["v1", "v3password", "v3applicationcredential", "v3token"] = "v1"
    user: str = ""
    key_file: Absolute | None = None
    application_credential: str = ""
    project: str = ""
    user_domain: str = "Default"
    project_domain: str = "Default"
    cloud: Name | None = None
    region: str | None = None
    interface: Literal["public", "internal", "admin"] = "public"
    container: Name | None = None
    ca_file: Absolute | None = None
    storage_urls: tuple[StorageUrl, ...] = ()
    projects: tuple[ProjectId, ...] = ()
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 5

    @property
    def kind(self) -> str:
        """Return the kind of the store, `swift` or `file`."""
        return self.url.partition(":")[0]

    @property
    def address(self) -> str:
        """Return the URL of the login, or the path of a directory as in the URL.

        It is empty for `swift:` alone.
        """
        return self.url.partition(":")[2].removeprefix("//")

    @property
    def behind_keystone(self) -> bool:
        """Return True if the login is one at Keystone.

        Only Swift's own login needs its URL here. `swift:` alone is the Swift of a cloud.
        """
        return self.kind == "swift" and (self.auth != "v1" or not self.address)

    @model_validator(mode="after")
    def _can_log_in(self) -> Self:
        if self.url == CLOUD_URL:
            self._check_cloud()
        elif self.cloud is not None:
            raise ValueError("cloud and url name two logins: remove one of them")
        elif self.kind == "swift":
            self._check_login()
        return self

    def _check_cloud(self) -> None:
        # the unit that we ship always sets key_file
        if given := self._given({*LOGIN_KEYS} - {"key_file"}):
            raise ValueError(
                f"{given} can't be used without a url: set url to swift: and the URL of the login"
            )

    def _check_login(self) -> None:
        if "@" in self.url.split("/")[2]:
            raise ValueError("url holds a user or a password; put them into user and key_file")
        needed, allowed = _KEYS_OF_LOGIN[self.auth]
        if not all(getattr(self, key) for key in needed):
            kind = "" if self.auth == "v1" else f" with auth {self.auth!r}"
            raise ValueError(f"a swift: store{kind} needs {' and '.join(needed)}")
        if other := self._given({*LOGIN_KEYS, *_CATALOGUE} - {"auth", *needed, *allowed}):
            raise ValueError(f"{other} can't be used with auth {self.auth!r}")

    def _given(self, keys: set[str]) -> str:
        """Return those of the keys that differ from their defaults, as text."""
        fields = type(self).model_fields
        return " and ".join(
            key for key in fields if key in keys and getattr(self, key) != fields[key].default
        )


class DatabaseSection(Frozen):
    socket: Absolute = Path("/run/mysqld/mysqld.sock")
    user: str = "backup_agent"
    password_file: Absolute | None = None


class EngineSection(Frozen):
    """The program that copies the database.

    The `kind` `auto` chooses it by the server's own version. None as `program` or `extractor` means
    the usual name of that program.
    """

    kind: Literal["auto", "mariadb-backup", "xtrabackup"] = "auto"
    program: str | None = None
    extractor: str | None = None
    lock_wait_seconds: Annotated[float, Field(ge=1, le=86400)] = 60.0
    silent_seconds: Annotated[float, Field(ge=1, le=86400)] = 3600.0
    safe_slave_backup: bool = False
    register_redo_log_consumer: bool = False
    uncopied_engines: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    prepare_memory_bytes: Annotated[int, Field(ge=16 << 20)] = 256 << 20
    options: Annotated[tuple[str, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _harmless(self) -> Self:
        try:
            check_options(self.options, None if self.kind == "auto" else self.kind)
        except ConfigInvalid as error:
            raise ValueError(f"options: {error}. What to do: {error.hint}") from error
        return self


class KeysSection(Frozen):
    """The master keys `<id>.key` and the recovery keys `<id>.pub`.

    The master key `active` is for new backups. With `allow_plaintext`, backups that were made with
    `encrypt = false` can be read. `encrypt = false` itself allows that, too.
    """

    folder: Absolute
    active: KeyId
    recovery: Annotated[tuple[KeyId, ...], Field(max_length=16)] = ()
    encrypt: bool = True
    allow_plaintext: bool = False


class PipelineSection(Frozen):
    """The resources that the data path may use.

    `cores` 0 means all cores that this process may use.
    """

    memory_bytes: Annotated[int, Field(ge=16 << 20)] = 128 << 20
    segment_bytes: Annotated[int, Field(ge=1 << 20, le=5 << 30, multiple_of=1 << 20)] = 16 << 20
    connections: Annotated[int, Field(ge=1, le=64)] = 4
    cores: Annotated[int, Field(ge=0, le=1024)] = 0
    level: Annotated[int, Field(ge=0, le=3)] = 1
    bytes_per_second: Annotated[int, Field(ge=1 << 20)] | None = None


class LogSection(Frozen):
    """The daemon's log.

    With `auto` it goes to the systemd journal with fields if standard error leads there. Else it is
    text.
    """

    format: Literal["auto", "text", "json", "journal"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


def _loopback(text: str) -> str:
    if parse_listen(text) is None:
        raise ValueError(
            f"{text!r} is not a loopback address with a port, such as 127.0.0.1:9399 or "
            "[::1]:9399: metrics are for programs on this machine only"
        )
    return text


def parse_listen(text: str) -> tuple[str, int] | None:
    """Return the host and the port of a loopback address, or None if it is no such address."""
    host, _, port = text.rpartition(":")
    try:
        address, number = ip_address(host.removeprefix("[").removesuffix("]")), int(port)
    except ValueError:
        return None
    if (address.version == 6) != host.startswith("[") or not (port.isascii() and port.isdigit()):
        return None
    return (str(address), number) if address.is_loopback and 0 < number < 65536 else None


def _for_node_exporter(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("must end in .prom: node_exporter reads no other file")
    return path


class MetricsSection(Frozen):
    """The metrics for Prometheus. None as `listen` and `textfile` means that there are none."""

    listen: Annotated[str, AfterValidator(_loopback)] | None = None
    textfile: Annotated[Absolute, AfterValidator(_for_node_exporter)] | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Return the host and the port of `listen`."""
        return parse_listen(self.listen) if self.listen else None


class Config(Frozen):
    """A whole agent.toml.

    A section that a command needs may be missing. Use `need` to read such a section.
    """

    agent: AgentSection
    broker: BrokerSection | None = None
    store: StoreSection | None = None
    database: DatabaseSection = DatabaseSection()
    engine: EngineSection = EngineSection()
    keys: KeysSection | None = None
    pipeline: PipelineSection = PipelineSection()
    log: LogSection = LogSection()
    metrics: MetricsSection = MetricsSection()


Section = TypeVar("Section")


def need(section: Section | None, name: str) -> Section:
    """Return `section`, which the command needs, or raise ConfigInvalid if it is missing."""
    if section is None:
        local = "; backup-create, restore and backup-delete don't need it with --local"
        raise ConfigInvalid(
            f"the configuration has no section [{name}]",
            hint=f"add [{name}], see docs/configuration.md{local if name == 'broker' else ''}",
        )
    return section
