"""`.venv/bin/python -m tests.stack.trove`: Trove for trying by hand, as root."""

import shlex
import signal
import tempfile
from pathlib import Path

from tests.stack.process import StackError
from tests.stack.trove.compute import FLAVOR
from tests.stack.trove.stack import VENV, VERSION, TroveStack

_GUIDE = """\
Trove     {address}  logs {folder}/trove-*.log
machines  {folder}/vm/N/log, {folder}/vm/N/containers
images    {images}

In another terminal:

  . {environment}
  openstack database instance create one --flavor {flavor} --size 1 \\
      --datastore mariadb --datastore-version {version}
  openstack database instance list
  sql 1 --execute "SELECT VERSION()"
  openstack database backup create base --instance one
  openstack database backup list
  openstack database instance create two --flavor {flavor} --size 1 \\
      --datastore mariadb --datastore-version {version} --backup BACKUP

Ctrl-C stops everything and removes it.
"""

# `sql N ...` is the client of the N-th machine's database.
_SQL = """
sql() {{
    mariadb --defaults-file="/proc/$(pgrep -P "$(cat {vm}/"$1"/pid)")/root$STAND_IN_PASSWORD" \\
        --socket={vm}/"$1"/mysqld/mysqld.sock "${{@:2}}"
}}
STAND_IN_PASSWORD=/var/lib/mysql/conf.d/root.cnf
"""


def guide(stack: TroveStack) -> str:
    """Return the text that tells a person at a terminal what to type."""
    environment = stack.folder / "user.sh"
    lines = [
        f"export {name}={shlex.quote(value)}" for name, value in stack.client_environment().items()
    ]
    lines.append(f"PATH={VENV}/bin:$PATH")
    environment.write_text("\n".join(lines) + _SQL.format(vm=shlex.quote(f"{stack.folder}/vm")))
    return _GUIDE.format(
        address=stack.address,
        folder=stack.folder,
        images=stack.images_file,
        environment=environment,
        flavor=FLAVOR["id"],
        version=VERSION,
    )


def main() -> int:
    """Run until Ctrl-C or SIGTERM. Return 1 if a server does not start."""
    with tempfile.TemporaryDirectory(prefix="trove-") as folder:
        try:
            with TroveStack(Path(folder)) as stack:
                print(guide(stack), flush=True)
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            print("stopped")
        except StackError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
