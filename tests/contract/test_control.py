"""Per-call control: what a block asks of the caches inside it."""

import asyncio
import contextvars
import threading

import pytest

from askonce import AsyncCache, Cache, ConfigurationError, NotCached, Policy, Source, control

from .colours import ask, call_on, close
from .polling import age, until
from .upstream import counting

STALE = Policy(ttl="1h", stale_while_revalidate="1h")


def is_served(outcome):
    """Return whether ``begin`` returned an answer."""
    return hasattr(outcome, "value")


# --- read, write ------------------------------------------------------------------------------------------------


def test_a_block_may_forbid_to_read(driver):
    """read=False computes even on a hit, and what it computes takes the place."""
    driver.store("q", "old")
    fn, calls = counting(value="new")

    with control(read=False):
        assert ask(driver, "lookup", "q") is None
        assert ask(driver, "get_many", ["q"]) == [None]
        served = ask(driver, "serve", "q", fn)
        assert (served.value, served.source) == ("new 1", Source.COMPUTED)
        lease = ask(driver, "begin", "q")
        assert not is_served(lease)
        call_on(driver, lease.abandon)

    assert driver.lookup("q").value == "new 1"
    assert len(calls) == 1


def test_a_block_may_forbid_to_write(driver):
    """write=False serves what is stored and stores nothing."""
    fn, calls = counting()

    with control(write=False):
        assert ask(driver, "get_or_compute", "q", fn) == "answer 1"
        assert ask(driver, "get_or_compute", "q", fn) == "answer 2"
        assert ask(driver, "store", "q", "stored") is False
        lease = ask(driver, "begin", "q")
        assert call_on(driver, lease.finish, "finished") is False
    assert driver.lookup("q") is None

    driver.store("q", "stored")
    with control(write=False):
        assert ask(driver, "get_or_compute", "q", fn) == "stored"
    assert len(calls) == 2


def test_a_block_may_do_without_the_cache(driver):
    """Neither read nor write: the call is made, counted as bypassed, and leaves nothing."""
    driver.store("q", "old")

    with control(read=False, write=False):
        served = ask(driver, "serve", "q", lambda: "answer")

    assert (served.value, served.source) == ("answer", Source.BYPASSED)
    assert driver.lookup("q").value == "old"
    assert driver.stats().bypass_reasons == {"control": 1}


# --- ttl, max_age -----------------------------------------------------------------------------------------------


def test_a_block_may_decide_the_lifetime(driver):
    """Its ttl replaces the policy's; a call's own wins."""
    with control(ttl="1h"):
        ask(driver, "get_or_compute", "a", lambda: "answer")
        ask(driver, "store", "b", "answer")
        ask(driver, "store", "c", "answer", ttl="1m")
        ask(driver, "get_or_compute_many", ["d"], lambda _: ["answer"])

    ttls = [driver.lookup(name).ttl for name in "abcd"]
    assert ttls == pytest.approx([3600, 3600, 60, 3600], abs=2)


def test_a_block_may_refuse_what_is_too_old(driver, raw):
    """max_age: a younger entry hits, an older one is computed anew."""
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 100)

    with control(max_age="3m"):
        assert ask(driver, "lookup", "q").value == "old"
        assert [one.value for one in ask(driver, "get_many", ["q"])] == ["old"]
    with control(max_age="1m"):
        assert ask(driver, "lookup", "q") is None
        assert ask(driver, "get_many", ["q"]) == [None]
        assert ask(driver, "get_or_compute", "q", lambda: "new") == "new"
        assert ask(driver, "lookup", "q").value == "new"


def test_what_is_too_old_for_one_stays_for_others(driver, raw):
    """A failing computation under max_age leaves the entry where it is."""
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 100)

    with control(max_age="1m"), pytest.raises(RuntimeError, match="quota"):
        ask(driver, "get_or_compute", "q", counting(error=RuntimeError("quota"))[0])

    assert driver.lookup("q").value == "old"


# --- only_if_cached ---------------------------------------------------------------------------------------------


def test_a_block_may_forbid_to_compute(driver):
    """only_if_cached serves what is stored and raises NotCached for the rest."""
    fn, calls = counting()
    driver.store("q", "answer")

    with control(only_if_cached=True):
        assert ask(driver, "get_or_compute", "q", fn) == "answer"
        with pytest.raises(NotCached):
            ask(driver, "get_or_compute", "p", fn)
    with control(only_if_cached=True, read=False), pytest.raises(NotCached):
        ask(driver, "get_or_compute", "q", fn)
    assert calls == []


def test_only_if_cached_refreshes_nothing(make_driver, raw):
    """A stale answer is served, and the function is not called behind it either."""
    driver = make_driver(policy=STALE)
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)
    fn, calls = counting()

    with control(only_if_cached=True):
        for _ in range(3):
            assert ask(driver, "serve", "q", fn).source is Source.STALE
    close(driver)  # waits for what runs in the background
    assert calls == []


def test_only_if_cached_without_redis_is_not_cached(make_driver):
    """There is nothing to serve where Redis cannot be reached."""
    driver = make_driver("redis://127.0.0.1:1/0")

    with control(only_if_cached=True), pytest.raises(NotCached):
        ask(driver, "get_or_compute", "q", lambda: "answer")


# --- blocks -----------------------------------------------------------------------------------------------------


def test_an_inner_block_refines_the_outer_one(driver):
    """Words that are not given stay, tags and scope add up, and each block ends with itself."""
    with control(ttl="1h", tags=["outer"], scope={"repo": "r"}, read=False):
        with control(tags=["inner"], scope={"path": "p"}, read=True):
            ask(driver, "store", "q", "answer")
            served = ask(driver, "lookup", "q")
            assert served.ttl == pytest.approx(3600, abs=2)
        assert ask(driver, "lookup", "q") is None
    assert driver.lookup("q") is None

    with control(scope={"repo": "r", "path": "p"}):
        assert ask(driver, "lookup", "q").value == "answer"
        driver.invalidate_tag("outer")
        assert ask(driver, "lookup", "q") is None


def test_a_block_ends_with_its_error(driver):
    """What follows is not controlled by it."""
    driver.store("q", "answer")

    with pytest.raises(ZeroDivisionError), control(read=False):
        raise ZeroDivisionError

    assert ask(driver, "lookup", "q").value == "answer"


@pytest.mark.parametrize(
    "words", [{"ttl": "soon"}, {"ttl": 0}, {"max_age": -1}, {"tags": [""]}, {"ttl": float("nan")}], ids=str
)
def test_a_word_out_of_range_is_refused_where_it_is_given(words):
    """The block is not entered."""
    with pytest.raises(ConfigurationError), control(**words):
        raise AssertionError("entered")


def test_a_block_follows_a_copied_context_and_nothing_else(url):
    """A thread that was started without the context does not see it."""
    with Cache(url, namespace="test") as cache:
        cache.store("q", "answer")
        found = []

        def look():
            found.append(cache.lookup("q"))

        with control(read=False):
            context = contextvars.copy_context()
            for target in (look, lambda: context.run(look)):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()

        assert [one and one.value for one in found] == ["answer", None]


async def test_a_block_follows_its_tasks(url):
    """Tasks that are made inside it are controlled, a task beside it is not."""
    async with AsyncCache(url, namespace="test") as cache:
        await cache.store("q", "answer")
        inside, go = asyncio.Event(), asyncio.Event()

        async def controlled():
            with control(read=False):
                inside.set()
                await go.wait()
                return await asyncio.create_task(cache.lookup("q"))

        task = asyncio.create_task(controlled())
        await inside.wait()
        assert (await cache.lookup("q")).value == "answer"
        go.set()
        assert await task is None


def test_a_refresh_behind_the_caller_keeps_the_words_of_its_block(make_driver, raw):
    """What is refreshed in the background is stored with the ttl and tags of the block that asked."""
    driver = make_driver(policy=STALE)
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 3700)

    with control(ttl="2h", tags=["t"]):
        assert ask(driver, "serve", "q", lambda: "new").source is Source.STALE

    until(lambda: driver.lookup("q").value == "new")
    assert driver.lookup("q").ttl == pytest.approx(7200, abs=2)
    driver.invalidate_tag("t")
    assert driver.lookup("q") is None
