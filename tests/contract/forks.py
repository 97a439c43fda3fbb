"""What a process of ``test_faults`` does: it forks, and parent and child ask at the same time."""

from __future__ import annotations

import asyncio as aio
import os
import threading
from collections.abc import Callable

from askonce import AsyncCache, Cache

from .processes import Stage

_CALLS = 400


def _both(ask: Callable[[str], None]) -> str:
    """Run *ask* in this process and in a forked child at once."""
    pid = os.fork()
    if not pid:
        try:
            ask("child")
        except BaseException as error:  # the exit status is all that the parent sees
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    ask("parent")
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the child was answered wrongly"
    return "both right"


def threads(_: Stage, *, url: str) -> str:
    """A sync cache whose connection, renewals and listener the parent has used already."""
    cache = Cache(url, namespace="test", deadline=2.0)
    other = Cache(url, namespace="test", deadline=2.0)
    cache.store("shared", "shared")
    lease = other.begin("led elsewhere")
    waiting = threading.Thread(target=cache.get_or_compute, args=("led elsewhere", lambda: "mine"))
    waiting.start()
    lease.finish("theirs")  # type: ignore[union-attr]
    waiting.join()

    def ask(who: str) -> None:
        for number in range(_CALLS):
            request = {"who": who, "n": number % 50}
            assert cache.get_or_compute(request, lambda request=request: request) == request  # type: ignore[misc]
            served = cache.lookup("shared")
            assert served is not None
            assert served.value == "shared"
        assert cache.stats().backend_errors == 0

    return _both(ask)


def asyncio(_: Stage, *, url: str) -> str:
    """An async cache that the parent has used in a loop that has ended, and one in its running loop."""
    cache = AsyncCache(url, namespace="test", deadline=2.0)

    async def warm() -> None:
        await cache.store("shared", "shared")

    aio.run(warm())

    async def several(who: str) -> None:
        async def one(number: int) -> None:
            request = {"who": who, "n": number % 50}
            assert await cache.get_or_compute(request, lambda: request) == request
            served = await cache.lookup("shared")
            assert served is not None
            assert served.value == "shared"

        for start in range(0, _CALLS, 40):
            await aio.gather(*(one(number) for number in range(start, start + 40)))
        assert (await cache.stats()).backend_errors == 0
        await cache.aclose()

    return _both(lambda who: aio.run(several(who)))


def flight(_: Stage, *, url: str) -> str:
    """Forked in mid-flight: the child does not wait for a leader thread that only the parent has."""
    cache = Cache(url, namespace="test", deadline=2.0)
    entered, released = threading.Event(), threading.Event()

    def slow() -> str:
        entered.set()
        assert released.wait(20)
        return "leader's"

    leading = threading.Thread(target=cache.get_or_compute, args=("q", slow))
    leading.start()
    assert entered.wait(10)

    def ask(who: str) -> None:
        if who == "parent":
            released.set()
        assert cache.get_or_compute("q", lambda: "never") == "leader's"

    outcome = _both(ask)
    leading.join()
    return outcome
