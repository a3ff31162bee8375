"""The proof that a family of speech owes: `proof.py`, and what only speech can show."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from cache.parts import part_name, whole_name
from inference.models.base import Following, Output, Tensors
from tests.inference.proof import (
    Evidence,
    Proof,
    Request,
    Shelf,
    StagedModel,
    as_tensors,
    ids_of,
    joined,
    run,
    stages_of,
    stored,
)

SAID = "Hello there! Please hold the line. Hello there!"  # with a sentence that comes twice
SENTENCES = 2  # that differ
EDITED = "Hello there! Please hold the door. Hello there!"
TURNED = "Please hold the line. Hello there! Hello there!"
RESPACED = "\tHello  there!\nPlease\u3000hold the line.   Hello there! "


class SpeechProof(Proof):
    """`Family.library` is (model, request): what the stages `of_library` store. The request of a family says `said`."""

    said, edited, turned, respaced = SAID, EDITED, TURNED, RESPACED
    of_sentence: Sequence[str] = ("latents", "waveform")  # that are kept; of the first, each row is told as it is made
    of_speed: Sequence[str] = ()  # of them, those that run when the speed is another
    of_run: Collection[str] = ("latents", "waveform", "pace", "file")

    def library_output(self, model: StagedModel, request: Request) -> dict[str, bytes]:
        output: dict[str, bytes] = self.family.library(model, request)
        return output

    def test_an_edited_sentence_alone_is_spoken_again(self, proven: StagedModel, base: Request) -> None:
        """The other sentences are read from where they are kept, wherever they stand, and so is the voice."""
        shelf = Shelf()
        shelf.run(proven, base)
        each = [name for name in map(whole_name, shelf.ran) if name in self.of_sentence]
        assert sorted(each) == sorted([*self.of_sentence] * SENTENCES)
        shelf.ran.clear()
        edited = shelf.run(proven, base.but(text=self.edited))
        assert shelf.ran == [*(part_name(name, 1) for name in self.of_sentence), "file"]
        assert self.results(edited) == self.results(run(proven, base.but(text=self.edited)))
        shelf.ran.clear()
        shelf.run(proven, base.but(text=self.turned))
        assert shelf.ran == ["file"]

    def test_how_it_sounds_is_changed_without_the_model(self, proven: StagedModel, base: Request) -> None:
        """Another speed, rate or container runs nothing that is kept but the file, and what the family paces with."""
        shelf = Shelf()
        shelf.run(proven, base)
        paced = [part_name(name, index) for name in self.of_speed for index in range(SENTENCES)]
        for name, value, ran in (("speed", 1.5, paced), ("sample_rate", 16_000, []), ("format", "flac", [])):
            shelf.ran.clear()
            shelf.run(proven, base.but(**{name: value}))
            assert shelf.ran == [*ran, "file"], name

    def test_white_space_says_nothing(self, proven: StagedModel, base: Request, evidence: Evidence) -> None:
        """However words are set apart, their ids are the same, and so is all that comes of them."""
        respaced = run(proven, base.but(text=self.respaced))
        assert {name: stored(output) for name, output in respaced.items()} == {
            name: stored(output) for name, output in evidence.outputs.items()
        }

    def test_pieces_are_the_output(self, proven: StagedModel, base: Request) -> None:
        """What a followed stage tells while it runs is, put together, what it gives in the end."""
        told: list[Tensors] = []
        outputs = run(proven, base, piece=told.append)
        made = self.led(outputs)
        whole = joined(made)
        assert whole.keys() == joined(told).keys()
        assert all(joined(told)[name].equal(whole[name]) for name in whole)
        assert len(told) == sum(map(_rows, made))

    def test_every_row_is_a_step(self, proven: StagedModel, base: Request) -> None:
        """Progress is told after each row of what is made first, and ends at the last one of every sentence."""
        told: list[tuple[int, int]] = []
        outputs = run(proven, base, step=lambda done, of: told.append((done, of)))
        lengths = list(map(_rows, self.led(outputs)))
        assert [done for done, _ in told] == [done for length in lengths for done in range(1, length + 1)]
        assert [done for done, of in told if done == of] == lengths
        assert all(done <= of for done, of in told)

    def led(self, outputs: Mapping[str, Output]) -> list[Tensors]:
        """What the stage that the others follow made of every distinct sentence."""
        return [as_tensors(output) for name, output in outputs.items() if whole_name(name) == self.of_sentence[0]]

    def test_one_name_is_one_sound(self, proven: StagedModel, evidence: Evidence) -> None:
        """Over all requests, what has the same id has the same bytes, and what has another has others: every part, too,
        wherever it stands.
        """
        kept: dict[str, tuple[str, bytes]] = {}  # stages, because at its own speed a sound is paced by leaving it alone
        for request, outputs in ((evidence.base, evidence.outputs), *(each[1:] for each in evidence.changed)):
            ids = ids_of(proven.description, request, outputs)
            for stage in stages_of(proven.description, request, outputs):
                if not stage.canonicalises:
                    made = whole_name(stage.name), stored(outputs[stage.name])
                    assert kept.setdefault(ids[stage.name], made) == made
        assert len(set(kept.values())) == len(kept)

    def test_sentences_are_as_loud_as_they_may_be(self, evidence: Evidence) -> None:
        """Speech is heard, and hardly ever beyond what 16 bits can say."""
        pcm = torch.cat([as_tensors(evidence.outputs[f"waveform[{index}]"])["pcm"] for index in range(SENTENCES)])
        assert pcm.float().std() > 500
        assert (pcm.abs() == 32767).float().mean() < 0.001


def _rows(output: Tensors) -> int:
    (tensor,) = output.values()
    return len(tensor)


def fed(following: Following, whole: Tensors, cuts: Iterator[int] | None = None) -> torch.Tensor:
    """What a stage makes of this, fed in pieces of so many rows."""
    (name,) = whole
    pieces: list[Tensors] = []
    left = whole[name]
    while len(left):
        count = next(cuts) if cuts is not None else len(left)
        pieces.extend(following.feed({name: left[:count]}))
        left = left[count:]
    (made,) = joined([*pieces, *following.end()]).values()
    return made


def at_random(seed: int, most: int) -> Iterator[int]:
    draw = np.random.default_rng(seed)
    while True:
        yield int(draw.integers(1, most + 1))


@contextmanager
def beside(works: Sequence[Callable[[], None]]) -> Iterator[None]:
    """Threads that do these over and over, each at least once before and once more while the block runs."""
    ended, failures = threading.Event(), list[BaseException]()
    begun = threading.Barrier(len(works) + 1, timeout=60)

    def over_and_over(work: Callable[[], None]) -> None:
        try:
            work()
            begun.wait()
            while not ended.is_set():
                work()
        except BaseException as error:
            failures.append(error)
            begun.abort()
            raise

    threads = [threading.Thread(target=over_and_over, args=(work,)) for work in works]
    with torch.random.fork_rng():
        for thread in threads:
            thread.start()
        try:
            begun.wait()
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert not failures
