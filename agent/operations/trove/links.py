"""The members of a chain in Trove's layout, as a restore reads them."""

import logging
from collections.abc import Callable, Sequence

from agent.codec.openssl_enc import OpensslDecryption
from agent.errors import KeyNotHere
from agent.operations.restore.links import ChainLink, RecordLink
from agent.operations.trove.resources import TroveRestoreResources
from agent.pipeline.foreign import ForeignDownload, Piece
from agent.pipeline.meter import Meter
from agent.records.object_names import Segment
from agent.records.trove.objects import ForeignBackup, OwnBackup, TroveBackup
from agent.stop import Stop
from agent.store.protocol import Container

log = logging.getLogger(__name__)


def link_of(
    resources: TroveRestoreResources, backup: TroveBackup, *, engine: str, password: str
) -> ChainLink:
    """Return the member of a chain for a restore.

    `engine` is the engine that made backups of Trove itself, and `password` the one that these are
    encrypted with.
    """
    if isinstance(backup, OwnBackup):
        opening, source = resources.opening(backup.record), _OwnSegments(backup)
        return RecordLink(backup.record, backup.stored, source, opening, resources.path)
    return ForeignLink(resources, backup, engine=engine, password=password)


class _OwnSegments:
    """The segments of an own backup. It implements agent.operations.restore.links.SegmentSource."""

    def __init__(self, backup: OwnBackup) -> None:
        self._backup = backup

    def rows(self, number: int) -> Sequence[Segment]:
        return self._backup.segment_list(number)

    def read_into(self, number: int, buffer: memoryview) -> None:
        name = self._backup.names.segment_name(number)
        self._backup.object.store.get_into(Container.OBJECTS, name, buffer)


class ForeignLink:
    """A backup that Trove's own code made. It implements ChainLink.

    Raises:
        KeyNotHere: it is encrypted, and there is no password.
    """

    longest_path = 0
    engine_version = None
    raw_bytes = None

    def __init__(
        self, resources: TroveRestoreResources, backup: ForeignBackup, *, engine: str, password: str
    ) -> None:
        self._backup = backup
        self._plan = resources.path.plan()
        self._password = password.encode()
        self.backup_id = backup.backup_id
        self.engine = engine
        self.incremental = backup.parent is not None
        self.least_bytes = backup.data_bytes
        self.from_lsn = backup.from_lsn
        self.to_lsn = backup.to_lsn
        if backup.encrypted and not password:
            raise KeyNotHere(
                f"backup {backup.backup_id} is encrypted with openssl, and no key is given",
                hint="give the backup_aes_cbc_key of the guest agent that made it",
            )

    def check_memory(self) -> None:
        """Do nothing: the size of the parts that are read is the configured one."""

    def stream(self, write: Callable[[bytes], None], meter: Meter, stop: Stop) -> None:
        """Pass the raw bytes to `write`. Raise DataDamaged if stored bytes were changed."""
        ForeignDownload(
            self._backup.data_bytes,
            self._backup.object.read_into,
            self._pieces(),
            write,
            decryption=OpensslDecryption(self._password) if self._backup.encrypted else None,
            plan=self._plan,
            meter=meter,
            stop=stop,
        ).run()

    def _pieces(self) -> Sequence[Piece] | None:
        """Return the pieces of the object, or None if the store doesn't show them."""
        found = self._backup.object
        if not found.facts.is_manifest:
            return [Piece(found.facts.size, found.facts.etag)]
        rows = found.store.manifest_rows(Container.OBJECTS, found.name)
        if rows is None:
            log.warning(
                "the store doesn't show the parts of backup %s, so only the checksums in the gzip "
                "stream are compared",
                self.backup_id,
            )
            return None
        return [Piece(row.size, row.md5) for row in rows]
