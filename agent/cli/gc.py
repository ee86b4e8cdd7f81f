"""The verb `gc`, which removes stored data that belongs to no backup.

It takes no lock and may run beside the daemon. operations/gc/collect.py says why that is safe. It
reads the daemon's journal and changes nothing in it. So it must be run by the daemon's user or by
root, who can read the journal.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from agent import wiring
from agent.cli import embedded, tables
from agent.cli.streams import note
from agent.cli.verb import Verbs, add_json, add_store, add_verb, on_signals
from agent.config.settings import Config
from agent.errors import AgentError, Interrupted
from agent.journal import busy_backups, known_parents
from agent.model import printable
from agent.operations.gc.collect import GcOperation
from agent.operations.gc.orphans import Orphan, OrphanKind
from agent.records.catalogue import Catalogue
from agent.stop import Stop

_COLUMNS = ("What", "Backup ID", "Attempt", "Objects", "Bytes", "Why")
_MORE = """\
Removes data of this instance only, and only if nothing under the backup's id was touched for 24
hours by the store's own clock. This data is segments of backups without a record, segments of
older attempts, the bytes of FAILED and CANCELLED backups, and the remains of self-tests. The
record of a FAILED or CANCELLED backup stays. A BUILDING backup without a task at work on it
becomes FAILED, and its bytes are removed. A delete that was begun and not finished is finished.
Data that can't be judged for sure is left alone, and listed with the reason. May run beside the
daemon, as the daemon's user or as root. If a run is interrupted, the next run continues it. The
exit status is 0 also if nothing is found.
"""


def add(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "gc",
        gc,
        "remove data that crashes left in the store and that no backup needs",
        more=_MORE,
        examples=("--dry-run", ""),
    )
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="list the data that would be removed, and remove nothing",
    )
    add_store(verb)
    add_json(verb)


def gc(config: Config, arguments: argparse.Namespace) -> int:
    """Remove the orphans, print them, and return the exit status.

    If an error ends the run, the orphans that were handled before it are printed too.
    """
    embedded.need_key(config, arguments)
    seen: list[Orphan] = []
    try:
        with _operation(config, dry_run=arguments.dry_run) as operation:
            for orphan in operation.run():
                seen.append(orphan)
    except AgentError as error:
        if not seen:
            raise
        if arguments.json:
            _show_json(seen, operation, {}, failure=error)
        else:
            _show(seen, operation)
        return tables.fail(error, for_program=False)
    broken = {one.backup_id: one.why for one in operation.broken}
    if arguments.json:
        _show_json(seen, operation, broken)
    else:
        _show(seen, operation)
    for line in tables.unrestorable(broken):
        note(line)
    return 0


@contextmanager
def _operation(config: Config, *, dry_run: bool) -> Iterator[GcOperation]:
    """Yield a collection that SIGINT and SIGTERM stop between two objects."""
    store, stop = wiring.store(config), Stop()
    journal = config.agent.journal_file
    again = "run the same command again to continue it"
    on_signals(lambda: stop.request(Interrupted("the collection was interrupted", hint=again)))
    try:
        yield GcOperation(
            store,
            Catalogue(store, wiring.keyring(config), wiring.record_cache(config)),
            config.agent.instance_id,
            busy=lambda: busy_backups(journal),
            parents=lambda: known_parents(journal),
            connections=config.pipeline.connections,
            stop=stop,
            dry_run=dry_run,
        )
    finally:
        store.close()


def _show(seen: Sequence[Orphan], operation: GcOperation) -> None:
    if seen:
        print(tables.table(_COLUMNS, [_cells(one) for one in seen]))
    gone = [one for one in seen if one.what is not OrphanKind.LEFT_ALONE]
    objects, stored_bytes = _total(gone)
    dry = "would be removed; this was a dry run, nothing was changed"
    did = dry if operation.dry_run else "removed"
    young = f"; {operation.young} touched within 24 hours, so not judged" if operation.young else ""
    print(
        f"{len(gone)} orphans, {objects} objects, {stored_bytes} bytes {did}; "
        f"{len(seen) - len(gone)} left alone{young}"
    )


def _cells(one: Orphan) -> list[str]:
    few = 2
    attempts = ", ".join(one.attempts[:few]) or "-"
    if len(one.attempts) > few:
        attempts = f"{attempts} and {len(one.attempts) - few} more"
    return [
        one.what.value,
        one.backup_id,
        attempts,
        str(one.objects),
        str(one.stored_bytes),
        printable(one.why),
    ]


def _show_json(
    seen: Sequence[Orphan],
    operation: GcOperation,
    broken: Mapping[str, str],
    *,
    failure: AgentError | None = None,
) -> None:
    gone = [one for one in seen if one.what is not OrphanKind.LEFT_ALONE]
    objects, stored_bytes = _total(gone)
    print(
        tables.as_json(
            {
                "dry_run": operation.dry_run,
                "orphans": [_plain(one) for one in gone],
                "left_alone": [_plain(one) for one in seen if one.what is OrphanKind.LEFT_ALONE],
                "touched_within_a_day": operation.young,
                "objects": objects,
                "bytes": stored_bytes,
                "unrestorable": broken,
                **(tables.error_object(failure) if failure else {}),
            }
        )
    )


def _total(gone: Sequence[Orphan]) -> tuple[int, int]:
    return sum(one.objects for one in gone), sum(one.stored_bytes for one in gone)


def _plain(one: Orphan) -> dict[str, Any]:
    return {
        "what": one.what.value,
        "backup_id": one.backup_id,
        "attempts": list(one.attempts),
        "objects": one.objects,
        "bytes": one.stored_bytes,
        "why": one.why,
    }
