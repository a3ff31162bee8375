"""The studio: recordings decoded but once while they are remembered, judged by every model's own limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from anyio import wait_all_tasks_blocked

from cache.description import Recording
from cache.digest import Digest
from cache.keys import Principal, namespaces
from cache.tags import of_media
from gateway import studio as rooms
from gateway.costs import Costs
from gateway.errors import Internal, InvalidField, NotFound, Overloaded, TooLarge
from gateway.forward import _contents, _run_request
from gateway.plan import Policy, make_plan
from gateway.reception import Medium
from gateway.sounds import Sound, decode
from gateway.studio import Studio, Take
from gateway.validate import complete
from reprise.v1.inference_pb2 import RunRequest
from tests.cache.helpers import SECRET
from tests.gateway.recordings import LIMITS, flac, voice, wav
from tests.gateway.worker import family

FILE = wav(voice())
LONG = Recording(min_seconds=1.0, max_seconds=30.0, min_sample_rate=16_000)


@pytest.fixture
def studio() -> Iterator[Studio]:
    with Studio() as studio:
        yield studio


async def test_a_take_names_file_and_samples(studio: Studio) -> None:
    """What is known of a recording is the digest of its file, its identity and what it is like."""
    take = await studio.identify("ns", FILE, LIMITS)
    sound = decode(FILE)

    assert (Digest.of(FILE), sound.identity, "", 24_000) == (take.file, take.identity, take.part_of, take.weight)
    assert (24_000, 0.5) == (take.facts.sample_rate, take.facts.seconds)
    assert sound == await take.content()
    assert 1 == studio.decoded


async def test_a_file_seen_before_is_not_decoded_again(studio: Studio) -> None:
    """A hot request costs a hash; its samples are decoded if somebody asks for them, and only then."""
    first = await studio.identify("ns", FILE, LIMITS)
    again = await studio.identify("ns", FILE, LIMITS)

    assert (first.identity, first.facts) == (again.identity, again.facts)
    assert 1 == studio.decoded
    assert await first.content() == await again.content()
    assert 2 == studio.decoded


async def test_every_model_judges_for_itself(studio: Studio) -> None:
    """What is remembered of a file lets nobody off: not that another model took it, nor that one did not."""
    await studio.identify("ns", FILE, LIMITS)
    with pytest.raises(InvalidField) as caught:
        await studio.identify("ns", FILE, LONG)
    await studio.identify("ns", FILE, LIMITS)

    assert ("voice", "SOUND_TOO_SHORT") == (caught.value.field, caught.value.reason)
    assert "at least 1 seconds" in caught.value.message
    assert 1 == studio.decoded


@pytest.mark.parametrize(("louder", "reason"), [(0, "SOUND_SILENT"), (9, "SOUND_CLIPPED")])
async def test_what_suits_no_model_is_not_decoded_again(studio: Studio, louder: int, reason: str) -> None:
    """That it is silent is remembered like what it is."""
    data = wav((voice().astype("<i4") * louder).clip(-32_768, 32_767).astype("<i2"))
    for _ in range(3):
        with pytest.raises(InvalidField) as caught:
            await studio.identify("ns", data, LIMITS)
        assert reason == caught.value.reason
    assert 1 == studio.decoded


async def test_what_is_too_long_for_one_may_come_at_once_for_another(studio: Studio) -> None:
    """Two requests with one file at the same time, one for a model that takes longer recordings."""
    data = flac(voice(3.0))
    answers = await asyncio.gather(
        studio.identify("ns", data, LIMITS), studio.identify("ns", data, LONG), return_exceptions=True
    )

    assert ["SOUND_TOO_LONG", None] == [getattr(answer, "reason", None) for answer in answers]
    assert isinstance(answers[1], Take)


async def test_equal_files_at_the_same_time_are_decoded_once(studio: Studio) -> None:
    """A crowd with the same voice waits for one decoding."""
    takes = await asyncio.gather(*[studio.identify("ns", FILE, LIMITS) for _ in range(50)])

    assert 1 == len({take.identity for take in takes})
    assert 1 == studio.decoded


async def test_one_upload_named_many_times_at_once_is_decoded_once(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever still fetches the file when another has begun to decode it waits for that one."""
    begun = []

    def noted(data: bytes, limits: Recording) -> Sound:
        begun.append(data)
        return decode(data, limits)

    async def fetch() -> bytes:
        await asyncio.sleep(0)
        return FILE

    monkeypatch.setattr(rooms, "decode", noted)
    await asyncio.gather(*[studio.recognise("ns", Digest.of(FILE), fetch, LIMITS) for _ in range(9)])

    assert [FILE] == begun


async def test_nobody_can_tell_what_others_have_uploaded(studio: Studio) -> None:
    """What one namespace has heard is decoded again for another, which takes the time it takes."""
    await studio.identify("acme", FILE, LIMITS)
    await studio.identify("globex", FILE, LIMITS)

    assert 2 == studio.decoded


async def test_an_uploaded_file_is_fetched_only_to_be_decoded(studio: Studio) -> None:
    """A recording named by its digest needs no file while its identity is remembered."""
    fetched = []

    async def fetch() -> bytes:
        fetched.append(FILE)
        return FILE

    takes = [await studio.recognise("ns", Digest.of(FILE), fetch, LIMITS) for _ in range(3)]

    assert [decode(FILE).identity] * 3 == [take.identity for take in takes]
    assert 1 == len(fetched)
    await takes[2].content()
    assert 2 == len(fetched)


async def test_a_file_that_is_gone_is_missed_when_it_is_needed(studio: Studio) -> None:
    """What fetching raises reaches whoever asked."""

    async def gone() -> bytes:
        raise NotFound("DIGEST_UNKNOWN")

    with pytest.raises(NotFound):
        await studio.recognise("ns", Digest.of(b""), gone, LIMITS)


async def test_a_file_that_changed_is_a_fault_of_ours(studio: Studio) -> None:
    """Samples that are not the ones remembered under a name never go anywhere."""
    files = [FILE, wav(voice(seed=1))]

    async def fetch() -> bytes:
        return files.pop(0)

    await studio.recognise("ns", Digest.of(b"name"), fetch, LIMITS)
    take = await studio.recognise("ns", Digest.of(b"name"), fetch, LIMITS)

    with pytest.raises(Internal) as caught:
        await take.let_go()
    assert "SOUND_DIFFERS" == caught.value.reason


async def test_a_file_over_the_bound_is_refused_unread(studio: Studio) -> None:
    """Nothing is hashed that will not be decoded."""
    with pytest.raises(TooLarge):
        await studio.identify("ns", bytes(16 * 1024 * 1024 + 1))
    assert 0 == studio.decoded


async def test_no_more_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file more than may wait is refused with a delay, and the others are served."""
    gate = threading.Event()

    def held(data: bytes, limits: Recording) -> Sound:
        gate.wait(30)
        return decode(data, limits)

    monkeypatch.setattr(rooms, "decode", held)
    with Studio(threads=1, most_waiting=2) as studio:
        waiting = [asyncio.create_task(studio.identify("ns", wav(voice(seed=seed)), LIMITS)) for seed in range(2)]
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded) as caught:
            await studio.identify("ns", wav(voice(seed=2)), LIMITS)
        gate.set()
        await asyncio.gather(*waiting)

    assert "GATEWAY_BUSY" == caught.value.reason
    assert 2 == studio.decoded


# What a worker is told


async def test_a_worker_gets_the_samples_that_were_identified(studio: Studio) -> None:
    """Exactly those, beside the plan; what is a picture's stays empty."""
    take: Medium = await studio.identify("ns", flac(voice()), LIMITS)
    request = RunRequest()
    take.put_into(request, "voice")
    told = request.sounds["voice"]

    assert (take.identity, 24_000, 12_000) == (told.identity, told.sample_rate, told.samples)
    assert (b"", voice().tobytes()) == (told.pcm, await take.let_go())
    assert (["voice"], []) == (list(request.sounds), list(request.pictures))


async def test_samples_are_let_go_of_once_they_are_sent(studio: Studio) -> None:
    """Who sends them a second time, to another worker, has them decoded again."""
    take = await studio.identify("ns", FILE, LIMITS)
    for decoded in (1, 2):
        await take.let_go()
        assert decoded == studio.decoded


async def test_a_plan_with_a_voice_is_run_with_its_sound(studio: Studio) -> None:
    """Whoever makes the request to a worker knows of no kind of medium."""
    description = family()
    take = await studio.identify("ns", FILE, LIMITS)
    plan = make_plan(
        description,
        complete(description, {"prompt": "a cat"}, {}),
        {"image": take},
        namespaces(SECRET, Principal("t", "u")),
        Policy(),
    )
    request = _run_request(plan, {}, Costs())

    assert {"image": (take.identity, b"")} == {name: (each.identity, each.pcm) for name, each in request.sounds.items()}
    assert {"image": voice().tobytes()} == await _contents(plan)
    assert [] == list(request.pictures)
    assert (of_media(take.identity),) == plan.media_tags["image"]
