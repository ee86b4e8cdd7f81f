"""docs/metrics.md, docs/alerts.yml and docs/grafana-dashboard.json agree with the metrics."""

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.metrics.families import METRICS, PREFIX
from tests.house.generate.tables import table
from tests.house.source import CHECKOUT
from tests.metrics.prometheus import promtool

_HERE: Final = CHECKOUT / "tests" / "metrics"
_DOCS: Final = CHECKOUT / "docs"
_NAME: Final = re.compile(rf"\b{PREFIX}\w+")
NAMES: Final = {PREFIX + metric.name for metric in METRICS}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_DOCS / "grafana-dashboard.json").read_text())[
        "panels"
    ]
    return found


def dashboard_queries() -> list[str]:
    """Return the queries of the dashboard, with values in place of Grafana's variables."""
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [one.replace("$__rate_interval", "1m").replace("$instance", "db1") for one in queries]


def alert_queries() -> list[str]:
    groups = yaml.safe_load((_DOCS / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_the_page_has_each_metric() -> None:
    rows = [
        (
            f"`{PREFIX}{metric.name}`",
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in METRICS
    ]
    made = table(("metric", "type", "labels", "meaning"), rows)
    assert made in (_DOCS / "metrics.md").read_text(), made


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert set(metric.labels) <= {"type", "status", "code", "stage", "version"}
        assert not re.search(r"(_ms|_kb|_mb|_minutes|_hours|_kib|_mib)(_|$)", metric.name)


@pytest.mark.parametrize("queries", [dashboard_queries, alert_queries])
def test_queries_name_only_metrics_that_exist(queries: Any) -> None:
    named = {name for query in queries() for name in _NAME.findall(query)}
    assert len(named) > 5
    assert named <= NAMES


def test_the_dashboard_shows_every_metric() -> None:
    assert {name for query in dashboard_queries() for name in _NAME.findall(query)} == NAMES


def test_the_dashboard_is_whole(tmp_path: Path) -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids)) > 5
    cells = [
        (x, y)
        for panel in panels()
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)), "two panels overlap"
    assert max(x for x, _ in cells) == 23
    rules = [{"record": f"a:{n}", "expr": query} for n, query in enumerate(dashboard_queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "a", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", _DOCS / "alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_fires_when_it_should() -> None:
    tested = promtool("test", "rules", _HERE / "alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    cases = yaml.safe_load((_HERE / "alerts_test.yml").read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    groups = yaml.safe_load((_DOCS / "alerts.yml").read_text())["groups"]
    for name in {rule["alert"] for group in groups for rule in group["rules"]}:
        fires = {bool(check["exp_alerts"]) for check in checks if check["alertname"] == name}
        assert fires == {True, False}, name
