"""A private RabbitMQ node on loopback, with an epmd, a user and a virtual host of its own."""

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
    """Wait for the node's own children (they end with it), kill what stays."""
    _, alive = psutil.wait_procs(helpers, timeout=5)
    for process in alive:
        process.kill()


class RabbitMQ:
    """One node; what it stores survives `kill()` and `stop()`, and `start()` brings it back.

    `consumer_timeout_ms` is how long a consumer may hold a delivery, which the node checks
    every `channel_tick_ms` (RabbitMQ's own defaults: 30 minutes, 60 s). `tls` names a PEM
    file of key and certificate; with it the node also listens on `tls_port`.
    """

    def __init__(
        self,
        folder: Path,
        consumer_timeout_ms: int | None = None,
        channel_tick_ms: int | None = None,
        tls: Path | None = None,
    ):
        self.folder = folder
        self.port, self.tls_port, self._dist_port, self._epmd_port = (free_port() for _ in range(4))
        self.password = secrets.token_urlsafe(16)
        self._consumer_timeout_ms = consumer_timeout_ms
        self._channel_tick_ms = channel_tick_ms
        self._tls = tls
        self._epmd: ServerProcess | None = None
        self._node: ServerProcess | None = None

    @property
    def url(self) -> str:
        """How clients name it; the password goes apart."""
        return self.url_of(USER)

    @property
    def tls_url(self) -> str:
        return f"amqps://{USER}@127.0.0.1:{self.tls_port}/{VHOST}"

    def url_of(self, user: str) -> str:
        """How another user than the default one names it."""
        return f"amqp://{user}@127.0.0.1:{self.port}/{VHOST}"

    def define(self, definitions: str) -> None:
        """Import definitions: from a file, because RabbitMQ 4 never sees the end of its input."""
        file = self.folder / "definitions.json"
        file.write_text(definitions)
        self.control("import_definitions", str(file))

    def parameters(self, user: str = USER, password: str = "") -> pika.ConnectionParameters:
        """For a test's own connection, beside the code under test."""
        credentials = pika.PlainCredentials(user, password or self.password)
        # it may be idle for longer than a heartbeat, which a blocking connection doesn't send then
        return pika.ConnectionParameters("127.0.0.1", self.port, VHOST, credentials, heartbeat=0)

    def pids(self) -> list[int]:
        """Of the node and its epmd, while they are started."""
        return [process.pid for process in (self._node, self._epmd) if process]

    def launch(self) -> None:
        """Start the node, which takes seconds to answer; from the main thread only."""
        self._write_files()
        env = self._environment()
        # An epmd of our own, in the foreground: the node would start one that outlives it.
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
        """Run `rabbitmqctl`; return its output. CalledProcessError if it fails. Takes a second."""
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
        """Write a `rabbitmqctl` of this node for a person's shell; return its path."""
        script = self.folder / "rabbitmqctl"
        variables = " ".join(
            shlex.quote(f"{name}={value}") for name, value in self._environment().items()
        )
        program = Path(SERVER).with_name("rabbitmqctl")
        script.write_text(f'#!/bin/sh\nexec env -i {variables} {program} "$@"\n')
        script.chmod(0o700)
        return script

    def bind_tasks(self) -> None:
        """Bind all queues of tasks to their exchange, which a test may have deleted."""
        queues = self.control("--quiet", "list_queues", "-p", VHOST, "name").split()
        with pika.BlockingConnection(self.parameters()) as connection:
            channel = connection.channel()
            channel.exchange_declare(wire.TASK_EXCHANGE, "direct", durable=True)
            for queue in queues:
                instance_id = queue.removeprefix(wire.task_queue(""))
                if instance_id != queue:
                    channel.queue_bind(queue, wire.TASK_EXCHANGE, instance_id)

    def freeze(self) -> None:
        """Have the node stand still: connections stay open and nothing answers."""
        assert self._node is not None
        self._node.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._node is not None
        self._node.send(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order; nothing if it doesn't run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
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
        self._write("enabled_plugins", "[].\n")
        self._write("rabbitmq-env.conf", "")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)

    def _settings(self) -> list[str]:
        # With another default user there is no `guest` at all.
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
                "ssl_options.verify = verify_none",
            ]
        return [*lines, ""]

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            # As under systemd the script becomes the node, whose pid is then ours to end.
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
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1}"),
        }
