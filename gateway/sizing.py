"""Sizing: how many bytes of each memory a traffic needs, and which settings say so. Arithmetic and nothing else:
`recorded.py` finds what a deployment knows of its traffic.

Everything rests on one law (Little's): of what comes at some rate and stays for some time, rate times time is there
at once. An entry stays from its first request to its last, and for its TTL after that. Chance makes it more at times:
three standard deviations of as many independent arrivals are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, sqrt
from typing import Literal, NamedTuple, TypeAlias

from cache.gc import MARGIN
from cache.redis import MAX_PAYLOAD
from cache.settings import MIB
from cache.simulate import OVERHEAD

Unit: TypeAlias = Literal["/s", "/h", "share", "bytes", "s", "h", ""]

HOUR = 3600.0
PROCESS = 120 * MIB  # of a gateway that has just started: the interpreter, its libraries, its code
RECORD = 2048  # bytes of a record at most, but for an output that lies in it
OUTPUT = RECORD + 2 * OVERHEAD  # what an output takes besides its bytes: its record, and two names in a store
OUTPUTS = 3  # of a generation that are stored: the text's encoding, final latents, the file
# What is assumed is true of such traffic; of the others nobody knows better.
TYPICAL: Mapping[str, frozenset[str]] = {
    "spoken lines": frozenset({"repeated"}),
    "videos": frozenset(
        {
            *("encodings", "result_bytes", "largest_bytes", "latents_bytes", "encoding_bytes", "largest_encoding"),
            "device_seconds",
        }
    ),
}


class Source(StrEnum):
    """Where a figure comes from; the earlier one counts."""

    GIVEN = "given"
    RECORDED = "recorded"
    DESCRIBED = "described"
    CONFIGURED = "configured"
    ASSUMED = "assumed"


class Figure(NamedTuple):
    value: float
    source: Source
    where: str = ""  # it was found


class Asked(NamedTuple):
    """A figure that sizing asks for, and what is taken for it where nobody knows better."""

    assumed: float
    unit: Unit
    text: str


FIGURES: Mapping[str, Asked] = {
    "rate": Asked(1.0, "/s", "Requests, in the busiest hour."),
    "repeated": Asked(0.35, "share", "Of requests, those for a result that is stored."),
    "again": Asked(0.2, "share", "Of results, those that are asked for more than once."),
    "span": Asked(1800.0, "s", "From the first to the last request for one of these."),
    "pictures": Asked(100.0, "/h", "Pictures and voices that were not there before."),
    "encodings": Asked(0.0, "/h", "Encodings of pictures, voices and texts that were not there before."),
    "session": Asked(900.0, "s", "From the first to the last use of such an encoding."),
    "result_bytes": Asked(512 * 1024, "bytes", "Of a finished file."),
    "largest_bytes": Asked(4 * MIB, "bytes", "Of the largest one."),
    "latents_bytes": Asked(512 * 1024, "bytes", "Of the final latents that a file is made of."),
    "encoding_bytes": Asked(512 * 1024, "bytes", "Of an encoding; Wan's of a picture at 480p are 4.6 MiB."),
    "largest_encoding": Asked(4.6 * MIB, "bytes", "Of the largest one."),
    "device_seconds": Asked(30.0, "s", "Of a device, for one generation."),
    "result_ttl": Asked(2 * HOUR, "s", "Without access, after which a result is gone."),
    "encoding_ttl": Asked(HOUR / 2, "s", "Likewise, of an encoding."),
    "gc_every": Asked(24.0, "h", "Between two runs of `reprise gc`."),
    "workers": Asked(1.0, "", "Workers."),
}


@dataclass(frozen=True)
class Bounds:
    """What the configuration says besides."""

    l1_share: float = 0.25  # of L1's bytes that one entry may take
    pool_share: float = 0.25  # likewise, of a pool's
    beside: int = 0  # bytes that a gateway may hold for other ends than L1


class Setting(NamedTuple):
    file: Literal["reprise.yaml", "redis.conf"]
    name: str
    value: int


@dataclass(frozen=True)
class Need:
    """What one memory must have. `of` says how many of it there are."""

    tier: str
    of: Literal["each gateway", "each worker", "all together"]
    holds: str
    bytes: int
    formula: str  # in words
    settings: tuple[Setting, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Devices:
    """Devices that are busy, on average."""

    busy: float
    without: float  # a cache


@dataclass(frozen=True)
class Sized:
    needs: tuple[Need, ...]
    devices: Devices


@dataclass(frozen=True)
class Traffic:
    """Figures by name; what is not known is assumed."""

    known: Mapping[str, Figure] = field(default_factory=dict)

    def figure(self, name: str) -> Figure:
        if name in self.known:
            return self.known[name]
        if name == "encodings":  # every new picture has one, and so has the text of every generation
            return Figure(
                self["pictures"] + HOUR * self.new, Source.ASSUMED, "pictures, and a text for each generation"
            )
        return Figure(FIGURES[name].assumed, Source.ASSUMED)

    def __getitem__(self, name: str) -> float:
        return self.figure(name).value

    @property
    def new(self) -> float:
        """Generations per second."""
        return self["rate"] * (1 - self["repeated"])


def best(given: Mapping[str, Figure], *found: Mapping[str, Figure]) -> Traffic:
    """What is given counts, then the first of several accounts of the same traffic.

    Encodings recorded in one traffic say nothing of another, which is given: they are worked out.
    """
    known: dict[str, Figure] = {}
    for each in reversed(found):
        known.update(each)
    if given.keys() & {"rate", "repeated", "pictures"}:
        known.pop("encodings", None)
    return Traffic({**known, **given})


def size(traffic: Traffic, bounds: Bounds) -> Sized:
    memory = _memory(traffic, bounds)
    pool = _pool(traffic, bounds)
    needs = (memory, _process(memory, bounds), _redis(traffic), _objects(traffic), pool, _host_pool(traffic, pool))
    seconds = traffic["device_seconds"]
    return Sized(needs, Devices(traffic.new * seconds, traffic["rate"] * seconds))


def at_once(mean: float) -> int:
    """How many there must be room for, where so many are there on average."""
    return ceil(mean + 3 * sqrt(mean))


def _memory(traffic: Traffic, bounds: Bounds) -> Need:
    count = at_once(traffic.new * traffic["again"] * (traffic["result_ttl"] + traffic["span"]))
    room = count * (traffic["result_bytes"] + OVERHEAD)
    least = (max(traffic["largest_bytes"], traffic["result_bytes"]) + OVERHEAD) / bounds.l1_share
    needed = _whole_mib(max(room, least))
    return Need(
        "L1",
        "each gateway",
        "results that are asked for again",
        needed,
        f"{count:,} at once (new per second x share asked again x (TTL + span)), each result_bytes; "
        f"at least largest_bytes / cache.l1.max_share",
        (
            Setting("reprise.yaml", "cache.l1.max_bytes", needed),
            Setting("reprise.yaml", "cache.l1.max_entries", max(count, 1)),
        ),
    )


def _process(memory: Need, bounds: Bounds) -> Need:
    return Need(
        "RAM",
        "each gateway",
        "L1, and all that the process may hold besides",
        memory.bytes + bounds.beside + PROCESS,
        "L1 + write_behind.max_bytes + linger_bytes + max_unstored_bytes + max_departing_bytes + max_pixel_bytes + "
        f"max_url_bytes + similarity.max_bytes + {PROCESS // MIB} MiB of the process itself",
        note="the memory limit of its container or unit, a fifth above it: L1 gives way at 85 %",
    )


def _redis(traffic: Traffic) -> Need:
    results, encodings = _stored(traffic)
    file, latents, encoding = (_if_small(traffic[name]) for name in ("result_bytes", "latents_bytes", "encoding_bytes"))
    room = results * (file + latents + OUTPUTS * OUTPUT) + encodings * (encoding + OUTPUT)
    return Need(
        "L2 Redis",
        "all together",
        f"{results:,} results with latents, {encodings:,} encodings; of larger ones than "
        f"{MAX_PAYLOAD:,} bytes the records alone",
        needed := _whole_mib(room),
        f"results (new per second x (TTL + share asked again x span)) x (result_bytes + latents_bytes) + encodings "
        f"(new per hour x (TTL + session)) x encoding_bytes + {OUTPUT:,} for each output",
        (Setting("redis.conf", "maxmemory", needed),),
        note="the machine needs up to twice that while a snapshot is written",
    )


def _objects(traffic: Traffic) -> Need:
    longer = traffic["gc_every"] * HOUR + MARGIN
    results, encodings = _stored(traffic, longer)
    room = results * (traffic["result_bytes"] + traffic["latents_bytes"] + OUTPUTS * RECORD)
    room += encodings * (traffic["encoding_bytes"] + RECORD)
    return Need(
        "L3 S3",
        "all together",
        f"everything: {results:,} results with latents, {encodings:,} encodings",
        _whole_mib(room),
        "as L2, of any size, and until `reprise gc` has come by: gc_every and its margin longer",
        note="space of the bucket that cache.l3.url names",
    )


def _pool(traffic: Traffic, bounds: Bounds) -> Need:
    count = _in_use(traffic)
    least = max(traffic["largest_encoding"], traffic["encoding_bytes"]) / bounds.pool_share
    needed = _whole_mib(max(count * traffic["encoding_bytes"], least))
    return Need(
        "VRAM hot pool",
        "each worker",
        "encodings in use",
        needed,
        f"{count:,} at once (new per hour x session / workers), each encoding_bytes; at least largest_encoding / "
        "worker.pool_share",
        (
            Setting("reprise.yaml", "worker.pool_bytes", needed),
            Setting("reprise.yaml", "worker.pool_entries", max(count, 1)),
        ),
        note="beside the weights and what a run needs: `reprise doctor` looks",
    )


def _host_pool(traffic: Traffic, pool: Need) -> Need:
    _, encodings = _stored(traffic)
    count = max(ceil(encodings / traffic["workers"]) - _in_use(traffic), 0)
    needed = _whole_mib(count * traffic["encoding_bytes"])
    return Need(
        "host pool",
        "each worker",
        "encodings that may come back into use",
        needed,
        f"{count:,}: those that live (new per hour x (TTL + session) / workers), less those in the hot pool, each "
        "encoding_bytes",
        (Setting("reprise.yaml", "worker.host_pool_bytes", needed),),
    )


def _stored(traffic: Traffic, longer: float = 0.0) -> tuple[int, int]:
    """Results and encodings that are there at once, if they stay for so many seconds `longer`."""
    again = traffic["again"] * traffic["span"]
    results = traffic.new * (traffic["result_ttl"] + again + longer)
    encodings = traffic["encodings"] / HOUR * (traffic["encoding_ttl"] + traffic["session"] + longer)
    return at_once(results), at_once(encodings)


def _in_use(traffic: Traffic) -> int:
    """Encodings, on one worker."""
    return at_once(traffic["encodings"] / HOUR * traffic["session"] / traffic["workers"])


def _if_small(size: float) -> float:
    return size if size <= MAX_PAYLOAD else 0.0


def _whole_mib(size: float) -> int:
    return ceil(size / MIB) * MIB
