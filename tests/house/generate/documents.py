"""The documents that are made from the code, each with the function that returns its text."""

from collections.abc import Callable
from typing import Final

from tests.house.generate import asyncapi, configuration, error_codes

DOCUMENTS: Final[dict[str, Callable[[], str]]] = {
    "docs/asyncapi.yaml": asyncapi.text,
    "docs/configuration.md": configuration.text,
    "docs/errors.md": error_codes.text,
}
