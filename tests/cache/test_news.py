"""News: any number of waiters, none missed."""

import asyncio

from anyio import wait_all_tasks_blocked

from cache.news import News


async def test_everyone_who_waits_hears() -> None:
    """One announcement wakes every waiter."""
    news = News()
    waiters = [asyncio.create_task(news.wait()) for _ in range(100)]
    await wait_all_tasks_blocked()

    news.announce()

    await asyncio.gather(*waiters)


async def test_old_news_wake_nobody() -> None:
    """Who begins to wait after an announcement waits for the next one."""
    news = News()
    news.announce()
    waiter = asyncio.create_task(news.wait())
    await wait_all_tasks_blocked()

    assert not waiter.done()

    news.announce()
    await waiter
