"""CosyVoice 3 in the stages it really has.

    recording -> voice -> heard -.          (heard: where a transcript says what is said in the recording)
    instruction, transcript -> prompt -+-> units -> mel -> waveform -> pace --> file    (from units on, by sentence)
    text -> tokens --------------------'            ^ voice

Its three modes are what a request brings: with a `transcript` the model goes on from the recording (zero-shot); with an
`instruction` alone it is told how to speak (instruct2), and with neither it speaks in the recording's voice whatever
the language (cross-lingual). In these two what it says, its units, does not depend on the voice: all voices share it,
and it is most of the work. A transcript and an instruction go together, and an instruction is never lost with a stored
voice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from cache.description import Description, Parameter, Stage, When
from cache.encoding import Value
from cache.parts import part_name
from inference import fingerprint, pacing, sound_files
from inference.models import describing, sounds
from inference.models.base import Call, Following, Output, Sound, Streamed, Tensors
from inference.models.cosyvoice3 import checkout, folder, reading, sounding, speaking
from inference.models.describing import speech
from inference.models.loading import compute_type, has_random_weights, opening

CODE_VERSION = 1  # of the stages in this folder: bump when one of them computes otherwise than before
KNOWN_TO_WORK = "transformers 5.23.0"
_HEARD = When(parameter="transcript", above=0)


@dataclass(frozen=True)
class Speaker:
    """All parts of a CosyVoice 3."""

    frontend: Any  # cosyvoice.cli.frontend.CosyVoiceFrontEnd
    llm: Any
    flow: Any
    hift: Any
    sample_rate: int  # samples per second, in which it speaks
    sampling: speaking.Sampling
    silent: frozenset[int]  # tokens of silence
    config: Mapping[str, Value]  # what the folder says of each network
    graphs: Mapping[str, str]  # digests of its ONNX graphs
    code: str  # the digest of CosyVoice's own


def load(source: str, *, name: str, device: str, dtype: str | None = None, checkout: str | None = None) -> Streamed:
    """The model of a local folder, on `device`, by the code in the folder `checkout`, or in the one that the
    environment names. `dtype` is of the language model; mel and samples are made in single precision, for the sound's
    sake.

    Raises ValueError for what cannot be loaded, NoCheckout where CosyVoice's code is not there.
    """
    kind = compute_type(device, dtype, "CosyVoice3")
    speaker = open_folder(Path(source), checkout)
    if (off := speaking.deviation(speaker.llm)) > speaking.MOST_DEVIATION:
        raise ValueError(
            f"what CosyVoice's language model reads word by word is not what it reads at once (off by {off:.2g}) with "
            f"transformers {transformers.__version__}: it would speak noise. Known to work: {KNOWN_TO_WORK}"
        )
    speaker.llm.to(kind)
    _try_out(speaker)
    return CosyVoice3(speaker, describe(speaker, name, random_weights=has_random_weights(source)), device)


def open_folder(where: Path, code: str | None = None) -> Speaker:
    """All parts, in single precision on the host. Raises as `load`."""
    entered = checkout.enter(code)
    graphs = folder.graphs(where)
    with opening(str(where), "CosyVoice 3"):
        built = folder.build(where, entered)
        folder.fill(built, where)
        frontend = _frontend(entered, built, graphs)
        model = entered.named("cosyvoice.cli.model.CosyVoice3Model")(built.llm, built.flow, built.hift)
    return Speaker(
        frontend=frontend,
        llm=built.llm,
        flow=built.flow,
        hift=built.hift,
        sample_rate=built.sample_rate,
        sampling=speaking.Sampling.of(built.llm),
        silent=frozenset(map(int, getattr(model, "silent_tokens", ()))),
        config=built.config,
        graphs={name: folder.digest_of(file) for name, file in graphs.items()},
        code=entered.digest,
    )


def _try_out(speaker: Speaker) -> None:
    """Make a moment of sound, so that a CosyVoice that is called otherwise is found now, and what its networks change
    about themselves at their first use (the type of some weights) is changed before they are described.

    Raises ValueError.
    """
    count, ratio = 4, int(speaker.flow.token_mel_ratio)
    voice = {
        "tokens": torch.zeros(count, dtype=torch.int32),
        "mel": torch.zeros(count * ratio, int(speaker.flow.output_size)),
        "embedding": torch.zeros(speaker.flow.spk_embed_affine_layer.in_features),
    }
    mel = sounding.Mel(speaker.flow, voice, sounding.WHOLE)
    waveform = sounding.Waveform(speaker.hift, 1.0, sounding.FIRST_CHUNK * ratio)
    try:
        for piece in (*mel.feed({"units": torch.zeros(count, dtype=torch.int32)}), *mel.end()):
            list(waveform.feed(piece))
        made = sum(len(piece["pcm"]) for piece in waveform.end())
    except (TypeError, AttributeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"this CosyVoice makes sound in another way than this adapter knows: {error}") from error
    if made * int(speaker.flow.input_frame_rate) != count * speaker.sample_rate:
        raise ValueError(f"this CosyVoice makes {made} samples of {count} tokens, which is another rate than it says")


def _frontend(entered: checkout.Checkout, built: folder.Built, graphs: Mapping[str, Path]) -> Any:
    kind = entered.named("cosyvoice.cli.frontend.CosyVoiceFrontEnd")
    with checkout.undisturbed():
        frontend = kind(
            built.get_tokenizer,
            built.feat_extractor,
            str(graphs["speaker"]),
            str(graphs["speech tokenizer"]),
            allowed_special=built.allowed_special,
        )
    frontend.device = torch.device("cpu")
    # It opens files; here it is given what the recording's identity knows, and nothing but that.
    sys.modules[kind.__module__].load_wav = _heard  # type: ignore[attr-defined]
    return frontend


def _heard(sound: Sound, target_sr: int, *_: object, **__: object) -> torch.Tensor:
    """A recording where CosyVoice would read a file: float32 [1, n]."""
    return torch.from_numpy(np.ascontiguousarray(sounds.heard(sound, target_sr)))[None]


class CosyVoice3:
    """The stages of a loaded model."""

    def __init__(self, pipeline: Speaker, description: Description, device: torch.device | str) -> None:
        self.pipeline = pipeline
        self.description = description
        self.device = torch.device(device)
        for module in self.modules:
            module.to(self.device)
        self._reading = reading.Reading(pipeline.frontend)
        self._kinds: dict[str, Callable[[Call], Output]] = {
            "voice": self._voice,
            "heard": lambda call: {"tokens": call.upstream["voice"]["tokens"]},
            "prompt": self._prompt,
            "tokens": self._tokens,
            "units": self._units,
            "file": sounds.finished,
        }

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        return self.pipeline.llm, self.pipeline.flow, self.pipeline.hift

    def run(self, stage: str, call: Call) -> Output:
        """The output of one stage; see each below for its tensors. Raises Cancelled from within `call.step`."""
        with torch.no_grad():
            return self._kinds[self.description.stage(stage).kind](call)

    def follow(self, stage: str, call: Call) -> Following:
        """mel: float32 [n, bands]; pcm: int16 [n], at the model's rate, and as the file will have it."""
        match self.description.stage(stage).kind:
            case "mel":
                return sounding.Mel(self.pipeline.flow, call.upstream["voice"], str(call.parameters["chunk_plan"]))
            case "waveform":
                frames = sounding.FIRST_CHUNK * int(self.pipeline.flow.token_mel_ratio)
                return sounding.Waveform(self.pipeline.hift, float(call.parameters["speed"]), frames)
        rate = int(call.parameters["sample_rate"])
        return sounds.Pacing(pacing.Pace(self.pipeline.sample_rate, sample_rate=rate), self.device)

    def _voice(self, call: Call) -> Tensors:
        """tokens: int32 [n], 25 a second; mel: float32 [2n, bands] of the same; embedding: float32 [192]."""
        sound, frontend = call.sounds[speech.MEDIUM], self.pipeline.frontend
        tokens, mel = frontend._extract_speech_token(sound)[0][0], frontend._extract_speech_feat(sound)[0][0]
        ratio = int(self.pipeline.flow.token_mel_ratio)
        count = min(len(mel) // ratio, len(tokens))
        voice = {
            "tokens": tokens[:count],
            "mel": mel[: count * ratio],
            "embedding": frontend._extract_spk_embedding(sound)[0],
        }
        return {name: tensor.to(self.device, copy=True).contiguous() for name, tensor in voice.items()}

    def _prompt(self, call: Call) -> Tensors:
        """ids: int64 [n], of what stands before every sentence."""
        ids = self._reading.prompt(str(call.parameters["instruction"]), str(call.parameters["transcript"]))
        return {"ids": torch.tensor(ids, device=self.device)}

    def _tokens(self, call: Call) -> Tensors:
        """order: int64 [sentences], which of the distinct ones stands where; of each of those, ids: int64 [n]."""
        markup = call.parameters["markup"] == "on"
        said = [tuple(ids) for ids in self._reading.sentences(str(call.parameters["text"]), markup=markup)]
        numbers: dict[tuple[int, ...], int] = {}
        order = [numbers.setdefault(ids, len(numbers)) for ids in said]
        named = {part_name("ids", number): torch.tensor(ids, device=self.device) for ids, number in numbers.items()}
        return {"order": torch.tensor(order, device=self.device), **named}

    def _units(self, call: Call) -> Tensors:
        """units: int32 [n] of one sentence, 25 a second; its pieces have one each."""
        speaker = self.pipeline
        heard = call.upstream["heard"]["tokens"] if "heard" in call.upstream else torch.empty(0, device=self.device)
        units: list[torch.Tensor] = []

        def tell(token: int) -> None:
            units.append(torch.tensor([token], dtype=torch.int32, device=self.device))
            call.piece({"units": units[-1]})

        speaking.speak(
            speaker.llm,
            call.upstream["tokens"]["ids"],
            prompt=call.upstream["prompt"]["ids"],
            heard=heard,
            sampling=speaker.sampling,
            silent=speaker.silent,
            seed=int(call.parameters["seed"]),
            tell=tell,
            step=call.step,
        )
        return {"units": torch.cat(units)}


def describe(speaker: Speaker, name: str, *, random_weights: bool = False) -> Description:
    """What this speaker's requests may say, and what its stages depend on."""
    return speech.spoken(name, "cosyvoice3", _parameters(speaker), _stages(speaker), random_weights=random_weights)


def _parameters(speaker: Speaker) -> tuple[Parameter, ...]:
    markup = Parameter(
        name="markup",
        kind="choice",
        default="off",
        choices=("off", "on"),
        extra=True,
        help="Whether brackets in the text are sounds: [breath], [laughter], <strong>so</strong>, pinyin as [h][ǎo], "
        "ARPAbet as [AY1]. Off: they are read as they stand.",
    )
    plan = Parameter(
        name="chunk_plan",
        kind="choice",
        default=sounding.GROWING,
        choices=(sounding.GROWING, sounding.WHOLE),
        extra=True,
        help="How sentences become sound: in growing chunks, the first of a second, so that they are heard while they "
        "are made; or whole, which is later and may be finer.",
    )
    return (
        speech.text(
            reading.CONTROL,
            max_length=4000,
            note=f"At most {reading.MOST_SENTENCES} sentences. Each is spoken by itself; long ones are cut after "
            "clauses.",
        ),
        speech.beside("transcript", reading.CONTROL, max_length=1000),
        speech.beside("instruction", reading.CONTROL, max_length=500),
        markup,
        plan,
        speech.speed(again="Changing it runs the vocoder and nothing before it."),
        speech.sample_rate(speaker.sample_rate),
        speech.file_format(),
        describing.seed("recitals"),
    )


def _stages(speaker: Speaker) -> tuple[Stage, ...]:
    prints = _fingerprints(speaker)
    heard = speech.voice(prints, "heard", {"voice": "voice"})
    return (
        speech.voice(prints, "voice"),
        # A part of it, for what depends on that part alone: not worth keeping by itself.
        heard.model_copy(update={"when": _HEARD, "cached": False, "pooled": False}),
        describing.canonical(prints, "prompt", parameters={"instruction": "instruction", "transcript": "transcript"}),
        describing.canonical(prints, "tokens", parameters={"text": "text", "markup": "markup"}),
        speech.each(prints, "units", {"tokens": "tokens", "prompt": "prompt", "heard": "heard"}, "seed"),
        speech.each(prints, "mel", {"units": "units", "voice": "voice"}, "chunk_plan", follows="units"),
        speech.each(prints, "waveform", {"mel": "mel"}, "speed", follows="mel"),
        # Cheap, and as large as what it is made of: not worth keeping.
        speech.each(prints, "pace", {"pcm": "waveform"}, "sample_rate", follows="waveform", live=True, cached=False),
        describing.result(prints, "file", {"pcm": "pace"}, "sample_rate", "format"),
    )


def _fingerprints(speaker: Speaker) -> dict[str, str]:
    """Fingerprint of each kind of stage, over the parts it depends on and no others."""
    frontend, words = speaker.frontend, speaker.llm.llm.model
    tokenizer = fingerprint.of_tokenizer(frontend.tokenizer.tokenizer)
    read: dict[str, Value] = {
        "code": speaker.code,
        "tokenizer": tokenizer,
        "reading": reading.Reading(frontend).version(),
        "libraries": fingerprint.versions("transformers", "tokenizers"),
    }
    sampling = speaker.sampling
    parts: dict[str, dict[str, Value]] = {
        "voice": {
            "code": speaker.code,
            "graphs": dict(speaker.graphs),
            "mel": speaker.config["feat_extractor"],
            "ratio": int(speaker.flow.token_mel_ratio),
            "resampler": pacing.versions(),
            "libraries": {
                **fingerprint.installed("torch", "onnxruntime", "onnxruntime-gpu"),
                **fingerprint.installed("torchaudio", "librosa", "openai-whisper"),
            },
        },
        "heard": {},
        "prompt": read,
        "tokens": read,
        "units": {
            # CosyVoice's head is its own; that of the language model is never asked.
            "model": fingerprint.of_model(words, words.model, speaker.llm.speech_embedding, speaker.llm.llm_decoder),
            "ids": [int(speaker.llm.sos), int(speaker.llm.task_id), sorted(map(int, speaker.llm.stop_token_ids))],
            "sampling": [
                sampling.top_p,
                sampling.top_k,
                sampling.window,
                sampling.tolerance,
                sampling.avoids,
            ],
            "silent": sorted(speaker.silent),
            "libraries": fingerprint.versions("torch", "transformers"),
        },
        "mel": {
            "code": speaker.code,
            "model": _of_network(speaker.flow),
            "config": speaker.config["flow"],
            "libraries": fingerprint.installed("torch", "x-transformers", "einops"),
        },
        "waveform": {
            "code": speaker.code,
            "model": _of_network(speaker.hift),
            "config": speaker.config["hift"],
            "libraries": fingerprint.installed("torch", "scipy"),
        },
        "pace": {"rate": speaker.sample_rate, "filters": pacing.versions()},
        "file": {"files": sound_files.versions()},
    }
    return {kind: fingerprint.of_stage(kind, CODE_VERSION, part) for kind, part in parts.items()}


def _of_network(network: torch.nn.Module) -> Value:
    """Its weights, and the noise that it drew when it was built and never stores."""
    return {
        "weights": fingerprint.of_weights(network),
        "noise": fingerprint.of_hidden(network),
        "float32_products": torch.get_float32_matmul_precision(),
    }
