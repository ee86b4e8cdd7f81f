"""Read agent.toml and the variables BACKUP_AGENT_<SECTION>__<KEY> into frozen models.

agent.toml itself never contains a secret. Each secret has a key `*_file`, which names a file with
the secret. A relative path starts at the directory of agent.toml.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import AfterValidator, Field, ValidationError, model_validator

from agent.engine.options import check_options
from agent.errors import ConfigInvalid
from agent.model import Frozen, Id
from agent.store.policy import parse_url

DEFAULT_PATH = Path("/etc/backup-agent/agent.toml")
ENV_PREFIX = "BACKUP_AGENT_"
# BACKUP_AGENT_<SECTION>__<KEY>
ENV_NAME = re.compile(ENV_PREFIX + r"([A-Z]+)__([A-Z_]+)")

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

    The commands that send tasks log in with `control_url`. None means `url`.
    """

    url: str
    password_file: Absolute | None = None
    control_url: str | None = None
    control_password_file: Absolute | None = None
    queue_type: Literal["quorum", "classic"] = "quorum"
    ca_file: Absolute | None = None


# The URL of a store: the kind of the store, a colon, and the store's address.
_STORE_URL = r"^(swift:https?://|file:///)"


def names_store(url: str) -> bool:
    """Return True if `url` begins like the URL of a store that this version knows."""
    return re.match(_STORE_URL, url) is not None


class StoreSection(Frozen):
    """The store of the backups.

    `url` is `swift:` and the authentication URL of Swift's auth v1, or `file:///` and a directory.
    """

    url: Annotated[str, Field(pattern=_STORE_URL)]
    user: str = ""
    key_file: Absolute | None = None
    container: Name | None = None
    ca_file: Absolute | None = None
    storage_urls: tuple[StorageUrl, ...] = ()
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] = 60.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 5

    @property
    def kind(self) -> str:
        """Return the kind of the store, `swift` or `file`."""
        return self.url.partition(":")[0]

    @property
    def address(self) -> str:
        """Return the authentication URL of Swift, or the path of a directory as in the URL."""
        return self.url.partition(":")[2].removeprefix("//")

    @model_validator(mode="after")
    def _can_log_in(self) -> Self:
        if self.kind == "swift" and not (self.user and self.key_file):
            raise ValueError("a swift: store needs user and key_file")
        if "@" in self.url.split("/")[2]:
            raise ValueError("url holds a user or a password; put them into user and key_file")
        return self


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
    metrics: MetricsSection = MetricsSection()


_SECTIONS = frozenset(Config.model_fields)
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


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the file, apply the environment, and validate the result.

    Raises:
        ConfigInvalid: the file can't be read, or a name or value is wrong. The message names the
            first five mistakes.
    """
    what = f"the configuration {path}"
    return _checked(_tables(path, environment), what, environment, "correct that file")


def embedded(tables: dict[str, Any], environment: Mapping[str, str] = os.environ) -> Config:
    """Return a configuration without a file, made of `tables` and the environment.

    The environment overrides `tables`, which are changed in place. A relative path starts at the
    current directory.

    Raises:
        ConfigInvalid: a name or value is wrong. The message names the first five mistakes.
    """
    _override(tables, environment)
    _anchor(tables, Path.cwd())
    cure = f"set {ENV_PREFIX}<SECTION>__<KEY> for each missing key"
    return _checked(tables, "the configuration without an agent.toml", environment, cure)


def _checked(
    tables: dict[str, Any], what: str, environment: Mapping[str, str], cure: str
) -> Config:
    """Return the validated configuration.

    `what` names it in errors, and `cure` begins the hint.

    Raises:
        ConfigInvalid: a name or value is wrong. The message names the first five mistakes, and each
            mistake of the environment by its variable.
    """
    try:
        return Config.model_validate(tables)
    except ValidationError as error:
        found = error.errors(include_input=False)[:5]
        variables = [_variable(problem["loc"], environment) for problem in found]
        problems = "; ".join(
            f"{f'{variable}: ' if variable else ''}{_place(problem['loc'])} "
            f"{_said(problem['type'], problem['msg'])}"
            for problem, variable in zip(found, variables, strict=True)
        )
        named = ", ".join(sorted({variable for variable in variables if variable}))
        if None not in variables:
            raise ConfigInvalid(
                f"the environment is wrong: {problems}",
                hint=f"correct or unset {named}; docs/configuration.md has every name",
            ) from error
        raise ConfigInvalid(
            f"{what} is wrong: {problems}",
            hint=f"{cure}{f' and {named}' if named else ''}; docs/configuration.md has "
            "every key, and backup-agent self-test checks them",
        ) from error


def _variable(place: tuple[int | str, ...], environment: Mapping[str, str]) -> str | None:
    """Return the variable that set the value at `place`, or made its section.

    None if the file did.
    """
    for name in environment:
        if match := ENV_NAME.fullmatch(name):
            section, key = match[1].lower(), match[2].lower()
            if place[:2] == (section, key) or (place == (section,) and section not in _SECTIONS):
                return name
    return None


def keys_folder(path: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return [keys] folder, without checking other keys, which may still be missing.

    Raises:
        ConfigInvalid: the file can't be read, or names no [keys] folder.
    """
    keys = _tables(path, environment).get("keys")
    folder = keys.get("folder") if isinstance(keys, dict) else None
    if not isinstance(folder, str):
        raise ConfigInvalid(
            f"the configuration {path} names no [keys] folder", hint="name one with --folder"
        )
    return Path(folder)


def _tables(path: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the tables of the file, with the environment applied and all paths absolute.

    Raises:
        ConfigInvalid: the file can't be read or is not TOML, or a variable has a wrong name.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigInvalid(
            f"the configuration {path} can't be read: {error.strerror}",
            hint=_no_file(path, error),
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(
            f"the configuration {path} is not TOML: {error}",
            hint="correct the file; systemd/agent.toml is an example with every key",
        ) from error
    _override(tables, environment)
    _anchor(tables, path.absolute().parent)
    return tables


def _no_file(path: Path, error: OSError) -> str:
    if path == DEFAULT_PATH and isinstance(error, FileNotFoundError):
        return (
            "make it (the README has an example), or name another file with --config; with --store "
            "file:///FOLDER (and --local, if it has that option) a command needs no such file"
        )
    return "use --config to name a file that this user may read; the README has an example"


_SAYINGS = {
    "extra_forbidden": "there is no such section or key",
    "missing": "is missing",
    "path_type": "must be a path in quotes",
}


def _said(kind: str, message: str) -> str:
    return _SAYINGS.get(kind, message.removeprefix("Value error, "))


def _place(location: tuple[int | str, ...]) -> str:
    """Return `[section] key:` for a value. The index in a list follows its key."""
    section, *keys = (str(part) for part in location)
    return " ".join([f"[{section}]", *keys]) + ":"


def _override(tables: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Apply the variables of the environment to `tables`.

    Raises:
        ConfigInvalid: a variable has a wrong name, or its section in `tables` is not a table.
    """
    for name, value in environment.items():
        match = ENV_NAME.fullmatch(name)
        if match is None:
            _check_name(name)
            continue
        section = tables.setdefault(match[1].lower(), {})
        if not isinstance(section, dict):
            raise ConfigInvalid(f"{name} is set, but the file has no table [{match[1].lower()}]")
        key = match[2].lower()
        lists = _lists(match[1].lower())
        section[key] = _items(key, value) if key in lists else value


def _check_name(name: str) -> None:
    """Refuse a name that begins like a setting's name but is not one.

    Such a variable would have no effect, and the operator would not notice.
    """
    text = name.removeprefix(ENV_PREFIX).lower()
    section = text.split("_")[0]
    if name.upper().startswith(ENV_PREFIX) and section in _SECTIONS:
        key = text.removeprefix(section).strip("_")
        raise ConfigInvalid(
            f"the environment sets {name}, which is not the name of a setting",
            hint=f"name it {ENV_PREFIX}{section.upper()}__{key.upper()}, or unset it",
        )


def _lists(section: str) -> set[str]:
    """Return the keys of a section that are lists. An unknown section has none."""
    field = Config.model_fields.get(section)
    models = [field.annotation, *get_args(field.annotation)] if field else []
    return {
        key
        for model in models
        if isinstance(model, type) and issubclass(model, Frozen)
        for key, one in model.model_fields.items()
        if get_origin(one.annotation) is tuple
    }


def _items(key: str, value: str) -> list[str]:
    """Split the value of a list. Blanks separate URLs and options, colons other items."""
    if key in ("storage_urls", "options"):
        return value.split()
    return [item for item in value.split(":") if item]


def _anchor(tables: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute. They start at `folder`, that of the configuration."""
    for section in tables.values():
        if not isinstance(section, dict):
            continue
        for key, value in section.items():
            if key.endswith(("_file", "folder")) or key == "socket":
                section[key] = _joined(folder, value)
            elif key.endswith("_roots") and isinstance(value, list):
                section[key] = [_joined(folder, item) for item in value]


def _joined(folder: Path, value: Any) -> Any:
    return str(folder / value) if isinstance(value, str) else value
