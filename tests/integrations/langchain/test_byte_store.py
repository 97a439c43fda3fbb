"""LangChain's byte store: the suites of langchain-tests on every server, and what they do not ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests
from tests.conftest import every_server  # noqa: F401  a fixture

from askonce import BackendUnavailable, Cache
from askonce_langchain import AskonceByteStore

VALUES = (b"\x00\xff not text", b"", b"x" * 5000)


class TestSync(BaseStoreSyncTests[bytes]):
    """The synchronous contract."""

    @pytest.fixture
    def kv_store(self, url: str) -> AskonceByteStore:
        return AskonceByteStore(url, deadline=2.0)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


class TestAsync(BaseStoreAsyncTests[bytes]):
    """The asynchronous contract; every test has an event loop of its own."""

    @pytest.fixture
    async def kv_store(self, url: str) -> AskonceByteStore:
        return AskonceByteStore(url, deadline=2.0)

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return VALUES


class Calls:
    """A store's methods in one colour, so that a test is written once."""

    def __init__(self, colour: str, store: AskonceByteStore) -> None:
        self._colour, self.store = colour, store

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._do("mget", keys)

    def mset(self, pairs: Sequence[tuple[str, bytes]]) -> None:
        return self._do("mset", pairs)

    def mdelete(self, keys: Sequence[str]) -> None:
        return self._do("mdelete", keys)

    def keys(self, prefix: str | None = None) -> list[str]:
        if self._colour == "threads":
            return sorted(self.store.yield_keys(prefix=prefix))

        async def collect() -> list[str]:
            return sorted([key async for key in self.store.ayield_keys(prefix=prefix)])

        return asyncio.run(collect())

    def _do(self, name: str, argument: Any) -> Any:
        if self._colour == "threads":
            return getattr(self.store, name)(argument)
        return asyncio.run(getattr(self.store, f"a{name}")(argument))


@pytest.fixture(params=["threads", "asyncio"])
def calls(request: pytest.FixtureRequest) -> Callable[[AskonceByteStore], Calls]:
    return lambda store: Calls(request.param, store)


@pytest.fixture
def store(calls: Callable[[AskonceByteStore], Calls], url: str) -> Calls:
    return calls(AskonceByteStore(url, deadline=2.0))


def test_both_colours_share_what_is_stored(url: str) -> None:
    store = AskonceByteStore(url, deadline=2.0)
    store.mset([("a", b"1")])
    assert asyncio.run(store.amget(["a"])) == [b"1"]
    asyncio.run(store.amset([("a", b"2")]))
    assert store.mget(["a"]) == [b"2"]


def test_the_last_value_of_a_key_counts(store: Calls) -> None:
    store.mset([("a", b"1"), ("b", b"2"), ("a", b"3")])
    assert store.mget(["a", "b"]) == [b"3", b"2"]


def test_what_was_removed_can_be_stored_again(store: Calls) -> None:
    store.mset([("a", b"1")])
    store.mdelete(["a"])
    store.mset([("a", b"2")])
    assert store.mget(["a"]) == [b"2"]


def test_nothing_asked_is_nothing_done(store: Calls) -> None:
    store.mset([])
    store.mdelete([])
    assert store.mget([]) == []
    assert store.keys() == []


@pytest.mark.parametrize(
    "key", ["", "a:b", "käse", "a\nb", "a\x00b", "*", "[a]", "{x}", "k" * 4096], ids=ascii
)
def test_any_text_is_a_key(store: Calls, key: str) -> None:
    """And is listed as it was given; a prefix is no pattern."""
    store.mset([(key, b"1"), ("other", b"2")])
    assert store.mget([key]) == [b"1"]
    assert sorted([key, "other"]) == store.keys()
    assert key in store.keys(prefix=key[:5])
    assert store.keys(prefix="o*") == []
    store.mdelete([key])
    assert store.keys() == ["other"]


@pytest.mark.parametrize("key", ["k" * 5000, "\ud800"], ids=["long", "surrogate"])
def test_a_key_that_cannot_be_listed_is_a_key(store: Calls, key: str) -> None:
    store.mset([(key, b"1")])
    assert store.mget([key]) == [b"1"]
    assert store.keys() == []


def test_five_hundred_keys_in_few_round_trips(store: Calls, url: str) -> None:
    """Read, listed and removed all together; reading takes a command for every 128."""
    pairs = [(f"k{number:03}", b"%d" % number) for number in range(500)]
    store.mset(pairs)
    with redis.Redis.from_url(url) as client:
        before = client.info("commandstats")["cmdstat_mget"]["calls"]
        assert [value for _, value in pairs] == store.mget([key for key, _ in pairs])
        assert client.info("commandstats")["cmdstat_mget"]["calls"] - before <= 8
    assert [key for key, _ in pairs] == store.keys()
    store.mdelete([key for key, _ in pairs[1:]])
    assert store.keys() == ["k000"]


def test_what_is_no_bytes_is_refused(store: Calls) -> None:
    """Before anything is stored: what came back would be something else."""
    wrong: Any = "text"
    with pytest.raises(TypeError, match="the value of 'b' is str: give bytes"):
        store.mset([("a", b"1"), ("b", wrong)])
    assert store.mget(["a"]) == [None]


def test_what_is_no_text_is_no_key(store: Calls) -> None:
    wrong: Any = 7
    for call in (lambda: store.mget([wrong]), lambda: store.mset([(wrong, b"")])):
        with pytest.raises(TypeError, match="the key 7 is int: give text"):
            call()


def test_scopes_versions_and_namespaces_are_apart(
    calls: Callable[[AskonceByteStore], Calls], url: str
) -> None:
    """None serves, lists or removes what is another's."""
    cache = Cache(url, deadline=2.0)
    caches = [cache, cache.scope(tenant="a"), cache.scope(tenant="b"), Cache(url, version="2", deadline=2.0)]
    stores = [calls(AskonceByteStore(one)) for one in [*caches, Cache(url, namespace="other", deadline=2.0)]]
    for number, store in enumerate(stores):
        store.mset([("k", b"%d" % number), (f"own-{number}", b"")])
    for number, store in enumerate(stores):
        assert [b"%d" % number] == store.mget(["k"])
        assert ["k", f"own-{number}"] == store.keys()
    stores[0].mdelete(["k"])
    assert [store.mget(["k"]) for store in stores[1:]] == [[b"1"], [b"2"], [b"3"], [b"4"]]


def test_other_entries_of_the_namespace_are_not_listed(store: Calls) -> None:
    """Neither answers, nor what somebody labelled alike."""
    store.store.cache.store({"prompt": "k"}, "answer")
    store.store.cache.store("k", b"bytes", label="k")
    store.mset([("k2", b"1")])
    assert store.keys() == ["k2"]


def test_nothing_is_listed_that_is_gone(store: Calls) -> None:
    store.mset([("a", b"1")])
    store.store.cache.bump()
    assert store.mget(["a"]) == [None]
    assert store.keys() == []


def test_options_belong_to_the_cache(url: str) -> None:
    with pytest.raises(TypeError, match="namespace= given with a Cache"):
        AskonceByteStore(Cache(url), namespace="x")
    wrong: Any = 7
    with pytest.raises(TypeError, match="a int was given"):
        AskonceByteStore(wrong)


# --- an outage ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["refused", "frozen", "out of memory"])
def broken(request: pytest.FixtureRequest, own_server: Callable[..., Any]) -> Iterator[str]:
    """The URL of a server that is of no use."""
    if request.param == "refused":
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
            yield f"redis://127.0.0.1:{closed.getsockname()[1]}"
    elif request.param == "frozen":
        server = own_server()
        server.freeze()
        yield server.url
    else:
        yield own_server("--maxmemory", "1", "--maxmemory-policy", "noeviction").url


def test_an_outage_reads_as_nothing_stored(calls: Callable[[AskonceByteStore], Calls], broken: str) -> None:
    """No method raises."""
    store = calls(AskonceByteStore(broken))
    store.mset([("a", b"1")])
    assert store.mget(["a", "b"]) == [None, None]
    store.mdelete(["a"])
    assert store.keys() == []


def test_a_strict_store_tells(calls: Callable[[AskonceByteStore], Calls], broken: str) -> None:
    with pytest.raises(BackendUnavailable):
        calls(AskonceByteStore(broken, strict=True)).mset([("a", b"1")])


# --- CacheBackedEmbeddings ----------------------------------------------------------------------------------------


class Lengths(Embeddings):
    """Embeds a text as its length, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(texts)
        return [[len(text) + 0.1, 1.0] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.asked.append([text])
        return [len(text) + 0.1, 1.0]


def test_cache_backed_embeddings(url: str) -> None:
    """Texts are embedded once, in another object too; queries if they are told to be kept."""
    asked = []
    for _ in range(2):
        model = Lengths()
        embeddings = CacheBackedEmbeddings.from_bytes_store(
            model,
            AskonceByteStore(url, deadline=2.0),
            namespace="lengths",
            key_encoder="sha256",
            query_embedding_cache=True,
        )
        assert embeddings.embed_documents(["a", "bb"]) == [[1.1, 1.0], [2.1, 1.0]]
        assert asyncio.run(embeddings.aembed_documents(["bb", "ccc"])) == [[2.1, 1.0], [3.1, 1.0]]
        assert embeddings.embed_query("dddd") == [4.1, 1.0]
        asked += model.asked
    assert asked == [["a", "bb"], ["ccc"], ["dddd"]]


def test_cache_backed_embeddings_outlive_redis(broken: str) -> None:
    """They catch nothing themselves: every text is embedded, and no call fails."""
    model = Lengths()
    embeddings = CacheBackedEmbeddings.from_bytes_store(
        model, AskonceByteStore(broken), namespace="lengths", key_encoder="sha256"
    )
    assert embeddings.embed_documents(["a", "bb"]) == [[1.1, 1.0], [2.1, 1.0]]
    assert asyncio.run(embeddings.aembed_documents(["a"])) == [[1.1, 1.0]]
    assert model.asked == [["a", "bb"], ["a"]]
