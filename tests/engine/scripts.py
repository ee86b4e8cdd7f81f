"""Small programs that stand in for the engine where the real one can't be made to misbehave."""

import sys
from pathlib import Path


def script(path: Path, body: str) -> str:
    """Write an executable Python program and return its path."""
    path.write_text(f"#!{sys.executable} -I\nimport os, signal, subprocess, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


def known(pid: int) -> bool:
    """Whether the kernel has any process of that id left, a zombie included."""
    return Path(f"/proc/{pid}").exists()
