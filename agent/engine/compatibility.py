"""Which engine copies which server: a table, and how it is applied.

docs/engines.md shows the same table with the vendors' pages that it is taken from.
"""

from typing import NamedTuple

from agent.database.flavours import Version, numbers
from agent.errors import EngineUnsupported

# Percona disabled the comparison with the server's release in 8.0.34: that one and later
# copy every 8.0 server, earlier ones only servers that aren't newer than they are.
_ANY_8_0_SINCE = (8, 0, 34)


class Rule(NamedTuple):
    """Servers of `type` in the series `first` to `last` are copied by `engine`.

    `series` is the engine's own one; None for that of the server.
    """

    type: str
    first: Version
    last: Version | None
    engine: str
    series: Version | None
    package: str

    def matches(self, server_type: str, series: Version) -> bool:
        within = self.first <= series and (self.last is None or series <= self.last)
        return self.type == server_type and within


RULES = (
    Rule("mariadb", (10, 3), None, "mariadb-backup", None, "mariadb-backup"),
    Rule("mysql", (5, 6), (5, 7), "xtrabackup", (2, 4), "percona-xtrabackup-24"),
    Rule("mysql", (8, 0), (8, 0), "xtrabackup", (8, 0), "percona-xtrabackup-80"),
    Rule("mysql", (8, 4), (8, 4), "xtrabackup", (8, 4), "percona-xtrabackup-84"),
)


def engine_for(server_type: str, server_version: str) -> str:
    """The name of the engine that copies such a server; EngineUnsupported where none does."""
    return _rule(server_type, server_version).engine


def check_server(server_type: str, server_version: str, engine: str, engine_version: str) -> None:
    """EngineUnsupported unless that engine, in that version, copies that server."""
    rule = _rule(server_type, server_version)
    server, program = numbers(server_version), numbers(engine_version)
    series = rule.series or server[:2]
    why = _mismatch(rule, series, server, engine, program)
    if why is not None:
        raise EngineUnsupported(
            f"{engine} {engine_version} can't copy a {server_type} {server_version}: {why}",
            hint=f"install {rule.package} {_dotted(series)}, and see docs/engines.md",
        )


def check_record(engine: str, recorded_version: str, installed_version: str) -> None:
    """EngineUnsupported unless the installed version prepares what the recorded one copied."""
    recorded, installed = numbers(recorded_version), numbers(installed_version)
    if recorded[:2] != installed[:2]:
        raise EngineUnsupported(
            f"the backup was made by {engine} {recorded_version}, and {installed_version} is "
            "installed here: only the same series prepares it",
            hint=f"install {engine} {_dotted(recorded[:2])}",
        )


def _rule(server_type: str, server_version: str) -> Rule:
    series = numbers(server_version)[:2]
    for rule in RULES:
        if rule.matches(server_type, series):
            return rule
    raise EngineUnsupported(
        f"no engine of this agent copies a {server_type} {server_version}",
        hint="docs/engines.md lists the servers that can be backed up",
    )


def _mismatch(
    rule: Rule, series: Version, server: Version, engine: str, program: Version
) -> str | None:
    if engine != rule.engine:
        return f"that takes {rule.engine}"
    if program[:2] != series:
        return f"that takes {rule.engine} {_dotted(series)}"
    if series == _ANY_8_0_SINCE[:2] and program < min(_ANY_8_0_SINCE, server[:3]):
        return f"that takes a release of the server's own number, or {_dotted(_ANY_8_0_SINCE)}"
    return None


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
