"""Callers that make the call themselves: begin, then finish or abandon."""

import asyncio
import gc
import threading
import time

import pytest

from askonce import AsyncCache, AsyncLease, Cache, LeaderFailed, Lease, Policy, Served, Source

from .colours import begin_on, call_on
from .polling import age, registered, until
from .upstream import Gate

BRIEF = Policy(lease=0.2)
PLACES = pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])


def is_lease(outcome):
    """Return whether the caller is to compute."""
    return isinstance(outcome, Lease | AsyncLease)


def hold(driver, request, **words):
    """Begin in the thread of the test, or in a task of its own: nobody else who asks is taken for the holder."""
    return (
        driver.cache.begin(request, **words) if driver.colour == "threads" else driver.begin(request, **words)
    )


def finish(driver, lease, *args, **words):
    """Finish a lease of either colour."""
    return call_on(driver, lease.finish, *args, **words)


def abandon(driver, lease, *args):
    """Abandon a lease of either colour."""
    call_on(driver, lease.abandon, *args)


def waits(driver, callers=1):
    """Return once *callers* of *driver* wait, for a flight of its process or for a message."""
    namespace = driver.cache._namespace

    def waiting():
        flights = list(namespace.state.flights._flights.values())
        joined = [
            len(flight.future._done_callbacks) + len(flight.future._condition._waiters) for flight in flights
        ]
        return registered(namespace) + sum(joined) >= callers

    until(waiting)


# --- begin, finish ----------------------------------------------------------------------------------------------


def test_a_miss_is_a_lease_and_what_it_finishes_is_a_hit(driver):
    """The caller computes between begin and finish; the next begin is served."""
    lease = hold(driver, "q")
    assert is_lease(lease)

    assert finish(driver, lease, "answer") is True

    served = driver.begin("q")
    assert (served.value, served.source) == ("answer", Source.HIT)


def test_what_finish_is_given_holds(driver):
    """ttl and tags may be decided at the end, when the answer is known."""
    finish(driver, hold(driver, "q"), "answer", ttl="1m", tags=["t"])

    assert driver.lookup("q").ttl == pytest.approx(60, abs=1)
    driver.invalidate_tag("t")
    assert driver.lookup("q") is None


def test_a_lease_ends_once(driver):
    """finish after finish, abandon after finish and finish after abandon change nothing."""
    lease = hold(driver, "q")
    assert finish(driver, lease, "first") is True
    assert finish(driver, lease, "second") is False
    abandon(driver, lease, RuntimeError("too late"))
    assert driver.lookup("q").value == "first"

    lease = hold(driver, "p")
    abandon(driver, lease)
    assert finish(driver, lease, "too late") is False
    assert driver.lookup("p") is None


@PLACES
def test_others_wait_for_a_lease_and_share_what_it_finishes(make_driver, elsewhere):
    """begin and get_or_compute elsewhere are served what the holder computes."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = hold(driver, "q")
    computed = []
    asking = other.start("serve", "q", lambda: computed.append(1))
    beginning = other.start("begin", "q")
    waits(other)
    finish(driver, lease, {"answer": 1})

    assert asking.result(10).source in {Source.COALESCED, Source.HIT}
    assert (asking.result().value, beginning.result(10).value) == ({"answer": 1}, {"answer": 1})
    assert asking.result().value is not beginning.result().value
    assert computed == []


@PLACES
def test_begin_waits_for_a_function_that_is_running(make_driver, elsewhere):
    """A begin joins a get_or_compute as another get_or_compute would."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = other.start("begin", "q")
    waits(other)
    gate.open()

    assert leading.result(10).source is Source.COMPUTED
    assert following.result(10).value == "answer"


@pytest.mark.slow
@PLACES
def test_a_lease_is_kept_as_long_as_it_takes(make_driver, elsewhere):
    """A computation of several lease times is renewed: who waits goes on waiting."""
    driver = make_driver(policy=BRIEF)
    other = make_driver(policy=BRIEF) if elsewhere else driver
    lease = hold(driver, "q")
    following = other.start("begin", "q")
    waits(other)
    end = time.monotonic() + 4 * 0.2
    until(lambda: following.done() or time.monotonic() > end)
    assert not following.done()

    finish(driver, lease, "answer")
    assert following.result(10).value == "answer"


def test_an_answer_that_cannot_be_encoded_is_still_shared_in_the_process(driver):
    """finish returns False and raises nothing; a follower in the process has the object itself."""
    lease, thing = hold(driver, "q"), object()
    following = driver.start("serve", "q", lambda: "computed")
    waits(driver)

    assert finish(driver, lease, thing) is False

    assert following.result(10).value is thing
    assert driver.lookup("q") is None
    assert driver.stats().uncacheable == 1


def test_a_lease_may_be_finished_by_another_thread(url):
    """The thread that began is free again, whoever finishes."""
    with Cache(url, namespace="test") as cache:
        lease = cache.begin("q")
        thread = threading.Thread(target=lease.finish, args=("answer",))
        thread.start()
        thread.join()

        assert cache.lookup("q").value == "answer"
        assert not cache._namespace.holds(threading.current_thread())


# --- abandon ----------------------------------------------------------------------------------------------------


@PLACES
def test_an_abandoned_lease_is_handed_over(make_driver, elsewhere):
    """Without an error, one of those who wait computes, at once."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = hold(driver, "q")
    following = other.start("serve", "q", lambda: "follower's")
    waits(other)
    start = time.monotonic()
    abandon(driver, lease)

    assert (following.result(10).value, following.result().source) == ("follower's", Source.COMPUTED)
    assert time.monotonic() - start < 3  # the lease would be 10 s
    assert driver.lookup("q").value == "follower's"


def test_those_who_wait_in_the_process_raise_the_error(driver):
    """The error given to abandon is theirs, as it is."""
    error = RuntimeError("quota")
    lease = hold(driver, "q")
    following = driver.start("serve", "q", lambda: "computed")
    waits(driver)
    abandon(driver, lease, error)

    with pytest.raises(RuntimeError) as caught:
        following.result(10)
    assert caught.value is error
    lease = hold(driver, "q")
    assert is_lease(lease)
    abandon(driver, lease)


def test_those_who_wait_elsewhere_are_told_the_type_of_the_error(make_driver):
    """LeaderFailed names the class; the text, which may quote a credential, stays in the process."""
    driver, other = make_driver(), make_driver()
    lease = hold(driver, "q")
    following = other.start("serve", "q", lambda: "computed")
    waits(other)
    abandon(driver, lease, RuntimeError("key sk-12345 is over its quota"))

    with pytest.raises(LeaderFailed, match="RuntimeError") as caught:
        following.result(10)
    assert caught.value.error_type == "RuntimeError"
    assert "sk-12345" not in str(caught.value)
    assert other.get_or_compute("q", lambda: "newcomer's") == "newcomer's"


@PLACES
def test_an_error_that_is_not_to_be_shared_hands_over(make_driver, elsewhere):
    """share_errors=False: one of those who wait computes for itself."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = hold(driver, "q", share_errors=False)
    following = other.start("serve", "q", lambda: "follower's")
    waits(other)
    abandon(driver, lease, RuntimeError("mine alone"))

    assert following.result(10).value == "follower's"


def test_a_block_abandons_what_it_has_not_finished(driver):
    """As a context manager a lease ends with the block: with its error, or by handing over."""

    def use(lease, error, value):
        with lease:
            if value:
                lease.finish(value)
            if error:
                raise error

    async def ause(lease, error, value):
        async with lease:
            if value:
                await lease.finish(value)
            if error:
                raise error

    use = use if driver.colour == "threads" else ause

    call_on(driver, use, hold(driver, "q"), None, None)
    lease = hold(driver, "q")
    assert is_lease(lease)
    following = driver.start("serve", "q", lambda: "computed")
    waits(driver)
    with pytest.raises(RuntimeError, match="quota"):
        call_on(driver, use, lease, RuntimeError("quota"), None)
    with pytest.raises(RuntimeError, match="quota"):
        following.result(10)
    call_on(driver, use, hold(driver, "q"), None, "answer")
    assert driver.lookup("q").value == "answer"


# --- fail -------------------------------------------------------------------------------------------------------


def fail(driver, lease, error):
    """Fail with a lease of either colour."""
    return call_on(driver, lease.fail, error)


def test_the_last_good_answer_stands_in(make_driver, raw):
    """Within stale_if_error ``fail`` returns it, and counts one miss and one stale answer, and asks nothing again."""
    driver = make_driver(policy=Policy(ttl="1h", stale_if_error="1h"))
    driver.store("q", {"answer": 1})
    age(raw, driver.explain("q").key, 3700)
    lease = hold(driver, "q")
    assert is_lease(lease)

    raw.delete(driver.explain("q").key)
    served = fail(driver, lease, RuntimeError("quota"))

    assert (served.value, served.source, served.ttl) == ({"answer": 1}, Source.STALE_IF_ERROR, 0.0)
    assert 3700 <= served.age < 3800
    stats = driver.stats()
    assert (stats.misses, stats.stale_if_error, stats.hits, stats.stale) == (1, 1, 0, 0)
    assert fail(driver, lease, RuntimeError("again")) is None  # it has ended


@pytest.mark.parametrize("windows", [{}, {"stale_if_error": "1m"}], ids=["no window", "window over"])
def test_nothing_stands_in_beyond_the_window(make_driver, raw, windows):
    """None: the error is the caller's to raise, and the next one leads at once."""
    driver = make_driver(policy=Policy(ttl="1h", **windows))
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)
    lease = hold(driver, "q")

    assert fail(driver, lease, RuntimeError("quota")) is None

    assert driver.stats().stale_if_error == 0
    lease = hold(driver, "q")
    assert is_lease(lease)
    abandon(driver, lease)


@PLACES
def test_a_failure_is_stood_in_for_wherever_it_is_waited_for(make_driver, raw, elsewhere):
    """Those who wait with begin or get_or_compute are served the last good answer too, and none computes."""
    policy = Policy(ttl="1h", stale_if_error="1h")
    driver = make_driver(policy=policy)
    other = make_driver(policy=policy) if elsewhere else driver
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)
    lease = hold(driver, "q")
    computed = []
    waiting = [other.start("begin", "q"), other.start("serve", "q", lambda: computed.append(1))]
    waits(other, callers=2)

    assert fail(driver, lease, RuntimeError("quota")).value == "old"

    for one in waiting:
        assert (one.result(10).value, one.result().source) == ("old", Source.STALE_IF_ERROR)
    assert computed == []


def test_a_failed_revalidation_keeps_others_from_trying(make_driver, raw):
    """Within stale_while_revalidate the stale answer is served to who failed, and for a while to all others."""
    policy = Policy(ttl="1h", stale_while_revalidate="1h")
    driver, other = make_driver(policy=policy), make_driver(policy=policy)
    driver.store("q", "old")
    failures = driver.cache._namespace.state.refresh_failures
    failures[driver.explain("q").fingerprint.encode()] = 5  # after that many the while is half a minute
    age(raw, driver.explain("q").key, 3700)
    lease = hold(driver, "q")
    assert is_lease(lease)

    served = fail(driver, lease, RuntimeError("quota"))

    assert (served.value, served.source) == ("old", Source.STALE)
    assert other.begin("q").source is Source.STALE
    assert driver.stats().refresh_errors == 1


# --- usable, refresh, stale -------------------------------------------------------------------------------------


def test_what_the_caller_cannot_use_is_replaced(driver):
    """usable refuses what is stored: the caller computes, and its answer takes the place."""
    driver.store("q", "short form")

    assert isinstance(driver.begin("q", usable=lambda value: value == "short form"), Served)
    lease = hold(driver, "q", usable=lambda value: value == "long form")
    assert is_lease(lease)
    finish(driver, lease, "long form")

    assert driver.lookup("q").value == "long form"


@PLACES
def test_what_a_follower_cannot_use_costs_it_no_exception(make_driver, elsewhere):
    """Who joins a flight and cannot use what it lands computes by itself."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = hold(driver, "q")
    following = other.start("begin", "q", usable=lambda value: value == "long form")
    waits(other)
    finish(driver, lease, "short form")

    outcome = following.result(10)
    assert is_lease(outcome)
    finish(other, outcome, "long form")
    assert other.lookup("q").value == "long form"


def test_a_refresh_serves_nothing_stored(make_driver):
    """refresh=True is a lease even on a hit; until it is finished the old answer is served to others."""
    driver, other = make_driver(), make_driver()
    driver.store("q", "old")

    lease = hold(driver, "q", refresh=True)

    assert is_lease(lease)
    assert driver.lookup("q").value == other.lookup("q").value == "old"
    finish(driver, lease, "new")
    assert driver.lookup("q").value == other.lookup("q").value == "new"


def test_one_caller_revalidates_a_stale_answer(make_driver, raw):
    """The first begin on a stale entry is a lease, the others are served the stale answer."""
    policy = Policy(ttl="1h", stale_while_revalidate="1h")
    driver, other = make_driver(policy=policy), make_driver(policy=policy)
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)

    lease = hold(driver, "q")

    assert is_lease(lease)
    for one in (driver, other):
        served = one.begin("q")
        assert (served.value, served.source) == ("old", Source.STALE)
    finish(driver, lease, "new")
    assert other.begin("q").value == "new"


# --- never two that wait for each other -------------------------------------------------------------------------


def test_a_thread_that_holds_a_lease_waits_for_nobody(url):
    """[a, a] in one thread: the second begin returns at once, and the caller computes twice."""
    with Cache(url, namespace="test") as cache:
        first = cache.begin("a")
        second = cache.begin("a")

        assert is_lease(first)
        assert is_lease(second)
        assert second.finish("second") is False
        assert first.finish("first") is True
        assert cache.lookup("a").value == "first"


def test_a_thread_that_holds_a_lease_computes_for_itself(url):
    """get_or_compute inside begin and finish, for the same key or one that is led elsewhere, does not wait either."""
    with Cache(url, namespace="test") as cache, Cache(url, namespace="test") as another:
        mine, theirs = cache.begin("a"), another.begin("b")
        start = time.monotonic()

        assert cache.get_or_compute("a", lambda: "mine") == "mine"
        assert cache.get_or_compute("b", lambda: "mine") == "mine"
        assert (
            cache.get_or_compute_many(["a", "b", "c"], lambda missing: [f"my {m}" for m in missing])[2]
            == "my c"
        )
        assert time.monotonic() - start < 5
        assert mine.finish("a") is True
        assert theirs.finish("b") is True
        assert [one.value for one in cache.get_many("abc")] == ["a", "b", "my c"]


async def test_a_task_that_holds_a_lease_waits_for_nobody(url):
    """[a, a] in one task, as in one thread."""
    async with AsyncCache(url, namespace="test") as cache:
        first = await cache.begin("a")
        async with asyncio.timeout(5):
            second = await cache.begin("a")

        assert is_lease(first)
        assert is_lease(second)
        await second.finish("second")
        assert await first.finish("first") is True


@PLACES
def test_crossing_leases_do_not_deadlock(url, elsewhere):
    """One thread wants a then b, the other b then a: both finish."""
    with Cache(url, namespace="test") as cache, Cache(url, namespace="test") as another:
        both = threading.Barrier(2)
        done = []

        def use(mine, wanted):
            leases = [mine.begin(wanted[0])]
            both.wait(10)
            leases.append(mine.begin(wanted[1]))
            for lease, name in zip(leases, wanted, strict=True):
                if is_lease(lease):
                    lease.finish(name)
            done.append(wanted)

        threads = [
            threading.Thread(target=use, args=(cache, "ab")),
            threading.Thread(target=use, args=(another if elsewhere else cache, "ba")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)

        assert sorted(done) == ["ab", "ba"]
        assert [one.value for one in cache.get_many("ab")] == ["a", "b"]


# --- a lease that nobody ends -----------------------------------------------------------------------------------


@PLACES
def test_a_lease_that_was_dropped_is_given_back(make_driver, elsewhere):
    """A holder that was collected holds nobody up for longer than a lease."""
    driver = make_driver(policy=Policy(lease=1.5))
    other = make_driver() if elsewhere else driver
    lease = hold(driver, "q")
    following = other.start("serve", "q", lambda: "follower's")
    waits(other)
    start = time.monotonic()
    del lease
    gc.collect()

    assert following.result(10).value == "follower's"
    assert time.monotonic() - start < 5  # patience is 120 s


def test_a_lease_that_was_dropped_is_not_held(make_driver, url):
    """The thread that dropped it waits for others again."""
    words = {"namespace": "test", "deadline": 5.0}
    with Cache(url, **words) as cache, Cache(url, **words) as other:
        lease = cache.begin("dropped")
        del lease
        gc.collect()

        theirs = other.begin("q")
        found = []
        thread = threading.Timer(0.3, theirs.finish, ["theirs"])
        thread.start()
        found.append(cache.begin("q"))
        thread.join()
        assert isinstance(found[0], Served)
        assert found[0].value == "theirs"


def test_a_dead_holder_is_waited_for_one_lease(make_driver, raw, names):
    """A lease whose holder is gone for good ends by itself."""
    driver = make_driver(policy=BRIEF)
    generation = driver.explain("q").generation
    digest = driver.explain("q").fingerprint.encode()
    raw.set(names.k + digest, b"%d:%d:someone" % (generation, 1), px=300)
    start = time.monotonic()

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert 0.2 < time.monotonic() - start < 2.0


def test_patience_ends(make_driver):
    """max_wait: who has waited long enough computes without the cache, is counted, and disturbs nobody."""
    driver, other = make_driver(), make_driver(policy=Policy(max_wait=0.2))
    lease = hold(driver, "q")
    start = time.monotonic()

    for one, reason in ((other, "not granted"), (make_driver(policy=Policy(max_wait=0)), "not granted")):
        served = one.serve("q", lambda: "impatient")
        assert (served.value, served.source) == ("impatient", Source.BYPASSED)
        assert one.stats().bypass_reasons.get(reason, 0) >= 1
    assert time.monotonic() - start < 5
    assert finish(driver, lease, "answer") is True
    assert other.lookup("q").value == "answer"


def test_patience_with_the_own_process_ends_too(make_driver):
    """The same for a flight of the process."""
    driver = make_driver(policy=Policy(max_wait=0.2))
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()

    served = driver.serve("q", lambda: "impatient")

    assert (served.value, served.source) == ("impatient", Source.BYPASSED)
    assert driver.stats().bypass_reasons == {"max_wait": 1}
    gate.open()
    assert leading.result(10).source is Source.COMPUTED


def test_many_leases_may_be_held_at_once(driver):
    """Fifty leases of one caller are finished in any order."""
    futures = [begin_on(driver, driver.cache.begin, number) for number in range(50)]
    leases = [future.result(10) for future in futures]
    assert all(map(is_lease, leases))
    for number in reversed(range(50)):
        finish(driver, leases[number], number)

    assert [one.value for one in driver.get_many(range(50))] == list(range(50))
