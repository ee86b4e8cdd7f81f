"""A private Prometheus that scrapes one target every second, and promtool."""

import json
import subprocess
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.conftest import need
from tests.stack.process import ServerProcess, free_port, poll

_CONFIG = """\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: backup-agent
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A server in `folder` that scrapes `target` (host:port) from `start` to `stop`."""

    def __init__(self, folder: Path, target: str) -> None:
        need("prometheus")
        folder.mkdir()
        self._folder = folder
        self._url = f"http://127.0.0.1:{free_port()}"
        (folder / "prometheus.yml").write_text(_CONFIG.format(target=target))

    def start(self) -> None:
        argv = [
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._url.removeprefix('http://')}",
        ]
        self._server = ServerProcess(argv, self._folder / "log")

    def stop(self) -> None:
        self._server.stop()

    def query(self, expression: str) -> list[float]:
        """Return the values of an instant query, or none while the server does not answer."""
        try:
            with urlopen(f"{self._url}/api/v1/query?{urlencode({'query': expression})}") as answer:  # noqa: S310
                found = json.load(answer)["data"]["result"]
        except OSError:
            return []
        return [float(one["value"][1]) for one in found]

    def wait_for(self, expression: str, seconds: float = 20) -> list[float]:
        """Wait until a query has a result, and return its values."""
        poll(f"a result of {expression}", lambda: bool(self.query(expression)), seconds)
        return self.query(expression)


def promtool(*arguments: str | Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run promtool, with `text` as its standard input."""
    need("promtool")
    return subprocess.run(
        ["promtool", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
