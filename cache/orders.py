"""Orders: what operators say while a deployment runs (bans, switches, pins), and how every process comes to know it.
What gateways tell each other of crashes takes the same way.

An order is written to the durable tier first, as one small object that never changes, then told to all processes over
Redis. Whoever hears it obeys, and says so. Whoever was deaf (Redis gone, or itself cut off) reads the book of orders
instead: every second while it is deaf, now and then in any case. So an order is lost only where there is no durable
tier, and a process that starts knows all that is in force.

Orders are sealed under the deployment's secret: who can write to the stores cannot give any.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import structlog

from cache.bans import Ban, Bans
from cache.clock import steady
from cache.condition import Condition
from cache.crashes import REMEMBERED, Crash, Crashes
from cache.description import HOUR, LONGEST_AGE
from cache.encoding import keyed_hash_of
from cache.errors import TierError
from cache.keys import Address
from cache.objects import ObjectsStore
from cache.pins import Pin, Pins
from cache.sweep import Gone
from cache.switches import Subject, Switch, Switches

Order: TypeAlias = Ban | Switch | Pin
Word: TypeAlias = Order | Crash  # whatever is told to all
Obey: TypeAlias = "Callable[[Order | None], Awaitable[Gone]]"

# Seconds a ban is kept in mind: longer than any entry may live, kept requests included.
IN_FORCE = LONGEST_AGE + 24 * HOUR
BOOK = "o/"
_FOREVER = 10 * 365 * 24 * 3600.0  # stores that forget are not asked to keep a book
_PATIENCE = 1.0  # seconds that processes get to say they have heard
_READ_WHEN_DEAF, _READ_ANYWAY = 1.0, 15.0  # seconds between two looks into the book
_START_PATIENCE = 2.0
_PAGES = 16  # of the book, read at a time
_BEHIND = 60.0  # seconds that a clock may be behind ours, and a page late, and still be found
_NOBODY_WAITS = 10.0  # seconds after which whoever gave an order has gone, with some for clocks that differ
_HEARD_BY_NOW = 0.1
_log = structlog.get_logger(__name__)


class Channel(Protocol):
    """A way to tell all processes of a deployment something at once."""

    connected: bool  # whether what is told now will be heard here

    async def tell(self, message: bytes) -> int:
        """How many processes were told. Raises TierError."""
        ...

    async def listen(self, hear: Callable[[bytes], Awaitable[None]], heal: Callable[[], Awaitable[None]]) -> None:
        """Call `hear` with every message, for ever; `heal` whenever messages may have been missed."""
        ...


@dataclass(frozen=True, slots=True)
class Hearing:
    """A process that obeyed, and what it let go of in its own memory."""

    process: str
    gone: Gone


@dataclass
class Heard:
    """Who knows of an order by now. `told` counts the processes that were told, this one included."""

    durable: bool
    told: int = 1
    by_id: dict[str, Hearing] = field(default_factory=dict)  # names of processes need not differ

    @property
    def processes(self) -> list[Hearing]:
        return list(self.by_id.values())


class Orders:
    """Use as an async context manager."""

    def __init__(
        self,
        book: ObjectsStore | None,
        channel: Channel | None,
        *,
        process: str,
        secret: bytes,
        bans: Bans,
        switches: Switches,
        pins: Pins | None = None,
        clock: Callable[[], float] = steady,
    ) -> None:
        self.bans = bans
        self.switches = switches
        self.pins = pins if pins is not None else Pins()
        self.crashes = Crashes()
        self._book = book
        self._channel = channel
        self._process = process
        self._id = secrets.token_hex(8)
        self._secret = secret
        self._clock = clock
        self._known: set[str] = set()
        self._reading = asyncio.Lock()  # two that read at once would obey twice what only one of them forgets
        self._last = BOOK  # the last page of the book that was read
        self._obeying: list[Obey] = []
        self._answers: dict[str, Heard] = {}
        self._complete = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._spreading: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_PATIENCE):
                await self._read_book()
        if self._book is not None:
            self._tasks.append(asyncio.create_task(self._read_for_ever()))
        if self._channel is not None:
            self._tasks.append(asyncio.create_task(self._channel.listen(self._hear, self._read_book)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pending = {*self._tasks, *self._spreading}
        while pending:
            for task in pending:
                task.cancel()
            # The driver swallows a cancellation that comes while it connects, so it is said until it is heard.
            _, pending = await asyncio.wait(pending, timeout=_HEARD_BY_NOW)

    def on_order(self, obey: Obey) -> None:
        """Have something of this process let go of what is not to be served any more: at every order, once it is in
        force, and at other times (None).
        """
        self._obeying.append(obey)

    async def give(self, order: Order) -> Heard:
        """Put an order in force here at once, write it down, tell everybody, and wait a second for answers."""
        name, message = self._page(order)
        heard = self._answers[name] = Heard(durable=False)
        try:
            await self._obey(name, order)
            heard.durable = await self._write_down(name, message)
            await self._tell(name, message, heard)
        finally:
            del self._answers[name]
        return heard

    def note(self, crash: Crash) -> None:
        """Have a crash known here at once, and to everybody as soon as may be. Nobody waits for that."""
        name, message = self._page(crash)
        self._known.add(name)
        self.crashes.add(crash)
        spreading = asyncio.create_task(self._spread(name, message))
        self._spreading.add(spreading)
        spreading.add_done_callback(self._spreading.discard)

    async def sweep_again(self) -> None:
        """Have every process clear its memory once more, of what it may have read while entries were being removed."""
        await self._sweep(None)
        if self._channel is not None:
            with suppress(TierError):
                await self._channel.tell(_sealed(self._secret, {"sweep": True, "id": self._id}))

    def _page(self, word: Word) -> tuple[str, bytes]:
        """Its name, by which pages lie in order, and what stands there."""
        name = f"{int(word.at * 1e9):020d}-{secrets.token_hex(4)}"
        return name, _sealed(self._secret, {"name": name, "order": _as_json(word)})

    async def _spread(self, name: str, message: bytes) -> None:
        await self._say(message)
        await self._write_down(name, message)

    async def _write_down(self, name: str, message: bytes) -> bool:
        if self._book is None:
            return False
        try:
            return await self._book.put(BOOK + name, message, _FOREVER, replace=False)
        except TierError as error:
            _log.warning("order not written down", error=str(error))
            return False

    async def _tell(self, name: str, message: bytes, heard: Heard) -> None:
        heard.told = max(1, await self._say(message))
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while len(heard.by_id) < heard.told:
                    self._complete.clear()
                    await self._complete.wait()

    async def _say(self, message: bytes) -> int:
        """How many processes have been told: none, if there is no way to tell them."""
        if self._channel is None:
            return 0
        try:
            return await self._channel.tell(message)
        except TierError as error:
            _log.warning("order not told", error=str(error))
            return 0

    async def _hear(self, message: bytes) -> None:
        match _unsealed(self._secret, message):
            case {"name": str() as name, "order": dict() as fields}:
                if (word := _from_json(fields)) is not None:
                    await self._obey(name, word)
            case {
                "heard": str() as name,
                "id": str() as who,
                "process": str() as process,
                "gone": [int() as entries, int() as size],
            }:
                self._note(name, who, Hearing(process, Gone(entries, size)))
            case {"sweep": True, "id": str() as who} if who != self._id:  # our own is done before it is told
                await self._sweep(None)

    async def _obey(self, name: str, order: Word) -> None:
        if name in self._known:
            return
        self._known.add(name)
        if isinstance(order, Crash):
            self.crashes.add(order)  # nothing is let go of for it, and nobody waits to know who has heard
            return
        age = self._clock() - order.at
        if isinstance(order, Ban) and age > IN_FORCE:
            return
        match order:
            case Ban():
                self.bans.add(order)
            case Switch():
                self.switches.turn(order)
            case Pin():
                self.pins.turn(order)
        hearing = Hearing(self._process, await self._sweep(order))
        if name in self._answers:
            self._note(name, self._id, hearing)
        elif self._channel is not None and age < _NOBODY_WAITS:
            answer = {"heard": name, "id": self._id, "process": self._process, "gone": list(hearing.gone)}
            with suppress(TierError):
                await self._channel.tell(_sealed(self._secret, answer))

    def _note(self, name: str, who: str, hearing: Hearing) -> None:
        if (heard := self._answers.get(name)) is not None:
            heard.by_id[who] = hearing
            self._complete.set()

    async def _sweep(self, order: Order | None) -> Gone:
        return Gone.total([await obey(order) for obey in self._obeying])

    async def _read_for_ever(self) -> None:
        seconds = 0.0
        while True:
            await asyncio.sleep(_READ_WHEN_DEAF)
            seconds += _READ_WHEN_DEAF
            deaf = self._channel is None or not self._channel.connected
            if deaf or seconds >= _READ_ANYWAY:
                await self._read_book()
                seconds = 0.0

    async def _read_book(self) -> None:
        """Obey what has been written down since the last look, the newest first: who has little time for it, as at a
        start, knows what matters most. What is in force does not depend on the order.
        """
        if self._book is not None:
            async with self._reading:
                await self._read_from(self._book)

    async def _read_from(self, book: ObjectsStore) -> None:
        now = self._clock()
        try:
            names = {page.removeprefix(BOOK) for page in await book.names(BOOK, after=self._last)}
            new = sorted(names - self._known, reverse=True)
            for start in range(0, len(new), _PAGES):
                await self._read_pages(book, new[start : start + _PAGES])
        except TierError as error:
            _log.info("orders not readable", error=str(error))
            return
        # A little behind the last page: a clock that is behind ours writes its page before it.
        self._last = max(self._last, f"{BOOK}{int((now - _BEHIND) * 1e9):020d}")
        self._known = {name for name in self._known if BOOK + name > self._last}  # others are not listed again
        self.bans.forget(now - IN_FORCE)
        self.crashes.forget(now - REMEMBERED)

    async def _read_pages(self, book: ObjectsStore, names: Sequence[str]) -> None:
        for name, page in zip(names, await book.get_many([BOOK + name for name in names], _FOREVER), strict=True):
            if page is None:
                continue  # swept since it was listed
            if (order := order_on(page, self._secret)) is not None:
                await self._obey(name, order)
            else:
                self._known.add(name)
                _log.warning("not an order of ours", name=name)


def order_on(page: bytes, secret: bytes) -> Word | None:
    """What a page of the book says; None if it is not ours, or says what a later version knows."""
    match _unsealed(secret, page):
        case {"order": dict() as fields}:
            return _from_json(fields)
    return None


def needed(words: Collection[Word], now: float) -> set[Word]:
    """Those of a whole book that a process which starts must know: bans in force, crashes that may be held against
    something, and of switches and pins the latest of each thing. Others of these are kept as long as bans.
    """
    latest: dict[object, float] = {}
    for word in words:
        latest[_matter(word)] = max(word.at, latest.get(_matter(word), word.at))
    return {word for word in words if _in_force(word, now) or _is_last(word, latest)}


def _in_force(word: Word, now: float) -> bool:
    return word.at >= now - (REMEMBERED if isinstance(word, Crash) else IN_FORCE)


def _is_last(word: Word, latest: Mapping[object, float]) -> bool:
    return isinstance(word, Switch | Pin) and word.at == latest[_matter(word)]


def _matter(word: Word) -> object:
    """What it is about: of two orders about one thing the later one counts. Every ban counts, and every crash."""
    match word:
        case Switch(_, subject, name):
            return subject, name
        case Pin(_, address):
            return address
    return word


def _as_json(order: Word) -> dict[str, Any]:
    match order:
        case Ban(at, condition):
            said = {
                "model": condition.model,
                "revision": condition.revision,
                "stage": condition.stage,
                "tags": list(condition.tags),
                "digest": condition.digest,
                "older_than": condition.older_than,
            }
            return {
                "kind": "ban",
                "at": at,
                **{name: value for name, value in said.items() if value not in ("", [], None)},
            }
        case Switch(at, subject, name, on):
            return {"kind": "switch", "at": at, "subject": subject.value, "name": name, "on": on}
        case Pin(at, address, on):
            return {"kind": "pin", "at": at, "address": str(address), "on": on}
        case Crash(at, address, process):
            return {"kind": "crash", "at": at, "address": str(address), "process": process}


def _from_json(fields: Mapping[str, Any]) -> Word | None:
    """None for one of a kind that a later version knows."""
    try:
        match fields:
            case {"kind": "ban", "at": float() as at, **said}:
                condition = Condition(**{**said, "tags": tuple(said.get("tags", ()))})
                return Ban(at, condition) if condition else None
            case {"kind": "switch", **said}:
                return Switch(said["at"], Subject(said["subject"]), said["name"], said["on"])
            case {"kind": "pin", **said}:
                return Pin(said["at"], Address.parse(said["address"]), said["on"])
            case {"kind": "crash", "at": float() as at, "process": str() as process, **said}:
                return Crash(at, Address.parse(said["address"]), process)
    except (TypeError, ValueError, KeyError):
        return None
    return None


def _sealed(secret: bytes, content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content)
    return keyed_hash_of(secret, "order", text).encode() + text.encode()


def _unsealed(secret: bytes, message: bytes) -> Any:
    """The content of a message of ours, None for any other."""
    seal, content = message[:64], message[64:]
    try:
        text = content.decode()
        if hmac.compare_digest(seal, keyed_hash_of(secret, "order", text).encode()):
            return json.loads(text)
    except ValueError:
        pass
    return None
