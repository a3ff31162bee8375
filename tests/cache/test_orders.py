"""Orders reach every process: those that listen at once, those that are deaf a little later, new ones when they start.

The deployment is real: one Redis, one folder as the durable tier, and as many processes' `Orders` as a test wants.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cache.bans import Ban, Bans
from cache.channel import RedisChannel
from cache.condition import Condition
from cache.crashes import Crash
from cache.errors import TierError
from cache.keys import Address
from cache.objects import ObjectsStore
from cache.orders import IN_FORCE, Order, Orders, _sealed
from cache.pins import Pin
from cache.sweep import Gone
from cache.switches import Subject, Switch, Switches
from gateway.stack import Stack
from tests import servers
from tests.cache.helpers import NOW, SECRET, Clock, pause, record_of

ONE = Address("0" * 32, "1" * 64)
BAN = Ban(NOW + 1.0, Condition(model="small"))


@dataclass
class Process:
    """What a process has of orders. `obeyed` counts how often it was told to make room."""

    orders: Orders
    channel: RedisChannel | None
    obeyed: list[Order | None] = field(default_factory=list)

    @property
    def forbids(self) -> bool:
        return self.orders.bans.forbid(record_of(b"clip"))

    async def obey(self, order: Order | None) -> Gone:
        self.obeyed.append(order)
        return Gone(2, 20)


@dataclass
class Deployment:
    folder: Path
    redis_url: str
    _stack: AsyncExitStack

    async def process(
        self,
        name: str,
        *,
        listens: bool = True,
        writes: bool = True,
        secret: bytes = SECRET,
        clock: Clock | None = None,
    ) -> Process:
        channel = RedisChannel.connect(self.redis_url, "test", budget=1.0) if listens else None
        orders = Orders(
            await asyncio.to_thread(self.book),
            channel,
            process=name,
            secret=secret,
            bans=Bans(),
            switches=Switches(),
            clock=clock or Clock(NOW + 1.0),
        )
        process = Process(orders, channel)
        orders.on_order(process.obey)
        if channel is not None:
            self._stack.push_async_callback(channel.aclose)
        await self._stack.enter_async_context(orders)
        if channel is not None:
            await until(lambda: channel.connected)
        return process

    def book(self) -> ObjectsStore:
        return ObjectsStore.connect(f"file://{self.folder}", stall=5.0)


async def until(holds: Callable[[], bool]) -> None:
    """For what happens on the other side of a socket."""
    async with asyncio.timeout(15.0):
        while not holds():  # noqa: ASYNC110  # nothing on this side knows when
            await asyncio.sleep(0.005)


@pytest.fixture
async def deployment(tmp_path: Path, redis_url: str) -> AsyncIterator[Deployment]:
    async with AsyncExitStack() as stack:
        yield Deployment(tmp_path / "objects", redis_url, stack)


async def test_every_process_hears_an_order_once_and_says_so(deployment: Deployment) -> None:
    """Whoever gave it knows who obeyed and what they let go of, before a second is over."""
    first, second, third = [await deployment.process("same-name") for _ in range(3)]

    heard = await first.orders.give(BAN)

    assert (True, 3) == (heard.durable, heard.told)
    assert [Gone(2, 20)] * 3 == [hearing.gone for hearing in heard.processes]
    assert [True] * 3 == [process.forbids for process in (first, second, third)]
    assert [[BAN]] * 3 == [process.obeyed for process in (first, second, third)]


async def test_every_process_knows_of_a_crash_and_lets_go_of_nothing(deployment: Deployment) -> None:
    """Who tells it knows at once, who listens soon, who is deaf or starts later by the book; nobody answers."""
    first, second, deaf = (
        await deployment.process("first"),
        await deployment.process("second"),
        await deployment.process("deaf", listens=False),
    )
    for process in ("a", "b"):
        first.orders.note(Crash(NOW, ONE, process))
    assert [ONE] == first.orders.crashes.set_apart(since=0.0)
    for other in (second, deaf):
        await until(lambda: [ONE] == other.orders.crashes.set_apart(since=0.0))  # noqa: B023  # awaited right here
    late = await deployment.process("late", listens=False)
    assert [ONE] == late.orders.crashes.set_apart(since=0.0)
    assert [[]] * 4 == [process.obeyed for process in (first, second, deaf, late)]


async def test_a_process_that_starts_later_knows_what_is_in_force(deployment: Deployment) -> None:
    """From the book: bans that still matter and the last switch of each thing."""
    first = await deployment.process("first")
    await first.orders.give(BAN)
    await first.orders.give(Switch(NOW + 2.0, Subject.TIER, "l2", on=False))

    later = await deployment.process("later")
    much_later = await deployment.process("much-later", clock=Clock(NOW + IN_FORCE + 2.0))

    assert later.forbids
    assert not later.orders.switches.on(Subject.TIER, "l2")
    assert not much_later.forbids
    assert not much_later.orders.switches.on(Subject.TIER, "l2")


async def test_an_order_without_redis_is_read_from_the_book(deployment: Deployment) -> None:
    """Nobody listens, and everybody looks into the book."""
    giver = await deployment.process("giver", listens=False)
    other = await deployment.process("other", listens=False)

    heard = await giver.orders.give(BAN)

    assert (True, 1, ["giver"]) == (heard.durable, heard.told, [each.process for each in heard.processes])
    await until(lambda: other.forbids)


async def test_who_was_deaf_reads_what_it_missed(tmp_path: Path, breakable_redis: Stack) -> None:
    """A process that hung with its Redis knows the order soon after, from the book; told over Redis it was not."""
    async with AsyncExitStack() as stack:
        deployment = Deployment(tmp_path / "objects", servers.redis_url(breakable_redis), stack)
        deaf = await deployment.process("deaf")
        channel = deaf.channel
        assert channel is not None
        pause(breakable_redis.part("redis"))
        await until(lambda: not channel.connected)
        giver = await deployment.process("giver", listens=False)

        await giver.orders.give(BAN)

        await until(lambda: deaf.forbids)
        assert not channel.connected


async def test_who_cannot_write_it_down_says_so(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is in force where it was heard, and the answer is honest."""
    giver = await deployment.process("giver", listens=False)
    broken = await asyncio.to_thread(deployment.book)

    async def refuse(*args: object, **options: object) -> bool:
        raise TierError("full")

    monkeypatch.setattr(broken, "put", refuse)
    monkeypatch.setattr(giver.orders, "_book", broken)

    heard = await giver.orders.give(BAN)

    assert not heard.durable
    assert giver.forbids


async def test_only_who_knows_the_secret_gives_orders(deployment: Deployment) -> None:
    """Neither a message nor a page of anybody else is obeyed, and nothing breaks of it."""
    process = await deployment.process("ours")
    stranger = await deployment.process("stranger", secret=bytes([7] * 32))
    assert stranger.channel is not None

    await stranger.orders.give(BAN)
    await stranger.channel.tell(b"no message of ours")
    book = await asyncio.to_thread(deployment.book)
    await book.put("o/00000000000000000001-junk", b"junk", 60.0, replace=False)
    late = await deployment.process("late")
    heard = await process.orders.give(Switch(NOW, Subject.MODEL, "small", on=False))

    assert (False, False) == (process.forbids, late.forbids)
    assert {"ours", "late"} == {each.process for each in heard.processes}


async def test_memory_is_swept_again_when_all_is_removed(deployment: Deployment) -> None:
    """What was read again while it was being removed goes everywhere too."""
    first, second = await deployment.process("first"), await deployment.process("second")

    await first.orders.sweep_again()

    await until(lambda: second.obeyed == [None])
    assert [None] == first.obeyed  # who said so has done it, and hears itself


async def test_what_a_later_version_says_deafens_nobody(deployment: Deployment) -> None:
    """An answer in another form, or of another kind, is passed over, and the next order is heard."""
    giver, hearer = await deployment.process("giver"), await deployment.process("hearer")
    assert giver.channel is not None
    for said in ({"heard": "o", "id": "i", "process": "p", "gone": [1, 2, 3]}, {"unheard": "of"}):
        await giver.channel.tell(_sealed(SECRET, said))

    heard = await giver.orders.give(BAN)

    assert {"giver", "hearer"} == {each.process for each in heard.processes}
    assert hearer.forbids


@pytest.mark.parametrize(
    "order",
    [
        BAN,
        Ban(NOW, Condition("m", "r", "s", ("a:b", "c:d"), "ff", 0.0)),
        Ban(NOW, Condition(older_than=0.0)),
        Switch(NOW, Subject.TENANT, "0" * 32, on=True),
        Pin(NOW, ONE, on=True),
    ],
    ids=["model", "all", "everything", "switch", "pin"],
)
async def test_an_order_is_written_as_it_was_given(deployment: Deployment, order: Order) -> None:
    """Who reads it obeys the very same order."""
    giver = await deployment.process("giver", listens=False)
    await giver.orders.give(order)
    reader = await deployment.process("reader", listens=False)
    await until(lambda: bool(reader.obeyed))

    assert [order] == reader.obeyed


@pytest.mark.parametrize("moment", [0.0, 0.0005, 0.001, 0.002, 0.004])
async def test_a_process_that_ends_while_it_connects_ends(redis_url: str, moment: float) -> None:
    """Whatever its connection is doing then."""
    channel = RedisChannel.connect(redis_url, "test", budget=1.0)
    orders = Orders(None, channel, process="brief", secret=SECRET, bans=Bans(), switches=Switches())
    async with asyncio.timeout(10.0):
        async with orders:
            await asyncio.sleep(moment)
    await channel.aclose()


class SlowBook:
    """A book of which only so many pages are ever given. It knows what was asked, and how much at a time."""

    def __init__(self, book: ObjectsStore, pages: int) -> None:
        self._book = book
        self._left = pages
        self._asking = 0
        self.at_a_time = 0
        self.asked: list[str] = []

    async def names(self, prefix: str, *, after: str | None = None) -> list[str]:
        return await self._book.names(prefix, after=after)

    async def get_many(self, names: list[str], ttl: float | None) -> list[bytes | None]:
        return await asyncio.gather(*(self.get(name, ttl) for name in names))

    async def get(self, name: str, ttl: float | None) -> bytes | None:
        self.asked.append(name)
        self._asking += 1
        self.at_a_time = max(self.at_a_time, self._asking)
        self._left -= 1
        if self._left < 0:
            await asyncio.Event().wait()
        page = await self._book.get(name, ttl)
        self._asking -= 1
        return page


async def written(deployment: Deployment, orders: Iterable[Order], clock: Clock) -> None:
    """Orders stand in the book. Nobody listens."""
    giver = await deployment.process("giver", listens=False, clock=clock)
    for order in orders:
        await giver.orders.give(order)


async def test_a_start_that_has_no_time_for_the_whole_book_knows_the_newest_orders(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads backwards and some pages at once; what it has not read yet is read later."""
    monkeypatch.setattr("cache.orders._START_PATIENCE", 1.0)
    clock = Clock(NOW + 100.0)
    models = [f"m{number:02}" for number in range(40)]
    await written(deployment, [Ban(NOW + number, Condition(model=model)) for number, model in enumerate(models)], clock)
    book = SlowBook(await asyncio.to_thread(deployment.book), pages=32)
    bans = Bans()
    async with Orders(book, None, process="late", secret=SECRET, bans=bans, switches=Switches(), clock=clock):  # type: ignore[arg-type]
        known = [model for model in models if bans.forbid(dataclasses.replace(record_of(b""), model=model))]

    assert models[8:] == known
    assert 1 < book.at_a_time <= 16


class Listener:
    """A channel on which nothing comes. It knows what was told."""

    connected = True

    def __init__(self) -> None:
        self.told: list[bytes] = []

    async def tell(self, message: bytes) -> int:
        self.told.append(message)
        return 1

    async def listen(self, hear: object, heal: object) -> None:
        await asyncio.Event().wait()


async def test_whoever_starts_answers_only_orders_that_somebody_waits_for(deployment: Deployment) -> None:
    """Of a long book nothing is told over Redis; what was said a moment ago is answered."""
    clock = Clock(NOW + 100.0)
    await written(deployment, [BAN, Ban(NOW + 99.0, Condition(model="other"))], clock)
    book, listener, bans = await asyncio.to_thread(deployment.book), Listener(), Bans()

    async with Orders(book, listener, process="late", secret=SECRET, bans=bans, switches=Switches(), clock=clock):
        assert bans.forbid(record_of(b"clip"))

    assert 1 == len(listener.told)


async def test_a_ban_that_is_over_is_not_obeyed(deployment: Deployment) -> None:
    """What it meant is gone, so nothing of today goes for it. A switch as old is obeyed, and no page is read twice."""
    switch = Switch(NOW + 1.2, Subject.TIER, "l2", on=False)
    await written(deployment, [BAN, switch], Clock(NOW + 3.0))
    book = SlowBook(await asyncio.to_thread(deployment.book), pages=10)
    clock = Clock(NOW + IN_FORCE + 1.5)
    orders = Orders(book, None, process="late", secret=SECRET, bans=Bans(), switches=Switches(), clock=clock)  # type: ignore[arg-type]
    process = Process(orders, None)
    orders.on_order(process.obey)

    await asyncio.gather(orders._read_book(), orders._read_book())

    assert [switch] == process.obeyed
    assert not orders.bans
    assert 2 == len(book.asked)
    assert set() == orders._known  # what will not be listed again is not remembered
