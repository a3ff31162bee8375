"""Chain: stages that run together on the device, each of them fed with the pieces of the one that it follows.

So speech can be heard before all of it is made: as soon as the first stage has made a piece, the second makes sound of
it, and the third what callers hear. What they give in the end is what they would have given one after the other: a
follower's output depends on what it was fed altogether and not on how that was cut. Where the output that the first one
follows was found, it is fed that as a whole.

    latents   ■  ■  ■  ■  ■ ──> output, stored
    waveform   └─■  └──■  └■ ─> its pieces joined, stored
    pace         └─■   └─■ └■ > joined likewise, and each told while it is new
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from PIL import Image

from cache.description import Stage
from cache.parts import whole_name
from inference.device import Device
from inference.models.base import Artifact, Call, Following, Output, Streamed, Tensors
from inference.plan import Plan, call_for
from inference.pool import compact


def chained(run: Sequence[Stage]) -> list[tuple[Stage, ...]]:
    """The stages to run, those together that can run together: a follower with what it follows, unless it also reads
    what will not be there yet.
    """
    chains: list[list[Stage]] = []
    where: dict[str, int] = {}
    for stage in run:
        at = where.get(stage.follows, len(chains))
        others = [where[name] for name in stage.upstream.values() if name != stage.follows and name in where]
        if at == len(chains) or any(other >= at for other in others):
            at = len(chains)
            chains.append([])
        chains[at].append(stage)
        where[stage.name] = at
    return list(map(tuple, chains))


@dataclass(frozen=True)
class Made:
    """What a stage gave, on the device if it is tensors."""

    output: Output
    weight: int  # bytes of the device's memory
    types: tuple[str, ...]  # of the numbers it was computed with and from


class Listener(Protocol):
    """Who hears of a go while it lasts. Called in the device's thread."""

    def go_on(self) -> None:
        """Raises Cancelled once nobody wants what is being made."""
        ...

    def step(self, stage: Stage, done: int, of: int) -> None:
        """Raises Cancelled likewise."""
        ...

    def preview(self, stage: Stage, image: Image.Image) -> None: ...

    def live(self, stage: Stage, piece: Tensors) -> None:
        """A piece of a stage that is heard live."""
        ...


class Watch:
    """Tells apart whose the device's seconds are: of the stage that was entered last and not left yet."""

    def __init__(self, device: Device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # by stage; those of a follower are not its leader's too
        self.at = ""  # the stage at work; after an error the one in which it happened
        self._device = device
        self._clock = clock
        self._since = clock()

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        before = self.at
        self._turn_to(stage.name)
        yield
        self._turn_to(before)

    def _turn_to(self, name: str) -> None:
        self._device.finish()  # what was only queued is not done, and would count for another stage
        now = self._clock()
        self.seconds[self.at] += now - self._since
        self._since, self.at = now, name


class Go:
    """One go of a chain, from its first stage's beginning to its last one's end. `outputs` are those that it reads.

    Belongs to the device's thread. A go that failed is of no use: begin another one.
    """

    def __init__(
        self, plan: Plan, chain: Sequence[Stage], outputs: Mapping[str, Tensors], watch: Watch, listener: Listener
    ) -> None:
        self._plan = plan
        self._chain = chain
        self._outputs = outputs
        self._watch = watch
        self._listener = listener
        self._followed = {stage.follows for stage in chain}
        self._calls: dict[str, Call] = {}
        self._following: dict[str, Following] = {}
        self._pieces: dict[str, list[Tensors]] = {stage.name: [] for stage in chain}

    def run(self) -> list[Made]:
        """What every stage of the chain gave. Raises Cancelled, what the model raises, and ValueError or TypeError for
        outputs that are not what the contract says.
        """
        head = self._chain[0]
        made: dict[str, Output] = {}
        with self._watch.of(head):
            for follower in self._chain if head.follows else self._chain[1:]:
                self._begin(follower)
            if head.follows:
                self._feed(head, self._outputs[head.follows])
                self._finish(head)
            else:
                made[head.name] = self._lead(head)
            self._end(head)
            made |= {name: _joined(pieces) for name, pieces in self._pieces.items() if name not in made}
            return [self._made(stage, made) for stage in self._chain]

    def _begin(self, follower: Stage) -> None:
        model = cast("Streamed", self._plan.model)
        with self._watch.of(follower):
            call = self._call(follower, fed=True)
            self._following[follower.name] = model.follow(whole_name(follower.name), call)

    def _lead(self, stage: Stage) -> Output:
        heard = stage.live or stage.name in self._followed
        call = self._call(stage, piece=lambda piece: self._give(stage, piece) if heard else None)
        output = self._plan.model.run(whole_name(stage.name), call)
        if not heard or isinstance(output, Artifact):
            return output
        if not self._pieces[stage.name]:
            self._give(stage, output)
        elif not _same(_joined(self._pieces[stage.name]), output):
            raise ValueError("a stage that is followed told other pieces than it gave")
        self._pieces[stage.name].clear()
        return output

    def _give(self, stage: Stage, piece: Tensors) -> None:
        """A stage has made a piece."""
        self._listener.go_on()
        self._pieces[stage.name].append(piece)
        if stage.live:
            self._listener.live(stage, piece)
        for follower in self._followers(stage):
            self._feed(follower, piece)

    def _feed(self, follower: Stage, piece: Tensors) -> None:
        with self._watch.of(follower):
            for own in self._following[follower.name].feed(piece):
                self._give(follower, own)

    def _finish(self, follower: Stage) -> None:
        """Nothing more comes for this one."""
        with self._watch.of(follower):
            for own in self._following[follower.name].end():
                self._give(follower, own)

    def _end(self, stage: Stage) -> None:
        """Nothing more comes of this one."""
        for follower in self._followers(stage):
            self._finish(follower)
            self._end(follower)

    def _followers(self, stage: Stage) -> list[Stage]:
        return [other for other in self._chain if other.follows == stage.name]

    def _call(self, stage: Stage, *, fed: bool = False, piece: Callable[[Tensors], None] = lambda piece: None) -> Call:
        self._calls[stage.name] = call = call_for(
            self._plan,
            stage,
            self._outputs,
            step=lambda done, of: self._listener.step(stage, done, of),
            preview=lambda image: self._listener.preview(stage, image),
            piece=piece,
            fed=fed,
        )
        return call

    def _made(self, stage: Stage, made: Mapping[str, Output]) -> Made:
        """An output as it can be kept: compact, with what is told of it."""
        output, last = made[stage.name], self._plan.description.final.name
        if isinstance(output, Artifact) is not (stage.name == last):
            raise TypeError("the last stage makes an artifact, and no other does")
        fed = made.get(stage.follows) or self._outputs.get(stage.follows) or {}
        read = [tensor for upstream in self._calls[stage.name].upstream.values() for tensor in upstream.values()]
        if isinstance(fed, dict):
            read += fed.values()
        if isinstance(output, Artifact):
            return Made(output, 0, _types(read))
        own, weight = compact(output)
        return Made(own, weight, _types([*read, *own.values()]))


def _joined(pieces: Sequence[Tensors]) -> Tensors:
    if not pieces:
        raise ValueError("a stage that follows gave nothing")
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _types(numbers: Sequence[torch.Tensor]) -> tuple[str, ...]:
    return tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in numbers if tensor.is_floating_point()}))
