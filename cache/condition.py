"""Condition: which entries are meant, by what their records say of how they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cache.record import Record
from cache.tags import ancestor_in, of_stage


@dataclass(frozen=True, slots=True)
class Condition:
    """Those for which everything said here holds. Empty parts say nothing."""

    model: str = ""
    revision: str = ""
    stage: str = ""  # and what was made of its outputs
    tags: tuple[str, ...] = ()  # all of them; see `tags.py`
    digest: str = ""  # of an output, or the content id of an entry, or either of something upstream; hexadecimal
    older_than: float | None = None  # seconds since it was made
    where: Callable[[Record], bool] | None = None

    def __bool__(self) -> bool:
        return self != Condition()

    def meets(self, record: Record, now: float) -> bool:
        return (
            self.model in ("", record.model)
            and self.revision in ("", record.revision)
            and (self.stage in ("", record.stage) or of_stage(self.stage) in record.tags)
            and all(tag in record.tags for tag in self.tags)
            and (not self.digest or self.digest in digests_of(record))
            and (self.older_than is None or now - record.made_at > self.older_than)
            and (self.where is None or self.where(record))
        )


def digests_of(record: Record) -> Iterator[str]:
    """Names of an entry, of its output, and of all that it was made of."""
    yield record.address.content_id
    yield record.output.digest.hex
    if record.canonical is not None:
        yield record.canonical.content_id
    yield from record.upstream.values()
    for tag in record.tags:
        if ancestor := ancestor_in(tag):
            yield ancestor
