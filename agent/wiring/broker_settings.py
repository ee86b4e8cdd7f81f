"""Build the settings of the broker from the configuration."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from agent.broker.amqp import BrokerSettings
from agent.broker.rights import agent_rights, operator_rights
from agent.config.secrets import read_secret
from agent.config.settings import Config, need
from agent.machine.tls import ClientCertificate


def broker(config: Config) -> BrokerSettings:
    """Return how the agent reaches its broker. Raise ConfigInvalid if [broker] is missing."""
    section = need(config.broker, "broker")
    return BrokerSettings(
        url=section.url,
        password=_password(section.password_file, "password_file"),
        ca_file=section.ca_file,
        certificate=_certificate(section.certificate_file, section.key_file, ""),
        queue_type=section.queue_type,
        rights=agent_rights(config.agent.instance_id),
    )


def control(config: Config) -> BrokerSettings:
    """Return how commands that send tasks reach the broker. The default is the agent's account."""
    section = need(config.broker, "broker")
    if section.control_url is None:
        return replace(broker(config), rights=None)
    return BrokerSettings(
        url=section.control_url,
        password=_password(section.control_password_file, "control_password_file"),
        ca_file=section.ca_file,
        certificate=_certificate(
            section.control_certificate_file, section.control_key_file, "control_"
        ),
        rights=operator_rights(config.agent.instance_id),
    )


def _password(path: Path | None, key: str) -> str:
    return "" if path is None else read_secret(path, f"[broker] {key}")


def _certificate(file: Path | None, key_file: Path | None, prefix: str) -> ClientCertificate | None:
    if file is None or key_file is None:
        return None
    key = f"[broker] {prefix}"
    check = partial(read_secret, key_file, f"{key}key_file")
    return ClientCertificate(file, key_file, check, key)
