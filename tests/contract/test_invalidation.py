"""
Invalidation: one entry, a tag, a whole namespace; at once, everywhere, and for what is being computed as well.

Two caches on one namespace stand for two processes: they share nothing but Redis.
"""

import random
import threading
import time

import pytest

from askonce import Cache, Policy, Source

from .colours import call_on
from .polling import age, until
from .upstream import Gate, counting

KINDS = ("invalidate", "invalidate_tag", "bump", "clear")
PLACES = pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])


def undo(driver, kind):
    """Invalidate the answer to ``q``, tagged ``t``, in one of the ways there are."""
    return getattr(driver, kind)(*{"invalidate": ["q"], "invalidate_tag": ["t"]}.get(kind, []))


def entries(raw, names):
    """Return the names of the entries in Redis, graves excluded."""
    return [key for key in raw.scan_iter(names.e + b"*") if raw.strlen(key) > 48]


# --- one entry --------------------------------------------------------------------------------------------------


def test_an_invalidated_entry_is_gone_everywhere(make_driver):
    """It returns whether there was one; afterwards every cache misses, and the other entries hit."""
    one, other = make_driver(), make_driver()
    one.store("q", "answer")
    one.store("p", "other")
    assert other.lookup("q").value == "answer"

    assert one.invalidate("q") is True

    assert one.lookup("q") is None
    assert other.lookup("q") is None
    assert other.get_many(["q", "p"])[0] is None
    assert other.lookup("p").value == "other"
    assert one.invalidate("q") is False
    assert one.invalidate("never stored") is False


def test_an_invalidated_entry_may_be_stored_again(driver):
    """By store, and by a computation that begins afterwards."""
    driver.store("q", "old")
    driver.invalidate("q")
    assert driver.store("q", "stored") is True
    assert driver.lookup("q").value == "stored"

    driver.invalidate("q")
    assert driver.get_or_compute("q", lambda: "computed") == "computed"
    assert driver.lookup("q").value == "computed"


def test_an_invalidated_entry_leaves_the_books(driver, raw, names):
    """Its room is free at once; what remains is no entry."""
    driver.store("q", "answer")
    driver.invalidate("q")

    assert (driver.usage().entries, driver.usage().bytes) == (0, 0)
    assert entries(raw, names) == []


# --- the whole namespace ----------------------------------------------------------------------------------------


def test_a_bump_makes_everything_unreachable_everywhere(make_driver):
    """The generation rises; no cache serves what was stored before, and all serve what is stored after."""
    one, other = make_driver(), make_driver()
    for number in range(10):
        one.store(number, "old")
    assert other.lookup(3).value == "old"
    before = one.explain("q").generation

    generation = one.bump()

    assert generation > before
    assert one.explain("q").generation == other.explain("q").generation == generation
    assert other.get_many(range(10)) == one.get_many(range(10)) == [None] * 10
    other.store(3, "new")
    assert one.lookup(3).value == "new"
    assert other.bump() > generation


def test_a_bump_frees_the_memory_behind_the_caller(driver, raw, names):
    """Soon after, neither Redis nor the books hold an old entry."""
    for number in range(200):
        driver.store(number, "old")
    driver.bump()

    until(lambda: entries(raw, names) == [] and driver.usage().entries == 0)
    assert driver.usage().bytes == 0


def test_a_bump_of_a_namespace_that_nobody_has_used(driver):
    """There is always a generation to go up from."""
    assert driver.bump() < driver.bump()


def test_clear_removes_everything_and_counts_it(make_driver, raw, names):
    """When it returns nothing is left, and the number is that of the entries there were."""
    one, other = make_driver(), make_driver()
    for number in range(150):
        one.store(number, "old")

    assert other.clear() == 150

    assert entries(raw, names) == []
    assert one.usage().entries == 0
    assert one.lookup(7) is None
    assert other.lookup(7) is None
    assert other.clear() == 0
    one.store("q", "new")
    assert other.lookup("q").value == "new"


@pytest.mark.parametrize("kind", KINDS)
def test_other_namespaces_are_left_alone(make_driver, kind):
    """Nothing reaches beyond its namespace."""
    driver, other = make_driver(), make_driver(namespace="other")
    for one in (driver, other):
        one.store("q", "answer", tags=["t"])

    undo(driver, kind)

    assert driver.lookup("q") is None
    assert other.lookup("q").value == "answer"


# --- what is being computed -------------------------------------------------------------------------------------


@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_computed_before_is_not_served_after(make_driver, kind, elsewhere):
    """Its own caller has it; nobody who asks after the invalidation does."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate("old")
    leading = driver.start("serve", "q", gate, tags=["t"])
    gate.wait()

    undo(other, kind)
    gate.open()

    assert leading.result(10).value == "old"
    assert driver.lookup("q") is None
    assert other.lookup("q") is None
    assert driver.get_or_compute("q", lambda: "new") == "new"


@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_after_it_does_not_join_what_began_before(make_driver, kind, elsewhere):
    """A caller that comes after the invalidation returned gets an answer computed after it."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate("old")
    leading = driver.start("serve", "q", gate, tags=["t"])
    gate.wait()

    undo(other, kind)
    after = [one.start("serve", "q", lambda: "new", tags=["t"]) for one in (driver, other)]
    time.sleep(0.05)  # for them to join, if they would
    gate.open()

    assert leading.result(10).value == "old"
    assert [future.result(10).value for future in after] == ["new", "new"]


@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_many_computed_before_are_not_served_after(make_driver, kind, elsewhere):
    """The same for what get_or_compute_many computes."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate(["old"])
    leading = driver.start("get_or_compute_many", ["q"], lambda _: gate(), tags=["t"])
    gate.wait()

    undo(other, kind)
    gate.open()

    assert leading.result(10) == ["old"]
    assert driver.lookup("q") is None
    assert other.lookup("q") is None


@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_begun_before_is_not_served_after(make_driver, kind, elsewhere):
    """The same for a caller that computes by itself."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    lease = driver.begin("q")

    undo(other, kind)
    call_on(driver, lease.finish, "old", tags=["t"])

    assert driver.lookup("q") is None
    assert other.lookup("q") is None


@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_a_refresh_begun_before_is_not_served_after(make_driver, raw, kind, elsewhere):
    """The same for what is refreshed behind a stale answer."""
    policy = Policy(ttl="1h", stale_while_revalidate="1h")
    driver = make_driver(policy=policy)
    other = make_driver(policy=policy) if elsewhere else driver
    driver.store("q", "stale", tags=["t"])
    age(raw, driver.explain("q").key, 4000)
    gate = Gate("refreshed too late")
    assert driver.serve("q", gate, tags=["t"]).source is Source.STALE
    gate.wait()

    undo(other, kind)
    gate.open()
    until(lambda: driver.stats().computed == 1)

    assert driver.lookup("q") is None
    assert other.lookup("q") is None


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(), ("c", "f", "l", "x", "tv")], ids=["sound", "keys lost"])
@pytest.mark.parametrize("kind", ["invalidate", "invalidate_tag", "bump"])
def test_no_moment_of_a_flight_lets_an_old_answer_through(url, raw, names, kind, lost):
    """
    An invalidation at a random moment of a flight: no answer begun before it is served after it returned, ever.

    Also while somebody deletes the control word, the fencing counter, the books and the list of tags at random.
    """
    rng = random.Random(kind)
    hour_ago = raw.time()[0] - 3600
    raw.set(
        names.c, f"{hour_ago - 1_704_067_200}:{hour_ago}000"
    )  # a namespace that is not bumped once a second
    with Cache(url, namespace="test") as here, Cache(url, namespace="test") as there:
        here.store("warm", "up"), there.store("warm", "up")
        begun, lock = 0, threading.Lock()

        def model():
            nonlocal begun
            with lock:
                begun += 1
                number = begun
            time.sleep(0.004)
            return number

        for turn in range(60):
            leading = threading.Thread(target=here.get_or_compute, args=("q", model), kwargs={"tags": ["t"]})
            leading.start()
            time.sleep(rng.uniform(0, 0.006))
            if lost:
                raw.delete(getattr(names, rng.choice(lost)))
            old = begun  # what begins from here on sees the change that the invalidation tells of
            undo(here if turn % 2 else there, kind)
            if lost:
                raw.delete(getattr(names, rng.choice(lost)))
            asked = [one.get_or_compute("q", model, tags=["t"]) for one in (here, there)]
            assert min(asked) > old, f"turn {turn}: answers {asked}, and {old} had begun before"
            leading.join()


@PLACES
def test_who_asks_after_it_does_not_wait_for_what_it_doomed(make_driver, elsewhere):
    """A computation whose answer will be refused keeps nobody waiting; its lease is given to the next who asks."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate("old")
    leading = driver.start("serve", "q", gate)
    gate.wait()
    other.invalidate("q")

    assert other.get_or_compute("q", lambda: "new") == "new"  # the gate is still closed
    gate.open()
    assert leading.result(10).value == "old"
    assert driver.lookup("q").value == other.lookup("q").value == "new"
    assert driver.stats().fenced_off == 1


# --- what Redis forgets -----------------------------------------------------------------------------------------


FIRST_WORDS = {
    "lookup": lambda driver: driver.lookup("q"),
    "get_many": lambda driver: driver.get_many(["q"]),
    "store": lambda driver: driver.store("other", "x"),
    "invalidate": lambda driver: driver.invalidate("other"),
    "begin": lambda driver: call_on(driver, driver.begin("other", refresh=True).abandon),
    "explain": lambda driver: driver.explain("q"),
    "get_or_compute_many": lambda driver: driver.get_or_compute_many(["other"], lambda _: ["x"]),
    "usage": lambda driver: driver.usage(),
    "stats": lambda driver: driver.stats(),
}


@pytest.mark.parametrize("first", FIRST_WORDS)
def test_a_bump_that_redis_lost_is_given_back(make_driver, raw, names, first):
    """After a failover that lost a bump, a process that knows of it serves nothing old, whatever it does first."""
    driver, other = make_driver(), make_driver()
    driver.store("q", "old")
    data, lost = raw.dump(driver.explain("q").key), raw.get(names.c)
    key = driver.explain("q").key
    driver.bump()
    until(lambda: not raw.exists(key))
    raw.set(names.c, lost)
    raw.restore(key, 100_000, data)

    FIRST_WORDS[first](driver)

    assert driver.lookup("q") is None
    assert other.lookup("q") is None


def test_a_lost_control_word_brings_nothing_old_back(make_driver, raw, names):
    """What was stored under it stays unreachable; what is stored after is served to all."""
    seconds, _ = raw.time()
    raw.set(names.c, f"{seconds - 1_704_067_200 - 3600}:{seconds}000")  # a namespace that is an hour old
    driver, other = make_driver(), make_driver()
    driver.store("q", "old")
    assert other.lookup("q").value == "old"
    generation = driver.bump()
    driver.store("q", "current")
    raw.delete(names.c)

    assert driver.lookup("q") is None
    assert other.lookup("q") is None
    fn, calls = counting(value="new")
    assert driver.get_or_compute("q", fn) == other.get_or_compute("q", fn) == "new 1"
    assert driver.explain("q").generation > generation
    assert len(calls) == 1
