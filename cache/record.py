"""Record: what is known of one stage's finished output. Small, and enough to decide and to explain its reuse."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Self

import msgpack

from cache.digest import Digest
from cache.encoding import NEIGHBOURS, VERSION
from cache.keys import Address

INLINE_LIMIT = 64 * 1024  # outputs up to this size may travel inside the record, so that a hit costs one round trip


class NotARecord(ValueError):
    """These bytes are not a record of this schema."""


class OtherRecord(NotARecord):
    """A record of the version before or after this one, which somebody else may need."""


@dataclass(frozen=True, slots=True)
class Output:
    """One blob a stage produced."""

    digest: Digest
    media_type: str
    inline: bytes | None = None  # the blob itself, when it is small; then no blob of its own is stored


@dataclass(frozen=True, slots=True)
class Record:
    """A stage's output and how it was made. Times are seconds since the epoch, costs are seconds of device time."""

    address: Address
    model: str
    revision: str
    stage: str
    fingerprint: str
    output: Output
    device_seconds: float  # this stage alone
    total_device_seconds: float  # with everything upstream: what it would cost to have it again from nothing
    made_at: float
    touched_at: float  # last rewritten for an access
    ttl: float  # without access for this long, it is gone
    expires_at: float  # the hard age: never served after this
    upstream: dict[str, str] = field(default_factory=dict)  # role -> content id
    tags: tuple[str, ...] = ()
    execution: dict[str, str] = field(default_factory=dict)  # versions, device, threads: recorded, not keyed
    canonical: Address | None = None  # set in an alias: the address this record has in canonical terms
    pending: bool = False  # the durable tier may not have it; never said there

    def expired(self, now: float) -> bool:
        return now >= min(self.expires_at, self.touched_at + self.ttl)

    def worth_touching(self, now: float) -> bool:
        """Accessed late enough that the stored copy should say so: at most one rewrite per half TTL."""
        return now - self.touched_at > self.ttl / 2

    def touched(self, now: float) -> Record:
        return replace(self, touched_at=now)

    def settled(self) -> Record:
        """This record as the durable tier has it."""
        return replace(self, pending=False) if self.pending else self

    def alias(self, address: Address) -> Record:
        """This record as found under the address of the request as it was written."""
        return self if address == self.address else replace(self, address=address, canonical=self.address)

    def to_bytes(self) -> bytes:
        said = {"pending": True} if self.pending else {}
        return bytes(
            msgpack.packb(
                {
                    "schema": VERSION,
                    "address": str(self.address),
                    "model": self.model,
                    "revision": self.revision,
                    "stage": self.stage,
                    "fingerprint": self.fingerprint,
                    "output": [
                        self.output.digest.hex,
                        self.output.digest.size,
                        self.output.media_type,
                        self.output.inline,
                    ],
                    "device_seconds": self.device_seconds,
                    "total_device_seconds": self.total_device_seconds,
                    "made_at": self.made_at,
                    "touched_at": self.touched_at,
                    "ttl": self.ttl,
                    "expires_at": self.expires_at,
                    "upstream": self.upstream,
                    "tags": list(self.tags),
                    "execution": self.execution,
                    "canonical": str(self.canonical) if self.canonical else None,
                    **said,
                }
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes, address: Address | None = None) -> Self:
        """Raises NotARecord for anything else, also for a record of another address than the one asked for."""
        try:
            fields = _fields(data)
            digest_hex, size, media_type, inline = fields.pop("output")
            canonical = fields.pop("canonical")
            record = cls(
                address=Address.parse(fields.pop("address")),
                output=Output(Digest(digest_hex, size), media_type, inline),
                tags=tuple(fields.pop("tags")),
                canonical=Address.parse(canonical) if canonical else None,
                **fields,
            )
        except OtherRecord:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            raise NotARecord("malformed") from error
        if not _well_typed(record):
            raise NotARecord("a field of a wrong type")
        if address is not None and record.address != address:
            raise NotARecord("of another address")
        if record.output.inline is not None and not record.output.digest.names(record.output.inline):
            raise NotARecord("its inlined output is not what its digest names")
        return record


def _well_typed(record: Record) -> bool:
    """Whether using this record cannot fail: what was read may have been written by anybody."""
    output, maps = record.output, (record.upstream, record.execution)
    if not all(isinstance(mapping, dict) for mapping in maps):
        return False
    texts = [record.model, record.revision, record.stage, record.fingerprint, output.digest.hex, output.media_type]
    texts += [text for mapping in maps for item in mapping.items() for text in item]
    numbers = (record.device_seconds, record.total_device_seconds, record.made_at, record.touched_at, record.ttl)
    return (
        all(isinstance(text, str) for text in (*texts, *record.tags))
        and all(isinstance(number, int | float) and isfinite(number) for number in (*numbers, record.expires_at))
        and type(output.digest.size) is int
        and output.digest.size >= 0
        and isinstance(output.inline, bytes | None)
        and type(record.pending) is bool
    )


def _fields(data: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(data)
    schema = fields.pop("schema")
    if schema != VERSION:
        raise (OtherRecord if schema in NEIGHBOURS else NotARecord)("another schema")
    if not isinstance(fields["tags"], list):
        raise NotARecord("malformed")
    return fields
