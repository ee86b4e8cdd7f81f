"""Objects for which a backup may fail if its error names them, and objects for which it may not."""

from collections.abc import Callable
from typing import Final

from tests.faults.names import objects
from tests.faults.names.model import Model, Table
from tests.faults.names.words import NO_SCHEMAS, quoted

Plant = Callable[[Model], None]


def engine_schema(model: Model) -> None:
    """Make a schema whose directory has the name of one of the engine's files."""
    name = model.chance.choice(NO_SCHEMAS)
    suspects = (name,)
    model.add_schema(name, suspects)
    if model.chance.random() < 0.8:
        engine = model.chance.choice(("InnoDB", "Aria"))
        objects.make(model, Table(name, model.plain(), engine), objects.columns(), "")
    model.schemas.remove(name)  # so that no later step renames a table into it


def elsewhere(model: Model) -> None:
    """Make a table whose data, index or partition lies outside the datadir."""
    engine = model.chance.choice(("Aria", "MyISAM", "InnoDB", "InnoDB"))
    table = Table(model.schema(), model.plain(), engine, "elsewhere")
    place = "DATA DIRECTORY='{ext}'"
    if engine != "InnoDB":
        place = model.chance.choice(
            (place, "INDEX DIRECTORY='{ext}'", f"{place} INDEX DIRECTORY='{{ext}}'")
        )
    options = " " + place
    if model.chance.random() < 0.3:
        bounds = f"PARTITION p0 VALUES LESS THAN (9) {place}"
        options = f" PARTITION BY RANGE (id) ({bounds}, PARTITION p1 VALUES LESS THAN MAXVALUE)"
    model.do(
        f"CREATE TABLE {table.sql} ({objects.columns()}) ENGINE={engine}{options}",
        suspects=(table.name,),
    )
    model.do(objects.rows(table.sql, 1, 30))
    model.add(table)


def change_elsewhere(model: Model) -> None:
    """Change a table that `elsewhere` has made."""
    if table := model.pick("elsewhere"):
        renamed = quoted(table.schema, model.plain())
        model.do(
            model.chance.choice(
                (
                    objects.rows(table.sql, 400, 450),
                    f"TRUNCATE {table.sql}",
                    f"DROP TABLE {table.sql}",
                    f"RENAME TABLE {table.sql} TO {renamed}",
                    f"ALTER TABLE {table.sql} FORCE, ALGORITHM=COPY",
                )
            ),
            suspects=(table.name, renamed.split("`")[-2]),
        )


def moved_schema(model: Model) -> None:
    """Move a schema's directory and put a symbolic link in its place."""
    name = model.add_schema(model.plain(), ())
    engine = model.chance.choice(("InnoDB", "Aria", "MyISAM"))
    objects.make(model, Table(name, model.plain(), engine), objects.columns(), "", filled=9)
    model.do("FLUSH TABLES")
    model.deed("move", name, suspects=(name,))
    model.schemas.remove(name)


def import_prepared(model: Model) -> None:
    """Set a table's tablespace aside for `import_space` in a later phase."""
    table = Table(model.add_schema(model.plain()), model.plain(), "InnoDB", "exported")
    objects.make(model, table, objects.columns(), "", filled=50)
    model.do(f"FLUSH TABLES {table.sql} FOR EXPORT")
    model.deed("export", table.schema, table.name)
    model.do("UNLOCK TABLES", f"UPDATE {table.sql} SET word = 'after the export'")
    model.schemas.remove(table.schema)


def import_space(model: Model) -> None:
    if table := model.pick("exported"):
        suspects = (table.name,)
        if model.chance.random() < 0.3:
            model.do(f"DROP TABLE {table.sql}")
            model.do(f"CREATE TABLE {table.sql} ({objects.columns()}) ENGINE=InnoDB")
        model.do(f"ALTER TABLE {table.sql} DISCARD TABLESPACE", suspects=suspects)
        model.deed("import", table.schema, table.name)
        model.do(f"ALTER TABLE {table.sql} IMPORT TABLESPACE", suspects=suspects)
        if model.chance.random() < 0.5:
            model.do(f"UPDATE {table.sql} SET word = 'after the import' WHERE id < 5")
        if model.chance.random() < 0.7:
            model.do("SET GLOBAL innodb_log_checkpoint_now = ON")


def discard(model: Model) -> None:
    table = Table(model.schema(), model.plain(), "InnoDB", "discarded")
    objects.make(model, table, objects.columns(), "")
    model.do(f"ALTER TABLE {table.sql} DISCARD TABLESPACE", suspects=(table.name,))


def copied_space(model: Model) -> None:
    """Leave a copy of a table's file beside it, as a careless operator does."""
    table = Table(model.add_schema(model.plain()), model.plain(), "InnoDB")
    objects.make(model, table, objects.columns(), "", filled=9)
    model.do("SET GLOBAL innodb_log_checkpoint_now = ON", f"FLUSH TABLES {table.sql}")
    copy = model.chance.choice((f"{table.name}_old", "#sql-ib99", "#sql-alter-1-2"))
    model.deed("duplicate", table.schema, table.name, copy, suspects=(copy, table.name))
    model.schemas.remove(table.schema)


def orphan(model: Model) -> None:
    """Leave a table's file without its table."""
    name = model.schema()
    end = model.chance.choice((".MYD", ".MAI", ".frm", ".ibd", ".isl", ".par", ".CSV"))
    word = model.plain()
    model.deed("stray", name, word + end, suspects=(word,))
    if model.chance.random() < 0.3:
        model.deed("stray", "", f".snapshot/{word}.ibd", suspects=(word, ".snapshot"))


def stray(model: Model) -> None:
    """Put a file or directory into the datadir that belongs to no database."""
    name = model.chance.choice(
        (
            "lost+found/",
            ".snapshot/",
            "notes.txt",
            "xtrabackup_notes",
            "core.123",
            "backup.sql",
            "mysql.sock.lock",
            ".hidden",
            "a.b/",
            "a.b/c.txt",
            "@/",
            "empty dir/",
            "lost+found/#1234",
        )
    )
    # the engine takes a directory for a schema, but mbstream refuses names that begin with a dot
    hidden = name.startswith(".") and name.endswith("/")
    model.deed("stray", "", name, suspects=(name[:-1],) if hidden else ())


def stray_in_schema(model: Model) -> None:
    """Put a file or directory into a schema's directory that belongs to no table."""
    name = model.chance.choice(
        ("README", "t.ibd.bak", "x.ibd~", "dump.sql", ".nfs0001", "t.MYD.gz", "sub/", "sub/x.frm")
    )
    model.deed("stray", model.schema(), name)


def table_of_engine_name(model: Model) -> None:
    """Make a harmless table: within a schema, the name of an engine's file clashes with nothing."""
    objects.make(
        model,
        Table(model.schema(), model.chance.choice(NO_SCHEMAS), "InnoDB"),
        objects.columns(),
        "",
    )


GUILTY: Final[tuple[Plant, ...]] = (
    engine_schema,
    elsewhere,
    elsewhere,
    moved_schema,
    import_prepared,
    discard,
    copied_space,
    orphan,
)
INNOCENT: Final[tuple[Plant, ...]] = (stray, stray, stray_in_schema, table_of_engine_name)
# Actions of a later phase on objects that the first phase has planted.
LATER: Final[tuple[Plant, ...]] = (import_space, change_elsewhere)
