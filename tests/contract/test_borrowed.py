"""A client of the user's own whose connections are of a kind that askonce does not know: its public API is enough."""

import asyncio
import threading

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from askonce import Cache, ConfigurationError, Near, Policy, Source
from askonce._wire.borrowed import commands
from askonce._wire.commands import pack

from .polling import age, until
from .upstream import Gate, counting


class Instrumented(redis.Connection):
    """A connection of the application's: it counts what it sends."""

    sent = 0

    def send_packed_command(self, command, check_health=True):
        """Count."""
        type(self).sent += 1
        return super().send_packed_command(command, check_health)


def client_of(url, **words):
    pool = redis.ConnectionPool.from_url(
        url, connection_class=Instrumented, protocol=2, socket_timeout=5, retry=Retry(NoBackoff(), 0), **words
    )
    pool.connection_class = Instrumented  # from_url has its own opinion
    return redis.Redis(connection_pool=pool)


@pytest.fixture(params=[False, True], ids=["bytes", "decoding"])
def client(request, url):
    with client_of(url, decode_responses=request.param) as client:
        yield client


@pytest.fixture
def cache(client):
    with Cache(client=client, namespace="test", deadline=2.0, strict=True) as cache:
        yield cache


def test_all_goes_by_the_client(cache):
    """Hits, computing, batches, tags, invalidation, counters, by threads and by event loops."""
    before = Instrumented.sent
    assert cache.get_or_compute("q", lambda: {"a": [1, "ä"]}, tags=["t"]) == {"a": [1, "ä"]}
    assert cache.lookup("q").source is Source.HIT
    assert asyncio.run(cache.aio.lookup("q")).value == {"a": [1, "ä"]}
    assert cache.get_or_compute_many(["a", "b"], lambda missing: missing) == ["a", "b"]
    assert [one.value for one in asyncio.run(cache.aio.get_many(["a", "b", "q"]))] == [
        "a",
        "b",
        {"a": [1, "ä"]},
    ]
    assert cache.invalidate("a") is True
    assert cache.invalidate_tag("t") is True
    assert cache.get_many(["a", "q"]) == [None, None]
    assert cache.bump() > 0
    assert cache.lookup("b") is None
    assert cache.stats().stored == 3
    assert list(cache.stream("s", lambda: iter(["x", "y"]))) == ["x", "y"]
    assert list(cache.stream("s", lambda: pytest.fail("asked again"))) == ["x", "y"]
    assert cache.usage().entries == 1
    assert Instrumented.sent > before


def test_an_eviction_keeps_the_books(client):
    """Bounds hold: scores go back as Redis gave them."""
    with Cache(client=client, namespace="test", max_entries=3, deadline=2.0, strict=True) as cache:
        for number in range(10):
            cache.store(number, f"answer {number}")
        assert cache.usage().entries == 3
        assert cache.lookup(9).value == "answer 9"


def test_who_waits_elsewhere_is_woken(cache, url):
    """By the client's pub/sub: a flight that another cache leads is joined."""
    gate = Gate("theirs")
    with Cache(url, namespace="test", deadline=2.0) as other:
        leading = threading.Thread(target=other.get_or_compute, args=("q", gate))
        leading.start()
        gate.wait()
        answers = []
        waiting = threading.Thread(
            target=lambda: answers.append(cache.serve("q", lambda: pytest.fail("asked twice")))
        )
        waiting.start()
        until(lambda: other._namespace.state.flights is not None and cache_waits(cache))
        gate.open()
        leading.join()
        waiting.join()
    assert (answers[0].value, answers[0].source) == ("theirs", Source.COALESCED)


def cache_waits(cache):
    """Return whether somebody is registered for a message."""
    return bool(cache._namespace.nodes[0].listener._waiting)


def test_near_copies_are_dropped_by_push(client, url):
    """They are kept while the client's subscription stands."""
    with (
        Cache(client=client, namespace="test", near=Near(), deadline=2.0) as cache,
        Cache(url, namespace="test", deadline=2.0) as other,
    ):
        other.store("q", "answer")
        until(lambda: cache.lookup("q") and len(cache._namespace.state.near))
        other.invalidate("q")
        until(lambda: cache.lookup("q") is None)


def test_a_flushed_script_is_loaded_again(cache, raw):
    """NOSCRIPT is a reply like any other."""
    cache.store("q", "answer")
    raw.script_flush()
    assert cache.store("q", "again") is True
    assert cache.lookup("q").value == "again"


def test_a_stale_answer_is_refreshed_behind_its_caller(client, raw):
    """Detached work goes by the client too."""
    policy = Policy(ttl="1h", stale_while_revalidate="1h")
    with Cache(client=client, namespace="test", policy=policy, deadline=2.0) as cache:
        cache.store("q", "old")
        age(raw, cache.explain("q").key, 4000)
        model, calls = counting(value="new")
        assert cache.serve("q", model).source is Source.STALE
        until(lambda: cache.lookup("q").value == "new 1")
        assert len(calls) == 1


def test_a_server_that_is_gone_is_no_trouble(own_server):
    """Calls go to the function, and hits are back with the server."""
    server = own_server()
    with client_of(server.url) as client, Cache(client=client, namespace="test") as cache:
        cache.store("q", "answer")
        server.kill()
        assert cache.get_or_compute("q", lambda: "computed") == "computed"
        assert asyncio.run(cache.aio.get_or_compute("q", lambda: "computed")) == "computed"
        server.start()
        until(lambda: cache.store("q", "again"), seconds=30)
        assert cache.lookup("q").value == "again"


def test_a_client_of_resp3_is_refused(url):
    """Its replies have other shapes, and its connections are not ours to make."""
    pool = redis.ConnectionPool.from_url(url, protocol=3)
    pool.connection_class = Instrumented
    with pytest.raises(ConfigurationError, match="protocol=2"):
        Cache(client=redis.Redis(connection_pool=pool))


def test_packed_commands_are_read_as_they_were_packed():
    """Whatever bytes are in them."""
    given = [("MGET", b"a\r\nb", b""), ("EVALSHA", "0" * 40, 1, b"\x00\xff")]
    found = commands(b"".join(map(pack, given)))
    assert found == [[b"MGET", b"a\r\nb", b""], [b"EVALSHA", b"0" * 40, b"1", b"\x00\xff"]]
