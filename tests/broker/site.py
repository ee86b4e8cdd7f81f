"""One instance in tests of the link, with its journal and the links that a test starts."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from agent.broker import wire
from agent.broker.amqp import BrokerSettings
from agent.broker.intake import Verdict
from agent.broker.link import BrokerLink
from agent.broker.pace import Pauses
from agent.journal import Journal
from agent.model import PingTask, TaskStatus
from tests.broker.probe import QUICK, Keeper, draft, settings_for
from tests.stack.rabbitmq import RabbitMQ

OnMessage = Callable[[bytes, bool], Verdict]


class Site:
    """An instance with a journal. Its journal and links are closed when `cleanup` unwinds."""

    def __init__(self, server: RabbitMQ, folder: Path, cleanup: ExitStack):
        self.server = server
        self.instance_id = str(uuid4())
        self.queue = wire.task_queue(self.instance_id)
        self.journal = Journal(folder / "journal.sqlite", self.instance_id, str(uuid4()))
        self.looks = 0
        self._cleanup = cleanup
        cleanup.callback(self.journal.close)

    def link(
        self,
        on_message: OnMessage | None = None,
        settings: BrokerSettings | None = None,
        pauses: Pauses = QUICK,
    ) -> BrokerLink:
        link = BrokerLink(
            settings or settings_for(self.server),
            self.instance_id,
            on_message or Keeper(self.journal),
            self.journal,
            pauses,
            self.ready,
        )
        self._cleanup.callback(link.stop, 0.5)
        link.start()
        return link

    def ready(self) -> None:
        """Check the room in the journal, as the agent does before it takes tasks, and count it."""
        self.looks += 1
        self.journal.try_room()

    def running(
        self,
        on_message: OnMessage | None = None,
        settings: BrokerSettings | None = None,
        pauses: Pauses = QUICK,
    ) -> BrokerLink:
        link = self.link(on_message, settings, pauses)
        assert link.consuming.wait(20)
        return link

    def report(self, task: PingTask, status: TaskStatus, link: BrokerLink) -> None:
        self.journal.report(draft(task, status))
        link.wake()

    def ping(self) -> PingTask:
        """Accept a task in the journal without the broker, and return it."""
        task = PingTask(task_id=str(uuid4()))
        self.journal.accept(task, draft(task, TaskStatus.ACCEPTED))
        return task
