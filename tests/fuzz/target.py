"""A target: bytes in, and what is promised of them.

An input is taken, or refused by the error that the code under test promises. Anything else is a finding: another
exception, an assertion of the target's that does not hold (such as a round trip), a crash, too much time or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

SLOWEST = 1.0  # seconds of processor time that an input of a few thousand bytes may take
MOST_MEMORY = 2048  # MiB that a process may hold while it tries inputs

Take = Callable[[bytes], bool]  # whether the input is taken; whatever it raises is a finding


@dataclass(frozen=True, slots=True)
class Target:
    """`take` must not depend on earlier inputs; seeds are small, valid inputs."""

    name: str
    take: Take
    seeds: Callable[[], Sequence[bytes]]
    longest: int = 4096  # bytes of an input


# Modules with targets, and the rooms whose branches guide their inputs. A module is imported by its process alone,
# after the instrumentation has begun.
MODULES: dict[str, str] = {
    "codec": "stored",
    "envelope": "stored",
    "record": "stored",
    "history": "stored",
    "plain": "stored",
    "description": "stored",
    "orders": "stored",
    "accesses": "stored",
    "tensors": "tensors",
    "picture": "files",
    "sound": "files",
    "animate": "requests",
    "speak": "requests",
    "caller": "requests",
}
GUIDING = ("cache", "gateway", "inference.tensors", "inference.forms")


def load(name: str) -> Target:
    targets: Sequence[Target] = import_module(f"tests.fuzz.{MODULES.get(name, name)}").TARGETS
    return next(target for target in targets if target.name == name)
