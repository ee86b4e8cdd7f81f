"""docs/configuration.md, with the keys, types, defaults and bounds of agent/config/settings.py.

The meanings of the keys are in meanings.py.
"""

from typing import Any, Final, get_args

from agent.config.reading import ENV_PREFIX
from agent.config.settings import Config
from agent.model import Frozen
from tests.house.generate.meanings import MEANINGS, SECTIONS
from tests.house.generate.tables import table

_HEAD: Final = """\
# Configuration

`backup-agent` reads `/etc/backup-agent/agent.toml` (TOML), or the file that `--config` names.
[systemd/agent.toml](../systemd/agent.toml) is an example with all keys.

- **Environment.** The variable in the last column sets a key, and overrides the file. Separate the
  items of a list by `:`, those of `storage_urls` and `options` by spaces.
- **Paths** that don't begin with `/` are relative to the directory of the configuration file.
- **Secrets** are never in the file or in the environment. A key that ends in `_file` names a file
  with the secret. That file has mode 0600, or is a credential of systemd (`LoadCredential=`). The
  agent refuses a file that other users may read. It ignores a newline at the end of the file.
- **Mistakes** are refused at the start: unknown sections and keys, values out of bounds, missing
  keys. The message names the section and the key, and the exit status is 2.
- A section may be missing if no command that you use needs it. For example, `--local` commands
  need no `[broker]`.

Whole numbers have no unit, and sizes are bytes: `67108864` is 64 MiB.

`script/docs` makes this page from `agent/config/settings.py`. Don't edit it.
"""
_REQUIRED: Final = "**required**"


def text() -> str:
    """Return the whole document.

    Raises:
        LookupError: a key has no meaning, or a meaning has no key.
    """
    parts = [_HEAD]
    unused = set(MEANINGS)
    for name, model in sections().items():
        parts.append(f"## [{name}]\n\n{SECTIONS[name]}\n\n{_keys(name, model)}")
        unused -= {f"{name}.{key}" for key in model.model_fields}
    if unused:
        raise LookupError(f"meanings of keys that don't exist: {sorted(unused)}")
    return "\n".join(parts)


def sections() -> dict[str, type[Frozen]]:
    """Return the sections of agent.toml by name."""
    found = {}
    for name, field in Config.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        found[name] = next(
            kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Frozen)
        )
    return found


def _keys(section: str, model: type[Frozen]) -> str:
    rows = []
    for key, schema in model.model_json_schema()["properties"].items():
        field = model.model_fields[key]
        options = [schema, *schema.get("anyOf", [])]
        merged: dict[str, Any] = {}
        for option in options:
            if option.get("type") != "null":
                merged |= option
        rows.append(
            (
                f"`{key}`",
                _type(merged),
                _REQUIRED if field.is_required() else _value(merged.get("default")),
                _bounds(merged),
                MEANINGS[f"{section}.{key}"],
                f"`{ENV_PREFIX}{section.upper()}__{key.upper()}`",
            )
        )
    return table(("key", "type", "default", "bounds", "meaning", "variable"), rows)


def _type(schema: dict[str, Any]) -> str:
    kind = str(schema.get("type", "string"))
    if kind == "array":
        return f"list of {_type(schema['items'])}s"
    if schema.get("format") == "path":
        return "path"
    return {"integer": "whole number", "boolean": "true or false"}.get(kind, kind)


def _value(value: object) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"`{value}` ({_size(value)})"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _size(value: int) -> str:
    return f"{value >> 30} GiB" if value % (1 << 30) == 0 else f"{value >> 20} MiB"


def _bounds(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "at least {}",
        "maximum": "at most {}",
        "multipleOf": "a multiple of {}",
        "maxItems": "at most {} items",
        "enum": "one of {}",
        "pattern": "matches {}",
    }
    said = []
    for name, form in words.items():
        if name in schema:
            value = schema[name]
            shown = ", ".join(map(_value, value)) if isinstance(value, list) else _shown(value)
            said.append(form.format(shown))
    return ", ".join(said)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{value:g}`" if isinstance(value, float) else _value(value)
