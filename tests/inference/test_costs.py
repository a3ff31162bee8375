"""Costs: what an output would cost from nothing, with everything that it is made of counted once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from cache.digest import Digest
from cache.keys import Address
from cache.record import Output, Record
from inference.costs import Costs

# voice -> prefix -> each: latents -> waveform; all -> file
SENTENCES = 3


def made_of() -> dict[str, frozenset[str]]:
    """Everything that each stage needs."""
    needs = {"voice": frozenset[str](), "tokens": frozenset[str](), "prefix": frozenset({"voice"})}
    for number in range(SENTENCES):
        needs[f"latents[{number}]"] = frozenset({"voice", "prefix", "tokens"})
        needs[f"waveform[{number}]"] = frozenset({"voice", "prefix", "tokens", f"latents[{number}]"})
    everything = frozenset(needs)
    return {**needs, "file": everything}


def record(own: float, in_all: float) -> Record:
    return Record(
        address=Address("0" * 32, "0" * 64),
        model="spoken",
        revision="1",
        stage="any",
        fingerprint="1",
        output=Output(Digest.of(b"x"), "t", b"x"),
        device_seconds=own,
        total_device_seconds=in_all,
        made_at=0.0,
        touched_at=0.0,
        ttl=1.0,
        expires_at=1.0,
    )


COSTS = {"voice": 100.0, "prefix": 10.0, **{f"latents[{n}]": 5.0 for n in range(SENTENCES)}}
COSTS |= {f"waveform[{n}]": 1.0 for n in range(SENTENCES)} | {"file": 0.5}
IN_ALL = {
    name: COSTS[name] + sum(COSTS.get(each, 0.0) for each in needs)
    for name, needs in made_of().items()
    if name in COSTS
}
ALL = 100.0 + 10.0 + SENTENCES * 6.0 + 0.5


def found(*names: str) -> dict[str, Record]:
    return {name: record(COSTS[name], IN_ALL[name]) for name in names}


def total(records: Mapping[str, Record], reused: list[str], ran: list[str], of: str = "file") -> float:
    costs = Costs(made_of(), ["tokens"])
    costs.know(records, reused)
    for name in ran:
        costs.spend(name, COSTS[name])
    return costs.total(of)


def test_what_all_sentences_share_counts_once() -> None:
    """Everything ran: the file's total is the sum of what was spent, the voice once."""
    assert pytest.approx(ALL) == total({}, [], list(COSTS))


def test_a_stages_total_is_its_own_and_its_upstreams() -> None:
    """Of a sentence: itself and what it is made of, not the other sentences."""
    assert pytest.approx(111.0 + 5.0) == total({}, [], list(COSTS), of="waveform[1]")


def test_what_was_found_is_counted_by_its_records() -> None:
    """Also by those of outputs that nothing reads: a new sentence in a known text."""
    records = found("voice", "prefix", *(f"{stage}[{n}]" for stage in ("latents", "waveform") for n in (0, 1)))
    reused = ["prefix", "waveform[0]", "waveform[1]"]
    assert pytest.approx(ALL) == total(records, reused, ["latents[2]", "waveform[2]", "file"])


def test_an_upstream_of_which_nothing_is_left_is_shared_by_what_was_made_of_it() -> None:
    """Only the sentences' own records are left, which each say what they cost in all: the voice counts once still."""
    sentences = [f"{stage}[{n}]" for stage in ("latents", "waveform") for n in range(SENTENCES)]
    reused = [name for name in sentences if name.startswith("waveform")]
    assert pytest.approx(ALL) == total(found(*sentences), reused, ["file"])


def test_what_ran_counts_as_it_ran() -> None:
    """Not as an earlier record says, whose bytes are gone."""
    records = found("voice", "prefix") | {"latents[0]": record(77.0, 187.0)}
    ran = [name for name in COSTS if name not in records] + ["latents[0]"]
    assert pytest.approx(ALL) == total(records, ["prefix"], ran)
