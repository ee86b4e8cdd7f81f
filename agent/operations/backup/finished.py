"""The record of a backup whose segments are all stored."""

from agent.model import BackupStatus, Record, Stored, utc_now
from agent.operations.backup.proof import Proof
from agent.pipeline.meter import Meter
from agent.records.manifest import SegmentSummary


def finished_record(
    record: Record, summary: SegmentSummary, proof: Proof, meter: Meter, segment_bytes: int
) -> Record:
    """Return the COMPLETED record of a backup with the BUILDING record `record`.

    `segment_bytes` is the size of each segment but the last.
    """
    return record.model_copy(
        update={
            "status": BackupStatus.COMPLETED,
            "updated": utc_now(),
            "to_lsn": proof.checkpoints.to_lsn,
            **proof.tables._asdict(),
            "binlog": proof.binlog,
            "replica": proof.replica,
            "galera": proof.galera,
            "stored": Stored(
                raw_bytes=proof.raw_bytes,
                compressed_bytes=meter.compressed_bytes,
                stored_bytes=summary.stored_bytes,
                segment_size=segment_bytes,
                segment_count=summary.segments,
                lists=summary.lists,
                slo_etag=summary.etag,
                longest_path=proof.longest_path,
            ),
            "measured": meter.measured(),
        }
    )
