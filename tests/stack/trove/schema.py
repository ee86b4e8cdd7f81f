"""Make Trove's tables and one datastore, as `trove-manage` would in four runs.

This runs under the interpreter that has Trove installed, with `-I`.
Usage: schema.py TROVE_CONF VERSION IMAGE_ID.
"""

import sys
from importlib import import_module
from typing import Final

NAME: Final = "mariadb"
# by name, because this project's directory of the same name is no package
cfg, models, db = map(import_module, ("trove.common.cfg", "trove.datastore.models", "trove.db"))


def main() -> None:
    config, version, image_id = sys.argv[1:]
    cfg.parse_args(["trove-manage", "--config-file", config])
    database = db.get_db_api()
    database.db_sync(cfg.CONF)
    database.configure_db()
    models.update_datastore(NAME, "")
    models.update_datastore_version(NAME, version, NAME, image_id, None, "", 1, version=version)
    models.update_datastore(NAME, version)


main()
