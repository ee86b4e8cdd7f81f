"""Changes made to a database between two backups, or during one."""

from collections.abc import Callable
from typing import Final

from tests.faults.names import objects
from tests.faults.names.model import Model, Table
from tests.faults.names.words import quoted

Change = Callable[[Model], None]
_ROWS: Final = ("plain", "fulltext", "partitioned", "family", "csv", "archive", "system", "merged")
_DROPPED: Final = ("plain", "fulltext", "partitioned", "csv", "archive", "system", "spatial")


def insert(model: Model) -> None:
    if table := model.pick(*_ROWS):
        first = model.chance.randint(300, 2000)
        model.do(objects.rows(table.sql, first, first + model.chance.choice((0, 20, 200))))


def update(model: Model) -> None:
    if table := model.pick("plain", "fulltext", "partitioned", "csv", "system", "versioned"):
        model.do(f"UPDATE {table.sql} SET word = CONCAT('u', id) WHERE id % 3 = 0")


def delete(model: Model) -> None:
    if table := model.pick("plain", "fulltext", "partitioned", "system"):
        model.do(f"DELETE FROM {table.sql} WHERE id % 5 = 1")


def truncate(model: Model) -> None:
    if table := model.pick("plain", "fulltext", "partitioned", "csv", "system"):
        model.do(f"TRUNCATE {table.sql}")


def drop(model: Model) -> None:
    if table := model.pick(*_DROPPED):
        model.do(f"DROP TABLE {table.sql}")
        model.forget(table.schema, table.name)


def drop_and_make(model: Model) -> None:
    """Drop a table and make another one with its name, with this engine or another one."""
    if table := model.pick(*_DROPPED):
        engine = model.chance.choice(("InnoDB", "InnoDB", table.engine, "Aria", "MyISAM"))
        model.do(f"DROP TABLE {table.sql}")
        key = "" if engine in ("ARCHIVE", "CSV") else " PRIMARY KEY"
        objects.make(model, Table(table.schema, table.name, engine), objects.columns(key), "")


def replace(model: Model) -> None:
    if table := model.pick("plain"):
        engine = model.chance.choice(("InnoDB", "Aria", "MyISAM"))
        model.do(
            f"CREATE OR REPLACE TABLE {table.sql} ({objects.columns()}) ENGINE={engine}",
            objects.rows(table.sql, 1, 7),
        )
        model.add(Table(table.schema, table.name, engine))


def rename(model: Model) -> None:
    """Rename a table within its schema or into another one."""
    if table := model.pick():
        schema = model.schema() if model.chance.random() < 0.4 else table.schema
        made = Table(schema, model.fresh(), table.engine, table.kind, table.parts)
        model.do(f"RENAME TABLE {table.sql} TO {made.sql}")
        model.forget(table.schema, table.name)
        model.add(made)


def swap(model: Model) -> None:
    """Give two tables each other's name."""
    one, two = model.pick("plain", "fulltext"), model.pick("plain", "fulltext")
    if one and two and one != two:
        between = quoted(one.schema, model.plain())
        model.do(
            f"RENAME TABLE {one.sql} TO {between}, {two.sql} TO {one.sql}, {between} TO {two.sql}"
        )
        one.engine, two.engine = two.engine, one.engine
        one.kind, two.kind = two.kind, one.kind


def reuse(model: Model) -> None:
    """Rename a table and make another one with its old name."""
    if table := model.pick("plain"):
        kept = Table(table.schema, model.fresh(), table.engine)
        model.do(f"RENAME TABLE {table.sql} TO {kept.sql}")
        objects.make(model, Table(table.schema, table.name, "InnoDB"), objects.columns(), "")
        model.add(kept)


def alter(model: Model) -> None:
    if table := model.pick("plain", "fulltext", "partitioned", engines=("InnoDB",)):
        name = quoted(model.fresh())
        what = model.chance.choice(
            (
                f"ADD COLUMN {name} INT DEFAULT 7",
                f"ADD COLUMN {name} INT DEFAULT 7 FIRST, ALGORITHM=INSTANT",
                f"ADD COLUMN {name} INT DEFAULT 7, ALGORITHM=COPY",
                f"ADD INDEX {name} (word)",
                f"ADD INDEX {name} (word), ALGORITHM=INPLACE",
                "FORCE",
                "FORCE, ALGORITHM=COPY",
                "ROW_FORMAT=COMPRESSED",
                "ROW_FORMAT=REDUNDANT",
                "PAGE_COMPRESSED=1",
                "CONVERT TO CHARACTER SET utf8mb3",
                "DROP PRIMARY KEY, ADD PRIMARY KEY (id, word)",
                f"CHANGE COLUMN word {name} VARCHAR(150) NOT NULL",
                "COMMENT='changed'",
                "AUTO_INCREMENT=77",
                f"ADD FULLTEXT INDEX {name} (word)",
            )
        )
        model.do(f"ALTER TABLE {table.sql} {what}")


def alter_engine(model: Model) -> None:
    if table := model.pick("plain", "partitioned"):
        table.engine = model.chance.choice(("InnoDB", "Aria", "MyISAM"))
        model.do(f"ALTER TABLE {table.sql} ENGINE={table.engine}")


def optimize(model: Model) -> None:
    if table := model.pick("plain", "fulltext", "archive", "partitioned"):
        model.do(f"OPTIMIZE TABLE {table.sql}")


def change_partitions(model: Model) -> None:
    if table := model.pick("partitioned"):
        first = quoted(table.parts[0]) if table.parts else "p0"
        new = model.fresh()
        what = model.chance.choice(
            (
                f"DROP PARTITION {first}",
                f"TRUNCATE PARTITION {first}",
                f"REBUILD PARTITION {first}",
                f"REORGANIZE PARTITION {first} INTO (PARTITION {quoted(new)} "
                "VALUES LESS THAN (50))",
                f"REORGANIZE PARTITION {first} INTO (PARTITION {quoted(new)} VALUES LESS THAN "
                f"(20), PARTITION {quoted(model.fresh())} VALUES LESS THAN (50))",
                "REMOVE PARTITIONING",
                "PARTITION BY HASH (id) PARTITIONS 4",
                f"CONVERT PARTITION {first} TO TABLE {quoted(table.schema, new)}",
            )
        )
        model.do(f"ALTER TABLE {table.sql} {what}")


def exchange(model: Model) -> None:
    """Exchange a partition for a table of the same structure."""
    if table := model.pick("partitioned"):
        single = quoted(table.schema, model.fresh())
        first = quoted(table.parts[0]) if table.parts else "p0"
        model.do(
            f"CREATE TABLE {single} LIKE {table.sql}",
            f"ALTER TABLE {single} REMOVE PARTITIONING",
            objects.rows(single, 1, model.chance.choice((3, 40))),
            f"ALTER TABLE {table.sql} EXCHANGE PARTITION {first} WITH TABLE {single}",
        )


def make_schema(model: Model) -> None:
    schema = model.add_schema()
    for _ in range(model.chance.randint(0, 2)):
        objects.make_any(model, schema)


def drop_schema(model: Model) -> None:
    """Drop a schema, and make it again in half of the cases."""
    if len(model.schemas) > 1:
        schema = model.schema()
        model.do(f"DROP DATABASE {quoted(schema)}")
        model.forget(schema)
        if model.chance.random() < 0.5:
            model.add_schema(schema)
            objects.make_any(model, schema)
        else:
            model.schemas.remove(schema)


def alter_schema(model: Model) -> None:
    model.do(f"ALTER DATABASE {quoted(model.schema())} CHARACTER SET utf8mb3 COMMENT 'changed'")


def move_sequence(model: Model) -> None:
    if made := model.pick("sequence"):
        model.do(f"SELECT NEXTVAL({made.sql})", f"SELECT SETVAL({made.sql}, 500)")


def make(model: Model) -> None:
    objects.make_any(model, model.schema())


def make_like(model: Model) -> None:
    if table := model.pick("plain", "partitioned", "fulltext", "csv"):
        made = Table(table.schema, model.fresh(), table.engine, table.kind, table.parts)
        model.do(
            f"CREATE TABLE {made.sql} LIKE {table.sql}",
            f"INSERT INTO {made.sql} SELECT * FROM {table.sql}",
        )
        model.add(made)


def checkpoint(model: Model) -> None:
    model.do("SET GLOBAL innodb_log_checkpoint_now = ON")


CHANGES: Final[tuple[tuple[Change, int], ...]] = (
    (insert, 6),
    (update, 5),
    (delete, 2),
    (truncate, 4),
    (drop, 4),
    (drop_and_make, 5),
    (replace, 3),
    (rename, 7),
    (swap, 3),
    (reuse, 3),
    (alter, 7),
    (alter_engine, 4),
    (optimize, 2),
    (change_partitions, 4),
    (exchange, 3),
    (make_schema, 3),
    (drop_schema, 2),
    (alter_schema, 1),
    (move_sequence, 2),
    (make, 6),
    (make_like, 2),
    (checkpoint, 1),
)
# A busy change stays in its schemas, so that their content after each step is known.
BUSY_CHANGES: Final = tuple(
    pair
    for pair in CHANGES
    if pair[0] not in (make_schema, drop_schema, alter_schema, checkpoint, move_sequence)
)


def change_any(model: Model) -> None:
    """Make one random change."""
    changes, weights = zip(*(BUSY_CHANGES if model.busy else CHANGES), strict=True)
    [change] = model.chance.choices(changes, weights)
    change(model)
