"""Near-duplicates measured: `python -m tests.bench.near [--out FOLDER]` prints two tables and draws the worst cases.

Over real photographs: how often a picture that was coded or scaled anew is recognised, and how often an edited one is
taken for the original. Over look-alikes, different pictures made to be mistaken for each other: how many pairs are;
that must be none. Everything is drawn from seeds.
"""

from __future__ import annotations

import argparse
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from rich.console import Console
from rich.table import Table
from skimage import data

from cache.near import USUAL_DISTANCE, Look, distance, likeness, look_of

Edit = Callable[[Image.Image], Image.Image]
_PHOTOGRAPHS = (
    *("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "hubble_deep_field", "immunohistochemistry"),
    *("moon", "retina", "rocket", "grass", "gravel", "brick"),
)
_LANCZOS = Image.Resampling.LANCZOS


@cache
def photographs() -> dict[str, Image.Image]:
    """Real photographs that scikit-image brings along, and two crops of each, which are pictures of their own."""
    found: dict[str, Image.Image] = {}
    for name in _PHOTOGRAPHS:
        whole = Image.fromarray(getattr(data, name)()).convert("RGB")
        wide, high = whole.size
        found[name] = whole
        found[f"{name}, left"] = whole.crop((0, 0, wide * 2 // 3, high * 2 // 3))
        found[f"{name}, right"] = whole.crop((wide // 3, high // 3, wide, high))
    return found


def stereo() -> tuple[Image.Image, Image.Image]:
    """One scene seen by two eyes."""
    left, right, _ = data.stereo_motorcycle()
    return Image.fromarray(left), Image.fromarray(right)


# What is done to photographs.


def coded(kind: str, **options: int) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return Image.open(buffer).convert("RGB")

    return edit


def scaled(by: float, how: Image.Resampling = _LANCZOS) -> Edit:
    return lambda image: image.resize((round(image.width * by), round(image.height * by)), how)


def _cropped(image: Image.Image) -> Image.Image:
    wide, high = image.width // 50, image.height // 50
    return image.crop((wide, high, image.width - wide, image.height - high)).resize(image.size, _LANCZOS)


def _written(text: str, size: int, place: tuple[float, float]) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        image = image.copy()
        at = (image.width * place[0], image.height * place[1])
        ImageDraw.Draw(image).text(at, text, "white", font_size=size, stroke_width=1, stroke_fill="black")
        return image

    return edit


def _hue(image: Image.Image) -> Image.Image:
    hue, *rest = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda value: (value + 85) % 256), *rest)).convert("RGB")


def _blurred(image: Image.Image) -> Image.Image:
    box = (image.width // 4, image.height // 4, image.width * 3 // 4, image.height * 3 // 4)
    image = image.copy()
    image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(8)), box)
    return image


def _pasted(share: float) -> Edit:
    def edit(image: Image.Image) -> Image.Image:
        image, side = image.copy(), round((share * image.width * image.height) ** 0.5)
        left, top = image.width // 3, image.height // 3
        image.paste((200, 30, 40), (left, top, left + side, top + side))
        return image

    return edit


SAME: dict[str, Edit] = {
    "JPEG 90": coded("JPEG", quality=90),
    "JPEG 75": coded("JPEG", quality=75),
    "JPEG 50": coded("JPEG", quality=50),
    "WebP 80": coded("WEBP", quality=80),
    "half the size": scaled(0.5),
    "three quarters": scaled(0.75, Image.Resampling.BICUBIC),
    "half, JPEG 75": lambda image: coded("JPEG", quality=75)(scaled(0.5)(image)),
}
EDITED: dict[str, Edit] = {
    "brighter by 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "brighter by 3 %": lambda image: ImageEnhance.Brightness(image).enhance(1.03),
    "cropped by 2 %": _cropped,
    "moved by 2 pixels": lambda image: ImageChops.offset(image, 2, 0),
    "a caption": _written("SALE 50 %", 20, (0.05, 0.9)),
    "made grey": lambda image: image.convert("L").convert("RGB"),
    "hue turned": _hue,
    "centre blurred": _blurred,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "5 % pasted over": _pasted(0.05),
    "1 % pasted over": _pasted(0.01),
    "0.1 % pasted over": _pasted(0.001),
    "one digit of 18 pixels": _written("7", 18, (0.5, 0.5)),
}


# Different pictures that look alike.


def logos(count: int, seed: int = 1) -> list[Image.Image]:
    """Flat signs: a shape, a letter, and few colours on a plain ground."""
    draw = random.Random(f"logos {seed}")
    made = []
    for _ in range(count):
        ground, ink = ((draw.randrange(256), draw.randrange(256), draw.randrange(256)) for _ in range(2))
        ground = draw.choice([ground, (255, 255, 255), (0, 0, 0)])
        image = Image.new("RGB", (256, 256), ground)
        _draw_sign(ImageDraw.Draw(image), draw, ink)
        made.append(image)
    return made


def _draw_sign(pen: ImageDraw.ImageDraw, draw: random.Random, ink: tuple[int, int, int]) -> None:
    size = draw.randint(40, 110)
    box = (128 - size, 128 - size, 128 + size, 128 + size)
    match draw.choice(["disc", "square", "ring", "sign", "letter"]):
        case "disc":
            pen.ellipse(box, ink)
        case "square":
            pen.rectangle(box, ink)
        case "ring":
            pen.ellipse(box, outline=ink, width=size // 4)
        case "sign":
            pen.regular_polygon((128, 128, size), draw.randint(3, 8), fill=ink)
        case "letter":
            pen.text((128, 128), draw.choice(string.ascii_uppercase), ink, font_size=size, anchor="mm")


def dark_frames(count: int) -> list[Image.Image]:
    """Night: different photographs with next to no light, and the noise of a sensor."""
    noise = np.random.default_rng(2)
    pictures = list(photographs().values())
    made = []
    for number in range(count):
        lit = np.asarray(pictures[number % len(pictures)].resize((320, 240)), float) * 0.02
        made.append(Image.fromarray((lit + noise.integers(0, 4, lit.shape)).clip(0, 255).astype(np.uint8)))
    return made


def gradients(count: int) -> list[Image.Image]:
    """From one colour to another, across, down or outwards."""
    draw = random.Random("gradients")
    made = []
    for number in range(count):
        mask = [Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.radial_gradient("L")][
            number % 3
        ]
        one, other = (Image.new("RGB", mask.size, tuple(draw.choices((0, 64, 128, 255), k=3))) for _ in range(2))
        made.append(Image.composite(one, other, mask))
    return made


def pages(count: int) -> list[Image.Image]:
    """Letters of one layout whose words differ."""
    draw = random.Random("pages")
    made = []
    for _ in range(count):
        image = Image.new("RGB", (600, 800), "white")
        pen = ImageDraw.Draw(image)
        for line in range(30):
            words = " ".join("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(10))
            pen.text((50, 50 + 24 * line), words[:58], "black", font_size=16)
        made.append(image)
    return made


def faces(count: int) -> list[Image.Image]:
    """Portraits of different people, all in the middle, all from the front."""
    people = data.lfw_subset()[:count]  # the first hundred are faces
    return [Image.fromarray((face * 255).astype(np.uint8)).resize((256, 256)).convert("RGB") for face in people]


def steps(count: int) -> list[Image.Image]:
    """Frames of a camera that moves: each sees a little more to the right."""
    whole = photographs()["coffee"]
    return [whole.crop((3 * number, 0, 3 * number + 400, 400)) for number in range(count)]


def look_alikes(share: float = 1.0) -> dict[str, list[Image.Image]]:
    """Groups of different pictures; a share of them for those in a hurry."""

    def some(count: int) -> int:
        return max(2, round(count * share))

    return {
        "flat logos": logos(some(500)),
        "dark frames": dark_frames(some(60)),
        "gradients": gradients(some(90)),
        "stereo pair": list(stereo()),
        "pages of text": pages(some(60)),
        "faces": faces(some(100)),
        "frames of a moving camera": steps(some(60)),
        "photographs": list(photographs().values())[: some(len(photographs()))],
    }


# Counting.


@dataclass(frozen=True)
class Row:
    name: str
    tried: int
    taken: int  # for one picture
    same_hash: int  # pairs within the usual distance, whatever their pixels say
    largest: float  # difference among those that were taken


def look(image: Image.Image) -> Look:
    return look_of(image.width, image.height, image.tobytes())


def edits(kinds: dict[str, Edit]) -> Iterator[Row]:
    originals = {name: look(image) for name, image in photographs().items()}
    for kind, edit in kinds.items():
        edited = {name: edit(image) for name, image in photographs().items()}
        changed = [name for name, image in edited.items() if image.tobytes() != photographs()[name].tobytes()]
        yield _count(kind, [(originals[name], look(edited[name])) for name in changed])


def mistaken(groups: dict[str, list[Image.Image]]) -> Iterator[Row]:
    for name, images in groups.items():
        yield _count(name, list(combinations(map(look, images), 2)))


def _count(name: str, pairs: Sequence[tuple[Look, Look]]) -> Row:
    close = [pair for pair in pairs if distance(*pair) <= USUAL_DISTANCE]
    taken = [alike.difference for pair in close if (alike := likeness(*pair, USUAL_DISTANCE)) is not None]
    return Row(name, len(pairs), len(taken), len(close), max(taken, default=0.0))


# Showing.


def contact_sheet(folder: Path) -> Path:
    """Pairs that came nearest to being mistaken, or were edited and taken: one row each, the two side by side."""
    rows: list[tuple[str, Image.Image, Image.Image]] = []
    for kind, edit in EDITED.items():
        for image in photographs().values():
            edited = edit(image)
            if edited.tobytes() != image.tobytes() and likeness(look(image), look(edited), USUAL_DISTANCE):
                rows.append((f"{kind}: taken", image, edited))
                break
    for name, images in look_alikes(0.2).items():
        looks = [look(image) for image in images]
        one, other = min(combinations(range(len(images)), 2), key=lambda pair: distance(*(looks[n] for n in pair)))
        apart = distance(looks[one], looks[other])
        rows.append((f"{name}: {apart} bits, told apart", images[one], images[other]))
    sheet = Image.new("RGB", (420, 220 * len(rows)), "white")
    for number, (title, *pair) in enumerate(rows):
        ImageDraw.Draw(sheet).text((10, 220 * number + 2), title, "black", font_size=13)
        for column, image in enumerate(pair):
            sheet.paste(image.resize((200, 195)), (7 + 206 * column, 220 * number + 20))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "worst.png"
    sheet.save(file)
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.bench.near")
    parser.add_argument("--out", type=Path, default=Path("out/near"), help="folder for the contact sheet")
    folder = parser.parse_args().out
    out = Console()
    for title, rows in (
        ("coded or scaled: recognised", edits(SAME)),
        ("edited: taken for the original", edits(EDITED)),
        ("look-alikes: mistaken", mistaken(look_alikes())),
    ):
        table = Table("", "pairs", "within 8 bits", "taken", "largest difference", title=title)
        for row in rows:
            table.add_row(row.name, f"{row.tried:,}", f"{row.same_hash:,}", f"{row.taken:,}", f"{row.largest:.2f}")
        out.print(table)
    out.print(f"worst cases: {contact_sheet(folder)}")


if __name__ == "__main__":
    main()
