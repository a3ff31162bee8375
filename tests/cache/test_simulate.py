"""Simulate: replays count what the map does; the advice follows from the curve; synthetic streams have their shape."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from redis import Redis

from cache.accesses import Access
from cache.bounded import Bounded
from cache.simulate import GIB, OVERHEAD, Advice, RedisLeastFrequentlyUsed, Replay, advise, ceiling, replay
from cache.synthetic import SYNTHETIC
from tests.servers import redis_part, redis_url, serving

MIB = 1024 * 1024


def _stream(keys: str, *, size: int = 1000, cost: float = 2.0, every: float = 1.0) -> list[Access]:
    return [Access(number * every, key, size, cost) for number, key in enumerate(keys)]


def _synthetic(name: str, count: int = 5_000, *, seed: int = 42, rate: float = 1.0) -> list[Access]:
    return list(islice(SYNTHETIC[name](seed, rate), count))


# Replays.


def test_a_replay_counts_hits_bytes_and_costs() -> None:
    """By hand: four looks, the first of each key is a miss."""
    accesses = [Access(0, "a", 100, 5.0), Access(1, "b", 300, 1.0), Access(2, "a", 100, 5.0), Access(9, "b", 300, 1.0)]

    made = replay(accesses, "lru", MIB)

    assert (4, 2, 800, 400, 12.0, 6.0) == (
        made.lookups,
        made.hits,
        made.bytes_asked,
        made.bytes_hit,
        made.cost_asked,
        made.cost_saved,
    )
    assert (0.5, 0.5, 0.5, 9.0) == (made.hit_rate, made.byte_hit_rate, made.share_saved, made.seconds)
    assert 6.0 * 1024 == made.saved_per_gib
    assert (400 + 2 * OVERHEAD, 0) == (made.peak_bytes, made.evictions)


def test_a_replay_has_the_bounds_and_ages_of_the_map() -> None:
    """Bytes, entries, the share of one entry, and time without access."""
    room_for_one = 1000 + OVERHEAD

    assert [0, 1, 0] == [replay(_stream(keys), "lru", room_for_one).hits for keys in ("aba", "aab", "ab")]
    assert 2 == replay(_stream("aba"), "lru", room_for_one).evictions
    assert 0 == replay(_stream("aba"), "lru", MIB, max_entries=1).hits
    assert 0 == replay(_stream("aa"), "lru", MIB, max_weight=1000).hits
    assert [0, 1] == [replay(_stream("aa", every=60.0), "lru", MIB, ttl=ttl).hits for ttl in (60.0, 61.0)]


def test_every_policy_has_its_own_way() -> None:
    """What is called by another name is another one."""
    accesses = _synthetic("sessions")

    assert 3 == len({replay(accesses, policy, 32 * MIB).cost_saved for policy in ("lru", "value", "lfu")})


def test_nothing_asked_is_nothing_saved() -> None:
    """No division by zero."""
    made = ceiling([])

    assert (0.0, 0.0, 0.0, 0) == (made.hit_rate, made.byte_hit_rate, made.share_saved, made.peak_bytes)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_size_saves_more_than_memory_without_end(name: str) -> None:
    """And a map that holds everything at once saves as much, whatever its policy."""
    accesses = _synthetic(name)
    best = ceiling(accesses, ttl=600.0)

    for policy in ("lru", "value", "lfu"):
        assert replay(accesses, policy, best.peak_bytes // 8, ttl=600.0).cost_saved <= best.cost_saved
        assert best.cost_saved == replay(accesses, policy, best.peak_bytes, ttl=600.0).cost_saved


@pytest.mark.parametrize(
    ("name", "size"), [("zipf", 32), ("reference", 32), ("scan", 32), ("sessions", 128), ("stages", 2)]
)
def test_value_saves_more_than_last_use_where_memory_is_short(name: str, size: int) -> None:
    """On all streams but one, with another seed too."""
    for seed in (1, 2):
        accesses = _synthetic(name, 20_000, seed=seed)
        lru, value = (replay(accesses, policy, size * MIB, ttl=7200.0) for policy in ("lru", "value"))

        assert value.cost_saved > 1.02 * lru.cost_saved


def test_last_use_saves_more_where_things_are_used_in_bursts() -> None:
    """Where value loses, it loses little enough, and the simulation says so."""
    accesses = _synthetic("bursts", 20_000)
    lru, value = (replay(accesses, policy, 16 * MIB, ttl=7200.0) for policy in ("lru", "value"))

    assert 0.75 * lru.cost_saved < value.cost_saved < lru.cost_saved


def test_the_reference_case_needs_at_least_two_fifths_fewer_generations() -> None:
    """35 % of requests on a dozen lines, the default memory and the default age."""
    made = replay(_synthetic("reference", 20_000), "value", 256 * MIB, ttl=7200.0, max_entries=200, max_weight=64 * MIB)

    assert made.hit_rate >= 0.4


# Redis, approximated.


def _counted(clock: list[float]) -> tuple[RedisLeastFrequentlyUsed[str], Bounded[str, int]]:
    policy: RedisLeastFrequentlyUsed[str] = RedisLeastFrequentlyUsed(lambda: clock[0])
    return policy, Bounded(max_bytes=5, policy=policy)


def test_what_is_rarely_used_leaves_redis() -> None:
    """Of entries that are asked for at one time, the one that is not goes."""
    _, entries = _counted([0.0])
    for key in "abcde":
        entries.put(key, 0, weight=1, now=0.0, ttl=1e9)
    for key in "abde" * 50:
        entries.get(key, 0.0)

    entries.put("f", 0, weight=1, now=0.0, ttl=1e9)

    assert set("abdef") == set(dict(entries.items()))


def test_fame_fades_in_redis() -> None:
    """A counter loses one for each minute without access."""
    clock = [0.0]
    _, entries = _counted(clock)
    for key in "abcde":
        entries.put(key, 0, weight=1, now=0.0, ttl=1e9)
    for _ in range(200):
        entries.get("a", 0.0)
    clock[0] = 3600.0
    for key in "bcde":
        entries.get(key, 3600.0)

    entries.put("f", 0, weight=1, now=3600.0, ttl=1e9)

    assert "a" not in entries


def test_redis_gives_every_entry_once() -> None:
    """All may have to go, also when chance keeps drawing the same."""
    policy, entries = _counted([0.0])
    for key in "abcde":
        entries.put(key, 0, weight=1, now=0.0, ttl=1e9)

    assert Counter("abcde") == Counter(policy.victims())
    assert entries.put("large", 0, weight=5, now=0.0, ttl=1e9)
    assert ["large"] == list(dict(entries.items()))


def test_the_approximation_hits_as_often_as_redis_does(tmp_path: Path) -> None:
    """The same stream through a real server with 8 MB: far nearer to it than last use is. No time passes for either."""
    size = 16_000
    accesses = [access._replace(at=0.0, size=size) for access in _synthetic("zipf", 10_000)]
    with serving(tmp_path, redis_part(tmp_path, memory="8mb")) as stack:
        with Redis.from_url(redis_url(stack)) as server:
            hits = 0
            for access in accesses:
                if server.get(access.key) is not None:
                    hits += 1
                else:
                    server.set(access.key, bytes(size))
            room = server.dbsize() * (size + OVERHEAD)

    lfu, lru = (replay(accesses, policy, room).hits for policy in ("lfu", "lru"))
    assert abs(lfu - hits) < 0.02 * len(accesses) < hits - lru


# Advice.


def _curve(*points: tuple[float, float], evictions: int = 1, hours: float = 2.0) -> list[Replay]:
    """Of sizes in GiB and device seconds saved."""
    return [
        Replay("lru", int(size * GIB), 10, 5, 10, 5, 1000.0, saved, hours * 3600, 0, evictions)
        for size, saved in points
    ]


@pytest.mark.parametrize(
    ("points", "evictions", "advice"),
    [
        (((1, 100), (2, 140), (4, 148)), 1, Advice(2 * GIB, 2.0)),
        (((1, 100), (2, 104), (4, 112)), 1, Advice(1 * GIB, 2.0)),  # no step pays
        (((1, 100), (2, 140), (4, 200)), 1, Advice(None, 15.0)),  # the last one still does
        (((1, 100), (2, 140), (4, 200)), 0, Advice(4 * GIB, 0.0)),  # and holds everything
        (((1, 100), (2, 102), (4, 160), (8, 161)), 1, Advice(4 * GIB, 0.125)),  # a step behind one that does not pay
        (((2, 140), (4, 148), (1, 100)), 1, Advice(2 * GIB, 2.0)),  # in any order
    ],
)
def test_the_advice_is_the_size_from_which_another_gib_does_not_pay(
    points: tuple[tuple[float, float], ...], evictions: int, advice: Advice
) -> None:
    """Five device seconds an hour are what a GiB must save here; the stream lasts two hours."""
    assert advice == advise(_curve(*points, evictions=evictions), 5.0)


def test_one_size_is_no_curve() -> None:
    """There is nothing to compare."""
    with pytest.raises(ValueError, match="two sizes"):
        advise(_curve((1, 100), (1, 100)), 5.0)


# Synthetic streams.


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_stream_is_the_same_every_time(name: str) -> None:
    """A seed makes a stream, another seed another one; an entry has one size and one cost; time goes on."""
    accesses = _synthetic(name)

    assert accesses == _synthetic(name)
    assert accesses != _synthetic(name, seed=43)
    assert len({access.key for access in accesses}) == len({access[1:] for access in accesses})
    assert all(earlier.at <= later.at for earlier, later in pairwise(accesses))
    assert all(access.size > 0 and access.cost > 0 for access in accesses)


def test_a_stream_comes_as_fast_as_it_is_asked_to() -> None:
    """Twice the rate, half the time."""
    slow, fast = (_synthetic("zipf", 2_000, rate=rate)[-1].at for rate in (1.0, 2.0))

    assert slow == pytest.approx(2 * fast)
    assert 1900 < slow < 2100


def test_a_dozen_lines_have_more_than_a_third_of_the_reference_case() -> None:
    """35 % drawn from them alone, and what they have of the rest."""
    counts = Counter(access.key for access in _synthetic("reference", 20_000))
    *dozen, thirteenth = (count for _, count in counts.most_common(13))

    assert 0.5 < sum(dozen) / 20_000 < 0.65
    assert min(dozen) > 4 * thirteenth


def test_a_batch_is_read_once() -> None:
    """29 % of the lookups in `scan` are of lines that never come again."""
    counts = Counter(access.key for access in _synthetic("scan", 20_000))
    batch = {key: count for key, count in counts.items() if "batch" in key}

    assert {1} == set(batch.values())
    assert 0.28 < len(batch) / 20_000 < 0.30
