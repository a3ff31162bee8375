"""What operators are told of one entry: an inspection as a message."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from cache.inspection import Inspection
from cache.record import Record
from gateway.answer import lookup_outcome_message, moment, tier_message
from reprise.v1 import cache_pb2 as pb
from reprise.v1 import common_pb2 as common

KEY_FORMS = "must be r/<namespace>/<aa>/<hex>, b/<namespace>/<aa>/<hex>, or an address: <namespace>/<hex>"
_LONGEST = 315_576_000_000.0  # seconds; more has no message


def inspection_message(inspection: Inspection) -> pb.InspectResponse:
    key, record = inspection.key, inspection.record
    return pb.InspectResponse(
        kind="record" if key.kind == "r" else "blob",
        namespace=key.namespace,
        hex=key.hex,
        copies=[
            pb.TierCopy(
                tier=tier_message(copy.tier),
                outcome=lookup_outcome_message(copy.outcome),
                bytes=copy.size,
                seconds=copy.seconds,
            )
            for copy in inspection.copies
        ],
        record=_record_message(record) if record is not None else None,
    )


def _record_message(record: Record) -> pb.RecordInfo:
    output = record.output
    return pb.RecordInfo(
        model=record.model,
        revision=record.revision,
        stage=record.stage,
        fingerprint=record.fingerprint,
        artifact=common.Digest(hex=output.digest.hex, size=output.digest.size),
        media_type=output.media_type,
        inlined=output.inline is not None,
        device_seconds=record.device_seconds,
        total_device_seconds=record.total_device_seconds,
        made_at=moment(record.made_at),
        touched_at=moment(record.touched_at),
        expires_at=moment(record.expires_at),
        ttl=Duration(seconds=int(min(max(record.ttl, 0.0), _LONGEST))),
        upstream=record.upstream,
        tags=record.tags,
        execution=record.execution,
        canonical=str(record.canonical) if record.canonical is not None else "",
    )
