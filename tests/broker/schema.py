"""A checker for the part of JSON Schema that docs/asyncapi.yaml uses.

It follows the text of https://json-schema.org/draft/2020-12/json-schema-validation. A keyword that
is not known here is an error, so that none is ignored.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

Json = Any
Schema = Mapping[str, Any]
REF = "#/components/schemas/"
# Keywords that only inform a reader. They are not checked.
_SAID = {"title", "description", "default", "format", "writeOnly", "discriminator"}


def valid(value: Json, schema: Schema, schemas: Mapping[str, Schema]) -> bool:
    """Return True if a JSON value matches a schema.

    The schema may refer to `schemas` by their names.
    """

    def one(part: Json, asked: Schema) -> bool:
        return all(_KEYWORDS[name](part, asked, one) for name in asked if name not in _SAID)

    def follow(part: Json, asked: Schema, _one: object) -> bool:
        return one(part, schemas[asked["$ref"].removeprefix(REF)])

    _KEYWORDS["$ref"] = follow
    return one(value, schema)


Inner = Callable[[Json, Schema], bool]


def _is(value: Json, kind: str) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind == "number" or float(value).is_integer())
    kinds = {"string": str, "boolean": bool, "null": type(None), "object": dict, "array": list}
    return isinstance(value, kinds[kind])


def _equal(one: Json, other: Json) -> bool:
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


def _fits(value: Json, pattern: str) -> bool:
    """Return True if the string matches the pattern, which is read as ECMA-262 reads it.

    There `$` matches at the end only. In Python it also matches before a final newline.
    """
    return re.search(re.sub(r"\$$", r"\\Z", pattern), value) is not None


def _properties(value: Json, asked: Schema, one: Inner) -> bool:
    known = asked["properties"]
    return not isinstance(value, dict) or all(
        one(value[name], schema) for name, schema in known.items() if name in value
    )


def _closed(value: Json, asked: Schema, _one: Inner) -> bool:
    assert asked["additionalProperties"] is False
    return not isinstance(value, dict) or set(value) <= set(asked["properties"])


_KEYWORDS: dict[str, Callable[[Json, Schema, Inner], bool]] = {
    "type": lambda v, s, _: _is(v, s["type"]),
    "const": lambda v, s, _: _equal(v, s["const"]),
    "enum": lambda v, s, _: any(_equal(v, one) for one in s["enum"]),
    "anyOf": lambda v, s, one: any(one(v, part) for part in s["anyOf"]),
    "minimum": lambda v, s, _: not _is(v, "number") or v >= s["minimum"],
    "maximum": lambda v, s, _: not _is(v, "number") or v <= s["maximum"],
    "minLength": lambda v, s, _: not isinstance(v, str) or len(v) >= s["minLength"],
    "maxLength": lambda v, s, _: not isinstance(v, str) or len(v) <= s["maxLength"],
    "pattern": lambda v, s, _: not isinstance(v, str) or _fits(v, s["pattern"]),
    "required": lambda v, s, _: not isinstance(v, dict) or set(s["required"]) <= set(v),
    "properties": _properties,
    "additionalProperties": _closed,
}
