"""Makers of tables of all engines and forms, views, triggers, sequences and routines."""

from collections.abc import Callable
from typing import Final

from tests.faults.names.model import Model, Table
from tests.faults.names.words import plain, quoted, text

Maker = Callable[[Model, str], None]
_INNODB: Final = (
    "",
    "",
    " ROW_FORMAT=COMPACT",
    " ROW_FORMAT=REDUNDANT",
    " ROW_FORMAT=DYNAMIC",
    " ROW_FORMAT=COMPRESSED",
    " ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4",
    " PAGE_COMPRESSED=1",
    " PAGE_COMPRESSED=1 PAGE_COMPRESSION_LEVEL=9",
    " STATS_PERSISTENT=0",
)
_OTHERS: Final = (
    ("Aria", ""),
    ("Aria", " TRANSACTIONAL=0"),
    ("Aria", " ROW_FORMAT=FIXED TRANSACTIONAL=0"),
    ("Aria", " ROW_FORMAT=DYNAMIC TRANSACTIONAL=0"),
    ("Aria", " PAGE_CHECKSUM=0"),
    ("MyISAM", ""),
    ("MyISAM", " CHECKSUM=1"),
    ("MyISAM", " DELAY_KEY_WRITE=1"),
    ("MyISAM", " ROW_FORMAT=FIXED"),
)


def columns(key: str = " PRIMARY KEY", body: str = "BLOB") -> str:
    return f"id INT NOT NULL{key}, word VARCHAR(120) NOT NULL, body {body} NOT NULL"


def rows(table: str, first: int, last: int) -> str:
    """Return an INSERT of rows whose content depends only on their numbers."""
    return (
        f"INSERT INTO {table} (id, word, body) SELECT seq, CONCAT('w', CRC32(seq)), "
        f"REPEAT(MD5(seq), 1 + seq % 9) FROM mysql.seq_{first}_to_{last}"
    )


def make(model: Model, table: Table, columns_: str, options: str, *, filled: int = 0) -> Table:
    model.do(f"CREATE TABLE {table.sql} ({columns_}) ENGINE={table.engine}{options}")
    count = filled or model.chance.choice((0, 1, 3, 30, 200))
    if count:
        model.do(rows(table.sql, 1, count))
    return model.add(table)


def innodb(model: Model, schema: str) -> None:
    options = model.chance.choice(_INNODB)
    table = Table(schema, model.fresh(), "InnoDB")
    extra = model.chance.choice(("", "", ", KEY (word)", f", KEY {quoted(model.fresh())} (word)"))
    make(model, table, columns() + extra, options)


def fulltext(model: Model, schema: str) -> None:
    engine = model.chance.choice(("InnoDB", "InnoDB", "MyISAM", "Aria"))
    table = Table(schema, model.fresh(), engine, "fulltext")
    make(model, table, f"{columns(body='TEXT')}, FULLTEXT {quoted(model.fresh())} (word, body)", "")


def spatial(model: Model, schema: str) -> None:
    engine = model.chance.choice(("InnoDB", "MyISAM", "Aria"))
    table = model.add(Table(schema, model.fresh(), engine, "spatial"))
    model.do(
        f"CREATE TABLE {table.sql} (g POINT NOT NULL, SPATIAL KEY (g)) ENGINE={engine}",
        f"INSERT INTO {table.sql} SELECT Point(seq, seq % 7) FROM mysql.seq_1_to_40",
    )


def other(model: Model, schema: str) -> None:
    engine, options = model.chance.choice(_OTHERS)
    table = Table(schema, model.fresh(), engine)
    make(model, table, columns() + model.chance.choice(("", ", KEY (word)")), options)


def csv(model: Model, schema: str) -> None:
    make(model, Table(schema, model.fresh(), "CSV", "csv"), columns("", "TEXT"), "")


def archive(model: Model, schema: str) -> None:
    make(model, Table(schema, model.fresh(), "ARCHIVE", "archive"), columns(""), "")


def memory(model: Model, schema: str) -> None:
    table = Table(schema, model.fresh(), "MEMORY", "memory")
    make(model, table, columns(body="VARCHAR(400)"), "")


def blackhole(model: Model, schema: str) -> None:
    make(model, Table(schema, model.fresh(), "BLACKHOLE", "blackhole"), columns(), "")


def merge(model: Model, schema: str) -> None:
    parts = [Table(schema, model.fresh(), "MyISAM", "merged") for _ in range(2)]
    for part in parts:
        make(model, part, columns(), "")
    whole = model.add(Table(schema, model.fresh(), "MRG_MyISAM", "merge"))
    union = ", ".join(part.sql for part in parts)
    model.do(f"CREATE TABLE {whole.sql} ({columns(', KEY (id)')}) ENGINE=MERGE UNION=({union})")


def sequence(model: Model, schema: str) -> None:
    engine = model.chance.choice(("InnoDB", "Aria", "MyISAM"))
    made = model.add(Table(schema, model.fresh(), engine, "sequence"))
    model.do(
        f"CREATE SEQUENCE {made.sql} START WITH {model.chance.randint(1, 99)} ENGINE={engine}",
        f"SELECT NEXTVAL({made.sql})",
    )


def partitioned(model: Model, schema: str) -> None:
    engine = model.chance.choice(("InnoDB", "InnoDB", "InnoDB", "Aria", "MyISAM"))
    names = list(dict.fromkeys(model.fresh() for _ in range(3)))
    table = Table(schema, model.fresh(), engine, "partitioned", names)
    bounds = [*(str(50 * (at + 1)) for at in range(len(names) - 1)), "MAXVALUE"]
    parts = ", ".join(
        f"PARTITION {quoted(name)} VALUES LESS THAN ({bound})"
        for name, bound in zip(names, bounds, strict=True)
    ).replace("(MAXVALUE)", "MAXVALUE")
    form = model.chance.choice(
        (
            f" PARTITION BY RANGE (id) ({parts})",
            f" PARTITION BY RANGE (id) ({parts})",
            f" PARTITION BY RANGE (id) SUBPARTITION BY HASH (id) SUBPARTITIONS 2 ({parts})",
            " PARTITION BY KEY (id) PARTITIONS 3",
        )
    )
    make(model, table, columns(), form, filled=120)


def versioned(model: Model, schema: str) -> None:
    table = Table(schema, model.fresh(), "InnoDB", "versioned")
    make(model, table, columns(), " WITH SYSTEM VERSIONING", filled=5)
    model.do(f"UPDATE {table.sql} SET word = 'later' WHERE id < 3")


def generated(model: Model, schema: str) -> None:
    table = Table(schema, model.fresh(), "InnoDB", "generated")
    name = quoted(model.fresh())
    extra = f", {name} INT AS (id * 2) {model.chance.choice(('VIRTUAL', 'PERSISTENT'))}"
    make(model, table, f"{columns()}{extra}, KEY ({name})", "")


def family(model: Model, schema: str) -> None:
    """Make two tables with a foreign key between them."""
    elder, child = (Table(schema, model.fresh(), "InnoDB", "family") for _ in range(2))
    make(model, elder, columns(), "", filled=20)
    key = f"CONSTRAINT {quoted(model.fresh())} FOREIGN KEY (id) REFERENCES {elder.sql} (id)"
    make(model, child, f"{columns()}, {key} ON DELETE CASCADE", "", filled=10)


def in_system_space(model: Model, schema: str) -> None:
    """Make a table inside ibdata1."""
    model.do("SET GLOBAL innodb_file_per_table = OFF")
    make(model, Table(schema, model.fresh(), "InnoDB", "system"), columns(), "")
    model.do("SET GLOBAL innodb_file_per_table = ON")


def view(model: Model, schema: str) -> None:
    table = model.pick()
    source = f"SELECT * FROM {table.sql}" if table else "SELECT 1 AS one"
    model.do(f"CREATE VIEW {quoted(schema, model.fresh())} AS {source}")


def trigger(model: Model, schema: str) -> None:
    table = model.pick("plain", "fulltext", "partitioned")
    if table:
        model.do(
            f"CREATE TRIGGER {quoted(table.schema, model.fresh())} BEFORE INSERT ON {table.sql} "
            "FOR EACH ROW SET NEW.word = CONCAT(NEW.word, '!')"
        )


def routine(model: Model, schema: str) -> None:
    name = quoted(schema, model.fresh())
    model.do(
        model.chance.choice(
            (
                f"CREATE PROCEDURE {name}() SELECT {text(plain(model.chance))}",
                f"CREATE FUNCTION {name}() RETURNS INT RETURN 7",
                f"CREATE EVENT {name} ON SCHEDULE EVERY 9 YEAR STARTS '2099-01-01' DO SELECT 1",
            )
        )
    )


MAKERS: Final[tuple[tuple[Maker, int], ...]] = (
    (innodb, 12),
    (other, 8),
    (partitioned, 6),
    (fulltext, 3),
    (csv, 2),
    (merge, 2),
    (archive, 2),
    (sequence, 3),
    (view, 2),
    (trigger, 2),
    (routine, 2),
    (versioned, 1),
    (generated, 1),
    (family, 2),
    (spatial, 1),
    (memory, 1),
    (blackhole, 1),
    (in_system_space, 1),
)


def make_any(model: Model, schema: str) -> None:
    """Make one object of a random kind."""
    makers, weights = zip(*MAKERS, strict=True)
    [maker] = model.chance.choices(makers, weights)
    maker(model, schema)
