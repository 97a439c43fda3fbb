"""
One computation for all who ask the same at the same time: between threads, tasks and real processes.

Whoever dies, sleeps, fails or is cancelled: everybody else is answered, and the model is called no more than it must.
``-s`` prints what was measured.
"""

import asyncio
import os
import pickle
import random
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.servers import beside

from askonce import AsyncCache, Cache, LeaderFailed, Policy, Refused, Source, scripts
from askonce._wire import listener
from askonce.control import NONE

from . import callers
from .colours import call_on, close
from .polling import registered, until
from .upstream import Gate, counting

pytestmark = pytest.mark.slow
COLOURS = pytest.mark.parametrize("colour", ["threads", "asyncio"])


@pytest.fixture
def calls(url):
    """Returns how often the model was called."""
    with beside(url) as counter:
        yield lambda: int(counter.get("calls") or 0)


@pytest.fixture
def play(crew, url):
    """Let a number of processes ask for one key; returns them while they do."""

    def play(processes, callers_each, **words):
        members = crew.hire(processes)
        for member in members:
            member.start(callers.ask, url=url, processes=processes, callers=callers_each, **words)
        return members

    return play


def finish(crew, members, answers=0):
    """Wait for the processes and for the answers of their callers."""
    for member in members:
        member.result()
    return crew.wait_for("answered", answers)


# --- once -------------------------------------------------------------------------------------------------------


@COLOURS
def test_two_hundred_callers_in_eight_processes_make_one_call(crew, play, calls, colour):
    """8 x 25 callers of a cold key: the model is called once, and all have its answer soon after."""
    members = play(8, 25, colour=colour, upstream={"seconds": 0.6}, policy={"lease": 3})
    answered = finish(crew, members, 200)

    ((landed, leader, _),) = crew.heard("computed")
    assert calls() == 1
    assert len(answered) == 200
    assert {value for _, _, (value, _) in answered} == {"answer 1"}
    sources = [source for _, _, (_, source) in answered]
    assert sources.count("computed") == 1
    assert set(sources) <= {"computed", "coalesced", "hit"}
    waits = sorted((at - landed) * 1000 for at, pid, _ in answered if pid != leader)
    print(
        f"\n{colour}: woken in other processes after {statistics.median(waits):.1f} ms (median), {waits[-1]:.1f} ms (last)"
    )
    assert statistics.median(waits) < 250


def test_a_process_asks_redis_once_for_all_its_callers(url, raw):
    """Fifty threads that wait for another process cost Redis a handful of commands, not fifty."""
    with Cache(url, namespace="test", deadline=2) as one, Cache(url, namespace="test", deadline=2) as other:
        gate, answers = Gate(), []
        leading = threading.Thread(target=lambda: answers.append(one.get_or_compute("q", gate)))
        leading.start()
        gate.wait()
        other.lookup("connect")

        def scripts():
            return raw.info("commandstats")["cmdstat_evalsha"]["calls"]

        before = scripts()
        threads = [
            threading.Thread(target=lambda: answers.append(other.get_or_compute("q", lambda: "never")))
            for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        until(lambda: registered(other._namespace))
        gate.open()
        for thread in (*threads, leading):
            thread.join(10)

        assert answers == ["answer"] * 51
        assert scripts() - before < 10


# --- a leader that dies, sleeps or takes its time ---------------------------------------------------------------


@COLOURS
def test_a_killed_leader_is_replaced_within_its_lease(crew, play, calls, colour, url):
    """SIGKILL in mid-flight: the next leader within lease + 0.5 s, two calls in all, one store, all answered."""
    lease = 1.0
    members = play(4, 3, colour=colour, upstream={"seconds": 0.6}, policy={"lease": lease})
    ((_, pid, _),) = crew.wait_for("computing")
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    death = time.monotonic()
    crew.wait_for("computing", 2)
    (again, _, _) = crew.heard("computing")[1]
    survivors = [member for member in members if member.pid != pid]
    answered = finish(crew, survivors, 9)

    print(f"\n{colour}: next leader {again - death:.2f} s after the death (lease {lease} s)")
    assert again - death <= lease + 2  # `make proofs` prints what it takes
    assert calls() == 2
    assert {value for _, _, (value, _) in answered} == {"answer 2"}
    with Cache(url, namespace="test") as cache:
        assert cache.lookup(callers.QUESTION).value == "answer 2"
        assert (cache.stats().stored, cache.stats().fenced_off) == (1, 0)


def test_a_holder_that_was_killed_is_replaced_within_its_lease(crew, url):
    """The same for a process that died between begin and finish."""
    (member,) = crew.hire(1)
    member.start(callers.hold, url=url, lease=1.0)
    assert crew.wait_for("begun")[0][2] is True
    with Cache(url, namespace="test") as cache:
        os.kill(member.pid, signal.SIGKILL)
        death = time.monotonic()

        assert cache.get_or_compute(callers.QUESTION, lambda: "answer") == "answer"
        assert time.monotonic() - death <= 3  # as above


@COLOURS
def test_a_leader_that_slept_for_three_leases_stores_nothing(crew, play, calls, colour, url, raw):
    """SIGSTOP, three leases, SIGCONT: its late store is refused, and the newer answer with the newer fence stays."""
    lease = 0.5
    members = play(3, 2, colour=colour, upstream={"seconds": 0.4}, policy={"lease": lease})
    ((_, pid, _),) = crew.wait_for("computing")
    os.kill(pid, signal.SIGSTOP)
    try:
        crew.wait_for("answered", 4)
        with Cache(url, namespace="test") as cache:
            key = cache.explain(callers.QUESTION).key
            fence = raw.getrange(key, 8, 15)
        time.sleep(max(0.0, crew.heard("computing")[0][0] + 3 * lease - time.monotonic()))
    finally:
        os.kill(pid, signal.SIGCONT)
    finish(crew, members, 6)

    assert calls() == 2
    assert raw.getrange(key, 8, 15) == fence
    with Cache(url, namespace="test") as cache:
        assert cache.lookup(callers.QUESTION).value == "answer 2"
        stats = cache.stats()
        assert (stats.fenced_off, stats.stored) == (1, 1)


@COLOURS
def test_a_call_longer_than_its_lease_is_made_once(crew, play, calls, colour):
    """The lease is renewed as long as the function runs, even by a process whose event loop is busy."""
    members = play(3, 4, colour=colour, upstream={"seconds": 1.2}, policy={"lease": 0.3})
    answered = finish(crew, members, 12)

    assert calls() == 1
    assert {value for _, _, (value, _) in answered} == {"answer 1"}


def test_without_renewal_the_first_to_finish_serves_everybody(crew, play, calls, url):
    """A lost lease is no reason to refuse an answer: it is stored, so that there is an end to it."""
    start = time.monotonic()
    members = play(4, 1, renew=False, upstream={"seconds": 1.0}, policy={"lease": 0.4})
    answered = finish(crew, members, 4)

    assert max(at for at, _, _ in answered) - start < 2 * 1.0 + 1.5
    assert calls() <= 4
    with Cache(url, namespace="test") as cache:
        assert cache.lookup(callers.QUESTION) is not None
        assert cache.stats().stored >= 1


def test_a_busy_loop_keeps_its_lease(url):
    """A coroutine that blocks its loop for several leases is still the only one to compute."""
    brief = Policy(lease=1.0)
    with Cache(url, namespace="test", policy=brief) as other:

        async def lead():
            async with AsyncCache(url, namespace="test", policy=brief) as cache:

                async def rude():
                    computing.set()
                    time.sleep(3.0)
                    return "rude"

                return await cache.get_or_compute("q", rude)

        computing, led = threading.Event(), []
        thread = threading.Thread(target=lambda: led.append(asyncio.run(lead())))
        thread.start()
        computing.wait(10)
        fn, calls = counting()
        assert other.get_or_compute("q", fn) == "rude"
        thread.join()
        assert (led, calls) == (["rude"], [])


# --- a leader that fails ----------------------------------------------------------------------------------------


@COLOURS
def test_all_who_wait_for_a_failing_call_see_the_error_at_once(crew, play, calls, colour, url):
    """One call, twenty callers, twenty errors within moments; who asks afterwards computes."""
    members = play(4, 5, colour=colour, upstream={"seconds": 1.5, "error": "429"})
    for member in members:
        member.result()
    errors = crew.wait_for("error", 20)

    spread = errors[-1][0] - errors[0][0]
    kinds = {kind for _, _, (kind, _) in errors}
    print(f"\n{colour}: {len(errors)} errors within {spread * 1000:.0f} ms")
    assert calls() == 1
    assert crew.heard("answered") == []
    assert kinds == {"UpstreamError", "LeaderFailed"}
    assert all("429" not in text for _, _, (kind, text) in errors if kind == "LeaderFailed")
    assert spread < 5  # a lease is 10 s
    with Cache(url, namespace="test") as cache:
        assert cache.get_or_compute(callers.QUESTION, lambda: "newcomer's") == "newcomer's"


@COLOURS
def test_an_answer_too_large_to_store_is_computed_side_by_side(crew, play, calls, colour):
    """Those who wait do not queue for the lease one after the other: each computes at once."""
    start = time.monotonic()
    members = play(
        5, 2, colour=colour, upstream={"seconds": 0.5, "size": 40_000}, max_bytes="16kb", policy={"lease": 5}
    )
    answered = finish(crew, members, 10)

    last = answered[-1][0] - min(at for at, _, _ in crew.heard("computing"))
    print(f"\n{colour}: {calls()} calls, the last answer after {last:.2f} s (upstream 0.5 s)")
    assert calls() <= 5  # one a process: within it the answer is shared
    assert last < 2 * 0.5 + 0.8 < 5 * 0.5
    assert time.monotonic() - start < 10


def test_an_answer_that_may_not_be_stored_wakes_who_waits(make_driver):
    """Refused by admission, or impossible to encode: who waits elsewhere computes at once, not after the lease."""

    def refuse(_):
        raise Refused("filtered")

    driver, other = make_driver(), make_driver()
    for value, words in (("refused", {"admit": refuse}), (object(), {})):
        gate = Gate(value)
        leading = driver.start("serve", "q", gate, **words)
        gate.wait()
        following = other.start("serve", "q", lambda: "follower's", **words)
        until(lambda: registered(other.cache._namespace))
        start = time.monotonic()
        gate.open()

        assert leading.result(10).value is value
        assert following.result(10).value == "follower's"
        assert time.monotonic() - start < 3
        driver.invalidate("q")


def test_a_thread_that_is_torn_down_hands_over(url):
    """SystemExit in the leader's function: a follower computes, and nobody waits for the lease to end."""
    with Cache(url, namespace="test", deadline=2) as cache, Cache(url, namespace="test", deadline=2) as other:
        gate = Gate(error=SystemExit())

        def torn_down():
            with pytest.raises(SystemExit):
                cache.get_or_compute("q", gate)

        leading = threading.Thread(target=torn_down)
        leading.start()
        gate.wait()
        served = []
        following = [
            threading.Thread(target=lambda one=one: served.append(one.serve("q", lambda: "follower's")))
            for one in (cache, cache, other)
        ]
        for thread in following:
            thread.start()
        until(lambda: registered(other._namespace))
        start = time.monotonic()
        gate.open()
        for thread in (leading, *following):
            thread.join(10)

        assert [one.value for one in served] == ["follower's"] * 3
        assert [one.source for one in served].count(Source.COMPUTED) == 1
        assert time.monotonic() - start < 3


# --- cancellation -----------------------------------------------------------------------------------------------


class Model:
    """An async upstream that says when it was entered and waits to be released."""

    def __init__(self):
        self.entered, self.released, self.calls = asyncio.Event(), asyncio.Event(), 0

    async def __call__(self):
        self.calls += 1
        number = self.calls
        self.entered.set()
        await self.released.wait()
        return f"answer {number}"


async def eventually(condition):
    """Wait on the loop until *condition* holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
async def pair(url):
    """Two async caches on one namespace, for two processes."""
    async with AsyncCache(url, namespace="test") as one, AsyncCache(url, namespace="test") as other:
        await one.lookup("connect"), await other.lookup("connect")
        yield one, other


def waiting(cache):
    """Return how many callers of *cache* wait for a flight of its process."""
    flights = list(cache._namespace.state.flights._flights.values())
    return sum(len(flight.future._done_callbacks) for flight in flights)


async def test_a_cancelled_leader_hands_over(pair):
    """One follower takes over at once, here or elsewhere; the others wait for it; two calls in all."""
    one, other = pair
    model = Model()
    leader = asyncio.create_task(one.serve("q", model))
    await model.entered.wait()
    followers = [asyncio.create_task(cache.serve("q", model)) for cache in (one, one, other, other)]
    await eventually(lambda: waiting(one) >= 2 and waiting(other) >= 1 and registered(other._namespace))
    model.entered.clear()
    start = time.monotonic()
    leader.cancel()
    await asyncio.wait_for(model.entered.wait(), 5)
    taken_over = time.monotonic() - start
    model.released.set()

    with pytest.raises(asyncio.CancelledError):
        await leader
    served = await asyncio.wait_for(asyncio.gather(*followers), 10)
    print(f"\na cancelled leader was replaced after {taken_over * 1000:.1f} ms")
    assert {one.value for one in served} == {"answer 2"}
    assert [one.source for one in served].count(Source.COMPUTED) == 1
    assert model.calls == 2
    assert taken_over < 2


async def test_a_cancelled_leader_hands_over_between_processes(pair):
    """The same when all who wait are elsewhere."""
    one, other = pair
    model = Model()
    leader = asyncio.create_task(one.serve("q", model))
    await model.entered.wait()
    follower = asyncio.create_task(other.serve("q", model))
    await eventually(lambda: registered(other._namespace))
    model.entered.clear()
    start = time.monotonic()
    leader.cancel()
    await asyncio.wait_for(model.entered.wait(), 5)
    taken_over = time.monotonic() - start
    model.released.set()

    assert (await asyncio.wait_for(follower, 10)).value == "answer 2"
    print(f"\na cancelled leader was replaced elsewhere after {taken_over * 1000:.1f} ms")
    assert taken_over < 2


async def test_a_cancelled_follower_touches_nobody(pair):
    """The leader goes on, the others are served, one call."""
    one, other = pair
    model = Model()
    leader = asyncio.create_task(one.serve("q", model))
    await model.entered.wait()
    followers = [asyncio.create_task(cache.serve("q", model)) for cache in (one, one, one, other, other)]
    await eventually(lambda: waiting(one) >= 3 and waiting(other) >= 1 and registered(other._namespace))
    for impatient in (followers[0], followers[3]):  # the second leads in its process
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
    assert not leader.done()
    model.released.set()

    served = await asyncio.wait_for(asyncio.gather(leader, followers[1], followers[2], followers[4]), 10)
    assert {one.value for one in served} == {"answer 1"}
    assert model.calls == 1


async def test_a_timeout_of_one_caller_is_its_own(pair):
    """asyncio.timeout around a follower ends the follower."""
    one, _ = pair
    model = Model()
    leader = asyncio.create_task(one.serve("q", model))
    await model.entered.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await one.serve("q", model)
    model.released.set()

    assert (await asyncio.wait_for(leader, 10)).value == "answer 1"
    assert model.calls == 1


async def test_a_timeout_error_of_the_function_is_no_patience_of_ours(pair):
    """A model that times out raises TimeoutError at all who wait, as any other error."""
    one, _ = pair
    entered, released = asyncio.Event(), asyncio.Event()

    async def slow():
        entered.set()
        await released.wait()
        raise TimeoutError("the model's own")

    tasks = [asyncio.create_task(one.serve("q", slow))]
    await entered.wait()
    tasks += [asyncio.create_task(one.serve("q", slow)) for _ in range(3)]
    await eventually(lambda: waiting(one) >= 3)
    released.set()

    errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert [str(error) for error in errors] == ["the model's own"] * 4


@pytest.mark.parametrize("script", ["control", "lease", "store"])
async def test_a_caller_that_is_cancelled_while_redis_answers_leaves_no_lease(pair, script):
    """Cancelled between question and answer of any exchange: nobody waits for what it was granted."""
    one, other = pair
    sha = next(known.sha for known in scripts.ALL if known.name == script).encode()
    if script == "control":
        for part in one._namespace.state.partitions:
            part.word = None
    wire = one._namespace.nodes[0].multiplexers.here()
    exchange, met = wire.exchange, []

    def meddled(packed, count):
        future = exchange(packed, count)
        if sha in packed and not met:
            met.append(True)
            task.cancel()
        return future

    wire.exchange = meddled
    fn, calls = counting()
    task = asyncio.create_task(one.serve("q", fn))
    with pytest.raises(asyncio.CancelledError):
        await task
    wire.exchange = exchange
    assert met == [True]

    start = time.monotonic()
    assert await asyncio.wait_for(other.get_or_compute("q", fn), 15) == f"answer {len(calls)}"
    assert time.monotonic() - start < 3  # a lease is 10 s


async def test_a_storm_of_cancellations_leaves_nothing_behind(pair):
    """Three hundred callers, each cancelled at a random moment or not: who stays is answered, and nothing is left."""
    rng = random.Random(5)
    one, other = pair

    async def model():
        await asyncio.sleep(0.003)
        return "answer"

    async def call(number):
        cache = (one, other)[number % 2]
        task = asyncio.create_task(cache.get_or_compute({"n": number % 20}, model))
        if rng.random() < 0.4:
            await asyncio.sleep(rng.random() * 0.006)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"

    async with asyncio.timeout(8):  # a lease that nobody gave back would cost ten seconds
        outcomes = await asyncio.gather(*(call(number) for number in range(300)))

    assert set(outcomes) <= {"answer", "cancelled"}
    for cache in (one, other):
        assert len(cache._namespace.state.flights) == 0
        await eventually(lambda cache=cache: not registered(cache._namespace))
    async with asyncio.timeout(5):
        for number in range(20):
            assert await one.get_or_compute({"n": number}, model) == "answer"


def test_an_answer_at_the_very_end_of_the_patience_is_no_error(url):
    """The leader lands just as a follower gives up waiting: the follower is answered, in one way or the other."""
    with Cache(url, namespace="test") as cache:
        gate, answers = Gate(), []
        leading = threading.Thread(target=lambda: answers.append(cache.get_or_compute("q", gate)))
        leading.start()
        gate.wait()
        (flight,) = cache._namespace.state.flights._flights.values()
        result = flight.future.result

        def meanwhile(seconds=None):
            if seconds is None:
                return result()
            flight.future.result = result
            gate.open()
            leading.join(10)
            raise TimeoutError  # as if the time had been over before

        flight.future.result = meanwhile
        answers.append(cache.get_or_compute("q", lambda: "impatient"))

        assert answers[0] == "answer"
        assert answers[1] in {"answer", "impatient"}


# --- messages and counters that are lost ------------------------------------------------------------------------


def test_a_lost_message_costs_one_lease_at_most(make_driver, monkeypatch):
    """Who is not woken looks again when the lease's time is over."""
    brief = Policy(lease=0.8)
    driver, other = make_driver(policy=brief), make_driver(policy=brief)
    monkeypatch.setattr(other.cache._namespace.nodes[0].listener, "_wake", lambda *_: None)
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = other.start("serve", "q", lambda: "never")
    until(lambda: registered(other.cache._namespace))
    start = time.monotonic()
    gate.open()

    assert leading.result(10).value == following.result(10).value == "answer"
    assert time.monotonic() - start < 5  # patience is 120 s


ENDINGS = {
    "error": lambda lease: (lease.abandon, RuntimeError("quota")),
    "hand-over": lambda lease: (lease.abandon,),
    "answer": lambda lease: (lease.finish, "leader's"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_lost_between_a_question_and_its_waiting(make_driver, ending, monkeypatch):
    """A flight that ends just as somebody makes ready to wait for it ends for this one, too."""
    driver, other = make_driver(), make_driver()
    lease = driver.cache.begin("q") if driver.colour == "threads" else driver.begin("q")
    ours = other.cache._namespace.nodes[0].listener
    register, ended = ours.register, []

    def meanwhile(*args, **words):
        registration = register(*args, **words)
        if not ended:
            ended.append(True)
            call_on(driver, *ENDINGS[ending](lease))
        return registration

    monkeypatch.setattr(ours, "register", meanwhile)
    start = time.monotonic()
    if ending == "error":
        with pytest.raises(LeaderFailed, match="RuntimeError"):
            other.get_or_compute("q", lambda: "follower's")
    else:
        expected = "leader's" if ending == "answer" else "follower's"
        assert other.get_or_compute("q", lambda: "follower's") == expected
    assert ended == [True]
    assert time.monotonic() - start < 3


def test_who_comes_as_the_listener_goes_to_sleep_is_woken(url, raw, names, monkeypatch):
    """A message that falls between the last look of an idle listener and its end wakes its waiter nevertheless."""
    monkeypatch.setattr(listener, "_IDLE_S", 0.2)
    with Cache(url, namespace="test") as cache:
        ours = cache._namespace.nodes[0].listener
        ours.register(names.w, b"first").close()  # awake now, and idle soon
        ends, late = ours._ends, []
        registering = threading.Thread(target=lambda: late.append(ours.register(names.w, b"late")))

        def going():
            if not registering.ident:
                registering.start()
                until(lambda: ours._waiting)
            return ends()

        monkeypatch.setattr(ours, "_ends", going)
        until(lambda: late, 5)
        raw.publish(names.w, b"dlate")

        until(lambda: late[0].woken.done(), 3)


def test_all_caches_of_a_process_wait_on_one_connection(make_driver, raw):
    """Whatever their namespaces; closing one leaves the others subscribed."""
    pairs = [(make_driver(namespace=name), make_driver(namespace=name)) for name in ("one", "two", "three")]
    gates = [Gate() for _ in pairs]
    leading = [driver.start("serve", "q", gate) for (driver, _), gate in zip(pairs, gates, strict=True)]
    for gate in gates:
        gate.wait()
    following = [other.start("serve", "q", lambda: "never") for _, other in pairs]
    until(lambda: len(raw.pubsub_channels("ao:{*}:w")) == 3)

    assert len(raw.client_list(_type="pubsub")) == 1
    gates[0].open()
    assert following[0].result(10).value == "answer"
    for driver in pairs[0]:
        close(driver)
    for gate in gates[1:]:
        gate.open()
    assert [future.result(10).value for future in following + leading] == ["answer"] * 6


async def test_a_caller_that_is_cancelled_while_it_registers_leaves_nothing_behind(pair, monkeypatch):
    """Cancelled before the subscription was there: nobody keeps listening for it."""
    one, other = pair
    model = Model()
    leader = asyncio.create_task(one.serve("q", model))
    await model.entered.wait()
    ours = other._namespace.nodes[0].listener
    register, registering = ours.register, threading.Event()

    def slowly(*args, **words):
        registering.set()
        time.sleep(0.1)
        return register(*args, **words)

    monkeypatch.setattr(ours, "register", slowly)
    follower = asyncio.create_task(other.serve("q", model))
    await eventually(registering.is_set)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    model.released.set()
    await leader
    await asyncio.sleep(0.3)  # for the registration to be made, if it will be

    await eventually(lambda: not ours._waiting)


def test_fences_rise_even_if_the_counter_is_lost(driver, raw, names):
    """A lost counter fences nobody out."""
    fences = []
    for number in range(5):
        driver.get_or_compute({"turn": number}, lambda: "answer")
        fences.append(int(raw.get(names.f)))
        raw.delete(names.f)

    assert fences == sorted(set(fences))
    assert driver.stats().stored == 5


def test_an_error_elsewhere_is_shared_once(make_driver):
    """Who asks after the failure is not answered with an old error, however soon."""
    driver, other = make_driver(), make_driver()
    for _ in range(10):
        with pytest.raises(RuntimeError):
            driver.get_or_compute("q", counting(error=RuntimeError("quota"))[0])
        assert other.get_or_compute("q", lambda: "computed") == "computed"
        driver.invalidate("q")


def test_a_leaders_failure_names_its_type_and_pickles(make_driver):
    """LeaderFailed can cross a process pool of the application's."""
    driver, other = make_driver(), make_driver()
    gate = Gate(error=callers.UpstreamError("secret"))
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = other.start("serve", "q", lambda: "never")
    until(lambda: registered(other.cache._namespace))
    gate.open()

    with pytest.raises(callers.UpstreamError):
        leading.result(10)
    with pytest.raises(LeaderFailed) as caught:
        following.result(10)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.error_type == "tests.contract.callers.UpstreamError"
    assert str(copy) == str(caught.value)
    assert "secret" not in str(copy)


@COLOURS
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_an_error_that_is_not_shared_hands_over(url, colour, elsewhere):
    """With ``share_errors=False`` who waited for a leader that fails computes next, and nobody else raises."""
    with Cache(url, namespace="test", deadline=2) as cache, Cache(url, namespace="test", deadline=2) as other:
        gate = Gate(error=RuntimeError("of the leader alone"))
        second = other if elsewhere else cache

        def ask(cache, fn):
            if colour == "threads":
                return cache.get_or_compute("q", fn, share_errors=False)
            return asyncio.run(
                cache.aio.get_or_compute("q", lambda: asyncio.to_thread(fn), share_errors=False)
            )

        with ThreadPoolExecutor(2) as pool:
            leading = pool.submit(ask, cache, gate)
            gate.wait()
            following = pool.submit(ask, second, lambda: "mine")
            if elsewhere:
                until(lambda: registered(second._namespace))
            else:
                until(lambda: second._namespace.state.counters.peek().get("misses", 0) >= 2)
            gate.open()
            with pytest.raises(RuntimeError):
                leading.result(10)
            assert following.result(10) == "mine"


@COLOURS
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_caller_may_wait_less_than_the_policy(url, colour, elsewhere):
    """``max_wait`` of a call: when it is over, this caller computes alone, and the leader goes on; more is not taken."""
    with Cache(url, namespace="test", deadline=2) as cache, Cache(url, namespace="test", deadline=2) as other:
        gate, second = Gate("slow"), other if elsewhere else cache

        def serve(cache, fn, **words):
            if colour == "threads":
                return cache.serve("q", fn, **words)
            return asyncio.run(cache.aio.serve("q", lambda: asyncio.to_thread(fn), **words))

        with ThreadPoolExecutor(1) as pool:
            leading = pool.submit(serve, cache, gate)
            gate.wait()
            mine = serve(second, lambda: "mine", max_wait=0.05)
            gate.open()
            assert leading.result(10).value == "slow"
        assert (mine.value, mine.source) == ("mine", Source.BYPASSED)
        assert second.lookup("q").value == "slow"
        assert cache._namespace.ask(b"d", Policy(max_wait=1), NONE, max_wait=5).policy.max_wait_s == 1
