"""`agent.ping`: report that the agent takes tasks."""

from agent.model import PingTask
from agent.stop import Stop
from agent.tasks.kind import TaskKind
from agent.tasks.outcome import Outcome


class PingKind(TaskKind[PingTask]):
    """Answers when a ping is accepted: a busy worker must not delay the answer."""

    writes_files = False
    done_when_accepted = True

    def perform(self, task: PingTask, stop: Stop) -> Outcome:
        """Do nothing. The journal made the ping DONE when it accepted it."""
        return Outcome()
