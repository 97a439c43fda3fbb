"""
Counters: each field of ``Stats`` moves by its rule, and nothing else moves.

Every scenario names all the fields that it moves, so that a counter that moves without reason fails it as well.
"""

import dataclasses
import inspect
import os
import time

import pytest

from askonce import Near, Policy, Refused, Stats, control

from .colours import ask, call_on, close
from .polling import age, registered, until
from .upstream import Gate, counting

WINDOWS = Policy(ttl="1h", stale_while_revalidate="1h", stale_if_error="1d")


def moved(stats):
    """Return the fields of *stats* that are not zero."""
    fields = {field.name: getattr(stats, field.name) for field in dataclasses.fields(Stats)}
    return {name: value for name, value in fields.items() if value and name != "fleet"}


def quota():
    raise RuntimeError("quota")


def refuse(_):
    raise Refused("filtered")


def joined(driver):
    """Return once a caller waits, for a flight of its process or for a message."""
    namespace = driver.cache._namespace

    def waiting():
        flights = list(namespace.state.flights._flights.values())
        return registered(namespace) or any(
            flight.future._done_callbacks or flight.future._condition._waiters for flight in flights
        )

    until(waiting)


# --- one scenario a field ---------------------------------------------------------------------------------------


def a_miss(driver, raw):
    driver.lookup("q")
    return {"misses": 1}


def a_hit(driver, raw):
    driver.store("q", "answer")
    for _ in range(3):
        driver.lookup("q")
    driver.get_or_compute("q", quota)
    driver.begin("q")
    driver.get_many(["q", "q"])
    return {"stored": 1, "hits": 6}


def near_copies(driver, raw):
    driver.store("q", "answer")
    asked = 0
    while not len(driver.cache._namespace.state.near):
        driver.lookup("q")
        asked += 1
    for _ in range(3):
        driver.lookup("q")
    return {"stored": 1, "hits": asked + 3, "near_hits": 3}


def computing(driver, raw):
    driver.get_or_compute("q", lambda: "answer")
    return {"misses": 1, "computed": 1, "stored": 1}


def many(driver, raw):
    driver.store("a", "answer")
    driver.get_or_compute_many(["a", "b", "c", "b"], lambda missing: missing)
    driver.get_many(["a", "b", "x"])
    return {"stored": 3, "hits": 3, "misses": 3, "computed": 2}


def a_failing_function(driver, raw):
    with pytest.raises(RuntimeError):
        driver.get_or_compute("q", quota)
    return {"misses": 1}


def a_begun_computation(driver, raw):
    call_on(driver, driver.begin("q").finish, "answer")
    call_on(driver, driver.begin("p").abandon)
    return {"misses": 2, "computed": 1, "stored": 1}


def a_replacement(driver, raw):
    driver.store("q", "one")
    driver.store("q", "two")
    return {"stored": 2, "replaced": 1}


def a_stale_answer(driver, raw):
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)
    driver.lookup("q")
    driver.serve("q", lambda: "new")
    until(lambda: driver.lookup("q").value == "new")
    before = driver.stats()
    assert before.stale >= 2
    assert before.hits >= 1
    return {"stored": 2, "replaced": 1, "computed": 1, "stale": before.stale, "hits": before.hits}


def a_failing_refresh(driver, raw):
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)
    driver.serve("q", quota)
    until(lambda: driver.stats().refresh_errors)
    return {"stored": 1, "stale": 1, "refresh_errors": 1}


def a_stale_answer_for_an_error(driver, raw):
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 9000)
    driver.serve("q", quota)
    return {"stored": 1, "misses": 1, "stale_if_error": 1}


def a_coalesced_caller(driver, raw):
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = driver.start("serve", "q", gate)
    joined(driver)
    gate.open()
    leading.result(10), following.result(10)
    return {"misses": 2, "computed": 1, "stored": 1, "coalesced": 1}


def a_call_that_may_not_touch_the_cache(driver, raw):
    with control(read=False, write=False):
        ask(driver, "get_or_compute", "q", lambda: "answer")
    return {"bypassed": 1, "bypass_reasons": {"control": 1}, "computed": 1}


def a_call_that_may_not_read(driver, raw):
    with control(read=False):
        ask(driver, "get_or_compute", "q", lambda: "answer")
    return {"computed": 1, "stored": 1}


def an_impatient_caller(driver, raw):
    lease = driver.cache.begin("q") if driver.colour == "threads" else driver.begin("q")
    driver.serve("q", lambda: "answer")
    call_on(driver, lease.abandon)
    return {"misses": 2, "bypassed": 1, "bypass_reasons": {"max_wait": 1}, "computed": 1}


def what_an_adapter_counts(driver, raw):
    driver.cache.bypass("streaming")
    driver.cache.bypass("streaming")
    driver.cache.reject("truncated")
    return {
        "bypassed": 2, "bypass_reasons": {"streaming": 2}, "rejected": 1, "rejection_reasons": {"truncated": 1},
    }  # fmt: skip


def a_refused_answer(driver, raw):
    driver.get_or_compute("q", lambda: "answer", admit=refuse)
    driver.store("q", "answer", admit=refuse)
    return {"misses": 1, "computed": 1, "rejected": 2, "rejection_reasons": {"filtered": 2}}


def a_value_that_cannot_be_encoded(driver, raw):
    driver.get_or_compute("q", object)
    return {"misses": 1, "computed": 1, "uncacheable": 1}


def a_value_too_large(driver, raw):
    driver.store("q", os.urandom(300_000))
    return {"too_large": 1}


def a_late_store(driver, raw):
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    driver.store("q", "faster")
    gate.open()
    leading.result(10)
    return {"misses": 1, "computed": 1, "stored": 1, "fenced_off": 1}


def a_store_after_a_bump(driver, raw):
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    driver.bump()
    gate.open()
    leading.result(10)
    return {"misses": 1, "computed": 1, "outdated": 1}


def evictions(driver, raw):
    for number in range(25):
        driver.store(number, "answer")
    return {"stored": 25, "evicted": 5}


def expirations(driver, raw):
    for number in range(5):
        driver.store(number, "answer", ttl=0.01)
    names = driver.cache._namespace.state.partitions[0].names
    seconds = (
        max(score for _, score in raw.zrange(names.x, 1, -1, withscores=True)) // 2**22
    ) + 1_704_067_200
    until(lambda: raw.time()[0] > seconds)  # the books know seconds
    driver.store("one more", "answer")
    return {"stored": 6, "expired": 5}


def invalidations(driver, raw):
    driver.store("q", "answer")
    driver.invalidate("q")
    driver.invalidate("q")
    driver.store("p", "answer")
    driver.clear()
    return {"stored": 2, "invalidated": 2}


def a_stranger(driver, raw):
    driver.store("q", "answer")
    raw.delete(driver.explain("q").key)
    driver.usage()
    return {"stored": 1, "healed": 1}


def corruption(driver, raw):
    driver.store("q", "answer")
    raw.setrange(driver.explain("q").key, 48, b"?")
    driver.lookup("q")
    return {"stored": 1, "corrupt": 1, "misses": 1}


def an_answer_of_no_use(driver, raw):
    driver.store("q", "short form")
    lease = driver.begin("q", usable=lambda _: False)
    call_on(driver, lease.finish, "long form")
    return {"stored": 2, "replaced": 1, "misses": 1, "computed": 1}


def an_invalidated_tag(driver, raw):
    driver.store("q", "answer", tags=["t"])
    driver.invalidate_tag("t")
    driver.lookup("q")
    return {"stored": 1, "misses": 1}


def an_invalidated_answer(driver, raw):
    driver.store("q", "answer")
    driver.invalidate("q")
    driver.lookup("q")
    driver.get_or_compute("q", lambda: "new")
    return {"stored": 2, "misses": 2, "computed": 1, "invalidated": 1}


def an_error_of_redis(driver, raw):
    driver.store("q", "answer")
    names = driver.cache._namespace.state.partitions[0].names
    raw.delete(names.x)
    raw.rpush(names.x, "a list where a book should be")
    driver.get_or_compute("p", lambda: "answer")
    return {"stored": 1, "misses": 1, "computed": 1, "backend_errors": 1}


WORDS = {
    an_impatient_caller: {"policy": Policy(max_wait=0.05)},
    expirations: {"policy": Policy()},
    near_copies: {"near": Near()},
}
SCENARIOS = [
    a_miss, a_hit, near_copies, computing, many, a_failing_function, a_begun_computation, a_replacement, a_stale_answer,
    a_failing_refresh, a_stale_answer_for_an_error, a_coalesced_caller, a_call_that_may_not_touch_the_cache,
    a_call_that_may_not_read, an_impatient_caller, what_an_adapter_counts, a_refused_answer,
    a_value_that_cannot_be_encoded, a_value_too_large, a_late_store, a_store_after_a_bump, evictions, expirations,
    invalidations, a_stranger, corruption, an_answer_of_no_use, an_invalidated_tag, an_invalidated_answer,
    an_error_of_redis,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_counters_move_by_their_rules(make_driver, raw, scenario):
    """What happened is counted once, under its name, and nothing else is."""
    driver = make_driver(
        **{"policy": WINDOWS, "max_entries": 20, "max_bytes": "256kb", **WORDS.get(scenario, {})}
    )

    expected = scenario(driver, raw)

    assert moved(driver.stats()) == expected


def test_every_field_has_its_scenario():
    """A counter that is added without a test is noticed."""
    told = "".join(inspect.getsource(scenario) for scenario in SCENARIOS)
    for field in dataclasses.fields(Stats):
        assert field.name in told or field.name == "fleet", f"no scenario moves {field.name}"


# --- the whole fleet --------------------------------------------------------------------------------------------


def test_stats_speak_for_the_whole_fleet(make_driver):
    """Both caches report what both did."""
    one, other = make_driver(), make_driver()
    one.store("q", "answer")
    one.lookup("q")
    for _ in range(4):
        other.lookup("q")
    close(other)  # adds what it has counted

    expected = {"stored": 1, "hits": 5}
    assert moved(one.stats()) == moved(other.stats()) == moved(make_driver().stats()) == expected
    assert one.stats().fleet is True


@pytest.mark.slow
def test_counters_reach_redis_within_about_a_second(make_driver):
    """A process that goes on asking is seen by the others without being told to report."""
    busy, watcher = make_driver(), make_driver()
    busy.store("q", "answer")

    def asked():
        busy.lookup("q")
        return watcher.stats().hits

    start = time.monotonic()
    until(asked, pause=0.02)
    assert time.monotonic() - start < 3


@pytest.mark.slow
def test_stats_leave_out_nothing_that_was_just_counted(make_driver):
    """Also at a moment when this process is due to add its counters anyway."""
    driver = make_driver()
    driver.lookup("q")
    start = time.monotonic()
    until(lambda: time.monotonic() - start > 1.1, pause=0.05)
    driver.cache.bypass("streaming")

    assert moved(driver.stats()) == {"misses": 1, "bypassed": 1, "bypass_reasons": {"streaming": 1}}


def test_counters_outlive_their_processes(make_driver):
    """What was counted stays when everybody is gone."""
    driver = make_driver()
    driver.get_or_compute("q", lambda: "answer")
    close(driver)

    assert moved(make_driver().stats()) == {"misses": 1, "computed": 1, "stored": 1}


def test_namespaces_count_apart(make_driver):
    """Versions and scopes of a namespace count together, namespaces do not."""
    make_driver(version="v1").lookup("q")
    driver = make_driver(version="v2")
    driver.lookup("q")
    close(driver)
    make_driver(namespace="other").lookup("q")

    assert make_driver().stats().misses >= 1
    assert make_driver(namespace="third").stats() == Stats()


def test_without_redis_a_process_tells_what_it_has_counted(make_driver):
    """fleet is False, and the numbers are those that could not be added yet."""
    driver = make_driver("redis://127.0.0.1:1/0")
    for number in range(3):
        driver.get_or_compute(number, lambda: "answer")

    stats = driver.stats()

    assert stats.fleet is False
    assert (stats.computed, stats.bypassed, stats.bypass_reasons) == (3, 3, {"backend": 3})
    assert stats.backend_errors >= 3


def test_the_hit_rate_is_the_part_that_was_served(make_driver, raw):
    """Hits and stale answers among all look-ups; zero before the first."""
    driver = make_driver(policy=WINDOWS)
    assert driver.stats().hit_rate == 0.0
    driver.store("q", "answer")
    for request in ("q", "q", "q", "p"):
        driver.lookup(request)
    assert driver.stats().hit_rate == 0.75
    age(raw, driver.explain("q").key, 9000)
    driver.serve("q", counting(error=RuntimeError("quota"))[0])

    assert driver.stats().hit_rate == 0.8


@pytest.mark.slow
def test_what_is_counted_while_redis_is_away_is_not_lost(own_server, make_driver):
    """After an outage of some seconds the fleet knows of every call that was made without the cache."""
    server = own_server()
    driver = make_driver(server.url)
    driver.store("q", "answer")
    driver.stats()
    server.kill()
    end = time.monotonic() + 1.2
    calls = 0
    while time.monotonic() < end:
        driver.get_or_compute("q", lambda: "answer")
        calls += 1
        time.sleep(0.05)
    server.start()

    until(lambda: driver.stats().fleet)
    assert driver.stats().bypassed == calls
