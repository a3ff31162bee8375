"""What is told of a generation: its steps as they happen, and in the end where the answer came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gateway.cli.options import STANDARD_OUTPUT
from gateway.cli.reports import nearest_line, reason_word, tier_word
from gateway.client import Media
from gateway.status import Problem
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import GenerationEvent, Stored

_WIDTH = 2  # bytes of a sample


class Live:
    """A bar per stage on a terminal, a line per change elsewhere."""

    def __init__(self, out: Console) -> None:
        self.name = ""  # of the generation, once it has one
        self._console = out
        self._bars: dict[str, TaskID] = {}
        self._said: set[tuple[str, int]] = set()  # stages, and for which part of a text
        self._sample_rate = 0
        self._progress = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, event: GenerationEvent) -> None:
        if event.HasField("accepted"):
            self.name = event.accepted.name
            self._console.print(f"generation {event.accepted.name}")
        if event.HasField("queued"):
            self._say(f"queued, {event.queued.position} before it")
        if event.HasField("progress"):
            self._advance(event)
        if event.HasField("sound"):
            self._sample_rate = event.sound.sample_rate
        if event.HasField("samples"):
            self._hear(event)

    def retry(self, problem: Problem, seconds: float) -> None:
        """The request is about to be made again: what was seen of it does not count any more."""
        self.name = ""
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        self._said.clear()
        self._console.print(f"{problem.reason or 'the connection broke'}: asking again in {seconds:.1f} s")

    def _advance(self, event: GenerationEvent) -> None:
        progress = event.progress
        # Of a text in parts a bar counts all its parts' steps, as if each had as many as this one.
        parts, done = max(1, progress.parts), progress.steps * max(0, progress.part - 1) + progress.step
        if (progress.stage, progress.part) not in self._said:
            self._said.add((progress.stage, progress.part))
            which = f", sentence {progress.part} of {parts}" if progress.part else ""
            self._say(f"{progress.stage}{which}, {progress.steps} steps")
        if progress.stage not in self._bars:
            self._bars[progress.stage] = self._progress.add_task(progress.stage)
        self._progress.update(self._bars[progress.stage], completed=done, total=progress.steps * parts)

    def _hear(self, event: GenerationEvent) -> None:
        if not event.samples.offset:
            self._say("first audio")
        seconds = (event.samples.offset + len(event.samples.pcm) / _WIDTH) / max(1, self._sample_rate)
        if "audio" not in self._bars:
            self._bars["audio"] = self._progress.add_task("audio", total=None)
        self._progress.update(self._bars["audio"], description=f"{seconds:.2f} s of audio")

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line)


def tell(out: Console, media: Media, stored: Stored.State, file: Path | None) -> None:
    report = media.report
    outcome = pb.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower()
    tier = f" from {tier_word(report.tier)}" if report.outcome == pb.OUTCOME_HIT else ""
    where = "standard output" if file == STANDARD_OUTPUT else file or "not written"
    about = escape(f"{where} ({media.result.artifact.size:,} bytes, {media.result.media_type})")
    out.print(f"[bold]{outcome}{tier}[/]: {about}")
    if media.result.first_audio_seconds:
        out.print(f"first audio after {media.result.first_audio_seconds:.3f} s")
    for stage in report.stages:
        if (line := _told_of(stage)) is not None:
            out.print(f"  {stage.stage:<16} {line}")
    for each in report.similar:
        out.print(f"  not exact: a near-duplicate of the {each.media} stood in, {each.distance} of 256 bits away")
    if report.folded:
        out.print(f"  read with other {', '.join(report.folded)} than it was written with")
    out.print(
        f"device time: {report.device_seconds_spent:.3f} s spent, {report.device_seconds_saved:.3f} s saved; "
        f"seed {media.result.seed}; stored: {Stored.State.Name(stored).removeprefix('STATE_').lower()}"
    )
    if (line := nearest_line(report)) is not None:
        out.print(line)
    if media.cache_status:
        out.print(f"cache-status: {media.cache_status}")
    if media.url:
        out.print(f"url, good until {media.result.url_expires_at.ToDatetime():%H:%M:%S} UTC: {media.url}", markup=False)
    out.print(f"address {report.address}", soft_wrap=True)
    if media.result.trace_id:
        out.print(f"trace {media.result.trace_id}")
    if media.result.random_weights:
        what = "video" if media.result.media_type.startswith("video/") else "speech"
        out.print(f"The model has random weights, made for trying things out: the {what} means nothing.")


def _told_of(stage: pb.StageReport) -> str | None:
    """What became of a stage; None: nothing."""
    ran = [part for part in stage.parts if part.outcome == pb.STAGE_OUTCOME_RUN]
    reused = [part for part in stage.parts if part.outcome == pb.STAGE_OUTCOME_REUSED]
    if stage.outcome == pb.STAGE_OUTCOME_REUSED:
        from_where = f"reused from {tier_word(stage.tier)}" if stage.tier else "reused"
        return f"{from_where}{_sentences(len(reused), stage)}, {stage.device_seconds:.3f} s saved"
    if stage.outcome != pb.STAGE_OUTCOME_RUN:
        return None
    why = f"; {reason_word(stage.reason)}" if stage.reason else ""
    line = f"run{_sentences(len(ran), stage)}, {stage.device_seconds:.3f} s{why}"
    return f"{line}; {len(reused)} reused, {_seconds(reused):.3f} s saved" if reused else line


def _sentences(count: int, stage: pb.StageReport) -> str:
    return f" for {count} of {len(stage.parts)} sentences" if stage.parts else ""


def _seconds(parts: Sequence[pb.PartReport]) -> float:
    return sum(part.device_seconds for part in parts)
