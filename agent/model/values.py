"""The values that models are made of: ids, names, times, tokens, and what JSON Schema says of them.

What a pattern says to JSON Schema is what pydantic does: `$` is the end, and no class of
characters depends on whose regular expressions they are.
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
    """Return `text` if it is a UUID in its one canonical spelling; else ValueError.

    Ids become object names and folder names, so no second spelling may exist.
    """
    with suppress(ValueError):
        if str(uuid.UUID(text)) == text:
            return text
    raise ValueError("not a UUID in its canonical lower-case form")


def is_uuid(text: str) -> bool:
    """Whether it is a UUID in its one canonical spelling."""
    try:
        canonical_uuid(text)
    except ValueError:
        return False
    return True


def utc(seconds: float) -> str:
    """A moment in Unix seconds as RFC 3339, in whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_now() -> str:
    """The present moment as RFC 3339, in whole seconds."""
    return utc(time.time())


def printable(text: str) -> str:
    """`text` on one line, without anything that could steer a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _no_bool(value: object) -> object:
    """Python takes True for 1; JSON does not."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return value


def _whole(value: object) -> object:
    """Take 2.0 for 2, as JSON Schema does."""
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
    """Base of all models: immutable, and unknown fields are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# what can be the value of a header, and Swift takes as one
VISIBLE: Final = "^[!-~]{1,4096}$"
Token = Annotated[
    SecretStr,
    Field(json_schema_extra={"minLength": 1, "maxLength": 4096, "pattern": VISIBLE}),
]
# A fresh task has both or neither (agent/broker/wire.py); in the journal there are URLs alone.
BOTH_OR_NEITHER: Final[dict[str, JsonValue]] = {
    "anyOf": [
        {
            "required": ["storage_url", "token"],
            "properties": {"storage_url": {"type": "string"}, "token": {"type": "string"}},
        },
        {"properties": {"storage_url": {"type": "null"}, "token": {"type": "null"}}},
    ]
}


def type_required(schema: dict[str, Any]) -> None:
    """The type tells which kind of task it is, so it has a default here but none in a message."""
    if "type" in schema["properties"]:
        del schema["properties"]["type"]["default"]
        schema["required"] = ["type", *schema["required"]]
