"""Generation of a script from a seed."""

from random import Random
from typing import Final

from tests.faults.names import objects
from tests.faults.names.changes import change_any
from tests.faults.names.model import Model, Table
from tests.faults.names.script import Script
from tests.faults.names.suspects import GUILTY, INNOCENT, LATER
from tests.faults.names.words import plain

MANY: Final = 200
BUSY_SCHEMAS: Final = ("busy", "busy two")
_BUSY_STEPS: Final = 40
_RATES: Final = (None, 24 << 20, 12 << 20)


def script(seed: str, *, many: bool = False) -> Script:
    """Make a script that depends only on the seed. `many` gives it 200 schemas."""
    chance = Random(seed)
    model = Model(chance)
    guilty = not many and chance.random() < 0.3
    busy = not many and chance.random() < 0.3
    backups = chance.choice((1, 2, 2, 2, 3))
    _fill(model, MANY if many else chance.choice((1, 2, 3, 5)), 1 if many else 5)
    for plant in chance.choices(INNOCENT, k=chance.randint(0, 2)):
        plant(model)
    if guilty:
        chance.choice(GUILTY)(model)
    if busy:
        _busy_schemas(model)
    for phase in range(backups):
        model.phase = phase
        if phase:
            _between(model, many)
    if busy:
        _busy(model, chance.randrange(backups))
    return Script(
        seed,
        tuple(model.steps),
        backups,
        options=_options(chance),
        flushed=chance.random() < 0.6,
        beside=chance.random() < 0.5,
        bytes_per_second=chance.choice(_RATES) if busy else None,
        at_once=chance.random() < 0.3,
    )


def _fill(model: Model, schemas: int, objects_at_most: int) -> None:
    for _ in range(schemas):
        schema = model.add_schema()
        for _ in range(model.chance.randint(0 if schemas > 1 else 1, objects_at_most)):
            objects.make_any(model, schema)


def _between(model: Model, many: bool) -> None:
    for _ in range(model.chance.choice((0, 1, 3, 6, 10)) + 10 * many):
        change_any(model)
    for plant in LATER:
        if model.chance.random() < 0.8:
            plant(model)
    if model.chance.random() < 0.06:
        model.chance.choice(GUILTY)(model)
    if model.chance.random() < 0.6:
        model.do("SET GLOBAL innodb_log_checkpoint_now = ON")


def _busy_schemas(model: Model) -> None:
    """Make the schemas that change during a backup. They have fixed names."""
    for name in BUSY_SCHEMAS:
        model.add_schema(name)
        for _ in range(4):
            objects.make_any(model, name)
        model.schemas.remove(name)


def _busy(model: Model, phase: int) -> None:
    """Add steps in the busy schemas only, which use the tables that are in them by then."""
    own = Model(model.chance)
    own.phase, own.busy = phase, True
    own.schemas = list(BUSY_SCHEMAS)
    own.tables = [
        Table(table.schema, table.name, table.engine, table.kind, list(table.parts))
        for table in model.tables
        if table.schema in BUSY_SCHEMAS
    ]
    while len(own.steps) < _BUSY_STEPS:
        change_any(own)
    model.steps += own.steps


def _options(chance: Random) -> dict[str, str]:
    """Return options of the server that name its files or set their number."""
    options: dict[str, str] = {}
    if chance.random() < 0.15:
        options["log-bin"] = chance.choice(("a b", "mysql-bin", "xtrabackup_binlog", "b.i.n"))
    if chance.random() < 0.15:
        first = chance.choice(("ibdata1", "ib-data.1", plain(chance)))
        options["innodb-data-file-path"] = f"{first}:12M;second-file:4M:autoextend"
    if chance.random() < 0.15:
        options["innodb-undo-tablespaces"] = "3"
    if chance.random() < 0.1:
        options["innodb-page-size"] = chance.choice(("4k", "8k", "64k"))
        options["innodb-buffer-pool-size"] = "32M"
    if chance.random() < 0.1:
        options["lower-case-table-names"] = "1"
    if chance.random() < 0.1:
        options["innodb-checksum-algorithm"] = "full_crc32"
    if chance.random() < 0.1:
        options["innodb-flush-method"] = "fsync"
    return options
