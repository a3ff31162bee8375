from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
import pytest
from PIL import Image

from inference import rendition
from inference.models.base import Artifact
from tests.inference.leftovers import LEFTOVERS, memory_full_of, needs_glibc

CONTAINERS = tuple(rendition.CONTAINERS)


def clip(frames: int = 16, size: tuple[int, int] = (256, 256)) -> list[Image.Image]:
    """A window that moves over coarse coloured noise."""
    noise = np.random.default_rng(7).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    scene = Image.fromarray(noise).resize((size[0] + 64, size[1] + 64), Image.Resampling.BICUBIC)
    return [scene.crop((2 * i, i, 2 * i + size[0], i + size[1])) for i in range(frames)]


def played(artifact: Artifact) -> list[tuple[float, Image.Image]]:
    """What a player shows: the second each frame appears at, and the frame."""
    with av.open(io.BytesIO(artifact.data), "r") as file:
        frames = list(file.decode(video=0))
        assert file.streams.video[0].time_base is not None
        return [(frame.time or 0.0, Image.fromarray(frame.to_ndarray(format="rgb24"))) for frame in frames]


def difference(shown: Sequence[Image.Image], meant: Sequence[Image.Image]) -> float:
    pairs = zip(shown, meant, strict=True)
    return float(np.mean([np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean() for a, b in pairs]))


@pytest.mark.parametrize("container", CONTAINERS)
def test_equal_frames_give_equal_bytes(container: str) -> None:
    """On one host a file's bytes follow from its frames, rate and container alone."""
    first = rendition.encode(clip(), 8, container)
    assert rendition.encode(clip(), 8, container) == first


@needs_glibc
@pytest.mark.parametrize("size", [(832, 480), (264, 200)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_memory_held_before_is_not_in_a_file(container: str, size: tuple[int, int]) -> None:
    """A file is the same whatever the process did before and left in the memory that the encoder is given."""
    frames = clip(3, size)
    plain = rendition.encode(frames, 8, container)
    for byte in LEFTOVERS:
        with memory_full_of(byte):
            assert rendition.encode(frames, 8, container) == plain


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(("frames", "fps"), [(16, 8), (16, 60), (3, 7), (1, 1)])
def test_every_frame_is_played_at_its_time(container: str, frames: int, fps: int) -> None:
    """The first frame appears at once, and each next one after 1/fps seconds."""
    times = [time for time, _ in played(rendition.encode(clip(frames, (64, 48)), fps, container))]
    assert times == pytest.approx([number / fps for number in range(frames)], abs=0.001)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_file_looks_like_its_frames_and_is_small(container: str) -> None:
    """16 frames of 256 x 256 take well below 1 MiB, keep their size and, but for the codec's loss, their colours."""
    artifact = rendition.encode(clip(), 8, container)
    shown = [frame for _, frame in played(artifact)]
    assert shown[0].size == (256, 256)
    assert difference(shown, clip()) < 3
    assert len(artifact.data) < 2**18


@pytest.mark.parametrize("size", [(64, 64), (1280, 704)])
@pytest.mark.parametrize("container", CONTAINERS)
def test_colours_are_said_to_be_what_they_are(container: str, size: tuple[int, int]) -> None:
    """A file names its colour space and means it, so that players show one clip alike at every size."""
    red = Image.new("RGB", size, (200, 30, 60))
    with av.open(io.BytesIO(rendition.encode([red], 8, container).data), "r") as file:
        frame = next(file.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited range
    luma = np.asarray(frame.planes[0]).reshape(-1)[0]
    assert luma == pytest.approx(16 + 219 * (0.2126 * 200 + 0.7152 * 30 + 0.0722 * 60) / 255, abs=1)


@pytest.mark.parametrize(("container", "media_type"), [("mp4", "video/mp4"), ("webm", "video/webm")])
def test_files_are_of_the_type_they_say(container: str, media_type: str) -> None:
    """The media type is the one browsers know the container by."""
    artifact = rendition.encode(clip(2, (64, 64)), 8, container)
    assert artifact.media_type == media_type
    with av.open(io.BytesIO(artifact.data)) as file:
        assert container in file.format.name.split(",")


def test_an_mp4_is_playable_while_it_arrives() -> None:
    """The index comes first and the frames follow in fragments, so no player waits for the end of the file."""
    data = rendition.encode(clip(), 8, "mp4").data
    assert data.index(b"moov") < data.index(b"moof") < data.index(b"mdat")


def test_no_frames_are_no_file() -> None:
    """Nothing to show is a mistake of the caller."""
    with pytest.raises(ValueError, match="no frames"):
        rendition.encode([], 8, "mp4")
