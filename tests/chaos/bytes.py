"""`python -m tests.chaos.bytes --faults 10000 --seed 1`: does what lies under a name ever pass for something else?

The real tiers of a process over a real Redis and a real S3 server. Fault by fault an entry is spoiled in one of the
shared tiers or in both, as chance wants it, and asked for. Judged: no wrong byte comes out, nothing is executed, and
what was spoiled has been counted and is gone or good again. Chance is seeded: the same seed does the same.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import click
import obstore
import uvloop
from obstore.store import S3Store
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cache.build import Tiers, build_tiers
from cache.digest import Digest
from cache.envelope import seal
from cache.keys import Address, Key
from cache.record import Output, Record
from cache.settings import CacheSettings
from cache.tier import Outcome, TierName
from gateway.stack import Bucket
from tests.chaos.damage import KINDS, OF_RECORDS, Damage, Entry
from tests.servers import bucket, objects_part, redis_part, redis_url, serving

MISSING = "not there"  # a record without its blob, or a blob without its record
_NAMESPACE = "c" * 32
_TTL, _AGE = 600.0, 3600.0  # seconds
_SIZES = (200, 3_000, 70_000, 300_000)  # bytes of outputs, by turns; the first are inlined
_INLINED = 1_000
_WARM = 0.1  # of all faults, what they spoil is in memory too
Where: TypeAlias = tuple[TierName, ...]
_WHERE: tuple[Where, ...] = ((TierName.L2,), (TierName.L3,), (TierName.L2, TierName.L3))


@dataclass
class Row:
    """What became of the faults of one kind."""

    faults: int = 0
    spoiled: int = 0  # entries: one for each tier
    met: int = 0  # of these, those that a tier was asked for
    counted: int = 0
    wrong: int = 0  # answers
    left: int = 0  # of those met
    made_again: int = 0  # outputs of which no tier had a good copy


@dataclass
class Outcomes:
    """What became of all of them."""

    rows: dict[str, Row] = field(default_factory=dict)
    executed: bool = False

    def row(self, kind: str) -> Row:
        return self.rows.setdefault(kind, Row())

    def broken(self) -> list[str]:
        """Every promise that was not kept, in words."""
        found = ["something was executed"] * self.executed
        for kind, row in self.rows.items():
            found += [f"{kind}: {row.wrong} wrong answers"] * (row.wrong > 0)
            found += [f"{kind}: {row.left} of {row.met} left"] * (row.left > 0)
            uncounted = row.met - row.counted if kind != MISSING else 0
            found += [f"{kind}: {uncounted} of {row.met} not counted"] * (uncounted > 0)
        return found


class Shelves:
    """The raw values of both shared tiers, past everything of ours."""

    def __init__(self, redis: Redis, store: S3Store) -> None:
        self._redis = redis
        self._store = store

    async def get(self, tier: TierName, key: Key) -> bytes | None:
        if tier is TierName.L2:
            value = await self._redis.get(str(key))
            return None if value is None else bytes(value)  # type: ignore[arg-type]  # no text is asked for
        try:
            return bytes(await (await obstore.get_async(self._store, str(key))).bytes_async())
        except FileNotFoundError:
            return None

    async def put(self, tier: TierName, key: Key, value: bytes | None) -> None:
        """None: take it away."""
        if tier is TierName.L2:
            await (self._redis.unlink(str(key)) if value is None else self._redis.set(str(key), value, px=600_000))
        elif value is None:
            await obstore.delete_async(self._store, str(key))
        else:
            await obstore.put_async(self._store, str(key), value)


class Spoiler:
    """Spoils and asks. Outputs are told apart by number."""

    def __init__(self, tiers: Tiers, shelves: Shelves, chance: random.Random, executed: Path, outputs: int) -> None:
        self.outcomes = Outcomes()
        self._tiers = tiers
        self._shelves = shelves
        self._chance = chance
        self._executed = executed
        self._outputs = [chance.randbytes(_SIZES[number % len(_SIZES)]) for number in range(outputs)]
        made_at = time.time()
        self._records = [_record(number, data, made_at) for number, data in enumerate(self._outputs)]

    async def fill(self) -> None:
        for record, data in zip(self._records, self._outputs, strict=True):
            await self._make(record, data)

    async def one(self) -> None:
        number = self._chance.randrange(len(self._outputs))
        record, data = self._records[number], self._outputs[number]
        keys = [Key.of_record(record.address)]
        if record.output.inline is None:
            keys.append(Key.of_blob(_NAMESPACE, record.output.digest))
        key = self._chance.choice(keys)
        where = self._chance.choice(_WHERE)
        kinds = [MISSING, *(kind for kind in KINDS if key.kind == "r" or kind not in OF_RECORDS), _OTHERS]
        kind = self._chance.choice(kinds)
        row = self.outcomes.row(kind)
        row.faults += 1
        warm = self._chance.random() < _WARM
        if not warm:
            self._tiers.memory.entries.clear()
        spoiled = await self._spoil(kind, key, where, number)
        before = self._corrupt()
        found = await self._tiers.through_memory.fetch(record.address, _TTL)
        row.wrong += found.data not in (None, data)
        if found.data is None:
            row.made_again += 1
            await self._make(record, data)
        await self._tiers.writer.drain(60.0)
        asked = {lookup.tier for lookup in found.lookups}
        met = {tier: value for tier, value in spoiled.items() if tier in asked}
        row.spoiled += len(spoiled)
        row.met += len(met)
        row.counted += sum(self._corrupt()[tier] - before[tier] for tier in met)
        row.left += sum([await self._shelves.get(tier, key) == value for tier, value in met.items()])
        self.outcomes.executed |= self._executed.exists()
        await self._restore(record, data, keys)

    async def _spoil(self, kind: str, key: Key, where: Where, number: int) -> dict[TierName, bytes | None]:
        """What lies in each tier now. What is spoiled in L3 alone is met by those alone for whom L2 has nothing."""
        spoiled: dict[TierName, bytes | None] = {}
        for tier in where:
            value: bytes | None = None
            if kind != MISSING:
                stored = await self._shelves.get(tier, key)
                assert stored is not None
                other = await self._other(tier, key, number)
                entry = Entry(key, stored, other, self._executed)
                value = (_ALL[kind])(entry, self._chance)
            await self._shelves.put(tier, key, value)
            spoiled[tier] = value
        if where == (TierName.L3,):
            await self._shelves.put(TierName.L2, key, None)
        return spoiled

    async def _other(self, tier: TierName, key: Key, number: int) -> bytes:
        """The entry of another output, of the same kind if it has one."""
        record = self._records[(number + 2 if key.kind == "b" else number + 1) % len(self._records)]
        if key.kind == "b" and record.output.inline is None:
            other = Key.of_blob(_NAMESPACE, record.output.digest)
        else:
            other = Key.of_record(record.address)
        stored = await self._shelves.get(tier, other)
        assert stored is not None
        return stored

    async def _restore(self, record: Record, data: bytes, keys: list[Key]) -> None:
        """Whatever was not met, and what L2 lost for the sake of L3, is there for the next one."""
        for tier in (TierName.L2, TierName.L3):
            for key in keys:
                payload = record.to_bytes() if key.kind == "r" else data
                await self._shelves.put(tier, key, seal(key, payload))

    async def _make(self, record: Record, data: bytes) -> None:
        assert await (await self._tiers.through_memory.commit(record, data))

    def _corrupt(self) -> Mapping[TierName, int]:
        return {tier.name: tier.tally.outcomes[Outcome.CORRUPT] for tier in self._tiers.shared}


def _another_payload(entry: Entry, chance: random.Random) -> bytes:
    """Sealed well, under this name, and nothing that this name promises."""
    return seal(entry.key, entry.other[48:])


_OTHERS = "another entry's payload, sealed"
_ALL: Mapping[str, Damage] = {**KINDS, _OTHERS: _another_payload}


def _record(number: int, data: bytes, now: float) -> Record:
    return Record(
        address=Address(_NAMESPACE, Digest.of(b"output %d" % number).hex),
        model="small",
        revision="r1",
        stage="render",
        fingerprint="f1",
        output=Output(Digest.of(data), "video/mp4", data if len(data) <= _INLINED else None),
        device_seconds=1.5,
        total_device_seconds=4.0,
        made_at=now,
        touched_at=now,
        ttl=_TTL,
        expires_at=now + _AGE,
    )


@dataclass(frozen=True)
class Servers:
    redis_url: str
    bucket: Bucket


@contextmanager
def servers(data: Path) -> Iterator[Servers]:
    with serving(data, redis_part(data), objects_part(data)) as stack:
        yield Servers(redis_url(stack), bucket(stack))


@asynccontextmanager
async def spoiling(at: Servers, *, seed: int, executed: Path, outputs: int = 48) -> AsyncIterator[Spoiler]:
    """A process's tiers over these servers, filled. Budgets are long: what is judged is no time."""
    settings = CacheSettings.model_validate(
        {
            "secret": bytes(range(32)).hex(),
            "l2": {"url": at.redis_url, "budget": 5.0},
            "l3": {
                "url": f"s3://{at.bucket.bucket}",
                "endpoint": at.bucket.endpoint,
                "access_key": at.bucket.access_key,
                "secret_key": at.bucket.secret_key,
                "stall": 10.0,
            },
        }
    )
    store = S3Store(
        at.bucket.bucket,
        endpoint=at.bucket.endpoint,
        region=at.bucket.region,
        access_key_id=at.bucket.access_key,
        secret_access_key=at.bucket.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    redis: Redis = Redis.from_url(at.redis_url)
    tiers = await asyncio.to_thread(build_tiers, settings, CollectorRegistry())
    try:
        async with tiers:
            spoiler = Spoiler(tiers, Shelves(redis, store), random.Random(seed), executed, outputs)
            await spoiler.fill()
            yield spoiler
    finally:
        await redis.aclose()


async def play(at: Servers, *, faults: int, seed: int, executed: Path, console: Console | None = None) -> Outcomes:
    async with spoiling(at, seed=seed, executed=executed) as spoiler:
        numbers = range(faults)
        for _ in numbers if console is None else track(numbers, "spoiling", console=console, transient=True):
            await spoiler.one()
        return spoiler.outcomes


@click.command()
@click.option("--faults", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(faults: int, seed: int) -> None:
    """Spoil what is stored, fault by fault, and judge what comes out. Fails if a promise is broken."""
    console = Console(highlight=False, width=None if Console().is_terminal else 150)
    with tempfile.TemporaryDirectory(prefix="reprise-bytes-") as folder:
        began, data = time.monotonic(), Path(folder)
        with servers(data / "stack") as at:
            outcomes = uvloop.run(play(at, faults=faults, seed=seed, executed=data / "executed", console=console))
    table = Table(box=None)
    for heading in ("what lay there", "faults", "entries", "met", "counted", "left", "made again", "wrong answers"):
        table.add_column(heading, justify="left" if heading == "what lay there" else "right")
    total: Counter[str] = Counter()
    for kind, row in sorted(outcomes.rows.items()):
        told = (row.faults, row.spoiled, row.met, row.counted, row.left, row.made_again, row.wrong)
        table.add_row(kind, *(f"{count:,}" for count in told))
        total.update(faults=row.faults, wrong=row.wrong)
    console.print(table)
    took, executed = time.monotonic() - began, "SOMETHING" if outcomes.executed else "nothing"
    console.print(
        f"\n{total['faults']:,} faults of seed {seed} in {took:.0f} s: {total['wrong']} wrong answers, "
        f"{executed} was executed"
    )
    for each in outcomes.broken():
        console.print(f"[red]✗ {each}[/]")
    sys.exit(bool(outcomes.broken()))


if __name__ == "__main__":
    main()
