"""Embeddings with the cache: which texts reach the model, and what the callers get."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import pickle
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
from langchain_core.embeddings import Embeddings
from langchain_openai import OpenAIEmbeddings
from pydantic import BaseModel, PrivateAttr

from askonce import BackendUnavailable, Cache, ConfigurationError, NotCached, control
from askonce_langchain import AskonceEmbeddings

Vectors = list[list[float]]


class Model(BaseModel, Embeddings):
    """Embeds a text as numbers drawn from it, and keeps what it was asked; ``answer`` may be replaced."""

    name: str = "m"
    size: int = 8
    _asked: list[Any] = PrivateAttr(default_factory=list)
    _answer: Any = PrivateAttr(None)

    def vector(self, text: str, use: str = "document") -> list[float]:
        seed = hashlib.sha256(f"{self.name} {use} {text}".encode()).digest()
        dice = random.Random(seed)
        return [dice.gauss(0, 1) for _ in range(self.size)]

    def embed_documents(self, texts: list[str]) -> Vectors:
        self._asked.append(texts)
        if self._answer is not None:
            answer: Vectors = self._answer(texts)
            return answer
        return [self.vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self._asked.append(text)
        return self.vector(text, "query")


class Calls:
    """The methods in one colour, so that a test is written once."""

    def __init__(self, colour: str, embeddings: Embeddings) -> None:
        self._colour, self._embeddings = colour, embeddings

    def documents(self, *texts: str) -> Vectors:
        if self._colour == "threads":
            return self._embeddings.embed_documents(list(texts))
        return asyncio.run(self._embeddings.aembed_documents(list(texts)))

    def query(self, text: str) -> list[float]:
        if self._colour == "threads":
            return self._embeddings.embed_query(text)
        return asyncio.run(self._embeddings.aembed_query(text))


Colour = Callable[[Embeddings], Calls]


@pytest.fixture(params=["threads", "asyncio"])
def colour(request: pytest.FixtureRequest) -> Colour:
    return lambda embeddings: Calls(request.param, embeddings)


@pytest.fixture
def cache(url: str) -> Iterator[Cache]:
    with Cache(url, deadline=2.0) as cache:
        yield cache


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def calls(colour: Colour, model: Model, cache: Cache) -> Calls:
    return colour(AskonceEmbeddings(model, cache))


class TestHits:
    def test_each_text_is_embedded_once(self, calls: Calls, model: Model) -> None:
        """Only what is missing is asked, all at once and in order; every vector is in its place."""
        assert calls.documents("a", "b") == [model.vector("a"), model.vector("b")]
        found = calls.documents("c", "b", "d", "a")
        assert found == [model.vector(text) for text in "cbda"]
        assert model._asked == [["a", "b"], ["c", "d"]]

    def test_a_hit_equals_the_miss_to_the_last_bit(self, calls: Calls, model: Model) -> None:
        (first,), (again,) = calls.documents("a"), calls.documents("a")
        assert [number.hex() for number in first] == [number.hex() for number in again]
        assert model._asked == [["a"]]

    def test_both_colours_share(self, cache: Cache, model: Model) -> None:
        embeddings = AskonceEmbeddings(model, cache)
        first = embeddings.embed_documents(["a"]), embeddings.embed_query("a")
        again = asyncio.run(embeddings.aembed_documents(["a"])), asyncio.run(embeddings.aembed_query("a"))
        assert first == again
        assert model._asked == [["a"], "a"]

    def test_a_text_given_twice_is_embedded_once(self, calls: Calls, model: Model) -> None:
        """Each of its vectors is its caller's own: changing one leaves the other."""
        for _ in range(2):
            one, other, again = calls.documents("a", "b", "a")
            assert one == again == model.vector("a")
            assert other == model.vector("b")
            one.clear()
            assert again == model.vector("a")
        assert model._asked == [["a", "b"]]

    def test_queries_are_embedded_once_and_apart(self, calls: Calls, model: Model) -> None:
        """Many models embed a query differently from a document of the same text."""
        calls.documents("a")
        assert calls.query("a") == calls.query("a") == model.vector("a", "query")
        assert calls.documents("a") == [model.vector("a")]
        assert model._asked == [["a"], "a"]

    def test_nothing_is_asked_of_nothing(self, calls: Calls, model: Model) -> None:
        assert calls.documents() == []
        assert model._asked == []

    def test_a_batch_is_one_round_trip(self, calls: Calls, cache: Cache) -> None:
        """A hundred texts are read by one command."""
        texts = [str(number) for number in range(100)]
        calls.documents(*texts)
        with redis.Redis.from_url(_url(cache)) as client:
            before = _commands(client)
            calls.documents(*texts)
            assert _commands(client)["cmdstat_mget"] - before["cmdstat_mget"] == 1

    def test_any_text(self, calls: Calls, model: Model) -> None:
        """Empty, long, or not even valid Unicode."""
        texts = ["", "x" * 100_000, "käse", "\ud800"]
        model._answer = lambda texts: [[float(len(text))] for text in texts]
        assert calls.documents(*texts) == calls.documents(*texts)
        assert model._asked == [texts]


def _url(cache: Cache) -> str:
    settings = cache._namespace.settings
    assert settings.url is not None
    return settings.url


def _commands(client: redis.Redis) -> dict[str, int]:
    return {name: stats["calls"] for name, stats in client.info("commandstats").items()}


class TestModels:
    @pytest.mark.parametrize(
        "other",
        [Model(name="n"), Model(size=9), type("Other", (Model,), {})()],
        ids=["name", "size", "class"],
    )
    def test_another_model_is_asked_anew(self, colour: Colour, cache: Cache, other: Model) -> None:
        """By a field or by its class."""
        first = Model()
        assert colour(AskonceEmbeddings(first, cache)).documents("a") == [first.vector("a")]
        assert colour(AskonceEmbeddings(other, cache)).documents("a") == [other.vector("a")]

    def test_a_changed_field_is_another_model(self, calls: Calls, model: Model) -> None:
        calls.documents("a")
        calls.query("a")
        model.name = "n"
        assert calls.documents("a") == [model.vector("a")]
        assert calls.query("a") == model.vector("a", "query")

    def test_a_name_stands_for_the_model(self, colour: Colour, cache: Cache) -> None:
        """Whatever its fields are; another name is another model."""
        one, same, other = Model(name="1"), Model(name="2"), Model(name="3")
        vector = colour(AskonceEmbeddings(one, cache, model="x")).documents("a")
        assert colour(AskonceEmbeddings(same, cache, model="x")).documents("a") == vector
        assert colour(AskonceEmbeddings(other, cache, model="y")).documents("a") == [other.vector("a")]
        assert same._asked == []

    def test_a_model_that_cannot_be_told_apart_needs_a_name(self, cache: Cache) -> None:
        """Said when it is given, with the field and what to do."""

        class Own(Model):
            client: Any = None  # of an integration: known to shape nothing
            tokenizer: Any = None

        own = Own(client=object(), tokenizer=object())
        with pytest.raises(ConfigurationError, match=r"Own\['tokenizer'\]: object .* name the model: model="):
            AskonceEmbeddings(own, cache)
        assert AskonceEmbeddings(own, cache, model="own").embed_query("a") == own.vector("a", "query")

    def test_a_model_that_becomes_so_goes_uncached(self, calls: Calls, model: Model, cache: Cache) -> None:
        """No call fails by it; it is counted."""
        model.name = object()  # type: ignore[assignment]
        for _ in range(2):
            assert calls.documents("a") == [model.vector("a")]
            assert calls.query("a") == model.vector("a", "query")
        assert len(model._asked) == 4
        assert cache.stats().bypass_reasons["uncacheable"] == 4

    def test_what_is_no_text_goes_uncached(self, calls: Calls, model: Model, cache: Cache) -> None:
        """Some models take tokens."""
        tokens: Any = [1, 2, 3]
        for _ in range(2):
            assert calls.documents(tokens) == [model.vector(tokens)]
        assert model._asked == [[tokens], [tokens]]
        assert cache.stats().bypass_reasons["uncacheable"] == 2

    @pytest.mark.parametrize("wrong", ["", 7])
    def test_a_wrong_name_is_told(self, cache: Cache, wrong: Any) -> None:
        with pytest.raises(ConfigurationError, match="model="):
            AskonceEmbeddings(Model(), cache, model=wrong)

    def test_what_is_no_model_is_told(self, cache: Cache) -> None:
        wrong: Any = "text-embedding-3-small"
        with pytest.raises(TypeError, match="a str was given: give LangChain Embeddings"):
            AskonceEmbeddings(wrong, cache)


class TestVectors:
    @pytest.mark.parametrize(
        "bad",
        [[math.nan], [math.inf, 1.0], [], None, ["x"], b"\x01"],
        ids=["nan", "inf", "empty", "none", "text", "bytes"],
    )
    def test_what_is_no_vector_is_given_once_and_not_stored(
        self, calls: Calls, model: Model, cache: Cache, bad: Any
    ) -> None:
        """Its caller gets what the model said; the next one asks the model."""
        model._answer = lambda texts: [bad for _ in texts]
        for _ in range(2):
            (given,) = calls.documents("a")
            assert given is bad
        assert model._asked == [["a"], ["a"]]
        assert cache.stats().rejection_reasons == {"vector": 2}

    def test_of_a_batch_with_a_bad_vector_the_others_are_stored(self, calls: Calls, model: Model) -> None:
        model._answer = lambda texts: [[math.nan if text == "b" else 1.0] for text in texts]
        for _ in range(2):
            assert str(calls.documents("a", "b", "c")) == "[[1.0], [nan], [1.0]]"
        assert model._asked == [["a", "b", "c"], ["b"]]

    def test_vectors_of_different_lengths_are_not_stored(
        self, calls: Calls, model: Model, cache: Cache
    ) -> None:
        model._answer = lambda texts: [[1.0] * (1 + number) for number, _ in enumerate(texts)]
        for _ in range(2):
            assert calls.documents("a", "b") == [[1.0], [1.0, 1.0]]
        assert model._asked == [["a", "b"]] * 2
        assert cache.usage().entries == 0

    def test_vectors_of_an_older_length_give_way(self, calls: Calls, model: Model) -> None:
        """A provider that changed the model behind its name: a batch is of one length, as without a cache."""
        model._answer = lambda texts: [[1.0, 1.0] for _ in texts]
        calls.documents("a", "b")
        model._answer = lambda texts: [[2.0, 2.0, 2.0] for _ in texts]
        for _ in range(2):
            assert calls.documents("a", "c") == [[2.0, 2.0, 2.0]] * 2
        assert model._asked == [["a", "b"], ["c"], ["a", "c"]]

    def test_another_number_of_vectors_passes_as_it_is(
        self, calls: Calls, model: Model, cache: Cache
    ) -> None:
        """None of them can be assigned to its text: the caller gets what the model gives, nothing is stored."""
        model._answer = lambda texts: [[1.0]]
        for _ in range(2):
            assert calls.documents("a", "b") == [[1.0]]
        assert model._asked == [["a", "b"]] * 2
        assert cache.usage().entries == 0
        assert cache.stats().bypass_reasons["miscounted"] == 2

    def test_a_part_of_a_batch_with_another_number_of_vectors_is_asked_as_a_whole(
        self, calls: Calls, model: Model
    ) -> None:
        model._answer = lambda texts: [[1.0] for text in texts if text]
        calls.documents("a")
        assert calls.documents("a", "", "b") == [[1.0], [1.0]]
        assert model._asked == [["a"], ["", "b"], ["a", "", "b"]]

    def test_an_error_of_the_model_passes_as_it_is(self, calls: Calls, model: Model) -> None:
        """And is not kept."""
        error = RuntimeError("the provider's own")

        def fail(texts: list[str]) -> Vectors:
            raise error

        model._answer = fail
        with pytest.raises(RuntimeError) as raised:
            calls.documents("a")
        assert raised.value is error
        model._answer = None
        assert calls.documents("a") == [model.vector("a")]

    @pytest.mark.parametrize("junk", [b"", b"junk", b"f123", b"x" + b"\x00" * 8])
    def test_junk_is_a_miss(self, calls: Calls, model: Model, cache: Cache, junk: bytes) -> None:
        """A poisoned entry is embedded anew and replaced."""
        calls.documents("a")
        with redis.Redis.from_url(_url(cache)) as client:
            (key,) = [key for key in client.scan_iter() if b"}:e:" in key]
            whole = client.get(key)
            assert isinstance(whole, bytes)
            client.set(key, whole[: whole.index(b"\x06vector") + 7] + junk, keepttl=True)
        assert calls.documents("a") == calls.documents("a") == [model.vector("a")]
        assert model._asked == [["a"], ["a"]]


class TestTogether:
    async def test_equal_batches_at_once_are_one_call(self, cache: Cache, model: Model) -> None:
        embeddings = AskonceEmbeddings(model, cache)
        batches = await asyncio.gather(*[embeddings.aembed_documents(["a", "b"]) for _ in range(20)])
        assert batches == [[model.vector("a"), model.vector("b")]] * 20
        assert model._asked == [["a", "b"]]

    def test_who_asks_for_a_text_that_is_being_embedded_waits_for_it(
        self, cache: Cache, model: Model
    ) -> None:
        """Of an overlapping batch only the rest is embedded."""
        begun, rest, go = threading.Event(), threading.Event(), threading.Event()

        def slowly(texts: list[str]) -> Vectors:
            (begun if "a" in texts else rest).set()
            assert go.wait(20)
            return [model.vector(text) for text in texts]

        model._answer = slowly
        embeddings = AskonceEmbeddings(model, cache)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(embeddings.embed_documents, ["a", "b"])
            assert begun.wait(20)
            second = pool.submit(embeddings.embed_documents, ["b", "c"])
            assert rest.wait(20)
            go.set()
            assert first.result(20) == [model.vector("a"), model.vector("b")]
            assert second.result(20) == [model.vector("b"), model.vector("c")]
        assert model._asked == [["a", "b"], ["c"]]

    async def test_equal_queries_at_once_are_one_call(self, cache: Cache, model: Model) -> None:
        embeddings = AskonceEmbeddings(model, cache)
        vectors = await asyncio.gather(*[embeddings.aembed_query("a") for _ in range(20)])
        assert vectors == [model.vector("a", "query")] * 20
        assert model._asked == ["a"]


class TestControl:
    def test_only_if_cached(self, calls: Calls, model: Model) -> None:
        calls.documents("a")
        with control(only_if_cached=True):
            assert calls.documents("a") == [model.vector("a")]
            with pytest.raises(NotCached):
                calls.documents("a", "b")
            with pytest.raises(NotCached):
                calls.query("a")
        assert model._asked == [["a"]]

    def test_read_and_write(self, calls: Calls, model: Model) -> None:
        with control(write=False):
            calls.documents("a")
        calls.documents("a")
        with control(read=False):
            calls.documents("a")
        calls.documents("a")
        assert model._asked == [["a"]] * 3

    def test_scopes_are_apart(self, colour: Colour, cache: Cache, model: Model) -> None:
        for tenant in "ab":
            colour(AskonceEmbeddings(model, cache.scope(tenant=tenant))).documents("a")
        assert model._asked == [["a"]] * 2

    def test_a_tag_removes(self, calls: Calls, model: Model, cache: Cache) -> None:
        with control(tags=["corpus"]):
            calls.documents("a")
        cache.invalidate_tag("corpus")
        calls.documents("a")
        assert model._asked == [["a"]] * 2

    def test_options_are_those_of_the_cache(self, url: str, cache: Cache, model: Model) -> None:
        assert AskonceEmbeddings(model, url, namespace="x").cache.namespace == "x"
        assert AskonceEmbeddings(model, cache).cache is cache
        assert AskonceEmbeddings(model, cache).embeddings is model
        with pytest.raises(TypeError, match="namespace= given with a Cache"):
            AskonceEmbeddings(model, cache, namespace="x")

    def test_they_can_be_sent_to_another_process(self, url: str, model: Model) -> None:
        """As their configuration."""
        embeddings = AskonceEmbeddings(model, url, deadline=2.0)
        vector = embeddings.embed_query("a")
        copy = pickle.loads(pickle.dumps(embeddings))
        assert copy.embed_query("a") == vector
        assert copy.embeddings._asked == ["a"]  # what the first one was asked, and no more


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


def test_no_outage_reaches_the_caller(colour: Colour, model: Model, broken: str) -> None:
    """Every batch is embedded, and once."""
    calls = colour(AskonceEmbeddings(model, broken))
    assert calls.documents("a", "b") == [model.vector("a"), model.vector("b")]
    assert calls.query("a") == model.vector("a", "query")
    assert model._asked == [["a", "b"], "a"]


def test_strict_embeddings_tell(colour: Colour, model: Model, broken: str) -> None:
    with pytest.raises(BackendUnavailable):
        colour(AskonceEmbeddings(model, broken, strict=True)).documents("a")


# --- OpenAI's client ----------------------------------------------------------------------------------------------


def test_openai_embeddings(colour: Colour, cache: Cache) -> None:
    """Only missing texts are sent; nothing secret, and no text, is stored."""
    sent: list[list[str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        sent.append(texts)
        data = [
            {"object": "embedding", "index": index, "embedding": [len(text) / 7, 0.5]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return httpx.Response(200, json={"object": "list", "data": data, "model": "m", "usage": usage})

    transport = httpx.MockTransport(answer)
    model = OpenAIEmbeddings(
        model="m",
        api_key="sk-SECRET",  # type: ignore[arg-type]  # as users write it
        check_embedding_ctx_length=False,  # else it needs a vocabulary from the network
        http_client=httpx.Client(transport=transport),
        http_async_client=httpx.AsyncClient(transport=transport),
    )
    calls = colour(AskonceEmbeddings(model, cache))
    assert calls.documents("CONFIDENTIAL", "b") == [[12 / 7, 0.5], [1 / 7, 0.5]]
    assert calls.documents("b", "ccc", "CONFIDENTIAL") == [[1 / 7, 0.5], [3 / 7, 0.5], [12 / 7, 0.5]]
    assert sent == [["CONFIDENTIAL", "b"], ["ccc"]]
    with redis.Redis.from_url(_url(cache)) as client:
        stored = [(key, client.dump(key)) for key in client.scan_iter()]
    assert stored
    assert b"SECRET" not in repr(stored).encode()
    assert b"CONFIDENTIAL" not in repr(stored).encode()
