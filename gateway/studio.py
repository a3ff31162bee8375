"""Studio: where the gateway meets recordings, decoding each but once while it is remembered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cache.description import Recording
from cache.digest import Digest
from gateway.blueprint import LARGEST_FILE
from gateway.reception import Fetch, Received, Reception, at_hand
from gateway.sounds import Facts, Sound, check, decode
from gateway.tracks import ANY, too_large
from reprise.v1.inference_pb2 import RunRequest


class Take(Received[Sound]):
    """A recording known by its identity, whose samples can be had when a worker needs them."""

    differs = "SOUND_DIFFERS"
    part_of = ""

    def __init__(
        self, file: Digest, facts: Facts, sound: Sound | None, decode_again: Callable[[], Awaitable[Sound]]
    ) -> None:
        super().__init__(file, facts.identity, sound, decode_again)
        self.facts = facts

    @property
    def weight(self) -> int:
        return self.facts.samples * 2

    def put_into(self, request: RunRequest, name: str) -> None:
        sound = request.sounds[name]
        sound.identity, sound.sample_rate, sound.samples = self.identity, self.facts.sample_rate, self.facts.samples

    async def let_go(self) -> bytes:
        pcm = (await self.content()).pcm
        self.release()
        return pcm


class Studio(Reception[Recording, Facts, Sound]):
    """Identifies uploaded recordings. `limits` are a model's, or those of what some model may take: they are looked at
    every time, because what is remembered of a file says nothing of who asked first.
    """

    def __init__(
        self,
        *,
        threads: int = 2,
        most_waiting: int = 64,
        most_remembered: int = 16_384,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            "studio", threads=threads, most_waiting=most_waiting, most_remembered=most_remembered, admit=admit
        )

    async def identify(self, namespace: str, raw: bytes, limits: Recording = ANY) -> Take:
        """The recording in this file. Raises TooLarge, InvalidField, Overloaded."""
        if len(raw) > LARGEST_FILE:
            raise too_large()
        return await self.recognise(namespace, await Digest.of_any_size(raw), at_hand(raw), limits)

    async def recognise(self, namespace: str, file: Digest, fetch: Fetch, limits: Recording = ANY) -> Take:
        """The recording in the file of this digest; `fetch` gets the file if it must be decoded.

        Raises what `identify` and `fetch` raise.
        """
        facts, sound, again = await self._receive((namespace, file), limits, fetch)
        check(facts, limits)
        return Take(file, facts, sound, again)

    def _decode(self, raw: bytes, how: Recording) -> Sound:
        return decode(raw, how)

    def _facts(self, content: Sound) -> Facts:
        return content.facts
