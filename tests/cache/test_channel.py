"""The channel goes on listening, whatever happens to its connection or to those it tells."""

import asyncio

from anyio import wait_all_tasks_blocked

from cache.channel import RedisChannel


async def test_a_listener_that_raises_does_not_make_a_process_deaf(redis_url: str) -> None:
    """Somebody who is told something and fails hears the next message, over a connection that heals first."""
    listening, telling = (RedisChannel.connect(redis_url, "test", budget=1.0) for _ in range(2))
    heard: list[bytes] = []
    news = asyncio.Queue[str]()

    async def hear(message: bytes) -> None:
        heard.append(message)
        news.put_nowait("heard")
        if message == b"one":
            raise RuntimeError("a bug")

    async def heal() -> None:
        news.put_nowait("healed")

    task = asyncio.create_task(listening.listen(hear, heal))
    try:
        async with asyncio.timeout(10.0):
            for message in (b"one", b"two"):
                assert "healed" == await news.get()
                assert 1 == await telling.tell(message)
                assert "heard" == await news.get()
        await wait_all_tasks_blocked()
        assert listening.connected
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await listening.aclose()
        await telling.aclose()

    assert [b"one", b"two"] == heard
