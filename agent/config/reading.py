"""Read agent.toml and the variables BACKUP_AGENT_<SECTION>__<KEY>, and name each mistake."""

import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from agent.config.settings import DEFAULT_PATH, Config, LogSection
from agent.errors import ConfigInvalid
from agent.model import Frozen

ENV_PREFIX = "BACKUP_AGENT_"
# BACKUP_AGENT_<SECTION>__<KEY>
ENV_NAME = re.compile(ENV_PREFIX + r"([A-Z]+)__([A-Z_]+)")
_SECTIONS = frozenset(Config.model_fields)


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


def with_defaults(
    path: Path,
    defaults: Mapping[str, Mapping[str, Any]],
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Return the configuration of the file, which may be missing, on top of `defaults`.

    Raises:
        ConfigInvalid: the file can't be read, or a name or value is wrong.
    """
    tables: dict[str, Any] = {}
    if os.path.lexists(path):
        tables = _tables(path, environment)
    else:
        _override(tables, environment)
    for section, values in defaults.items():
        if isinstance(there := tables.setdefault(section, {}), dict):
            tables[section] = {**values, **there}
    return _checked(tables, f"the configuration {path}", environment, "correct that file")


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


def log_section(path: Path, environment: Mapping[str, str] = os.environ) -> LogSection:
    """Return the section [log], or its defaults if it or the file can't be used.

    It is for the log before the configuration is loaded, so it leaves each mistake to `load`.
    """
    found: dict[str, Any] = {}
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        # a pipe can be read only once, by `load`
        if path.is_file():
            section = tomllib.loads(path.read_text(encoding="utf-8")).get("log")
            found = section if isinstance(section, dict) else {}
    for key in LogSection.model_fields:
        if (value := environment.get(f"{ENV_PREFIX}LOG__{key.upper()}")) is not None:
            found[key] = value
    try:
        return LogSection.model_validate(found)
    except ValidationError:
        return LogSection()


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
            "file:///FOLDER, or with OS_CLOUD in the environment (and --local, if it has that "
            "option) a command needs no such file"
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
