"""The configuration files of Trove's services and of its guest agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.stack.keystone import REGION, Account, KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import USER, VHOST, RabbitMQ
from tests.stack.trove.cloud import NETWORK_ID
from tests.stack.trove.images import BACKUP, DATABASE

# Trove's own waits are made for real machines, and would be most of the tests' time.
_TROVE: Final = """\
[DEFAULT]
bind_host = 127.0.0.1
bind_port = {port}
trove_api_workers = 1
trove_conductor_workers = 1
api_paste_config = {paste}
transport_url = {transport}
control_exchange = trove
default_datastore = mariadb
management_networks = {network}
trove_security_groups_support = false
guest_config = {guest_config}
cloudinit_location = {folder}/cloudinit
max_instances_per_tenant = 1000
max_volumes_per_tenant = 10000
max_backups_per_tenant = 1000
http_get_rate = 1000000
http_post_rate = 1000000
http_delete_rate = 1000000
http_put_rate = 1000000
usage_sleep_time = 1
{extra}
[network]
network_isolation = true
enable_access_check = false
[database]
connection = {database}
[keystone_authtoken]
www_authenticate_uri = {auth_url}
auth_url = {auth_url}
auth_type = password
username = {user}
password = {password}
user_domain_name = {domain}
project_name = {project}
project_domain_name = {domain}
[service_credentials]
auth_url = {auth_url}
username = {user}
password = {password}
user_domain_name = {domain}
project_name = {project}
project_domain_name = {domain}
region_name = {region}
[mariadb]
tcp_ports = 3306
usage_timeout = 120
[oslo_messaging_notifications]
driver = noop
[oslo_concurrency]
lock_path = {folder}
"""
_GUEST: Final = """\
[DEFAULT]
transport_url = {transport}
control_exchange = trove
log_dir = /var/log/trove
log_file = trove-guestagent.log
debug = true
state_change_poll_time = 1
state_healthy_counts = 1
state_change_wait_time = 60
report_interval = 2
{extra}
[mariadb]
tcp_ports = 3306
docker_image = {image}
backup_docker_image = {backup_image}
[oslo_messaging_notifications]
driver = noop
"""


@dataclass
class Configuration:
    """What the files are made of. `extra` and `guest_extra` are more options of [DEFAULT]."""

    folder: Path
    port: int
    venv: Path
    keystone: KeystoneServer
    rabbitmq: RabbitMQ
    mariadb: MariaDB
    account: Account
    extra: Mapping[str, object]
    guest_extra: Mapping[str, object]

    @property
    def trove_conf(self) -> Path:
        return self.folder / "trove.conf"

    def write(self) -> None:
        """Write trove.conf and the guest agent's file, which Trove injects into machines."""
        rabbitmq = self.rabbitmq
        credentials = f"{USER}:{rabbitmq.password}"
        transport = f"rabbit://{credentials}@127.0.0.1:{rabbitmq.port}/{VHOST}"
        guest_config = self.folder / "trove-guestagent.conf"
        guest_config.write_text(
            _GUEST.format(
                transport=transport,
                image=DATABASE,
                backup_image=BACKUP,
                extra=_lines(self.guest_extra),
            )
        )
        socket = f"unix_socket={self.mariadb.socket}"
        self.trove_conf.write_text(
            _TROVE.format(
                port=self.port,
                paste=self.venv / "etc" / "trove" / "api-paste.ini",
                transport=transport,
                network=NETWORK_ID,
                guest_config=guest_config,
                folder=self.folder,
                database=f"mysql+pymysql://{self.mariadb.admin}@localhost/trove?{socket}",
                auth_url=self.keystone.auth_url,
                user=self.account.name,
                password=self.account.password,
                domain=self.account.domain,
                project=self.keystone.service_project,
                region=REGION,
                extra=_lines(self.extra),
            )
        )


def _lines(options: Mapping[str, object]) -> str:
    return "\n".join(f"{name} = {value}" for name, value in options.items())
