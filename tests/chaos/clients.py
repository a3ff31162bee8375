"""Callers who write down what they see, and the oracle that knows which bytes a wish stands for."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import grpc
from blake3 import blake3
from PIL import Image

from gateway.client import Client, Media
from gateway.status import Problem, explain_error
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest, GenerationEvent, Stored

PATIENCE = 90.0  # seconds that callers have
Outcome: TypeAlias = Literal["hit", "miss", "coalesced", "bypass", "failed", "left"]
_OUTCOMES: dict[int, Outcome] = {
    pb.OUTCOME_HIT: "hit",
    pb.OUTCOME_MISS: "miss",
    pb.OUTCOME_COALESCED: "coalesced",
    pb.OUTCOME_BYPASS: "bypass",
}
_TIERS = {pb.TIER_L1: "l1", pb.TIER_L2: "l2", pb.TIER_L3: "l3", pb.TIER_POOL: "pool"}


@dataclass(frozen=True)
class Wish:
    """A video that somebody may want. Equal wishes are equal requests."""

    seed: int
    steps: int = 2
    picture: int = 0

    def request(self, mode: pb.CachePolicy.Mode = pb.CachePolicy.MODE_UNSPECIFIED) -> AnimateImageRequest:
        return AnimateImageRequest(
            image=photo(self.picture),
            prompt="a cat walks",
            width=64,
            height=64,
            num_frames=2,
            num_inference_steps=self.steps,
            seed=self.seed,
            cache_policy=pb.CachePolicy(mode=mode),
        )


@cache
def photo(number: int) -> bytes:
    """Different pictures have different homes."""
    buffer = io.BytesIO()
    extent = (-2.0 + number / 50, -1.2, 0.8, 1.2)
    Image.effect_mandelbrot((96, 80), extent, 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Heard:
    """One request and what came of it, as its caller saw it. Times are seconds on the callers' clock."""

    wish: Wish
    door: tuple[str, ...]  # gateways in the order they would be tried
    began: float
    ended: float = 0.0
    outcome: Outcome = "left"
    tier: str = ""
    address: str = ""
    digest: str = ""  # of the bytes that came
    wrong: str = ""  # why these bytes are not what was asked for
    durable: bool = False
    problem: Problem | None = None
    retries: int = 0
    lookups: dict[str, str] = field(default_factory=dict)  # tier -> outcome, in the words of the report

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Oracle:
    """Which bytes each wish stands for. What it believes first it proves later: `proof` asks for a generation that
    reads nothing from any cache and leaves nothing there, and compares.
    """

    def __init__(self) -> None:
        self.digests: dict[Wish, str] = {}
        self.addresses: dict[str, str] = {}
        self._proven: set[Wish] = set()

    def judge(self, wish: Wish, media: Media) -> tuple[str, str]:
        """Digest of what came, and what is wrong with it, if anything is."""
        digest, report = blake3(media.data).hexdigest(), media.report
        if digest != media.result.artifact.hex or len(media.data) != media.result.artifact.size:
            return digest, "not the bytes that the answer names"
        if self.digests.setdefault(wish, digest) != digest:
            return digest, "other bytes than this wish had before"
        if report.address and self.addresses.setdefault(report.address, digest) != digest:
            return digest, "an address with two digests"
        return digest, ""

    async def disproved(self, door: str, most: int) -> list[Wish]:
        """Of those not proven yet, newest first and `most` at most, the ones whose bytes a fresh generation has not."""
        wanted = [wish for wish in reversed(self.digests) if wish not in self._proven][:most]
        wrong = []
        async with Client(door) as client:
            for wish in wanted:
                media = await client.animate(wish.request(pb.CachePolicy.MODE_BYPASS), deadline=PATIENCE)
                if blake3(media.data).hexdigest() != self.digests[wish]:
                    wrong.append(wish)
                self._proven.add(wish)
        return wrong


class Callers:
    """Everybody who asks in one case. `door` turns names of gateways into where they are. An async context manager."""

    def __init__(self, door: Callable[..., str], oracle: Oracle) -> None:
        self.log: list[Heard] = []
        self.oracle = oracle
        self._door = door
        self._clients: dict[tuple[str, ...], Client] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.reconnect()

    async def reconnect(self) -> None:
        """As callers that have just come: they try gateways in the order in which they are named."""
        for client in self._clients.values():
            await client.__aexit__(None, None, None)
        self._clients.clear()

    def client(self, *gateways: str) -> Client:
        if gateways not in self._clients:
            self._clients[gateways] = Client(self._door(*gateways))
        return self._clients[gateways]

    async def ask(
        self,
        wish: Wish,
        *gateways: str,
        stored: bool = False,
        mode: pb.CachePolicy.Mode = pb.CachePolicy.MODE_UNSPECIFIED,
        deadline: float = PATIENCE,
        on_event: Callable[[GenerationEvent], None] = lambda event: None,
    ) -> Heard:
        """Ask, and write down what came. `stored`: also wait until it is known whether it is durable.

        Never raises but CancelledError: a caller who left is written down as one.
        """
        heard = Heard(wish, gateways, time.monotonic())
        self.log.append(heard)

        def again(problem: Problem, seconds: float) -> None:
            heard.retries += 1

        try:
            client = self.client(*gateways)
            media = await client.animate(wish.request(mode), on_event=on_event, on_retry=again, deadline=deadline)
            heard.ended = time.monotonic()
            self._note(heard, media)
            state = await client.until_stored(media) if stored else media.result.stored.state
            heard.durable = state == Stored.STATE_DURABLE
        except (grpc.aio.AioRpcError, ConnectionError) as error:
            heard.outcome, heard.problem = "failed", _problem(error)
        finally:
            heard.ended = heard.ended or time.monotonic()
        return heard

    async def all(self, wishes: Iterable[Wish], *gateways: str, stored: bool = False) -> list[Heard]:
        """One after the other, so that each has the servers for itself."""
        return [await self.ask(wish, *gateways, stored=stored) for wish in wishes]

    async def at_once(self, wishes: Iterable[Wish], *gateways: str, stored: bool = False) -> list[Heard]:
        return await asyncio.gather(*(self.ask(wish, *gateways, stored=stored) for wish in wishes))

    def _note(self, heard: Heard, media: Media) -> None:
        report = media.report
        heard.outcome = _OUTCOMES.get(report.outcome, "failed")
        heard.tier, heard.address = _TIERS.get(report.tier, ""), report.address
        heard.lookups = {
            _TIERS.get(each.tier, ""): pb.LookupOutcome.Name(each.outcome).removeprefix("LOOKUP_OUTCOME_").lower()
            for each in report.lookups
        }
        heard.digest, heard.wrong = self.oracle.judge(heard.wish, media)


def _problem(error: Exception) -> Problem:
    if isinstance(error, grpc.RpcError):
        return explain_error(error)
    return Problem(grpc.StatusCode.UNAVAILABLE, "", None, str(error), None)


class Load:
    """Callers who ask for the same few wishes in turn, for as long as the block lasts."""

    def __init__(
        self,
        callers: Callers,
        wishes: Sequence[Wish],
        doors: Sequence[Sequence[str]],
        *,
        clients: int,
        pause: float = 0.0,
    ) -> None:
        self._callers = callers
        self._wishes = wishes
        self._doors = doors
        self._clients = clients
        self._pause = pause  # seconds between an answer and the next question of the same caller
        self._tasks: list[asyncio.Task[None]] = []
        self._over = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._go_on(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _go_on(self, number: int) -> None:
        while not self._over:
            wish, door = self._wishes[number % len(self._wishes)], self._doors[number % len(self._doors)]
            await self._callers.ask(wish, *door)
            await asyncio.sleep(self._pause)
            number += 1
