"""CosyVoice 3 in stages: the proof that all families of speech owe, and what is its own.

It runs on a stand-in for a checkout (`checkout/`), or on the real classes where REPRISE_COSYVOICE names one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference import tensors
from inference.errors import InvalidInput
from inference.models import small
from inference.models.base import Artifact, Call, Tensors
from inference.models.cosyvoice3 import sounding, speaking
from inference.models.cosyvoice3.family import CosyVoice3, describe
from inference.models.cosyvoice3.reading import LONGEST_SENTENCE, MOST_SENTENCES, Reading
from tests.inference.proof import Family, Request, Shelf, as_tensors, base_request, nudge, opened, results, run
from tests.inference.proof_of_speech import SpeechProof, at_random, beside, fed
from tests.inference.speech_fixtures import Voice, ask_speech, live_sound, parts
from tests.inference.voices import recording
from tests.inference.worker_fixtures import open_bench

SAID = "Hello there! Please hold [breath] the line. Hello there!"
EDITED = "Hello there! Please hold [breath] the door. Hello there!"
TURNED = "Please hold [breath] the line. Hello there! Hello there!"
RESPACED = "\tHello  there!\nPlease\u3000hold [breath]  the line.   Hello there! "
TRANSCRIPT = "The cat walks through the rain."
KNOWN: dict[Any, dict[str, bytes]] = {}  # what `library` has made; it reads no more of a request than it is known by


def library(model: CosyVoice3, request: Request) -> dict[str, bytes]:
    """By CosyVoice's own loop, right after seeding in a fork of the global generator, with what is wrong with it put
    right: the mask, and the tokens that end nothing too early. Then its own flow, sentence by sentence.
    """
    speaker, parameters = model.pipeline, request.parameters
    reads = ("text", "transcript", "instruction", "markup", "chunk_plan", "seed")
    asked = (model, request.voice.pcm.numpy().tobytes(), *(parameters[name] for name in reads))
    if asked in KNOWN:
        return KNOWN[asked]
    with torch.no_grad():
        voice = model._voice(call(sounds={"voice": request.voice}))
    prompt = model._reading.prompt(str(parameters["instruction"]), str(parameters["transcript"]))
    said = model._reading.sentences(str(parameters["text"]), markup=parameters["markup"] == "on")
    made = KNOWN[asked] = {}
    for index, ids in enumerate(dict.fromkeys(map(tuple, said))):
        heard = voice["tokens"] if parameters["transcript"] else voice["tokens"][:0]
        units = spoken(speaker.llm, [*prompt, *ids], len(ids), heard, int(parameters["seed"]))
        kept = torch.tensor(without_long_silence(units, speaker.silent), dtype=torch.int32, device=model.device)
        made[f"units[{index}]"] = tensors.to_bytes({"units": kept})
        mel = flowed(speaker.flow, kept, voice, growing=parameters["chunk_plan"] == "growing")
        made[f"mel[{index}]"] = tensors.to_bytes({"mel": mel})
    return made


def spoken(llm: Any, ids: list[int], text: int, heard: torch.Tensor, seed: int) -> list[int]:
    words, sounds = llm.llm.model.model.embed_tokens.weight, llm.speech_embedding.weight
    rows = [sounds[[llm.sos]], words[ids], sounds[[llm.task_id]], sounds[heard.long()]]
    one_step, sampling_ids = llm.llm.forward_one_step, llm.sampling_ids

    def remembering(xs: torch.Tensor, masks: torch.Tensor, cache: Any = None) -> Any:
        long = xs.shape[1] + (cache.get_seq_length() if cache is not None else 0)
        return one_step(xs, torch.ones(1, long, long, dtype=torch.bool, device=xs.device), cache)

    def not_too_early(scores: torch.Tensor, said: list[int], sampling: int, ignore_eos: bool = True) -> Any:
        scores = scores.to("cpu")
        if ignore_eos:
            scores[llm.stop_token_ids] = -torch.inf
        return sampling_ids(scores, said, sampling, False)

    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(llm.llm, "forward_one_step", remembering)
        patch.setattr(llm, "sampling_ids", not_too_early)
        torch.manual_seed(seed)
        return [int(token) for token in llm.inference_wrapper(torch.cat(rows)[None], 25, 2 * text, 20 * text, "")]


def without_long_silence(units: list[int], silent: frozenset[int]) -> list[int]:
    """No more than five tokens of silence in a row."""
    kept: list[int] = []
    run = 0
    for unit in units:
        run = run + 1 if unit in silent else 0
        if run <= 5:
            kept.append(unit)
    return kept


def flowed(flow: Any, units: torch.Tensor, voice: Tensors, *, growing: bool) -> torch.Tensor:
    """[2n, bands]. Growing: of the first 25, 75, 175, 275... tokens and three more, counted so that the recording's and
    these are a multiple of 25; and then of all of them.
    """
    before = -len(voice["tokens"]) % 25
    ends = (
        [before + end for end in (25, 75, *range(175, 2000, 100)) if before + end + 3 < len(units)] if growing else []
    )
    parts: list[torch.Tensor] = []
    for end in [*ends, None]:
        given = units if end is None else units[: end + 3]
        mel, _ = flow.inference(
            token=given[None],
            token_len=torch.tensor([len(given)], dtype=torch.int32),
            prompt_token=voice["tokens"][None],
            prompt_token_len=torch.tensor([len(voice["tokens"])], dtype=torch.int32),
            prompt_feat=voice["mel"][None],
            prompt_feat_len=torch.tensor([len(voice["mel"])], dtype=torch.int32),
            embedding=voice["embedding"][None],
            streaming=growing,
            finalize=end is None,
        )
        parts.append(mel[0].T[sum(map(len, parts)) :])
    return torch.cat(parts)


def call(parameters: dict[str, Any] | None = None, upstream: dict[str, Tensors] | None = None, **more: Any) -> Any:
    return Call(parameters=parameters or {}, media={}, upstream=upstream or {}, **more)


def replace(speaker: Any, **changes: Any) -> None:
    for name, value in changes.items():
        object.__setattr__(speaker, name, value)


FAMILY = Family(
    "cosyvoice3",
    describe=describe,
    library=library,
    asked={"text": SAID, "transcript": TRANSCRIPT, "markup": "on"},
    varied={
        "text": (EDITED, TURNED, f"{SAID} And more"),
        "instruction": ("Speak slowly, please.",),
        "speed": (2.0,),
        "sample_rate": (48_000,),
        "seed": (2**53 - 1,),
    },
    cases=(
        {"transcript": "", "instruction": "Speak like a robot.", "seed": 7},
        {"transcript": "", "chunk_plan": "whole", "text": "Yes"},
        {"speed": 1.37, "sample_rate": 22_050, "format": "ogg"},
        {"text": "word " * 90, "seed": 3},
    ),
    weights="flow.pt",
    changes={
        "speech tokenizer": (lambda p: p.graphs.update({"speech tokenizer": "another"}), {"voice"}),
        "speaker graph": (lambda p: p.graphs.update({"speaker": "another"}), {"voice"}),
        "mel": (lambda p: p.config.update(feat_extractor="another"), {"voice"}),
        "tokenizer": (lambda p: p.frontend.tokenizer.tokenizer.add_tokens(["reprise"]), {"prompt", "tokens"}),
        "front end": (lambda p: setattr(p.frontend, "text_frontend", ""), {"prompt", "tokens"}),
        "words": (lambda p: nudge(p.llm.llm.model.model), {"units"}),
        "sounds": (lambda p: nudge(p.llm.speech_embedding), {"units"}),
        "head": (lambda p: nudge(p.llm.llm_decoder), {"units"}),
        "attention": (lambda p: p.llm.llm.model.set_attn_implementation("eager"), {"units"}),
        "sampling": (lambda p: replace(p, sampling=dataclasses.replace(p.sampling, top_k=3)), {"units"}),
        "silence": (lambda p: replace(p, silent=frozenset({7})), {"units"}),
        "flow weights": (lambda p: nudge(p.flow), {"mel"}),
        "flow noise": (lambda p: p.flow.decoder.rand_noise[0, 0].add_(1), {"mel"}),
        "flow config": (lambda p: p.config.update(flow="another"), {"mel"}),
        "vocoder weights": (lambda p: nudge(p.hift), {"waveform"}),
        "vocoder noise": (lambda p: p.hift.m_source.l_sin_gen.sine_waves[0, 0].add_(1), {"waveform"}),
        "vocoder phases": (lambda p: p.hift.m_source.l_sin_gen.rand_ini.add_(1), {"waveform"}),
        "code": (lambda p: replace(p, code="another"), {"voice", "prompt", "tokens", "mel", "waveform"}),
        "rate": (lambda p: replace(p, sample_rate=22_050), {"pace"}),
    },
    independent=frozenset({"file"}),
    libraries={
        "torch": {"voice", "units", "mel", "waveform"},
        "transformers": {"prompt", "tokens", "units"},
        "tokenizers": {"prompt", "tokens"},
        "onnxruntime": {"voice"},
        "diffusers": set(),
    },
)


@pytest.mark.timeout(300)  # it speaks all that is asked twice, and CosyVoice's own loop is slow
class TestProof(SpeechProof):
    family = FAMILY
    of_library = ("units", "mel")
    of_run = ("units", "mel", "waveform", "pace", "file")
    of_sentence = ("units", "mel", "waveform")
    of_speed = ("waveform",)
    said, edited, turned, respaced = SAID, EDITED, TURNED, RESPACED

    def read_weights(self, file: Path) -> Tensors:
        state: Tensors = torch.load(file, weights_only=True)
        return state

    def write_weights(self, state: Tensors, file: Path) -> None:
        torch.save(state, file)

    def test_pickled_weights_are_never_read(self, folder: Path, tmp_path: Path) -> None:
        """A file of weights is opened for its tensors alone: whatever else is in it is refused, and never made."""
        copy = shutil.copytree(folder, tmp_path / "model")
        torch.save({"weight": Trap(tmp_path / "sprung")}, copy / self.family.weights)
        with pytest.raises(ValueError, match="more than tensors"):
            opened(copy)
        assert not (tmp_path / "sprung").exists()
        (copy / self.family.weights).unlink()
        with pytest.raises(ValueError, match=r"flow\.pt cannot be read"):
            opened(copy)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("models") / "cosyvoice3", family="cosyvoice3")


@pytest.fixture(scope="module")
def model(folder: Path) -> CosyVoice3:
    return speaker_of(folder)


def speaker_of(folder: Path) -> CosyVoice3:
    model = opened(folder)
    assert isinstance(model, CosyVoice3)
    return model


@pytest.fixture
def request_(model: CosyVoice3) -> Request:
    return base_request(model.description, FAMILY.asked)


# --- modes ---------------------------------------------------------------------------------------------------------


def units(model: CosyVoice3, request: Request) -> list[list[int]]:
    return [as_tensors(output)["units"].tolist() for name, output in run(model, request).items() if "units[" in name]


@pytest.mark.parametrize("instruction", ["", "Speak like an old king."])
def test_voices_share_what_is_said(model: CosyVoice3, request_: Request, instruction: str) -> None:
    """Without a transcript another voice, or one more, runs nothing before the frames; with one the model goes on from
    the recording, and says something else.
    """
    shelf = Shelf()
    request = request_.but(transcript="", instruction=instruction)
    shelf.run(model, request)
    shelf.ran.clear()
    shelf.run(model, request.but(voice=recording(1)))
    each = [f"{stage}[{part}]" for part in range(2) for stage in ("mel", "waveform")]
    assert sorted(shelf.ran) == sorted(["voice", *each, "file"])
    assert units(model, request_.but(voice=recording(1))) != units(model, request_)


def test_an_instruction_is_kept_with_a_voice_that_is(model: CosyVoice3, request_: Request) -> None:
    """A voice that was stored without one, or with another, is told how to speak all the same."""
    shelf = Shelf()
    heard = [request_, *(request_.but(instruction=how) for how in ("Whisper.", "Shout."))]
    heard += [request.but(transcript="") for request in heard]
    said = [as_tensors(shelf.run(model, request)["units[0]"])["units"].tolist() for request in heard]
    assert len({tuple(each) for each in said}) == len(heard)
    assert shelf.ran.count("voice") == 1


def test_what_stands_before_a_text(model: CosyVoice3) -> None:
    """What to be, how to speak, the mark that ends it, and what is said in the recording."""
    read = partial(told, model, "prompt")
    tokenizer = model.pipeline.frontend.tokenizer.tokenizer
    assert tokenizer.decode(read(instruction="", transcript="")) == "You are a helpful assistant.<|endofprompt|>"
    both = tokenizer.decode(read(instruction=" Speak\n slowly. ", transcript="Yes  indeed"))
    assert both == "You are a helpful assistant. Speak slowly.<|endofprompt|>Yes indeed"


def told(model: CosyVoice3, stage: str, **parameters: str) -> list[int]:
    ids: list[int] = as_tensors(model.run(stage, call(parameters)))["ids"].tolist()
    return ids


# --- texts ---------------------------------------------------------------------------------------------------------


def understood(model: CosyVoice3, text: str, markup: str = "off") -> Tensors:
    return as_tensors(model.run("tokens", call({"text": text, "markup": markup})))


def words(model: CosyVoice3, text: str, markup: str = "off") -> list[list[str]]:
    """The tokens of each sentence, as they are spelled."""
    read = understood(model, text, markup)
    tokenizer = model.pipeline.frontend.tokenizer.tokenizer
    return [tokenizer.convert_ids_to_tokens(read[f"ids[{part}]"].tolist()) for part in read["order"].tolist()]


def texts(model: CosyVoice3, text: str, markup: str = "off") -> list[str]:
    read = understood(model, text, markup)
    tokenizer = model.pipeline.frontend.tokenizer.tokenizer
    return [tokenizer.decode(read[f"ids[{part}]"].tolist()) for part in read["order"].tolist()]


def test_each_sentence_is_a_part_and_equal_ones_are_one(model: CosyVoice3) -> None:
    """The order names parts as they first come."""
    parts = understood(model, "No way. Please hold the line. No way.")
    assert parts["order"].tolist() == [0, 1, 0]
    assert parts.keys() == {"order", "ids[0]", "ids[1]"}
    assert texts(model, "No way. Please hold the line. No way.") == ["No way.", "Please hold the line.", "No way."]


@pytest.mark.parametrize("text", ["...", "?! —", "。。。", "！", "«»", "   ", ""])
def test_nothing_to_say_is_refused(model: CosyVoice3, text: str) -> None:
    """A text without a letter or digit is the caller's mistake, told of the field, and never silence or a fault."""
    with pytest.raises(InvalidInput, match="something to say") as refused:
        understood(model, text)
    assert refused.value.field == "text"


@pytest.mark.parametrize(
    "text", ["Two  spaces,  and\n\na line.", "好。  好。", "Wait... what?", "。。。Yes.", "(So) it is — or not?"]
)
def test_what_people_write_can_be_read(model: CosyVoice3, text: str) -> None:
    """Whatever the front end itself would fail on."""
    assert all(any(letter.isalnum() for letter in said) for said in texts(model, text))


def test_numbers_are_read_in_the_language_around_them(model: CosyVoice3) -> None:
    """By the front end, also where markup stands between them and the words of their sentence."""
    if model.pipeline.frontend.text_frontend != "wetext":
        pytest.skip("nothing reads numbers here")
    assert "7" not in texts(model, "Room 7 please.")[0]
    for text in ("我有7个。", "我有[breath]7[breath]个。", "我有[breath]7。"):
        (said,) = texts(model, text, "on")
        assert "七" in said, said


def test_what_reads_numbers_is_known_by_either_name() -> None:
    """That it is in use is told by a word, or, in versions before, by what is there; another word is refused."""
    kinds: list[dict[str, Any]] = [
        {"text_frontend": "wetext"},
        {"text_frontend": ""},
        {"use_ttsfrd": True},
        {"zh_tn_model": object()},
        {},
    ]
    tokenizer = SimpleNamespace(tokenizer=SimpleNamespace(get_added_vocab=dict))
    read = [Reading(SimpleNamespace(tokenizer=tokenizer, **each)).kind for each in kinds]
    assert read == ["wetext", "", "ttsfrd", "wetext", ""]
    with pytest.raises(ValueError, match="read by a person, which is not known"):
        Reading(SimpleNamespace(tokenizer=tokenizer, text_frontend="a person"))


@pytest.mark.parametrize("mark", ["[breath]", "[laughter]", "<strong>", "[AY0]", "[AY1]", "[h]", "[ǎo]", "[B]", "[b]"])
@pytest.mark.parametrize("text", ["I{} see.", "我{}知道。", "Well, {} yes  and {}no.", "你好，{}再见。"])
def test_markup_is_a_sound_where_it_is_asked_for(model: CosyVoice3, text: str, mark: str) -> None:
    """On, each mark is the model's own token, wherever it stands; off, none is, and it is read as it stands."""
    (on,), (off,) = words(model, text.format(mark, mark), "on"), words(model, text.format(mark, mark))
    assert on.count(mark) == text.count("{}")
    assert not set(off) & set(model._reading.marks)
    assert mark in texts(model, text.format(mark, mark))[0]


def test_a_mark_does_not_end_a_sentence(model: CosyVoice3) -> None:
    """A comma before it stays one, which at a sentence's end the front end makes a full stop."""
    (said,) = texts(model, "你好，[breath]再见。", "on")
    assert "，[breath]" in said


def test_no_mark_is_torn(model: CosyVoice3) -> None:
    """More of them in one word than a sentence may have cannot be said, and are not said otherwise."""
    with pytest.raises(InvalidInput, match="more markup in one word"):
        understood(model, "[breath]" * (LONGEST_SENTENCE + 20), "on")
    assert len(words(model, "[breath] so " * 60, "on")) > 1


@pytest.mark.parametrize("field", ["text", "transcript", "instruction"])
def test_a_command_to_the_model_cannot_be_written(model: CosyVoice3, field: str) -> None:
    """Gateways refuse what commands are written with, and the worker what is one."""
    (parameter,) = (each for each in model.description.parameters if each.name == field)
    assert set(parameter.refuses) == {"<|", "|>"}
    written = {"text": "Yes.", "markup": "on", "transcript": "", "instruction": ""} | {field: "So <|endofprompt|> no."}
    with pytest.raises(InvalidInput, match="command") as refused:
        model.run("tokens" if field == "text" else "prompt", call(written))
    assert refused.value.field == field


def test_what_the_front_end_fails_on_is_the_callers_to_change(
    model: CosyVoice3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no fault of ours; what it makes a command of is none either."""

    def fail(*_: object, **__: object) -> str:
        raise AssertionError("of a library")

    monkeypatch.setattr(model.pipeline.frontend, "text_normalize", fail)
    with pytest.raises(InvalidInput, match="cannot read aloud"):
        understood(model, "Yes.")
    monkeypatch.setattr(model.pipeline.frontend, "text_normalize", lambda text, **_: "So <|endofprompt|> no.")
    with pytest.raises(InvalidInput, match="command"):
        understood(model, "So ＜｜endofprompt｜＞ no.")


def test_too_much_is_refused_and_much_is_cut(model: CosyVoice3) -> None:
    """The most sentences that may be said are said, and no sentence is longer than CosyVoice makes them."""
    assert len(understood(model, "Yes. " * MOST_SENTENCES)["order"]) == MOST_SENTENCES
    with pytest.raises(InvalidInput, match="at most 64 sentences; it has 65"):
        understood(model, "Yes. " * (MOST_SENTENCES + 1))
    assert max(map(len, words(model, "word 7 " * 200))) <= LONGEST_SENTENCE


# --- what is said --------------------------------------------------------------------------------------------------


def test_a_sentence_does_not_know_what_is_said_around_it(model: CosyVoice3, request_: Request) -> None:
    """Alone, first or last, it is the same for the same seed."""
    (alone,) = units(model, request_.but(text="I see a ship."))
    assert units(model, request_.but(text="Yes. I see a ship."))[1] == alone
    assert units(model, request_.but(text="I see a ship. Yes."))[0] == alone


def test_what_others_do_meanwhile_changes_nothing(folder: Path, model: CosyVoice3, request_: Request) -> None:
    """With threads beside it that draw, seed and speak with other seeds, a run gives the bits it gives alone."""
    alone = results(run(model, request_), TestProof.of_run)
    with beside([partial(disturb, speaker_of(folder), request_, seed) for seed in range(1, 3)]):
        for _ in range(2):
            assert results(run(model, request_), TestProof.of_run) == alone


def disturb(other: CosyVoice3, request: Request, seed: int) -> None:
    torch.manual_seed(seed)
    torch.randn(100)
    run(other, request.but(seed=seed))


def test_long_silence_is_cut_short(model: CosyVoice3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens of it in a row are kept, and every one of those that are not is a step all the same."""
    silent = min(model.pipeline.silent)
    script = [7, *[silent] * 9, 8, *[silent] * 3, 9]
    drawn = iter([*script, model.pipeline.llm.eos_token])
    monkeypatch.setattr(speaking.Sampling, "draw", lambda *_: next(drawn))
    steps: list[tuple[int, int]] = []
    ids = torch.arange(5)
    upstream = {"tokens": {"ids": ids}, "prompt": {"ids": ids}}
    said = model.run("units", call({"seed": 1}, upstream, step=lambda done, of: steps.append((done, of))))
    assert as_tensors(said)["units"].tolist() == [7, *[silent] * 5, 8, *[silent] * 3, 9]
    assert len(steps) == len(script)
    assert steps[-1] == (11, 11)


def test_what_is_said_is_as_long_as_its_text_allows(model: CosyVoice3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends it before two tokens for each of the text, and everything does after twenty."""
    bounds: list[bool] = []
    over = torch.tensor(model.pipeline.llm.stop_token_ids)

    def draw(self: object, scores: torch.Tensor, said: list[int], generator: object) -> int:
        bounds.append(bool(torch.isinf(scores[over]).all()))
        return 7

    monkeypatch.setattr(speaking.Sampling, "draw", draw)
    upstream = {"tokens": {"ids": torch.arange(3)}, "prompt": {"ids": torch.arange(4)}}
    said = model.run("units", call({"seed": 1}, upstream))
    assert len(as_tensors(said)["units"]) == 60
    assert bounds == [True] * 6 + [False] * 54


# --- how it sounds -------------------------------------------------------------------------------------------------


def made(model: CosyVoice3, count: int = 210) -> tuple[Tensors, Tensors]:
    """A voice, and tokens of a long sentence."""
    voice = as_tensors(model.run("voice", call(sounds={"voice": recording()})))
    draw = torch.Generator().manual_seed(1)
    return voice, {"units": torch.randint(0, 6561, (count,), generator=draw, dtype=torch.int32)}


@pytest.mark.parametrize("seed", range(3))
def test_sound_does_not_depend_on_how_it_came(model: CosyVoice3, seed: int) -> None:
    """Fed at once, one by one or in any other pieces, frames and samples have the same bits."""
    voice, said = made(model, 120)
    for plan in ("growing", "whole"):
        follow = partial(model.follow, "mel", call({"chunk_plan": plan}, {"voice": voice}))
        mel = fed(follow(), said)
        assert fed(follow(), said, at_random(seed, 1)).equal(mel)
        assert fed(follow(), said, at_random(seed, 60)).equal(mel)
    for speed in (1.0, 1.37, 0.5, 2.0):
        follow = partial(model.follow, "waveform", call({"speed": speed}))
        pcm = fed(follow(), {"mel": mel})
        assert fed(follow(), {"mel": mel}, at_random(seed, 1)).equal(pcm)
        assert fed(follow(), {"mel": mel}, at_random(seed, 90)).equal(pcm)
        assert len(pcm) == int(len(mel) / speed) * 480


def test_chunks_follow_from_the_request(model: CosyVoice3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sound comes after 28 tokens and as many as the recording lacks of a whole chunk, of the tenth sentence
    as of the first; whole, there is none before all is there.
    """
    voice, said = made(model)
    short = -len(voice["tokens"]) % 25
    lengths: list[tuple[int, bool, bool]] = []
    infer = model.pipeline.flow.inference

    def counted(**given: Any) -> Any:
        lengths.append((given["token"].shape[1], given["streaming"], given["finalize"]))
        return infer(**given)

    monkeypatch.setattr(model.pipeline.flow, "inference", counted)
    for _ in range(10):
        lengths.clear()
        fed(model.follow("mel", call({"chunk_plan": "growing"}, {"voice": voice})), said, at_random(0, 1))
        assert lengths == [*((short + end + 3, True, False) for end in (25, 75, 175)), (210, True, True)]
    lengths.clear()
    fed(model.follow("mel", call({"chunk_plan": "whole"}, {"voice": voice})), said, at_random(0, 1))
    assert lengths == [(210, False, True)]


def test_samples_in_chunks_are_those_of_the_whole(model: CosyVoice3) -> None:
    """But for rounding: the vocoder looks ahead by a few frames, and those are waited for."""
    voice, said = made(model)
    mel = fed(model.follow("mel", call({"chunk_plan": "growing"}, {"voice": voice})), said)
    pcm = fed(model.follow("waveform", call({"speed": 1.0})), {"mel": mel})
    whole, _ = model.pipeline.hift.inference(speech_feat=mel.T[None].contiguous(), finalize=True)
    difference = (pcm - (whole[0] * 32768).round().clamp(-32768, 32767)).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.01


def test_frames_at_another_speed_stand_between_their_neighbours(model: CosyVoice3) -> None:
    """Each is where it would be among the others; at the ends they are the ends."""
    frames = torch.arange(40.0)[:, None].repeat(1, 80)
    for speed in (0.5, 1.25, 2.0):
        paced = sounding._Paced(speed)
        given = torch.cat([paced.feed(frames[:7]), paced.feed(frames[7:]), paced.end()])
        places = ((torch.arange(int(40 / speed)) + 0.5) * speed - 0.5).clamp(0, 39)
        assert torch.allclose(given, places[:, None].expand(-1, 80), atol=1e-5)


@pytest.mark.parametrize(("seconds", "sample_rate"), [(1.0, 16_000), (2.5, 48_000), (3.5, 22_050), (30.0, 16_000)])
def test_a_voice_is_heard_at_its_own_rate(model: CosyVoice3, seconds: float, sample_rate: int) -> None:
    """Whatever rate it came at, it has 25 tokens for a second of it, and two frames for each."""
    sound = recording(0, seconds, sample_rate)
    voice = as_tensors(model.run("voice", call(sounds={"voice": sound})))
    count = len(voice["tokens"])
    assert abs(count - 25 * seconds) <= 1
    assert {name: tuple(tensor.shape) for name, tensor in voice.items()} == {
        "tokens": (count,),
        "mel": (2 * count, 80),
        "embedding": (192,),
    }


# --- on a worker ---------------------------------------------------------------------------------------------------


async def test_a_worker_answers_what_the_model_makes_alone(
    model: CosyVoice3, request_: Request, tmp_path: Path
) -> None:
    """Heard live or read from the file, sentences made anew or kept, of one voice or the next: the bits are those of a
    run without a worker.
    """
    request = request_.but(transcript="", instruction="Speak softly.", speed=1.25)
    async with open_bench(tmp_path / "l3", model=model) as bench:
        await bench.shop.compute(torch.set_num_threads, 1)  # which torch keeps for each thread
        wanted: dict[str, Any] = {name: request.parameters[name] for name in ("instruction", "speed", "markup")}
        for text, seed, runs in (
            (SAID, 0, ["RUN", "RUN", "REUSED"]),
            (EDITED, 0, ["NOT_NEEDED", "RUN", "NOT_NEEDED"]),
            (EDITED, 1, None),
        ):
            asked = ask_speech(model.description, text, voice=Voice(seed=seed), **wanted)
            heard = await bench.begin_request(asked).end()
            assert heard.data == await asyncio.to_thread(file_of, model, request.but(text=text, voice=recording(seed)))
            assert live_sound(heard) == heard.data[44:]
            if runs is not None:
                assert parts(heard, "units") == runs
            else:
                assert not any(part.startswith("RUN") for part in parts(heard, "units"))
                assert parts(heard, "mel")[:2] == ["RUN", "RUN"]


def file_of(model: CosyVoice3, request: Request) -> bytes:
    torch.set_num_threads(1)
    file = run(model, request)["file"]
    assert isinstance(file, Artifact)
    return file.data


# --- the library below ---------------------------------------------------------------------------------------------


def test_reading_step_by_step_is_reading_at_once(model: CosyVoice3) -> None:
    """With this version of transformers."""
    assert speaking.deviation(model.pipeline.llm) < 1e-5


def test_a_library_that_forgets_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server does not start on it, and says which version it is, and one that works."""
    from transformers import Qwen2Model

    forward = Qwen2Model.forward

    def forgetting(self: Any, *, attention_mask: torch.Tensor, inputs_embeds: torch.Tensor, **given: Any) -> Any:
        attention_mask = attention_mask.clone()
        attention_mask[:, : attention_mask.shape[1] - inputs_embeds.shape[1]] = False
        return forward(self, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **given)

    monkeypatch.setattr(Qwen2Model, "forward", forgetting)
    with pytest.raises(ValueError, match=r"with transformers 5.*it would speak noise. Known to work: transformers 5"):
        opened(folder)


def test_cosyvoices_own_loop_forgets(model: CosyVoice3) -> None:
    """With the mask that it gives, this version of transformers sees nothing but the newest token: why ours is ours."""
    llm = model.pipeline.llm
    rows = llm.llm.model.model.embed_tokens.weight[torch.arange(12)][None]
    with torch.no_grad():
        at_once, _ = llm.llm.forward_one_step(rows, torch.ones(1, 12, 12, dtype=torch.bool))
        _, cache = llm.llm.forward_one_step(rows[:, :11], torch.ones(1, 11, 11, dtype=torch.bool))
        newest, _ = llm.llm.forward_one_step(rows[:, 11:], torch.ones(1, 1, 1, dtype=torch.bool), cache)
    assert (newest[0, 0] - at_once[0, -1]).abs().max() > 100 * speaking.MOST_DEVIATION


def sampling(llm: Any, **changes: Any) -> speaking.Sampling:
    before = llm.sampling
    try:
        llm.sampling = partial(before.func, **{**before.keywords, **changes})
        return speaking.Sampling.of(llm)
    finally:
        llm.sampling = before


def test_tokens_are_drawn_as_the_folder_says(model: CosyVoice3) -> None:
    """And as this CosyVoice does when a token comes too often; in a way that is not known, nothing is drawn."""
    llm = model.pipeline.llm
    assert sampling(llm, top_k=3, win_size=4) == dataclasses.replace(model.pipeline.sampling, top_k=3, window=4)
    with pytest.raises(ValueError, match="not known"):
        sampling(llm, temperature=0.5)

    def repeating(scores: torch.Tensor, said: list[int], _: int, **__: Any) -> torch.Tensor:
        return scores.argmax()[None]

    before = llm.sampling
    try:
        llm.sampling = partial(repeating, top_p=0.8)
        assert not speaking.Sampling.of(llm).avoids
    finally:
        llm.sampling = before


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_draws_are_cosyvoices_own(model: CosyVoice3, seed: int, spread: float) -> None:
    """After the same seed, token by token, with repetitions and without."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(50, generator=generator) * spread).log_softmax(0)
    ours: list[int] = []
    for _ in range(40):
        ours.append(model.pipeline.sampling.draw(scores, ours, generator))
    theirs: list[int] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.randn(50)
        for _ in range(40):
            theirs.append(int(model.pipeline.llm.sampling(scores.clone(), theirs, 25)))
    assert ours == theirs
