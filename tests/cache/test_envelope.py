"""Envelope: whatever is not, bit for bit, what was sealed under a name is damaged."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.digest import Digest
from cache.envelope import OVERHEAD, Damaged, seal, unseal
from cache.keys import Key
from tests.cache.helpers import NAMESPACE, Planted, address_of

_PAYLOAD = b"a clip"
_KEY = Key.of_blob(NAMESPACE, Digest.of(_PAYLOAD))
_SEALED = seal(_KEY, _PAYLOAD)
_CHECKSUM = "797cead0162ac4b624e610d711afc649f2149a01dba30659ca1222bcefc6c8c0"


@given(st.binary(max_size=200))
def test_what_was_sealed_is_unsealed(payload: bytes) -> None:
    """A payload comes back under the name it was sealed under, at a fixed overhead."""
    sealed = seal(_KEY, payload)

    assert payload == unseal(_KEY, sealed)
    assert OVERHEAD + len(payload) == len(sealed)


def test_golden_layout() -> None:
    """The layout on disk, pinned byte by byte."""
    expected = b"RPRS\x01b\0\0" + len(_PAYLOAD).to_bytes(8, "big") + bytes.fromhex(_CHECKSUM) + _PAYLOAD

    assert expected == _SEALED


@pytest.mark.parametrize("position", range(len(_SEALED)))
def test_any_changed_byte_is_found(position: int) -> None:
    """Each byte, changed to each other value, is damage."""
    undetected = []
    for difference in range(1, 256):
        damaged = bytearray(_SEALED)
        damaged[position] ^= difference
        try:
            unseal(_KEY, bytes(damaged))
        except Damaged:
            continue
        undetected.append(difference)

    assert [] == undetected


@pytest.mark.parametrize("length", range(len(_SEALED)))
def test_any_truncation_is_found(length: int) -> None:
    """Every proper prefix is damage."""
    with pytest.raises(Damaged):
        unseal(_KEY, _SEALED[:length])


@given(st.binary(min_size=1, max_size=100))
def test_any_extension_is_found(more: bytes) -> None:
    """Bytes after the end are damage, and so are bytes before the beginning."""
    with pytest.raises(Damaged):
        unseal(_KEY, _SEALED + more)
    with pytest.raises(Damaged):
        unseal(_KEY, more + _SEALED)


@pytest.mark.parametrize(
    "key",
    [
        Key("r", _KEY.namespace, _KEY.hex),
        Key("w", _KEY.namespace, _KEY.hex),
        Key("b", "1" * 32, _KEY.hex),
        Key("b", _KEY.namespace, "0" * 64),
        Key.of_record(address_of("clip")),
    ],
    ids=["kind", "wire", "namespace", "hash", "record"],
)
def test_a_value_moved_to_another_name_is_found(key: Key) -> None:
    """A good entry under any other name is damage, also under another tenant's."""
    with pytest.raises(Damaged):
        unseal(key, _SEALED)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_damaged(data: bytes) -> None:
    """Bytes that were never sealed raise Damaged and nothing else."""
    with pytest.raises(Damaged):
        unseal(_KEY, data)


def test_another_version_of_the_layout_is_damaged() -> None:
    """An entry of a layout before or after this one is not read."""
    for version in (0, 2):
        with pytest.raises(Damaged):
            unseal(_KEY, _SEALED[:4] + bytes([version]) + _SEALED[5:])


def test_a_planted_pickle_is_not_executed(tmp_path: Path) -> None:
    """A pickle in the place of an entry is damage, and nothing runs it."""
    with pytest.raises(Damaged):
        unseal(_KEY, pickle.dumps(Planted(tmp_path / "executed")))

    assert [] == list(tmp_path.iterdir())
