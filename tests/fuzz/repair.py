"""Repair: checksums of a changed file made right again. Else nearly every change would end at them."""

from __future__ import annotations

import struct
import zlib

from gateway.sound_files import _ogg_checksum

_PNG, _PAGE = b"\x89PNG\r\n\x1a\n", 27  # bytes of a page's head, without its table


def repaired(data: bytes) -> bytes:
    """The same file with right checksums, as far as it can be followed; itself if it is of a kind without any."""
    if data.startswith(_PNG):
        return _png(bytearray(data))
    if data.startswith(b"OggS"):
        return _ogg(bytearray(data))
    return data


def _png(data: bytearray) -> bytes:
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def _ogg(data: bytearray) -> bytes:
    at = 0
    while data[at : at + 4] == b"OggS" and at + _PAGE <= len(data):
        table = data[at + _PAGE : at + _PAGE + data[at + _PAGE - 1]]
        end = at + _PAGE + len(table) + sum(table)
        if end > len(data):
            break
        struct.pack_into("<I", data, at + 22, _ogg_checksum(bytes(data[at:end])))
        at = end
    return bytes(data)
