"""History: what each caller asked lately. It answers why something had to be made, and what was asked most like it.

A row says what was asked without saying it: numbers and choices in clear, texts and media as digests that only this
deployment can compute, and another one for each caller. Rows are in the memory of this process and, shared by all
gateways, in a short list per caller beside L2. Nothing depends on them: what is lost here costs an explanation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any

import msgpack
import structlog
from prometheus_client import CollectorRegistry, Counter

from cache import tags
from cache.bans import Ban, Bans
from cache.bounded import Bounded
from cache.clock import steady
from cache.description import HOUR, Scalar, Scope
from cache.encoding import keyed_hash_of
from cache.errors import TierError
from cache.journal import Journal
from cache.keys import Address
from cache.orders import Order
from cache.reason import Reason
from cache.sweep import Gone
from gateway.parts import is_mixed
from gateway.plan import Plan
from gateway.status import path_of
from reprise.v1 import common_pb2 as pb

_log = structlog.get_logger(__name__)

ROWS = 64  # of one caller
TTL = 24 * HOUR
_SCHEMA = 1
_MAX_BYTES = 16 * 1024 * 1024  # of rows in this process
_MAX_NOTED = 65_536  # requests known to be noted already
_MAX_WAITING = 1024  # rows on their way to the journal
_DRAIN = 2.0  # seconds
_END_OF_TIME = 253_402_300_800.0  # of the contract's timestamps: the year 10,000, in seconds
_LONGEST_NAME, _MOST_ENTRIES = 64, 256  # of what is believed of a row that anybody may have written


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what came of it."""

    address: Address
    asked_at: float  # seconds since the epoch
    model: str
    revision: str
    fields: Mapping[str, Scalar]  # by name in the request; see `fields_of`
    stages: Mapping[str, str]  # content id, as the request was written, of every output that was made or read
    seconds: Mapping[str, float] = field(default_factory=dict)  # device time of the stages that ran
    kept: bool = True  # what ran was stored, as far as its policy goes

    def to_bytes(self) -> bytes:
        ids = {stage: bytes.fromhex(content_id) for stage, content_id in self.stages.items()}
        head = [_SCHEMA, str(self.address), self.asked_at, self.model, self.revision, self.kept]
        return bytes(msgpack.packb([*head, dict(self.fields), ids, dict(self.seconds)]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Asked | None:
        """None for anything else: rows are skipped, never trusted."""
        try:
            schema, address, asked_at, model, revision, kept, fields, stages, seconds = msgpack.unpackb(data)
            if schema != _SCHEMA or not (_names(fields) and _names(stages) and _names(seconds)):
                return None
            row = cls(
                address=Address.parse(address),
                asked_at=asked_at,
                model=model,
                revision=revision,
                fields=fields,
                stages={stage: content_id.hex() for stage, content_id in stages.items()},
                seconds=seconds,
                kept=kept,
            )
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
            return None
        return row if _well_typed(row) else None


def _names(mapping: Any) -> bool:
    return (
        isinstance(mapping, dict)
        and len(mapping) <= _MOST_ENTRIES
        and all(isinstance(name, str) and len(name) <= _LONGEST_NAME for name in mapping)
    )


def _well_typed(row: Asked) -> bool:
    numbers = [row.asked_at, *row.seconds.values(), *(each for each in row.fields.values() if type(each) is not str)]
    texts = [row.model, row.revision, *row.stages.values()]
    return (
        all(isinstance(number, int | float) and isfinite(number) for number in numbers)
        and all(seconds >= 0 for seconds in row.seconds.values())
        and 0 <= row.asked_at < _END_OF_TIME
        and all(isinstance(text, str) for text in texts)
        and isinstance(row.kept, bool)
    )


class Past:
    """What one caller asked before one request."""

    def __init__(
        self,
        plan: Plan,
        fields: Mapping[str, Scalar],
        rows: Iterable[bytes],
        reading: asyncio.Task[list[bytes]] | None,
        bans: Bans,
    ) -> None:
        self.fields = fields
        self.bans = bans
        self._reading = reading  # shared by everything this caller asks at once
        self._model = plan.description.model
        self._rows = dict.fromkeys(rows)
        self._asked: list[Asked] | None = None

    async def known(self) -> None:
        """Wait until all is known that can be, which takes no longer than the journal's budget."""
        if (reading := self._reading) is None:
            return
        await asyncio.wait({reading})
        if self._reading is not None and not reading.cancelled():  # several streams may wait for it
            self._rows |= dict.fromkeys(reading.result())
            self._asked = None
        self._reading = None

    def suppose(self, row: Asked) -> None:
        """Go on as if this had been asked too."""
        self._rows[row.to_bytes()] = None
        self._asked = None

    @property
    def asked(self) -> Sequence[Asked]:
        if self._asked is None:
            self._asked = [row for data in self._rows if (row := _decoded(data)) is not None]
        return self._asked

    def nearest(self) -> pb.Nearest | None:
        """The earlier request for the same model with the fewest differing fields; of several the latest."""
        rows = [row for row in self.asked if row.model == self._model]
        if not rows:
            return None
        row = min(rows, key=lambda row: (len(self._differing(row)), -row.asked_at))
        nearest = pb.Nearest(address=str(row.address), differing=sorted(self._differing(row)))
        nearest.asked_at.FromMicroseconds(int(row.asked_at * 1e6))
        return nearest

    def why(self, content_id: str, ttl: float, now: float) -> Reason:
        """Why an output that no tier has is not there, as far as this caller's requests go."""
        having = [row for row in self.asked if content_id in row.stages.values()]
        if (last := self.last_kept(content_id)) is None:
            return Reason.POLICY if having else Reason.NEW
        return Reason.EVICTED if now - last < ttl else Reason.EXPIRED

    def last_kept(self, content_id: str) -> float | None:
        """When this caller last asked for something that was kept and had this output in it."""
        asked = [row.asked_at for row in self.asked if row.kept and content_id in row.stages.values()]
        return max(asked, default=None)

    def _differing(self, row: Asked) -> set[str]:
        """Of this request's fields: names that only a row has may be anybody's."""
        return {name for name, value in self.fields.items() if row.fields.get(name) != value}


class History:
    """Use as an async context manager; leaving it writes what still waits, for two seconds at most."""

    def __init__(
        self,
        journal: Journal | None,
        secret: bytes,
        registry: CollectorRegistry,
        *,
        bans: Bans | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self._journal = journal
        self._secret = secret
        self._bans = bans if bans is not None else Bans()
        self._clock = clock
        self._rows: Bounded[str, tuple[bytes, ...]] = Bounded(max_bytes=_MAX_BYTES)
        self._noted: Bounded[tuple[str, Address, bool], bool] = Bounded(max_bytes=_MAX_NOTED)
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(_MAX_WAITING)
        self._reading: dict[str, asyncio.Task[list[bytes]]] = {}  # by caller
        self._writing: asyncio.Task[None] | None = None
        self._dropped = Counter("reprise_history_dropped", "Rows that reached no other gateway", registry=registry)

    async def __aenter__(self) -> History:
        self._writing = asyncio.create_task(self._write_forever())
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._reading.values(), *([self._writing] if self._writing else [])]
        try:
            async with asyncio.timeout(_DRAIN):
                await self._waiting.join()
        except TimeoutError:
            self._dropped.inc(self._waiting.qsize())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def recall(self, plan: Plan) -> Past:
        """What the caller of this plan asked before: what this process knows at once, the rest a moment later."""
        caller = _caller(plan)
        rows = self._rows.peek(caller, self._clock()) or ()
        return Past(plan, self._fields_of(plan), rows, self._begin_reading(caller), self._bans)

    def hit(self, plan: Plan) -> None:
        """The caller had this from a tier. Noted once per half of its TTL; costs a look-up otherwise."""
        if not self._is_noted(plan, kept=True):
            stages = {plan.description.final.name: plan.address.content_id}
            self._note(plan, self._fields_of(plan), stages, {}, kept=True)

    def answered(self, plan: Plan, past: Past, reports: Sequence[pb.StageReport], *, ran: bool) -> None:
        """A generation has answered this request; `ran` if it was begun for it."""
        if not ran and self._is_noted(plan, kept=plan.policy.store):
            return
        stages = _stages(plan, reports, pb.STAGE_OUTCOME_RUN, pb.STAGE_OUTCOME_REUSED)
        ran_stages = _stages(plan, reports, pb.STAGE_OUTCOME_RUN)
        seconds = {
            report.stage: report.device_seconds
            for report in reports
            if report.stage in ran_stages and not is_mixed(report)
        }
        self._note(plan, past.fields, stages, seconds, kept=plan.policy.store)

    async def obey(self, order: Order | None) -> Gone:
        """What a user asked is forgotten with all that was made for them."""
        gone = 0
        for caller in _callers_in(order):
            gone += self._rows.delete(caller)
            if self._journal is not None:
                with suppress(TierError):  # it is forgotten when its time is over
                    await self._journal.forget(_name(caller))
        return Gone(gone, 0)

    def row_of(self, plan: Plan, reports: Iterable[pb.StageReport]) -> Asked:
        """The row that an answer with these reports would leave."""
        stages = _stages(plan, reports, pb.STAGE_OUTCOME_RUN)
        return self._row(plan, self._fields_of(plan), stages, {}, kept=plan.policy.store)

    def _is_noted(self, plan: Plan, *, kept: bool) -> bool:
        return self._noted.peek((_caller(plan), plan.address, kept), self._clock()) is not None

    def _note(
        self,
        plan: Plan,
        fields: Mapping[str, Scalar],
        stages: Mapping[str, str],
        seconds: Mapping[str, float],
        *,
        kept: bool,
    ) -> None:
        caller, now = _caller(plan), self._clock()
        data = self._row(plan, fields, stages, seconds, kept=kept).to_bytes()
        rows = (data, *(self._rows.peek(caller, now) or ()))[:ROWS]
        self._rows.put(caller, rows, weight=sum(map(len, rows)), now=now, ttl=TTL)
        self._noted.put((caller, plan.address, kept), True, weight=1, now=now, ttl=plan.description.final.ttl / 2)
        if self._journal is None:
            return
        try:
            self._waiting.put_nowait((_name(caller), data))
        except asyncio.QueueFull:
            self._dropped.inc()

    def _row(
        self,
        plan: Plan,
        fields: Mapping[str, Scalar],
        stages: Mapping[str, str],
        seconds: Mapping[str, float],
        *,
        kept: bool,
    ) -> Asked:
        model, revision = plan.description.model, plan.description.revision
        return Asked(plan.address, self._clock(), model, revision, fields, stages, seconds, kept)

    def _fields_of(self, plan: Plan) -> dict[str, Scalar]:
        """A request's fields by name. Texts and media are digests that mean nothing elsewhere."""
        caller, told = _caller(plan), dict[str, Scalar]()
        for parameter in plan.description.parameters:
            value = plan.parameters[parameter.name]
            told[parameter.name] = self._digest(caller, parameter.name, value) if parameter.kind == "text" else value
        for name, identity in plan.identities.items():  # a plan from memory has these and no media
            told[name] = self._digest(caller, name, identity)
        return told

    def _digest(self, caller: str, name: str, value: Scalar) -> str:
        return keyed_hash_of(self._secret, "history", [caller, name, value])[:32]

    def _begin_reading(self, caller: str) -> asyncio.Task[list[bytes]] | None:
        if self._journal is None:
            return None
        if caller not in self._reading:
            self._reading[caller] = asyncio.create_task(self._read(self._journal, caller))
        return self._reading[caller]

    async def _read(self, journal: Journal, caller: str) -> list[bytes]:
        try:
            return await journal.tail(_name(caller), ROWS)
        except TierError:
            return []  # what this process knows has to do
        finally:
            del self._reading[caller]

    async def _write_forever(self) -> None:
        while True:
            name, data = await self._waiting.get()
            try:
                if self._journal is not None:
                    await self._journal.append(name, data, keep=ROWS, ttl=TTL)
            except TierError:
                self._dropped.inc()
            except Exception as error:  # noqa: BLE001 - a bug here must not end the only writer there is
                _log.error("history not written", error=type(error).__name__, traceback=path_of(error))
                self._dropped.inc()
            finally:
                self._waiting.task_done()


def _callers_in(order: Order | None) -> list[str]:
    marks = order.condition.tags if isinstance(order, Ban) else ()
    return [caller for caller in map(tags.user_in, marks) if caller]


_decoded = lru_cache(maxsize=1024)(Asked.from_bytes)


def _stages(plan: Plan, reports: Iterable[pb.StageReport], *outcomes: pb.StageOutcome) -> dict[str, str]:
    """Content ids, as the request was written, of the stages with these outcomes."""
    return {
        report.stage: plan.addresses[report.stage].content_id
        for report in reports
        if report.outcome in outcomes and report.stage in plan.addresses
    }


def _caller(plan: Plan) -> str:
    return plan.namespaces[Scope.USER]


def _name(caller: str) -> str:
    return f"h/{caller}"
