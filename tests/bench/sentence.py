"""Speech measured: `python -m tests.bench.sentence [--size true]`. One sentence in one voice, stage by stage: what each
costs, how large what it keeps is, when the first sound is there, and how far sound that is made in pieces is from what
the library decodes at once.

By default the small model. `--size true` makes the model at its true size with random weights: times and bytes are
those of a real checkpoint, the sound is noise, and as nobody taught it where a sentence ends, it has `--latents`. Every
stage runs `--tries` times on one thread, and the median of the processor's time counts, so that others on the machine
change little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    PocketTTSAudioTokenizerConfig,
    PocketTTSAudioTokenizerModel,
    PocketTTSConfig,
    PocketTTSForConditionalGeneration,
)

from cache.parts import whole_name
from inference.models import small
from inference.models.base import Artifact, Call, Cancelled, Output, Tensors
from inference.models.pocket_tts import PocketTTS, Speaker, describe
from tests.bench.watched import Watched
from tests.inference.proof import Request, base_request, opened, run, stored
from tests.inference.voices import recording

LINE = "The train leaves from platform two in ten minutes."
VOICE_SECONDS, VOICE_RATE = 3.5, 24_000


@dataclass
class Told:
    """By stage: seconds of the processor, and bytes of what is kept."""

    seconds: Mapping[str, float]
    bytes: Mapping[str, int]
    spoken: float  # seconds of sound
    first: float  # seconds of the processor until the first sound, with the voice known
    apart: int  # steps of 16 bits between sound in pieces and decoded at once, at most
    differ: float  # share of the samples that differ at all


def speaker(size: str, folder: Path) -> PocketTTS:
    model = opened(small.build(folder, family="pocket-tts"))
    assert isinstance(model, PocketTTS)
    return model if size == "small" else true_speaker(model)


def true_speaker(parts: PocketTTS) -> PocketTTS:
    """As published, but for the words it knows: the library's own configurations."""
    processor, config = parts.pipeline.processor, parts.model.config
    ids = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PocketTTSForConditionalGeneration(PocketTTSConfig(**ids)).eval()
        processor.audio_tokenizer = PocketTTSAudioTokenizerModel(PocketTTSAudioTokenizerConfig()).eval()
    with torch.no_grad():
        model.eos_head.bias.fill_(-1000)
        for each in processor.audio_tokenizer.decoder.decoder_seanet.layers[-1].parameters():
            each.mul_(0.1)  # within what 16 bits can say
    model.generation_config = parts.model.generation_config
    made = Speaker(model, processor)
    return PocketTTS(made, describe(made, "true", random_weights=True), "cpu")


def measure(model: PocketTTS, tries: int, latents: int | None) -> Told:
    base = base_request(model.description, {"text": LINE})
    request = Request(base.parameters, {"voice": recording(0, VOICE_SECONDS, VOICE_RATE)})
    seconds: dict[str, list[float]] = defaultdict(list)
    outputs: dict[str, Output] = {}
    with ending_after(model, latents):
        for _ in range(tries):
            watched = Watched(model)
            outputs = run(watched, request)
            for stage, spent in watched.spent.items():
                seconds[stage].append(spent)
        first = statistics.median(_first_sound(model, request, outputs) for _ in range(tries))
    spoken, made = _tensor(outputs, "latents[0]", "latents"), _tensor(outputs, "waveform[0]", "pcm")
    whole = (model.pipeline.processor.decode(spoken) * 32768).round().clamp(-32768, 32767)
    apart = (made - whole).abs()
    return Told(
        seconds={stage: statistics.median(each) for stage, each in seconds.items()},
        bytes={whole_name(name): len(stored(output)) for name, output in outputs.items()},
        spoken=len(made) / model.pipeline.sample_rate,
        first=first,
        apart=int(apart.max()),
        differ=float((apart > 0).float().mean()),
    )


@contextmanager
def ending_after(model: PocketTTS, latents: int | None) -> Iterator[None]:
    """A model that was never taught where sentences end is cut off by its budget, which goes by this rate."""
    config = model.model.config
    rate = config.frame_rate
    if latents is not None:
        text = model.pipeline.processor.tokenizer(LINE).input_ids
        config.frame_rate = latents / (len(text) / 3 + 2)
    try:
        yield
    finally:
        config.frame_rate = rate


def _first_sound(model: PocketTTS, request: Request, known: Mapping[str, Output]) -> float:
    """Until the text is read, latents are made, and enough of them are decoded."""
    begun = time.process_time()
    prefix, following = known["prefix"], model.follow("waveform", Call(parameters={}, media={}, upstream={}))
    assert not isinstance(prefix, Artifact)
    text = model.run("tokens", Call(parameters={"text": request.parameters["text"]}, media={}, upstream={}))
    assert not isinstance(text, Artifact)

    def hear(piece: Tensors) -> None:
        if any(len(sound["pcm"]) for sound in following.feed(piece)):
            raise Cancelled

    call = Call(
        parameters={name: request.parameters[name] for name in ("temperature", "num_flow_steps", "seed")},
        media={},
        upstream={"prefix": prefix, "tokens": {whole_name(name): each for name, each in text.items()}},
        piece=hear,
    )
    try:
        model.run("latents", call)
    except Cancelled:
        return time.process_time() - begun
    raise AssertionError("a sentence without sound")


def _tensor(outputs: Mapping[str, Output], name: str, tensor: str) -> torch.Tensor:
    output = outputs[name]
    assert not isinstance(output, Artifact)
    return output[tensor]


def tell(told: Told, out: Console) -> None:
    table = Table("stage", "processor s", "kept bytes", box=None, padding=(0, 2, 0, 0))
    for stage, spent in told.seconds.items():
        table.add_row(stage, f"{spent:.4f}", f"{told.bytes[stage]:,}")
    out.print(table)
    out.print(f"{told.spoken:.2f} s of speech; the first sound after {told.first:.3f} s, the voice being known")
    out.print(f"pieces against the whole: {told.apart} of 16 bits at most, {told.differ:.2%} of samples differ")


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--size", choices=("small", "true"), default="small")
    arguments.add_argument("--tries", type=int, default=5)
    arguments.add_argument("--latents", type=int, default=40)
    return arguments


def main(options: argparse.Namespace, out: Console) -> Told:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = speaker(options.size, Path(folder) / "model")
    told = measure(model, options.tries, options.latents if options.size == "true" else None)
    out.print(f"{options.size} model, one thread, torch {torch.__version__}; {VOICE_SECONDS} s of voice")
    tell(told, out)
    return told


if __name__ == "__main__":
    main(parser().parse_args(), Console())
