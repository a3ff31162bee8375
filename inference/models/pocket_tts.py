"""Pocket TTS: a text in a recorded voice, by transformers' own classes, in the stages it really has.

    recording -> voice -> prefix -.
    text -> tokens ---------------+-> latents -> waveform -> pace --> file      (from tokens on, sentence by sentence)

The model reads the voice before the text, so what it keeps of the voice (its keys and values, `prefix`) serves every
text. Always by way of that prefix, kept or not, staged runs equal the library's own `generate` bit for bit, right after
`torch.manual_seed(seed)`: each sentence draws from a generator of its own in that state, so what a sentence sounds like
depends on its own words alone, and a sentence that was said before, in whatever text, is there already.

The codec's decoder looks back further than any sensible piece is long. The library decodes a sentence at once; here it
is decoded as its latents come, in pieces that are the same however they came. Its convolutions see again as much of the
past as they can reach, which is half a latent; its attention has keys and values kept. That is the library's result but
for the rounding of sums: see `inference/README.md` for how close it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    DynamicCache,
    PocketTTSAudioTokenizerModel,
    PocketTTSForConditionalGeneration,
    PocketTTSProcessor,
)

from cache.description import Description, Parameter, Stage
from cache.encoding import Value
from cache.parts import part_name
from inference import fingerprint, pacing, sound_files
from inference.errors import InvalidInput
from inference.models import describing, sentences, sounds
from inference.models.base import Artifact, Call, Following, Output, Streamed, Tensors
from inference.models.describing import speech
from inference.models.loading import compute_type, has_random_weights, opening
from inference.models.sources import codec_folder

CODE_VERSION = 1  # of the stages in this file: bump when one of them computes otherwise than before
LONGEST_SENTENCE = 50  # tokens, as the library cuts
MOST_SENTENCES = 64
DECODE_CHUNK = 4  # latents that are decoded together: the fewer, the sooner sound comes and the more is computed twice
_CODEC = "audio_tokenizer"  # its folder, in a speaker's


@dataclass(frozen=True)
class Speaker:
    """All parts of a Pocket TTS."""

    model: Any  # PocketTTSForConditionalGeneration
    processor: Any  # PocketTTSProcessor, with its audio tokenizer: the codec

    def save_pretrained(self, folder: Path, **_: object) -> None:
        """All of it in one folder, with the codec in a folder therein, to which the processor's file points."""
        self.codec.save_pretrained(folder / _CODEC)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        file = folder / "processor_config.json"
        options = json.loads(file.read_text())
        options["audio_tokenizer"]["audio_tokenizer_name_or_path"] = _CODEC
        file.write_text(json.dumps(options, indent=2, sort_keys=True))

    @property
    def codec(self) -> Any:
        return self.processor.audio_tokenizer

    @property
    def sample_rate(self) -> int:
        """Samples per second, in which the model hears and speaks."""
        return int(self.codec.config.sampling_rate)


def load(source: str, *, name: str, device: str, dtype: str | None = None) -> Streamed:
    """The model of a local folder, on `device`. Raises ValueError for what cannot be loaded in this way."""
    speaker = _open(Path(source), compute_type(device, dtype, PocketTTSForConditionalGeneration.__name__))
    _refuse_unknown(speaker, source)
    return PocketTTS(speaker, describe(speaker, name, random_weights=has_random_weights(source)), device)


def _open(folder: Path, dtype: torch.dtype) -> Speaker:
    with opening(str(folder), PocketTTSForConditionalGeneration.__name__):
        model = PocketTTSForConditionalGeneration.from_pretrained(folder, dtype=dtype, use_safetensors=True)
        codec = PocketTTSAudioTokenizerModel.from_pretrained(
            codec_folder(folder), dtype=torch.float32, use_safetensors=True
        )
        parts = [AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)]
        options = json.loads((folder / "processor_config.json").read_text())
        template = (folder / "chat_template.jinja").read_text()
    # Put together by hand, because the library would look for the codec where its maker had it.
    processor = PocketTTSProcessor.from_args_and_dict(
        parts, {**options, "audio_tokenizer": codec, "chat_template": template}
    )
    return Speaker(model, processor)


class PocketTTS:
    """The stages of a loaded model."""

    def __init__(self, pipeline: Speaker, description: Description, device: torch.device | str) -> None:
        self.pipeline = pipeline
        self.model = pipeline.model.to(device)
        self.codec = pipeline.codec.to(device)
        self.description = description
        self.device: torch.device = self.model.device
        self._head = _voice_ids(pipeline)
        self._places = set(pipeline.model._placeholder_token_ids())  # ids that stand for sound
        self._kinds: dict[str, Callable[[Call], Output]] = {
            "voice": self._voice,
            "prefix": self._prefix,
            "tokens": self._tokens,
            "latents": self._latents,
            "file": self._file,
        }

    @property
    def modules(self) -> Iterable[torch.nn.Module]:
        return self.model, self.codec

    def run(self, stage: str, call: Call) -> Output:
        """The output of one stage; see each below for its tensors. Raises Cancelled from within `call.step`."""
        with torch.no_grad():
            return self._kinds[self.description.stage(stage).kind](call)

    def follow(self, stage: str, call: Call) -> Following:
        """pcm: int16 [n] in both: of the codec's rate, and as the file will have it."""
        if self.description.stage(stage).kind == "waveform":
            return Decoding(self.pipeline)
        speed, sample_rate = float(call.parameters["speed"]), int(call.parameters["sample_rate"])
        return sounds.Pacing(pacing.Pace(self.pipeline.sample_rate, speed=speed, sample_rate=sample_rate), self.device)

    def _voice(self, call: Call) -> Tensors:
        """latents: [n, D] of the recording, ended on a pause as the model was trained."""
        native = self.pipeline.sample_rate
        samples = sounds.heard(call.sounds[speech.MEDIUM], native)
        heard = self.pipeline.processor.feature_extractor(samples, sampling_rate=native).to(self.device)
        encoded = self.codec.encode(heard["input_values"].to(self.codec.dtype), heard["padding_mask"])
        return {"latents": encoded.latents[encoded.latents_mask.bool()].contiguous()}

    def _prefix(self, call: Call) -> Tensors:
        """keys, values: [layers, heads, n, d], of everything that comes before a text."""
        latents = call.upstream["voice"]["latents"]
        ids = torch.tensor([[*self._head, *[self.model.config.audio_prompt_token_id] * len(latents)]])
        cache = DynamicCache(config=self.model.config)
        self.model(
            input_ids=ids.to(self.device), audio_prompt_latents=latents[None], past_key_values=cache, use_cache=True
        )
        keys, values = (torch.cat([getattr(layer, side) for layer in cache.layers]) for side in ("keys", "values"))
        return {"keys": keys.contiguous(), "values": values.contiguous()}

    def _tokens(self, call: Call) -> Tensors:
        """order: int64 [sentences], which of the distinct ones stands where; of each of those, ids: int64 [1, n], and
        frames_after_eos: int64 [1], how many latents come after the one that ends it.
        """
        said = sentences.sentences(str(call.parameters["text"]), length=self._length, longest=LONGEST_SENTENCE)
        if not said:
            raise InvalidInput("text", "must have something to say: at least one letter or digit")
        if len(said) > MOST_SENTENCES:
            raise InvalidInput("text", f"must have at most {MOST_SENTENCES} sentences; it has {len(said)}")
        parts: list[Tensors] = []
        order: list[int] = []
        for prompt in map(self._prompt, said):
            known = (index for index, part in enumerate(parts) if all(prompt[name].equal(part[name]) for name in part))
            order.append(next(known, len(parts)))
            if order[-1] == len(parts):
                parts.append(prompt)
        named = {part_name(name, index): each for index, part in enumerate(parts) for name, each in part.items()}
        return {"order": torch.tensor(order, device=self.device), **named}

    def _latents(self, call: Call) -> Tensors:
        """latents: [n, D] of one sentence; its pieces have one each."""
        prefix, tokens = call.upstream["prefix"], call.upstream["tokens"]
        ids, after_end = tokens["ids"], int(tokens["frames_after_eos"])
        generator = torch.Generator().manual_seed(int(call.parameters["seed"]))
        loudness = math.sqrt(float(call.parameters["temperature"]))  # of the noise; the temperature is its variance
        flow_steps = int(call.parameters.get("num_flow_steps", 1))
        threshold, earliest = _ending(self.model)

        cache = DynamicCache(config=self.model.config)
        for layer, (keys, values) in enumerate(zip(prefix["keys"], prefix["values"], strict=True)):
            cache.update(keys[None], values[None], layer)
        # As many as the library allows for a text of this length.
        last = math.ceil(((ids.shape[1] - 1) / 3 + 2) * self.model.config.frame_rate)
        next_ids = torch.full((1, 1), self.model.config.audio_latent_token_id, device=self.device)
        ended = False
        latents: list[torch.Tensor] = []
        state = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        while True:
            condition = state.last_hidden_state[:, -1]
            noise = torch.randn(1, self.model.config.latent_dim, generator=generator, dtype=condition.dtype)
            latent = self.model.sample_latent(condition, noise.to(self.device) * loudness, flow_steps)
            latents.append(self.model.denormalize_latents(latent))
            done = len(latents)
            if not ended and done > earliest and bool(state.logits[:, -1, 0].float() > threshold):
                ended, last = True, min(done + after_end, last)
            call.piece({"latents": latents[-1]})
            call.step(done, last)
            if done == last:
                return {"latents": torch.cat(latents)}
            state = self.model(input_ids=next_ids, audio_latents=latent[:, None], past_key_values=cache, use_cache=True)

    def _file(self, call: Call) -> Artifact:
        return sounds.finished(call)

    def _length(self, text: str) -> int:
        return len(self.pipeline.processor.tokenizer(text, add_special_tokens=False).input_ids)

    def _prompt(self, sentence: str) -> Tensors:
        """What the library makes of a sentence."""
        prompt = self.pipeline.processor.apply_chat_template(
            _says(sentence), tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = prompt["input_ids"]
        if not self._places.isdisjoint(ids[0, :-1].tolist()):
            raise InvalidInput("text", "must not have what the model takes for a command")
        return {"ids": ids.to(self.device), "frames_after_eos": prompt["frames_after_eos"].to(self.device)}


class Decoding:
    """Latents of one sentence to its samples, in pieces of `DECODE_CHUNK` latents and a last one of what is left."""

    def __init__(self, speaker: Speaker) -> None:
        self._codec = speaker.codec
        config = self._codec.config
        self._latent_samples = int(config.frame_size)
        self._reach = _reach(config)
        self._waiting: list[torch.Tensor] = []  # latents, [1, D] each
        self._cache = DynamicCache(config=self._codec.decoder.config)
        self._latent: torch.Tensor | None = None  # the last one that was decoded, [1, H, 1]
        self._states: torch.Tensor | None = None  # the last that came out of attention, [1, H, reach]
        seconds = speaker.processor.fade_in_duration
        self._fade: torch.Tensor | None = torch.linspace(0, 1, int(seconds * speaker.sample_rate))

    def feed(self, piece: Tensors) -> Iterator[Tensors]:
        self._waiting.extend(latent[None] for latent in piece["latents"])
        while len(self._waiting) >= DECODE_CHUNK:
            yield {"pcm": self._decode(DECODE_CHUNK)}

    def end(self) -> Iterator[Tensors]:
        if self._waiting:
            yield {"pcm": self._decode(len(self._waiting))}

    @torch.no_grad()
    def _decode(self, count: int) -> torch.Tensor:
        """The next samples, int16 [n], of so many latents."""
        codec, decoder = self._codec, self._codec.decoder
        latents, self._waiting = self._waiting[:count], self._waiting[count:]
        own = codec.latent_proj(torch.cat(latents).to(codec.dtype).T[None])
        spread = decoder.upsample(_after(self._latent, own))[..., -count * codec.config.latent_stride :]
        states = decoder.decoder_transformer(spread.transpose(1, 2), past_key_values=self._cache, use_cache=True)
        seen = _after(self._states, states.last_hidden_state.transpose(1, 2))
        samples = decoder.decoder_seanet(seen)[0, 0, -count * self._latent_samples :].float()
        self._latent, self._states = own[..., -1:], seen[..., -self._reach :]
        if self._fade is not None:
            fade = self._fade[: len(samples)].to(samples.device)
            samples[: len(fade)] *= fade
            self._fade = None
        return sounds.to_pcm(samples)


def describe(speaker: Speaker, name: str, *, random_weights: bool = False) -> Description:
    """What this speaker's requests may say, and what its stages depend on."""
    return speech.spoken(name, "pocket-tts", _parameters(speaker), _stages(speaker), random_weights=random_weights)


def _parameters(speaker: Speaker) -> tuple[Parameter, ...]:
    generation = speaker.model.generation_config
    tokenizer = speaker.processor.tokenizer
    temperature = Parameter(
        name="temperature",
        kind="float",
        default=float(generation.temperature or 1.0) if generation.do_sample else 0.0,
        minimum=0.0,
        maximum=2.0,
        extra=True,
        help="How freely it is spoken: the variance of the noise that a sentence is made of. At 0 no seed matters.",
    )
    flow_steps = Parameter(
        name="num_flow_steps",
        kind="int",
        default=int(getattr(generation, "num_flow_steps", None) or 1),
        minimum=1,
        maximum=16,
        unit="steps",
        extra=True,
        help="Steps from noise to each latent: more are slower and finer.",
    )
    return (
        speech.text(
            [*tokenizer.all_special_tokens, "<|", "|>"],
            max_length=4000,
            note=f"At most {MOST_SENTENCES} sentences. Each is spoken by itself; long ones are cut after clauses.",
        ),
        speech.speed(),
        speech.sample_rate(speaker.sample_rate),
        speech.file_format(),
        temperature,
        *([flow_steps] if _flows(speaker) else []),
        describing.seed("recitals"),
    )


def _stages(speaker: Speaker) -> tuple[Stage, ...]:
    prints = _fingerprints(speaker)
    steps = ("num_flow_steps",) if _flows(speaker) else ()
    return (
        speech.voice(prints, "voice"),
        speech.voice(prints, "prefix", {"voice": "voice"}),
        describing.canonical(prints, "tokens", parameters={"text": "text"}),
        speech.each(prints, "latents", {"prefix": "prefix", "tokens": "tokens"}, "temperature", *steps, "seed"),
        speech.each(prints, "waveform", {"latents": "latents"}, follows="latents"),
        # Cheap, and as large as what it is made of: not worth keeping.
        speech.each(
            prints, "pace", {"pcm": "waveform"}, "speed", "sample_rate", follows="waveform", live=True, cached=False
        ),
        describing.result(prints, "file", {"pcm": "pace"}, "sample_rate", "format"),
    )


def _fingerprints(speaker: Speaker) -> dict[str, str]:
    """Fingerprint of each kind of stage, over the parts it depends on and no others."""
    model, codec, processor = speaker.model, speaker.codec, speaker.processor
    threshold, earliest = _ending(model)
    torch_and_transformers = fingerprint.versions("torch", "transformers")
    parts: dict[str, dict[str, Value]] = {
        "voice": {
            "model": fingerprint.of_model(codec, codec.encoder),
            "processor": fingerprint.of_config(processor.feature_extractor),
            "resampler": pacing.versions(),
            "libraries": torch_and_transformers,
        },
        "prefix": {
            "model": fingerprint.of_model(model, model.model),
            "head": _voice_ids(speaker),
            "libraries": torch_and_transformers,
        },
        "tokens": {
            "tokenizer": fingerprint.of_tokenizer(processor.tokenizer),
            "template": processor.chat_template,
            "after_end": [
                processor.short_text_max_words,
                processor.frames_after_eos_short_text,
                processor.frames_after_eos,
            ],
            "sentences": sentences.version(),
            "limits": [LONGEST_SENTENCE, MOST_SENTENCES],
            "libraries": fingerprint.versions("transformers", "tokenizers", "jinja2"),
        },
        "latents": {
            "model": fingerprint.of_model(model, model.model, model.flow_head, model.eos_head),
            "statistics": [model.latent_mean.tolist(), model.latent_std.tolist()],
            "end": [threshold, earliest],
            "libraries": torch_and_transformers,
        },
        "waveform": {
            "model": fingerprint.of_model(codec, codec.decoder, codec.latent_proj),
            "fade_in": processor.fade_in_duration,
            "decode_chunk": DECODE_CHUNK,
            "libraries": torch_and_transformers,
        },
        "pace": {"rate": speaker.sample_rate, "filters": pacing.versions()},
        "file": {"files": sound_files.versions()},
    }
    return {kind: fingerprint.of_stage(kind, CODE_VERSION, part) for kind, part in parts.items()}


def _flows(speaker: Speaker) -> bool:
    """Whether a latent is reached in steps; other heads take one in any case."""
    return bool(speaker.model.config.flow_head_config.flow_type == "lsd")


def _ending(model: Any) -> tuple[float, int]:
    """The logit above which a sentence is over, and the number of latents before which it is not."""
    generation = model.generation_config
    threshold, earliest = (getattr(generation, name, None) for name in ("eos_threshold", "min_frames_before_eos"))
    return (-4.0 if threshold is None else float(threshold), 6 if earliest is None else int(earliest))  # the library's


def _says(text: str, *, heard: bool = False) -> list[dict[str, Any]]:
    """A conversation of the library's, in which somebody who may have been heard before says a text."""
    content = [*([{"type": "audio"}] if heard else []), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def _voice_ids(speaker: Speaker) -> list[int]:
    """What the template writes before a voice. Raises ValueError if it does not write the voice before the text."""
    processor = speaker.processor
    heard, unheard = (processor.apply_chat_template(_says("Yes.", heard=each)) for each in (True, False))
    head, voice, rest = heard.partition(processor.audio_token)
    if not voice or rest != unheard:
        raise ValueError("the voice does not come before the text")
    ids: list[int] = processor.tokenizer(head, add_special_tokens=False).input_ids
    return ids


def _reach(config: Any) -> int:
    """How many states before its own the last part of the decoder sees: what its convolutions reach, one by one from
    the samples back.
    """
    reach = config.last_kernel_size - 1
    for ratio in reversed(config.upsampling_ratios):
        dilations = (config.dilation_growth_rate**layer for layer in range(config.num_residual_layers))
        reach += sum((config.residual_kernel_size - 1) * dilation for dilation in dilations)
        reach = math.ceil(reach / ratio) + 1  # kernels twice as wide as their stride
    return int(reach + config.kernel_size - 1)


def _after(before: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
    return own if before is None else torch.cat([before, own], dim=-1)


def _refuse_unknown(speaker: Speaker, source: str) -> None:
    codec, processor = speaker.codec, speaker.processor
    if codec.encoder is None or codec.decoder is None:
        raise ValueError(f"{source} has half of a codec")
    if not codec.config.use_causal_conv or codec.config.trim_right_ratio != 1.0 or codec.decoder.upsample is None:
        raise ValueError(f"{source} has a codec that cannot be decoded in pieces")
    if processor.feature_extractor.sampling_rate != speaker.sample_rate:
        raise ValueError(f"{source} hears at another rate than it speaks")
    if len(processor.tokenizer("").input_ids):
        raise ValueError(f"{source} has a tokenizer that writes more than the text")
    try:
        _voice_ids(speaker)
    except ValueError as error:
        raise ValueError(f"{source} has a template that is not known: {error}") from error
