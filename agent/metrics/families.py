"""The metrics, and their values. docs/metrics.md has the same table.

Labels have few values: types and statuses of tasks, codes of errors, stages of the data path. No
text of a message, a record or a server becomes a label.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from agent import __version__
from agent.journal import Ended, Figures, LastBackup, figures
from agent.model import STAGES, TASK_TYPES, StageTotal, TaskStatus

PREFIX: Final = "backup_agent_"
_STATUSES: Final = tuple(status.value for status in TaskStatus if status.final)
_NO_BACKUP: Final = LastBackup(0, 0, 0.0)
# How far a time may be in the future without being wrong, in seconds.
_SKEW_SECONDS: Final = 600.0
# The values of one metric, by the values of its labels.
Values = Mapping[tuple[str, ...], float]


class Metric(NamedTuple):
    """One metric. `name` is without the prefix."""

    name: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...]
    meaning: str


METRICS: Final = (
    Metric("info", "gauge", ("version",), "Always 1. The label is the version of the agent."),
    Metric(
        "start_timestamp_seconds",
        "gauge",
        (),
        "Start of the process that wrote these metrics, in Unix seconds.",
    ),
    Metric(
        "written_timestamp_seconds",
        "gauge",
        (),
        "Time at which these metrics were written, in Unix seconds.",
    ),
    Metric(
        "consuming",
        "gauge",
        (),
        "1 if the daemon takes tasks from the broker, else 0. Absent without a section [broker].",
    ),
    Metric(
        "last_success_timestamp_seconds",
        "gauge",
        (),
        "End of the last backup that was completed, in Unix seconds. 0 if there was none.",
    ),
    Metric(
        "last_verify_timestamp_seconds",
        "gauge",
        (),
        "End of the last verification that found a good backup, in Unix seconds. 0 if there was "
        "none.",
    ),
    Metric(
        "last_backup_raw_bytes",
        "gauge",
        (),
        "Size of the last completed backup as the engine wrote it. 0 if it is not known.",
    ),
    Metric(
        "last_backup_stored_bytes",
        "gauge",
        (),
        "Size of the last completed backup in the store. 0 if it is not known.",
    ),
    Metric(
        "last_backup_duration_seconds",
        "gauge",
        (),
        "Duration of the last completed backup, in whole seconds. 0 if it is not known.",
    ),
    Metric(
        "task_total",
        "counter",
        ("type", "status", "code"),
        "Tasks that ended, by their type, status and error code.",
    ),
    Metric(
        "task_last_end_timestamp_seconds",
        "gauge",
        ("type", "status"),
        "Last end of a task with this type and status, in Unix seconds. 0 if there was none.",
    ),
    Metric(
        "stage_seconds_total",
        "counter",
        ("stage",),
        "Seconds that a stage of the data path worked, summed over its threads.",
    ),
    Metric("stage_bytes_total", "counter", ("stage",), "Bytes that left a stage of the data path."),
    Metric("journal_tasks", "gauge", (), "Tasks that wait or run."),
    Metric("outbox_reports", "gauge", (), "Reports that no queue has accepted yet."),
    Metric(
        "outbox_oldest_report_timestamp_seconds",
        "gauge",
        (),
        "Time of the oldest report that no queue has accepted yet, in Unix seconds. 0 if there "
        "is none.",
    ),
)


class Source(NamedTuple):
    """The places that the values come from.

    `consuming` tells if the daemon takes tasks. It is None for an agent without a broker. `started`
    is in Unix seconds.
    """

    journal: Path
    consuming: Callable[[], bool] | None
    started: float


def exposition(source: Source) -> bytes:
    """Return all metrics in Prometheus' text format 0.0.4.

    Raises:
        JournalError: the journal can't be read.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(_values(source)))
    return generate_latest(registry)


class _Collector(Collector):
    """Presents values to the client library."""

    def __init__(self, values: Mapping[str, Values]) -> None:
        self._values = values

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for metric in METRICS:
            family = kinds[metric.kind](
                PREFIX + metric.name, metric.meaning, labels=list(metric.labels)
            )
            for labels, value in self._values[metric.name].items():
                family.add_metric(list(labels), value)
            yield family


def _values(source: Source) -> dict[str, Values]:
    """Return the values of all metrics, by their names without the prefix."""
    now = time.time()
    found = _of_the_past(figures(source.journal), now)
    last, backup = _last_ends(found.ends), found.last_backup or _NO_BACKUP
    consuming: Values = {(): float(source.consuming())} if source.consuming else {}
    return {
        "info": {(__version__,): 1},
        "start_timestamp_seconds": {(): source.started},
        "written_timestamp_seconds": {(): now},
        "consuming": consuming,
        "last_success_timestamp_seconds": {(): last["backup.create", TaskStatus.DONE]},
        "last_verify_timestamp_seconds": {(): last["backup.verify", TaskStatus.DONE]},
        "last_backup_raw_bytes": {(): backup.raw_bytes},
        "last_backup_stored_bytes": {(): backup.stored_bytes},
        "last_backup_duration_seconds": {(): backup.seconds},
        "task_total": _totals(found.ends),
        "task_last_end_timestamp_seconds": last,
        **_stages(found),
        **_depths(found),
    }


def _of_the_past(found: Figures, now: float) -> Figures:
    """Replace the times in the future, which come from a clock that was wrong.

    A time in the future would keep alerts on its age silent until it has passed. A time that is
    further than `_SKEW_SECONDS` away becomes 0, as if there were none, which the alerts see.
    Another one becomes `now`, because it is soon past.
    """

    def past(time: float) -> int:
        return 0 if time > now + _SKEW_SECONDS else int(min(time, now))

    return found._replace(
        ends=[end._replace(last=past(end.last)) for end in found.ends],
        oldest_unsent=past(found.oldest_unsent or 0),
    )


def _stages(found: Figures) -> dict[str, Values]:
    """Return the totals of the stages that the journal has.

    The work since the last progress report is left out. If the agent were killed, that work would
    be missing in the next process, and Prometheus takes a counter that decreases for one that began
    at 0 again.
    """
    totals = {stage: found.stages.get(stage, StageTotal(0.0, 0)) for stage in STAGES}
    return {
        "stage_seconds_total": {(stage,): total.seconds for stage, total in totals.items()},
        "stage_bytes_total": {(stage,): total.bytes for stage, total in totals.items()},
    }


def _depths(found: Figures) -> dict[str, Values]:
    return {
        "journal_tasks": {(): found.unfinished},
        "outbox_reports": {(): found.unsent},
        "outbox_oldest_report_timestamp_seconds": {(): found.oldest_unsent or 0},
    }


def _totals(ends: list[Ended]) -> dict[tuple[str, ...], float]:
    """Return the number of ended tasks.

    The first success of each type counts from 0, so that Prometheus sees it as an increase.
    """
    totals: dict[tuple[str, ...], float] = {(one, TaskStatus.DONE, ""): 0 for one in TASK_TYPES}
    return totals | {(end.type, end.status, end.code): end.number for end in ends}


def _last_ends(ends: list[Ended]) -> dict[tuple[str, ...], float]:
    last: dict[tuple[str, ...], float] = {
        (one, status): 0 for one in TASK_TYPES for status in _STATUSES
    }
    for end in ends:
        key = (end.type, end.status)
        last[key] = max(end.last, last.get(key, 0))
    return last
