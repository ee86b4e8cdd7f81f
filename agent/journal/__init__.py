"""The agent's only local truth about tasks, in SQLite."""

from agent.journal.journal import Acceptance, Journal
from agent.journal.outbox import OutboxItem

__all__ = ["Acceptance", "Journal", "OutboxItem"]
