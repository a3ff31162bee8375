"""Uploads: files that were sent once and are named by their digest from then on, each its uploader's alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from cache import tags
from cache.clock import steady
from cache.description import HOUR
from cache.digest import Digest
from cache.encoding import hash_of
from cache.hierarchy import Hierarchy
from cache.keys import Address
from cache.record import Output, Record
from cache.settings import MIB
from gateway.allowance import Allowance
from gateway.blueprint import LARGEST_FILE
from gateway.errors import NotFound, Unavailable

STAGE = "upload"
TTL, MAX_AGE = 2 * HOUR, 24 * HOUR  # seconds without use; seconds at all
_MOST_REMEMBERED = 16_384
_MEDIA_TYPE = "application/octet-stream"  # whatever it claims to be; who uses it decodes it


class Uploads:
    """A file is a blob with a record, like everything that has an age and can be invalidated.

    `namespace` is the one of its user, `tenant` that of the user's tenant. `most` is how many bytes a tenant may send
    in the time that a file is kept without use.
    """

    def __init__(self, hierarchy: Hierarchy, *, most: int = 4096 * MIB, clock: Callable[[], float] = steady) -> None:
        self._hierarchy = hierarchy
        self._clock = clock
        self._allowance = Allowance(most, TTL, clock=clock)
        self._noted: OrderedDict[Address, float] = OrderedDict()  # when this process last noted a use

    def admit(self, tenant: str, size: int) -> None:
        """Ask before anything is done with a file of so many bytes. Raises Overloaded."""
        if size <= LARGEST_FILE:  # else it will be refused for that
            self._allowance.take(tenant, size)

    async def keep(self, namespace: str, tenant: str, file: Digest, identity: str, content: bytes) -> None:
        """Store a file that shows or plays the media of this identity. Raises Unavailable unless it is durable."""
        now = self._clock()
        record = Record(
            address=upload_address(namespace, file),
            model="",
            revision="",
            stage=STAGE,
            fingerprint="",
            output=Output(file, _MEDIA_TYPE),
            device_seconds=0.0,
            total_device_seconds=0.0,
            made_at=now,
            touched_at=now,
            ttl=TTL,
            expires_at=now + MAX_AGE,
            tags=(tags.of_media(identity), tags.of_user(namespace), tags.of_tenant(tenant)),
        )
        # Replaces, so that a file that is sent again is young again.
        if not await (await self._hierarchy.commit(record, content, replace=True)):
            raise Unavailable("STORE_UNREACHABLE")

    async def fetch(self, namespace: str, file: Digest) -> bytes:
        """The file, which is young again. Raises NotFound."""
        address = upload_address(namespace, file)
        found = await self._hierarchy.fetch(address, TTL)
        if found.data is None:
            raise NotFound("DIGEST_UNKNOWN")
        self._note(address)
        return found.data

    async def used(self, namespace: str, file: Digest) -> None:
        """Note the use of a file that did not have to be fetched, because what it shows is remembered."""
        address = upload_address(namespace, file)
        if self._clock() - self._noted.get(address, 0.0) <= TTL / 2:
            return  # not even looked up: this is on the way of every hit
        found = await self._hierarchy.find_many([(address, TTL)])
        if address in found:
            record, _ = found[address]
            self._hierarchy.touch(record)
            self._note(address)

    def _note(self, address: Address) -> None:
        self._noted[address] = self._clock()
        self._noted.move_to_end(address)
        while len(self._noted) > _MOST_REMEMBERED:
            self._noted.popitem(last=False)


def upload_address(namespace: str, file: Digest) -> Address:
    return Address(namespace, hash_of("upload", {"hex": file.hex, "size": file.size}))
