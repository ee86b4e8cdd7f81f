"""The interpreter that has OpenStack's servers installed."""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def swift_python() -> Path:
    """Return the path of the interpreter with Swift and Keystone. It need not exist."""
    return Path(os.environ.get("SWIFT_PYTHON", _ROOT / ".venv-swift" / "bin" / "python"))
