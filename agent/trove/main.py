"""Run one backup or restore as Trove's backup/main.py does, for Trove's guest agent.

The guest agent reads the exit status and, after a backup, the last line of standard output. If the
run failed, it logs the last line of all output. So standard output gets only the result, and
everything else goes to standard error, with the cause of a failure in its last line.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from agent.cli import logs, streams
from agent.cli.verb import on_signals
from agent.config.reading import log_section
from agent.config.settings import DEFAULT_PATH, Config
from agent.errors import AgentError, Interrupted
from agent.machine.host import lower_priority
from agent.model import printable
from agent.operations.trove.backup import TroveBackup, TroveRequest, TroveResult
from agent.operations.trove.restore import restore
from agent.pipeline.meter import Meter, every
from agent.records.trove.objects import place_of
from agent.stop import Stop
from agent.store.swift.login import Authenticate, WithService
from agent.store.swift.store import SwiftStore
from agent.threads import about_backup
from agent.trove.options import Options, parse
from agent.wiring.trove import (
    image_config,
    seconds_left,
    service_login,
    trove_resources,
    trove_store,
    user_login,
)

log = logging.getLogger(__name__)

_PROGRESS_SECONDS: Final = 60.0
# In bytes per second. Few machines copy a database slower.
_SLOW: Final = 50 << 20
# Seconds of a run before and after the copy.
_AROUND: Final = 60.0
# Characters of the last line. Trove drops an update of a backup with a description of over 512.
_LONGEST_CAUSE: Final = 480


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    logs.set_up(log_section(DEFAULT_PATH), daemon=True, noise=None)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        return _run(options)
    except AgentError as error:
        log.error("what to do: %s", error.hint)
        log.error("%s", f"FAILED {error.code}: {printable(str(error))}"[:_LONGEST_CAUSE])
        return error.exit_status


def _run(options: Options) -> int:
    config = image_config()
    _warn(options)
    login, service = _login(options, config), service_login(config)
    if service is not None:
        login = WithService(login, service)
    store = trove_store(config, login, options.swift_container)
    stop = Stop()
    on_signals(lambda: stop.request(Interrupted("the run was stopped by a signal")))
    try:
        if options.backup:
            # With a service user, the store takes the token for two more days.
            on_size = _nothing if service else partial(_warn_of_token, options, store.bound(stop))
            _backup(options, config, store, stop, on_size)
        else:
            _restore(options, config, store, stop)
    finally:
        store.abort()
        store.close()
    return 0


def _nothing(_size: int) -> None:
    """Do nothing."""


def _warn_of_token(options: Options, store: SwiftStore, size: int) -> None:
    """Warn if the token may end while `size` bytes are copied."""
    left = seconds_left(store, options.os_token, options.os_auth_url)
    if left is not None and left < size / _SLOW + _AROUND:
        log.warning(
            "the token is valid for %d s more. If the copy of %d MiB takes longer, the backup "
            "fails. Raise [token] expiration of Keystone, or give the image a service user",
            left,
            size >> 20,
        )


def _warn(options: Options) -> None:
    if options.swift_api_insecure:
        log.warning(
            "--swift-api-insecure is ignored, certificates are always checked. If the store has an "
            "authority of its own, name it in [store] ca_file of the image's agent.toml"
        )
    if options.backup and options.db_host not in ("", "localhost"):
        log.warning("--db-host is ignored: the server is asked over its socket")


def _login(options: Options, config: Config) -> Authenticate:
    # Releases up to 20 name no region.
    default = config.store.region if config.store else None
    return user_login(
        options.os_token,
        swift_url=options.swift_url,
        auth_url=options.os_auth_url,
        project_id=options.os_tenant_id,
        region=options.os_region_name or default or "",
    )


def _backup(
    options: Options,
    config: Config,
    store: SwiftStore,
    stop: Stop,
    on_size: Callable[[int], None],
) -> None:
    """Make a backup."""
    resources = trove_resources(config, store, user=options.db_user, password=options.db_password)
    parent = None
    if options.incremental:
        parent = place_of(options.parent_location, options.parent_checksum)
    request = TroveRequest(options.backup_id, options.swift_container, options.metadata, parent)
    meter = Meter()
    lower_priority()
    with about_backup(options.backup_id), _told(meter):
        log.info("backup %s begins", options.backup_id)
        TroveBackup(
            resources, request, meter=meter, stop=stop, tell=_tell_backup, on_size=on_size
        ).run()


def _tell_backup(made: TroveResult) -> None:
    """Print the line that tells Trove of a backup."""
    _say(f"Backup successfully, checksum: {made.checksum}, location: {made.location}")


def _say(line: str) -> None:
    print(line)
    streams.flushed()


def _restore(options: Options, config: Config, store: SwiftStore, stop: Stop) -> None:
    """Restore a chain into the data directory."""
    place = place_of(options.restore_from, options.restore_checksum)
    meter = Meter()
    with about_backup(place.location.backup_id), _told(meter):
        log.info("the restore of backup %s begins", place.location.backup_id)
        chain = restore(
            trove_resources(config, store),
            place,
            Path(options.db_datadir),
            engine=options.engine,
            password=options.backup_encryption_key,
            meter=meter,
            stop=stop,
        )
    _say(f"Restore successfully, backups: {len(chain)}, restore_size: {meter.raw_bytes}")


@contextmanager
def _told(meter: Meter) -> Iterator[None]:
    """Log the progress each minute while the block runs."""

    def tell() -> None:
        progress = meter.progress()
        percent = f", {progress.percent:.0f} %" if progress.percent else ""
        log.info("%d MiB read%s", progress.raw_bytes >> 20, percent)

    with every(_PROGRESS_SECONDS, tell):
        yield
