"""A private Ceph of one node with radosgw, its object gateway, which speaks Swift's API."""

import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any, Final

from tests.stack.keystone import KeystoneServer
from tests.stack.process import ServerProcess, StackError, free_port, poll, port_answers

PROGRAMS: Final = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "monmaptool")
_BYTES: Final = 6 << 30  # size of the store, in memory
_USER: Final = "test"
_CONF: Final = """\
[global]
fsid = {fsid}
mon host = {mon_hosts}
mon initial members = a
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
# a new gateway waits that long for a killed one
osd client watch timeout = 2
client notify timeout = 2
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
pid file = {folder}/run/$name.pid
ms bind ipv6 = false
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
[client.admin]
keyring = {folder}/keyring
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {bytes}
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable usage log = false
rgw data = {folder}/rgw
keyring = {folder}/rgw/keyring
{more}
"""


def keystone_settings(keystone: KeystoneServer) -> dict[str, Any]:
    """Return the settings for `Radosgw.configure` that make Keystone decide on tokens.

    No token is cached, so that a revoked one is refused at once.
    """
    return {
        "rgw_keystone_url": keystone.auth_url.removesuffix("/v3"),
        "rgw_keystone_api_version": 3,
        "rgw_keystone_admin_user": keystone.service.name,
        "rgw_keystone_admin_password": keystone.service.password,
        "rgw_keystone_admin_domain": keystone.service.domain,
        "rgw_keystone_admin_project": keystone.service_project,
        "rgw_keystone_accepted_roles": "member",
        "rgw_keystone_implicit_tenants": "true",
        "rgw_keystone_token_cache_size": 0,
    }


class Radosgw:
    """Ceph's gateway with auth v1 and one account, on free loopback ports.

    It has the attributes that an Agent needs of a Swift: `auth_url`, `user`, `key`. Objects live
    in the OSD's memory and are lost with it. The gateway alone may be killed and started again.
    """

    user: Final = f"{_USER}:tester"
    key: Final = "testing-key-of-radosgw"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        address = f"http://127.0.0.1:{self.port}"
        self.auth_url = f"{address}/auth/v1.0"
        self.storage_url = f"{address}/swift/v1"
        self._fsid = str(uuid.uuid4())
        self._mon_hosts = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
        self._settings: dict[str, Any] = {}
        self._processes: dict[str, ServerProcess] = {}

    def start(self) -> None:
        """Create the cluster and start all its processes, in under 20 s on two cores."""
        for part in ("mon", "osd", "run", "log", "rgw"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        try:
            self._start_monitor()
            self._start_osd()
            self._make_account()
            self.start_gateway()
        except BaseException:
            self.stop()
            raise

    def configure(self, **settings: Any) -> None:
        """Restart the gateway with only those settings added (`_` stands for a space).

        Do nothing if it runs with them.
        """
        wanted = {key.replace("_", " "): value for key, value in settings.items()}
        if wanted == self._settings:
            return
        self._settings = wanted
        self._write_configuration()
        self._processes["rgw"].stop()
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start only the gateway, after `kill_gateway`, and wait at most 30 s for an answer."""
        self._launch("rgw", "radosgw", "-n", "client.rgw")
        self._processes["rgw"].wait_ready(lambda: port_answers(self.port), 30)

    def add_storage_policy(self, name: str) -> None:
        """Add a storage policy with pools of its own, for a gateway that starts after this."""
        placement = ("placement", "add", "--placement-id", name)
        self._run("radosgw-admin", "zonegroup", *placement, "--rgw-zonegroup", "default")
        pools = [
            word
            for kind in ("data", "index", "data-extra")
            for word in (f"--{kind}-pool", f"default.rgw.{name}.{kind}")
        ]
        self._run("radosgw-admin", "zone", *placement, "--rgw-zone", "default", *pools)

    def kill_gateway(self) -> None:
        """End the gateway with SIGKILL."""
        self._processes["rgw"].stop(signal.SIGKILL)

    def freeze_osd(self) -> None:
        """Freeze the OSD, so that the gateway accepts requests and answers none."""
        self._processes["osd"].send(signal.SIGSTOP)

    def thaw_osd(self) -> None:
        self._processes["osd"].send(signal.SIGCONT)

    def stop(self) -> None:
        """Kill all processes, each by its pid. Do nothing if none runs."""
        for name in ("rgw", "osd", "mon"):
            if process := self._processes.pop(name, None):
                process.stop(signal.SIGKILL)  # none of its data is needed again

    def _write_configuration(self) -> None:
        text = _CONF.format(
            fsid=self._fsid,
            mon_hosts=self._mon_hosts,
            folder=self.folder,
            bytes=_BYTES,
            port=self.port,
            more="\n".join(f"{key} = {value}" for key, value in self._settings.items()),
        )
        (self.folder / "ceph.conf").write_text(text)

    def _start_monitor(self) -> None:
        self._write_configuration()
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        _run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", self._mon_hosts, monmap)
        rights = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
        _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", *rights[:3])
        _run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *rights)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._launch("mon", "ceph-mon", "-i", "a")
        poll("monitor", lambda: self._ok("ceph", "--connect-timeout", "5", "fsid"), 20)

    def _start_osd(self) -> None:
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        create = ("ceph", "auth", "get-or-create")
        rights = ["mon", "profile osd", "osd", "allow *", "mgr", "profile osd"]
        self._run(*create, "osd.0", *rights, "-o", f"{self.folder}/osd/keyring")
        rights = ["mon", "allow rwx", "osd", "allow rwx"]
        self._run(*create, "client.rgw", *rights, "-o", f"{self.folder}/rgw/keyring")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._launch("osd", "ceph-osd", "-i", "0")
        poll("OSD", self._osd_up, 20)

    def _osd_up(self) -> bool:
        said = self._run("ceph", "--connect-timeout", "5", "osd", "stat", "-f", "json")
        return bool(json.loads(said)["num_up_osds"])

    def _make_account(self) -> None:
        self._run("radosgw-admin", "user", "create", f"--uid={_USER}", "--display-name=test")
        words = (f"--uid={_USER}", f"--subuser={self.user}", f"--secret-key={self.key}")
        kind = ("--access=full", "--key-type=swift")
        self._run("radosgw-admin", "subuser", "create", *words, *kind)

    def _launch(self, name: str, program: str, *arguments: str) -> None:
        argv = [program, "-c", str(self.folder / "ceph.conf"), *arguments, "-f"]
        self._processes[name] = ServerProcess(argv, self.folder / "log" / f"{name}.out")

    def _run(self, program: str, *arguments: str) -> str:
        return _run(program, "-c", str(self.folder / "ceph.conf"), *arguments)

    def _ok(self, program: str, *arguments: str) -> bool:
        try:
            self._run(program, *arguments)
        except StackError:
            return False
        return True


def _run(*argv: str) -> str:
    # CEPH_* variables of the environment would name another cluster
    environment = {key: value for key, value in os.environ.items() if "CEPH" not in key}
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise StackError(f"{argv[0]} ended with {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout
