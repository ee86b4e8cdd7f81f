"""The shop's data: the rows before the full backup, and the work of a day after it."""

from collections.abc import Mapping

from tests.stack.mariadb import MariaDB

# A table that exists in the full backup, but not in the incremental one.
_BEFORE = (
    "CREATE TABLE shop.old_prices (id INT PRIMARY KEY, price DECIMAL(10,2) NOT NULL)",
    "INSERT INTO shop.old_prices SELECT seq, seq / 7 FROM shop.seq_1_to_5000",
)

_DAY = (
    "UPDATE shop.orders SET state = 'shipped', remark = CONCAT('sent; ', remark) "
    "WHERE id BETWEEN 1000 AND 21000",
    "INSERT INTO shop.orders SELECT 100000000 + seq, CRC32(seq) % 500000, NOW(), seq / 3, 'paid', "
    "CONCAT('Order of today, ref ', SHA1(seq)), SHA2(seq, 256) FROM shop.seq_1_to_20000",
    "DELETE FROM shop.customers WHERE id BETWEEN 20000 AND 22000",
    "UPDATE shop.customers SET balance = balance - 1 WHERE id <= 5000",
    "CREATE TABLE shop.refunds (id BIGINT PRIMARY KEY, amount DECIMAL(12,2), why TEXT)",
    "INSERT INTO shop.refunds SELECT id, total, CONCAT('returned: ', state) FROM shop.orders "
    "WHERE id BETWEEN 3000 AND 9000",
    "ALTER TABLE shop.events ADD COLUMN seen BOOL NOT NULL DEFAULT 0, ADD KEY (kind)",
    "UPDATE shop.events SET seen = 1 WHERE id <= 5000",
    "DROP TABLE shop.old_prices",
)


def fill(server: MariaDB, mebibytes: int) -> tuple[int, int]:
    """Load about `mebibytes` MiB. Return the number of rows (the server's estimate) and bytes."""
    server.load_rows(mebibytes)
    server.execute_many(*_BEFORE)
    [(rows,)] = server.query(
        "SELECT CAST(SUM(TABLE_ROWS) AS UNSIGNED) FROM information_schema.TABLES "
        "WHERE TABLE_SCHEMA = 'shop' AND TABLE_TYPE = 'BASE TABLE'"
    )
    files = (server.datadir / "shop").glob("*.ibd")
    return int(rows), sum(path.stat().st_size for path in files)


def a_day_passes(server: MariaDB) -> None:
    """Update, insert, delete, create, alter and drop, and make the server write a checkpoint."""
    server.execute_many(*_DAY)
    server.checkpoint()


def differences(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """Return the differences of two sets of tables, which map names to checksums."""
    lacking = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    surplus = [f"{name} should not exist" for name in sorted(found.keys() - expected.keys())]
    changed = [
        f"{name} has checksum {found[name]} instead of {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    return lacking + surplus + changed
