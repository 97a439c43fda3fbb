"""Fixtures for every test: real servers, empty databases, and both colours of a cache behind one driver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from askonce import AsyncCache, Cache
from tests.servers import Server, promised


@pytest.fixture(scope="session", params=sorted(promised()), name="server")
def every_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Each promised server in turn, shared by the tests of a session.  Do not freeze, kill or configure it."""
    with Server(promised()[request.param], name=request.param) as running:
        yield running


@pytest.fixture
def url(server: Server) -> str:
    """The URL of an empty database."""
    redis.Redis.from_url(server.url).flushall()
    return server.url


@pytest.fixture
def own_server(server: Server) -> Iterator[Callable[..., Server]]:
    """Start servers of the same kind that a test may freeze, kill or configure: ``own_server("--maxmemory", "3mb")``."""
    made: list[Server] = []

    def make(*options: str) -> Server:
        made.append(Server(promised()[server.name], *options, name=server.name))
        return made[-1]

    yield make
    for one in made:
        one.thaw()
        one.__exit__()


class Threads:
    """Drives a ``Cache``: ``driver.do("lookup", request)`` returns a future."""

    colour = "threads"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cache = Cache(*args, **kwargs)
        self._pool = ThreadPoolExecutor(64)

    def do(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method of the cache in a thread of its own."""
        return self._pool.submit(getattr(self.cache, name), *args, **kwargs)

    def function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return *fn* in this driver's colour."""
        return fn

    def stop(self) -> None:
        """Close the cache."""
        self._pool.shutdown()
        self.cache.close()


class Asyncio:
    """Drives an ``AsyncCache`` on a loop of its own; see ``Threads``."""

    colour = "asyncio"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cache = AsyncCache(*args, **kwargs)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def do(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method of the cache in a task of its own."""

        async def call() -> Any:
            return await getattr(self.cache, name)(*args, **kwargs)

        return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def function(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return *fn* in this driver's colour."""

        async def afn(*args: Any) -> Any:
            return await asyncio.to_thread(fn, *args)

        return afn

    def stop(self) -> None:
        """Close the cache and its loop."""
        asyncio.run_coroutine_threadsafe(self.cache.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Driver:
    """One body for both colours: calls block, functions are plain."""

    def __init__(self, inner: Threads | Asyncio) -> None:
        self.inner = inner
        self.colour = inner.colour
        self.cache = inner.cache

    def start(self, name: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a method of the cache and return a future of what it returns; callables are given its colour."""
        turned = [self.inner.function(arg) if callable(arg) else arg for arg in args]
        return self.inner.do(name, *turned, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self.start(name, *args, **kwargs).result(20)


@pytest.fixture(params=[Threads, Asyncio], ids=["threads", "asyncio"])
def make_driver(request: pytest.FixtureRequest, url: str) -> Iterator[Callable[..., Driver]]:
    """Make drivers of one colour: ``make_driver(policy=...)``, on an empty database unless given another URL."""
    made: list[Driver] = []

    def make(at: str | None = None, **kwargs: Any) -> Driver:
        kwargs.setdefault("deadline", 2.0)  # a busy machine is no fault of Redis
        made.append(Driver(request.param(at or url, namespace=kwargs.pop("namespace", "test"), **kwargs)))
        return made[-1]

    yield make
    for driver in made:
        driver.inner.stop()


@pytest.fixture
def driver(make_driver: Callable[..., Driver]) -> Driver:
    """One driver with the default policy."""
    return make_driver()
