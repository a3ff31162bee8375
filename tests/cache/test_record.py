"""Record: read back exactly, and refused in full when anything about it is not as it was written."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.digest import Digest
from cache.keys import Address
from cache.record import NotARecord, Output, Record
from tests.cache.helpers import NOW, Planted, address_of, record_of

_texts = st.text(max_size=5)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_addresses = st.builds(address_of, _texts)
_outputs = st.binary(max_size=20).flatmap(
    lambda data: st.builds(Output, st.just(Digest.of(data)), _texts, st.none() | st.just(data))
)
_records = st.builds(
    Record,
    address=_addresses,
    model=_texts,
    revision=_texts,
    stage=_texts,
    fingerprint=_texts,
    output=_outputs,
    device_seconds=_numbers,
    total_device_seconds=_numbers | st.integers(0, 100),
    made_at=_numbers,
    touched_at=_numbers,
    ttl=_numbers,
    expires_at=_numbers,
    upstream=st.dictionaries(_texts, _texts, max_size=3),
    tags=st.lists(_texts, max_size=3).map(tuple),
    execution=st.dictionaries(_texts, _texts, max_size=3),
    canonical=st.none() | _addresses,
    pending=st.booleans(),
)


@given(_records)
def test_what_is_written_is_read(record: Record) -> None:
    """A record comes back from its bytes equal, and asking for its own address makes no difference."""
    assert record == Record.from_bytes(record.to_bytes()) == Record.from_bytes(record.to_bytes(), record.address)


def test_a_record_of_another_address_is_refused() -> None:
    """A record is believed only under the address it names."""
    with pytest.raises(NotARecord, match="another address"):
        Record.from_bytes(record_of(b"clip").to_bytes(), address_of("other"))


def _tampered(change: Callable[[dict[str, Any]], Any]) -> bytes:
    fields = msgpack.unpackb(record_of(b"clip", inline=True).to_bytes())
    change(fields)
    return bytes(msgpack.packb(fields))


def test_another_schema_is_refused() -> None:
    """A record of an older or newer schema is no record, whatever its fields."""
    for schema in (0, 2, "1", None):
        with pytest.raises(NotARecord):
            Record.from_bytes(_tampered(lambda fields, schema=schema: fields.update(schema=schema)))  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", sorted(msgpack.unpackb(record_of(b"clip").to_bytes()).keys() - {"upstream", "execution"})
)
def test_a_missing_field_is_refused(name: str) -> None:
    """Every field must be there that says what the output is and how long it is good for."""
    with pytest.raises(NotARecord):
        Record.from_bytes(_tampered(lambda fields: fields.pop(name)))


@pytest.mark.parametrize("name", msgpack.unpackb(record_of(b"clip").to_bytes()))
@pytest.mark.parametrize("value", [7, "seven", True, b"7", ["7"], {"7": 7}, {7: "7"}, [["7"]], float("nan")], ids=repr)
def test_a_field_of_another_type_is_refused_or_harmless(name: str, value: object) -> None:
    """A value of a wrong type is found here and not by whoever uses the record."""
    written = msgpack.unpackb(record_of(b"clip").to_bytes())[name]
    try:
        record = Record.from_bytes(_tampered(lambda fields: fields.update({name: value})))
    except NotARecord:
        return
    assert isinstance(value, type(written)) or (isinstance(written, int | float) and isinstance(value, int))
    assert record.expired(NOW) in (True, False)
    assert record == Record.from_bytes(record.to_bytes())


def test_only_a_record_that_may_be_alone_says_so() -> None:
    """Others have the bytes they always had; settled, it has them too."""
    record = record_of(b"clip")
    pending = replace(record, pending=True)
    assert pending == Record.from_bytes(pending.to_bytes())
    assert record.to_bytes() != pending.to_bytes()
    assert record.to_bytes() == pending.settled().to_bytes()
    assert b"pending" not in record.to_bytes()


@pytest.mark.parametrize("said", [1, 0, "yes", None, b"", []], ids=repr)
def test_whether_it_may_be_alone_is_yes_or_no(said: object) -> None:
    """Anything else is no record."""
    with pytest.raises(NotARecord):
        Record.from_bytes(_tampered(lambda fields: fields.update(pending=said)))


def test_an_unknown_field_is_refused() -> None:
    """A field nobody knows makes it another schema."""
    with pytest.raises(NotARecord):
        Record.from_bytes(_tampered(lambda fields: fields.update(colour="red")))


@pytest.mark.parametrize("inline", [b"clap", b"clip!", b"", "clip", 4, ["c", "l", "i", "p"], b"clip\0"], ids=repr)
def test_an_inlined_output_must_be_what_its_digest_names(inline: object) -> None:
    """Bytes inlined under a digest that does not name them are refused, and so is what is not bytes."""
    with pytest.raises(NotARecord):
        Record.from_bytes(_tampered(lambda fields: fields["output"].__setitem__(3, inline)))


@pytest.mark.parametrize("size", [float("inf"), "4", 4.0, None, -1, True], ids=repr)
def test_a_size_must_be_a_number_of_bytes(size: object) -> None:
    """The size in an output's digest is a whole number."""
    with pytest.raises(NotARecord):
        Record.from_bytes(_tampered(lambda fields: fields["output"].__setitem__(1, size)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_are_refused(data: bytes) -> None:
    """Arbitrary bytes raise NotARecord and nothing else."""
    with pytest.raises(NotARecord):
        Record.from_bytes(data)


@given(st.data())
def test_damaged_records_are_refused_or_whole(data: st.DataObject) -> None:
    """Any damage raises NotARecord, or leaves a record that can be used and written again."""
    damaged = bytearray(record_of(b"clip", inline=True).to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = Record.from_bytes(bytes(damaged))
    except NotARecord:
        return
    assert record.expired(NOW) in (True, False)
    assert record == Record.from_bytes(record.to_bytes())


def test_a_planted_pickle_is_not_executed(tmp_path: Path) -> None:
    """A pickle in the place of a record is refused unread."""
    data = pickle.dumps(Planted(tmp_path / "executed"))

    with pytest.raises(NotARecord):
        Record.from_bytes(data)

    assert [] == list(tmp_path.iterdir())
    pickle.loads(data)  # it would have
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("record", "age", "expired"),
    [
        (record_of(b"", ttl=60, max_age=3600), 59.9, False),
        (record_of(b"", ttl=60, max_age=3600), 60, True),
        (record_of(b"", ttl=60, max_age=3600).touched(NOW + 50), 109.9, False),
        (record_of(b"", ttl=60, max_age=3600).touched(NOW + 50), 110, True),
        (record_of(b"", ttl=60, max_age=3600).touched(NOW + 3590), 3599, False),
        (record_of(b"", ttl=60, max_age=3600).touched(NOW + 3590), 3600, True),
        (record_of(b"", ttl=0), 0, True),
    ],
)
def test_it_ages_by_access_and_in_the_end_by_itself(record: Record, age: float, expired: bool) -> None:
    """Gone when nobody came for its TTL; gone at its hard age, whoever came."""
    assert expired == record.expired(NOW + age)


@pytest.mark.parametrize(("age", "worth"), [(0, False), (300, False), (300.1, True), (599, True)])
def test_an_access_is_worth_noting_once_per_half_ttl(age: float, worth: bool) -> None:
    """The first half of a TTL is free of rewrites."""
    record = record_of(b"", ttl=600)

    assert worth == record.worth_touching(NOW + age)
    assert not record.touched(NOW + age).worth_touching(NOW + age)


def test_an_alias_is_the_record_under_another_address() -> None:
    """An alias keeps everything and says whose alias it is; an address is no alias of itself."""
    record = record_of(b"clip")
    written = address_of("as written")

    assert replace(record, address=written, canonical=record.address) == record.alias(written)
    assert record is record.alias(record.address)
    assert record.alias(written) == Record.from_bytes(record.alias(written).to_bytes(), written)


def test_an_alias_names_the_canonical_address() -> None:
    """The canonical address of an alias is a real address when read back."""
    canonical = Record.from_bytes(record_of(b"clip").alias(address_of("x")).to_bytes()).canonical

    assert canonical == address_of("clip")
    assert isinstance(canonical, Address)
