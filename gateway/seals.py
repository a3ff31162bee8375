"""Seals: short texts that only processes with the deployment's secret can make, and anybody can carry."""

from __future__ import annotations

import base64
import binascii
import hmac

from cache.encoding import Value, decode, encode, keyed_hash_of

_MAC_BYTES = 16
_LONGEST = 8192  # letters; those that we make have some two hundred, and callers may send millions


def seal(secret: bytes, domain: str, value: Value) -> str:
    """A text that holds this value, readable by all. `domain` keeps texts made for different purposes apart.

    It begins with a letter, whatever the value, so that no command takes it for an option.
    """
    return _text(encode(value) + _mac(secret, domain, value))


def unseal(secret: bytes, domain: str, text: str) -> Value:
    """The value in a text that we sealed for this purpose. Raises ValueError for any other text."""
    if len(text) > _LONGEST:
        raise ValueError("longer than any sealed text")
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not a sealed text") from error
    if _text(content) != text:
        raise ValueError("another spelling of a sealed text")
    value = decode(content[:-_MAC_BYTES])
    if not hmac.compare_digest(content[-_MAC_BYTES:], _mac(secret, domain, value)):
        raise ValueError("not sealed by us")
    return value


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _mac(secret: bytes, domain: str, value: Value) -> bytes:
    return bytes.fromhex(keyed_hash_of(secret, f"seal:{domain}", value))[:_MAC_BYTES]
