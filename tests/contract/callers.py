"""What the processes of ``test_flights`` do: ask for one key, and say what happens to them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

from tests.servers import beside

from askonce import AsyncCache, Cache, Lease, Policy

from .processes import Stage

QUESTION = {"model": "m", "prompt": "Why?"}


class UpstreamError(Exception):
    """The model fails."""


class Upstream:
    """The model: counts its calls in Redis, beside the cache."""

    def __init__(self, stage: Stage, url: str, seconds: float, error: str = "", size: int = 0) -> None:
        self._stage, self._seconds, self._error, self._size = stage, seconds, error, size
        self._counter = beside(url)

    def _begin(self) -> int:
        number = int(self._counter.incr("calls"))
        self._stage.say("computing", number)
        return number

    def _end(self, number: int) -> str:
        self._stage.say("computed", number)
        if self._error:
            raise UpstreamError(self._error)
        return f"answer {number}" + (" " + os.urandom(self._size).hex() if self._size else "")

    def __call__(self) -> str:
        """Answer after a while."""
        number = self._begin()
        time.sleep(self._seconds)
        return self._end(number)

    async def awaited(self) -> str:
        """Answer after a while."""
        number = self._begin()
        await asyncio.sleep(self._seconds)
        return self._end(number)


def ask(
    stage: Stage,
    *,
    url: str,
    processes: int,
    callers: int,
    colour: str = "threads",
    renew: bool = True,
    upstream: dict[str, Any],
    policy: dict[str, Any] | None = None,
    **words: Any,
) -> None:
    """Let *callers* threads or tasks ask for one key, at the same moment in all *processes*."""
    model = Upstream(stage, url, **upstream)
    words |= {"namespace": "test", "policy": Policy(**policy or {}), "deadline": 2.0}
    if colour == "threads":
        _threads(stage, Cache(url, **words), processes, callers, renew, model)
    else:
        asyncio.run(_tasks(stage, AsyncCache(url, **words), processes, callers, renew, model))


def _threads(stage: Stage, cache: Cache, processes: int, callers: int, renew: bool, model: Upstream) -> None:
    cache.lookup("connect")
    if not renew:
        cache._namespace.renewals.add = lambda _: None  # type: ignore[method-assign]
    barrier = threading.Barrier(callers)

    def call() -> None:
        barrier.wait()
        try:
            served = cache.serve(QUESTION, model)
            stage.say("answered", (served.value[:12], served.source.value))
        except Exception as error:  # any: the test judges
            stage.say("error", (type(error).__name__, str(error)))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    stage.together(processes)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()


async def _tasks(
    stage: Stage, cache: AsyncCache, processes: int, callers: int, renew: bool, model: Upstream
) -> None:
    await cache.lookup("connect")
    if not renew:
        cache._namespace.renewals.add = lambda _: None  # type: ignore[method-assign]

    async def call() -> None:
        try:
            served = await cache.serve(QUESTION, model.awaited)
            stage.say("answered", (served.value[:12], served.source.value))
        except Exception as error:  # any: the test judges
            stage.say("error", (type(error).__name__, str(error)))

    stage.together(processes)
    await asyncio.gather(*(call() for _ in range(callers)))
    await cache.aclose()


def hold(stage: Stage, *, url: str, lease: float) -> None:
    """Begin, and never finish."""
    cache = Cache(url, namespace="test", policy=Policy(lease=lease))
    held = cache.begin(QUESTION)
    stage.say("begun", isinstance(held, Lease))
    time.sleep(600)
