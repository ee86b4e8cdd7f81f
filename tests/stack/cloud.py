"""A Keystone with an object store behind it, a user with an application credential, an agent."""

from pathlib import Path
from typing import Protocol

from tests.stack.agent import Agent, write_private
from tests.stack.keystone import REGION, Account, ApplicationCredential, KeystoneServer
from tests.stack.mariadb import MariaDB
from tests.stack.rabbitmq import RabbitMQ

MIB = 1 << 20


class _Stored(Protocol):
    @property
    def storage_url(self) -> str: ...


class Cloud:
    """A user of `keystone`, the user's application credential, and an agent that logs in with it.

    The catalogue of `keystone` names the object store `store`. As a store of the agent's, a cloud
    has the address of Keystone and the secret of the credential.
    """

    def __init__(
        self,
        folder: Path,
        keystone: KeystoneServer,
        store: _Stored,
        rabbitmq: RabbitMQ,
        mariadb: MariaDB,
    ) -> None:
        self.keystone = keystone
        self.store = store
        self.owner: Account = keystone.add_user()
        self.credential = keystone.make_application_credential(self.owner)
        self.agent = Agent(folder / "agent", rabbitmq, self, mariadb, self.login(self.credential))

    @property
    def auth_url(self) -> str:
        return self.keystone.auth_url

    @property
    def storage_url(self) -> str:
        return self.store.storage_url

    @property
    def user(self) -> str:
        return ""

    @property
    def key(self) -> str:
        return self.credential.secret

    def login(self, credential: ApplicationCredential) -> dict[str, dict[str, object]]:
        """Return the keys of an agent.toml with the login of that credential."""
        store: dict[str, object] = {
            "auth": "v3applicationcredential",
            "application_credential": credential.id,
            "user": None,
            "region": REGION,
        }
        return {"store": store, "pipeline": {"segment_bytes": MIB}}

    def other_agent(self, name: str, credential: ApplicationCredential) -> Agent:
        """Return another agent beside this cloud's, with its configuration written.

        It logs in with that credential.
        """
        mine = self.agent
        folder = mine.folder.parent / name
        agent = Agent(folder, mine.rabbitmq, self, mine.mariadb, self.login(credential))
        agent.write()
        write_private(agent.folder / "store-key", credential.secret)
        return agent
