"""Links: URLs of finished artifacts, which every gateway can make, open and serve.

A URL is a permission for one file and for a short time: its path names the digest, and a seal that belongs to this
digest says where the bytes lie, whose they are, of which type, and until when. Whoever has it can read that file and
nothing else; it cannot be made or stretched without the deployment's secret; no prompt and no name is in it.

Expiries lie on a grid of half a lifetime, so that equal requests get equal URLs for a while and a CDN keeps the file
once. A URL is good for between half a lifetime and a whole one, and never longer than the artifact may be served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cache.clock import steady
from cache.digest import Digest
from cache.record import Record
from gateway.errors import NotFound, PermissionDenied
from gateway.seals import seal, unseal

PATH = "/artifacts/"


class Url(NamedTuple):
    text: str
    expires_at: int  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Link:
    """What a URL allows."""

    namespace: str  # where the blob lies
    tenant: str  # namespace of the tenant it was made for
    digest: Digest
    media_type: str
    expires_at: int  # seconds since the epoch


class Links:
    """Makes URLs below `public_url` and opens those that any gateway of this deployment made. `lifetime` in seconds."""

    def __init__(self, secret: bytes, public_url: str, *, lifetime: float, clock: Callable[[], float] = steady) -> None:
        self._secret = secret
        self._public_url = public_url.rstrip("/")
        self._step = lifetime / 2
        self._clock = clock

    def url_of(self, record: Record, tenant: str) -> Url | None:
        """A URL of what this record describes; None where it does not lie under its digest, or is about to expire."""
        if record.output.inline is not None:
            return None
        now = self._clock()
        link = Link(
            record.address.namespace,
            tenant,
            record.output.digest,
            record.output.media_type,
            int(min((now // self._step + 2) * self._step, record.expires_at)),
        )
        if link.expires_at <= now:
            return None
        return Url(f"{self._public_url}{PATH}{link.digest.hex}/{self._sealed(link)}", link.expires_at)

    def open(self, path: str) -> Link:
        """What the URL of this path allows. Raises PermissionDenied if none of us made it, NotFound if it expired."""
        link = self._unsealed(path)
        if self.seconds_left(link) <= 0:
            raise NotFound("URL_EXPIRED")
        return link

    def seconds_left(self, link: Link) -> float:
        return link.expires_at - self._clock()

    def _sealed(self, link: Link) -> str:
        where, whose = bytes.fromhex(link.namespace), bytes.fromhex(link.tenant)
        return seal(
            self._secret,
            _domain(link.digest.hex),
            [where, whose, link.digest.size, link.media_type, link.expires_at],
        )

    def _unsealed(self, path: str) -> Link:
        hex_digits, _, sealed = path.removeprefix(PATH).partition("/")
        try:
            match unseal(self._secret, _domain(hex_digits), sealed):
                case [bytes() as where, bytes() as whose, int() as size, str() as media_type, int() as expires_at]:
                    return Link(where.hex(), whose.hex(), Digest(hex_digits, size), media_type, expires_at)
        except ValueError:
            pass
        raise PermissionDenied("this URL was altered, or is none of ours", reason="URL_ALTERED")


def _domain(hex_digits: str) -> str:
    return f"artifact:{hex_digits}"
