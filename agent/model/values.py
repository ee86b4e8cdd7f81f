"""The types of the values in models: ids, names, times and tokens, with their JSON Schema.

A pattern means the same in JSON Schema and in pydantic. In both `$` is the end of the text. No
pattern has a character class that differs between dialects of regular expressions.
"""

import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
)

MESSAGE_VERSION: Final = 1


def canonical_uuid(text: str) -> str:
    """Return `text` if it is a UUID in its canonical spelling.

    Ids become names of objects and directories, so an id must have only one spelling.

    Raises:
        ValueError: `text` is not a UUID, or has another spelling.
    """
    with suppress(ValueError):
        if str(uuid.UUID(text)) == text:
            return text
    raise ValueError("not a UUID in its canonical lower-case form")


def is_uuid(text: str) -> bool:
    """Return True if `text` is a UUID in its canonical spelling."""
    try:
        canonical_uuid(text)
    except ValueError:
        return False
    return True


def utc(seconds: float) -> str:
    """Return a time in Unix seconds as an RFC 3339 string in UTC, in whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> str:
    """Return the current time as an RFC 3339 string in UTC, in whole seconds."""
    return utc(time.time())


def printable(text: str) -> str:
    """Return `text` on one line, with "?" for each character that could control a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _no_bool(value: object) -> object:
    """Refuse a bool, because True equals 1 in Python but not in JSON."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _whole(value: object) -> object:
    """Convert a float without a fraction to int, because JSON Schema takes 2.0 as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_UUID_SCHEMA: Final[dict[str, JsonValue]] = {
    "format": "uuid",
    "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
}
Id = Annotated[
    str, Field(max_length=36, json_schema_extra=_UUID_SCHEMA), AfterValidator(canonical_uuid)
]
WHOLE: Final = BeforeValidator(_whole)
Version = Annotated[Literal[1], BeforeValidator(_no_bool)]
Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Description = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Frozen(BaseModel):
    """The base class of all models, which are immutable and refuse unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# The texts that are a valid value of an HTTP header and that Swift accepts as a token.
VISIBLE: Final = "^[!-~]{1,4096}$"
Token = Annotated[
    SecretStr,
    Field(json_schema_extra={"minLength": 1, "maxLength": 4096, "pattern": VISIBLE}),
]
# A project of Keystone. Its own ids are 32 hexadecimal digits, but an operator may choose others.
ProjectId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_TEXT: Final[JsonValue] = {"type": "string"}
_NOTHING: Final[JsonValue] = {"type": "null"}
# A task from the broker has a token with either the URL or the project that it is for, or none of
# the three (agent/broker/wire.py). A task in the journal has no token, because the journal keeps
# none.
TOKEN_WITH_ITS_PLACE: Final[dict[str, JsonValue]] = {
    "anyOf": [
        {
            "required": ["storage_url", "token"],
            "properties": {"storage_url": _TEXT, "token": _TEXT, "project_id": _NOTHING},
        },
        {
            "required": ["project_id", "token"],
            "properties": {"project_id": _TEXT, "token": _TEXT, "storage_url": _NOTHING},
        },
        {"properties": {"storage_url": _NOTHING, "token": _NOTHING, "project_id": _NOTHING}},
    ]
}


def type_required(schema: dict[str, Any]) -> None:
    """Make the field `type` required in the JSON Schema of a task.

    The models have a default for it. A message must have the field, because it tells the type of
    the task.
    """
    if "type" in schema["properties"]:
        del schema["properties"]["type"]["default"]
        schema["required"] = ["type", *schema["required"]]
