"""Chains: stages that follow each other run together, and give what they would give one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from PIL import Image

from cache.description import Scope, Stage
from inference.chain import Go, Made, Watch, chained
from inference.device import HostDevice
from inference.meaning import Meaning, meaning_of, understand
from inference.models.base import Artifact, Call, Cancelled, Following, Output, Tensors
from inference.plan import Plan, read_plan
from tests.inference.speech_fixtures import SAMPLES_PER_FRAME, SpokenModel, ask_speech

TEXT = "One two three"  # nine frames: five pieces of sound


@dataclass
class Ears:
    """Notes what is told, in order, and loses interest on cue."""

    notes: list[tuple[str, int]] = field(default_factory=list)
    heard: list[torch.Tensor] = field(default_factory=list)
    patience: int = 1000  # how often it may be asked whether to go on

    def go_on(self) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise Cancelled

    def step(self, stage: Stage, done: int, of: int) -> None:
        self.go_on()
        self.notes.append((stage.name, done))

    def preview(self, stage: Stage, image: Image.Image) -> None:
        self.notes.append((f"preview of {stage.name}", image.width))

    def live(self, stage: Stage, piece: Tensors) -> None:
        self.notes.append((stage.name, len(piece["pcm"])))
        self.heard.append(piece["pcm"])


@dataclass
class Clock:
    """Time passes when a stage says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A plan of one sentence, and the outputs before it."""

    def __init__(self, model: SpokenModel | None = None) -> None:
        self.model = model or SpokenModel()
        self.plan: Plan = read_plan(ask_speech(self.model.description, TEXT), {"spoken": self.model})
        tokens = next(stage for stage in self.plan.stages if stage.name == "tokens")
        text = understand(self.plan, tokens, {})
        self.meaning: Meaning = meaning_of(self.plan, text.outputs, text.digests, {"tokens": text.order})
        self.outputs: dict[str, Tensors] = {**text.outputs, "prefix": {"prefix": torch.ones(1, 4)}}
        self.watch = Watch(HostDevice())

    def stages(self, *names: str) -> list[Stage]:
        """Of these names, in this order."""
        by_name = {stage.name: stage for stage in self.meaning.stages}
        return [by_name[f"{name}[0]" if name in ("latents", "waveform", "pace") else name] for name in names]

    def go(self, *names: str, ears: Ears | None = None, clock: Callable[[], float] | None = None) -> list[Made]:
        self.watch = Watch(HostDevice(), clock) if clock is not None else Watch(HostDevice())
        go = Go(self.plan, self.stages(*names), self.outputs, self.watch, ears or Ears())
        return go.run()

    def give(self, name: str, *names: str) -> None:
        """Keep what one go gave for the next."""
        for stage, made in zip(names, self.go(*names), strict=True):
            assert not isinstance(made.output, Artifact)
            self.outputs[f"{stage}[0]"] = made.output


def tensor(made: Made) -> torch.Tensor:
    assert not isinstance(made.output, Artifact)
    (own,) = made.output.values()
    return own


# Which stages run together.


def stage(name: str, follows: str = "", *, reads: Sequence[str] = ()) -> Stage:
    upstream = {each: each for each in (follows, *reads) if each}
    return Stage(name=name, kind=name, fingerprint="1", upstream=upstream, follows=follows, scope=Scope.TENANT, ttl=1.0)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ([stage("a"), stage("b", "a"), stage("c", "b")], ["a b c"]),
        ([stage("a"), stage("b"), stage("c", reads=["a", "b"])], ["a", "b", "c"]),
        ([stage("b", "a"), stage("c", "b")], ["b c"]),
        ([stage("a"), stage("b", "a"), stage("a2"), stage("b2", "a2")], ["a b", "a2 b2"]),
        ([stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "c")], ["a b c d"]),
        ([stage("x"), stage("a"), stage("b", "a", reads=["x"])], ["x", "a b"]),
        ([stage("a"), stage("x"), stage("b", "a", reads=["x"])], ["a", "x", "b"]),
        ([stage("a"), stage("x"), stage("b", "a", reads=["x"]), stage("c", "b")], ["a", "x", "b c"]),
        ([stage("a"), stage("b", "a"), stage("c", "b", reads=["a"])], ["a b", "c"]),
        ([stage("a"), stage("b", "a", reads=["z"])], ["a b"]),
        ([], []),
    ],
    ids=[
        "one after the other",
        "nobody follows",
        "what is followed was found",
        "part by part",
        "two follow one",
        "reads what was before",
        "reads what comes between",
        "followed in its turn",
        "reads what is not over",
        "reads what was found",
        "nothing to do",
    ],
)
def test_a_follower_runs_with_what_it_follows(run: list[Stage], expected: list[str]) -> None:
    """Unless it also reads what will only be there later: then it has a go of its own, fed with the whole."""
    assert expected == [" ".join(stage.name for stage in chain) for chain in chained(run)]


# What a go gives.


def test_a_chain_gives_what_its_stages_give_one_after_the_other() -> None:
    """Bit for bit: outputs, weights, and types, the pieces joined."""
    together = Bench().go("latents", "waveform", "pace")
    bench = Bench()
    apart = []
    for name in ("latents", "waveform", "pace"):
        (made,) = bench.go(name)
        assert not isinstance(made.output, Artifact)
        bench.outputs[f"{name}[0]"] = made.output
        apart.append(made)
    assert [(9, 4), (9 * SAMPLES_PER_FRAME,), (9 * SAMPLES_PER_FRAME,)] == [tensor(made).shape for made in together]
    assert all(torch.equal(tensor(one), tensor(other)) for one, other in zip(together, apart, strict=True))
    assert [made.weight for made in together] == [9 * 4 * 4, 27 * 4, 27 * 2] == [made.weight for made in apart]
    assert [made.types for made in together] == [("float32",)] * 3 == [made.types for made in apart]


def test_pieces_are_heard_while_the_first_stage_works() -> None:
    """Every two steps there is sound, and it is told at once; the rest comes at the end."""
    ears = Ears()
    *_, pace = Bench().go("latents", "waveform", "pace", ears=ears)
    steps = [("latents[0]", step) for step in range(1, 10)]
    sound = ("pace[0]", 2 * SAMPLES_PER_FRAME)
    expected = [*steps[:2], sound, *steps[2:4], sound, *steps[4:6], sound, *steps[6:8], sound, steps[8]]
    assert [*expected, ("pace[0]", SAMPLES_PER_FRAME)] == ears.notes
    assert torch.equal(torch.cat(ears.heard), tensor(pace))


def test_what_was_found_is_fed_as_a_whole_and_heard_in_pieces() -> None:
    """A follower whose leader's output is there gives its pieces one by one all the same."""
    bench = Bench()
    bench.give("latents", "latents")
    ears = Ears()
    waveform, pace = bench.go("waveform", "pace", ears=ears)
    assert [len(heard) for heard in ears.heard] == [6, 6, 6, 6, 3]
    whole = Bench().go("latents", "waveform", "pace")
    assert torch.equal(tensor(waveform), tensor(whole[1]))
    assert torch.equal(tensor(pace), tensor(whole[2]))


def test_a_leader_that_says_nothing_is_followed_all_the_same() -> None:
    """What tells no pieces is fed to its followers when it is done."""
    ears = Ears()
    *_, pace = Bench(_Edited(_mute)).go("latents", "waveform", "pace", ears=ears)
    assert [name for name, _ in ears.notes] == ["latents[0]"] * 9 + ["pace[0]"] * 5
    assert torch.equal(tensor(pace), tensor(Bench().go("latents", "waveform", "pace")[2]))


class _Edited(SpokenModel):
    """Its latents are made with another call than it was given, or are changed afterwards."""

    def __init__(
        self,
        call: Callable[[Call], Call] = lambda call: call,
        output: Callable[[Tensors], Tensors] = lambda output: output,
    ) -> None:
        super().__init__()
        self._edit_call, self._edit_output = call, output

    def _latents(self, call: Call) -> Output:
        output = super()._latents(self._edit_call(call))
        assert not isinstance(output, Artifact)
        return self._edit_output(output)


def _mute(call: Call) -> Call:
    return Call(call.parameters, call.media, call.upstream, call.step)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda output: {"latents": output["latents"] + 1}, "told other pieces than it gave"),
        (lambda output: {"latents": output["latents"][:-1]}, "told other pieces than it gave"),
        (lambda output: {**output, "more": output["latents"]}, "told other pieces than it gave"),
    ],
    ids=["other numbers", "fewer", "more tensors"],
)
def test_pieces_that_are_not_the_output_are_a_fault(edit: Callable[[Tensors], Tensors], complaint: str) -> None:
    """Else what is heard now would not be what is heard when the output is reused."""
    with pytest.raises(ValueError, match=complaint):
        Bench(_Edited(output=edit)).go("latents", "waveform", "pace")


class _Silent(SpokenModel):
    """Its waveform never gives anything."""

    def follow(self, stage: str, call: Call) -> Following:
        return _Nothing() if stage == "waveform" else super().follow(stage, call)


class _Nothing:
    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        return iter(())

    def end(self) -> Iterator[Tensors]:
        return iter(())


def test_a_follower_that_gives_nothing_is_a_fault() -> None:
    """There is no output without tensors that could be stored."""
    with pytest.raises(ValueError, match="gave nothing"):
        Bench(_Silent()).go("latents", "waveform")


class _Wrong(SpokenModel):
    """One of its stages gives what it must not."""

    def __init__(self, wrong: str, output: Any) -> None:
        super().__init__()
        self._wrong, self._output = wrong, output

    def run(self, stage: str, call: Call) -> Output:
        output: Output = self._output if stage == self._wrong else super().run(stage, call)
        return output


@pytest.mark.parametrize(
    ("wrong", "output"), [("latents", Artifact(b"file", "audio/test")), ("file", {"pcm": torch.zeros(1)})]
)
def test_only_the_last_stage_gives_a_file(wrong: str, output: Output) -> None:
    """A file from any other, or none from the last, is a fault."""
    bench = Bench(_Wrong(wrong, output))
    bench.outputs["pace[0]"] = {"pcm": torch.zeros(1, dtype=torch.int16)}
    with pytest.raises(TypeError, match="the last stage makes an artifact"):
        bench.go(wrong)


@pytest.mark.parametrize("patience", range(1, 20))
def test_it_can_be_given_up_at_every_step_and_piece(patience: int) -> None:
    """In whatever stage: nothing is given, and not one step more is made."""
    bench, ears = Bench(), Ears(patience=patience)
    with pytest.raises(Cancelled):
        bench.go("latents", "waveform", "pace", ears=ears)
    again = Ears()
    bench.go("latents", "waveform", "pace", ears=again)
    assert ears.notes == again.notes[: len(ears.notes)]
    assert len(ears.notes) < len(again.notes)


# Whose seconds they are.


class _Timed(SpokenModel):
    """Each frame of latents takes 10 seconds, each piece of waveform 3, each of pace a quarter; beginnings take 1."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.frame_trouble = [lambda: self._pass(10.0)] * 9
        self.piece_trouble = [lambda: self._pass(3.0)] * 5

    def follow(self, stage: str, call: Call) -> Following:
        self._pass(1.0)
        following = super().follow(stage, call)
        return _Slow(following, self._pass) if stage == "pace" else following

    def _pass(self, seconds: float) -> None:
        self.clock.now += seconds


class _Slow:
    def __init__(self, following: Following, wait: Callable[[float], None]) -> None:
        self._following, self._wait = following, wait

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        self._wait(0.25)
        yield from self._following.feed(piece)

    def end(self) -> Iterator[Tensors]:
        return self._following.end()


def test_each_stage_has_its_own_seconds() -> None:
    """What a follower does while a leader's piece is handed on is the follower's time and not the leader's too."""
    clock = Clock()
    bench = Bench(_Timed(clock))
    bench.go("latents", "waveform", "pace", clock=clock)
    assert {"latents[0]": 90.0, "waveform[0]": 16.0, "pace[0]": 2.25} == {
        name: seconds for name, seconds in bench.watch.seconds.items() if seconds
    }


def test_a_head_that_follows_has_its_own_seconds_too() -> None:
    """Fed with what was found, it leads; those after it are told apart from it likewise."""
    bench = Bench()
    bench.give("latents", "latents")
    clock = Clock()
    bench.plan = read_plan(ask_speech(bench.model.description, TEXT), {"spoken": _Timed(clock)})
    bench.go("waveform", "pace", clock=clock)
    assert {"waveform[0]": 16.0, "pace[0]": 2.25} == {
        name: seconds for name, seconds in bench.watch.seconds.items() if seconds
    }


@pytest.mark.parametrize(("stage", "at"), [("latents", "latents[0]"), ("waveform", "waveform[0]")])
def test_it_is_known_where_it_went_wrong(stage: str, at: str) -> None:
    """The stage at work when the error came, leader or follower."""
    bench = Bench()
    trouble = bench.model.frame_trouble if stage == "latents" else bench.model.piece_trouble
    trouble.extend([lambda: None, lambda: 1 // 0])
    with pytest.raises(ZeroDivisionError):
        bench.go("latents", "waveform", "pace")
    assert at == bench.watch.at
