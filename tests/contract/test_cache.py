"""What both caches do on every promised server."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis

from askonce import (
    AsyncCache,
    Cache,
    ConfigurationError,
    Policy,
    Refused,
    Request,
    Source,
    Uncacheable,
    Verbatim,
)

from .colours import close
from .polling import until
from .upstream import Gate, counting


class UpstreamError(Exception):
    """A failure of the caller's own."""


# --- look-aside -------------------------------------------------------------------------------------------------


def test_a_second_ask_is_a_hit(driver):
    """What was computed once is served from Redis, with its source and age."""
    fn, calls = counting()

    assert driver.get_or_compute({"q": 1}, fn) == "answer 1"
    assert driver.get_or_compute({"q": 1}, fn) == "answer 1"
    served = driver.lookup({"q": 1})

    assert len(calls) == 1
    assert (served.value, served.source) == ("answer 1", Source.HIT)
    assert 0.0 <= served.age < 5.0
    assert served.ttl == pytest.approx(86_400, abs=5)


def test_serve_tells_where_the_value_came_from(driver):
    """The first ask is computed, the second is a hit; both know how long the answer stays fresh."""
    fn, _ = counting()

    first, second = driver.serve("q", fn), driver.serve("q", fn)

    assert (first.source, first.age, first.ttl) == (Source.COMPUTED, 0.0, 86_400.0)
    assert (second.source, second.value) == (Source.HIT, first.value)
    assert second.ttl == pytest.approx(86_400, abs=5)


def test_nothing_is_found_where_nothing_was_stored(driver):
    """A lookup computes nothing and returns None."""
    assert driver.lookup("never asked") is None


def test_what_was_stored_is_found(driver):
    """store says that it stored, and lookup returns the value; a second store replaces it."""
    assert driver.store("q", "one", cost=1.5) is True
    assert driver.lookup("q").value == "one"
    assert driver.store("q", "two") is True
    assert driver.lookup("q").value == "two"


@pytest.mark.parametrize("value", [None, False, 0, "", b"", [], {}])
def test_an_empty_value_is_a_value(driver, value):
    """None, zero and the empty text are answers: they are hits, not misses."""
    calls = []

    def fn():
        calls.append(1)
        return value

    for _ in range(2):
        found = driver.get_or_compute("empty", fn)
        assert (found, type(found)) == (value, type(value))
    assert len(calls) == 1
    assert driver.lookup("empty").value == value


def test_equal_requests_share_an_answer_and_others_do_not(driver):
    """The order of keys and 1.0 for 1 make no difference; one parameter more, or True for 1, does."""
    driver.store({"model": "m", "t": 1.0}, "answer")

    assert driver.lookup({"t": 1, "model": "m"}).value == "answer"
    for other in (
        {"model": "m"},
        {"model": "m", "t": True},
        {"model": "m", "t": 1.5},
        {"model": "M", "t": 1},
    ):
        assert driver.lookup(other) is None


def test_order_counts_where_it_is_marked(driver):
    """Below Verbatim, mappings in another order are another request."""
    driver.store({"schema": Verbatim({"a": 1, "b": 2})}, "ab")

    assert driver.lookup({"schema": Verbatim({"a": 1, "b": 2})}).value == "ab"
    assert driver.lookup({"schema": Verbatim({"b": 2, "a": 1})}) is None
    assert driver.lookup({"schema": {"a": 1, "b": 2}}) is None


def test_requests_of_different_kinds_share_nothing(driver):
    """An embedding and a completion of the same text are two requests."""
    driver.store(Request("embedding", "text"), "vector")

    assert driver.lookup(Request("completion", "text")) is None
    assert driver.lookup("text") is None
    assert driver.lookup(Request("embedding", "text")).value == "vector"


def test_a_request_without_canonical_form_is_refused_with_its_path(driver):
    """An object that could only be guessed at is refused, and the function is not called."""
    fn, calls = counting()

    for ask in (
        lambda: driver.get_or_compute({"a": [1, object()]}, fn),
        lambda: driver.lookup({"a": [1, object()]}),
        lambda: driver.store({"a": [1, object()]}, "v"),
    ):
        with pytest.raises(Uncacheable, match=r"request\['a'\]\[1\]"):
            ask()
    assert calls == []


def test_namespaces_and_versions_share_nothing(make_driver):
    """The same request in another namespace, or under another version, is another key."""
    driver = make_driver(version="v1")
    driver.store("q", "v1")

    assert make_driver(version="v2").lookup("q") is None
    assert make_driver(version="v1", namespace="other").lookup("q") is None
    assert make_driver(version="v1").lookup("q").value == "v1"


def test_two_caches_share_entries(make_driver):
    """What one process stores is a hit in another."""
    fn, calls = counting()

    assert make_driver().get_or_compute("q", fn) == "answer 1"
    assert make_driver().get_or_compute("q", fn) == "answer 1"
    assert len(calls) == 1


def test_each_caller_owns_what_it_is_served(driver):
    """Changing a served value changes nobody else's."""
    driver.store("q", {"items": [1]})

    driver.lookup("q").value["items"].append(2)
    driver.get_or_compute("q", lambda: None)["items"].append(3)

    assert driver.lookup("q").value == {"items": [1]}


# --- once -------------------------------------------------------------------------------------------------------


def test_callers_at_the_same_time_share_one_call(driver):
    """Twenty callers of one cold key make one call, and each owns its copy of the answer."""
    gate = Gate({"items": []})

    first = driver.start("serve", "q", gate)
    gate.wait()
    others = [driver.start("serve", "q", gate) for _ in range(19)]
    gate.open()
    served = [future.result(10) for future in (first, *others)]

    assert gate.calls == 1
    assert served[0].source is Source.COMPUTED
    assert {one.source for one in served[1:]} <= {Source.COALESCED, Source.HIT}
    assert len({id(one.value) for one in served}) == 20


def test_the_callers_own_error_passes_unwrapped(driver):
    """An exception of the function reaches the caller as it is; nothing is stored, the next caller computes."""
    error = UpstreamError("quota")
    failing, _ = counting(error=error)
    fn, _ = counting()

    with pytest.raises(UpstreamError) as caught:
        driver.get_or_compute("q", failing)

    assert caught.value is error
    assert driver.lookup("q") is None
    assert driver.get_or_compute("q", fn) == "answer 1"


def test_those_who_wait_share_the_error(driver):
    """All who joined a failing call raise its error at once; who asks later computes."""
    gate = Gate(error=UpstreamError("quota"))

    futures = [driver.start("get_or_compute", "q", gate)]
    gate.wait()
    futures += [driver.start("get_or_compute", "q", gate) for _ in range(9)]
    joined(driver, 9)
    gate.open()

    for future in futures:
        with pytest.raises(UpstreamError, match="quota"):
            future.result(10)
    assert gate.calls == 1
    assert driver.get_or_compute("q", counting()[0]) == "answer 1"


def joined(driver, count):
    """Return once *count* callers wait for the flights of the process."""
    flights = driver.cache._namespace.state.flights

    def waiting():
        return sum(
            len(flight.future._done_callbacks) + len(flight.future._condition._waiters)
            for flight in list(flights._flights.values())
        )

    until(lambda: waiting() >= count)


def test_a_function_may_ask_for_another_key(driver):
    """A chain inside a chain is cached on both levels."""

    def outer():
        return "outer of " + driver.get_or_compute("inner", lambda: "inner")

    assert driver.get_or_compute("outer", outer) == "outer of inner"
    assert driver.lookup("inner").value == "inner"


def test_a_function_that_asks_for_its_own_key_does_not_wait_for_itself(url):
    """The inner ask computes without the cache, is counted as such, and the outer answer is stored (threads)."""
    with Cache(url, namespace="test") as cache:

        def outer():
            return "outer of " + cache.get_or_compute("q", lambda: "inner")

        assert cache.get_or_compute("q", outer) == "outer of inner"
        assert cache.lookup("q").value == "outer of inner"
        assert cache.stats().bypass_reasons == {"reentrant": 1}


async def test_a_coroutine_that_asks_for_its_own_key_does_not_wait_for_itself(url):
    """The inner ask computes without the cache, is counted as such, and the outer answer is stored (asyncio)."""
    async with AsyncCache(url, namespace="test") as cache:

        async def outer():
            return "outer of " + await cache.get_or_compute("q", lambda: "inner")

        assert await cache.get_or_compute("q", outer) == "outer of inner"
        assert (await cache.lookup("q")).value == "outer of inner"
        assert (await cache.stats()).bypass_reasons == {"reentrant": 1}


# --- admission --------------------------------------------------------------------------------------------------


def test_an_answer_that_admission_refuses_is_served_and_not_stored(driver):
    """The caller has the answer; the next one computes."""

    def admit(value):
        raise Refused("empty")

    fn, _calls = counting()

    assert driver.get_or_compute("q", fn, admit=admit) == "answer 1"
    assert driver.get_or_compute("q", fn, admit=admit) == "answer 2"
    assert driver.store("q", "v", admit=admit) is False
    assert driver.lookup("q") is None
    assert driver.stats().rejection_reasons == {"empty": 3}


def test_admission_of_the_cache_holds_for_every_call(make_driver):
    """A callback given to the constructor sees every answer; one given to a call takes its place."""

    def admit(value):
        if value == "bad":
            raise Refused("bad")

    driver = make_driver(admit=admit)

    assert driver.store("q", "bad") is False
    assert driver.store("q", "good") is True
    assert driver.store("p", "bad", admit=lambda _: None) is True


def test_admission_may_decide_the_lifetime(driver):
    """A duration that the callback returns is the answer's ttl, whatever the call says."""
    driver.store("q", "v", ttl="1h", admit=lambda _: timedelta(seconds=30))

    assert driver.lookup("q").ttl == pytest.approx(30, abs=1)


def test_an_admission_that_fails_refuses(driver):
    """A callback that raises loses no answer: it is served, not stored, and counted."""

    def admit(value):
        raise ZeroDivisionError

    assert driver.get_or_compute("q", lambda: "answer", admit=admit) == "answer"
    assert driver.lookup("q") is None
    assert driver.store("q", "answer", admit=admit) is False
    stats = driver.stats()
    assert (stats.rejected + stats.uncacheable, stats.stored) == (2, 0)


# --- construction, connections, life ----------------------------------------------------------------------------


def test_making_a_cache_connects_to_nothing(make_driver):
    """A cache on a dead address is made without a word, and its calls do without it."""
    driver = make_driver("redis://127.0.0.1:1/0")

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.lookup("q") is None


def test_a_database_number_counts(make_driver, url):
    """redis://.../3 is another database than redis://.../0."""
    make_driver().store("q", "zero")

    assert make_driver(url[:-1] + "3").lookup("q") is None


def test_a_unix_socket_serves_as_well(make_driver, server, url):
    """unix:// reaches the same server."""
    make_driver().store("q", "answer")

    assert make_driver(f"unix://{server.socket}").lookup("q").value == "answer"


def test_a_client_of_the_users_gives_the_address_and_nothing_else(url):
    """Decoding, pools and retries of the client make no difference; the client goes on working."""
    client = redis.Redis.from_url(url, decode_responses=True, max_connections=1)

    with Cache(client=client, namespace="test") as cache, Cache(url, namespace="test") as other:
        assert cache.store("q", b"\xff answer")
        assert other.lookup("q").value == b"\xff answer"
    assert client.ping()
    client.close()


async def test_an_async_client_serves_both_colours(url):
    """A redis.asyncio client gives its address to threads, too."""
    client = redis.asyncio.Redis.from_url(url)
    async with AsyncCache(client=client, namespace="test") as cache:
        await cache.store("q", "answer")
    cache = Cache(client=client, namespace="test")
    assert (await asyncio.to_thread(cache.lookup, "q")).value == "answer"
    await asyncio.to_thread(cache.close)
    await client.aclose()


async def test_threads_and_tasks_share_entries_and_flights(url):
    """One object serves both colours: a task joins the call that a thread has under way."""
    with Cache(url, namespace="test") as cache:
        gate = Gate()
        leading = asyncio.create_task(asyncio.to_thread(cache.serve, "q", gate))
        await asyncio.to_thread(gate.wait)
        following = asyncio.create_task(cache.aio.serve("q", gate))
        while not any(f.future._done_callbacks for f in cache._namespace.state.flights._flights.values()):
            await asyncio.sleep(0.001)
        gate.open()

        assert (await leading).source is Source.COMPUTED
        assert (await following).source is Source.COALESCED
        assert (await cache.aio.lookup("q")).value == cache.lookup("q").value == "answer"
        assert gate.calls == 1
        await cache.aio.aclose()


async def test_a_blocking_call_inside_the_loop_never_waits_for_that_loop(url):
    """A sync ask in the leader's own loop computes for itself instead of blocking what it waits for."""
    with Cache(url, namespace="test") as cache:
        entered, release = asyncio.Event(), asyncio.Event()

        async def slow():
            entered.set()
            await release.wait()
            return "async"

        leading = asyncio.create_task(cache.aio.get_or_compute("q", slow))
        await entered.wait()
        assert cache.get_or_compute("q", lambda: "sync") == "sync"
        release.set()
        assert await leading == "async"
        await cache.aio.aclose()


def test_a_closed_cache_connects_anew(driver):
    """close() is no end: the next call connects again."""
    driver.store("q", "answer")
    close(driver)

    assert driver.lookup("q").value == "answer"
    assert driver.get_or_compute("p", lambda: "other") == "other"


def test_a_cache_pickles_as_its_configuration(make_driver):
    """A copy in another process, or a deep copy, has the same keys and connects for itself."""
    driver = make_driver(version="v3", policy=Policy(ttl="1h"))
    driver.store("q", "answer")

    for twin in (pickle.loads(pickle.dumps(driver.cache)), copy.deepcopy(driver.cache)):
        assert type(twin) is type(driver.cache)
        assert (twin.namespace, twin.version, twin.policy) == ("test", "v3", Policy(ttl="1h"))
        assert twin._namespace is not driver.cache._namespace
        with Cache(driver.cache._namespace.settings.url, namespace="test", version=twin.version) as cache:
            assert cache.lookup("q").value == "answer"


def test_a_cache_of_a_client_does_not_pickle(url):
    """The client is not ours to copy, and the error says what to do."""
    with redis.Redis.from_url(url) as client, pytest.raises(TypeError, match="make it from a URL"):
        pickle.dumps(Cache(client=client))


def test_threads_share_a_cache(url):
    """Sixteen threads on one object never see each other's answers."""
    with Cache(url, namespace="test") as cache, ThreadPoolExecutor(16) as pool:

        def ask(number):
            for turn in range(50):
                request = {"n": number, "turn": turn % 5}
                assert cache.get_or_compute(request, lambda: request) == request
            return True

        assert all(pool.map(ask, range(16)))


def test_a_coroutine_function_is_refused_by_the_sync_cache(url):
    """The error says which class to use, and no coroutine is left unawaited."""

    async def fn():
        return "answer"

    with Cache(url, namespace="test") as cache, pytest.raises(ConfigurationError, match="AsyncCache"):
        cache.get_or_compute("q", fn)


async def test_a_plain_function_serves_the_async_cache(url):
    """An async cache takes functions of both colours."""
    async with AsyncCache(url, namespace="test") as cache:
        assert await cache.get_or_compute("q", lambda: "answer") == "answer"


# --- connections come and go ------------------------------------------------------------------------------------


def test_a_thread_for_every_call_keeps_the_cache(url):
    """A server that makes a thread for each request is served by the cache after any number of them."""
    with Cache(url, namespace="test", deadline=2) as cache:
        cache.store("q", "answer")
        found = []
        for _ in range(150):
            thread = threading.Thread(target=lambda: found.append(cache.lookup("q")))
            thread.start()
            thread.join()

        assert [one.value for one in found if one] == ["answer"] * 150
        assert cache.stats().backend_errors == 0


def test_threads_that_end_leave_no_connection(url, raw):
    """The connections of ended threads are closed."""
    before = len(raw.client_list())
    with Cache(url, namespace="test") as cache, ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda n: cache.store(n, n), range(60)))
    until(lambda: len(raw.client_list()) <= before)


def test_a_loop_for_every_call_leaves_no_connection(url, raw):
    """asyncio.run() in a row, with a cache that nobody closes in each loop, does not pile up connections."""
    cache = AsyncCache(url, namespace="test")
    before = len(raw.client_list())
    for number in range(30):
        assert asyncio.run(cache.get_or_compute({"n": number % 3}, lambda: "answer")) == "answer"

    assert len(raw.client_list()) <= before + 3
    asyncio.run(cache.aclose())


def test_closed_loops_leave_no_connection(url, raw):
    """Loops that close the cache behind them leave nothing."""
    cache = AsyncCache(url, namespace="test")

    async def use(number):
        async with cache:
            assert await cache.get_or_compute({"n": number % 3}, lambda: "answer") == "answer"

    before = len(raw.client_list())
    for number in range(60):
        asyncio.run(use(number))
    until(lambda: len(raw.client_list()) <= before)


# --- look-ups of one moment ---------------------------------------------------------------------------------------


async def test_look_ups_of_one_moment_are_one_command(url, raw):
    """However many tasks look up at once, each has its own answer; equal keys are read once."""
    async with AsyncCache(url, namespace="test", deadline=2) as cache:
        await cache.store_many(list(range(300)), [f"v {number}" for number in range(300)])
        await cache.lookup(0)
        mgets = raw.info("commandstats")["cmdstat_mget"]["calls"]
        asked = [*range(200), *range(100), "absent"]
        found = await asyncio.gather(*[cache.lookup(number) for number in asked])

        assert [one and one.value for one in found] == [f"v {n}" for n in [*range(200), *range(100)]] + [None]
        assert raw.info("commandstats")["cmdstat_mget"]["calls"] - mgets <= 4


async def test_a_look_up_that_is_cancelled_leaves_the_others(url):
    """Those that were read in the same command are answered."""
    async with AsyncCache(url, namespace="test", deadline=2) as cache:
        await cache.store_many(list(range(50)), [f"v {number}" for number in range(50)])
        for turn in range(20):
            tasks = [asyncio.create_task(cache.lookup(number)) for number in range(50)]
            await asyncio.sleep(0)
            for task in tasks[turn % 3 :: 3]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            for number, one in enumerate(done):
                assert isinstance(one, asyncio.CancelledError) or one.value == f"v {number}"


async def test_each_look_up_of_one_moment_is_a_use(url, raw, names):
    """All of them are touched: the least recently used is another one."""
    async with AsyncCache(url, namespace="test", max_entries=10, deadline=2) as cache:
        await cache.store_many(list(range(10)), ["v"] * 10)
        raw.zadd(names.l, dict.fromkeys(raw.zrange(names.l, 0, -1), 1))  # long ago
        await asyncio.gather(*[cache.lookup(number) for number in range(9)])
        await cache.store("new", "v")
        assert await cache.lookup(9) is None
        assert None not in await cache.get_many(list(range(9)))
