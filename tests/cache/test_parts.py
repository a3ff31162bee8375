"""Parts: a text's stages written out sentence by sentence; what is said twice is one, wherever it stands."""

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cache.description import Description, Scalar, Scope, Stage
from cache.digest import Digest
from cache.keys import content_ids
from cache.parts import part_name, part_number, unfold, whole_name
from tests.cache.families import picture_family, speech_family

_PARAMETERS: dict[str, Scalar] = {"text": "", "seed": 42, "speed": 1.0, "sample_rate": 24_000, "format": "wav"}
_texts = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=8)


def order_of(text: Sequence[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(sentence, len(numbers)) for sentence in text]


def ids_of(text: Sequence[str], description: Description | None = None) -> dict[str, str]:
    """Content ids of a text of these sentences, by name in the request."""
    family = description or speech_family()
    order = order_of(text)
    unfolded = family.model_copy(update={"stages": unfold(family.stages, {"tokens": order})})
    known = {"tokens": Digest.of("|".join(text).encode())}
    known |= {part_name("tokens", number): Digest.of(text[order.index(number)].encode()) for number in set(order)}
    return content_ids(unfolded, _PARAMETERS | {"text": ". ".join(text)}, {"voice": "v" * 64}, known)


def said(text: Sequence[str], stage: str) -> dict[str, str]:
    """Content id of each sentence at a stage."""
    ids = ids_of(text)
    return {sentence: ids[part_name(stage, order_of(text)[place])] for place, sentence in enumerate(text)}


def test_every_part_is_a_stage_and_the_file_reads_all_places() -> None:
    """Part by part, under numbered names; what reads parts but has none reads them by place, in the text's order."""
    stages = unfold(speech_family().stages, {"tokens": [0, 1, 0]})

    parts = [part_name(stage, number) for number in (0, 1) for stage in ("latents", "waveform", "pace")]
    assert ["voice", "prefix", "tokens", "tokens[0]", "tokens[1]", *parts, "file"] == [stage.name for stage in stages]
    by_name = {stage.name: stage for stage in stages}
    assert {"prefix": "prefix", "tokens": "tokens[1]"} == by_name["latents[1]"].upstream
    assert ("latents[1]", "waveform[0]") == (by_name["waveform[1]"].follows, by_name["pace[0]"].follows)
    assert {"pcm[0]": "pace[0]", "pcm[1]": "pace[1]", "pcm[2]": "pace[0]"} == by_name["file"].upstream


def test_what_has_no_parts_stays_as_it_is() -> None:
    """A description without parts is not touched, and neither are stages that have nothing to do with them."""
    pictures, speech = picture_family().stages, speech_family().stages

    assert all(one is other for one, other in zip(unfold(pictures, {}), pictures, strict=True))
    assert speech[0] is unfold(speech, {"tokens": [0]})[0]


@given(_texts)
def test_the_unfolded_can_run_in_their_order(text: Sequence[str]) -> None:
    """Each stands after what it needs, under a name of its own; one stage for each distinct sentence, not for each
    place; and a follower stands right after what it follows.
    """
    stages = unfold(speech_family().stages, {"tokens": order_of(text)})

    known: set[str] = set()
    for stage in stages:
        assert known >= set(stage.upstream.values())
        assert stage.name not in known
        known.add(stage.name)
    assert len(set(text)) == sum(whole_name(stage.name) == "latents" for stage in stages)
    assert all(later.follows in ("", earlier.name) for earlier, later in pairwise(stages))


@given(_texts, _texts)
def test_a_sentence_has_one_name_in_every_text(one: Sequence[str], other: Sequence[str]) -> None:
    """Wherever it stands, whatever stands around it; and no other sentence has that name."""
    for stage in ("latents", "waveform", "pace"):
        here, there = said(one, stage), said(other, stage)
        assert {name: here[name] for name in here.keys() & there} == {name: there[name] for name in here.keys() & there}
        both = here | there
        assert len(both) == len(set(both.values()))


@given(_texts, _texts)
def test_a_file_has_the_name_of_its_text(one: Sequence[str], other: Sequence[str]) -> None:
    """The same sentences in the same order, and no others: repeats and their places count."""
    assert (list(one) == list(other)) == (ids_of(one)["file"] == ids_of(other)["file"])


@given(_texts)
def test_no_two_stages_of_a_text_share_a_name(text: Sequence[str]) -> None:
    """Its parts themselves included, which are cut out of the same whole."""
    ids = ids_of(text)
    assert len(ids) == len(set(ids.values()))


def test_what_is_cut_out_depends_on_the_whole_alone() -> None:
    """The name of a part follows from the output it is a part of: two spellings of that have the same parts."""
    family = speech_family()
    unfolded = family.model_copy(update={"stages": unfold(family.stages, {"tokens": [0]})})
    known = {"tokens": Digest.of(b"whole"), "tokens[0]": Digest.of(b"part")}
    one, other = (
        content_ids(unfolded, _PARAMETERS | {"text": text}, {"voice": "v" * 64}, known) for text in ("a", " A ")
    )
    assert one["tokens"] != other["tokens"]
    assert one["tokens[0]"] == other["tokens[0]"]


def _stage(name: str, each: str = "", *, says: bool = False, **upstream: str) -> Stage:
    return Stage(
        name=name,
        kind=name,
        fingerprint="1",
        upstream=upstream,
        each=each,
        canonicalises=says,
        scope=Scope.TENANT,
        ttl=1.0,
    )


def names(stages: Sequence[Stage]) -> str:
    return " ".join(stage.name for stage in stages)


def test_two_texts_side_by_side() -> None:
    """Each has its own parts; what reads both gathers each by its places; a text itself is read as a whole."""
    unfolded = unfold(
        [
            _stage("text", says=True),
            _stage("notes", says=True),
            _stage("speech", "text", of="text"),
            _stage("song", "notes", of="notes"),
            _stage("file", speech="speech", song="song", words="text"),
        ],
        {"text": [0], "notes": [0, 1, 0]},
    )

    assert "text text[0] notes notes[0] notes[1] speech[0] song[0] song[1] file" == names(unfolded)
    songs = {"song[0]": "song[0]", "song[1]": "song[1]", "song[2]": "song[0]"}
    assert {"speech[0]": "speech[0]", **songs, "words": "text"} == unfolded[-1].upstream


def test_parts_wait_for_what_stands_between() -> None:
    """Stages that are no neighbours are written out one after the other, so that all they need stands before them."""
    unfolded = unfold(
        [
            _stage("text", says=True),
            _stage("speech", "text", of="text"),
            _stage("room"),
            _stage("sound", "text", of="speech", room="room"),
            _stage("file", of="sound"),
        ],
        {"text": [0, 1]},
    )

    assert "text text[0] text[1] speech[0] speech[1] room sound[0] sound[1] file" == names(unfolded)


@given(st.text(st.characters(exclude_characters="[]"), min_size=1), st.integers(0, 1000))
def test_names_of_parts_are_read_back(name: str, number: int) -> None:
    """The whole's name and the number; what is no part has no number."""
    assert (name, number) == (whole_name(part_name(name, number)), part_number(part_name(name, number)))
    assert (name, None) == (whole_name(name), part_number(name))
