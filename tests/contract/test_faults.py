"""
Redis away, frozen, full, read-only, emptied or spoilt: a call is then made without the cache, and never fails for it.

Frozen, killed and full servers are the test's own.  Bounds on time are generous and count whole deadlines: what they
refuse is a deadline a call, not a busy machine.
"""

import asyncio
import gc
import logging
import os
import pickle
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import hiredis
import pytest
import redis
import redis.asyncio.connection as aio
from redis.connection import Connection

from askonce import AskonceError, AsyncCache, BackendUnavailable, Cache, Policy, Source, scripts
from askonce._wire import held, listener, renewals
from askonce._wire.commands import MORE, as_error
from askonce._wire.multiplexed import Multiplexed

from . import forks
from .audit import Auditor
from .colours import begin_on, call_on, close
from .polling import age, registered, until
from .upstream import Gate, counting

NOWHERE = "redis://127.0.0.1:1/0"


def every_call(driver):
    """Make each call there is; those that compute must answer, the others do nothing or return what they may."""
    assert driver.get_or_compute("a", lambda: "answer") == "answer"
    assert driver.serve("b", lambda: "answer").value == "answer"
    assert driver.get_or_compute_many(["c", "d"], lambda missing: [f"v {one}" for one in missing]) == [
        "v c",
        "v d",
    ]
    assert driver.lookup("e") is None
    assert driver.get_many(["e", "f"]) == [None, None]
    assert driver.store("g", "answer", tags=["t"]) in {True, False}
    lease = driver.begin("h")
    assert call_on(driver, lease.finish, "answer") in {True, False}
    call_on(driver, driver.begin("i").abandon)
    assert driver.invalidate("a") in {True, False}
    assert driver.invalidate_tag("t") in {True, False}
    assert driver.bump() >= 0
    assert driver.clear() >= 0
    assert driver.stats().backend_errors >= 0
    assert driver.explain("a").fingerprint


def works(driver):
    """Return whether an answer is stored and found again."""
    driver.store("works", "yes")
    served = driver.lookup("works")
    return served is not None and served.value == "yes"


# --- nobody there -----------------------------------------------------------------------------------------------


def test_without_redis_every_call_is_made_without_the_cache(make_driver):
    """Nothing is raised, nothing is stored, every bypass is counted."""
    driver = make_driver(NOWHERE)

    every_call(driver)

    served = driver.serve("q", lambda: "answer")
    assert served.source is Source.BYPASSED
    assert driver.stats().fleet is False
    assert driver.stats().bypass_reasons["backend"] >= 4


def test_usage_says_that_it_does_not_know(make_driver):
    """Without Redis nobody knows what the books hold, and no number is made up."""
    usage = make_driver(NOWHERE).usage()

    assert (usage.known, usage.entries, usage.bytes, usage.max_entries) == (False, 0, 0, 10_000)


STRICT = {
    "lookup": ("q",),
    "get_or_compute": ("q", lambda: "answer"),
    "get_or_compute_many": (["q"], lambda _: ["answer"]),
    "get_many": (["q"],),
    "store": ("q", "answer"),
    "begin": ("q",),
    "invalidate": ("q",),
    "invalidate_tag": ("t",),
    "bump": (),
    "clear": (),
    "stats": (),
    "usage": (),
    "explain": ("q",),
}


@pytest.mark.parametrize("name", STRICT)
def test_a_strict_cache_raises_instead(make_driver, name):
    """strict=True: BackendUnavailable, with the cause, and no credentials."""
    driver = make_driver(NOWHERE, strict=True)

    with pytest.raises(BackendUnavailable, match=r"127\.0\.0\.1:1"):
        getattr(driver, name)(*STRICT[name])


def test_an_outage_costs_one_attempt_a_while(make_driver):
    """Two hundred calls with nobody there take less than two hundred attempts: the breaker is open."""
    driver = make_driver(NOWHERE)
    start = time.monotonic()
    for number in range(200):
        assert driver.get_or_compute(number, lambda: "answer") == "answer"

    assert time.monotonic() - start < 3


def test_a_name_that_does_not_resolve_is_an_outage(make_driver):
    """A wrong host is no exception of a call."""
    driver = make_driver("redis://askonce.invalid:6379/0")

    assert driver.get_or_compute("q", lambda: "answer") == "answer"


# --- frozen -----------------------------------------------------------------------------------------------------


def test_a_frozen_server_costs_a_deadline_now_and_then(own_server, make_driver):
    """Fifty calls against a server that does not answer: a few deadlines in all, and afterwards all is well."""
    server = own_server()
    driver = make_driver(server.url, deadline=0.1)
    until(lambda: works(driver))
    server.freeze()
    start, worst = time.monotonic(), 0.0
    for number in range(50):
        before = time.monotonic()
        assert driver.get_or_compute(number, lambda: "answer") == "answer"
        worst = max(worst, time.monotonic() - before)
    total = time.monotonic() - start
    server.thaw()

    print(
        f"\n{driver.colour}: 50 calls against a frozen server {total:.2f} s, the worst {worst * 1000:.0f} ms"
    )
    assert total < 3
    assert worst < 1
    until(lambda: works(driver))
    auditor = Auditor(redis.Redis.from_url(server.url), "test")
    assert auditor.books().counted == auditor.books().summed


def test_callers_at_once_fail_as_one(own_server, make_driver):
    """Thirty callers that meet the freeze together are one failure: the cache is back soon after the server is."""
    server = own_server()
    driver = make_driver(server.url, deadline=0.1)
    until(lambda: works(driver))
    warm = [driver.start("lookup", number) for number in range(30)]
    assert [future.result(10) for future in warm] == [None] * 30
    server.freeze()
    futures = [driver.start("get_or_compute", number, lambda: "answer") for number in range(30)]
    assert [future.result(10) for future in futures] == ["answer"] * 30
    server.thaw()
    start = time.monotonic()

    until(lambda: works(driver), 20)
    assert time.monotonic() - start < 3


@pytest.mark.slow
def test_late_replies_reach_nobody(own_server, make_driver):
    """Frozen and thawed again and again: no call ever gets the answer to another one's question."""
    server = own_server()
    driver = make_driver(server.url, deadline=0.05)
    for number in range(40):
        driver.store(number, number)
    wrong, done = [], threading.Event()

    def ask(caller):
        turn = caller
        while not done.is_set():
            turn += 1
            served = driver.lookup(turn % 40)
            if served is not None and served.value != turn % 40:
                wrong.append((turn % 40, served.value))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, caller) for caller in range(4)]
        for _ in range(3):
            server.freeze()
            time.sleep(0.12)
            server.thaw()
            time.sleep(0.15)
        done.set()
        for future in asking:
            future.result(10)
    assert wrong == []


@pytest.mark.slow
def test_who_waits_for_another_process_does_not_wait_for_a_frozen_server(own_server, make_driver):
    """Asleep for a message that cannot come: the waiter notices within moments, and computes."""
    server = own_server()
    patient = Policy(lease=15)
    driver, other = (make_driver(server.url, policy=patient, deadline=0.1) for _ in range(2))
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = other.start("serve", "q", lambda: "follower's")
    until(lambda: registered(other.cache._namespace))
    server.freeze()
    start = time.monotonic()

    assert following.result(20).value == "follower's"
    assert time.monotonic() - start < 5
    server.thaw()
    gate.open()
    assert leading.result(10).value == "answer"


# --- killed, restarted ------------------------------------------------------------------------------------------


def test_a_restart_is_a_cold_cache(own_server, make_driver):
    """Killed in between calls: calls go on, and once it is back answers are stored and found again."""
    server = own_server()
    drivers = [make_driver(server.url) for _ in range(2)]
    assert all(works(driver) for driver in drivers)
    generation = drivers[0].explain("q").generation
    server.kill()
    for driver in drivers:
        every_call(driver)
    server.start()

    for driver in drivers:
        until(lambda driver=driver: works(driver))
    assert drivers[0].explain("q").generation == drivers[1].explain("q").generation >= generation
    fn, _calls = counting()
    assert drivers[0].get_or_compute("q", fn) == drivers[1].get_or_compute("q", fn) == "answer 1"
    assert drivers[0].usage().entries == 2


@pytest.mark.slow
def test_a_restart_while_nobody_asks_is_not_noticed(own_server, make_driver):
    """A connection that was idle gets a second try: the first call after the restart is served by the cache."""
    server = own_server()
    driver = make_driver(server.url)
    assert works(driver)
    close_after = time.monotonic() + 1.2  # idle is more than a second
    server.kill()
    server.start()
    until(lambda: time.monotonic() > close_after)

    assert driver.serve("q", lambda: "answer").source is Source.COMPUTED
    assert driver.lookup("q").value == "answer"


def test_who_waits_is_woken_by_a_lost_connection(own_server, make_driver):
    """The server dies while a caller sleeps: it computes at once, not after the lease."""
    server = own_server()
    driver, other = (make_driver(server.url, deadline=0.1) for _ in range(2))
    gate = Gate()
    leading = driver.start("serve", "q", gate)
    gate.wait()
    following = other.start("serve", "q", lambda: "follower's")
    until(lambda: registered(other.cache._namespace))
    server.kill()
    start = time.monotonic()

    assert following.result(20).value == "follower's"
    assert time.monotonic() - start < 5
    gate.open()
    assert leading.result(10).value == "answer"


def test_connections_that_redis_closes_are_made_anew(driver, raw):
    """CLIENT KILL of all ours, again and again: at most a call is made without the cache."""
    driver.store("q", "answer")
    for _ in range(2):
        raw.client_kill_filter(_type="normal", skipme=True)
        assert driver.get_or_compute("q", lambda: "answer") == "answer"
        until(lambda: driver.lookup("q") is not None)


# --- out of memory ----------------------------------------------------------------------------------------------


def test_out_of_memory_serves_what_is_stored_and_stores_no_more(own_server, make_driver):
    """noeviction at its limit: hits hit, misses compute, stores are refused; with room all works again, books exact."""
    server = own_server("--maxmemory-policy", "noeviction")
    client = redis.Redis.from_url(server.url)
    driver = make_driver(server.url)
    for number in range(50):
        driver.store(number, f"v {number}")
    client.config_set("maxmemory", 1)

    assert [one.value for one in driver.get_many(range(50))] == [f"v {number}" for number in range(50)]
    assert driver.get_or_compute("new", lambda: "answer") == "answer"
    assert driver.store("newer", "answer") is False
    assert driver.get_or_compute_many([48, "newest"], lambda _: ["answer"]) == ["v 48", "answer"]
    assert driver.begin("begun")  # a lease that nobody granted: the caller computes
    assert driver.lookup(49).value == "v 49"  # what was used least recently makes room
    client.config_set("maxmemory", 0)

    until(lambda: works(driver))
    auditor = Auditor(client, "test")
    until(lambda: driver.usage().entries == auditor.books().in_x)  # room is made behind the callers
    assert auditor.books().counted == auditor.books().summed
    assert (auditor.entries().dead, auditor.entries().unrecorded, auditor.entries().wrong) == (0, 0, 0)


@pytest.mark.slow
def test_what_is_counted_out_of_memory_is_not_lost(own_server, make_driver):
    """Counters that Redis refuses are kept and added later."""
    server = own_server("--maxmemory-policy", "noeviction")
    client = redis.Redis.from_url(server.url)
    driver = make_driver(server.url)
    driver.store("q", "answer")
    driver.stats()
    client.config_set("maxmemory", 1)
    end = time.monotonic() + 1.3
    hits = 0
    while time.monotonic() < end:
        assert driver.lookup("q").value == "answer"
        hits += 1
        time.sleep(0.05)
    client.config_set("maxmemory", 0)

    assert driver.stats().hits == hits


def test_a_redis_that_evicts_what_it_likes_costs_hits_and_nothing_else(own_server, make_driver):
    """allkeys-lru at 3 MB under load: no exception, no wrong value, and the sum in the books stays exact."""
    server = own_server("--maxmemory-policy", "allkeys-lru", "--maxmemory", "3mb")
    client = redis.Redis.from_url(server.url)
    driver = make_driver(server.url)
    auditor = Auditor(client, "test")
    for number in range(600):
        blob = os.urandom(8000)
        driver.store(number, blob)
        served = driver.lookup(number)
        assert served is None or served.value == blob
        if number % 20 == 0:
            books = auditor.books()
            assert books.counted == books.summed
    assert client.info("stats")["evicted_keys"] > 0
    until(lambda: driver.usage() and auditor.entries().dead == 0)


# --- a server that answers with errors --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_replica_serves_hits(own_server, make_driver):
    """READONLY: what is stored is served, what is missing is computed, and when it is promoted it stores."""
    master, replica = own_server("--repl-diskless-sync-delay", "0"), own_server()
    source = make_driver(master.url)
    source.store("q", "answer")
    follower = redis.Redis.from_url(replica.url)
    follower.replicaof("127.0.0.1", master.port)
    until(lambda: follower.info("replication")["master_link_status"] == "up")
    key = source.explain("q").key
    until(lambda: follower.exists(key))
    driver = make_driver(replica.url)

    assert driver.get_or_compute("p", lambda: "computed") == "computed"
    assert driver.store("r", "stored") is False
    every_call(driver)
    until(lambda: driver.lookup("q") is not None, 5)
    follower.replicaof("NO", "ONE")

    until(lambda: works(driver))


def test_a_batch_notes_that_the_server_became_a_replica(own_server, make_driver):
    """READONLY: as a single call does, so that it is not asked for a lease again and again."""
    server = own_server()
    events = []
    driver = make_driver(server.url, on_event=events.append)
    assert driver.get_or_compute_many(["a", "b"], lambda missing: missing) == ["a", "b"]
    redis.Redis.from_url(server.url).replicaof("127.0.0.1", 1)

    assert driver.get_or_compute_many(["c", "d"], lambda missing: missing) == ["c", "d"]

    assert [event.kind for event in events] == ["breaker-opened"]
    assert "read only" in events[0].reason


def test_a_batch_learns_what_time_it_is(driver, raw):
    """The server's clock, after a sleep of this machine, say: ages are told by it."""
    driver.store("connect", "v")
    clock = driver.cache._namespace.clock
    clock.offset_ms -= 3_600_000

    assert driver.store_many(["a"], ["v"]) == [True]

    assert abs(clock.now() / 1000 - raw.time()[0]) < 60


@pytest.mark.parametrize("word", ["LOADING", "BUSY", "MASTERDOWN", "ERR", "MISCONF", "OOM"])
def test_any_error_of_redis_is_an_outage(make_driver, monkeypatch, word):
    """Whatever a command is answered with: the call is made without the cache, and afterwards all is well."""
    driver = make_driver()
    assert works(driver)
    spoilt = Spoiler(monkeypatch, lambda: redis.exceptions.ResponseError(f"{word} nothing works today"))
    spoilt.all = True
    every_call(driver)
    spoilt.all = False

    until(lambda: works(driver), 20)


class Spoiler:
    """Makes replies fail: those that redis-py's connections read, and those that the wires read themselves."""

    def __init__(self, monkeypatch, error):
        self.all, self.next, self.error = False, 0, error
        self.mine = threading.get_ident()  # ``next`` counts what this thread reads, nothing behind it
        sync, asynchronous = Connection.read_response, aio.AbstractConnection.read_response
        received = Multiplexed.received

        def read(connection, *args, **kwargs):
            reply = sync(connection, *args, **kwargs)
            self.meddle(reply)
            return reply

        async def aread(connection, *args, **kwargs):
            reply = await asynchronous(connection, *args, **kwargs)
            self.meddle(reply)
            return reply

        def receive(wire, reply):
            try:
                self.meddle(reply)
            except Exception as error:
                reply = error
            received(wire, reply)

        class Reader(hiredis.Reader):  # of a sync line; what is raised here interrupts its exchange
            def gets(reader, *args):
                reply = super().gets(*args)
                if reply is not MORE:
                    try:
                        self.meddle(reply)
                    except redis.RedisError as error:
                        return error
                return reply

        exchange = held.Direct.exchange

        def exchanged(line, *args):
            if type(line._reader) is not Reader:
                line._reader = Reader(
                    protocolError=redis.exceptions.InvalidResponse, replyError=as_error, notEnoughData=MORE
                )
            return exchange(line, *args)

        monkeypatch.setattr(held.Direct, "exchange", exchanged)
        monkeypatch.setattr(Multiplexed, "received", receive)
        monkeypatch.setattr(Connection, "read_response", read)
        monkeypatch.setattr(aio.AbstractConnection, "read_response", aread)

    def meddle(self, reply):
        if self.all and reply not in (b"OK", "OK"):
            raise self.error()
        if self.next and threading.get_ident() == self.mine:
            self.next -= 1
            if not self.next:
                raise self.error()


def test_scripts_that_redis_forgot_are_loaded_again(make_driver, raw):
    """SCRIPT FLUSH before each kind of call: none is bypassed."""
    driver = make_driver(strict=True)
    for name, words in STRICT.items():
        raw.script_flush()
        outcome = getattr(driver, name)(*words)
        if name == "begin" and hasattr(outcome, "abandon"):
            call_on(driver, outcome.abandon)
    assert driver.stats().backend_errors == 0


# --- keys that were lost or spoilt ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [None, b"", b"garbage", b"1:", b":1", b"-1:5", b"1:2:3", b"99999999999:1", b"1:99999999999999999999", b"\xff\x00", b"4294967296:1"],
    ids=repr,
)  # fmt: skip
def test_a_control_word_that_is_none_is_written_anew(make_driver, raw, names, word):
    """Deleted or overwritten by anybody: the cache goes on under a new generation, in old and new processes."""
    driver = make_driver()
    assert works(driver)
    raw.delete(names.c)
    if word is not None:
        raw.set(names.c, word)

    for one in (driver, make_driver()):
        every_call(one)
        assert works(one)
    assert driver.stats().backend_errors == 0


@pytest.mark.parametrize("name", ["l", "x", "c", "f", "tv", "s"])
def test_another_type_under_one_of_our_names_is_survived(make_driver, raw, names, name):
    """A list where a book or counter should be: calls are made, nothing is raised, and without it all is well."""
    driver = make_driver()
    assert works(driver)
    raw.delete(getattr(names, name))
    raw.rpush(getattr(names, name), "a stranger's list")

    for one in (driver, make_driver()):
        every_call(one)
    raw.delete(getattr(names, name))

    for one in (driver, make_driver()):
        assert works(one)
    until(lambda: driver.usage().entries >= 1)


def test_a_foreign_value_under_a_lease_ends_with_it(make_driver, raw, names):
    """Text that is no lease is overwritten; another type is survived."""
    driver = make_driver()
    digest = driver.explain("q").fingerprint.encode()
    raw.set(names.k + digest, "a stranger's text")
    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.lookup("q").value == "answer"

    digest = driver.explain("p").fingerprint.encode()
    raw.rpush(names.k + digest, "a stranger's list")
    assert driver.get_or_compute("p", lambda: "answer") == "answer"


@pytest.mark.parametrize("text", ["garbage", "-5", "1e300", "99999999999999999999"])
def test_a_spoilt_fencing_counter_stops_nothing(make_driver, raw, names, text):
    """Text that is no fence is survived: answers are stored and served."""
    driver = make_driver()
    raw.set(names.f, text)

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.lookup("q").value == "answer"
    assert driver.invalidate("q") is True
    assert driver.get_or_compute("q", lambda: "new") == "new"
    assert driver.lookup("q").value == "new"


# --- interrupted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(1, 9))
def test_an_interrupt_between_question_and_answer_leaves_no_reply_behind(url, monkeypatch, which):
    """KeyboardInterrupt at the n-th reply: later calls get the answers to their own questions."""
    with Cache(url, namespace="test") as cache:
        for number in range(20):
            cache.store(number, number)
        spoilt = Spoiler(monkeypatch, KeyboardInterrupt)
        spoilt.next = which
        interrupted = 0
        for turn in range(4):
            try:
                assert cache.lookup(turn).value == turn
                assert cache.get_or_compute({"new": turn}, lambda turn=turn: turn) == turn
            except KeyboardInterrupt:
                interrupted += 1

        assert interrupted == 1
        for number in range(20):
            assert cache.lookup(number).value == number


def test_an_interrupt_while_a_lease_is_granted_holds_nobody_up(url, monkeypatch):
    """The lease that Redis gave to a caller who was interrupted just then is no lease of ten seconds."""
    with Cache(url, namespace="test") as cache, Cache(url, namespace="test") as other:
        cache.lookup("connect"), other.lookup("connect")
        held, sha = cache._namespace.nodes[0].held, scripts.LEASE.sha.encode()
        exchange, met = held.exchange, []

        def interrupted(packed, count, *args, **kwargs):
            replies = exchange(packed, count, *args, **kwargs)
            if sha in packed and not met:
                met.append(True)
                raise KeyboardInterrupt
            return replies

        monkeypatch.setattr(held, "exchange", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            cache.get_or_compute("q", lambda: "never")
        start = time.monotonic()

        assert other.get_or_compute("q", lambda: "answer") == "answer"
        assert time.monotonic() - start < 3


async def test_six_thousand_calls_a_third_of_them_cancelled(url):
    """Cancelled before, during and after their exchange: no other call gets a wrong reply, and none is lost."""
    async with AsyncCache(url, namespace="test") as cache:
        for number in range(50):
            await cache.store(number, {"is": number})

        async def ask(number):
            served = await cache.lookup(number % 50)
            return served.value["is"] == number % 50

        async with asyncio.timeout(30):
            right = cancelled = 0
            for start in range(0, 6000, 500):
                tasks = [asyncio.create_task(ask(number)) for number in range(start, start + 500)]
                for turn in range(4):
                    await asyncio.sleep(0)
                    for task in tasks[turn::12]:
                        task.cancel()
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                right += outcomes.count(True)
                cancelled += sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
                assert not [one for one in outcomes if one is False]

        assert right + cancelled == 6000
        assert 1500 <= cancelled <= 2100
        assert (await cache.stats()).backend_errors == 0


def test_loops_in_many_threads_share_a_cache(url):
    """Twenty event loops at once on one object: each gets its own answers."""
    cache = AsyncCache(url, namespace="test")

    async def use(number):
        for turn in range(20):
            request = {"loop": number, "turn": turn % 4}
            assert await cache.get_or_compute(request, lambda request=request: request) == request
            shared = await cache.get_or_compute({"shared": turn}, lambda turn=turn: turn)
            assert shared == turn
        await cache.aclose()
        return True

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda number: asyncio.run(use(number)), range(20)))


def test_a_loop_that_ends_in_mid_flight_disturbs_no_other(url):
    """asyncio.run cancels what is under way; the next loop, and threads, find the cache as it was."""
    with Cache(url, namespace="test") as cache:
        cache.store("q", "answer")

        async def leave():
            asyncio.get_running_loop().create_task(cache.aio.lookup("q"))
            await asyncio.sleep(0)

        for _ in range(10):
            asyncio.run(leave())
            assert cache.lookup("q").value == "answer"

        async def stay():
            return (await cache.aio.lookup("q")).value

        assert asyncio.run(stay()) == "answer"
        assert cache.stats().backend_errors == 0


# --- fork -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", ["threads", "asyncio", "flight"])
def test_a_forked_child_asks_for_itself(crew, url, case):
    """Parent and child ask at once on what was one connection: no reply is mixed up, and both coalesce and store."""
    (member,) = crew.hire(1)
    member.start(getattr(forks, case), url=url)

    assert member.result(60) == "both right"


# --- nothing secret ---------------------------------------------------------------------------------------------


SECRET = "hunter2"
URLS = [
    f"redis://:{SECRET}@127.0.0.1:1/0",
    f"redis://user:{SECRET}@127.0.0.1:1/0",
    f"rediss://user:{SECRET}%21@127.0.0.1:1/0",
    f"unix://user:{SECRET}@/nowhere/redis.sock",
    f"redis://127.0.0.1:1/0?password={SECRET}",
    f"redis://127.0.0.1:1/0?username=me&password={SECRET}",
]


@pytest.mark.parametrize("secret_url", URLS)
def test_no_word_of_ours_shows_a_password(make_driver, caplog, secret_url):
    """Neither repr, nor the text of an exception and its causes, nor a log line."""
    caplog.set_level(logging.DEBUG)
    driver = make_driver(secret_url, strict=True)
    told = [repr(driver.cache), str(driver.cache), repr(driver.cache.scope(a=1))]

    for name, words in STRICT.items():
        with pytest.raises(AskonceError) as caught:
            getattr(driver, name)(*words)
        told.append("".join(traceback.format_exception(caught.value)))

    assert SECRET not in "\n".join([*told, caplog.text])


def test_a_refused_password_is_not_shown(own_server, make_driver, caplog):
    """Nor when it is wrong: the server says so, and the cache does without."""
    caplog.set_level(logging.DEBUG)
    server = own_server()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
    wrong = server.url.replace("redis://", f"redis://:{SECRET}@")
    driver = make_driver(wrong)
    every_call(driver)
    strict = make_driver(wrong, strict=True)
    with pytest.raises(BackendUnavailable) as caught:
        strict.lookup("q")

    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text + repr(driver.cache)
    right = make_driver(server.url.replace("redis://", "redis://:right@"))
    assert works(right)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}/x@127.0.0.1:6379/0", f"redis://:{SECRET}#x@127.0.0.1:6379/0", f"redis://:{SECRET}@127.0.0.1:port/0",
        f"http://:{SECRET}@127.0.0.1", f"redis+sentinel://:{SECRET}@127.0.0.1", f"redis://:{SECRET}[@127.0.0.1", f"redis://:{SECRET}?@127.0.0.1:6379/0",
    ],
)  # fmt: skip
def test_a_url_that_is_refused_is_not_quoted_with_its_password(url):
    """A slash that should have been escaped, a scheme that does not exist: the message shows no part of the secret."""
    try:
        told = repr(Cache(url))
    except AskonceError as error:
        told = "".join(traceback.format_exception(error)[-1:])

    assert SECRET not in told


def test_a_pickled_cache_is_as_secret_as_its_url(url):
    """It holds the password, as it must; its repr, made again, does not."""
    twin = pickle.loads(pickle.dumps(Cache(URLS[0])))

    assert SECRET not in repr(twin)


# --- many at once -----------------------------------------------------------------------------------------------


def test_a_burst_on_an_outage_is_answered(own_server, make_driver):
    """The server dies under a hundred callers: each has its answer, computed once in the process or a few times."""
    server = own_server()
    driver = make_driver(server.url)
    gate = Gate()
    futures = [driver.start("serve", "q", gate) for _ in range(5)]
    gate.wait()
    server.kill()
    gate.open()
    futures += [driver.start("get_or_compute", number % 10, lambda: "answer") for number in range(60)]

    assert all(future.result(15) for future in futures)
    server.start()
    until(lambda: works(driver))


def ours():
    """Return the names of the threads that askonce has running."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("askonce"))


def more(threads):
    """Return which threads there are beyond *threads*, some of which may be ending."""
    return Counter(ours()) - Counter(threads)


def use(cache, other):
    """Make *cache* use all it has: connections, the background, a lease that is renewed, a message that is awaited."""
    cache.store("stale", "old", ttl=0.001)
    until(lambda: cache.serve("stale", lambda: "new").source is Source.STALE)
    request = {"led elsewhere": os.urandom(8)}
    lease = other.begin(request)
    waiting = threading.Thread(target=cache.get_or_compute, args=(request, lambda: "mine"))
    waiting.start()
    until(lambda: registered(cache._namespace))
    lease.finish("theirs")
    waiting.join()


@pytest.mark.slow
def test_a_closed_cache_leaves_nothing_running(url, raw):
    """Neither threads nor connections remain of caches that were closed."""
    policy = Policy(stale_while_revalidate="1h")
    connections, threads = len(raw.client_list()), ours()
    with Cache(url, namespace="test", policy=policy) as other:
        for _ in range(3):
            with Cache(url, namespace="test", policy=policy) as cache:
                use(cache, other)

    until(lambda: len(raw.client_list()) <= connections)
    until(lambda: not more(threads))


@pytest.mark.slow
def test_a_cache_that_is_dropped_leaves_nothing_running(url, raw, monkeypatch):
    """The same, some seconds later, for caches that were collected without being closed."""
    for module in (listener, renewals):
        monkeypatch.setattr(module, "_IDLE_S", 0.5)
    policy = Policy(stale_while_revalidate="1h")
    connections, threads = len(raw.client_list()), ours()
    for _ in range(3):
        cache, other = (Cache(url, namespace="test", policy=policy) for _ in range(2))
        use(cache, other)
        del cache, other

    def gone():
        gc.collect()
        return not more(threads) and len(raw.client_list()) <= connections

    until(gone)


def test_close_waits_for_what_runs_behind(make_driver, raw):
    """A refresh under way is finished, and stored, before close returns."""
    driver = make_driver(policy=Policy(ttl="1h", stale_while_revalidate="1h"))
    driver.store("q", "old")
    age(raw, driver.explain("q").key, 4000)

    def slow():
        time.sleep(0.2)
        return "new"

    assert driver.serve("q", slow).value == "old"
    close(driver)

    assert begin_on(driver, driver.cache.lookup, "q").result(10).value == "new"


# --- a Redis that evicts what it likes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "told"), [("allkeys-lru", ["eviction"]), ("volatile-lru", []), ("noeviction", [])]
)
def test_the_operator_hears_once_of_a_policy_that_evicts_the_books(make_driver, own_server, policy, told):
    """When the cache is first used; nobody waits for it."""
    events = []
    server = own_server("--maxmemory", "100mb", "--maxmemory-policy", policy)
    driver = make_driver(at=server.url, on_event=events.append)
    driver.store("q", "answer")
    watched = redis.Redis.from_url(server.url)
    until(lambda: watched.info("commandstats").get("cmdstat_info", {"calls": 0})["calls"] > 1)
    until(lambda: [event.kind for event in events] == told)
    driver.lookup("q")
    driver.clear()
    assert [event.kind for event in events] == told
