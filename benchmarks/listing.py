"""Measure `backup-list` of many records, and bare GETs of the same objects for comparison.

    python -m benchmarks.listing --records 5000 --runs 3

A cold run has no cache. A warm run has the cache that the cold run left. Both measure the whole
command, from its start to its end. The raw loop requests the same objects by swiftclient alone, on
as many threads and connections. All processes, Swift included, share the cores of this machine.
Only the ratio of two figures of the same run is meaningful on another machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from swiftclient import client

from agent.keys.keyring import Keyring
from agent.keys.master import MasterKey, key_text
from agent.model import Record
from agent.records.object_names import container_name, record_name
from agent.records.reading import CONNECTIONS
from agent.store.protocol import Container
from agent.store.swift.login import AuthV1
from agent.store.swift.store import SwiftSettings, SwiftStore
from tests.records.made import completed
from tests.stack.agent import write_private
from tests.stack.swift import SwiftServer

_TENANT = "bench"
_CHUNK = 1 << 20


class Ran(NamedTuple):
    """Seconds of wall-clock time and of CPU time, and the peak resident memory in MiB.

    The CPU time of Swift itself is not counted.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backup-agent-bench-") as folder:
        swift = SwiftServer(Path(folder) / "swift")
        swift.start()
        try:
            print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
            _measure(swift, Path(folder), arguments.records, arguments.runs)
        finally:
            swift.stop()


def _measure(swift: SwiftServer, folder: Path, count: int, runs: int) -> None:
    secret = bytes(range(32))
    names = _fill(swift, Keyring({"k1": MasterKey("k1", secret)}, "k1"), count)
    config = _configuration(swift, folder, secret)
    ratios = []
    for number in range(1, runs + 1):
        raw = _raw_gets(swift, names)
        for cached in (folder / "state" / "cache").glob("*"):
            cached.unlink()
        cold, warm = _backup_list(config, count), _backup_list(config, count)
        ratios.append(cold.seconds / raw.seconds)
        print(
            f"run {number}: raw GETs {raw.seconds:.2f} s ({raw.cpu_seconds:.2f} s CPU); "
            f"cold {cold.seconds:.2f} s ({cold.cpu_seconds:.2f} s CPU), {ratios[-1]:.2f} times "
            f"that, peak {cold.peak_mib:.0f} MiB; "
            f"warm {warm.seconds:.2f} s, peak {warm.peak_mib:.0f} MiB",
            flush=True,
        )
    print(f"cold / raw: median {statistics.median(ratios):.2f} of {runs}")


def _fill(swift: SwiftServer, keys: Keyring, count: int) -> list[str]:
    """Store `count` signed records, like those of a chain. Return their names in order."""
    settings = SwiftSettings(AuthV1(swift.auth_url, swift.user, swift.key), container_name(_TENANT))
    store = SwiftStore(settings)
    store.open()

    def put(record: Record) -> str:
        raw = keys.sign(record.model_dump_json().encode())
        store.put(Container.OBJECTS, record_name(record.id), [memoryview(raw)])
        return record_name(record.id)

    records = (completed(id=str(uuid.uuid4()), name=f"daily.{n:05}") for n in range(count))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        names = sorted(pool.map(put, records))
    store.close()
    return names


def _raw_gets(swift: SwiftServer, names: Sequence[str]) -> Ran:
    """Get the same objects without parsing them. Each thread has a connection of its own."""
    url, token = client.get_auth(swift.auth_url, swift.user, swift.key)
    local = threading.local()

    def get(name: str) -> int:
        if not hasattr(local, "http"):
            local.http = client.http_connection(url)
        _, body = client.get_object(
            url,
            token,
            container_name(_TENANT),
            name,
            http_conn=local.http,
            resp_chunk_size=_CHUNK,
            headers={"X-Newest": "true"},
        )
        return sum(map(len, body))

    started, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        read = sum(1 for size in pool.map(get, names) if size)
    if read != len(names):
        raise RuntimeError(f"{read} records instead of {len(names)}")
    return Ran(time.monotonic() - started, time.process_time() - cpu)


def _configuration(swift: SwiftServer, folder: Path, secret: bytes) -> Path:
    (folder / "state").mkdir(mode=0o700)
    (folder / "keys").mkdir(mode=0o700)
    write_private(folder / "keys" / "k1.key", key_text(secret))
    write_private(folder / "store-key", swift.key)
    config = folder / "agent.toml"
    config.write_text(
        f'[agent]\ninstance_id = "{uuid.uuid4()}"\ntenant_id = "{_TENANT}"\n'
        'state_folder = "state"\n'
        f'[store]\nurl = "swift:{swift.auth_url}"\nuser = "{swift.user}"\nkey_file = "store-key"\n'
        '[keys]\nfolder = "keys"\nactive = "k1"\n'
    )
    return config


def _backup_list(config: Path, count: int) -> Ran:
    argv = [sys.executable, "-m", "agent", "--config", str(config), "backup-list"]
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(argv, stdout=output) as command,
    ):
        _, status, usage = os.wait4(command.pid, 0)
        command.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
        output.seek(0)
        lines = sum(1 for _ in output)
    if command.returncode or lines != count + 4:
        raise RuntimeError(f"backup-list: exit {command.returncode}, {lines} lines")
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
