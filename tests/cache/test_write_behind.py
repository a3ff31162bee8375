"""Write-behind: blobs before records, results never dropped, every wait bounded, every future resolved."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from anyio import wait_all_tasks_blocked
from structlog.testing import capture_logs

from cache.digest import Digest
from cache.keys import Key
from cache.record import Record
from cache.tier import Outcome, Tier, TierName
from cache.write_behind import Write, WriteBehind
from tests.cache.helpers import NAMESPACE, NOW, Clock, ScriptedTier, record_of


class Pauses:
    """Pauses that take no time, and are counted."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def _writer(
    tiers: Sequence[Tier],
    *,
    max_bytes: int = 1000,
    max_entries: int = 100,
    writers: int = 4,
    pauses: Pauses | None = None,
    clock: Clock | None = None,
    drain_timeout: float = 5.0,
) -> WriteBehind:
    return WriteBehind(
        tiers,
        max_bytes=max_bytes,
        max_entries=max_entries,
        writers=writers,
        pause=pauses or Pauses(),
        clock=clock or Clock(),
        drain_timeout=drain_timeout,
    )


def _blob(data: bytes) -> Write:
    return Write(Key.of_blob(NAMESPACE, Digest.of(data)), data, 600.0)


def _index(record: Record, *, replace: bool = False) -> Write:
    return Write(Key.of_record(record.address), record.to_bytes(), record.ttl, replace)


def _l2(max_payload: int | None = None) -> ScriptedTier:
    return ScriptedTier(TierName.L2, max_payload=max_payload)


def _l3() -> ScriptedTier:
    return ScriptedTier(TierName.L3)


async def test_a_result_reaches_every_tier() -> None:
    """Blob and record are in all tiers when the future says durable."""
    fast, slow = _l2(), _l3()
    writes = [_blob(b"clip"), _index(record_of(b"clip"))]

    async with _writer([fast, slow]) as writer:
        assert await (await writer.submit(writes))

    for tier in (fast, slow):
        assert {write.key: write.payload for write in writes} == tier.entries
    assert (0, 0, 2, 0, 0) == (
        writer.bytes,
        writer.entries,
        writer.counts.written,
        writer.counts.failed,
        writer.counts.dropped,
    )


async def test_blobs_come_before_records_whatever_the_order_of_a_batch() -> None:
    """No record is put into a tier before every blob of its batch is there."""
    tier = _l3()
    blobs = [_blob(b"%d" % number) for number in range(5)]
    records = [_index(record_of(b"%d" % number, name=str(number))) for number in range(5)]
    tier.open = asyncio.Event()

    async with _writer([tier]) as writer:
        durable = await writer.submit([*records, *blobs])
        await wait_all_tasks_blocked()
        assert 5 == tier.tries  # the blobs; no record was even tried
        tier.open.set()
        assert await durable

    assert [write.key for write in blobs] == tier.puts[:5]
    assert [write.key for write in records] == tier.puts[5:]


async def test_a_record_is_not_shown_where_a_blob_failed() -> None:
    """When a blob cannot be stored in a tier, that tier gets no record of the batch."""
    tier = _l3()
    tier.failing_puts = 4  # every try

    async with _writer([tier]) as writer:
        assert not await (await writer.submit([_blob(b"clip"), _index(record_of(b"clip"))]))

    assert {} == tier.entries
    assert (0, 2) == (writer.counts.written, writer.counts.failed)


async def test_a_tier_that_does_not_hold_a_blob_shows_its_record_after_the_durable_one_has_it() -> None:
    """A record beside a large blob goes to the small tier only once the blob is readable elsewhere."""
    small, durable = _l2(max_payload=500), _l3()
    durable.open = asyncio.Event()
    blob, index = _blob(b"x" * 800), _index(record_of(b"x" * 800))

    async with _writer([small, durable], max_bytes=10_000) as writer:
        future = await writer.submit([blob, index])
        await wait_all_tasks_blocked()
        assert 0 == small.tries

        durable.open.set()
        assert await future

    assert [blob.key, index.key] == durable.puts
    assert [index.key] == small.puts


async def test_a_large_result_that_did_not_become_durable_is_shown_nowhere() -> None:
    """When the durable tier has no blob, the small tier gets no record of it."""
    small, durable = _l2(max_payload=500), _l3()
    durable.fault = Outcome.ERROR

    async with _writer([small, durable], max_bytes=10_000) as writer:
        assert not await (await writer.submit([_blob(b"x" * 800), _index(record_of(b"x" * 800))]))

    assert [] == small.puts


async def test_a_small_result_is_in_the_fast_tier_while_the_durable_one_is_slow() -> None:
    """A tier that holds the whole batch waits for nobody."""
    fast, durable = _l2(), _l3()
    durable.open = asyncio.Event()

    async with _writer([fast, durable]) as writer:
        future = await writer.submit([_blob(b"clip"), _index(record_of(b"clip"))])
        await wait_all_tasks_blocked()
        assert 2 == len(fast.entries)
        assert not future.done()

        durable.open.set()
        assert await future


async def test_a_fast_copy_says_that_it_may_be_alone_until_the_durable_tier_has_the_record() -> None:
    """Before, and for good if that takes none; an access does not change what it says."""
    fast, durable, record = _l2(), _l3(), record_of(b"clip")
    durable.open = asyncio.Event()

    def said() -> bool:
        return Record.from_bytes(fast.entries[Key.of_record(record.address)]).pending

    async with _writer([fast, durable]) as writer:
        future = await writer.submit([_blob(b"clip"), _index(record)])
        await wait_all_tasks_blocked()
        assert said()
        durable.open.set()
        assert await future
        assert not said()
        assert record.to_bytes() == durable.entries[Key.of_record(record.address)]

        durable.fault, record = Outcome.ERROR, record_of(b"other", name="other")
        assert not await (await writer.submit([_blob(b"other"), _index(record)]))
        assert said()
        touched = replace(record, pending=True).touched(NOW + 400)
        assert writer.offer([Write(Key.of_record(record.address), touched.to_bytes(), 600.0, renews=True)], [fast])
        assert await writer.drain(5.0)
        assert said()
        assert touched.to_bytes() == fast.entries[Key.of_record(record.address)]


async def test_who_has_not_heard_that_a_record_is_durable_does_not_unsay_it() -> None:
    """An access by a process that found it while it was on its way makes both copies younger, and no more."""
    fast, durable, record = _l2(), _l3(), record_of(b"clip")
    key = Key.of_record(record.address)
    fast.entries = {key: record.to_bytes()}
    durable.entries = {key: record.to_bytes()}
    early = replace(record, pending=True).touched(NOW + 400)

    async with _writer([fast, durable]) as writer:
        assert writer.offer([Write(key, early.to_bytes(), 600.0, renews=True)], [fast, durable])
        assert await writer.drain(5.0)

    assert [record.touched(NOW + 400).to_bytes()] * 2 == [tier.entries[key] for tier in (fast, durable)]


async def test_what_another_process_has_stored_meanwhile_is_not_written_again() -> None:
    """Neither its record nor its blob; the fast tier's copy says that it is durable."""
    fast, durable, record = _l2(), _l3(), record_of(b"clip")
    key = Key.of_record(record.address)
    fast.entries = {key: replace(record, pending=True).to_bytes()}
    durable.entries = {key: record.to_bytes()}

    async with _writer([fast, durable]) as writer:
        healing = writer.offer_again([_blob(b"clip"), Write(key, record.to_bytes(), record.ttl, again=True)])
        assert healing is not None
        assert await healing

    assert ([], record.to_bytes()) == (durable.puts, fast.entries[key])


@pytest.mark.parametrize("made_at", [None, NOW - 5, NOW, NOW + 5])
async def test_what_is_written_again_gives_way_to_nothing_older(made_at: float | None) -> None:
    """The durable tier gets what the fast one has, in one try and without a word to the fast one but that it is there.
    A record made later stays.
    """
    fast, durable, record, pauses = _l2(), _l3(), record_of(b"clip"), Pauses()
    key = Key.of_record(record.address)
    writes = [_blob(b"clip"), Write(key, record.to_bytes(), record.ttl, again=True)]
    fast.entries = {writes[0].key: b"clip", key: replace(record, pending=True).to_bytes()}
    if made_at is not None:
        durable.entries[key] = record_of(b"clip", now=made_at).to_bytes()

    async with _writer([fast, durable], pauses=pauses) as writer:
        durable.fault = Outcome.TIMEOUT
        refused = writer.offer_again(writes)
        assert refused is not None
        assert not await refused
        assert ([], 0, 0) == (pauses.taken, writer.counts.failed, writer.counts.healed)

        durable.fault = None
        healing = writer.offer_again(writes)
        assert healing is not None
        assert await healing

    assert max(NOW, made_at or 0.0) == Record.from_bytes(durable.entries[key]).made_at
    assert ([key], record.to_bytes(), 1) == (fast.puts, fast.entries[key], writer.counts.healed)


async def test_the_durable_tier_is_retried_with_growing_pauses() -> None:
    """Three failures are survived; the fourth gives up."""
    survived, pauses = _l3(), Pauses()
    survived.failing_puts = 3
    async with _writer([survived], pauses=pauses) as writer:
        assert await (await writer.submit([_blob(b"clip")]))
    assert [0.1, 0.4, 1.6] == pauses.taken

    failing, pauses = _l3(), Pauses()
    failing.failing_puts = 4
    async with _writer([failing], pauses=pauses) as writer:
        assert not await (await writer.submit([_blob(b"clip")]))
    assert [0.1, 0.4, 1.6] == pauses.taken
    assert 4 == failing.tries


async def test_a_fast_tier_gets_one_try() -> None:
    """A failing cache costs one try and does not make a result less durable."""
    fast, durable, pauses = _l2(), _l3(), Pauses()
    fast.fault = Outcome.ERROR

    async with _writer([fast, durable], pauses=pauses) as writer:
        assert await (await writer.submit([_blob(b"clip")]))

    assert (1, []) == (fast.tries, pauses.taken)


async def test_a_promotion_gets_one_try() -> None:
    """A promotion to a failing cache is not retried: only the durable tier is. Nothing was given up for good."""
    fast, durable, pauses = _l2(), _l3(), Pauses()
    fast.fault = Outcome.ERROR

    async with _writer([fast, durable], pauses=pauses) as writer:
        assert writer.offer([_blob(b"clip")], [fast])
        assert await writer.drain(5.0)

    assert (1, []) == (fast.tries, pauses.taken)
    assert (0, 1) == (writer.counts.failed, writer.counts.dropped)
    assert [] == durable.puts


async def test_a_rewrite_offered_to_the_durable_tier_is_retried() -> None:
    """What is offered to the durable tier is tried as often as a result."""
    durable = _l3()
    durable.failing_puts = 2

    async with _writer([_l2(), durable]) as writer:
        assert writer.offer([_blob(b"clip")], [durable])
        assert await writer.drain(5.0)

    assert 1 == len(durable.entries)


async def test_a_result_waits_for_room() -> None:
    """A full queue delays `submit` until something was written, and drops nothing."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_bytes=10) as writer:
        first = await writer.submit([_blob(b"12345678")])
        second = asyncio.create_task(writer.submit([_blob(b"abcdefgh")]))
        await wait_all_tasks_blocked()
        assert not second.done()
        assert (8, 1) == (writer.bytes, writer.entries)

        tier.open.set()
        assert await first
        assert await (await second)

    assert 2 == len(tier.entries)
    assert 0 == writer.counts.dropped


async def test_the_number_of_entries_is_a_bound_too() -> None:
    """Many empty entries fill the queue as well."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_entries=2) as writer:
        await writer.submit([_blob(b""), _blob(b"a")])
        second = asyncio.create_task(writer.submit([_blob(b"b")]))
        await wait_all_tasks_blocked()
        assert not second.done()

        tier.open.set()
        await second


async def test_a_promotion_is_dropped_when_there_is_no_room() -> None:
    """`offer` never waits: it says no, and the drop is counted per entry."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_bytes=10) as writer:
        await writer.submit([_blob(b"12345678")])
        assert not writer.offer([_blob(b"abc"), _blob(b"def")], [tier])
        assert writer.offer([_blob(b"ab")], [tier])
        tier.open.set()

    assert 2 == writer.counts.dropped
    assert 2 == len(tier.entries)


async def test_what_is_over_the_bound_passes_alone() -> None:
    """A batch larger than the whole queue waits until that is empty and then passes, alone."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_bytes=10, writers=1) as writer:
        await writer.submit([_blob(b"1")])
        large = asyncio.create_task(writer.submit([_blob(b"x" * 50)]))
        await wait_all_tasks_blocked()
        assert not large.done()

        tier.open.set()
        assert await (await large)


async def test_results_find_room_in_the_order_they_came() -> None:
    """Small results and promotions that keep coming do not keep a large one out for ever."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_bytes=10, writers=1) as writer:
        await writer.submit([_blob(b"1")])
        large = asyncio.create_task(writer.submit([_blob(b"x" * 50)]))
        await wait_all_tasks_blocked()
        small = asyncio.create_task(writer.submit([_blob(b"2")]))
        await wait_all_tasks_blocked()

        assert not small.done()
        assert not writer.offer([_blob(b"3")], [tier])
        tier.open.set()
        await asyncio.gather(await large, await small)

    assert [1, 50, 1] == [len(tier.entries[key]) for key in tier.puts]


async def test_a_caller_that_gives_up_waiting_takes_no_room() -> None:
    """Cancelled while it waits for room, a submit leaves no trace and lets the next one in."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], max_bytes=10) as writer:
        await writer.submit([_blob(b"12345678")])
        second, third = (asyncio.create_task(writer.submit([_blob(data)])) for data in (b"abcdefgh", b"ABCDEFGH"))
        await wait_all_tasks_blocked()
        second.cancel()
        tier.open.set()
        assert await (await third)

    assert _blob(b"abcdefgh").key not in tier.entries
    assert (0, 0) == (writer.bytes, writer.entries)


async def test_the_first_record_wins() -> None:
    """A live record stays; the second commit is durable all the same."""
    tier, first = _l3(), record_of(b"one")

    async with _writer([tier]) as writer:
        assert await (await writer.submit([_index(first)]))
        assert await (await writer.submit([_index(record_of(b"two"))]))

    assert first.to_bytes() == tier.entries[Key.of_record(first.address)]


@pytest.mark.parametrize(
    "stale",
    [record_of(b"one", now=NOW - 601, ttl=600).to_bytes(), b"not a record"],
    ids=["expired", "of another schema"],
)
async def test_a_record_that_is_no_good_is_replaced(stale: bytes) -> None:
    """An expired record, or one nobody can read, makes way for the new one."""
    tier, record = _l3(), record_of(b"two")
    tier.entries[Key.of_record(record.address)] = stale

    async with _writer([tier]) as writer:
        assert await (await writer.submit([_index(record)]))

    assert record.to_bytes() == tier.entries[Key.of_record(record.address)]


async def test_a_commit_that_replaces_does() -> None:
    """With `replace` the record is written over a live one."""
    tier, record = _l3(), record_of(b"two")
    tier.entries[Key.of_record(record.address)] = record_of(b"one").to_bytes()

    async with _writer([tier]) as writer:
        assert await (await writer.submit([_index(record, replace=True)]))

    assert record.to_bytes() == tier.entries[Key.of_record(record.address)]


@pytest.mark.parametrize("there", [None, record_of(b"one", now=NOW + 5), record_of(b"two")])
async def test_a_renewal_brings_nothing_back(there: Record | None) -> None:
    """A record is made younger where it still stands, and not where another one or none has taken its place."""
    tier, renewed = _l3(), record_of(b"one").touched(NOW + 400)
    key = Key.of_record(renewed.address)
    if there is not None:
        tier.entries[key] = there.to_bytes()

    async with _writer([tier]) as writer:
        await (await writer.submit([Write(key, renewed.to_bytes(), renewed.ttl, renews=True)]))
    assert (there.to_bytes() if there else None) == tier.entries.get(key)

    tier.entries[key] = record_of(b"one").to_bytes()
    async with _writer([tier]) as writer:
        await (await writer.submit([Write(key, renewed.to_bytes(), renewed.ttl, renews=True)]))
    assert renewed.to_bytes() == tier.entries[key]


@pytest.mark.parametrize("fault", [Outcome.ERROR, Outcome.TIMEOUT, Outcome.SKIPPED])
async def test_a_record_is_not_replaced_on_the_word_of_a_failing_tier(fault: Outcome) -> None:
    """When the tier cannot say what it holds, the record that is there stays; it is asked again, then given up."""

    class Forgetful(ScriptedTier):
        async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
            self.fault = None
            try:
                return await super().put(key, payload, ttl, replace=replace)
            finally:
                self.fault = fault

    tier, first = Forgetful(TierName.L3), record_of(b"one")
    tier.entries[Key.of_record(first.address)] = first.to_bytes()

    async with _writer([tier]) as writer:
        assert not await (await writer.submit([_index(record_of(b"two"))]))

    assert first.to_bytes() == tier.entries[Key.of_record(first.address)]
    assert 4 == tier.tries


async def test_draining_waits_for_everything_accepted() -> None:
    """True once nothing is left; False when patience ends first, with everything still on its way."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier]) as writer:
        assert await writer.drain(0.0)
        await writer.submit([_blob(b"clip")])
        assert not await writer.drain(0.01)
        draining = asyncio.create_task(writer.drain(60.0))
        await wait_all_tasks_blocked()
        assert not draining.done()

        tier.open.set()
        assert await draining

    assert 1 == len(tier.entries)


async def test_leaving_drains() -> None:
    """What was submitted before the end is stored at the end."""
    tier = _l3()

    async with _writer([tier], writers=1) as writer:
        for number in range(20):
            await writer.submit([_blob(b"%d" % number)])

    assert 20 == len(tier.entries)
    assert 20 == writer.counts.written


async def test_whoever_waits_for_a_result_is_told_when_patience_ended() -> None:
    """Written halfway, still queued, or submitted too late: every future says so, every failure is counted."""
    tier = _l3()
    tier.open = asyncio.Event()  # never set: the tier hangs
    writer = _writer([tier], writers=1, drain_timeout=0.01)

    async with writer:
        halfway = await writer.submit([_blob(b"one")])
        queued = await writer.submit([_blob(b"two")])
    late = await writer.submit([_blob(b"three")])

    assert (False, False, False) == tuple(await asyncio.wait_for(asyncio.gather(halfway, queued, late), 1.0))
    assert (0, 0, 3) == (writer.bytes, writer.entries, writer.counts.failed)


async def test_a_result_that_waits_for_room_at_the_end_is_told_too() -> None:
    """A submit that waits when the process stops ends with a future that says no."""
    tier = _l3()
    tier.open = asyncio.Event()
    writer = _writer([tier], max_bytes=5, writers=1, drain_timeout=0.01)

    async with writer:
        await writer.submit([_blob(b"12345")])
        waiting = asyncio.create_task(writer.submit([_blob(b"abcde")]))
        await wait_all_tasks_blocked()

    assert not await asyncio.wait_for(await asyncio.wait_for(waiting, 1.0), 1.0)


async def test_a_bug_in_a_tier_does_not_end_the_writer() -> None:
    """An unexpected exception fails its batch alone; the next one is written by the same writer."""

    class Buggy(ScriptedTier):
        async def put(self, key: Key, payload: bytes, ttl: float, *, replace: bool = False, cost: float = 0.0) -> bool:
            if payload == b"bug":
                raise RuntimeError("a bug")
            return await super().put(key, payload, ttl, replace=replace)

    tier = Buggy(TierName.L3)

    with capture_logs() as logs:
        async with _writer([tier], writers=1) as writer:
            assert not await (await writer.submit([_blob(b"bug")]))
            assert await (await writer.submit([_blob(b"clip")]))

    assert (1, 1) == (writer.counts.written, writer.counts.failed)
    assert ["error"] == [entry["log_level"] for entry in logs]


async def test_a_caller_that_stopped_waiting_is_no_obstacle() -> None:
    """A future that its holder cancelled does not keep the batch from being settled."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier]) as writer:
        (await writer.submit([_blob(b"clip")])).cancel()
        tier.open.set()

    assert (1, 0) == (writer.counts.written, writer.entries)


async def test_without_a_shared_tier_nothing_is_durable() -> None:
    """A process without shared tiers says so at once."""
    async with _writer([]) as writer:
        assert not await (await writer.submit([_blob(b"clip")]))


async def test_several_batches_are_written_at_once() -> None:
    """One slow batch does not hold up the others, as long as there are writers."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], writers=3) as writer:
        for number in range(5):
            await writer.submit([_blob(b"%d" % number)])
        await wait_all_tasks_blocked()
        assert 3 == tier.tries
        tier.open.set()


async def test_callers_are_not_delayed_by_slow_tiers() -> None:
    """With room in the queue, `submit` returns while the tier hangs."""
    tier = _l3()
    tier.open = asyncio.Event()

    async with _writer([tier], drain_timeout=0.0) as writer:
        started = time.perf_counter()
        await writer.submit([_blob(b"clip")])
        assert time.perf_counter() - started < 0.5
