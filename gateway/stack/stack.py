"""The life of a stack: up, down, and one part at a time; remembered in `<data>/stack.json`.

Every verb holds the data folder's lock, so that two commands never change one stack at once. The file is written
after each start, before readiness is awaited: whatever happens to us, `down` finds what was started.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from gateway.stack.parts import Part, Running, StackError, await_ready, end, launch, prepare, wait_until
from gateway.stack.ready import CHECKS

_LAST_WORD = 10.0  # seconds that `down` waits for another command to finish

Watch = Callable[[str, str, float], None]
"""Told of progress as (part, what is happening, seconds since that began); called often."""


class AlreadyRunning(StackError):
    """The stack of this data folder is up, or a part of it is; carries what runs."""

    def __init__(self, data: Path, parts: Sequence[Running]) -> None:
        self.running = [each for each in parts if each.alive()]
        listing = "\n".join(_told(each, alive=each in self.running) for each in parts)
        ended = len(self.running) < len(parts)
        advice = "\nreprise down, then reprise up, starts all of it anew" if ended else ""
        super().__init__(f"the stack in {data} is already up{', but for what has ended' * ended}:\n{listing}{advice}")


class UnknownPart(StackError):
    """No part of this name belongs to the stack."""


class Stack:
    """The parts that run for one data folder. Synchronous: it serves commands and tests, not requests."""

    def __init__(self, data: Path, watch: Watch = lambda part, what, seconds: None) -> None:
        self.data = data.absolute()
        self._state = self.data / "stack.json"
        self._watch = watch

    def running(self) -> list[Running]:
        """The parts that run now, in the order of their start."""
        return [each for each in self._remembered() if each.alive()]

    def part(self, name: str) -> Running:
        """The part of this name as it was last started, alive or not. Raises UnknownPart."""
        for each in self._remembered():
            if each.part.name == name:
                return each
        raise UnknownPart(f"no part {name!r} in {self._state}")

    def refuse_twice(self) -> None:
        """Raises AlreadyRunning when any part runs: for callers who have to prepare something before `up`."""
        if self.running():
            raise AlreadyRunning(self.data, self._remembered())

    def up(self, parts: Sequence[Part]) -> list[Running]:
        """Start all parts in order, each ready before the next. Raises AlreadyRunning, or PartFailed after having
        ended what was started."""
        with self._locked():
            self.refuse_twice()
            started: list[Running] = []
            try:
                for part in parts:
                    started.append(self._start(part, started))
            except BaseException:
                self._end(started)
                raise
            return started

    def down(self) -> list[str]:
        """End every part that runs, the last started first. Returns their names."""
        with self._locked(patience=_LAST_WORD):
            running = self.running()
            self._end(running)
            return [each.part.name for each in reversed(running)]

    def start(self, name: str) -> Running:
        """Start one part again as it was configured; one that runs is left alone. Raises UnknownPart, PartFailed."""
        with self._locked():
            return self._again(name)

    def stop(self, name: str) -> None:
        """End one part and keep its place. Raises UnknownPart."""
        with self._locked():
            self._stop(name)

    def restart(self, name: str) -> Running:
        """Stop, then start. Raises UnknownPart, PartFailed."""
        with self._locked():
            self._stop(name)
            return self._again(name)

    def _again(self, name: str) -> Running:
        known = self.part(name)
        if known.alive():
            return known
        others = self._remembered()
        place = [each.part.name for each in others].index(name)
        return self._start(known.part, others[:place], after=others[place + 1 :])

    def _stop(self, name: str) -> None:
        known = self.part(name)
        self._watch(name, "stopping", 0.0)
        end(known)

    def _start(self, part: Part, before: Sequence[Running], after: Sequence[Running] = ()) -> Running:
        _turn_over(part.log)
        if part.prepare:
            prepare(part, lambda seconds: self._watch(part.name, "preparing", seconds))
        self._watch(part.name, "starting", 0.0)
        running = launch(part)
        try:
            self._remember([*before, running, *after])
            took = await_ready(running, CHECKS[part.ready], lambda seconds: self._watch(part.name, "starting", seconds))
        except BaseException:
            end(running)
            raise
        self._watch(part.name, "ready", took)
        return running

    def _end(self, running: Sequence[Running]) -> None:
        for each in reversed(running):
            self._watch(each.part.name, "stopping", 0.0)
            end(each)
        self._state.unlink(missing_ok=True)

    def _remember(self, running: Sequence[Running]) -> None:
        text = json.dumps({"data": str(self.data), "parts": [_plain(each) for each in running]}, indent=1)
        fresh = self._state.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self._state)

    def _remembered(self) -> list[Running]:
        try:
            state = json.loads(self._state.read_text())
        except FileNotFoundError:
            return []
        return [_running(each) for each in state["parts"]]

    @contextmanager
    def _locked(self, patience: float = 0.0) -> Iterator[None]:
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds keys and everybody's media
        with (self.data / "stack.lock").open("ab") as lock:
            if not wait_until(lambda: _acquired(lock), patience):
                raise StackError(f"another command is changing the stack in {self.data}")
            yield


def _told(each: Running, *, alive: bool) -> str:
    return f"  {each.part.name}  " + (f"pid {each.pid}  {each.part.address}" if alive else f"ended: {each.part.log}")


def _acquired(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _turn_over(log: Path) -> None:
    """Begin an empty log and keep the one before it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        os.replace(log, log.with_suffix(".log.1"))


def _plain(running: Running) -> dict[str, Any]:
    part = asdict(running.part)
    return {
        **part,
        "log": str(part["log"]),
        "folder": str(part["folder"]),
        "pid": running.pid,
        "created": running.created,
    }


def _running(plain: dict[str, Any]) -> Running:
    fields = dict(plain)
    pid, created = fields.pop("pid"), fields.pop("created")
    part = Part(
        **{
            **fields,
            "command": tuple(fields["command"]),
            "prepare": tuple(fields["prepare"]),
            "leaves": tuple(fields["leaves"]),
            "log": Path(fields["log"]),
            "folder": Path(fields["folder"]),
        }
    )
    return Running(part, pid, created)
