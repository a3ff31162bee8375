"""Plans: what requests came to lately, so that the same one again need not be understood again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from blake3 import blake3

from cache.bans import Ban
from cache.bounded import Bounded
from cache.digest import Digest
from cache.keys import Principal
from cache.orders import Order
from cache.sweep import Gone
from gateway.plan import Plan

Asked: TypeAlias = tuple[str, Principal, bytes]  # which task, by whom, and a hash of the message

_KEPT = 600.0  # seconds without use
_OVERHEAD = 4096  # bytes charged to every plan
_LONGEST = 1024 * 1024  # bytes of a message; hashing a longer one takes more than a millisecond


class Known(NamedTuple):
    """What a message was taken to mean. It holds as long as the model it names has the description of the plan."""

    model: str  # as the message names it, which may be not at all
    plan: Plan
    upload: Digest | None = None  # the file that the message names, which every use keeps young


class Plans:
    """Plans by the messages they were made of. No picture is kept in them, and no plan for variety: each is another."""

    def __init__(
        self,
        *,
        max_entries: int = 4096,
        max_bytes: int = 32 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.known: Bounded[Asked, Known] = Bounded(max_bytes=max_bytes, max_entries=max_entries)
        self._clock = clock

    def recall(self, same: Asked | None) -> Known | None:
        return self.known.get(same, self._clock()) if same is not None else None

    def remember(self, same: Asked | None, model: str, plan: Plan, upload: Digest | None = None) -> None:
        if same is not None and not plan.policy.fresh:
            texts = sum(len(value) for value in plan.parameters.values() if isinstance(value, str))
            weight = _OVERHEAD + 4 * texts
            known = Known(model, plan.without_media(), upload)
            self.known.put(same, known, weight=weight, now=self._clock(), ttl=_KEPT)

    async def obey(self, order: Order | None) -> Gone:
        """What was said may be forbidden with what was made of it: all of it is forgotten, and understood anew."""
        if isinstance(order, Ban):
            self.known.clear()
        return Gone()


def asked(task: str, message: bytes, principal: Principal) -> Asked | None:
    """What the same request of the same caller has in common with this one. None if telling costs too much."""
    return (task, principal, blake3(message).digest()) if len(message) <= _LONGEST else None
