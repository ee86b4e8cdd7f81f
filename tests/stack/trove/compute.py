"""The servers that the stand-in for Nova boots: a machine's processes, and its files at boot."""

import base64
import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from tests.stack.process import ServerProcess

FLAVOR: Final[dict[str, Any]] = {
    "id": "1",
    "name": "tiny",
    "ram": 512,
    "vcpus": 1,
    "disk": 5,
    "swap": "",
    "rxtx_factor": 1.0,
    "OS-FLV-EXT-DATA:ephemeral": 0,
    "OS-FLV-DISABLED:disabled": False,
    "os-flavor-access:is_public": True,
    "links": [],
}
# unshare's child ends with it
_SPACE: Final = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@dataclass
class Compute:
    """All servers. `folder/servers.json` has the directory and the pid of each Trove instance."""

    folder: Path
    trove_programs: str
    images: str
    kept: list[str]
    servers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _processes: dict[str, ServerProcess] = field(default_factory=dict)
    _homes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def boot(self, server_id: str, request: dict[str, Any], gigabytes: int) -> dict[str, Any]:
        """Start a machine. Call this from the main thread, so that the machine ends with it."""
        home = self.folder / str(len(self._homes) + 1)
        for name in ("log", "mysqld", "containers"):
            (home / name).mkdir(parents=True)
        options = {
            "files": _files(request.get("user_data", "")),
            "volume_gigabytes": gigabytes,
            "trove_programs": self.trove_programs,
            "images": self.images,
            "kept": [*self.kept, str(Path(self.images).parent)],
        }
        (home / "options.json").write_text(json.dumps(options))
        argv = [*_SPACE, sys.executable, "-m", "tests.stack.trove.machine", str(home)]
        self._processes[server_id] = ServerProcess(argv, home / "log" / "machine.log")
        metadata = request.get("metadata", {})
        pid = self._processes[server_id].pid
        (home / "pid").write_text(f"{pid}\n")
        self._homes[metadata.get("trove_instance_id", server_id)] = {"home": str(home), "pid": pid}
        draft = self.folder / "servers.draft"
        draft.write_text(json.dumps(self._homes))
        draft.replace(self.folder / "servers.json")
        self.servers[server_id] = {
            "id": server_id,
            "name": request["name"],
            "status": "ACTIVE",
            "addresses": {},
            "flavor": FLAVOR,
            "image": {"id": request.get("imageRef", "")},
            "metadata": metadata,
            "tags": request.get("tags", []),
            "links": [],
        }
        return self.servers[server_id]

    def delete(self, server_id: str) -> None:
        """End a machine with all its processes, and forget it."""
        del self.servers[server_id]
        outer = self._processes.pop(server_id)
        inside = psutil.Process(outer.pid).children(recursive=True) if outer.running() else []
        # unshare passes no other signal on
        outer.stop(signal.SIGKILL)
        psutil.wait_procs(inside, timeout=10)


def _files(user_data: str) -> dict[str, str]:
    """Return the files that a cloud-config writes at boot."""
    config = yaml.safe_load(base64.b64decode(user_data)) or {}
    files = {}
    for row in config.get("write_files", []):
        text = row["content"]
        encoded = row.get("encoding") == "b64"
        files[row["path"]] = base64.b64decode(text).decode() if encoded else text
    return files
