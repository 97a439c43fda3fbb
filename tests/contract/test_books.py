"""
The books: how many entries there are, how large they are, which was used least recently.

Bounds are the namespace's own, kept in Redis by eviction of the least recently used, whatever the server's maxmemory.
"""

import asyncio
import os
import random
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from askonce import AsyncCache, Cache, Policy

from .audit import OVERHEAD, UNIT, Auditor, Books, Entries, units
from .colours import call_on
from .polling import tick, until


@pytest.fixture
def auditor(raw):
    """Audits the namespace of the drivers."""
    return Auditor(raw, "test")


def exact(auditor):
    """Check that the books agree with themselves and with the entries; return their number and units."""
    books, entries = auditor.books(), auditor.entries()
    assert (books.counted, books.only_x, books.only_l) == (books.summed, 0, 0)
    assert entries == Entries(dead=0, unrecorded=0, wrong=0)
    return books.in_x, books.counted


def stored(raw, names):
    """Return the number of stored bytes and entries."""
    keys = [key for key in raw.scan_iter(names.e + b"*") if raw.strlen(key) > 48]
    return len(keys), sum(units(raw.strlen(key)) for key in keys) * UNIT


def present(driver, requests):
    """Return which of *requests* are in Redis, without touching any."""
    return [request for request in requests if driver.raw.exists(driver.explain(request).key)]


@pytest.fixture
def bounded(make_driver, raw):
    """Make drivers that know a plain client, for looking without touching."""

    def make(**words):
        driver = make_driver(**words)
        driver.raw = raw
        return driver

    return make


# --- usage ------------------------------------------------------------------------------------------------------


def test_usage_is_exact(driver, raw, names, auditor):
    """Entries and bytes are those in Redis: 64-byte units of stored length plus overhead."""
    for number, size in enumerate((1, 63, 64, 100, 5_000, 60_000)):
        driver.store(number, os.urandom(size))

    usage = driver.usage()

    assert (usage.entries, usage.bytes) == stored(raw, names)
    assert (usage.max_entries, usage.max_bytes) == (10_000, 512 << 20)
    exact(auditor)


def test_a_unit_is_64_bytes_of_length_and_overhead(driver):
    """One byte more than fills a unit costs the next."""
    full = 10 * UNIT - OVERHEAD - 48 - 5
    driver.store("q", os.urandom(full))
    assert driver.usage().bytes == 10 * UNIT
    driver.store("q", os.urandom(full + 1))
    assert driver.usage().bytes == 11 * UNIT


def test_an_empty_namespace_holds_nothing(driver):
    """Neither before the first store nor after the last entry is gone."""
    assert (driver.usage().entries, driver.usage().bytes) == (0, 0)
    driver.store("q", "answer")
    driver.invalidate("q")
    assert (driver.usage().entries, driver.usage().bytes) == (0, 0)


def test_tags_count_as_bytes(driver, raw, names, auditor):
    """What stands in an entry is counted, whatever it is."""
    driver.store("q", "answer", tags=[f"tag {number}" for number in range(100)])

    assert driver.usage().bytes == stored(raw, names)[1] > 100 * 8
    exact(auditor)


def test_overwrites_count_once(driver, auditor):
    """An entry that is replaced by a larger or smaller one counts as the last."""
    for size in (10, 50_000, 300, 7_000, 1):
        driver.store("q", os.urandom(size))
        assert exact(auditor) == (1, units(48 + 5 + size))


def test_every_way_to_write_is_in_the_books(driver, auditor):
    """store, get_or_compute, get_or_compute_many and finish."""
    driver.store("a", os.urandom(100))
    driver.get_or_compute("b", lambda: os.urandom(200))
    driver.get_or_compute_many("cd", lambda _: [os.urandom(300), os.urandom(400)])
    call_on(driver, driver.begin("e").finish, os.urandom(500))

    assert exact(auditor) == (5, sum(units(48 + 5 + 100 * n) for n in range(1, 6)))


# --- the least recently used goes -------------------------------------------------------------------------------


def test_the_least_recently_used_entry_goes_first(bounded):
    """At the bound each store evicts exactly one, in the order of last use."""
    driver = bounded(max_entries=5)
    for name in "abcde":
        driver.store(name, name)
        tick(driver.raw)
    for name in "cae":
        driver.lookup(name)
        tick(driver.raw)

    for new, expected in (("f", "acdef"), ("g", "acefg"), ("h", "aefgh"), ("i", "efghi"), ("j", "fghij")):
        driver.store(new, new)
        tick(driver.raw)
        assert "".join(present(driver, "abcdefghij")) == expected


USES = {
    "lookup": lambda driver: driver.lookup("a"),
    "get_or_compute": lambda driver: driver.get_or_compute("a", lambda: "never"),
    "get_many": lambda driver: driver.get_many(["nothing", "a"]),
    "get_or_compute_many": lambda driver: driver.get_or_compute_many(["a"], lambda _: ["never"]),
    "begin": lambda driver: driver.begin("a"),
    "store": lambda driver: driver.store("a", "again"),
}


@pytest.mark.parametrize("use", USES)
def test_every_way_to_use_an_entry_spares_it(bounded, use):
    """What was just used is not evicted, however it was used."""
    driver = bounded(max_entries=4)
    for name in "abcd":
        driver.store(name, name)
        tick(driver.raw)

    USES[use](driver)
    tick(driver.raw)
    driver.store("e", "e")

    assert "".join(present(driver, "abcde")) == "acde"


def test_what_is_looked_at_is_not_used(bounded):
    """explain, usage and stats touch nothing."""
    driver = bounded(max_entries=4)
    for name in "abcd":
        driver.store(name, name)
        tick(driver.raw)

    driver.explain("a"), driver.usage(), driver.stats()
    tick(driver.raw)
    driver.store("e", "e")

    assert "".join(present(driver, "abcde")) == "bcde"


def test_bytes_are_bounded_by_the_same_order(bounded, auditor):
    """A large entry evicts as many of the least recently used as it needs, and no more."""
    size = 40 * UNIT - OVERHEAD - 48 - 5  # 40 units each
    driver = bounded(max_bytes=5 * 40 * UNIT)
    for name in "abcde":
        driver.store(name, os.urandom(size))
        tick(driver.raw)
    driver.lookup("a")
    tick(driver.raw)

    driver.store("f", os.urandom(size * 2))  # about 74 units: two must go

    assert "".join(present(driver, "abcdef")) == "adef"
    assert exact(auditor)[1] <= 5 * 40


def test_an_entry_of_the_bounds_size_stands_alone(bounded, auditor):
    """It evicts everything else; one unit more is refused."""
    bound = 200 * UNIT
    driver = bounded(max_bytes=bound)
    for number in range(20):
        driver.store(number, os.urandom(100))
    largest = bound - OVERHEAD - 48 - 5
    tick(driver.raw)

    assert driver.store("large", os.urandom(largest)) is True
    assert exact(auditor) == (1, 200)
    assert driver.store("larger", os.urandom(largest + 1)) is False
    assert exact(auditor) == (1, 200)


def test_two_processes_share_one_order(bounded):
    """What one uses the other does not evict."""
    one, other = bounded(max_entries=4), bounded(max_entries=4)
    for name in "abcd":
        one.store(name, name)
        tick(one.raw)
    other.lookup("a")
    tick(one.raw)

    one.store("e", "e")
    tick(one.raw)
    other.store("f", "f")

    assert "".join(present(one, "abcdef")) == "adef"


# --- bounds hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [{"max_entries": 1}, {"max_entries": 7}, {"max_bytes": "40kb"}], ids=str)
def test_bounds_hold_after_every_store(bounded, auditor, bound):
    """Stores of every size, new and again: never an entry or a byte too many."""
    driver = bounded(**bound)
    rng = random.Random(3)
    entries, most = bound.get("max_entries", 10_000), 40 * 1024 // UNIT if "max_bytes" in bound else 1 << 30
    for _ in range(150):
        driver.store(rng.randrange(40), os.urandom(int(rng.lognormvariate(6, 1.5)) % 30_000))
        books = auditor.books()
        assert books.in_x <= entries
        assert books.counted <= most
        assert books.counted == books.summed
    exact(auditor)


def test_the_first_store_of_a_new_process_holds_the_bound(bounded, auditor):
    """It knows no victims yet, and still leaves nothing over the bound."""
    first = bounded(max_entries=10)
    for number in range(10):
        first.store(number, "answer")

    for number in range(5):
        driver = bounded(max_entries=10)
        driver.store(f"new {number}", "answer")
        assert auditor.books().in_x == 10
    exact(auditor)


@pytest.mark.parametrize("lowered", [{"max_entries": 30}, {"max_bytes": "30kb"}], ids=str)
def test_a_lowered_bound_drains(bounded, auditor, lowered):
    """A process with a smaller bound brings the namespace down to it, soon after its first store."""
    driver = bounded()
    driver.get_or_compute_many(range(700), lambda missing: [os.urandom(200) for _ in missing])
    assert auditor.books().in_x == 700
    most = lowered.get("max_entries", 30 * 1024 // units(48 + 5 + 200) // UNIT)

    smaller = bounded(**lowered)
    smaller.store("one more", os.urandom(200))

    until(lambda: auditor.books().in_x <= most)
    assert most - 3 <= exact(auditor)[0] <= most
    assert smaller.lookup("one more") is not None


def test_a_raised_bound_is_used(bounded, auditor):
    """The bound is the caller's, not a property of what is stored."""
    smaller = bounded(max_entries=10)
    for number in range(12):
        smaller.store(number, "answer")
    larger = bounded(max_entries=25)
    for number in range(12, 27):
        larger.store(number, "answer")

    assert exact(auditor)[0] == 25


def test_writers_at_once_stay_near_the_bound(url, auditor):
    """Eight threads in two caches store as fast as they can: never more over than there are writers."""
    caches = [Cache(url, namespace="test", max_entries=50, max_bytes="200kb") for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:

        def write(writer):
            rng = random.Random(writer)
            most = 0
            for _ in range(120):
                caches[writer % 2].store(rng.randrange(300), os.urandom(rng.randrange(6000)))
                most = max(most, auditor.books().in_x)
            return most

        assert max(pool.map(write, range(8))) <= 50 + 8
    for cache in caches:
        cache.close()
    in_x, counted = exact(auditor)
    assert in_x <= 50
    assert counted * UNIT <= 200 * 1024


# --- expiry, strangers ------------------------------------------------------------------------------------------


def test_expired_entries_leave_the_books(driver, auditor, raw):
    """The next store, and usage, take out what Redis has dropped."""
    for number in range(30):
        driver.store(number, "answer", ttl=0.02)
    driver.store("stays", "answer")
    keys = [driver.explain(number).key for number in range(30)]
    until(lambda: not raw.exists(*keys))

    assert driver.usage().entries == 1
    exact(auditor)


@pytest.mark.slow
def test_stores_sweep_what_has_expired(driver, auditor, raw, names):
    """Without anybody asking for usage: a store takes out more than it puts in."""
    driver.get_or_compute_many(range(40), lambda missing: ["answer"] * 40, ttl=0.01)
    last = max(score for _, score in raw.zrange(names.x, 1, -1, withscores=True)) // 2**22 + 1_704_067_200
    until(lambda: raw.time()[0] > last)

    for number in range(4):
        driver.store(f"new {number}", "answer")

    assert exact(auditor)[0] == 4


def test_a_foreign_delete_heals(driver, auditor, raw):
    """An entry that somebody deleted is noticed when it is asked for, and the next store corrects the books."""
    for name in "abc":
        driver.store(name, name)
    raw.delete(driver.explain("a").key)
    tick(raw)  # a touch in the millisecond of the store tells nothing

    assert driver.lookup("a") is None
    driver.store("d", "d")

    until(lambda: auditor.books().in_x == 3)
    exact(auditor)


def test_deletes_in_number_heal(driver, auditor, raw):
    """usage finds them without anybody asking for the entries."""
    for number in range(100):
        driver.store(number, "answer")
    raw.delete(*(driver.explain(number).key for number in range(0, 100, 2)))

    assert driver.usage().entries == 50
    exact(auditor)


def test_a_flush_starts_anew(make_driver, auditor, raw):
    """FLUSHALL takes entries and books together: everything works as on the first day."""
    drivers = [make_driver(max_entries=5) for _ in range(2)]
    for number in range(10):
        drivers[number % 2].store(number, "answer")
    raw.flushall()

    for driver in drivers:
        assert driver.lookup(9) is None
    for number in range(10):
        drivers[number % 2].store(number, "answer")
    assert drivers[0].usage().entries == 5
    exact(auditor)
    assert drivers[0].lookup(9).value == drivers[1].lookup(9).value == "answer"


def test_a_rename_heals(driver, auditor, raw):
    """An entry that was moved over another: one is gone, the other has a new size."""
    driver.store("small", os.urandom(10))
    driver.store("large", os.urandom(10_000))
    raw.rename(driver.explain("large").key, driver.explain("small").key)

    driver.lookup("large"), driver.lookup("small")
    assert driver.usage().entries == 1
    exact(auditor)


def test_an_entry_that_a_stranger_changed_heals(driver, auditor, raw):
    """Appended bytes are counted once somebody looks."""
    driver.store("q", os.urandom(10))
    raw.append(driver.explain("q").key, bytes(5000))

    assert driver.usage().bytes == units(48 + 5 + 10 + 5000) * UNIT
    exact(auditor)


LOSSES = ["l", "x", "l x", "f", "c", "tv", "l x f c"]


@pytest.mark.parametrize("lost", LOSSES)
def test_a_lost_book_heals(make_driver, auditor, raw, names, lost):
    """Without either book, or both: what is asked for, or sampled by usage, is adopted again, and the bound holds."""
    driver = make_driver(max_entries=30)
    for number in range(20):
        driver.store(number, os.urandom(100 + number))
    raw.delete(*(getattr(names, name) for name in lost.split()))

    driver.get_many(range(20))
    for number in range(20):
        driver.lookup(number)
    driver.store("one more", os.urandom(100))

    if "c" not in lost:  # else they are of an older generation, which nobody asks for
        until(lambda: driver.usage().entries == 21)
        exact(auditor)
    for number in range(60):
        driver.store(f"new {number}", os.urandom(100))
    books = auditor.books()
    assert books.counted == books.summed
    assert books.in_x <= 30


# --- uses are told once a while ---------------------------------------------------------------------------------


def told(raw):
    """Return how often Redis was told of uses."""
    return raw.info("commandstats").get("cmdstat_zadd", {"calls": 0})["calls"]


def test_an_entry_that_is_used_again_and_again_is_told_once(driver, raw):
    """One touch stands for all of a while; another entry, and the next while, have one of their own."""
    for name in "abc":
        driver.store(name, name)
    part = driver.cache._namespace.state.partitions[0]
    part.touch_ms = 1e12
    before = told(raw)
    for _ in range(20):
        driver.lookup("a"), driver.get_or_compute("a", lambda: "never"), driver.lookup("b")
        driver.get_many(["a", "b"])
    assert told(raw) - before == 2
    driver.get_many(["a", "b", "c"]), driver.get_many(["a", "b"])
    assert told(raw) - before == 3

    part.touched_ms -= 2e12
    driver.lookup("a"), driver.lookup("a")
    assert told(raw) - before == 4


def test_a_use_that_was_not_noted_is_told_again(driver, raw):
    """What is not there, and what is in no book, was not touched: nothing is taken for told."""
    driver.store("a", "a")
    part = driver.cache._namespace.state.partitions[0]
    part.touch_ms = 1e12
    before = told(raw)
    driver.lookup("none"), driver.lookup("none")
    raw.delete(part.names.l)
    driver.lookup("a"), driver.lookup("a")
    assert told(raw) - before == 4
    assert part.suspects


def test_a_foreign_delete_of_what_was_touched_just_now_heals(driver, auditor, raw):
    """It is no longer there, though it was a moment ago: that tells as much as a touch."""
    for name in "abc":
        driver.store(name, name)
    driver.cache._namespace.state.partitions[0].touch_ms = 1e12
    tick(raw)
    assert driver.lookup("a").value == "a"
    raw.delete(driver.explain("a").key)

    assert driver.lookup("a") is None
    driver.store("d", "d")
    until(lambda: auditor.books().in_x == 3)
    exact(auditor)


async def test_of_look_ups_at_once_only_those_that_are_due_are_told(url, raw):
    """In one command, each with its own answer."""
    async with AsyncCache(url, namespace="test", deadline=2) as cache:
        await cache.store_many(list(range(40)), list(range(40)))
        part = cache._namespace.state.partitions[0]
        part.touch_ms = 1e12
        tick(raw)
        for asked in ([*range(10)], [*range(20)], [5, 5, 30], [*range(40), "none"], [*range(40)]):
            found = await asyncio.gather(*[cache.lookup(number) for number in asked])
            assert [one and one.value for one in found] == [None if n == "none" else n for n in asked]
        before = told(raw)
        await asyncio.gather(*[cache.lookup(number) for number in range(40)])
        assert told(raw) == before
        assert not part.suspects


# --- how good the order is --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_hit_rate_is_that_of_an_exact_lru(url, raw):
    """A Zipf trace with drifting popularity: within half a percent of an OrderedDict of the same bound."""
    keys, bound, accesses = 4_000, 500, 16_000
    rng = random.Random(11)
    weights = [1 / (rank + 1) ** 0.9 for rank in range(keys)]
    popular = list(range(keys))
    exact_lru, hits, exact_hits = OrderedDict(), 0, 0
    with Cache(url, namespace="test", max_entries=bound, policy=Policy(ttl="1h"), deadline=2.0) as cache:
        for start in range(0, accesses, 4_000):
            for request in rng.choices(popular, weights, k=4_000):
                if cache.lookup(request) is not None:
                    hits += 1
                else:
                    cache.store(request, "x")
                if request in exact_lru:
                    exact_hits += 1
                    exact_lru.move_to_end(request)
                else:
                    exact_lru[request] = True
                    if len(exact_lru) > bound:
                        exact_lru.popitem(last=False)
            for _ in range(keys // 40):
                one, other = rng.randrange(keys), rng.randrange(keys)
                popular[one], popular[other] = popular[other], popular[one]

    print(
        f"\nLRU hit rate {hits / accesses:.4f}, exact {exact_hits / accesses:.4f}, after {start + 4_000} accesses"
    )
    assert hits / accesses == pytest.approx(exact_hits / accesses, abs=0.005)
    assert Auditor(raw, "test").books().in_x == bound


def test_an_audit_sees_what_is_wrong(driver, auditor, raw, names):
    """The auditor itself: each kind of disagreement is found."""
    driver.store("q", "answer")
    assert auditor.books() == Books(counted=7, summed=7, in_x=1, in_l=1, only_x=0, only_l=0)
    raw.zincrby(names.x, 1, b"#")
    raw.zadd(names.l, {"1:stranger": 1})
    raw.append(driver.explain("q").key, bytes(100))

    books = auditor.books()
    assert (books.counted, books.summed, books.only_l) == (6, 7, 1)
    assert auditor.entries() == Entries(dead=0, unrecorded=0, wrong=1)
    raw.zrem(names.l, *raw.zrange(names.l, 0, -1))
    raw.rename(driver.explain("q").key, names.e + b"%d:elsewhere" % driver.explain("q").generation)
    assert auditor.books().only_x == 1
    assert auditor.entries() == Entries(dead=1, unrecorded=1, wrong=0)


def test_a_server_without_room_for_books_stores_nothing_by_halves(own_server, make_driver):
    """Out of memory a store is refused as a whole: no entry without a record, no record without an entry."""
    server = own_server("--maxmemory-policy", "noeviction")
    driver = make_driver(server.url)
    for number in range(50):
        driver.store(number, os.urandom(1000))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)
        for number in range(50, 80):
            assert driver.store(number, os.urandom(1000)) is False
        client.config_set("maxmemory", 0)
        exact(Auditor(client, "test"))
