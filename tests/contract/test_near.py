"""
The near cache on real servers: copies in the process, dropped by push, and what Redis is told of their use.

Two caches on one namespace stand for two processes: they share nothing but Redis and the push connection's thread.
"""

import asyncio
import contextlib
import gc
import os
import pickle
import threading
import time

import pytest
import redis

from askonce import Cache, Hot, Near, Policy, Source, control
from askonce._wire import listener

from .colours import ask, close
from .polling import age, until
from .test_invalidation import undo
from .upstream import counting


def reads(raw):
    """Return how many MGET the server has answered."""
    return raw.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]


def is_near(driver, *requests):
    """Ask, and return whether Redis did not hear of it."""
    before = driver.cache._namespace.state.counters.peek().get("near_hits", 0) + driver.stats().near_hits
    for request in requests:
        assert driver.lookup(request) is not None
    return driver.stats().near_hits - before == len(requests)


def copied(cache):
    """Ask for ``q``, and return whether there is a copy of anything."""
    assert cache.lookup("q") is not None
    return len(cache._namespace.state.near) > 0


def settle(driver, *requests):
    """Ask until all *requests* are answered from the near cache."""
    until(lambda: is_near(driver, *requests))


def near_driver(make_driver, *requests, tags=(), **words):
    """Return a driver with a near cache that holds the answers to *requests*."""
    driver = make_driver(**{"near": Near(), **words})
    for request in requests:
        driver.store(request, f"answer to {request}", tags=tags)
    settle(driver, *requests)
    return driver


# --- served from the process ----------------------------------------------------------------------------------------


def test_what_was_asked_once_is_served_without_asking_redis(make_driver, raw):
    """With the source, age and ttl of any hit, by every call there is, for batches too."""
    driver = near_driver(make_driver, "q", "p")
    before = reads(raw)

    served = driver.lookup("q")
    assert (served.value, served.source) == ("answer to q", Source.HIT)
    assert 0 < served.ttl <= 86_400
    assert driver.get_or_compute("q", lambda: "computed") == "answer to q"
    assert driver.begin("q").value == "answer to q"
    assert [one.value for one in driver.get_many(["q", "p"])] == ["answer to q", "answer to p"]
    assert driver.get_or_compute_many(["p", "q"], list) == ["answer to p", "answer to q"]

    assert reads(raw) == before
    assert driver.stats().near_hits >= 7


def test_each_hit_is_a_value_of_its_own(make_driver):
    """Who changes an answer changes no copy."""
    driver = make_driver(near=Near())
    driver.store("q", {"items": [1]})
    settle(driver, "q")
    driver.lookup("q").value["items"].append(2)
    assert driver.lookup("q").value == {"items": [1]}


def test_both_colours_share_the_copies(url, raw):
    """A cache and its twin."""
    with Cache(url, namespace="test", near=Near()) as cache:
        cache.store("q", "answer")
        until(lambda: copied(cache))

        def asked_nothing():
            before = reads(raw)
            assert asyncio.run(cache.aio.lookup("q")).value == "answer"
            return reads(raw) == before

        until(asked_nothing)


def test_the_words_of_a_call_hold_for_copies(make_driver):
    """max_age, read=False and scope are judged as for what Redis sends."""
    driver = near_driver(make_driver, "q")
    with control(max_age=0.0):
        until(lambda: ask(driver, "lookup", "q") is None)
    with control(read=False):
        assert ask(driver, "get_or_compute", "q", lambda: "new") == "new"
    assert driver.lookup("q").value == "new"
    with control(scope={"tenant": "b"}):
        assert ask(driver, "lookup", "q") is None


def test_a_stale_answer_is_redis_s_to_judge(make_driver, raw, names):
    """When the copy's time is over Redis is asked: one of those who ask refreshes what has become stale, as ever."""
    policy = Policy(ttl="10s", stale_while_revalidate="1h")
    driver = near_driver(make_driver, "q", policy=policy, near=Near(ttl=0.2))
    (key,) = [key for key in raw.scan_iter(names.e + b"*") if raw.strlen(key) > 48]
    age(raw, key, 60)
    model, calls = counting(value="new")
    until(lambda: driver.serve("q", model).source is Source.STALE)
    until(lambda: driver.lookup("q").value == "new 1")
    assert len(calls) == 1


# --- dropped ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["invalidate", "invalidate_tag", "bump", "clear"])
def test_an_invalidation_here_is_seen_at_once(make_driver, kind):
    """Whoever asks after it returned, in this process, is not given the old answer."""
    driver = near_driver(make_driver, "q", tags=["t"])
    for turn in range(30):
        undo(driver, kind)
        assert driver.lookup("q") is None, f"turn {turn}"
        driver.store("q", turn, tags=["t"])
        assert driver.lookup("q").value == turn
        driver.lookup("q")


@pytest.mark.parametrize("kind", ["invalidate", "invalidate_tag", "bump", "clear"])
def test_an_invalidation_elsewhere_is_pushed(make_driver, kind):
    """The copy is gone as soon as the message is there: long before its time is over."""
    driver, other = near_driver(make_driver, "q", tags=["t"]), make_driver()
    undo(other, kind)
    until(lambda: driver.lookup("q") is None)


def test_an_answer_stored_elsewhere_replaces_the_copy(make_driver, raw):
    """Also one that Redis itself did not hold any more."""
    driver, other = near_driver(make_driver, "q"), make_driver()
    other.store("q", "second")
    until(lambda: driver.lookup("q").value == "second")
    settle(driver, "q")
    raw.delete(*raw.scan_iter("ao:{test:*}:[elx]*"))
    other.store("q", "third")
    until(lambda: driver.lookup("q").value == "third")


def test_no_moment_of_a_reading_keeps_an_old_copy(url):
    """Readers fill the near cache while another process invalidates: what is kept after a message is what came after."""
    stop = threading.Event()
    with (
        Cache(url, namespace="test", near=Near(), deadline=2.0) as here,
        Cache(url, namespace="test", deadline=2.0) as there,
    ):

        def read():
            while not stop.is_set():
                here.lookup("q")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for turn in range(150):
                there.store("q", turn)
                until(lambda turn=turn: (served := here.lookup("q")) and served.value == turn, pause=0)
                if turn % 3 == 0:
                    there.invalidate("q")
                    until(lambda: here.lookup("q") is None, pause=0)
                elif turn % 10 == 0:
                    there.bump()
                    until(lambda: here.lookup("q") is None, pause=0)
        finally:
            stop.set()
            for reader in readers:
                reader.join()


# --- the push connection ----------------------------------------------------------------------------------------------


def test_without_the_push_connection_there_are_no_copies(make_driver, server, raw, monkeypatch):
    """When it is lost all are dropped, and Redis is asked, until it is back."""
    driver = near_driver(make_driver, "q")
    monkeypatch.setattr(listener, "_PAUSE", 0.05)
    for client in getattr(server, "clients", [raw]):  # all nodes of a cluster
        client.client_kill_filter(_type="pubsub", skipme=True)
    until(lambda: not is_near(driver, "q"))
    settle(driver, "q")


def test_a_push_connection_that_says_nothing_is_not_trusted(make_driver, own_server):
    """A frozen server sends no messages: within a second and a deadline the copies are gone."""
    server = own_server()
    driver = near_driver(make_driver, "q", at=server.url, deadline=0.2)
    server.freeze()
    until(lambda: driver.lookup("q") is None)
    server.thaw()
    until(lambda: driver.lookup("q") is not None, seconds=40)


def test_a_server_that_was_left_is_believed_no_more(url):
    """What was kept on its word is dropped at once, also if it is cut off and never says that it has lost anything."""
    with Cache(url, namespace="test", near=Near(), deadline=2.0) as cache:
        cache.store("q", "answer")
        until(lambda: copied(cache))
        namespace = cache._namespace
        index = namespace.state.partition_of(cache._ask("q").digest).index
        namespace._left(index, namespace.nodes[index])
        assert len(namespace.state.near) == 0
        assert not namespace.state.near.hears(namespace.state.partitions[index].names.w)
        until(lambda: copied(cache))


def test_a_cache_that_was_closed_begins_anew(make_driver, raw):
    """With no copies; another one on the same namespace goes on meanwhile."""
    driver, other = near_driver(make_driver, "q"), make_driver(near=Near())
    settle(other, "q")
    close(driver)
    assert is_near(other, "q")
    raw_other = make_driver()
    raw_other.store("q", "second")
    until(lambda: other.lookup("q").value == "second")
    assert driver.lookup("q").value == "second"
    settle(driver, "q")


def test_nobody_listens_for_a_cache_that_is_gone(url, raw, monkeypatch):
    """The thread ends, and with it the subscription."""
    monkeypatch.setattr(listener, "_IDLE_S", 0.1)
    monkeypatch.setattr(listener, "_TURN", 0.05)
    cache = Cache(url, namespace="test", near=Near())
    cache.store("q", "answer")
    cache.lookup("q")
    channel = cache._namespace.state.partitions[0].names.w
    until(lambda: raw.pubsub_numsub(channel)[0][1] == 1)
    del cache

    def left():
        gc.collect()  # a namespace and what it holds refer to each other
        return raw.pubsub_numsub(channel)[0][1] == 0

    until(left)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_copies_of_its_own(url):
    """It hears for itself; what the parent kept is not its."""
    cache = Cache(url, namespace="test", near=Near(), deadline=2.0)
    cache.store("q", "answer")
    until(lambda: copied(cache))
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(BaseException):
            assert len(cache._namespace.state.near) == 0
            until(lambda: copied(cache))
            with Cache(url, namespace="test", deadline=2.0) as other:
                other.invalidate("q")
            until(lambda: cache.lookup("q") is None)
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    until(lambda: cache.lookup("q") is None)
    cache.close()


def test_a_pickled_cache_keeps_its_bounds(url):
    """The near cache is part of the configuration; its copies are not."""
    with Cache(url, namespace="test", near=Near(max_entries=7)) as cache:
        assert pickle.loads(pickle.dumps(cache))._namespace.settings.near == Near(max_entries=7)


# --- what Redis is told -------------------------------------------------------------------------------------------------


def test_what_is_used_here_is_not_the_first_to_be_evicted(make_driver, raw, names):
    """Redis's order follows the use of copies, about a second behind."""
    driver = near_driver(make_driver, "a", "b", max_entries=2)
    (first, *_) = raw.zrange(names.l, 0, -1)  # the one used longest ago
    favourite = "a" if first.endswith(driver.cache.fingerprint("a").encode()) else "b"

    def moved():
        assert driver.lookup(favourite) is not None
        return raw.zrange(names.l, 0, -1)[-1] == first

    until(moved)
    driver.store("c", "third")
    assert driver.lookup(favourite) is not None
    until(lambda: raw.zcard(names.l) == 2)
    assert raw.zscore(names.l, first) is not None


def test_uses_in_batches_of_several_partitions_are_told(make_driver, raw):
    """Of whoever reads nothing but batches too: what it uses is not the first to be evicted."""
    driver = make_driver(near=Near(), partitions=4)
    requests = [f"question {number}" for number in range(20)]
    driver.store_many(requests, requests)
    part = driver.cache._namespace.state.partitions[driver.explain(requests[0]).partition]
    member = b"%d:%b" % (
        driver.explain(requests[0]).generation,
        driver.cache.fingerprint(requests[0]).encode(),
    )
    until(lambda: driver.get_many(requests) and driver.stats().near_hits > 40)
    before = raw.zscore(part.names.l, member)

    until(lambda: driver.get_many(requests) and raw.zscore(part.names.l, member) > before)


def test_uses_of_copies_count_towards_hot(make_driver, raw, names):
    """What is asked for often enough lives longer, wherever it was served from."""
    hot = Hot(threshold=8, window="1h", ttl="6h", max_age="7d")
    driver = near_driver(make_driver, policy=Policy(ttl="10s", hot=hot))
    driver.store("q", "answer")
    settle(driver, "q")
    before = reads(raw)
    for _ in range(40):
        driver.lookup("q")
    assert reads(raw) - before < 40
    until(lambda: driver.lookup("q").ttl > 3_600)


def test_the_fleet_hears_of_near_hits(make_driver):
    """They are hits, and counted once more as what they are."""
    driver, other = near_driver(make_driver, "q"), make_driver()
    for _ in range(10):
        driver.lookup("q")
    driver.stats()
    assert other.stats().near_hits >= 10
    assert other.stats().hits >= other.stats().near_hits


def test_a_redis_that_evicts_leaves_a_copy_its_time(make_driver, raw):
    """Somebody deletes the entry past askonce: the copy is served until its own ttl is over, then it is a miss."""
    driver = near_driver(make_driver, "q", near=Near(ttl=0.3))
    settle(driver, "q")
    raw.delete(*raw.scan_iter("ao:{test:*}:e:*"))
    until(lambda: driver.lookup("q") is None)


def test_an_event_loop_that_ends_takes_no_copy_with_it(url):
    """Copies belong to the process."""
    with Cache(url, namespace="test", near=Near()) as cache:
        cache.store("q", "answer")
        until(lambda: copied(cache))

        def ask_on_a_loop():
            assert asyncio.run(cache.aio.lookup("q")).value == "answer"
            return cache.stats().near_hits >= 3

        until(ask_on_a_loop)


def test_redis_away_from_the_start_is_no_trouble(make_driver):
    """Nothing is kept, nothing raised, and the thread that tries to listen is in nobody's way."""
    driver = make_driver(at="redis://127.0.0.1:1/0", near=Near(), deadline=0.1)
    model, calls = counting()
    for _ in range(3):
        assert driver.get_or_compute("q", model).startswith("answer")
    assert len(calls) == 3
    start = time.monotonic()
    close(driver)
    assert time.monotonic() - start < 20


def test_a_client_of_the_user_s_has_a_near_cache_too(url):
    """What push needs is its address and credentials."""
    with redis.Redis.from_url(url) as client, Cache(client=client, near=Near()) as cache:
        cache.store("q", "answer")
        until(lambda: copied(cache))
