"""The journal of tasks and reports, in SQLite."""

from agent.journal.cancels import cancelled_error, refusal_report
from agent.journal.journal import Acceptance, InterruptedTask, Journal
from agent.journal.reading import busy_backups, known_parents, overview
from agent.journal.totals import Ended, Figures, LastBackup, figures

__all__ = [
    "Acceptance",
    "Ended",
    "Figures",
    "InterruptedTask",
    "Journal",
    "LastBackup",
    "busy_backups",
    "cancelled_error",
    "figures",
    "known_parents",
    "overview",
    "refusal_report",
]
