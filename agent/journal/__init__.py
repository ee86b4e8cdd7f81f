"""The journal of tasks and reports, in SQLite."""

from agent.journal.cancels import cancelled_error, refusal_report
from agent.journal.journal import Acceptance, InterruptedTask, Journal
from agent.journal.reading import busy_backups, known_parents, overview

__all__ = [
    "Acceptance",
    "InterruptedTask",
    "Journal",
    "busy_backups",
    "cancelled_error",
    "known_parents",
    "overview",
    "refusal_report",
]
