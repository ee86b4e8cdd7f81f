"""Read metrics in Prometheus' text format."""

import re
from typing import Final

_SAMPLE: Final = re.compile(r"^(?P<name>\w+(?:{[^}]*})?) (?P<value>\S+)$", re.MULTILINE)


def samples(text: str) -> dict[str, float]:
    """Return the samples of a text, by name and labels as they are written."""
    return {match["name"]: float(match["value"]) for match in _SAMPLE.finditer(text)}
