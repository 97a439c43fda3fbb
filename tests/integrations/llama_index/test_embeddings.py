"""Embeddings: each text once for a model and a role, one round trip a batch, vectors bit for bit."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import MockEmbedding
from llama_index.core.base.embeddings.base import BaseEmbedding

from askonce import Cache, Refused, VectorCodec, control, upstream
from askonce_llama_index import attach

from .conftest import Watch
from .provider import Provider

Make = Callable[..., Any]


class Texts:
    """Tells how many texts, and calls, reached the provider since it was asked last."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._last = provider.embedded_texts, provider.embedding_calls

    def __call__(self) -> tuple[int, int]:
        now = self._provider.embedded_texts, self._provider.embedding_calls
        before, self._last = self._last, now
        return now[0] - before[0], now[1] - before[1]


async def test_what_is_missing_is_embedded_once(embedder: Make, cache: Cache, provider: Provider) -> None:
    """Duplicates once, single and batch share entries, sync and async too; queries and texts do not."""
    texts, model = Texts(provider), attach(embedder(embed_batch_size=10), cache)
    first = model.get_text_embedding_batch(["a", "b", "a", "c"])
    assert texts() == (3, 1)
    assert first[0] == first[2]
    assert first[0] is not first[2]
    assert (await model.aget_text_embedding_batch(["c", "d", "a"]))[2] == first[0]
    assert texts() == (1, 1)
    assert [model.get_text_embedding("a"), await model.aget_text_embedding("b")] == first[:2]
    assert texts() == (0, 0)
    query = model.get_query_embedding("a")
    assert texts() == (1, 1)
    assert query == model.get_query_embedding("a") == await model.aget_query_embedding("a")
    assert texts() == (0, 0)
    attach(embedder(model="text-embedding-3-small"), cache).get_text_embedding("a")
    assert texts() == (1, 1)
    assert embedder().get_text_embedding_batch(["a", "b", "a", "c"]) == first
    assert model.get_text_embedding_batch([]) == []


def test_a_batch_costs_one_round_trip(embedder: Make, make_cache: Callable[..., Cache], url: str) -> None:
    """Of 40 texts that are stored; counted by the server."""
    import redis

    cache, raw = make_cache(), redis.Redis.from_url(url)
    model = attach(embedder(embed_batch_size=100), cache)
    texts = [f"text {number}" for number in range(40)]
    model.get_text_embedding_batch(texts)
    cache.stats()  # what was counted is on its way already
    before = raw.info("commandstats")["cmdstat_mget"]["calls"]
    model.get_text_embedding_batch(texts)
    assert raw.info("commandstats")["cmdstat_mget"]["calls"] - before == 1


async def test_default_batch_methods(cache: Cache) -> None:
    """LlamaIndex's own call the single method for each text: one lookup for all of them."""
    model = attach(MockEmbedding(embed_dim=3), cache)
    assert model.get_text_embedding_batch(["a", "b"]) == [[0.5] * 3] * 2
    assert await model.aget_text_embedding_batch(["a", "c"]) == [[0.5] * 3] * 2
    assert await model.aget_text_embedding("c") == [0.5] * 3
    stats = cache.stats()
    assert (stats.stored, stats.hits, stats.misses) == (3, 2, 3)


def test_what_a_caller_changes_stays_the_callers(embedder: Make, cache: Cache) -> None:
    """Vectors are lists of their own."""
    model = attach(embedder(), cache)
    first = model.get_text_embedding("change")
    kept = list(first)
    first.clear()
    model.get_text_embedding("change").clear()
    assert model.get_text_embedding("change") == kept


async def test_events_are_those_of_a_miss(embedder: Make, cache: Cache, watch: Watch) -> None:
    """The public methods show them, and are LlamaIndex's own; the span of the provider's method is a miss's only."""
    seen = []
    for model in (embedder(), attach(embedder(), cache), attach(embedder(), cache)):
        model.get_text_embedding_batch(["a", "b"])
        await model.aget_query_embedding("q")
        events, spans = watch.take()
        seen.append(([shown for shown, _ in events], [span[:3] for span in spans]))
    plain, miss, hit = seen
    assert plain == miss
    assert plain[0] == hit[0]
    assert [span for span in plain[1] if "._" not in span[0]] == hit[1]
    assert cache.stats().hits == 3


async def test_control_and_the_guard(embedder: Make, cache: Cache, provider: Provider) -> None:
    """read=False embeds anew; under the guard of another adapter nothing is looked up."""
    texts, model = Texts(provider), attach(embedder(), cache)
    model.get_text_embedding("a")
    with control(read=False):
        model.get_text_embedding_batch(["a", "b"])
    assert texts() == (3, 2)
    with upstream("embedding"):
        await model.aget_text_embedding("a")
    with control(read=False, write=False):
        await model.aget_text_embedding("c")
    assert texts() == (2, 2)
    with upstream("llm"):
        model.get_text_embedding("a")
    assert texts() == (0, 0)


#: What an ``Odd`` model answers to texts; not a field, or it would be part of the key.
ANSWERS: list[Callable[[list[str]], Any]] = []


class Odd(BaseEmbedding):
    """An embedding model that returns what it is told to."""

    def _get_query_embedding(self, query: str) -> Any:
        return ANSWERS[-1]([query])[0]

    async def _aget_query_embedding(self, query: str) -> Any:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> Any:
        return ANSWERS[-1]([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> Any:
        return ANSWERS[-1](texts)


@pytest.fixture
def odd(cache: Cache) -> Any:
    yield attach(Odd(model_name="odd"), cache)
    ANSWERS.clear()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda texts: [[1.0], [1.0, 2.0]][: len(texts)], "ragged"),
        (lambda texts: [[math.nan]] * len(texts), "vector"),
        (lambda texts: [[]] * len(texts), "vector"),
        (lambda texts: ["vector"] * len(texts), "vector"),
    ],
)
def test_what_is_no_vector_reaches_its_caller_only(odd: Any, cache: Cache, answer: Any, reason: str) -> None:
    """Lengths that differ, nothing, NaN: as without askonce, and not stored."""
    ANSWERS.append(answer)
    expected = answer(["a", "b"])
    for _ in range(2):
        assert repr(odd._get_text_embeddings(["a", "b"])) == repr(expected)
    stats = cache.stats()
    assert (stats.stored, stats.rejection_reasons[reason]) == (0, 4)


def test_a_wrong_number_of_vectors(odd: Any, cache: Cache) -> None:
    """Nobody knows which belongs to which text: the caller gets what the model returns."""
    ANSWERS.append(lambda texts: [[1.0]])
    assert odd._get_text_embeddings(["a", "b"]) == [[1.0]]
    assert (cache.stats().stored, cache.stats().bypass_reasons) == (0, {"miscounted": 1})


def test_a_model_whose_vectors_grew(odd: Any) -> None:
    """What is stored of another length is embedded anew, with the rest of its batch."""
    ANSWERS.append(lambda texts: [[1.0]] * len(texts))
    odd._get_text_embeddings(["a"])
    ANSWERS.append(lambda texts: [[1.0, 2.0]] * len(texts))
    assert odd._get_text_embeddings(["a", "b"]) == [[1.0, 2.0]] * 2
    assert odd._get_text_embeddings(["b", "a"]) == [[1.0, 2.0]] * 2


def test_errors_pass(odd: Any, cache: Cache) -> None:
    """The model's own, and nothing is stored."""

    def fail(texts: list[str]) -> Any:
        raise KeyError("provider")

    ANSWERS.append(fail)
    for call in (lambda: odd.get_text_embedding("a"), lambda: odd.get_text_embedding_batch(["a", "b"])):
        with pytest.raises(KeyError, match="provider"):
            call()
    assert cache.stats().stored == 0


def test_what_is_no_text_is_left_alone(odd: Any, cache: Cache) -> None:
    """It passes to the model as it is."""
    ANSWERS.append(lambda texts: [[1.0]] * len(texts))
    assert odd._get_text_embedding(7) == [1.0]
    assert cache.stats().bypass_reasons == {"uncacheable": 1}


async def test_of_all_who_ask_at_once_one_embeds(embedder: Make, cache: Cache, provider: Provider) -> None:
    """Batches that overlap share what they have in common."""
    texts, model = Texts(provider), attach(embedder(), cache)
    batches = [["a", "b"], ["b", "c"], ["c", "a"]] * 4
    found = await asyncio.gather(*[model.aget_text_embedding_batch(batch) for batch in batches])
    assert texts()[0] == 3
    plain = embedder().get_text_embedding_batch(["a", "b", "c"])
    known = dict(zip("abc", plain, strict=True))
    assert found == [[known[text] for text in batch] for batch in batches]


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_vectors_are_exact(vector: list[float]) -> None:
    """Four bytes a number where that loses nothing, else eight."""
    data = VectorCodec().encode(vector)
    back = VectorCodec().decode(data)
    assert [number.hex() for number in back] == [number.hex() for number in vector]
    narrow = all(
        abs(number) <= 3.4028234663852886e38 and array("f", [number])[0] == number for number in vector
    )
    assert len(data) == 1 + (4 if narrow else 8) * len(vector)


@given(st.binary())
def test_anything_else_is_no_vector(data: bytes) -> None:
    """Bytes from elsewhere raise, or are numbers of the right width."""
    try:
        numbers = VectorCodec().decode(data)
    except Exception:
        return
    assert numbers
    assert (len(data) - 1) % (4 if data[:1] == b"f" else 8) == 0


@pytest.mark.parametrize("value", [[], ["a"], [math.inf], [None], [10**400]])
def test_what_is_no_vector_is_refused(value: Any) -> None:
    """Rather than changed."""
    with pytest.raises(Refused):
        VectorCodec().encode(value)
