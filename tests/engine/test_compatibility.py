"""Which engine copies which server. The document shows the same table."""

import re
from pathlib import Path

import pytest

from agent.engine.choice import Engines
from agent.engine.compatibility import RULES, Rule, check_record, check_server, engine_for
from agent.errors import EngineMissing, EngineUnsupported
from tests.engine.percona import calls, xtrabackup
from tests.house.source import CHECKOUT

FITS = [
    ("mariadb", "10.11.6-MariaDB-0+deb12u1-log", "mariadb-backup", "10.11.19-MariaDB"),
    ("mariadb", "11.4.2-MariaDB", "mariadb-backup", "11.4.2-MariaDB"),
    ("mysql", "5.6.51-91.0", "xtrabackup", "2.4.28"),
    ("mysql", "5.7.44-48", "xtrabackup", "2.4.29"),
    ("mysql", "8.0.20", "xtrabackup", "8.0.27-19"),
    ("mysql", "8.0.27-18", "xtrabackup", "8.0.27-19"),
    ("mysql", "8.0.34", "xtrabackup", "8.0.34-29"),
    ("mysql", "8.0.42-33", "xtrabackup", "8.0.35-30"),
    ("mysql", "8.4.6", "xtrabackup", "8.4.0-1"),
]
MISFITS = [
    ("mariadb", "10.11.6-MariaDB", "mariadb-backup", "10.6.18-MariaDB", "mariadb-backup 10.11"),
    ("mariadb", "10.4.30-MariaDB", "xtrabackup", "2.4.28", "needs mariadb-backup"),
    ("mysql", "8.0.36", "mariadb-backup", "10.11.6-MariaDB", "needs xtrabackup"),
    ("mysql", "8.0.36", "xtrabackup", "8.4.0-1", "needs xtrabackup 8.0"),
    ("mysql", "8.4.0", "xtrabackup", "8.0.35-30", "needs xtrabackup 8.4"),
    ("mysql", "8.0.28", "xtrabackup", "8.0.27-19", "older than the server, and older than 8.0.34"),
    ("mysql", "8.0.35", "xtrabackup", "8.0.33-28", "older than the server, and older than 8.0.34"),
    ("mysql", "5.7.44", "xtrabackup", "8.0.35-30", "needs xtrabackup 2.4"),
]
UNKNOWN = [
    ("mysql", "9.1.0"),
    ("mysql", "8.3.0"),
    ("mysql", "5.5.62"),
    ("mariadb", "10.1.48"),
    ("mysql", "?"),
]


@pytest.mark.parametrize(("server", "version", "engine", "installed"), FITS)
def test_what_fits(server: str, version: str, engine: str, installed: str) -> None:
    assert engine_for(server, version) == engine
    check_server(server, version, engine, installed)


@pytest.mark.parametrize(("server", "version", "engine", "installed", "why"), MISFITS)
def test_what_does_not_fit(
    server: str, version: str, engine: str, installed: str, why: str
) -> None:
    with pytest.raises(EngineUnsupported, match=re.escape(why)) as caught:
        check_server(server, version, engine, installed)
    assert caught.value.hint.startswith("install ")


@pytest.mark.parametrize(("server", "version"), UNKNOWN)
def test_servers_that_nothing_copies(server: str, version: str) -> None:
    with pytest.raises(EngineUnsupported, match="no engine of this agent"):
        engine_for(server, version)


def test_only_the_same_series_prepares_what_was_copied() -> None:
    check_record("xtrabackup", "8.0.28-20", "8.0.35-30")
    check_record("mariadb-backup", "10.11.6", "10.11.19-MariaDB")
    with pytest.raises(EngineUnsupported, match="only the same series") as caught:
        check_record("xtrabackup", "8.0.35-30", "8.4.0-1")
    assert caught.value.hint == "install xtrabackup 8.0"


def test_auto_goes_by_the_server_and_a_kind_is_forced(tmp_path: Path) -> None:
    engines = {"xtrabackup": xtrabackup(tmp_path)}
    chosen = Engines(engines).for_server("mysql", "8.0.36")
    assert (chosen.engine.name, chosen.version) == ("xtrabackup", "8.0.35-30")
    with pytest.raises(EngineUnsupported, match="copied by mariadb-backup, not by x"):
        Engines(engines, "xtrabackup").for_server("mariadb", "10.11.6-MariaDB")


def test_a_server_that_nothing_copies_costs_no_start(tmp_path: Path) -> None:
    with pytest.raises(EngineUnsupported):
        Engines({"xtrabackup": xtrabackup(tmp_path)}).for_server("mysql", "9.1.0")
    assert not (tmp_path / "calls").exists()


def test_a_record_says_what_restores_it(tmp_path: Path) -> None:
    engine = xtrabackup(tmp_path)
    engines = Engines({"xtrabackup": engine}, kind="mariadb-backup")
    assert engines.restoring("xtrabackup", "8.0.28-20") is engine
    assert calls(tmp_path) == [["xtrabackup", "--no-defaults", "--version"]]
    with pytest.raises(EngineUnsupported, match="made by innobackupex"):
        engines.restoring("innobackupex", "2.3")
    missing = xtrabackup(tmp_path, program=str(tmp_path / "none"))
    with pytest.raises(EngineMissing):
        Engines({"xtrabackup": missing}).restoring("xtrabackup", "8.0.35-30")


def test_an_unknown_version_is_restored_by_any_that_is_installed(tmp_path: Path) -> None:
    engine = xtrabackup(tmp_path)
    engines = Engines({"xtrabackup": engine})
    with pytest.raises(EngineUnsupported, match="only the same series"):
        engines.restoring("xtrabackup", "2.4.29")
    assert engines.restoring("xtrabackup", None) is engine
    missing = xtrabackup(tmp_path, program=str(tmp_path / "none"))
    with pytest.raises(EngineMissing):
        Engines({"xtrabackup": missing}).restoring("xtrabackup", None)


SERVERS = {"mariadb": "MariaDB", "mysql": "MySQL, Percona Server"}


def row(rule: Rule) -> tuple[str, ...]:
    """Return a rule as a row of the document's table."""
    first, last = (".".join(map(str, version or ())) for version in (rule.first, rule.last))
    versions = f"{first} and later" if not last else first if first == last else f"{first}, {last}"
    series = ".".join(map(str, rule.series)) if rule.series else "the server's series"
    return (SERVERS[rule.type], versions, f"`{rule.engine}`", series, f"`{rule.package}`")


def test_the_document_shows_this_table() -> None:
    text = (CHECKOUT / "docs/engines.md").read_text()
    table = text.partition("| server |")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|"))[:5] for line in table]
    assert shown == [row(rule) for rule in RULES]
