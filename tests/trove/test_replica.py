"""A replica of an instance: its snapshot is a backup without the instance's option file."""

import pytest

from tests.stack.process import poll
from tests.stack.trove.stack import TroveStack


@pytest.mark.parametrize("image", ["trove", "drop-in"])
def test_a_replica_follows_its_source(trove_stack: TroveStack, image: str) -> None:
    trove_stack.use_image(image)
    primary = trove_stack.create_instance("primary", address=True)
    primary.sql("CREATE SCHEMA shop; CREATE TABLE shop.t (id INT PRIMARY KEY)")
    primary.sql("INSERT INTO shop.t SELECT seq FROM shop.seq_1_to_1000")
    replica = trove_stack.create_instance("replica", replica_of=primary)
    [snapshot] = primary.container_specifications("db_backup")
    assert "/etc/mysql" not in [source for source, *_ in snapshot["binds"]]
    primary.sql("INSERT INTO shop.t VALUES (5000)")
    poll("the row arrives", lambda: replica.sql("SELECT MAX(id) FROM shop.t") == [(5000,)], 30)
    assert replica.checksums() == primary.checksums()
    trove_stack.delete_instance(replica.id)
    trove_stack.delete_instance(primary.id)
