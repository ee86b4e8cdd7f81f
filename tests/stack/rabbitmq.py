"""A private RabbitMQ node on loopback, with its own epmd, user and virtual host."""

import secrets
import shlex
import signal
import subprocess
from pathlib import Path

import pika
import psutil
from pika.exceptions import AMQPError

from agent.broker import wire
from tests.stack.process import ServerProcess, free_port, poll, port_answers

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
USER = "agent"
VHOST = "backup"


def _helpers(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ended(helpers: list[psutil.Process]) -> None:
    """Wait for the node's child processes, which end with it. Kill those that remain."""
    _, alive = psutil.wait_procs(helpers, timeout=5)
    for process in alive:
        process.kill()


class RabbitMQ:
    """A node that keeps its data across `kill()` or `stop()` and the next `start()`.

    `consumer_timeout_ms` is the time for which a consumer may hold a delivery. The node checks
    it every `channel_tick_ms`. RabbitMQ's own defaults are 30 minutes and 60 s. `tls` is a PEM
    file with key and certificate. If it is given, the node also listens on `tls_port`. If
    `client_ca` is given, a client of that port must show a certificate of this authority. It may
    log in by the certificate (EXTERNAL), as the user with the certificate's common name.
    """

    def __init__(
        self,
        folder: Path,
        consumer_timeout_ms: int | None = None,
        channel_tick_ms: int | None = None,
        tls: Path | None = None,
        client_ca: Path | None = None,
    ):
        self.folder = folder
        self.port, self.tls_port, self._dist_port, self._epmd_port = (free_port() for _ in range(4))
        self.password = secrets.token_urlsafe(16)
        self._consumer_timeout_ms = consumer_timeout_ms
        self._channel_tick_ms = channel_tick_ms
        self._tls = tls
        self._client_ca = client_ca
        self._epmd: ServerProcess | None = None
        self._node: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The URL that clients use. It does not contain the password."""
        return self.url_of(USER)

    @property
    def tls_url(self) -> str:
        return f"amqps://{USER}@127.0.0.1:{self.tls_port}/{VHOST}"

    def url_of(self, user: str) -> str:
        """Return the URL for a user other than the default one."""
        return f"amqp://{user}@127.0.0.1:{self.port}/{VHOST}"

    def define(self, definitions: str) -> None:
        """Import definitions from a file, because RabbitMQ 4 never sees the end of its stdin."""
        file = self.folder / "definitions.json"
        file.write_text(definitions)
        self.control("import_definitions", str(file))

    def parameters(self, user: str = USER, password: str = "") -> pika.ConnectionParameters:
        """Return parameters for a test's own connection, separate from the code under test."""
        credentials = pika.PlainCredentials(user, password or self.password)
        # the connection may idle longer than a heartbeat, and a blocking one sends none then
        return pika.ConnectionParameters("127.0.0.1", self.port, VHOST, credentials, heartbeat=0)

    def pids(self) -> list[int]:
        """Return the pids of the node and its epmd, if they are started."""
        return [process.pid for process in (self._node, self._epmd) if process]

    def launch(self) -> None:
        """Start the node, which needs seconds to answer. Call this from the main thread only."""
        self._write_files()
        env = self._environment()
        # Start our own epmd in the foreground. The node would start one that outlives it.
        epmd = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = ServerProcess(epmd, self.folder / "epmd.log", env)
        self._epmd.wait_ready(lambda: port_answers(self._epmd_port), 10)
        self._node = ServerProcess([SERVER], self.folder / "rabbitmq.out", env)

    def wait_ready(self) -> None:
        """Wait until clients can log in."""
        assert self._node is not None
        self._node.wait_ready(self._answers, 60)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` (takes about 1 s) and return its output.

        Raise CalledProcessError if it fails.
        """
        program = str(Path(SERVER).with_name("rabbitmqctl"))
        done = subprocess.run(
            [program, *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    def control_script(self) -> Path:
        """Write a `rabbitmqctl` script of this node for use in a shell. Return its path."""
        script = self.folder / "rabbitmqctl"
        variables = " ".join(
            shlex.quote(f"{name}={value}") for name, value in self._environment().items()
        )
        program = Path(SERVER).with_name("rabbitmqctl")
        script.write_text(f'#!/bin/sh\nexec env -i {variables} {program} "$@"\n')
        script.chmod(0o700)
        return script

    def bind_tasks(self) -> None:
        """Bind all task queues to their exchange, which a test may have deleted."""
        queues = self.control("--quiet", "list_queues", "-p", VHOST, "name").split()
        with pika.BlockingConnection(self.parameters()) as connection:
            channel = connection.channel()
            channel.exchange_declare(wire.TASK_EXCHANGE, "direct", durable=True)
            for queue in queues:
                instance_id = queue.removeprefix(wire.task_queue(""))
                if instance_id != queue:
                    channel.queue_bind(queue, wire.TASK_EXCHANGE, instance_id)

    def freeze(self) -> None:
        """Freeze the node. Its connections stay open and nothing answers."""
        assert self._node is not None
        self._node.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._node is not None
        self._node.send(signal.SIGCONT)

    def stop(self) -> None:
        """End the node cleanly. Do nothing if it doesn't run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node with SIGKILL, as a power failure would."""
        self._end(signal.SIGKILL)

    def _end(self, signum: int) -> None:
        if self._node:
            helpers = _helpers(self._node.pid)
            self._node.stop(signum)
            self._node = None
            _ended(helpers)
            poll("RabbitMQ's port closed", lambda: not port_answers(self.port), 10)
        if self._epmd:
            self._epmd.stop(signum)
            self._epmd = None

    def _answers(self) -> bool:
        # The port opens before the user exists, so a login is the only proof.
        if not port_answers(self.port):
            return False
        try:
            pika.BlockingConnection(self.parameters()).close()
        except AMQPError:
            return False
        return True

    def _write_files(self) -> None:
        for part in ("home", "mnesia", "log", "generated"):
            (self.folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        self._write("rabbitmq.conf", "\n".join(self._settings()))
        tick = self._channel_tick_ms or 60_000
        self._write("advanced.config", f"[{{rabbit,[{{channel_tick_interval,{tick}}}]}}].\n")
        plugins = "rabbitmq_auth_mechanism_ssl" if self._client_ca else ""
        self._write("enabled_plugins", f"[{plugins}].\n")
        self._write("rabbitmq-env.conf", "")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)

    def _settings(self) -> list[str]:
        # If the default user has another name, the user `guest` does not exist.
        lines = [
            f"default_vhost = {VHOST}",
            f"default_user = {USER}",
            f"default_pass = {self.password}",
            "log.file.level = warning",
            "disk_free_limit.absolute = 50MB",
        ]
        if self._consumer_timeout_ms:
            lines.append(f"consumer_timeout = {self._consumer_timeout_ms}")
        if self._tls:
            lines += [
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}",
                f"ssl_options.certfile = {self._tls}",
                f"ssl_options.keyfile = {self._tls}",
                f"ssl_options.verify = {'verify_peer' if self._client_ca else 'verify_none'}",
            ]
        if self._client_ca:
            lines += [
                f"ssl_options.cacertfile = {self._client_ca}",
                "ssl_options.fail_if_no_peer_cert = true",
                "auth_mechanisms.1 = PLAIN",
                "auth_mechanisms.2 = EXTERNAL",
                "ssl_cert_login_from = common_name",
            ]
        return [*lines, ""]

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            # As under systemd, the script becomes the node, so that its pid is the node's.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": "agent@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1}"),
        }
