"""The cache under a pipeline that knows nothing of it: the same bits, less work, nothing that could not be exact."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, AutoencoderKLWan, I2VGenXLPipeline
from PIL import Image
from torch import nn
from transformers import T5Config, T5EncoderModel

from cache.alone import Cache
from inference.memo import Memo, remember

SIDE, SEED = 64, 7
STAGES = {"text_encoder.forward", "image_encoder.forward", "vae.encode"}


@pytest.fixture(scope="module")
def shared_pipeline(small_folder: Path) -> Any:
    return opened(small_folder)


@pytest.fixture
def pipeline(shared_pipeline: Any) -> Iterator[Any]:
    """The plain pipeline again at the end of every test that closes its memo."""
    yield shared_pipeline
    assert "encode" not in vars(shared_pipeline.vae)


def opened(folder: Path) -> Any:
    pipeline = I2VGenXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache.open(tmp_path / "store") as cache:
        yield cache


def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (11, 13, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((150, 110), Image.Resampling.BICUBIC)


def generate(pipeline: Any, prompt: str = "a cat walks", **changes: Any) -> torch.Tensor:
    """Frames of the library's own call, right after both generators were seeded."""
    call: dict[str, Any] = {
        "image": picture(),
        "negative_prompt": "blurry",
        "height": SIDE,
        "width": SIDE,
        "num_frames": 3,
        "num_inference_steps": 2,
        "clip_skip": None,
        "output_type": "pt",
    }
    torch.manual_seed(changes.pop("seed", SEED))
    frames: torch.Tensor = pipeline(
        prompt=prompt, generator=torch.Generator().manual_seed(SEED), **(call | changes)
    ).frames
    return frames


def counted(memo: Memo) -> dict[str, tuple[int, int]]:
    """Runs and reuses by stage."""
    return {stage: (counts.run, counts.reused) for stage, counts in memo.counts.items()}


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def moments(vae: Any, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = vae.encode(image).latent_dist.parameters
    return found


def test_the_same_bits_for_less_work(pipeline: Any, cache: Cache) -> None:
    """Of five prompts for one picture each is encoded once, and every frame equals the plain pipeline's."""
    prompts = [f"a cat walks {number} steps" for number in range(5)]
    plain = [generate(pipeline, prompt) for prompt in prompts]

    with remember(pipeline, cache) as memo:
        first = [generate(pipeline, prompt) for prompt in prompts]
        second = [generate(pipeline, prompt) for prompt in prompts]

    assert all(map(torch.equal, plain, first))
    assert all(map(torch.equal, plain, second))
    assert {
        "text_encoder.forward": (6, 14),  # five prompts and one negative prompt
        "image_encoder.forward": (1, 9),
        "vae.encode": (1, 9),
    } == counted(memo)


def test_nothing_random_is_frozen(pipeline: Any, cache: Cache) -> None:
    """With other seeds the stored distribution gives other draws: those of the plain pipeline."""
    plain = [generate(pipeline, seed=seed) for seed in range(3)]

    with remember(pipeline, cache) as memo:
        drawn = [generate(pipeline, seed=seed) for seed in range(3)]

    assert all(map(torch.equal, plain, drawn))
    assert not torch.equal(drawn[0], drawn[1])
    assert (1, 2) == counted(memo)["vae.encode"]


@pytest.mark.parametrize(
    ("changes", "runs"),
    [
        ({}, set()),
        ({"prompt": "a dog runs"}, {"text_encoder.forward"}),
        ({"negative_prompt": "sharp"}, {"text_encoder.forward"}),
        ({"image": picture(1)}, {"image_encoder.forward", "vae.encode"}),
        ({"height": 72}, {"vae.encode"}),
        ({"width": 72}, {"image_encoder.forward", "vae.encode"}),
        ({"num_frames": 2}, set()),
        ({"num_inference_steps": 3}, set()),
        ({"guidance_scale": 1.0}, set()),
        ({"guidance_scale": 4.0}, set()),
        ({"target_fps": 8}, set()),
        ({"num_videos_per_prompt": 2}, set()),
        ({"seed": 8}, set()),
    ],
    ids=range(13),
)
def test_exactly_what_changed_is_encoded(pipeline: Any, cache: Cache, changes: dict[str, Any], runs: set[str]) -> None:
    """One changed argument makes those encoders run that see it, and the result is the plain pipeline's."""
    plain = generate(pipeline, **changes)

    with remember(pipeline, cache) as memo:
        generate(pipeline)
        before = counted(memo)
        found = generate(pipeline, **changes)
        ran = {stage for stage, (run, _) in counted(memo).items() if run > before[stage][0]}

    assert torch.equal(plain, found)
    assert runs == ran


def test_another_process_encodes_nothing(pipeline: Any, small_folder: Path, tmp_path: Path) -> None:
    """A pipeline loaded anew over the same store finds everything; the same bits."""
    with Cache.open(tmp_path) as cache, remember(pipeline, cache):
        first = generate(pipeline)

    another = opened(small_folder)
    with Cache.open(tmp_path) as cache, remember(another, cache) as memo:
        second = generate(another)

    assert torch.equal(first, second)
    assert dict.fromkeys(STAGES, 0) == {stage: run for stage, (run, _) in counted(memo).items()}


@pytest.mark.parametrize(
    ("condition", "again"),
    [
        ({"stage": "vae.encode"}, {"vae.encode"}),
        ({"tag": "texts"}, {"text_encoder.forward"}),
        ({"where": lambda record: record.execution["device"] == "cpu"}, STAGES),
        ({"where": lambda record: record.device_seconds < 0}, set()),
        ({"older_than": 3600}, set()),
        ({}, STAGES),
    ],
    ids=["stage", "tag", "where all", "where none", "age", "all of the model"],
)
def test_what_is_invalidated_is_encoded_again(
    pipeline: Any, cache: Cache, condition: dict[str, Any], again: set[str]
) -> None:
    """By condition over how entries were made; the result stays the plain pipeline's."""
    plain = generate(pipeline)
    with remember(pipeline, cache) as memo:
        with memo.tagged("texts"), torch.no_grad():
            pipeline.encode_prompt("a cat walks", torch.device("cpu"), 1, "blurry")
        generate(pipeline)
        cache.set("another", b"entry", model="another")
        before = counted(memo)

        receipt = memo.invalidate(**condition)
        found = generate(pipeline)

    ran = {stage for stage, (run, _) in counted(memo).items() if run > before[stage][0]}
    assert torch.equal(plain, found)
    assert again == ran
    assert bool(again) == bool(receipt.outputs)
    assert b"entry" == cache.get("another")


def test_an_entry_says_how_it_was_made(pipeline: Any, cache: Cache) -> None:
    """Model, stage, fingerprint, cost, tags, device: enough to decide on its reuse."""
    records: list[Any] = []

    def look(record: Any) -> bool:
        records.append(record)
        return False

    with remember(pipeline, cache, model="i2v", tags=("shoot-7",)) as memo:
        generate(pipeline)
        memo.invalidate(where=look)

    assert ["image_encoder.forward", "text_encoder.forward", "text_encoder.forward", "vae.encode"] == sorted(
        record.stage for record in records
    )
    for record in records:
        assert ("i2v", ("shoot-7",), "cpu") == (record.model, record.tags, record.execution["device"])
        assert record.fingerprint.startswith(record.revision)
        assert record.device_seconds > 0


def test_damaged_entries_are_encoded_again(pipeline: Any, tmp_path: Path) -> None:
    """What does not verify is a miss; the result stays the plain pipeline's."""
    plain = generate(pipeline)
    with Cache.open(tmp_path) as cache, remember(pipeline, cache):
        generate(pipeline)
    for file in [path for path in (tmp_path / "r").rglob("*") if path.is_file()]:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with Cache.open(tmp_path) as cache, remember(pipeline, cache) as memo:
        assert torch.equal(plain, generate(pipeline))

    assert {"text_encoder.forward": (2, 0), "image_encoder.forward": (1, 0), "vae.encode": (1, 0)} == counted(memo)


def test_what_cannot_be_read_back_is_encoded_again(pipeline: Any, cache: Cache, monkeypatch: Any) -> None:
    """Bytes that verify and yet are no output are a miss too."""
    with remember(pipeline, cache) as memo:
        monkeypatch.setattr("inference.forms.to_bytes", lambda output, device: b"no file")
        moments(pipeline.vae, pixels())
        assert torch.equal(moments(pipeline.vae, pixels()), moments(pipeline.vae, pixels()))

    assert (3, 0) == counted(memo)["vae.encode"]


def test_close_gives_the_pipeline_back(pipeline: Any, cache: Cache) -> None:
    """Afterwards its encoders are its own, and nothing is counted; the cache is still open."""
    before = pipeline.vae.encode, pipeline.text_encoder.forward
    memo = remember(pipeline, cache)
    assert before[0] != pipeline.vae.encode
    memo.close()
    memo.close()

    generate(pipeline)
    assert before == (pipeline.vae.encode, pipeline.text_encoder.forward)
    assert dict.fromkeys(STAGES, (0, 0)) == counted(memo)
    assert cache.get("anything") is None


def test_a_closed_cache_does_not_stop_the_pipeline(pipeline: Any, tmp_path: Path) -> None:
    """It goes on plainly, and counts that."""
    plain = generate(pipeline)
    cache = Cache.open(tmp_path)
    with remember(pipeline, cache) as memo:
        cache.close()
        assert torch.equal(plain, generate(pipeline))

    assert 1 == memo.counts["vae.encode"].bypassed["closed"]


def test_results_are_ones_own(pipeline: Any, cache: Cache) -> None:
    """Who changes a result in place changes neither the entry nor anybody else's."""
    with remember(pipeline, cache):
        first = moments(pipeline.vae, pixels()).clone()
        moments(pipeline.vae, pixels()).zero_()
        assert torch.equal(first, moments(pipeline.vae, pixels()))


def test_inputs_that_look_alike_differ(pipeline: Any, cache: Cache) -> None:
    """Type, shape and strides are part of an input: every one of these runs."""
    base = pixels()
    inputs = [
        base,
        base.to(memory_format=torch.channels_last),
        base.transpose(2, 3),
        base + torch.finfo(torch.float32).eps,
        base.repeat(2, 1, 1, 1),
    ]
    plain = [moments(pipeline.vae, image) for image in inputs]

    with remember(pipeline, cache) as memo:
        for _ in range(2):
            assert all(map(torch.equal, plain, (moments(pipeline.vae, image) for image in inputs)))

    assert (5, 5) == counted(memo)["vae.encode"]


def test_keyword_and_form_of_the_answer_matter(pipeline: Any, cache: Cache) -> None:
    """A call that asks for another form gets it, from its own entry."""
    with remember(pipeline, cache), torch.no_grad():
        for _ in range(2):
            assert isinstance(pipeline.vae.encode(pixels(), return_dict=False), tuple)
            assert hasattr(pipeline.vae.encode(pixels()), "latent_dist")


# Changed weights never serve an old entry.


def _add_in_place(vae: Any) -> None:
    vae.encoder.conv_in.weight.data += 0.5  # as LoRA weights are merged: torch counts no change


def _replace(vae: Any) -> None:
    vae.encoder.conv_in.weight.data = vae.encoder.conv_in.weight.data * 2


def _load(vae: Any) -> None:
    vae.load_state_dict({name: tensor * 1.5 for name, tensor in vae.state_dict().items()})


def _cast(vae: Any) -> None:
    vae.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [_add_in_place, _replace, _load, _cast], ids=lambda change: change.__name__)
def test_changed_weights_are_noticed(small_folder: Path, cache: Cache, change: Callable[[Any], None]) -> None:
    """However they were changed, what the old ones gave is not served; given back, they find their entries again."""
    vae, changed = opened(small_folder).vae, opened(small_folder).vae
    change(changed)
    plain, other = moments(vae, pixels()), moments(changed, pixels())
    assert not torch.equal(plain, other)
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items()}

    with remember(_Only(vae), cache) as memo:
        assert torch.equal(plain, moments(vae, pixels()))
        change(vae)
        assert torch.equal(other, moments(vae, pixels()))
        vae.load_state_dict(state)
        assert torch.equal(plain, moments(vae, pixels()))

    assert (2, 1) == counted(memo)["vae.encode"]


def test_switches_are_noticed(small_folder: Path, cache: Cache) -> None:
    """Tiles change the bits of an encoder; what one way gave is not served for the other."""
    vae = opened(small_folder).vae
    image = torch.rand(1, 3, 512, 64, generator=torch.Generator().manual_seed(0))
    whole = moments(vae, image)
    vae.enable_tiling()
    tiled = moments(vae, image)
    assert not torch.equal(whole, tiled)

    with remember(_Only(vae), cache):
        for _ in range(2):
            vae.disable_tiling()
            assert torch.equal(whole, moments(vae, image))
            vae.enable_tiling()
            assert torch.equal(tiled, moments(vae, image))


def test_autocast_is_noticed(pipeline: Any, cache: Cache) -> None:
    """What lower precision gave is not served where nobody asked for it."""
    plain = moments(pipeline.vae, pixels())

    with remember(pipeline, cache):
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert not torch.equal(plain, moments(pipeline.vae, pixels()))
            assert torch.equal(plain, moments(pipeline.vae, pixels()))


def test_equal_weights_share(small_folder: Path, tmp_path: Path, cache: Cache) -> None:
    """Where a model was loaded from does not matter, what it computes with does."""
    first = opened(small_folder)
    first.save_pretrained(tmp_path / "copy")
    second = opened(tmp_path / "copy")

    with remember(first, cache), remember(second, cache) as memo:
        assert torch.equal(generate(first), generate(second))

    assert all(run == 0 for run, _ in counted(memo).values())


# What is passed through.


class _Only:
    """What `remember` looks at, with one component."""

    def __init__(self, vae: Any = None, text_encoder: Any = None) -> None:
        self.vae = vae
        self.text_encoder = text_encoder


class _Encoder(nn.Module):
    """A component that does what the test says."""

    dtype = torch.float32

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0
        self._answer = answer
        self.config = _Config()

    def encode(self, x: Any) -> Any:
        self.calls += 1
        return self._answer(x)


class _Config:
    def to_json_string(self) -> str:
        return "{}"


def _train(encoder: nn.Module) -> None:
    encoder.train()


def _adapt(encoder: Any) -> None:
    encoder._hf_peft_config_loaded = True


def _send_away(encoder: nn.Module) -> None:
    encoder.to("meta")


def _leave(encoder: nn.Module) -> None:
    """Leaves it as it is."""


@pytest.mark.parametrize(
    ("reason", "prepare", "answer", "argument"),
    [
        ("input", _leave, lambda x: torch.ones(1), object()),
        ("input", _leave, lambda x: torch.ones(1), [torch.ones(2).to_sparse()]),
        ("input", _leave, lambda x: torch.ones(1), float("nan")),
        ("input", _leave, lambda x: torch.ones(1), torch.Generator()),
        ("output", _leave, lambda x: "text", torch.ones(1)),
        ("output", _leave, lambda x: x.expand(4), torch.ones(1)),
        ("random", _leave, lambda x: torch.rand(1), torch.ones(1)),
        ("training", _train, lambda x: x + 1, torch.ones(1)),
        ("adapters", _adapt, lambda x: x + 1, torch.ones(1)),
        ("weights", _send_away, lambda x: x + 1, torch.ones(1)),
    ],
    ids=range(10),
)
def test_what_could_not_be_exact_is_passed_through(
    cache: Cache, reason: str, prepare: Callable[[Any], None], answer: Callable[[Any], Any], argument: Any
) -> None:
    """The component runs each time, and the reason is counted."""
    encoder = _Encoder(answer).eval()
    prepare(encoder)

    with remember(_Only(encoder), cache) as memo, torch.no_grad():
        for _ in range(2):
            encoder.encode(argument)

    assert 2 == encoder.calls
    assert {reason: 2} == memo.counts["vae.encode"].bypassed
    assert (0, 0) == counted(memo)["vae.encode"]


def test_gradients_flow(pipeline: Any, cache: Cache) -> None:
    """Who wants gradients gets them from the component itself."""
    image = pixels().requires_grad_()
    with remember(pipeline, cache) as memo:
        for _ in range(2):
            pipeline.vae.encode(image).latent_dist.parameters.sum().backward()

    assert image.grad is not None
    assert {"gradients": 2} == memo.counts["vae.encode"].bypassed
    pipeline.vae.zero_grad()


def test_errors_of_a_component_are_its_own(pipeline: Any, cache: Cache) -> None:
    """They reach the caller, and nothing is stored."""
    with remember(pipeline, cache) as memo, torch.no_grad():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                pipeline.vae.encode(torch.ones(1, 5, SIDE, SIDE))
        assert 0 == memo.invalidate().outputs


def test_nothing_to_remember_is_an_error(cache: Cache) -> None:
    """Rather than a memo that never does anything."""
    with pytest.raises(ValueError, match="has none of"):
        remember(_Only(), cache)


def test_one_memo_at_a_time(pipeline: Any, cache: Cache) -> None:
    """A second one is refused and leaves the first as it is."""
    with remember(pipeline, cache) as memo:
        with pytest.raises(ValueError, match="already"):
            remember(pipeline, cache)
        generate(pipeline)

    assert (1, 0) == counted(memo)["vae.encode"]


def test_hooks_of_others_stay(small_folder: Path, cache: Cache) -> None:
    """A method that some other library had put on a component is under the memo, and there again afterwards."""
    vae, calls = opened(small_folder).vae, list[int]()
    plain = vae.encode

    def hooked(x: torch.Tensor) -> Any:
        calls.append(1)
        return plain(x)

    vae.encode = hooked
    with remember(_Only(vae), cache):
        moments(vae, pixels())
        moments(vae, pixels())

    assert hooked is vae.encode
    assert [1] == calls


def test_threads_share_a_memo(small_folder: Path, cache: Cache) -> None:
    """Each gets its own input's output."""
    vae = opened(small_folder).vae
    plain = [moments(vae, pixels(seed)) for seed in range(4)]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            wrong.extend(seed for seed in range(4) if not torch.equal(plain[seed], moments(vae, pixels(seed))))

    with remember(_Only(vae), cache) as memo:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [] == wrong
    assert 80 == sum(counted(memo)["vae.encode"])
    assert 4 <= memo.counts["vae.encode"].run <= 16


# Other families' components.


def test_a_t5_encoder(cache: Cache) -> None:
    """Its output with a mask and every hidden state comes back as it was."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    encoder = T5EncoderModel(config).eval()
    ids, mask = torch.arange(8).reshape(1, 8), torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])

    def embed() -> Any:
        with torch.no_grad():
            return encoder(ids, attention_mask=mask, output_hidden_states=True)

    plain = embed()
    with remember(_Only(text_encoder=encoder), cache) as memo:
        answers = [embed(), embed()]

    assert (1, 1) == counted(memo)["text_encoder.forward"]
    for answer in answers:
        assert type(plain) is type(answer)
        assert torch.equal(plain.last_hidden_state, answer.last_hidden_state)
        assert all(map(torch.equal, plain.hidden_states, answer.hidden_states))


def _wan() -> Any:
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True])


def _ltx() -> Any:
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )


@pytest.mark.parametrize("build", [_wan, _ltx], ids=["wan", "ltx"])
def test_video_encoders(cache: Cache, build: Callable[[], Any]) -> None:
    """Encoders of clips, one of which keeps state between frames, come back as they were."""
    torch.manual_seed(0)
    vae = build().eval()
    clip = torch.rand(1, 3, 9, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = moments(vae, clip)

    with remember(_Only(vae), cache) as memo:
        answers = [moments(vae, clip), moments(vae, clip)]
        other = moments(vae, clip[:, :, :1])

    assert (2, 1) == counted(memo)["vae.encode"]
    assert all(torch.equal(plain, answer) and plain.stride() == answer.stride() for answer in answers)
    assert torch.equal(moments(vae, clip[:, :, :1]), other)
