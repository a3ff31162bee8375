"""Words for what a report says."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.message import Message

from reprise.v1 import common_pb2 as pb


def tier_word(tier: pb.Tier) -> str:
    return pb.Tier.Name(tier).removeprefix("TIER_").lower()


def reason_word(reason: pb.MissReason) -> str:
    return pb.MissReason.Name(reason).removeprefix("MISS_REASON_").lower().replace("_", " ")


def add_up(total: Message, more: Message) -> None:
    """Add every number of one message to those of another of its kind."""
    for field in total.DESCRIPTOR.fields:
        setattr(total, field.name, getattr(total, field.name) + getattr(more, field.name))


def nearest_line(report: pb.CacheReport) -> str | None:
    """One line about the nearest earlier request, if there is one."""
    if not report.HasField("nearest"):
        return None
    asked_at = datetime.fromtimestamp(report.nearest.asked_at.seconds)
    differing = ", ".join(report.nearest.differing)
    how = f"differs in {differing}" if differing else "the same"
    return f"nearest earlier request: {asked_at:%Y-%m-%d %H:%M:%S}, {how}"
