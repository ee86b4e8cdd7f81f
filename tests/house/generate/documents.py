"""The documents that are made from the code: each path under docs/, and what writes its text."""

from collections.abc import Callable
from typing import Final

from tests.house.generate import asyncapi, configuration, error_codes

DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "docs/asyncapi.yaml": asyncapi.text,
    "docs/configuration.md": configuration.text,
    "docs/errors.md": error_codes.text,
}
