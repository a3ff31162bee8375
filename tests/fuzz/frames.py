"""Malformed HTTP/2, gRPC and grpc-web: what a caller could write to a port that no client of ours would.

Written after RFC 9113, RFC 7541 and the gRPC protocol, only as far as it takes to break each of their rules.
"""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SERVICE = "/reprise.v1.MediaService"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS = 4
MIB = 1024 * 1024


class Attack(NamedTuple):
    """What one connection writes, piece by piece."""

    name: str
    pieces: Sequence[bytes]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame; with another `length`, one that lies."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def headers(method: str = "Cancel", **changes: str) -> bytes:
    """The block of headers that begins a call, each written in full; `changes` have _ for -, and `path` is one."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"{_SERVICE}/{method}",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    } | {":path" if name == "path" else name.replace("_", "-"): value for name, value in changes.items()}
    return b"".join(header(name.encode(), value.encode()) for name, value in pairs.items())


def header(name: bytes, value: bytes) -> bytes:
    return b"\0" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


def _integer(number: int, bits: int) -> bytes:
    most = (1 << bits) - 1
    if number < most:
        return bytes([number])
    out, number = bytearray([most]), number - most
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(content: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A message as gRPC frames it; with another `length`, one that lies."""
    return struct.pack(">BI", flag, len(content) if length is None else length) + content


def call(
    stream: int, body: bytes, method: str = "Cancel", *, end: bool = True, piece: int = 16_384, **changes: str
) -> bytes:
    """A whole call with this body."""
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)] or [b""]
    data = [frame(DATA, 0, stream, each) for each in pieces[:-1]]
    last = frame(DATA, END_STREAM if end else 0, stream, pieces[-1])
    return frame(HEADERS, END_HEADERS, stream, headers(method, **changes)) + b"".join(data) + last


BEGIN = PREFACE + frame(SETTINGS)


def attacks() -> Iterator[Attack]:
    """One of each kind. What floods is bounded, so that a whole run takes seconds."""
    yield from _of_connections()
    yield from _of_headers()
    yield from _of_messages()
    yield from _floods()


def _of_connections() -> Iterator[Attack]:
    yield Attack("nothing", [])
    yield Attack("HTTP/1.1", [b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"])
    yield Attack("TLS", [b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(160)])
    yield Attack("half a preface", [PREFACE[:10]])
    yield Attack("another preface", [PREFACE[:-4] + b"XX\r\n" + frame(SETTINGS)])
    yield Attack("no settings", [PREFACE, frame(PING, 0, 0, bytes(8))])
    for name, each in {
        "settings of five bytes": frame(SETTINGS, 0, 0, bytes(5)),
        "settings of a stream": frame(SETTINGS, 0, 1),
        "settings out of range": frame(SETTINGS, 0, 0, struct.pack(">HIHIHI", 4, 2**32 - 1, 5, 1, 2, 7)),
        "an answer to settings, with content": frame(SETTINGS, ACK, 0, bytes(6)),
        "a ping of seven bytes": frame(PING, 0, 0, bytes(7)),
        "a window of no bytes more": frame(WINDOW, 0, 0, bytes(4)),
        "a window that overflows": frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
        "a reset of three bytes": frame(RESET, 0, 1, bytes(3)),
        "a reset of no stream": frame(RESET, 0, 0, bytes(4)),
        "a priority on itself": frame(PRIORITY, 0, 3, struct.pack(">IB", 3, 1)),
        "a promise of a client": frame(PUSH, END_HEADERS, 1, bytes(4) + headers()),
        "a frame of a kind that is not": frame(250, 255, 7, bytes(100)),
        "16 MiB announced": frame(DATA, 0, 1, length=2**24 - 1),
        "data of a stream that is not": frame(DATA, 0, 99, b"abc"),
        "more padding than there is": frame(DATA, 8, 1, b"\xff"),
        "goodbye, and on": frame(GOAWAY, 0, 0, bytes(8)) + call(1, message(b"")),
        "goodbye cut off": frame(GOAWAY, 0, 0, bytes(3)),
    }.items():
        yield Attack(name, [BEGIN, each])


def _of_headers() -> Iterator[Attack]:
    for name, block in {
        "an index of no header": b"\xff\xff\xff\xff\x0f",
        "an endless number": b"\x7f" + b"\xff" * 100,
        "a longer name than there is": b"\0\x7f\xff\xff\x7f",
        "Huffman's code cut off": b"\0\x81\xff\x81\xff",
        "no path": header(b":method", b"POST"),
        "a path twice": headers() + header(b":path", b"/"),
        "letters that no header has": headers() + header(b"X\0Y", b"\xff\n\r"),
        "a deadline of no time": headers(grpc_timeout="99999999999H"),
        "half a number as binary": headers(**{"x_bin": "%%%"}),
        "a table of 4 GiB": b"\x3f\xe1\xff\xff\xff\x0f" + headers(),
    }.items():
        yield Attack(name, [BEGIN, frame(HEADERS, END_HEADERS | END_STREAM, 1, block)])
    yield Attack("headers of no stream", [BEGIN, frame(HEADERS, END_HEADERS, 0, headers())])
    yield Attack("headers of a server's stream", [BEGIN, frame(HEADERS, END_HEADERS, 2, headers())])
    yield Attack(
        "headers, and something between", [BEGIN, frame(HEADERS, 0, 1, headers()), frame(PING, 0, 0, bytes(8))]
    )
    large = header(b"x-large", b"a" * 16_000)
    pieces = [frame(CONTINUATION, 0, 1, large) for _ in range(64)]
    yield Attack("a mebibyte of headers", [BEGIN, frame(HEADERS, 0, 1, headers()), *pieces])
    # Each name once in full, then again and again in one byte.
    small = headers() + b"\x40" + _integer(3, 7) + b"x-a" + _integer(3000, 7) + b"a" * 3000 + b"\xbe" * 12_000
    yield Attack("36 MB of headers in 15 kB", [BEGIN, frame(HEADERS, END_HEADERS | END_STREAM, 1, small)])


def _of_messages() -> Iterator[Attack]:
    bomb = gzip.compress(bytes(256 * MIB), 9)
    for name, whole in {
        "no message": call(1, b""),
        "half a prefix": call(1, b"\0\0\0"),
        "a message cut off": call(1, message(b"abc", length=100)),
        "4 GiB announced": call(1, message(b"abc", length=2**32 - 1)),
        "4 GiB announced, and silence": call(1, message(b"abc", length=2**32 - 1), end=False),
        "63 MiB announced, and silence": call(1, message(b"abc", length=63 * MIB), "AnimateImage", end=False),
        "two messages": call(1, message(b"") * 2),
        "packed, they say": call(1, message(b"abc", flag=1)),
        "packed, in no way that is known": call(1, message(b"abc", flag=1), grpc_encoding="none-such"),
        "packed, and damaged": call(1, message(b"\x1f\x8b" + bytes(20), flag=1), grpc_encoding="gzip"),
        "a flag that is none": call(1, message(b"abc", flag=7)),
        "256 MiB packed into 256 kB": call(1, message(bomb, flag=1), "Upload", grpc_encoding="gzip"),
        "bytes that are no message": call(1, message(b"\xff" * 50)),
        "nested without end": call(1, message(b"\x0b" * 10_000), "AnimateImage"),
        "another kind of content": call(1, message(b""), content_type="application/json"),
        "no such method": call(1, message(b""), "Nothing"),
        "no such service": call(1, message(b""), path="/a.B/C"),
        "no path at all": call(1, message(b""), path=""),
    }.items():
        yield Attack(name, [BEGIN, whole])


def _floods() -> Iterator[Attack]:
    yield Attack("settings", [BEGIN, *[frame(SETTINGS) * 1000] * 10])
    yield Attack("pings", [BEGIN, *[frame(PING, 0, 0, bytes(8)) * 1000] * 10])
    yield Attack("windows", [BEGIN, *[frame(WINDOW, 0, 0, b"\0\0\0\1") * 1000] * 10])
    yield Attack("empty data", [BEGIN, frame(HEADERS, END_HEADERS, 1, headers()), *[frame(DATA, 0, 1) * 1000] * 10])
    pieces = [frame(CONTINUATION, 0, 1) * 1000] * 10
    yield Attack("continuations of nothing", [BEGIN, frame(HEADERS, 0, 1, headers()), *pieces])
    resets = [
        b"".join(
            frame(HEADERS, END_HEADERS, stream, headers("AnimateImage")) + frame(RESET, 0, stream, struct.pack(">I", 8))
            for stream in range(first, first + 200, 2)
        )
        for first in range(1, 10_000, 200)
    ]
    yield Attack("5,000 streams that are reset at once", [BEGIN, *resets])
    opened = b"".join(frame(HEADERS, END_HEADERS, stream, headers("AnimateImage")) for stream in range(1, 4_000, 2))
    yield Attack("2,000 streams that say nothing", [BEGIN, opened])


def random_attacks(seed: int, count: int) -> Iterator[Attack]:
    """Right frames and wrong ones in any order, some of their bytes changed."""
    draw = random.Random(seed)
    for number in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            block = draw.choice((b"", bytes(8), headers(), headers("AnimateImage"), message(draw.randbytes(20))))
            block = block[: draw.randint(0, len(block))] if draw.random() < 0.3 else block
            kind, flags, stream = draw.randint(0, 10), draw.choice((0, 1, 4, 5, 8, 255)), draw.choice((0, 1, 1, 2, 3))
            parts.append(frame(kind, flags, stream, block, length=draw.choice((None, None, None, draw.randint(0, 99)))))
        written = bytearray(b"".join(parts))
        for _ in range(draw.randint(0, 3)):
            written[draw.randrange(len(written))] = draw.randint(0, 255)
        yield Attack(f"number {number} of seed {seed}", [draw.choice((BEGIN, BEGIN, BEGIN, PREFACE)), bytes(written)])


# grpc-web, over HTTP/1.1


def web_attacks() -> Iterator[Attack]:
    binary, text = "application/grpc-web+proto", "application/grpc-web-text"
    for name, kind, body in (
        ("no message", binary, b""),
        ("half a prefix", binary, b"\0\0"),
        ("4 GiB announced", binary, message(b"abc", length=2**32 - 1)),
        ("a message cut off", binary, message(b"abc", length=100)),
        ("trailers of a caller", binary, message(b"grpc-status: 0\r\n", flag=0x80)),
        ("packed, they say", binary, message(b"abc", flag=1)),
        ("bytes that are no message", binary, message(b"\xff" * 50)),
        ("no base64", text, b"%%%%"),
        ("base64 cut off", text, b"AAAAAAA"),
        ("bytes for base64", text, bytes(100)),
        ("JSON", "application/json", b"{}"),
        ("plain gRPC over HTTP/1.1", "application/grpc", message(b"")),
    ):
        for method in ("Cancel", "AnimateImage"):
            yield Attack(f"{name}, to {method}", [_post(kind, body, method)])
    whole = _post(binary, message(b""), "Cancel")
    yield Attack("a longer body than there is", [whole.replace(b"content-length: 5", b"content-length: 5000")])
    yield Attack("no length", [whole.replace(b"content-length: 5\r\n", b"")])
    yield Attack("two lengths", [whole.replace(b"content-length: 5", b"content-length: 5\r\ncontent-length: 6")])
    chunked = whole.replace(b"content-length: 5", b"transfer-encoding: chunked")
    yield Attack("chunks that are none", [chunked])
    yield Attack("a length and chunks", [chunked.replace(b"host:", b"content-length: 5\r\nhost:")])
    yield Attack("a mebibyte of headers", [whole.replace(b"host:", b"x-large: " + b"a" * MIB + b"\r\nhost:")])
    yield Attack("ten thousand headers", [whole.replace(b"host:", b"x-a: b\r\n" * 10_000 + b"host:")])
    yield Attack("a path upwards", [whole.replace(b"/reprise", b"/../../etc/passwd%00/reprise")])
    yield Attack(
        "identity of somebody else", [whole.replace(b"host:", b"x-reprise-tenant: a\r\nx-reprise-peer: b\r\nhost:")]
    )
    yield Attack("no HTTP", [bytes(range(256)) * 40])


def _post(kind: str, body: bytes, method: str) -> bytes:
    head = f"POST {_SERVICE}/{method} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\nx-grpc-web: 1\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
