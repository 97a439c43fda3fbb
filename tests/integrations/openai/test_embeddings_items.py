"""Embeddings item by item: what is asked of upstream, what is stored, what the caller is given."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as example_of
from hypothesis import strategies as st
from tests.contract.polling import until
from tests.integrations.openai.wired import plan, read

from askonce import Cache, NotCached, Source, control
from askonce.keys import Fingerprints
from askonce.policy import Policy
from askonce_openai._embeddings import Embedded, Upstream, aembed, embed
from askonce_openai.wire.embeddings import CODEC, Batch, Vector

JSON = {"content-type": "application/json", "x-request-id": "req_1", "set-cookie": "secret"}


class Model:
    """Upstream: embeds each item by its own rule, counts what it was asked, and can be told to misbehave."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.status = 200
        self.name = "e-2025"
        self.size = 4
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer

    def vector(self, item: Any) -> list[float]:
        tokens = [item] if isinstance(item, str) else item
        seed = sum(sum(map(ord, str(token))) for token in tokens) + len(self.name)
        return [seed % 1000 + index / 8 for index in range(self.size)]  # float32 holds it

    def answer(self, body: dict[str, Any]) -> Upstream[str]:
        given = body["input"]
        self.asked.append(given)
        if self.status != 200:
            return Upstream(self.status, JSON, b'{"error":{}}', f"response {len(self.asked)}")
        single = isinstance(given, str) or isinstance(given[0], int)
        vectors = [self.vector(item) for item in ([given] if single else given)]
        if body.get("encoding_format") == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in vectors]  # type: ignore[misc]
        data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(vectors)]
        usage = {"prompt_tokens": 3 * len(data), "total_tokens": 3 * len(data)}
        answer = {"object": "list", "data": data, "model": self.name, "usage": usage}
        content = json.dumps(self.change(answer)).encode()
        return Upstream(200, JSON, content, f"response {len(self.asked)}")


class Caller:
    """Asks for embeddings through the cache, in one colour."""

    def __init__(self, cache: Cache, run: Callable[..., Embedded[str]]) -> None:
        self.cache = cache
        self.model = Model()
        self._run = run

    def __call__(self, given: Any, **body: Any) -> Embedded[str]:
        batch = Batch.of(plan("embeddings", {"input": given, **body}))
        assert batch is not None
        return self._run(self.cache, batch, self._ask(batch))

    def _ask(self, batch: Batch) -> Callable[[bytes | None], Upstream[str]]:
        def ask(content: bytes | None) -> Upstream[str]:
            return self.model.answer(dict(batch.body) if content is None else json.loads(content))

        return ask

    def vectors(self, given: Any, **body: Any) -> list[Any]:
        """Return the vectors of a request, in order."""
        found = self(given, **body)
        assert found.passed is None
        data = read(found.body)["data"]
        assert list(range(len(data))) == [one["index"] for one in data]
        return [one["embedding"] for one in data]

    def stored(self) -> int:
        """Return how many entries there are."""
        return self.cache.usage().entries


@pytest.fixture(params=["threads", "asyncio"])
def caller(request: pytest.FixtureRequest, url: str) -> Iterator[Caller]:
    cache = Cache(url, namespace="items", deadline=2.0)
    if request.param == "threads":
        yield Caller(cache, embed)
    else:
        with asyncio.Runner() as runner:

            def run(
                cache: Cache, batch: Batch, ask: Callable[[bytes | None], Upstream[str]]
            ) -> Embedded[str]:
                async def aask(content: bytes | None) -> Upstream[str]:
                    await asyncio.sleep(0)
                    return ask(content)

                return runner.run(aembed(cache.aio, batch, aask), context=contextvars.copy_context())

            yield Caller(cache, run)
            runner.run(cache.aio.aclose())
    cache.close()


# --- hits and misses ----------------------------------------------------------------------------------------------


def test_only_the_missing_items_are_asked_for_once(caller: Caller) -> None:
    """A partial hit, with a text twice: order and usage are right."""
    a, _, c = caller.vectors(["a", "b", "c"])
    found = caller(["c", "new", "a", "new"])
    vectors = [one["embedding"] for one in read(found.body)["data"]]
    assert [c, a, vectors[3]] == [vectors[0], vectors[2], vectors[1]]
    assert caller.model.asked == [["a", "b", "c"], ["new"]]
    assert read(found.body)["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (found.hits, found.items) == (2, 4)


def test_a_hit_is_what_the_miss_was(caller: Caller) -> None:
    """But for usage, which is what was paid now."""
    miss, hit = caller(["a", "b"]), caller(["a", "b"])
    assert len(caller.model.asked) == 1
    assert {**read(miss.body), "usage": {"prompt_tokens": 0, "total_tokens": 0}} == read(hit.body)
    assert ((miss.hits, miss.items), (hit.hits, hit.items)) == ((0, 2), (2, 2))
    assert miss.headers == {"content-type": "application/json", "x-request-id": "req_1"}
    assert hit.headers == {"content-type": "application/json"}
    assert read(hit.body)["model"] == "e-2025"


def test_one_text_and_batches_share_entries(caller: Caller) -> None:
    """A request for one text is sent as it is."""
    (a,) = caller.vectors("a")
    assert a == caller.vectors(["b", "a"])[1]
    assert caller.model.asked == ["a", ["b"]]


def test_token_arrays_are_items(caller: Caller) -> None:
    """One of them, or several; they are no text."""
    (one,) = caller.vectors([1, 2])
    assert one == caller.vectors([[3], [1, 2]])[1]
    caller.vectors(["1", "2"])
    assert caller.model.asked == [[1, 2], [[3]], ["1", "2"]]


def test_both_formats_share_entries(caller: Caller) -> None:
    """Upstream is asked in the caller's own."""
    (wanted,) = caller.vectors("a", encoding_format="base64")
    (numbers,) = caller.vectors("a")
    assert numbers == caller.vectors("a", encoding_format="float")[0] == caller.model.vector("a")
    assert struct.pack("<4f", *numbers) == base64.b64decode(wanted)
    (later,) = caller.vectors("b")
    assert struct.pack("<4f", *later) == base64.b64decode(caller.vectors("b", encoding_format="base64")[0])
    assert caller.model.asked == ["a", "b"]


def test_every_other_parameter_is_in_the_key(caller: Caller) -> None:
    """Those of vendors too; who asks is not."""
    for body in ({}, {"dimensions": 16}, {"input_type": "query"}, {"input_type": "passage"}, {"model": "f"}):
        caller("a", **body)
    caller("a", user="u")
    caller("a", input_type="query")
    assert len(caller.model.asked) == 5


def test_where_and_for_whom_is_in_the_key_of_an_item() -> None:
    """As for whole requests; a text and a token array are never taken for each other."""

    def keys(given: Any, **how: Any) -> set[bytes]:
        batch = Batch.of(plan("embeddings", {"input": given}, **how))
        assert batch is not None
        return {Fingerprints("", {}).of(request) for request in batch.requests}

    elsewhere: list[dict[str, Any]] = [
        {"origin": "https://y"},
        {"path": "/openai/deployments/a/embeddings"},
        {"query": "api-version=1"},
        {"scope": "tenant"},
        {"headers": {"openai-project": "p"}},
    ]
    assert len(set[bytes]().union(keys("a"), *(keys("a", **how) for how in elsewhere))) == 1 + len(elsewhere)
    assert keys("a") == keys(["a", "a"]) == keys("a", headers={"authorization": "Bearer x"})
    assert len(keys(["1", "[1]"]) | keys([[1], [1, 1], [11]])) == 5


def test_with_a_parameter_of_a_vendor_the_formats_stay_apart(caller: Caller) -> None:
    """Its numbers may be no float32 in one of them."""
    caller("a", output_dtype="x")
    caller("a", output_dtype="x", encoding_format="base64")
    caller("a", output_dtype="x", encoding_format="base64")
    assert len(caller.model.asked) == 2


def test_fields_of_a_vendor_survive_a_miss(caller: Caller) -> None:
    """The answer is upstream's, but for its vectors."""
    caller.model.change = lambda answer: {**answer, "id": "embd-1"}
    assert read(caller("a").body)["id"] == "embd-1"


@pytest.mark.parametrize(
    "body",
    [
        {"encoding_format": "int8"},
        {"input": [{"text": "a"}]},
        {"input": ["a", {"image": "b"}]},
        {"input": ["a", []]},
        {"input": [1, "a"]},
        {"input": [[1, True]]},
        {"input": [1.5]},
        {"input": {"a": 1}},
    ],
)
def test_other_items_and_formats_are_not_kept_one_by_one(body: dict[str, Any]) -> None:
    """They go the way of whole requests."""
    assert Batch.of(plan("embeddings", body)) is None
    assert Batch.of(plan("chat")) is None


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example_of(
    st.lists(
        st.lists(st.text(max_size=3).filter(bool) | st.lists(st.integers(0, 9), min_size=1), min_size=1),
        max_size=4,
    )
)
def test_whatever_is_stored_each_item_is_given_its_vector(caller: Caller, batches: list[list[Any]]) -> None:
    """Any batches, one after the other, with any overlap."""
    for given in batches:
        assert [caller.model.vector(item) for item in given] == caller.vectors(given)
    asked = [json.dumps(item) for given in caller.model.asked for item in given]
    assert len(asked) == len(set(asked))


def test_what_is_refreshed_behind_the_caller_is_not_paid_by_it(url: str) -> None:
    """A stale item is a hit, whatever its refresh brings, and however soon."""
    with Cache(
        url, namespace="items", deadline=2.0, policy=Policy(ttl=0.001, stale_while_revalidate=3600)
    ) as cache:
        caller = Caller(cache, embed)
        caller(["a"])
        batch = Batch.of(plan("embeddings", {"input": ["a"]}))
        assert batch is not None
        for count in range(2, 12):
            until(
                lambda: (
                    (served := cache.lookup(batch.requests[0], codec=CODEC)) and served.source is Source.STALE
                )
            )
            found = caller(["a"])
            assert (found.hits, read(found.body)["usage"]["total_tokens"]) == (1, 0)
            until(lambda count=count: len(caller.model.asked) >= count)  # type: ignore[misc]
            until(lambda: not len(cache._namespace.state.flights))


# --- answers that cannot be merged --------------------------------------------------------------------------------


def short(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "data": answer["data"][:-1]}


def with_vector(vector: Any) -> Callable[[dict[str, Any]], Any]:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        answer["data"][0]["embedding"] = vector
        return answer

    return change


UNMERGEABLE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a vector missing": short,
    "a vector too many": lambda answer: {
        **answer,
        "data": [*answer["data"], {**answer["data"][0], "index": len(answer["data"])}],
    },
    "no list": lambda answer: {**answer, "data": None},
    "no object": lambda _: [1],
    "an error": lambda answer: {**answer, "error": {"message": "x"}},
    "one index twice": lambda answer: {**answer, "data": [{**one, "index": 0} for one in answer["data"]]},
    "an empty vector": with_vector([]),
    "no numbers": with_vector(["x"]),
    "no float32": with_vector([1e300, 0.0, 0.0, 0.0]),
    "no number at all": with_vector([10**400, 0, 0, 0]),
    "not finite": with_vector([float("nan"), 0.0, 0.0, 0.0]),
    "bad base64": with_vector("%%"),
    "half a number": with_vector("AAAA"),
    "another length": with_vector([1.0]),
    "an odd model": lambda answer: {**answer, "model": "a\nb"},
}


@pytest.mark.parametrize("name", UNMERGEABLE)
def test_an_answer_to_the_whole_batch_is_given_as_it_is(caller: Caller, name: str) -> None:
    """It cannot be merged, and need not be: one call, nothing stored."""
    caller.model.change = UNMERGEABLE[name]
    found = caller(["a", "b"])
    assert (found.passed, found.hits, found.items) == ("response 1", 0, 2)
    assert caller.stored() == 0


@pytest.mark.parametrize(
    "name", [name for name in UNMERGEABLE if name not in {"one index twice", "another length"}]
)
def test_an_answer_to_a_part_is_asked_for_whole(caller: Caller, name: str) -> None:
    """What was stored stays; the unmergeable is not stored."""
    caller.vectors(["a"])
    caller.model.change = UNMERGEABLE[name]
    assert caller(["a", "b"]).passed == "response 3"
    assert caller.model.asked == [["a"], ["b"], ["a", "b"]]
    assert caller.stored() == 1


@pytest.mark.parametrize("change", ["name", "size"])
def test_vectors_of_two_models_are_never_mixed(caller: Caller, change: str) -> None:
    """Another model behind the same name: the whole batch is asked for anew, and stored."""
    caller.vectors(["a", "b"])
    setattr(caller.model, change, {"name": "e-2026", "size": 6}[change])
    answer = read(caller(["a", "c"]).body)
    found = [one["embedding"] for one in answer["data"]]
    assert [caller.model.vector("a"), caller.model.vector("c")] == found
    assert answer["usage"]["total_tokens"] == 9  # two calls were paid for it
    assert caller.model.asked == [["a", "b"], ["c"], ["a", "c"]]
    assert found == caller.vectors(["a", "c"])
    assert len(caller.model.asked) == 3


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 429, 500])
def test_an_error_of_upstream_is_given_as_it_is(caller: Caller, status: int) -> None:
    """And not stored: the retry asks again."""
    caller.vectors(["a"])
    caller.model.status = status
    assert caller(["a", "b"]).passed == "response 2"
    caller.model.status = 200
    assert len(caller.vectors(["a", "b"])) == 2
    assert caller.model.asked == [["a"], ["b"], ["b"]]


def test_what_asking_raises_passes(caller: Caller) -> None:
    """The library's own timeout, untouched."""

    def fail(answer: Any) -> Any:
        raise TimeoutError("read")

    caller.model.change = fail
    with pytest.raises(TimeoutError, match="read"):
        caller(["a"])
    assert caller.stored() == 0


def test_control_holds(caller: Caller) -> None:
    """For reading, writing, and only what is stored."""
    with control(write=False):
        caller("a")
    assert caller.stored() == 0
    with control(only_if_cached=True), pytest.raises(NotCached):
        caller("a")
    caller("a")
    with control(read=False):
        caller("a")
    with control(only_if_cached=True):
        assert caller("a").hits == 1
    assert len(caller.model.asked) == 3


def waits(cache: Cache, count: int = 1) -> bool:
    """Return whether so many threads wait for another's computation."""
    flights = list(cache._namespace.state.flights._flights.values())
    return sum(len(flight.future._condition._waiters) for flight in flights) >= count  # type: ignore[attr-defined]


def test_an_error_of_another_caller_is_not_shared(url: str) -> None:
    """It belongs to that caller's credential: this one asks for itself."""
    batch = Batch.of(plan("embeddings", {"input": ["a"]}))
    assert batch is not None
    model, begun, fail = Model(), threading.Event(), threading.Event()

    def failing(_: bytes | None) -> Upstream[str]:
        begun.set()
        fail.wait(20)
        return Upstream(429, {}, b"", "another's")

    def own(content: bytes | None) -> Upstream[str]:
        return model.answer(dict(batch.body) if content is None else json.loads(content))

    with Cache(url, namespace="items", deadline=2.0) as cache, ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, cache, batch, failing)
        assert begun.wait(20)
        second = pool.submit(embed, cache, batch, own)
        until(lambda: waits(cache))
        fail.set()
        assert (first.result(20).passed, second.result(20).passed) == ("another's", None)
        assert model.asked == [["a"]]


def test_errors_of_several_callers_are_not_shared(url: str) -> None:
    """Each is given its own, though each waited for those of the others."""
    batch = Batch.of(plan("embeddings", {"input": ["a"]}))
    assert batch is not None
    asked: list[str] = []

    def ask_as(name: str) -> Callable[[bytes | None], Upstream[str]]:
        def ask(_: bytes | None) -> Upstream[str]:
            asked.append(name)
            if len(asked) < 3:  # the first waits for both of the others, the next for the last one
                until(lambda: waits(cache, 3 - len(asked)))
            return Upstream(429, {}, b"", name)

        return ask

    with Cache(url, namespace="items", deadline=2.0) as cache, ThreadPoolExecutor(3) as pool:
        callers = {name: pool.submit(embed, cache, batch, ask_as(name)) for name in "abc"}
        assert {name: call.result(20).passed for name, call in callers.items()} == {
            name: name for name in "abc"
        }
    assert sorted(asked) == ["a", "b", "c"]


def test_two_callers_share_what_both_ask_for(url: str) -> None:
    """Who waits pays nothing, and says so."""
    model, begun, go_on = Model(), threading.Event(), threading.Event()

    def ask_for(*items: str) -> tuple[Batch, Callable[[bytes | None], Upstream[str]]]:
        batch = Batch.of(plan("embeddings", {"input": list(items)}))
        assert batch is not None

        def ask(content: bytes | None) -> Upstream[str]:
            begun.set()
            go_on.wait(20)
            return model.answer(dict(batch.body) if content is None else json.loads(content))

        return batch, ask

    with Cache(url, namespace="items", deadline=2.0) as cache, ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, cache, *ask_for("a", "b"))
        assert begun.wait(20)
        second = pool.submit(embed, cache, *ask_for("b", "a"))
        until(lambda: waits(cache))
        go_on.set()
        bodies = [read(one.result(20).body) for one in (first, second)]
        assert model.asked == [["a", "b"]]
        assert [body["usage"]["total_tokens"] for body in bodies] == [6, 0]


def test_without_redis_upstream_is_asked() -> None:
    """As if there were no cache."""
    with Cache("redis://127.0.0.1:1", namespace="items") as cache:
        caller = Caller(cache, embed)
        assert [caller.model.vector("a")] == caller.vectors(["a"])
        assert [caller.model.vector("a")] == caller.vectors(["a"])
        assert len(caller.model.asked) == 2


def test_a_foreign_entry_is_a_miss(url: str) -> None:
    """Under the key of an item, whoever wrote it."""
    with Cache(url, namespace="items", policy=Policy(ttl=60), deadline=2.0) as cache:
        batch = Batch.of(plan("embeddings", {"input": ["a"]}))
        assert batch is not None
        cache.store(batch.requests[0], b"odd")
        assert len(Caller(cache, embed).vectors(["a"])) == 1


# --- the codec ----------------------------------------------------------------------------------------------------


@example_of(
    st.text(max_size=8).filter(lambda name: "\n" not in name), st.lists(st.floats(width=32), min_size=1)
)
def test_a_vector_is_read_as_it_was_written(model: str, numbers: list[float]) -> None:
    """Four bytes a number."""
    vector = Vector(model, struct.pack(f"<{len(numbers)}f", *numbers))
    assert vector == CODEC.decode(CODEC.encode(vector))


@pytest.mark.parametrize("data", [b"", b"e", b"e\n", b"e\nabc"])
def test_what_is_no_vector_is_not_read(data: bytes) -> None:
    """Which the core takes for a miss."""
    with pytest.raises(ValueError, match="no vector"):
        CODEC.decode(data)
