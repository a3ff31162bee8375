"""From a whole request to its address: requests that mean the same never miss, requests that differ never meet.

A corpus of meanings is drawn from pools in which everything looks like something else: sizes with the same bytes, texts
that are equal when joined or folded, numbers that are equal when rounded or turned into texts. Each is written down in
several spellings, sent through the real servicer, and the map from meanings to addresses must be one to one.
"""

from __future__ import annotations

import asyncio
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from PIL import Image

from cache.description import Description
from cache.digest import Digest
from cache.keys import Principal
from cache.switches import Switches
from gateway.darkroom import Darkroom
from gateway.plan import Plan
from gateway.planning import Planner
from reprise.v1 import common_pb2 as pb
from reprise.v1.media_pb2 import AnimateImageRequest, Framing
from tests.gateway.profiles import SRGB, rgb_profile
from tests.gateway.test_pictures import file_of, lossless, noise
from tests.gateway.worker import family

DEFAULT_SEED = 42
ACME = Principal("acme", "ada", "s1")


class Servicer:
    """The servicer up to the plan of a request: identity of the picture, validation, defaults and keys are the real."""

    def __init__(self, darkroom: Darkroom) -> None:
        self._runner = asyncio.Runner()
        models: Any = SimpleNamespace(describe=self._describe)
        nowhere: Any = None
        uploads: Any = SimpleNamespace(fetch=self._fetch, used=self._used)
        self._planner = Planner(
            models, darkroom, nowhere, uploads, Switches(), secret=b"s" * 32, default_seed=DEFAULT_SEED
        )

    def plan(self, request: AnimateImageRequest, principal: Principal = ACME) -> Plan:
        return self._runner.run(self._planner.plan(request, principal))

    def address(self, request: AnimateImageRequest, principal: Principal = ACME) -> str:
        return str(self.plan(request, principal).address)

    def close(self) -> None:
        self._runner.close()

    async def _fetch(self, namespace: str, file: Digest) -> bytes:
        raise AssertionError("a picture that was identified before is not read again")

    async def _used(self, namespace: str, file: Digest) -> None:
        """An upload's age is no part of an address."""

    async def _describe(self, model: str, task: str) -> Description:
        return _family(*model.split("/")) if model else _family("small", "r1")


@lru_cache
def _family(model: str, revision: str) -> Description:
    """Models whose stages have weights of their own."""
    made = family(model, revision)
    stages = [
        stage.model_copy(update={"fingerprint": f"{stage.fingerprint}@{model}:{revision}"}) for stage in made.stages
    ]
    return made.model_copy(update={"stages": tuple(stages)})


@pytest.fixture(scope="module")
def servicer() -> Iterator[Servicer]:
    with Darkroom() as darkroom:
        servicer = Servicer(darkroom)
        yield servicer
        servicer.close()


# What is meant, and how it can be written.


@dataclass(frozen=True)
class Meaning:
    """A request in terms of what would be seen. Fields that a request may leave out hold what is meant then."""

    picture: int = 0  # which of PICTURES
    prompt: str = "a-b"
    negative: str = ""
    guidance: float = 9.0
    frames: int = 16
    steps: int = 2
    fps: int = 8
    seed: int = DEFAULT_SEED
    size: int = 1000
    eta: float = 0.0
    model: str = "small/r1"
    tenant: str = "acme"

    @property
    def seen(self) -> Meaning:
        """Without guidance there is no negative prompt, whatever it says."""
        return replace(self, negative="") if self.guidance <= 1 else self


_RGB = noise((30, 150)).tobytes()
_FOUR = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (1, 0, 0)]


def _tiles(colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.new("RGB", (16, 16))
    for number, colour in enumerate(colours):
        image.paste(colour, (8 * (number % 2), 8 * (number // 2), 8 * (number % 2) + 8, 8 * (number // 2) + 8))
    return image


PICTURES = [
    Image.frombytes("RGB", (30, 150), _RGB),
    Image.frombytes("RGB", (150, 30), _RGB),
    Image.frombytes("RGB", (50, 90), _RGB),
    Image.frombytes("RGB", (30, 150), _RGB).transpose(Image.Transpose.ROTATE_90),
    Image.frombytes("RGB", (30, 150), _RGB).transpose(Image.Transpose.ROTATE_270),
    Image.frombytes("RGB", (30, 150), _RGB).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    Image.frombytes("RGB", (30, 149), _RGB[: 30 * 149 * 3]),
    _tiles(_FOUR),
    _tiles(_FOUR[::-1]),
    _tiles([*_FOUR[:3], (0, 0, 1)]),
    _tiles([*_FOUR[:3], (0, 0, 0)]),
    *(
        Image.new("RGB", size, shade)
        for size in ((16, 16), (8, 32), (32, 8))
        for shade in ("black", "white", "#000001")
    ),
]


class Sent(NamedTuple):
    file: bytes
    framing: Framing | None = None


def _with_frame(image: Image.Image) -> Sent:
    """Inside a larger picture, turned."""
    canvas = noise((image.height + 20, image.width + 30), seed=9)
    canvas.paste(image.transpose(Image.Transpose.ROTATE_90), (11, 7))
    return Sent(file_of(canvas), Framing(left=11, top=7, width=image.height, height=image.width, rotation=90))


def _turned(image: Image.Image, orientation: int, how: Image.Transpose) -> Sent:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Sent(file_of(image.transpose(how), exif=exif))


def _paletted(image: Image.Image, seed: int) -> Sent | None:
    pixels = [*zip(*[iter(image.tobytes())] * 3, strict=True)]
    colours = sorted(set(pixels))
    if len(colours) > 256:
        return None
    random.Random(seed).shuffle(colours)
    indices = bytes(map(colours.index, pixels))
    made = Image.frombytes("P", image.size, indices)
    made.putpalette([value for colour in colours for value in colour])
    return Sent(file_of(made))


def _grey(image: Image.Image) -> Sent | None:
    grey = image.convert("L")
    return Sent(file_of(grey)) if grey.convert("RGB").tobytes() == image.tobytes() else None


def _spellings(image: Image.Image) -> list[Sent]:
    """Files that show this picture."""
    exif = Image.Exif()
    exif[0x010E] = "holiday"
    size = Framing(width=image.width, height=image.height)
    sent = [
        Sent(file_of(image)),
        Sent(file_of(image, compress_level=0, dpi=(72, 72), exif=exif)),
        Sent(file_of(image, icc_profile=rgb_profile(SRGB)), Framing()),
        Sent(file_of(image.convert("RGBA")), size),
        Sent(lossless(image)),
        _turned(image, 6, Image.Transpose.ROTATE_90),
        _turned(image, 3, Image.Transpose.ROTATE_180),
        _with_frame(image),
        _paletted(image, 1),
        _paletted(image, 2),
        _grey(image),
    ]
    return [each for each in sent if each is not None]


FILES = [_spellings(image) for image in PICTURES]

# No two of these are one text. Some are when they are joined, folded, trimmed inside, or normalised too far.
TEXTS = ["a-b", "a", "b-c", "c", "a-b-c", "a|b", "a b", "a  b", "a\nb", "a\tb", "A-b", "a‐b", "-", "1", "1.0", "True"]
TEXTS += [
    "x²",
    "x2",
    "x₂",
    "ｘ2",
    "ﬁ",
    "fi",
    "café",
    "cafe",
    "Å",
    "A",
    "ß",
    "ss",
    "İ",
    "i̇",
    "한",
    "カ",
    "ｶ",
    "a\u200bb",
    "ab",
]
TEXTS += ["prompt", "negative_prompt=a", "a\u00a0b", "'a'", '"a"', "a,b", "a;b", "null", "{}", "é́", "é"]
VALUES: dict[str, list[Any]] = {
    "picture": list(range(len(PICTURES))),
    "prompt": TEXTS,
    "negative": ["", *TEXTS[:12]],
    "guidance": [9.0, 1.0, 1.5, 9.000000000000002, 8.999999999999998, 10.0, 9.1],
    "frames": [16, 1, 2, 8, 61],
    "steps": [2, 1, 8, 16],
    "fps": [8, 1, 2, 16],
    "seed": [DEFAULT_SEED, 0, 1, 2, 8, 16, 2**53 - 1, 2**53 - 2, 421],
    "size": [1000, 0, 1, 42],
    "eta": [0.0, 5e-324, 1.0, 0.1, 0.30000000000000004, 0.3],
    "model": ["small/r1", "small/r2", "smal/lr1", "small/r1/"[:8] + "1", "large/r1"],
    "tenant": ["acme", "acm", "acmeada", "", "Acme"],
}
_SPACE = ["", " ", "\n", "\u2003", " \r\n\t"]


def _written(text: str, draw: random.Random) -> str:
    written = unicodedata.normalize("NFC" if draw.random() < 0.5 else "NFD", text)
    if draw.random() < 0.5:
        written = written.replace("Å", "\u212b")  # the unit of length is the same letter
    return draw.choice(_SPACE) + written.replace("\n", draw.choice(("\n", "\r\n", "\r"))) + draw.choice(_SPACE)


def request_for(meaning: Meaning, draw: random.Random) -> AnimateImageRequest:
    """One of the many requests with this meaning."""
    defaults = Meaning()
    sent = draw.choice(FILES[meaning.picture])
    fields: dict[str, Any] = {"image": sent.file, "prompt": _written(meaning.prompt, draw)}
    extra: dict[str, pb.ParameterValue] = {}

    def say(name: str, field: str, write: Callable[[Any], Any] = lambda value: value) -> None:
        value = getattr(meaning, name)
        if value != getattr(defaults, name) or draw.random() < 0.5:
            fields[field] = write(value)

    say("guidance", "guidance_scale")
    say("frames", "num_frames")
    say("steps", "num_inference_steps")
    say("fps", "playback_fps")
    say("seed", "seed")
    say("model", "model")
    if meaning.size != defaults.size or draw.random() < 0.5:
        extra["size"] = pb.ParameterValue(int_value=meaning.size)
    if meaning.eta or draw.random() < 0.5:
        whole = meaning.eta.is_integer() and draw.random() < 0.5
        zero = -0.0 if meaning.eta == 0 and draw.random() < 0.5 else meaning.eta
        extra["eta"] = pb.ParameterValue(int_value=int(zero)) if whole else pb.ParameterValue(float_value=zero)
    unheard = draw.choice(TEXTS) if meaning.guidance <= 1 else meaning.negative
    fields["negative_prompt"] = _written(unheard, draw) if unheard or draw.random() < 0.5 else ""
    if sent.framing is not None:
        fields["framing"] = sent.framing
    if draw.random() < 0.3:
        fields["cache_policy"] = pb.CachePolicy(mode=draw.choice(pb.CachePolicy.Mode.keys()), no_store=True)
    pieces = [AnimateImageRequest(**{name: value}).SerializeToString() for name, value in fields.items()]
    pieces += [AnimateImageRequest(extra={name: value}).SerializeToString() for name, value in extra.items()]
    draw.shuffle(pieces)  # fields come in any order on the wire
    return AnimateImageRequest.FromString(b"".join(pieces))


class Names:
    """The map from meanings to addresses, as far as it was seen. It must be one to one."""

    def __init__(self, servicer: Servicer) -> None:
        self._servicer = servicer
        self._addresses: dict[Meaning, str] = {}
        self._meanings: dict[str, Meaning] = {}
        self.requests = 0

    def ask(self, meaning: Meaning, draw: random.Random) -> None:
        principal = Principal(meaning.tenant, draw.choice(("ada", "")), draw.choice(("s1", "s2")))
        address = self._servicer.address(request_for(meaning, draw), principal)
        self.requests += 1
        assert address == self._addresses.setdefault(meaning.seen, address), f"missed: {meaning}"
        assert meaning.seen == self._meanings.setdefault(address, meaning.seen), f"met: {meaning}"

    @property
    def different(self) -> int:
        return len(self._addresses)


def test_every_single_change_is_another_address_in_every_spelling(servicer: Servicer) -> None:
    """From one request, each value of each field in each spelling of pictures and several of texts and numbers."""
    draw, names = random.Random(1), Names(servicer)
    for name, values in VALUES.items():
        for value in values:
            for _ in range(24 if name == "picture" else 6):
                names.ask(Meaning(**{name: value}), draw)

    assert 1 + sum(len(values) - 1 for values in VALUES.values()) == names.different
    assert all(len(files) >= 8 for files in FILES)


def test_every_two_changes_are_another_address(servicer: Servicer) -> None:
    """What one field says never makes up for what another one says, for any two of the fields that look alike."""
    draw, names = random.Random(2), Names(servicer)
    for prompt, negative in product(TEXTS, VALUES["negative"]):
        names.ask(Meaning(prompt=prompt, negative=negative), draw)
    numbers = [1, 2, 8, 16]
    for frames, steps, fps, seed in product(numbers, numbers, numbers, numbers):
        names.ask(Meaning(frames=frames, steps=steps, fps=fps, seed=seed), draw)
    for tenant, model in product(VALUES["tenant"], VALUES["model"]):
        names.ask(Meaning(tenant=tenant, model=model), draw)

    assert names.different >= len(TEXTS) * len(VALUES["negative"]) + 4**4 + 24 - 4


@pytest.mark.parametrize("seed", range(4))
def test_meanings_and_addresses_are_one_to_one(servicer: Servicer, seed: int) -> None:
    """Thousands of requests in which anything may differ from anything: equal ones meet, and no others."""
    draw, names = random.Random(f"corpus {seed}"), Names(servicer)
    for _ in range(1_700):
        changed = draw.sample(sorted(VALUES), draw.randint(1, 6))
        meaning = Meaning(**{name: draw.choice(VALUES[name]) for name in changed})
        for _ in range(3):
            names.ask(meaning, draw)

    assert 5_100 == names.requests
    assert names.different > 1_200


def test_owners_meet_exactly_where_a_scope_lets_them(servicer: Servicer) -> None:
    """Pictures' encodings are everybody's, results a tenant's, texts a user's: and nobody else's, in any stage."""
    principals = [Principal(*parts) for parts in product(("a", "ab", ""), ("b", "", "a"), ("s", "sb", ""))]
    plans = {principal: servicer.plan(request_for(Meaning(), random.Random(3)), principal) for principal in principals}
    visible = {
        "shared": (),
        "tenant": ("tenant",),
        "user": ("tenant", "user"),
        "session": ("tenant", "user", "session"),
    }
    for stage in _family("small", "r1").stages:
        for one, other in product(principals, principals):
            owners_are_one = all(getattr(one, part) == getattr(other, part) for part in visible[stage.scope.value])
            assert owners_are_one == (plans[one].addresses[stage.name] == plans[other].addresses[stage.name])


def test_a_picture_named_by_its_digest_is_the_picture(servicer: Servicer) -> None:
    """Which of the two ways a picture comes in is no part of what it is."""
    sent = servicer.plan(AnimateImageRequest(image=FILES[0][0].file, prompt="a"))
    source = sent.media["image"]
    named = AnimateImageRequest(prompt="a", image_digest=pb.Digest(hex=source.file.hex, size=source.file.size))

    assert sent.address == servicer.plan(named).address  # its identity is remembered
