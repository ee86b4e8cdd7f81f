"""Queries of a journal that only tests need."""

from agent.journal import Journal


def unsent(journal: Journal) -> int:
    """Return how many reports wait in the outbox."""
    with journal._file.transaction() as db:
        (count,) = db.execute("SELECT count(*) FROM outbox").fetchone()
    return int(count)
