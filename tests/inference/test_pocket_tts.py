"""Pocket TTS in stages: what is its own, and the proof that all families of speech owe."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference import pacing, tensors
from inference.errors import InvalidInput
from inference.models import small
from inference.models.base import Artifact, Call, Tensors
from inference.models.pocket_tts import LONGEST_SENTENCE, MOST_SENTENCES, Decoding, PocketTTS, describe
from inference.models.sentences import sentences
from tests.inference.proof import Family, Request, as_tensors, base_request, nudge, opened, results, run
from tests.inference.proof_of_speech import EDITED, SAID, TURNED, SpeechProof, at_random, beside, fed
from tests.inference.speech_fixtures import Voice, ask_speech, live_sound, parts
from tests.inference.voices import recording
from tests.inference.worker_fixtures import open_bench

LINES = (
    "Please hold the line.",
    "Thank you for calling, how can I help you today?",
    "The train leaves from platform two in ten minutes.",
    "We are sorry, your parcel is late, but it will come tomorrow morning.",
    "Once upon a time there was a king who had a house by the sea and a little ship.",
)


def library(model: Any, request: Request) -> dict[str, bytes]:
    """By the library's processor and its `generate`, each sentence right after seeding, in a fork of the global
    generator. It has no means to bring a recording to the codec's rate.
    """
    processor, speaker = model.pipeline.processor, model.pipeline.model
    samples = request.voice.pcm.numpy().astype(np.float32) / np.float32(32768)
    samples = pacing.resampled(samples, request.voice.sample_rate, 24_000)
    said = sentences(str(request.parameters["text"]), length=model._length, longest=LONGEST_SENTENCE)
    whole: dict[str, bytes] = {}
    for index, sentence in enumerate(dict.fromkeys(said)):
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": sentence}]}]
        )
        inputs = processor(text=prompt, audio=[samples], sampling_rate=24_000, return_tensors="pt").to(model.device)
        voice, ids = inputs["audio_prompt_latents"], inputs["input_ids"]
        places = voice.shape[1] + 1
        with torch.no_grad():
            heard = speaker(input_ids=ids[:, :places], audio_prompt_latents=voice, use_cache=True).past_key_values
        prefix = {side: torch.cat([getattr(layer, side) for layer in heard.layers]) for side in ("keys", "values")}
        whole |= {"voice": tensors.to_bytes({"latents": voice[0]}), "prefix": tensors.to_bytes(prefix)}
        spoken = _generated(speaker, request, ids[:, places:], heard, inputs["frames_after_eos"])
        whole[f"latents[{index}]"] = tensors.to_bytes({"latents": spoken})
    return whole


def _generated(speaker: Any, request: Request, ids: torch.Tensor, heard: Any, after_end: torch.Tensor) -> torch.Tensor:
    """Latents [n, D] of one sentence. What is drawn is drawn on the host, whatever the device."""
    temperature = float(request.parameters["temperature"])
    draw = torch.randn
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *shape, device, dtype: draw(*shape, dtype=dtype).to(device))
        torch.manual_seed(int(request.parameters["seed"]))
        latents: torch.Tensor = speaker.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=heard,
            frames_after_eos=after_end,
            num_flow_steps=request.parameters["num_flow_steps"],
            do_sample=temperature > 0,
            **({"temperature": temperature} if temperature > 0 else {}),
        ).audio_latents[0]
    return latents


FAMILY = Family(
    "pocket-tts",
    describe=describe,
    library=library,
    asked={"text": SAID},
    varied={
        "text": (EDITED, TURNED, f"{SAID} And more"),
        "speed": (2.0,),
        "sample_rate": (48_000,),
        "seed": (2**53 - 1,),
    },
    cases=(
        {"temperature": 0.0, "seed": 7},
        {"num_flow_steps": 3, "temperature": 1.5, "text": "Yes"},
        {"speed": 1.37, "sample_rate": 22_050, "format": "ogg"},
        {"text": "word " * 120},
    ),
    weights="model.safetensors",
    changes={
        "encoder weights": (lambda p: nudge(p.codec.encoder), {"voice"}),
        "pause": (lambda p: setattr(p.processor.feature_extractor, "pause_duration", 0.1), {"voice"}),
        "backbone weights": (lambda p: nudge(p.model.model), {"prefix", "latents"}),
        "backbone attention": (lambda p: p.model.set_attn_implementation("eager"), {"prefix", "latents"}),
        "tokenizer": (lambda p: p.processor.tokenizer.add_tokens(["reprise"]), {"tokens"}),
        "template": (lambda p: _replace(p.processor, "chat_template", "'.'", "'!'"), {"tokens"}),
        "latents after the end": (lambda p: setattr(p.processor, "frames_after_eos", 3), {"tokens"}),
        "flow head": (lambda p: nudge(p.model.flow_head), {"latents"}),
        "end head": (lambda p: nudge(p.model.eos_head), {"latents"}),
        "end": (lambda p: setattr(p.model.generation_config, "eos_threshold", -3.0), {"latents"}),
        "statistics": (lambda p: p.model.latent_mean.add_(1), {"latents"}),
        "what only training reads": (lambda p: nudge(p.model.loss_weighting), set()),
        "default": (lambda p: setattr(p.model.generation_config, "temperature", 0.1), set()),
        "decoder weights": (lambda p: nudge(p.codec.decoder), {"waveform"}),
        "decoder projection": (lambda p: nudge(p.codec.latent_proj), {"waveform"}),
        "fade": (lambda p: setattr(p.processor, "fade_in_duration", 0.01), {"waveform"}),
        "codec attention": (lambda p: p.codec.set_attn_implementation("eager"), {"voice", "waveform"}),
    },
    independent=frozenset({"file"}),
    libraries={
        "torch": {"voice", "prefix", "latents", "waveform"},
        "transformers": {"voice", "prefix", "tokens", "latents", "waveform"},
        "tokenizers": {"tokens"},
        "jinja2": {"tokens"},
        "diffusers": set(),
    },
)


def _replace(owner: Any, name: str, old: str, new: str) -> None:
    before = getattr(owner, name)
    setattr(owner, name, before.replace(old, new))
    assert getattr(owner, name) != before


class TestProof(SpeechProof):
    family = FAMILY
    of_library = ("voice", "prefix", "latents")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("models") / "pocket-tts", family="pocket-tts")


@pytest.fixture(scope="module")
def model(folder: Path) -> PocketTTS:
    return speaker_of(folder)


def speaker_of(folder: Path) -> PocketTTS:
    model = opened(folder)
    assert isinstance(model, PocketTTS)
    return model


@pytest.fixture
def request_(model: PocketTTS) -> Request:
    return base_request(model.description, FAMILY.asked)


# --- what a text is ------------------------------------------------------------------------------------------------


def understood(model: PocketTTS, text: str) -> Tensors:
    return as_tensors(model.run("tokens", Call(parameters={"text": text}, media={}, upstream={})))


def test_each_sentence_is_a_part_and_equal_ones_are_one(model: PocketTTS) -> None:
    """The order names parts as they first come; each has the ids, and the latents after its end, of the library."""
    parts = understood(model, "No way. Please hold the line, thank you. No way. Thank you.")
    assert parts["order"].tolist() == [0, 1, 0, 2]
    assert parts.keys() == {"order", *(f"{name}[{part}]" for name in ("ids", "frames_after_eos") for part in range(3))}
    assert [int(parts[f"frames_after_eos[{part}]"]) for part in range(3)] == [4, 2, 4]
    for part, sentence in enumerate(("No way.", "Please hold the line, thank you.", "Thank you.")):
        assert model.pipeline.processor.tokenizer.decode(parts[f"ids[{part}]"][0]) == f" {sentence}<audio_bos>"


@pytest.mark.parametrize("same", ["no way", "No way", " no\tway. ", "No\n\u3000way."])
def test_what_the_model_reads_alike_is_one_part(model: PocketTTS, same: str) -> None:
    """White space, and what the template adds, make no other ids; what is heard in the voice does."""
    parts, other = understood(model, "No way."), understood(model, same)
    assert parts.keys() == other.keys()
    assert all(parts[name].equal(other[name]) for name in parts)
    assert not parts["ids[0]"].equal(understood(model, "No way!")["ids[0]"])


@pytest.mark.parametrize("text", ["...", "?! —", "«»", ""])
def test_nothing_to_say_is_refused(model: PocketTTS, text: str) -> None:
    """A text without a letter or digit is the caller's mistake, told of the field."""
    with pytest.raises(InvalidInput, match="something to say") as refused:
        understood(model, text)
    assert refused.value.field == "text"


def test_too_many_sentences_are_refused(model: PocketTTS) -> None:
    """The most that may be said are said; one more is refused with both numbers."""
    assert len(understood(model, "Yes. " * MOST_SENTENCES)["order"]) == MOST_SENTENCES
    with pytest.raises(InvalidInput, match="at most 64 sentences; it has 65") as refused:
        understood(model, "Yes. " * (MOST_SENTENCES + 1))
    assert refused.value.field == "text"


def test_what_stands_for_sound_cannot_be_written(model: PocketTTS) -> None:
    """Every special token is refused by gateways, and those that would take the voice's place here too."""
    (text,) = (each for each in model.description.parameters if each.name == "text")
    assert set(text.refuses) == {
        "<|",
        "|>",
        "<pad>",
        *(f"<audio_{name}>" for name in ("prompt", "latent", "prompt_bos", "bos")),
    }
    for token in ("<audio_prompt>", "<audio_latent>", "<audio_prompt_bos>", "<audio_bos>"):
        with pytest.raises(InvalidInput, match="command"):
            understood(model, f"Yes {token} no.")


def test_long_sentences_are_cut(model: PocketTTS) -> None:
    """No part is longer than the library makes them; together they say it all."""
    text = ", ".join(f"the {word} of the king" for word in "house ship road river door light friend child".split() * 3)
    parts = understood(model, text)
    ids = [parts[f"ids[{index}]"][0] for index in parts["order"].tolist()]
    assert len(ids) > 1
    assert max(map(len, ids)) <= LONGEST_SENTENCE + 2  # the template's mark, and what begins the sound
    said = "".join(model.pipeline.processor.tokenizer.decode(each, skip_special_tokens=True) for each in ids)
    assert said.strip().lower() == f"{text}."


# --- what a sentence sounds like -----------------------------------------------------------------------------------


def latents(model: PocketTTS, request: Request) -> list[torch.Tensor]:
    outputs = run(model, request)
    return [as_tensors(output)["latents"] for name, output in outputs.items() if name.startswith("latents[")]


def test_sentences_end_by_themselves(model: PocketTTS, request_: Request) -> None:
    """Before the library would cut them off, and the later the more they say."""
    for seed in range(3):
        lengths = [len(each) for each in latents(model, request_.but(text=" ".join(LINES), seed=seed))]
        tokens = [understood(model, line)["ids[0]"].shape[1] - 1 for line in LINES]
        assert all(length < (count / 3 + 2) * 12.5 for length, count in zip(lengths, tokens, strict=True))
        assert lengths[0] < lengths[2] < lengths[4]


def test_decoding_at_once_gives_the_same_but_for_rounding(model: PocketTTS, request_: Request) -> None:
    """Pieces, whatever attention and convolutions reach back to, join to what the library decodes in one."""
    for each in latents(model, request_.but(text=" ".join(LINES))):
        whole = (model.pipeline.processor.decode(each) * 32768).round().clamp(-32768, 32767)
        difference = (fed(Decoding(model.pipeline), {"latents": each}) - whole).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_sound_does_not_depend_on_how_it_came(model: PocketTTS, request_: Request, seed: int) -> None:
    """Fed at once, one by one or in any other pieces, decoding and pacing give the same bits."""
    whole = {"latents": torch.cat(latents(model, request_))}
    decoded = fed(Decoding(model.pipeline), whole)
    assert fed(Decoding(model.pipeline), whole, at_random(seed, 1)).equal(decoded)
    assert fed(Decoding(model.pipeline), whole, at_random(seed, 9)).equal(decoded)
    for changes in ({}, {"speed": 1.37}, {"sample_rate": 44_100}, {"speed": 0.6, "sample_rate": 8000}):
        call = Call(parameters={"speed": 1.0, "sample_rate": 24_000, **changes}, media={}, upstream={})
        paced = fed(model.follow("pace", call), {"pcm": decoded})
        assert fed(model.follow("pace", call), {"pcm": decoded}, at_random(seed, 5000)).equal(paced)


def test_sound_comes_as_soon_as_it_can(model: PocketTTS) -> None:
    """After four latents there is a third of a second of sound, and what is left over comes at the end."""
    decoding = Decoding(model.pipeline)
    counts = [sum(len(piece["pcm"]) for piece in decoding.feed({"latents": torch.randn(1, 32)})) for _ in range(10)]
    assert counts == [0, 0, 0, 4 * 1920, 0, 0, 0, 4 * 1920, 0, 0]
    assert [len(piece["pcm"]) for piece in decoding.end()] == [2 * 1920]


@pytest.mark.parametrize(("speed", "sample_rate"), [(1.0, 24_000), (2.0, 24_000), (0.5, 16_000), (1.0, 48_000)])
def test_a_file_is_as_long_as_it_should_be(model: PocketTTS, request_: Request, speed: float, sample_rate: int) -> None:
    """Every sentence is as long as its latents say, to the sample, over its speed and at its rate."""
    outputs = run(model, request_.but(speed=speed, sample_rate=sample_rate))
    for index in range(2):
        count = len(as_tensors(outputs[f"latents[{index}]"])["latents"])
        assert len(as_tensors(outputs[f"pace[{index}]"])["pcm"]) == round(count * 1920 / speed * sample_rate / 24_000)


def test_a_sentence_does_not_know_what_is_said_around_it(model: PocketTTS, request_: Request) -> None:
    """Alone, first or last, it has the same latents for the same seed."""
    (alone,) = latents(model, request_.but(text=LINES[1]))
    assert latents(model, request_.but(text=f"{LINES[0]} {LINES[1]}"))[1].equal(alone)
    assert latents(model, request_.but(text=f"{LINES[1]} {LINES[0]}"))[0].equal(alone)


def test_what_others_do_meanwhile_changes_nothing(folder: Path, model: PocketTTS, request_: Request) -> None:
    """With threads beside it that draw, seed and speak with other seeds, a run gives the bits it gives alone."""
    alone = results(run(model, request_), SpeechProof.of_run)
    with beside([partial(disturb, speaker_of(folder), request_, seed) for seed in range(1, 4)]):
        for _ in range(3):
            assert results(run(model, request_), SpeechProof.of_run) == alone


def disturb(other: PocketTTS, request: Request, seed: int) -> None:
    torch.manual_seed(seed)
    torch.randn(100)
    run(other, request.but(seed=seed))


# --- the voice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "sample_rate"), [(1.0, 16_000), (2.5, 48_000), (3.5, 22_050), (30.0, 16_000)])
def test_a_voice_is_heard_at_its_own_rate(
    model: PocketTTS, request_: Request, seconds: float, sample_rate: int
) -> None:
    """Whatever rate it came at, it has 12.5 latents for a second of it, less the silence it ends with."""
    sound = recording(0, seconds, sample_rate)
    outputs = model.run("voice", Call(parameters={}, media={}, upstream={}, sounds={"voice": sound}))
    count = len(as_tensors(outputs)["latents"])
    assert 12.5 * (seconds - 0.3) <= count <= 12.5 * (seconds + 0.08) + 1


def test_the_prefix_is_the_voice_and_what_stands_before_it(model: PocketTTS, request_: Request) -> None:
    """A key and a value for every latent of the voice and one more, in every layer and head."""
    outputs = run(model, request_)
    count = len(as_tensors(outputs["voice"])["latents"])
    prefix = as_tensors(outputs["prefix"])
    assert {name: tuple(tensor.shape) for name, tensor in prefix.items()} == dict.fromkeys(
        ("keys", "values"), (2, 4, count + 1, 16)
    )


# --- on a worker ---------------------------------------------------------------------------------------------------


async def test_a_worker_answers_what_the_model_makes_alone(model: PocketTTS, request_: Request, tmp_path: Path) -> None:
    """Heard live or read from the file, sentences made anew or kept: the bits are those of a run without a worker."""
    async with open_bench(tmp_path / "l3", model=model) as bench:
        await bench.shop.compute(torch.set_num_threads, 1)  # which torch keeps for each thread
        for text, runs in ((SAID, ["RUN", "RUN", "REUSED"]), (EDITED, ["NOT_NEEDED", "RUN", "NOT_NEEDED"])):
            asked = ask_speech(model.description, text, voice=Voice(), speed=1.25)
            heard = await bench.begin_request(asked).end()
            assert heard.data == await asyncio.to_thread(file_of, model, request_.but(text=text, speed=1.25))
            assert live_sound(heard) == heard.data[44:]
            assert parts(heard, "latents") == runs
        flac = ask_speech(model.description, EDITED, voice=Voice(), speed=1.25, format="flac")
        told = (await bench.begin_request(flac).end()).stages
        assert {stage for stage, (outcome, _) in told.items() if outcome == "RUN"} == {"pace", "file"}


def file_of(model: PocketTTS, request: Request) -> bytes:
    torch.set_num_threads(1)
    file = run(model, request)["file"]
    assert isinstance(file, Artifact)
    return file.data


# --- loading -------------------------------------------------------------------------------------------------------


def test_a_head_without_steps_has_no_such_parameter(folder: Path, request_: Request) -> None:
    """A flow head that takes one step in any case declares no number of them, and speaks."""
    model = speaker_of(folder)
    model.model.config.flow_head_config.flow_type = "drifting"
    model.description = describe(model.pipeline, "small", random_weights=True)
    request = base_request(model.description, FAMILY.asked)
    assert "num_flow_steps" not in request.parameters
    assert all(len(each) > 6 for each in latents(model, request))


def test_a_codec_may_be_anywhere(folder: Path, tmp_path: Path) -> None:
    """Where the processor's file says, in the model's folder or out of it; nowhere is a ValueError."""
    elsewhere = shutil.copytree(folder, tmp_path / "model")
    codec = shutil.move(elsewhere / "audio_tokenizer", tmp_path / "codec")
    with pytest.raises(ValueError, match="no folder audio_tokenizer"):
        opened(elsewhere)
    edit(
        elsewhere / "processor_config.json",
        lambda config: config["audio_tokenizer"].update(audio_tokenizer_name_or_path=str(codec)),
    )
    assert opened(elsewhere).description == opened(folder).description
    edit(elsewhere / "processor_config.json", lambda config: config.pop("audio_tokenizer"))
    with pytest.raises(ValueError, match="names no codec"):
        opened(elsewhere)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


UNKNOWN: dict[str, Callable[[Path], object]] = {
    "half of a codec": lambda folder: edit(
        folder / "audio_tokenizer" / "config.json", lambda config: config.update(encoder_config=None)
    ),
    "cannot be decoded in pieces": lambda folder: edit(
        folder / "audio_tokenizer" / "config.json", lambda config: config.update(use_causal_conv=False)
    ),
    "hears at another rate": lambda folder: edit(
        folder / "processor_config.json", lambda config: config["feature_extractor"].update(sampling_rate=16_000)
    ),
    "does not come before the text": lambda folder: (folder / "chat_template.jinja").write_text(
        "{% set content = messages[0]['content'] %}{{ content[-1]['text'] }}"
        "{{ audio_prompt_token if content | length > 1 }}{{ audio_bos_token }}"
    ),
}


@pytest.mark.parametrize("reason", UNKNOWN)
def test_what_is_computed_otherwise_is_refused(folder: Path, tmp_path: Path, reason: str) -> None:
    """A relative of this family with another graph is a ValueError when it is loaded, and not wrong bits later."""
    other = shutil.copytree(folder, tmp_path / "other")
    UNKNOWN[reason](other)
    with pytest.raises(ValueError, match=reason):
        opened(other)
