"""The two drivers over the model of the scripts: what lies between a program and the world."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from askonce import (
    AsyncCache,
    AsyncLease,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    Lease,
    Policy,
    Served,
    Source,
    _aio,
    _cache,
)
from askonce._call import Call
from askonce._effects import TIMED_OUT, Fetch, Join, Sleep
from askonce._flights import Flight, Landed
from askonce._programs import Partition
from askonce.scripts import FENCED_OFF, MOVED, REPLACED, STORED, TOO_LARGE

from .fleet import Server
from .play import Registered

AWAY = "redis://127.0.0.1:1/0"  # nothing listens there
LANDED = Landed(0, None, "theirs", 5.0)


def lost(*_: Any) -> Any:
    raise BackendUnavailable("no wire in this test")


class Both:
    """One body for both colours, over a server that lives in the test."""

    def __init__(self, kind: type, **words: Any) -> None:
        self.cache = kind(AWAY, **words)
        self.cache._namespace.state.agreed = True  # nobody can be asked for the layout
        self.server = Server(lambda: 0.0, lambda _: None)
        if kind is AsyncCache:

            async def answer(effect: Any) -> Any:
                return self.server.answer(effect)

            async def lose(*_: Any) -> Any:
                raise BackendUnavailable("no wire in this test")

            async def read(part: Partition, members: tuple[bytes, ...]) -> Any:
                return self.server.answer(Fetch(part.index, members))

            async def nothing(*_: Any) -> Any:
                return None, None

            self.cache._read, self.cache._exchange, self.cache._straight = read, lose, nothing
            self.cache._invoke = self.cache._invoke_many = answer
        else:
            self.cache._read = lambda part, members: self.server.answer(Fetch(part.index, members))
            self.cache._exchange, self.cache._straight = lost, lambda *_: (None, None)
            self.cache._invoke = self.cache._invoke_many = self.server.answer

    def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method; that of the async cache on an event loop of its own, which ends with it."""
        result = getattr(self.cache, name)(*args, **kwargs)
        if not isinstance(self.cache, AsyncCache):
            return result

        async def wait() -> Any:
            return await result

        return asyncio.run(wait())

    def reply(self, reply: Any) -> None:
        """Let what is sent without a program have this reply."""

        async def answer(*_: Any) -> Any:
            return [reply]

        self.cache._exchange = answer if isinstance(self.cache, AsyncCache) else lambda *_: [reply]

    @property
    def flights(self) -> int:
        return len(self.cache._namespace.state.flights)

    def background(self) -> None:
        """Wait for what the sync driver has detached."""
        self.cache._namespace.background.settle(10)


@pytest.fixture(params=[Cache, AsyncCache])
def make(request):
    return lambda **words: Both(request.param, **words)


@pytest.fixture
def both(make):
    return make()


# --- a plain store ------------------------------------------------------------------------------------------------


def test_what_the_straight_path_cannot_send_the_program_sends(both):
    """No control word is known yet, or the generation has moved: admission is asked once all the same."""
    asked = []
    assert both.do("store", "p", "v", admit=asked.append) is True
    both.reply([MOVED, 1, -1, 0, 0, []])
    assert both.do("store", "q", "w", admit=asked.append) is True

    assert asked == ["v", "w"]
    assert len(both.server.entries) == 2


@pytest.mark.parametrize("strict", [False, True])
def test_a_plain_store_that_fails_is_not_sent_again(make, strict):
    """False, counted once; a strict cache says why it failed."""
    both = make(strict=strict)
    both.do("store", "p", "v")
    both.cache._namespace.state.counters.take()

    if strict:
        with pytest.raises(BackendUnavailable, match="no wire in this test"):
            both.do("store", "q", "v")
    else:
        assert both.do("store", "q", "v") is False
    assert both.cache._namespace.state.counters.peek() == {"backend_errors": 1}
    assert len(both.server.entries) == 1


@pytest.mark.parametrize(
    ("code", "result", "counted"),
    [
        (STORED, True, {"stored": 1}),
        (REPLACED, True, {"stored": 1, "replaced": 1}),
        (FENCED_OFF, False, {"fenced_off": 1}),
        (TOO_LARGE, False, {"too_large": 1}),
        (MOVED, True, {"stored": 1}),  # by the program, under the generation that is current
    ],
)
def test_what_a_plain_store_comes_to(both, code, result, counted):
    """What the script says, counted once."""
    counters = both.cache._namespace.state.counters
    both.do("store", "p", "v")
    counters.take()
    both.reply([code, 1, -1, 0, 0, []])

    assert both.do("store", "q", "v") is result
    assert counters.peek() == counted
    assert len(both.server.entries) == (2 if code == MOVED else 1)


def test_what_a_plain_store_leaves_is_done(both):
    """Over a limit, room is made before it returns; what looked wrong is healed behind the caller."""
    done, run = [], both.cache._run
    both.do("store", "p", "v")
    both.reply([STORED, 1, -1, 0, 1, [b"7:v", b"1"]])

    def note(program: Any, call: Any) -> Any:
        done.append(program.__name__)
        return run(program, call)

    both.cache._run = note
    assert both.do("store", "q", "v") is True
    assert done == ["tidy_up"]


@pytest.mark.parametrize(("name", "missing"), [("lookup", None), ("get_many", [None])])
@pytest.mark.parametrize("strict", [False, True])
def test_what_the_straight_path_failed_to_read_is_not_asked_again(make, strict, name, missing):
    """A miss, counted once; a strict cache says why it failed."""
    both = make(strict=strict)
    both.do("store", "p", "v")
    both.cache._namespace.state.counters.take()
    del both.cache._straight, both.cache._read
    both.cache._fetch_many = None  # nor by another way
    asked = "p" if name == "lookup" else ["p"]

    if strict:
        with pytest.raises(BackendUnavailable, match=r"no wire in this test|Error 111"):
            both.do(name, asked)
    else:
        assert both.do(name, asked) == missing
        assert both.cache._namespace.state.counters.peek() == {"backend_errors": 1, "misses": 1}


# --- a program runs to its end ------------------------------------------------------------------------------------


def test_an_answer_is_computed_stored_and_served(both):
    """The whole way: miss, lease, function, store, hit."""
    assert both.do("get_or_compute", {"q": 1}, lambda: {"a": [1]}) == {"a": [1]}
    served = both.do("serve", {"q": 1.0}, lambda: pytest.fail("computed twice"))

    assert (served.value, served.source) == ({"a": [1]}, Source.HIT)
    assert both.flights == 0


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_the_function_raises_is_raised(both, error):
    """The very same object, and nothing is left: neither a flight nor a lease."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        both.do("get_or_compute", "q", fail)
    assert raised.value is error
    assert both.flights == 0
    assert both.do("get_or_compute", "q", lambda: "new") == "new"


@pytest.mark.parametrize("answer", [["one"], ["one", "two", "three"], []])
def test_a_wrong_number_of_values_is_an_error_of_the_function(both, answer):
    """The message says both numbers; the leases are given back."""
    with pytest.raises(ConfigurationError, match=f"fn returned {len(answer)} values for 2 requests"):
        both.do("get_or_compute_many", ["a", "b"], lambda _: answer)

    assert both.flights == 0
    assert both.do("get_or_compute_many", ["a", "b"], list) == ["a", "b"]


def test_the_function_sees_the_requests_that_it_was_given(both):
    """Not their canonical form: the objects themselves, distinct and in order."""
    requests: list[Any] = [("a",), {"b": 1.0}, ["a"], {"b": 1}]
    seen: list[Any] = []

    def compute(missing: list[Any]) -> list[str]:
        seen.extend(missing)
        return [str(one) for one in missing]

    assert both.do("get_or_compute_many", requests, compute) == [
        "('a',)",
        "{'b': 1.0}",
        "('a',)",
        "{'b': 1.0}",
    ]
    assert seen == [("a",), {"b": 1.0}]
    assert seen[0] is requests[0]


def test_a_coroutine_is_no_answer_of_a_plain_function():
    """Whoever gives an async function to the sync cache is told what to use; nothing is stored or left."""
    both = Both(Cache)

    async def later() -> str:
        return "x"

    with pytest.raises(ConfigurationError, match=r"use AsyncCache, or Cache\.aio"):
        both.do("get_or_compute", "q", later)
    assert both.flights == 0


def test_the_async_cache_takes_both_kinds_of_functions():
    """A plain function's value is its answer; a coroutine's is awaited."""
    both = Both(AsyncCache)

    async def later() -> str:
        return "later"

    assert both.do("get_or_compute", "a", later) == "later"
    assert both.do("get_or_compute", "b", lambda: "now") == "now"


def test_a_function_that_asks_for_its_own_key_is_answered(make):
    """It does not wait for itself."""
    both = make(policy=Policy(max_wait=2))
    cache = both.cache
    if isinstance(cache, AsyncCache):

        async def outer() -> str:
            return "outer " + await cache.get_or_compute("q", lambda: "inner")

        fn: Any = outer
    else:
        fn = lambda: "outer " + cache.get_or_compute("q", lambda: "inner")  # noqa: E731

    assert both.do("get_or_compute", "q", fn) == "outer inner"
    assert both.do("lookup", "q").value == "outer inner"
    assert cache._namespace.state.counters.peek()["bypassed:reentrant"] == 1


# --- behind the caller --------------------------------------------------------------------------------------------


def stale(make: Any) -> Both:
    """Return a cache in which the answer to "q" is stale."""
    both = make(policy=Policy(ttl=10, stale_while_revalidate=100))
    assert both.do("store", "q", "old")
    both.server.step_ms += 20_000
    return both


def test_a_refresh_whose_loop_ends_blocks_nobody(make):
    """A process that asks in one short event loop after the other is not left with a flight that never lands."""
    both = stale(make)
    assert both.do("get_or_compute", "q", lambda: "new") == "old"
    both.background()

    assert both.flights == 0


async def test_a_refresh_in_a_loop_that_lives_is_stored():
    """The next caller has the new answer."""
    both = Both(AsyncCache, policy=Policy(ttl=10, stale_while_revalidate=100))
    await both.cache.store("q", "old")
    both.server.step_ms += 20_000
    assert await both.cache.get_or_compute("q", lambda: "new") == "old"
    while both.flights:
        await asyncio.sleep(0)

    assert (await both.cache.lookup("q")).value == "new"


def test_work_that_ends_its_thread_costs_no_other():
    """A function that calls ``sys.exit`` behind a stale answer ends a thread, not the background."""
    from askonce._background import Background

    background, done = Background(), threading.Event()

    def leave() -> None:
        raise SystemExit

    for _ in range(20):
        background.submit(leave)
    background.settle(1)
    background.submit(done.set)

    assert done.wait(1)


# --- waiting ------------------------------------------------------------------------------------------------------


class Racing(Future):
    """A future that is done at the very moment at which the waiting for it ended."""

    def result(self, timeout: float | None = None) -> Any:
        if timeout is None or super().done():
            return super().result(timeout)
        raise TimeoutError

    def done(self) -> bool:
        if not super().done():
            self.set_result(LANDED)
        return True


def perform(kind: type, effect: Any) -> Any:
    cache = kind(AWAY)
    if kind is AsyncCache:
        return asyncio.run(cache._perform(effect, Call()))
    return cache._perform(effect, Call())


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_a_flight_that_lands_as_patience_ends(kind):
    """The result is served, or patience has ended: it is no TimeoutError of the leader's."""
    flight = Flight((b"7:1", b"digest"), None)
    flight.future = Racing()

    assert perform(kind, Join(flight, 0.0)) in (LANDED, TIMED_OUT)


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_a_message_that_comes_as_the_sleep_ends(kind):
    """A sleep has no result, and never fails."""
    waiter: Any = Registered()
    waiter.woken = Racing()

    assert 0 <= perform(kind, Sleep(waiter, 0.0)) < 1


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_the_leaders_own_timeout_is_the_followers_error(kind):
    """A TimeoutError that the function raised is shared like any other error."""
    flight = Flight((b"7:1", b"digest"), None)
    flight.future.set_exception(TimeoutError("the model's"))

    with pytest.raises(TimeoutError, match="the model's"):
        perform(kind, Join(flight, 1.0))


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_an_impatient_follower_leaves_the_flight_as_it_is(kind):
    """Who gives up cancels nothing."""
    flight = Flight((b"7:1", b"digest"), None)

    assert perform(kind, Join(flight, 0.0)) is TIMED_OUT
    assert not flight.future.cancelled()


async def test_a_sync_call_on_the_leaders_loop_does_not_wait():
    """It would block the loop that its leader needs."""
    cache = Cache(AWAY)
    flight = Flight((b"7:1", b"digest"), asyncio.get_running_loop())

    assert cache._perform(Join(flight, 60.0), Call()) is TIMED_OUT


async def test_threads_and_tasks_share_a_flight():
    """A task leads, a thread follows; each has the answer."""
    cache = Cache(AWAY, policy=Policy(max_wait=2))  # Redis is away: the flight alone makes it one call
    started, finish, calls = asyncio.Event(), asyncio.Event(), []

    async def compute() -> str:
        calls.append(1)
        started.set()
        await finish.wait()
        return "one answer"

    leader = asyncio.create_task(cache.aio.get_or_compute("q", compute))
    await started.wait()
    follower = asyncio.create_task(asyncio.to_thread(cache.serve, "q", lambda: "another"))
    while cache._namespace.state.counters.peek().get("misses", 0) < 2:
        await asyncio.sleep(0)
    finish.set()

    assert await leader == "one answer"
    assert (await follower).value == "one answer"
    assert calls == [1]


async def test_a_cancelled_leader_hands_over():
    """The first task is cancelled while it computes; the one that had joined computes."""
    cache = AsyncCache(AWAY, policy=Policy(max_wait=2))
    started, never, calls = asyncio.Event(), asyncio.Event(), []

    async def compute() -> str:
        calls.append(1)
        started.set()
        if len(calls) == 1:
            await never.wait()
        return "an answer"

    first = asyncio.create_task(cache.get_or_compute("q", compute))
    await started.wait()
    second = asyncio.create_task(cache.get_or_compute("q", compute))
    while cache._namespace.state.counters.peek().get("misses", 0) < 2:
        await asyncio.sleep(0)
    first.cancel()

    assert await second == "an answer"
    assert "bypassed:max_wait" not in cache._namespace.state.counters.peek()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(cache._namespace.state.flights) == 0


# --- leases -------------------------------------------------------------------------------------------------------


def begun(both: Both, request: object = "q") -> Any:
    lease = both.do("begin", request)
    assert isinstance(lease, Lease | AsyncLease)
    return lease


def ended(both: Both, result: Any) -> Any:
    if isinstance(both.cache, AsyncCache):

        async def wait() -> Any:
            return await result

        return asyncio.run(wait())
    return result


def test_a_lease_ends_once(both):
    """What comes after finish or abandon changes nothing."""
    lease = begun(both)
    assert ended(both, lease.finish("an answer")) is True
    assert ended(both, lease.finish("another")) is False
    assert ended(both, lease.abandon(ValueError())) is None

    assert both.do("lookup", "q").value == "an answer"
    assert both.flights == 0


@pytest.mark.parametrize("words", [{"ttl": "soon"}, {"ttl": 0}, {"tags": [""]}, {"tags": [3]}])
def test_a_wrong_word_does_not_lose_the_lease(both, words):
    """``finish`` refuses it; the lease is still there to be finished, or abandoned by its block."""
    lease = begun(both)
    with pytest.raises(ConfigurationError):
        ended(both, lease.finish("an answer", **words))
    ended(both, lease.abandon())

    assert both.flights == 0
    assert isinstance(begun(both), Lease | AsyncLease)


def test_a_lease_that_is_forgotten_hands_over(both):
    """The garbage collector lands its flight, and its thread or task may wait again."""
    lease = begun(both)
    del lease
    gc.collect()

    assert both.flights == 0
    assert not any(both.cache._namespace._holders.values())


def test_a_block_that_fails_abandons_with_its_error():
    """Those who joined get the error; an interrupt hands over."""
    both = Both(Cache)
    for error, shared in [(ValueError("no"), True), (KeyboardInterrupt(), False)]:
        lease = begun(both)
        flight = lease._held.flight
        with pytest.raises(type(error)), lease:
            raise error
        assert flight.future.exception(0) is (error if shared else None)


def test_who_holds_a_lease_waits_for_nobody(monkeypatch):
    """Whatever a thread asks for while it holds an unfinished lease, it is not made to wait for itself."""
    both = Both(Cache)
    lease = begun(both)
    waits = []

    def seen(state: Any, wanted: Any, *_: Any) -> Any:
        waits.extend(one.waits for one in (wanted if isinstance(wanted, list) else [wanted]))
        return [Served("x", Source.HIT)] if isinstance(wanted, list) else Served("x", Source.HIT)
        yield

    monkeypatch.setattr(_cache.programs, "get_or_compute", seen)
    monkeypatch.setattr(_cache.programs, "get_or_compute_many", seen)
    both.do("get_or_compute", "q", lambda: "x")
    both.do("get_or_compute_many", ["q"], list)
    lease.abandon()
    both.do("get_or_compute", "q", lambda: "x")

    assert waits == [False, False, True]


async def test_a_task_that_holds_a_lease_waits_for_nobody(monkeypatch):
    """The same for tasks; another task of the loop waits as ever."""
    both = Both(AsyncCache)
    lease = await both.cache.begin("q")
    waits = []

    def seen(state: Any, wanted: Any, *_: Any) -> Any:
        waits.append(wanted.waits)
        return Served("x", Source.HIT)
        yield

    monkeypatch.setattr(_aio.programs, "get_or_compute", seen)
    await both.cache.get_or_compute("q", lambda: "x")
    await asyncio.create_task(both.cache.get_or_compute("q", lambda: "x"))
    await lease.abandon()

    assert waits == [False, True]


# --- Redis away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_without_redis_everything_answers(kind):
    """No server at all: look-ups miss, functions are called, invalidations say that they were not noted."""
    cache = kind(AWAY)

    def do(name: str, *args: Any) -> Any:
        result = getattr(cache, name)(*args)
        return asyncio.run(wait(result)) if kind is AsyncCache else result

    async def wait(result: Any) -> Any:
        return await result

    assert do("lookup", "q") is None
    assert do("get_or_compute", "q", lambda: "an answer") == "an answer"
    assert do("store", "q", "an answer") is False
    assert do("get_many", ["q", "r"]) == [None, None]
    assert do("get_or_compute_many", ["q", "r", "q"], list) == ["q", "r", "q"]
    assert (do("invalidate", "q"), do("invalidate_tag", "a"), do("bump"), do("clear")) == (False, False, 0, 0)
    assert do("explain", "q").key is None
    stats = do("stats")
    assert (stats.fleet, stats.computed, stats.bypassed, stats.hits) == (False, 3, 3, 0)
    assert stats.bypass_reasons == {"backend": 3}


@pytest.mark.parametrize("kind", [Cache, AsyncCache])
def test_counters_wait_for_redis_to_come_back(kind):
    """However long it is away, what happened meanwhile is counted: nothing is dropped with a write that failed."""
    cache = kind(AWAY)
    for number in range(5):
        cache._namespace._flushed = -1000.0  # the counters are due with every write
        if kind is AsyncCache:
            asyncio.run(cache.get_or_compute(number, lambda: "x"))
        else:
            cache.get_or_compute(number, lambda: "x")

    assert cache._namespace.state.counters.peek()["computed"] == 5
    assert cache._namespace.state.counters.peek()["bypassed"] == 5


def test_an_operators_hook_that_fails_costs_no_answer(caplog):
    """What ``on_event`` raises is logged; the call goes on."""
    events = []

    def hear(event: Any) -> None:
        events.append(event.kind)
        raise RuntimeError("the pager is broken")

    cache = Cache("redis://me:s3cret@127.0.0.1:1/0", on_event=hear)

    assert cache.get_or_compute("q", lambda: "x") == "x"
    assert events == ["breaker-opened"]
    assert "s3cret" not in caplog.text
