"""One part of a stack: a server process as plain data, and the verbs of its life: launch, await, end.

A process is known by its pid and its start time together, because a pid alone may by now belong to somebody else.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_POLL = 0.05
_CLOCK_STEP = 2.0  # start times are derived from the wall clock, which may be stepped a little between two readings
_children: dict[int, "subprocess.Popen[bytes]"] = {}  # those this process launched; kept so that they are reaped


class StackError(Exception):
    """Something about the local stack that its user can act on; the message says what."""


class NotReady(Exception):
    """A part does not serve yet; the message says what is missing."""


class PartFailed(StackError):
    """A part ended, or did not become ready in time; carries the tail of its log."""

    def __init__(self, name: str, what: str, log: Path) -> None:
        self.part = name
        self.log = log
        self.tail = tail(log)
        super().__init__(f"{name} {what}\nThe end of {log}:\n{self.tail}")


@dataclass(frozen=True)
class Part:
    """A server process to run. Plain data, so that a later process can start it again from `stack.json`."""

    name: str
    command: tuple[str, ...]
    address: str
    ready: str
    """The name of its readiness check in `ready.CHECKS`."""
    log: Path
    folder: Path
    """Its working folder, which exists before it starts."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set in addition to the caller's own environment."""
    prepare: tuple[str, ...] = ()
    """A command that must succeed before the server starts, such as building a model."""
    patience: float = 60.0
    """Seconds until it must be ready."""
    grace: float = 10.0
    """Seconds between the request to end and the kill."""
    leaves: tuple[str, ...] = ()
    """Files it leaves behind outside its folder, to be removed when it has ended."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Running:
    """A part and the process that runs it."""

    part: Part
    pid: int
    created: float

    def alive(self) -> bool:
        """Whether this very process still runs: not ended, not a zombie, not another one under the same pid."""
        return _process(self) is not None

    @property
    def exit_status(self) -> int | None:
        """What it ended with, negative for a signal; None while it runs, or if another process launched it."""
        child = _children.get(self.pid)
        return None if child is None else child.returncode

    def pause(self) -> None:
        """Stop it from running without ending it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        wait_until(lambda: not self.alive(), 10.0)

    def _signal(self, number: int) -> None:
        if process := _process(self):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def launch(part: Part) -> Running:
    """Start the part in a session of its own, so that it outlives us and our terminal. Raises PartFailed."""
    part.log.parent.mkdir(parents=True, exist_ok=True)
    with part.log.open("ab") as log:
        try:
            child = subprocess.Popen(  # noqa: S603 - the commands are composed by this package
                part.command,
                cwd=part.folder,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise PartFailed(part.name, f"could not be started: {error}", part.log) from error
    _children[child.pid] = child
    return Running(part, child.pid, psutil.Process(child.pid).create_time())


def await_ready(running: Running, check: Callable[[Part], None], tick: Callable[[float], None]) -> float:
    """Wait until the part serves; returns the seconds it took. `tick` is called with the seconds so far.

    Raises PartFailed when it ends early or its patience runs out.
    """
    started, part = time.monotonic(), running.part
    while True:
        took = time.monotonic() - started
        if not running.alive():
            raise PartFailed(part.name, f"ended after {took:.1f} s, before it was ready", part.log)
        try:
            check(part)
        except NotReady as reason:
            if took > part.patience:
                raise PartFailed(part.name, f"was not ready after {took:.0f} s: {reason}", part.log) from None
        else:
            return took
        tick(took)
        time.sleep(_POLL)


def prepare(part: Part, tick: Callable[[float], None]) -> None:
    """Run what must be done before the part can start. Raises PartFailed with the log of the preparation."""
    log = part.log.with_name(f"{part.name}.prepare.log")
    preparation = Part(f"{part.name} (preparation)", part.prepare, part.address, "", log, part.folder, part.environment)
    started, running = time.monotonic(), launch(preparation)
    try:
        while running.alive():
            tick(time.monotonic() - started)
            time.sleep(_POLL)
    finally:
        end(running)
    if code := _children[running.pid].returncode:
        raise PartFailed(preparation.name, f"failed with exit status {code}", log)


def end(running: Running) -> None:
    """Ask the process to end, wait its grace, then kill it and whatever it started. Another's process is left alone."""
    if process := _process(running):
        _end_family(running, process)
    for left in running.part.leaves:
        Path(left).unlink(missing_ok=True)


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when it did not within the given time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def tail(log: Path, lines: int = 30) -> str:
    """The last lines of a log file, or a note that there are none."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def _end_family(running: Running, process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a paused process would not see the request
        wait_until(lambda: not running.alive(), running.part.grace)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()  # psutil refuses when the pid has been given to another process
    wait_until(lambda: not running.alive(), 10.0)


def _process(running: Running) -> psutil.Process | None:
    child = _children.get(running.pid)
    if child is not None and child.poll() is not None:
        return None
    try:
        process = psutil.Process(running.pid)
        same = abs(process.create_time() - running.created) < _CLOCK_STEP
        return process if same and (child is not None or not _ended(process)) else None
    except psutil.NoSuchProcess:
        return None


def _ended(process: psutil.Process) -> bool:
    """Nobody has asked for its exit status, but all its threads have ended, so that its ports and files are free."""
    return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and process.num_threads() <= 1
