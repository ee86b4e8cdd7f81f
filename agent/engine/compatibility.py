"""The table of servers and the engines that copy them, and the checks against it.

docs/engines.md shows the same table, with the vendors' pages that are its source.
"""

from typing import NamedTuple

from agent.database.flavours import Version, numbers
from agent.errors import EngineUnsupported

# Percona disabled the comparison with the server's release in XtraBackup 8.0.34. That release and
# later ones copy every 8.0 server. Earlier releases copy only servers that aren't newer than
# themselves.
_ANY_8_0_SINCE = (8, 0, 34)


class Rule(NamedTuple):
    """A row of the table, for the servers of `type` in the series `first` to `last`.

    These servers are copied by `engine`. If `last` is None, the rule has no last series. `series`
    is the series of the engine that must be installed, and None means the same series as the
    server's. `package` is the name of the package that contains the engine.
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
    """Return the name of the engine that copies this server.

    Raises:
        EngineUnsupported: no engine of this agent copies it.
    """
    return _rule(server_type, server_version).engine


def check_server(server_type: str, server_version: str, engine: str, engine_version: str) -> None:
    """Check that this engine, in this version, copies this server.

    Raises:
        EngineUnsupported: it does not. The hint names the package to install.
    """
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
    """Check that the installed version prepares a backup made by the recorded version.

    Raises:
        EngineUnsupported: the two versions are of different series.
    """
    recorded, installed = numbers(recorded_version), numbers(installed_version)
    if recorded[:2] != installed[:2]:
        raise EngineUnsupported(
            f"the backup was made by {engine} {recorded_version}, but {installed_version} is "
            "installed here, and only the same series can prepare it",
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
        return f"this server needs {rule.engine}"
    if program[:2] != series:
        return f"this server needs {rule.engine} {_dotted(series)}"
    if series == _ANY_8_0_SINCE[:2] and program < min(_ANY_8_0_SINCE, server[:3]):
        return f"it is older than the server, and older than {_dotted(_ANY_8_0_SINCE)}"
    return None


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
