"""Plans: what requests came to lately, so that the same one again is neither validated nor hashed stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from blake3 import blake3
from google.protobuf.message import Message

from cache.bounded import Bounded
from cache.description import Description
from cache.digest import Digest
from cache.keys import Principal
from gateway.plan import Plan

Asked: TypeAlias = tuple[Principal, Digest, bytes]  # who, with the file of which picture, and a hash of all else

_KEPT = 600.0  # seconds without use
_OVERHEAD = 4096  # bytes charged to every plan
_LONGEST = 64 * 1024  # bytes of a request without its picture; nothing that is longer is remembered


class Plans:
    """All that a plan follows from is in the key, save its model's description: a plan is recalled for the very
    description it was made by, and for no other. It is kept without its picture. Its policy is that of the request
    which is answered now: reading it costs nothing, and it may follow from more than the request one day.
    """

    def __init__(
        self,
        *,
        max_entries: int = 4096,
        max_bytes: int = 32 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plans: Bounded[Asked, Plan] = Bounded(max_bytes=max_bytes, max_entries=max_entries)
        self._clock = clock

    def recall(self, asked: Asked | None, description: Description) -> Plan | None:
        """The plan of the same request, without its picture."""
        plan = self.plans.get(asked, self._clock()) if asked is not None else None
        return plan if plan is not None and plan.description is description else None

    def remember(self, asked: Asked | None, plan: Plan) -> None:
        if asked is not None:
            texts = sum(len(value) for value in plan.parameters.values() if isinstance(value, str))
            weight = _OVERHEAD + 4 * texts
            self.plans.put(asked, plan.without_media(), weight=weight, now=self._clock(), ttl=_KEPT)


def asked(request: Message, principal: Principal, file: Digest) -> Asked | None:
    """What the same request has in common with this one, whose picture was taken out of it. None if it is too long."""
    rest = request.SerializeToString(deterministic=True)
    return (principal, file, blake3(rest).digest()) if len(rest) <= _LONGEST else None
