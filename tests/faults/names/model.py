"""A model of the server's schemas and tables, from which a generator chooses."""

from dataclasses import dataclass, field
from random import Random

from tests.faults.names.script import Deed, Step
from tests.faults.names.words import plain, quoted, schema_word, word

COLUMNS = "id INT NOT NULL{key}, word VARCHAR(120) NOT NULL, body {body} NOT NULL"


@dataclass
class Table:
    schema: str
    name: str
    engine: str
    kind: str = "plain"
    parts: list[str] = field(default_factory=list)

    @property
    def sql(self) -> str:
        return quoted(self.schema, self.name)


class Model:
    """The steps so far, and the objects they have made if the server accepted them all.

    `phase` and `busy` apply to the steps that are added next.
    """

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.steps: list[Step] = []
        self.schemas: list[str] = []
        self.tables: list[Table] = []
        self.phase = 0
        self.busy = False

    def do(self, *statements: str, suspects: tuple[str, ...] = ()) -> None:
        for sql in statements:
            self.steps.append(Step(self.phase, sql, busy=self.busy, suspects=suspects))

    def deed(self, *deed: str, suspects: tuple[str, ...] = ()) -> None:
        made: Deed = tuple(deed)
        self.steps.append(Step(self.phase, deed=made, busy=self.busy, suspects=suspects))

    def add_schema(self, name: str | None = None, suspects: tuple[str, ...] = ()) -> str:
        name = name or schema_word(self.chance)
        charset = self.chance.choice(("", "", " CHARACTER SET latin1", " COLLATE utf8mb4_bin"))
        self.do(f"CREATE DATABASE {quoted(name)}{charset}", suspects=suspects)
        if name not in self.schemas:
            self.schemas.append(name)
        return name

    def schema(self) -> str:
        return self.chance.choice(self.schemas) if self.schemas else self.add_schema()

    def fresh(self) -> str:
        """Return a name for a new object."""
        return word(self.chance)

    def plain(self) -> str:
        return plain(self.chance)

    def pick(self, *kinds: str, engines: tuple[str, ...] = ()) -> Table | None:
        """Return a random table of those kinds and engines, or None if there is none."""
        found = [
            table
            for table in self.tables
            if (not kinds or table.kind in kinds) and (not engines or table.engine in engines)
        ]
        return self.chance.choice(found) if found else None

    def add(self, table: Table) -> Table:
        self.forget(table.schema, table.name)
        self.tables.append(table)
        return table

    def forget(self, schema: str, name: str | None = None) -> None:
        """Drop one table, or all tables of a schema, from the model."""
        self.tables = [
            table
            for table in self.tables
            if table.schema != schema or (name is not None and table.name != name)
        ]
