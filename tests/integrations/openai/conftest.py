"""A provider on this machine, and clients of the real SDKs with a cache on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import openai
import pytest
import redis
from tests.integrations.openai.kit import SDK_MAJOR
from tests.integrations.openai.provider import Provider
from tests.servers import one_server  # noqa: F401  a fixture

import askonce_openai
from askonce import Cache
from askonce_openai._detached import detached


@pytest.fixture(scope="session")
def running_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    """The provider, with nothing seen yet."""
    running_provider.reset()
    return running_provider


@pytest.fixture
def lib() -> ModuleType:
    """The HTTP library that this SDK is on; tests that concern both give it as a parameter."""
    return pytest.importorskip("httpx2" if SDK_MAJOR >= 3 else "httpx")


@pytest.fixture
def cache(url: str) -> Iterator[Cache]:
    """An empty cache.  A busy machine is no fault of Redis."""
    made = Cache(url, namespace="sdk", deadline=5.0)
    yield made
    made.close()


@pytest.fixture
def client(provider: Provider, cache: Cache, lib: ModuleType) -> Iterator[Callable[..., Any]]:
    """Make clients of the SDK with the cache: ``client(openai.AsyncOpenAI, max_retries=0, options={...})``."""
    made: list[Any] = []

    def make(cls: Any = openai.OpenAI, options: Any = None, cached: Any = None, **kwargs: Any) -> Any:
        kind = lib.AsyncClient if "Async" in cls.__name__ else lib.Client
        http = kind(timeout=kwargs.pop("timeout", 30))
        askonce_openai.wrap(http, cached or cache, **(options or {}))
        kwargs.setdefault("api_key", "k")
        if "Azure" not in cls.__name__:
            kwargs.setdefault("base_url", provider.url + "/v1")
        made.append(cls(http_client=http, **kwargs))
        return made[-1]

    yield make
    for one in made:
        if "Async" in type(one).__name__:
            continue  # its loop is closed by now
        one.close()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """What streams that were left have to conclude is concluded, and nothing stays patched."""
    yield
    assert detached.settle(10)
    askonce_openai.uninstall()


@pytest.fixture
def raw_values(url: str) -> Callable[[], bytes]:
    """Return what reads every key and value of the server, in one piece."""

    def read() -> bytes:
        server = redis.Redis.from_url(url)
        pieces: list[bytes] = []
        for key in server.scan_iter(count=1000):
            pieces.append(key)
            match server.type(key):
                case b"string":
                    pieces.append(server.get(key) or b"")
                case b"hash":
                    pieces += [part for pair in server.hgetall(key).items() for part in pair]
                case b"zset":
                    pieces += server.zrange(key, 0, -1)
                case b"list":
                    pieces += server.lrange(key, 0, -1)
                case kind:
                    raise AssertionError(f"{key!r} is a {kind!r}")
        return b"\n".join(pieces)

    return read
