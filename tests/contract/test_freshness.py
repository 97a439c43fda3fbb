"""
How long an answer is served: lifetimes, the two stale windows, and what happens at their edges.

Entries are aged by rewriting the times in their headers, so that nothing here waits for a clock.
"""

import asyncio
import threading
import time
from concurrent.futures import wait

import pytest

from askonce import AsyncCache, Hot, Policy, Refused, Source

from .colours import close
from .polling import age, until
from .upstream import Gate, counting

ONE_HOUR = Policy(ttl="1h")
REVALIDATED = Policy(ttl="1h", stale_while_revalidate="10m")
LENIENT = Policy(ttl="1h", stale_if_error="1d")


@pytest.fixture
def put(raw):
    """Store a value for ``q``, so and so many seconds ago."""

    def put(driver, seconds_ago, value="old", **words):
        assert driver.store("q", value, **words)
        age(raw, driver.explain("q").key, seconds_ago)

    return put


def fails(message="quota"):
    """Return a function that raises."""
    return counting(error=RuntimeError(message))[0]


# --- fresh ------------------------------------------------------------------------------------------------------


def test_age_and_ttl_are_those_of_the_entry(make_driver, put):
    """After ten minutes of an hour an answer is 600 s old and fresh for 3000 s more."""
    driver = make_driver(policy=ONE_HOUR)
    put(driver, 600)

    served = driver.lookup("q")

    assert served.source is Source.HIT
    assert served.age == pytest.approx(600, abs=2)
    assert served.ttl == pytest.approx(3000, abs=2)


def test_an_answer_past_its_ttl_is_computed_anew(make_driver, put):
    """Without windows, an expired answer is a miss for lookup and is replaced by the next computation."""
    driver = make_driver(policy=ONE_HOUR)
    put(driver, 3601)
    fn, calls = counting(value="new")

    assert driver.lookup("q") is None
    assert driver.serve("q", fn).source is Source.COMPUTED
    assert driver.lookup("q").value == "new 1"
    assert len(calls) == 1


def test_redis_drops_an_entry_by_itself(driver, raw):
    """An answer of 30 ms is gone from Redis soon after, whether or not anybody asks."""
    driver.store("q", "answer", ttl=0.03)
    key = driver.explain("q").key

    until(lambda: not raw.exists(key))
    assert driver.lookup("q") is None


def test_a_short_ttl_ends_on_time(driver):
    """An answer is served as fresh for its ttl and no longer."""
    driver.store("q", "answer", ttl=0.25)
    start = time.monotonic()
    until(lambda: driver.lookup("q") is None)

    assert 0.2 <= time.monotonic() - start < 2.0


@pytest.mark.parametrize(
    ("policy", "retained"),
    [
        (Policy(ttl=100), 100),
        (Policy(ttl=100, stale_while_revalidate=50), 150),
        (Policy(ttl=100, stale_if_error=300), 400),
        (Policy(ttl=100, stale_while_revalidate=500, stale_if_error=300), 600),
    ],
)
def test_redis_keeps_an_entry_for_its_ttl_and_the_longest_window(make_driver, raw, policy, retained):
    """Retention is the freshness lifetime plus the longer of the stale windows."""
    driver = make_driver(policy=policy)
    driver.store("q", "answer")

    assert raw.pttl(driver.explain("q").key) == pytest.approx(retained * 1000, abs=2000)


def test_the_callers_ttl_wins_over_the_policys(make_driver):
    """ttl= of a call replaces the policy's; admission's replaces both."""
    driver = make_driver(policy=ONE_HOUR)

    driver.get_or_compute("a", lambda: "answer", ttl="2h")
    driver.store("b", "answer", ttl="2h")
    driver.get_or_compute("c", lambda: "answer", ttl="2h", admit=lambda _: "3h")

    ttls = [driver.lookup(name).ttl for name in "abc"]
    assert ttls == pytest.approx([7200, 7200, 10800], abs=5)


def test_jitter_shortens_and_never_prolongs(make_driver):
    """With jitter 0.5 lifetimes spread between half the ttl and the ttl."""
    driver = make_driver(policy=Policy(ttl=1000, jitter=0.5))
    for number in range(40):
        driver.store(number, "answer")

    ttls = [driver.lookup(number).ttl for number in range(40)]

    assert all(495 <= ttl <= 1001 for ttl in ttls)
    assert max(ttls) - min(ttls) > 100


# --- stale-while-revalidate -------------------------------------------------------------------------------------


def test_a_stale_answer_is_served_at_once_and_refreshed_behind_the_caller(make_driver, put):
    """Within the window nobody waits: the old answer is served, the function is called once, then the new one hits."""
    driver = make_driver(policy=REVALIDATED)
    put(driver, 3660)
    gate = Gate("new")

    served = driver.serve("q", gate)
    gate.wait()
    others = [driver.serve("q", gate) for _ in range(5)]
    gate.open()
    until(lambda: driver.lookup("q").source is Source.HIT)

    assert [(one.value, one.source) for one in (served, *others)] == [("old", Source.STALE)] * 6
    assert served.age == pytest.approx(3660, abs=2)
    assert served.ttl == 0.0
    assert driver.lookup("q").value == "new"
    assert gate.calls == 1


def test_one_process_of_the_fleet_refreshes(make_driver, put):
    """While one cache refreshes, another one serves the stale answer and calls nothing."""
    one, other = make_driver(policy=REVALIDATED), make_driver(policy=REVALIDATED)
    put(one, 3660)
    gate, (unwanted, calls) = Gate("new"), counting()

    assert one.serve("q", gate).source is Source.STALE
    gate.wait()
    assert other.serve("q", unwanted).source is Source.STALE
    gate.open()
    until(lambda: other.lookup("q").value == "new")

    assert calls == []


def test_a_storm_of_callers_on_a_stale_answer_makes_one_call(make_driver, put):
    """Forty callers in two caches are all served the stale answer or the new one, by one call."""
    drivers = [make_driver(policy=REVALIDATED) for _ in range(2)]
    put(drivers[0], 3660)
    gate = Gate("new")

    futures = [drivers[number % 2].start("serve", "q", gate) for number in range(40)]
    wait(futures, 10)
    gate.open()

    assert {future.result(0).source for future in futures} == {Source.STALE}
    until(lambda: drivers[1].lookup("q").value == "new")
    assert gate.calls == 1


def test_a_lookup_serves_a_stale_answer_and_refreshes_nothing(make_driver, put):
    """lookup has no function to call; it says that the answer is stale."""
    driver = make_driver(policy=REVALIDATED)
    put(driver, 3660)

    for _ in range(2):
        assert (driver.lookup("q").value, driver.lookup("q").source) == ("old", Source.STALE)


@pytest.mark.slow
def test_a_failing_refresh_leaves_the_stale_answer(make_driver, put):
    """Behind a stale answer an error reaches nobody: it is counted, and some time later another ask tries again."""
    driver = make_driver(policy=REVALIDATED)
    put(driver, 3660)

    assert driver.serve("q", fails()).value == "old"
    until(lambda: driver.stats().refresh_errors == 1)
    until(lambda: driver.serve("q", lambda: "new").value == "new")


def test_a_refresh_may_be_refused_by_admission(make_driver, put):
    """A refreshed answer that may not be stored leaves the old one where it is."""

    def admit(_):
        raise Refused("filtered")

    driver = make_driver(policy=REVALIDATED)
    put(driver, 3660)
    driver.serve("q", lambda: "new", admit=admit)

    until(lambda: driver.stats().rejected == 1)
    assert driver.lookup("q").value == "old"


def test_past_the_window_callers_wait(make_driver, put):
    """An answer older than ttl and window is not served."""
    driver = make_driver(policy=REVALIDATED)
    put(driver, 3600 + 601)

    assert driver.lookup("q") is None
    assert driver.serve("q", lambda: "new").value == "new"


# --- stale-if-error ---------------------------------------------------------------------------------------------


def test_the_last_good_answer_stands_in_for_an_error(make_driver, put):
    """When computing fails within the window, the expired answer is served and says so."""
    driver = make_driver(policy=LENIENT)
    put(driver, 7200)

    served = driver.serve("q", fails())

    assert (served.value, served.source) == ("old", Source.STALE_IF_ERROR)
    assert served.age == pytest.approx(7200, abs=2)
    assert driver.get_or_compute("q", fails()) == "old"


def test_an_expired_answer_is_not_served_without_need(make_driver, put):
    """lookup does not serve it, and a computation that succeeds replaces it."""
    driver = make_driver(policy=LENIENT)
    put(driver, 7200)

    assert driver.lookup("q") is None
    assert driver.serve("q", lambda: "new").source is Source.COMPUTED
    assert driver.lookup("q").value == "new"


def test_past_the_window_the_error_is_raised(make_driver, put):
    """A window of a day ends after a day."""
    driver = make_driver(policy=LENIENT)
    put(driver, 3600 + 86_401)

    with pytest.raises(RuntimeError, match="quota"):
        driver.get_or_compute("q", fails())


def test_without_a_window_the_error_is_raised(make_driver, put):
    """Nothing is served for which nobody allowed it."""
    driver = make_driver(policy=ONE_HOUR)
    put(driver, 3601)

    with pytest.raises(RuntimeError, match="quota"):
        driver.get_or_compute("q", fails())


def test_all_who_waited_are_served_the_last_good_answer(make_driver, put):
    """One failing call, ten callers: each is served the answer of yesterday."""
    driver = make_driver(policy=LENIENT)
    put(driver, 7200)
    gate = Gate(error=RuntimeError("quota"))

    futures = [driver.start("serve", "q", gate)]
    gate.wait()
    futures += [driver.start("serve", "q", gate) for _ in range(9)]
    gate.open()

    assert {future.result(10).source for future in futures} == {Source.STALE_IF_ERROR}


def test_both_windows_work_together(make_driver, put):
    """First refreshed behind the caller, later served only if computing fails."""
    driver = make_driver(policy=Policy(ttl="1h", stale_while_revalidate="10m", stale_if_error="1d"))

    put(driver, 3700)
    assert driver.serve("q", fails()).source is Source.STALE
    until(lambda: driver.stats().refresh_errors == 1)
    put(driver, 3600 + 700)
    assert driver.lookup("q") is None
    assert driver.serve("q", fails()).source is Source.STALE_IF_ERROR


# --- whose policy -----------------------------------------------------------------------------------------------


def test_the_readers_windows_decide(make_driver, put):
    """A stale answer is served by a cache that allows it, and by no other."""
    lenient, severe = make_driver(policy=REVALIDATED), make_driver(policy=ONE_HOUR)
    put(lenient, 3660)

    assert lenient.lookup("q").source is Source.STALE
    assert severe.lookup("q") is None


def test_a_step_of_the_local_clock_makes_nothing_fresh_or_stale(make_driver, monkeypatch):
    """Ages are told by the server's clock: this machine's may be a year off."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 365 * 86_400)
    driver = make_driver(policy=ONE_HOUR)
    driver.store("q", "answer")

    served = driver.lookup("q")
    assert (served.age, served.ttl) == pytest.approx((0, 3600), abs=5)


def test_an_answer_is_never_fresh_for_longer_than_its_ttl(make_driver):
    """A reader whose idea of the server's clock lags by some milliseconds reports no more than the whole ttl."""
    driver = make_driver(policy=ONE_HOUR)
    driver.store("q", "answer")
    driver.cache._namespace.clock.offset_ms -= 20

    assert driver.lookup("q").ttl <= 3600
    assert driver.lookup("q").age == 0.0


# --- hot answers ------------------------------------------------------------------------------------------------


HOT = Policy(ttl="1h", hot=Hot(threshold=4, window="1h", ttl="6h", max_age="8h"))


def test_an_answer_that_is_asked_for_often_is_kept_longer(make_driver, put):
    """At the threshold of uses, by the whole fleet, it is fresh for the hot ttl from now."""
    one, other = make_driver(policy=HOT), make_driver(policy=HOT)
    put(one, 0)

    for _ in range(3):
        one.lookup("q")
    assert one.lookup("q").ttl < 3601
    other.lookup("q")

    until(lambda: one.lookup("q").ttl > 5 * 3600)
    assert one.lookup("q").ttl == pytest.approx(6 * 3600, abs=5)


def test_a_hot_answer_is_never_kept_beyond_its_greatest_age(make_driver, put):
    """However often it is asked for, it ends ``max_age`` after it was stored."""
    driver = make_driver(policy=HOT)
    put(driver, 3000)  # fresh for ten minutes more

    until(lambda: driver.lookup("q").ttl > 2 * 3600)
    for _ in range(20):
        driver.lookup("q")
    served = driver.lookup("q")
    assert served.age + served.ttl <= 8 * 3600 + 2


def test_a_hot_answer_near_its_greatest_age_is_kept_for_the_rest(make_driver, put):
    """Seven and a half hours old of eight: half an hour more, and no longer."""
    driver = make_driver(policy=HOT)
    put(driver, 7.5 * 3600, ttl=7.6 * 3600)

    until(lambda: driver.lookup("q").ttl > 1000)
    for _ in range(20):
        driver.lookup("q")
    assert driver.lookup("q").ttl == pytest.approx(1800, abs=5)


def test_what_is_rarely_asked_for_keeps_its_life(make_driver, put):
    """Below the threshold nothing changes."""
    driver = make_driver(policy=Policy(ttl="1h", hot=Hot(threshold=100)))
    put(driver, 0)

    for _ in range(30):
        driver.lookup("q")
    close(driver)  # waits for what runs in the background

    assert driver.lookup("q").ttl < 3601


def test_the_books_follow_a_hot_answer(make_driver, put, raw, names):
    """Header, Redis's own expiry and the books move together."""
    driver = make_driver(policy=HOT)
    put(driver, 0)
    until(lambda: driver.lookup("q").ttl > 5 * 3600)

    (score,) = (score for member, score in raw.zrange(names.x, 0, -1, withscores=True) if member != b"#")
    recorded = (int(score) >> 22) + 1_704_067_200 - raw.time()[0]
    assert recorded == pytest.approx(6 * 3600, abs=5)
    assert raw.pttl(driver.explain("q").key) == pytest.approx(6 * 3_600_000, abs=5000)
    assert driver.usage().entries == 1


# --- early refresh ----------------------------------------------------------------------------------------------


def test_an_answer_may_be_refreshed_before_it_ends(make_driver, put):
    """Near its end, a fresh answer is served as a hit and refreshed behind the caller, by one of them."""
    driver = make_driver(policy=Policy(ttl="1h", early=100))
    put(driver, 3598, cost=60)  # two seconds left of an answer that took a minute
    fn, calls = counting(value="new")

    served = [driver.serve("q", fn) for _ in range(5)]
    until(lambda: driver.lookup("q").value == "new 1")

    assert {one.source for one in served} == {Source.HIT}
    assert served[0].value == "old"
    assert len(calls) == 1


def test_without_the_rule_nothing_is_refreshed_early(make_driver, put):
    """early=0, the default, calls nothing as long as the answer is fresh."""
    driver = make_driver(policy=ONE_HOUR)
    put(driver, 3590, cost=60)
    fn, calls = counting(value="new")

    assert driver.serve("q", fn).value == "old"
    close(driver)
    assert calls == []


@pytest.mark.parametrize("turns", range(4))
def test_a_loop_may_end_right_after_a_stale_answer(make_driver, put, url, turns):
    """Its refresh ends with it, wherever it was; nothing waits for ever."""
    put(make_driver(policy=REVALIDATED), 3700)

    async def main():
        cache = AsyncCache(url, namespace="test", policy=REVALIDATED, deadline=2.0)
        served = await cache.serve("q", lambda: asyncio.sleep(0, "new"))
        assert served.source is Source.STALE
        for _ in range(turns):
            await asyncio.sleep(0)
        ended.append(True)

    ended = []
    running = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    running.start()
    running.join(10)
    assert not running.is_alive()
    assert ended
