"""Many requests at once: one round trip, one call of the function for all that is missing."""

import functools
import operator
import threading

import pytest
import redis

from askonce import Cache, ConfigurationError, LeaderFailed, NotCached, Policy, Refused, Source, control

from .colours import ask
from .polling import age, registered, until
from .upstream import Gate


class Batch:
    """A function for many requests that keeps what it was called with."""

    def __init__(self, value="v"):
        self.calls, self.value, self._lock = [], value, threading.Lock()

    def __call__(self, missing):
        with self._lock:
            self.calls.append(list(missing))
        return [f"{self.value} {request}" for request in missing]


def calls_of(raw, command):
    """Return how often the server has run a command."""
    return raw.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


# --- reading ----------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_requests(driver):
    """Missing ones are None, repeated ones are served each time."""
    for number in (1, 3):
        driver.store(number, f"v {number}")

    found = driver.get_many([3, 2, 1, 3, 2])

    assert [one and one.value for one in found] == ["v 3", None, "v 1", "v 3", None]
    assert found[0].source is Source.HIT


def test_nothing_asked_is_nothing_answered(driver):
    """No request is no error, and the function is not called."""
    batch = Batch()

    assert driver.get_many([]) == []
    assert driver.get_or_compute_many([], batch) == []
    assert batch.calls == []


@pytest.mark.parametrize(("count", "trips"), [(1, 1), (100, 1), (128, 1), (300, 3)])
def test_many_are_read_in_one_round_trip(driver, raw, count, trips):
    """A hundred requests are one MGET; at most 128 share one, so that one deadline is enough for it."""
    driver.store(0, "answer")
    before = calls_of(raw, "mget")

    driver.get_many(range(count))

    assert calls_of(raw, "mget") - before == trips


# --- computing --------------------------------------------------------------------------------------------------


def test_the_function_is_called_once_with_the_distinct_missing_requests_in_order(driver):
    """Hits are not in the call, repeated requests once; values come back in the order of the requests."""
    driver.store("b", "v b")
    batch = Batch()

    values = driver.get_or_compute_many(["c", "b", "a", "c", "d", "a"], batch)

    assert values == ["v c", "v b", "v a", "v c", "v d", "v a"]
    assert batch.calls == [["c", "a", "d"]]
    assert driver.get_or_compute_many(["d", "c", "b", "a"], batch) == ["v d", "v c", "v b", "v a"]
    assert len(batch.calls) == 1


def test_a_large_batch_is_one_call(driver):
    """Three hundred missing requests are one call, and three hundred hits afterwards."""
    batch = Batch()
    requests = [{"n": number} for number in range(300)]

    values = driver.get_or_compute_many(requests, batch)

    assert [len(call) for call in batch.calls] == [300]
    assert [one.value for one in driver.get_many(requests)] == values
    assert driver.usage().entries == 300


def test_requests_that_differ_only_in_spelling_are_one(driver):
    """The first of equal requests is what the function is given."""
    batch = Batch()

    values = driver.get_or_compute_many([{"a": 1, "b": 2}, {"b": 2.0, "a": 1}], batch)

    assert values == ["v {'a': 1, 'b': 2}"] * 2
    assert batch.calls == [[{"a": 1, "b": 2}]]


def test_the_calls_words_hold_for_all(driver):
    """ttl, tags, codec and admission are those of every answer."""

    def admit(value):
        if value == "v bad":
            raise Refused("bad")

    values = driver.get_or_compute_many(["good", "bad"], Batch(), ttl="1m", tags=["t"], admit=admit)

    assert values == ["v good", "v bad"]
    assert driver.lookup("good").ttl == pytest.approx(60, abs=1)
    assert driver.lookup("bad") is None
    driver.invalidate_tag("t")
    assert driver.lookup("good") is None


def test_a_stale_answer_among_many_is_served_and_refreshed(make_driver, raw):
    """Only what is missing is waited for."""
    driver = make_driver(policy=Policy(ttl="1h", stale_while_revalidate="1h"))
    driver.store("stale", "old")
    age(raw, driver.explain("stale").key, 3700)
    driver.store("fresh", "v fresh")

    values = driver.get_or_compute_many(["missing", "stale", "fresh"], Batch())

    assert values == ["v missing", "old", "v fresh"]
    until(lambda: driver.lookup("stale").value == "v stale")


def test_stale_entries_are_refreshed_by_one_call(make_driver, raw):
    """However many of a batch are stale: one call of the function, behind the caller."""
    driver = make_driver(policy=Policy(ttl="1h", stale_while_revalidate="1d"))
    driver.store_many(list("abc"), ["old"] * 3)
    for name in "abc":
        age(raw, driver.explain(name).key, 4000)
    batch = Batch()
    assert driver.get_or_compute_many(list("abc"), batch) == ["old"] * 3
    until(lambda: [found.value for found in driver.get_many(list("abc"))] == ["v a", "v b", "v c"])
    assert batch.calls == [["a", "b", "c"]]


def test_the_wrong_number_of_values_is_an_error_that_says_so(driver):
    """It is raised, and the leases are given back: the next caller computes at once."""
    with pytest.raises(ConfigurationError, match="1 values for 2 requests"):
        driver.get_or_compute_many(["a", "b"], lambda _: ["only one"])

    assert driver.get_or_compute_many(["a", "b"], Batch()) == ["v a", "v b"]


def test_an_error_of_the_function_passes_unwrapped(make_driver):
    """Hits are lost with the call, nothing is stored, and other processes compute at once."""
    driver, other = make_driver(), make_driver()
    driver.store("hit", "v hit")
    error = RuntimeError("quota")

    def fails(_):
        raise error

    with pytest.raises(RuntimeError) as caught:
        driver.get_or_compute_many(["hit", "a", "b"], fails)

    assert caught.value is error
    assert driver.get_many(["a", "b"]) == [None, None]
    assert other.get_or_compute_many(["a", "b"], Batch()) == ["v a", "v b"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_those_who_wait_for_one_of_many_share_the_error(make_driver, elsewhere):
    """A single ask that waits for a failing batch raises with it."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate(error=RuntimeError("quota"))
    batch = driver.start("get_or_compute_many", ["a", "b"], lambda _: gate())
    gate.wait()
    single = other.start("get_or_compute", "b", lambda: "computed by a newcomer")
    waits(other)
    gate.open()

    with pytest.raises(RuntimeError, match="quota"):
        batch.result(10)
    with pytest.raises((RuntimeError, LeaderFailed), match=r"quota|RuntimeError"):
        single.result(10)


def test_what_failed_of_a_batch_leaves_the_rest(make_driver):
    """An exception in the place of a value: the others are stored, then it is raised as it is."""
    driver, other = make_driver(), make_driver()
    error = ValueError("too long")

    def some(missing):
        return [error if request == "b" else f"v {request}" for request in missing]

    with pytest.raises(ValueError, match="too long") as caught:
        driver.get_or_compute_many(["a", "b", "c"], some)

    assert caught.value is error
    assert [found and found.value for found in other.get_many(["a", "b", "c"])] == ["v a", None, "v c"]
    batch = Batch()
    assert other.get_or_compute_many(["a", "b", "c"], batch) == ["v a", "v b", "v c"]
    assert batch.calls == [["b"]]
    assert (driver.stats().computed, driver.stats().stored) == (2, 2)


def test_several_failures_of_a_batch_raise_the_first_and_say_so(driver):
    """What the caller catches of its function it catches here."""
    with pytest.raises(ValueError, match="b") as caught:
        driver.get_or_compute_many(
            "abc", lambda missing: ["v a", *(ValueError(name) for name in missing[1:])]
        )

    assert caught.value.__notes__ == ["2 requests of the batch failed; this is the first failure"]


def test_an_old_answer_stands_in_for_what_failed_alone(make_driver, raw):
    """stale_if_error holds for each request of a batch."""
    driver = make_driver(policy=Policy(ttl="1h", stale_if_error="1d"))
    driver.store("b", "old b")
    age(raw, driver.explain("b").key, 4000)

    def some(missing):
        return [ValueError("down") if request == "b" else f"v {request}" for request in missing]

    assert driver.get_or_compute_many(["a", "b"], some) == ["v a", "old b"]
    assert driver.stats().stale_if_error == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_what_fails_in_the_hands_of_others_is_asked_here(make_driver, elsewhere):
    """A batch that joins a computation which fails has its own function called for that one."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    gate = Gate(error=RuntimeError("of the other caller"))
    single = driver.start("get_or_compute", "b", gate)
    gate.wait()
    batch = Batch()
    many = other.start("get_or_compute_many", ["a", "b", "c"], batch)
    until(lambda: batch.calls == [["a", "c"]])
    waits(other)
    gate.open()

    assert many.result(10) == ["v a", "v b", "v c"]
    assert batch.calls == [["a", "c"], ["b"]]
    with pytest.raises(RuntimeError):
        single.result(10)


def waits(driver):
    """Return once a caller of *driver* waits, for a flight of its process or for a message."""
    namespace = driver.cache._namespace

    def waiting():
        flights = list(namespace.state.flights._flights.values())
        return registered(namespace) or any(
            flight.future._done_callbacks or flight.future._condition._waiters for flight in flights
        )

    until(waiting)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_crossing_batches_compute_each_request_once_and_never_deadlock(make_driver, elsewhere):
    """[a, b, c] and [c, b, a] at the same moment, again and again: six answers, three of them computed."""
    driver = make_driver()
    other = make_driver() if elsewhere else driver
    driver.store("warm", "up"), other.store("warm", "up")
    for turn in range(20):
        batch = Batch()
        requests = [f"{name} {turn}" for name in "abc"]
        one = driver.start("get_or_compute_many", requests, batch)
        two = other.start("get_or_compute_many", requests[::-1], batch)

        assert one.result(10) == two.result(10)[::-1] == [f"v {request}" for request in requests]
        assert sorted(functools.reduce(operator.iadd, batch.calls, [])) == sorted(requests)


def test_a_batch_waits_only_for_what_others_compute(make_driver):
    """What nobody computes is computed before the rest is waited for."""
    driver, other = make_driver(), make_driver()
    gate, batch = Gate("v a"), Batch()
    leading = other.start("get_or_compute", "a", gate)
    gate.wait()

    following = driver.start("get_or_compute_many", ["a", "b"], batch)
    until(lambda: other.lookup("b") is not None)
    assert not following.done()
    gate.open()

    assert leading.result(10) == "v a"
    assert following.result(10) == ["v a", "v b"]
    assert batch.calls == [["b"]]


def test_a_batch_inside_a_batch_does_not_wait_for_itself(url):
    """A function that asks for what it is computing gets its own computation."""
    with Cache(url, namespace="test") as cache:

        def outer(missing):
            inner = cache.get_or_compute_many(missing, lambda again: [f"inner {one}" for one in again])
            return [f"outer of {one}" for one in inner]

        assert cache.get_or_compute_many(["a", "b"], outer) == ["outer of inner a", "outer of inner b"]


def test_only_if_cached_computes_nothing(driver):
    """One missing request makes the whole call raise; all stored, it is served."""
    driver.store("a", "v a")
    batch = Batch()

    with control(only_if_cached=True):
        with pytest.raises(NotCached):
            ask(driver, "get_or_compute_many", ["a", "b"], batch)
        assert ask(driver, "get_or_compute_many", ["a"], batch) == ["v a"]
    assert batch.calls == []


def test_a_block_that_forbids_to_read_computes_all_and_stores(driver):
    """control(read=False): every request is computed, in one call, and what is stored is replaced."""
    driver.store("a", "old")
    batch = Batch("new")

    with control(read=False):
        assert ask(driver, "get_or_compute_many", ["a", "b"], batch) == ["new a", "new b"]
        assert ask(driver, "get_many", ["a"]) == [None]

    assert batch.calls == [["a", "b"]]
    assert [one.value for one in driver.get_many(["a", "b"])] == ["new a", "new b"]


def test_a_block_that_forbids_to_write_stores_nothing(driver):
    """control(write=False): the values are served, and nothing is left behind."""
    with control(write=False):
        assert ask(driver, "get_or_compute_many", ["a", "b"], Batch()) == ["v a", "v b"]

    assert driver.get_many(["a", "b"]) == [None, None]


def test_bounds_hold_after_a_batch(make_driver, raw, names):
    """A batch larger than the bound leaves as many entries as are allowed."""
    driver = make_driver(max_entries=20)

    values = driver.get_or_compute_many(range(150), Batch())

    assert values == [f"v {number}" for number in range(150)]
    assert raw.zcard(names.x) - 1 <= 20
    assert driver.usage().entries <= 20


def test_a_function_is_called_once_under_out_of_memory(own_server, make_driver):
    """A Redis without room grants no leases: the batch is computed without them, still in one call."""
    server = own_server("--maxmemory-policy", "noeviction")
    driver = make_driver(server.url)
    driver.store("hit", "v hit")
    batch = Batch()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)

    assert driver.get_or_compute_many(["hit", *"abcdef"], batch) == [
        f"v {name}" for name in ["hit", *"abcdef"]
    ]

    assert batch.calls == [list("abcdef")]


def test_who_waits_for_a_batch_that_redis_has_no_room_for_computes_at_once(own_server, make_driver):
    """What cannot be stored gives its lease back: who waits elsewhere does not wait for its end."""
    server = own_server("--maxmemory-policy", "noeviction")
    leader, follower = (make_driver(server.url, policy=Policy(lease=60)) for _ in range(2))
    gate = Gate(["v a", "v b"])
    leading = leader.start("get_or_compute_many", ["a", "b"], lambda _: gate())
    gate.wait()
    following = follower.start("serve", "b", lambda: "its own")
    until(lambda: registered(follower.cache._namespace))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)

    gate.open()

    assert leading.result(20) == ["v a", "v b"]
    assert following.result(20).value == "its own"


def test_a_batch_without_redis_is_one_call(make_driver):
    """Nothing is cached, and still nothing is computed twice."""
    driver = make_driver("redis://127.0.0.1:1/0")
    batch = Batch()

    assert driver.get_or_compute_many(["a", "b", "a"], batch) == ["v a", "v b", "v a"]
    assert batch.calls == [["a", "b"]]
