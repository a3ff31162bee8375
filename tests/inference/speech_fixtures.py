"""A model that speaks, for tests: every stage computes, and what it computes depends on all that it declares.

It speaks 16 samples a second, so that a text of a few words has many quarters of a second. Its texts mean the same in
any case and spacing; a sentence ends at a full stop, or with the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cache.description import Description, Scalar
from cache.keys import Principal, addresses, content_ids, namespaces
from cache.sound import sound_identity
from inference.errors import InvalidInput
from inference.models.base import Artifact, Call, Following, Output, Tensors
from reprise.v1 import common_pb2 as pb
from reprise.v1.inference_pb2 import RunRequest
from reprise.v1.inference_pb2 import Sound as SoundMessage
from tests.cache.families import speech_family
from tests.inference.voices import recording
from tests.inference.worker_fixtures import ALICE, SECRET, Gate, GatedModel, Heard, value_message

RATE = 16  # samples per second that the model makes
FRAMES_PER_WORD = 3
SAMPLES_PER_FRAME = 3
FRAMES_PER_CHUNK = 2  # that become sound together
MOST_SENTENCES = 64


class SpokenModel(GatedModel):
    """voice -> latents -> prefix; text -> sentences; each: latents in frames -> waveform -> pace; all -> a file."""

    def __init__(self, name: str = "spoken") -> None:
        super().__init__(name)
        self.description = speech_family(name, sample_rate=RATE)
        self.gates = {stage.name: Gate() for stage in self.description.stages}  # passed before the stage's work
        self.piece_gate = Gate()  # passed before each piece of waveform is given
        self.samples_per_frame = SAMPLES_PER_FRAME
        self.frame_trouble: list[Callable[[], object]] = []  # before each frame of latents
        self.piece_trouble: list[Callable[[], object]] = []  # before each piece of waveform

    def open_gates(self) -> None:
        super().open_gates()
        self.piece_gate.open()

    def run(self, stage: str, call: Call) -> Output:
        self._begin(stage)
        return {
            "voice": self._voice,
            "prefix": self._prefix,
            "tokens": self._sentences,
            "latents": self._latents,
            "file": self._file,
        }[stage](call)

    def follow(self, stage: str, call: Call) -> Following:
        self._begin(stage)
        return _Sounding(self, call) if stage == "waveform" else _Pacing(call)

    def _begin(self, stage: str) -> None:
        self.runs[stage] += 1
        self.gates[stage].pass_through()
        _make_trouble(self.trouble.get(stage, []))

    def _voice(self, call: Call) -> Output:
        heard = call.sounds["voice"].pcm.float()
        return {"latents": torch.stack([heard.mean(), heard.std()]).reshape(1, 2) / call.sounds["voice"].sample_rate}

    def _prefix(self, call: Call) -> Output:
        return {"prefix": call.upstream["voice"]["latents"].repeat(1, 2)}

    def _sentences(self, call: Call) -> Output:
        sentences = [tuple(part.lower().split()) for part in str(call.parameters["text"]).split(".")]
        spoken = [sentence for sentence in sentences if sentence]
        if not 0 < len(spoken) <= MOST_SENTENCES:
            raise InvalidInput("text", f"must have something to say, and at most {MOST_SENTENCES} sentences")
        numbers: dict[tuple[str, ...], int] = {}
        order = [numbers.setdefault(sentence, len(numbers)) for sentence in spoken]
        ids = {
            f"ids[{number}]": torch.tensor([int.from_bytes(word.encode()[:6], "big") for word in sentence])
            for sentence, number in numbers.items()
        }
        return {"order": torch.tensor(order), **ids}

    def _latents(self, call: Call) -> Output:
        generator = torch.Generator().manual_seed(int(call.parameters["seed"]))
        ids, towards = call.upstream["tokens"]["ids"], call.upstream["prefix"]["prefix"]
        frames: list[torch.Tensor] = []
        for done in range(len(ids) * FRAMES_PER_WORD):
            _make_trouble(self.frame_trouble)
            frame = torch.randn(1, 4, generator=generator) + towards + (ids[done // FRAMES_PER_WORD] % 1009).sin()
            frames.append(frame + frames[-1] / 2 if frames else frame)
            self.step_gate.pass_through()
            call.step(done + 1, len(ids) * FRAMES_PER_WORD)
            call.piece({"latents": frames[-1]})
        return {"latents": torch.cat(frames)}

    def _file(self, call: Call) -> Output:
        spoken = torch.cat([call.upstream[f"pcm[{place}]"]["pcm"] for place in range(len(call.upstream))])
        header = f"{call.parameters['format']} {call.parameters['sample_rate']}\n".encode()
        return Artifact(header + spoken.numpy().astype("<i2").tobytes(), "audio/test")


class _Sounding:
    """Two frames at a time become sound, which begins where the sound before it ended."""

    def __init__(self, model: SpokenModel, call: Call) -> None:
        assert not call.upstream, "what is followed is fed"
        self._model = model
        self._frames = torch.empty(0, 4)
        self._last = torch.zeros(1)

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        self._frames = torch.cat([self._frames, piece["latents"]])
        while len(self._frames) >= FRAMES_PER_CHUNK:
            yield self._sound(self._frames[:FRAMES_PER_CHUNK])
            self._frames = self._frames[FRAMES_PER_CHUNK:]

    def end(self) -> Iterator[Tensors]:
        if len(self._frames):
            yield self._sound(self._frames)

    def _sound(self, frames: torch.Tensor) -> Tensors:
        self._model.piece_gate.pass_through()
        _make_trouble(self._model.piece_trouble)
        samples = frames.mean(1).repeat_interleave(self._model.samples_per_frame).cumsum(0) + self._last
        self._last = samples[-1:]
        return {"pcm": samples}


class _Pacing:
    """Takes the sample nearest before each instant, whatever the pieces in which samples come."""

    def __init__(self, call: Call) -> None:
        assert not call.upstream, "what is followed is fed"
        self._speed = float(call.parameters["speed"])
        self._rate = int(call.parameters["sample_rate"])
        self._heard = torch.empty(0)
        self._given = 0

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        self._heard = torch.cat([self._heard, piece["pcm"]])
        instants: list[int] = []
        while (at := int((self._given + len(instants)) * self._speed * RATE / self._rate)) < len(self._heard):
            instants.append(at)
        self._given += len(instants)
        if instants:
            yield {"pcm": (self._heard[instants] * 1000).clamp(-32768, 32767).to(torch.int16)}

    def end(self) -> Iterator[Tensors]:
        return iter(())


def _make_trouble(trouble: list[Callable[[], object]]) -> None:
    if trouble:
        trouble.pop(0)()


def nothing() -> None:
    """No trouble yet."""


@dataclass(frozen=True)
class Recorded:
    """A voice of one pitch."""

    pitch: int = 7
    sample_rate: int = RATE
    samples: int = 24

    def message(self, *, with_sound: bool = True) -> SoundMessage:
        pcm = b"".join(
            (self.pitch * sample % 251 - 125).to_bytes(2, "little", signed=True) for sample in range(self.samples)
        )
        return SoundMessage(
            identity=sound_identity(self.sample_rate, self.samples, pcm),
            sample_rate=self.sample_rate,
            samples=self.samples,
            pcm=pcm if with_sound else b"",
        )


@dataclass(frozen=True)
class Voice(Recorded):
    """A voice of a length and rate that real models take."""

    seed: int = 0

    def message(self, *, with_sound: bool = True) -> SoundMessage:
        sound = recording(self.seed)
        pcm = sound.pcm.numpy().astype("<i2").tobytes()
        identity = sound_identity(sound.sample_rate, len(sound.pcm), pcm)
        return SoundMessage(identity=identity, sample_rate=sound.sample_rate, samples=len(sound.pcm), pcm=pcm)


def ask_speech(
    description: Description,
    text: str = "Yes. No.",
    *,
    voice: Recorded = Recorded(),  # immutable
    with_sound: bool = True,
    principal: Principal = ALICE,
    reuse_nothing: bool = False,
    store_nothing: bool = False,
    replace: bool = False,
    max_age: float | None = None,
    follower: str = "",
    idle: tuple[str, ...] = (),
    **parameters: Scalar,
) -> RunRequest:
    """A request as a gateway would make it."""
    complete = {each.name: parameters.get(each.name, each.default) for each in description.parameters} | {"text": text}
    known = {name: value for name, value in complete.items() if value is not None}
    sound = voice.message(with_sound=with_sound)
    spaces = namespaces(SECRET, principal)
    ids = content_ids(description, known, {"voice": sound.identity})
    return RunRequest(
        model=description.model,
        revision=description.revision,
        parameters={name: value_message(value) for name, value in known.items()},
        sounds={"voice": sound},
        namespaces={scope.value: space for scope, space in spaces.items()},
        addresses={name: str(address) for name, address in addresses(description, ids, spaces).items()},
        follower=follower,
        reuse_nothing=reuse_nothing,
        store_nothing=store_nothing,
        replace=replace,
        max_age=max_age,
        idle=idle,
    )


def file_sound(heard: Heard) -> bytes:
    """The samples in the file."""
    return heard.data.partition(b"\n")[2]


def file_rate(heard: Heard) -> int:
    return int(heard.data.partition(b"\n")[0].split()[1])


def live_sound(heard: Heard) -> bytes:
    """The samples that were heard as they were made: after one header, in whole quarters of a second."""
    sounding = [event for event in heard.events if event.HasField("sound") or event.HasField("samples")]
    if not sounding:
        return b""
    assert [event.HasField("sound") for event in sounding] == [True] + [False] * (len(sounding) - 1)
    rate, pieces = sounding[0].sound.sample_rate, [event.samples for event in sounding[1:]]
    assert all(len(piece.pcm) == rate // 4 * 2 for piece in pieces[:-1])
    assert all(0 < len(piece.pcm) <= rate // 4 * 2 for piece in pieces[-1:])
    assert [piece.offset for piece in pieces] == [place * (rate // 4) for place in range(len(pieces))]
    return b"".join(piece.pcm for piece in pieces)


def parts(heard: Heard, stage: str) -> list[str]:
    """What became of each part of a stage, with its tier where it came from one."""
    (report,) = (report for report in heard.finished.stages if report.stage == stage)
    told = [f"{pb.StageOutcome.Name(part.outcome)[14:]} {pb.Tier.Name(part.tier)[5:]}" for part in report.parts]
    return [each.removesuffix(" UNSPECIFIED") for each in told]
