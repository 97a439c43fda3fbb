"""A cluster that the user's own client knows already."""

import pickle
import re

import pytest
import redis
import redis.asyncio
from tests.contract.polling import until
from tests.servers import READS_REPLICAS

from askonce import AsyncCache, Cache, Near


@pytest.fixture
def address(server):
    return {"host": "127.0.0.1", "port": server.servers[1].port}


@pytest.mark.parametrize("words", [{}, {"decode_responses": True}, READS_REPLICAS])
async def test_a_client_of_either_colour_serves_both(url, address, words):
    """Its addresses are used and nothing else of it: no reading from replicas, no decoding; it stays as it was."""
    with (
        redis.RedisCluster(**address, **words) as client,
        Cache(client=client, namespace="test", strict=True) as cache,
    ):
        assert cache.get_or_compute("q", lambda: "answer") == "answer"
        assert (await cache.aio.lookup("q")).value == "answer"
        await cache.aio.aclose()
        assert client.ping()
    async with redis.asyncio.RedisCluster(**address, **words) as client:
        async with AsyncCache(client=client, namespace="test", strict=True) as cache:
            assert (await cache.lookup("q")).value == "answer"
            assert await cache.get_or_compute("p", lambda: "another") == "another"
        assert await client.ping()
    with Cache(url, namespace="test", strict=True) as cache:
        assert [one.value for one in cache.get_many(["q", "p"])] == ["answer", "another"]


@pytest.mark.usefixtures("url")
def test_a_node_that_is_taken_for_a_server_of_its_own(server):
    """Who does not have the slot says so: the call is made without the cache, and its operator reads what to give."""
    events = []
    for node in server.servers:
        with Cache(node.url, namespace="test", deadline=2, on_event=events.append) as cache:
            assert cache.get_or_compute("q", lambda: "answer") == "answer"

    told = [event.reason for event in events if event.kind == "breaker-opened"]
    assert len(told) >= 3
    assert all(re.search(r"MOVED .*: it is a node of a cluster, give redis\+cluster://", one) for one in told)


def test_what_is_made_of_a_client_does_not_pickle(address, url):
    """What is made of a URL does."""
    with redis.RedisCluster(**address) as client, pytest.raises(TypeError, match="make it from a URL"):
        pickle.dumps(Cache(client=client))
    cache = pickle.loads(pickle.dumps(Cache(url, partitions=8, near=Near())))
    assert len(cache._namespace.state.partitions) == 8


def test_a_near_copy_does_not_outlive_the_move_of_its_slot(server, url):
    """Who hears of changes at the old node is told that it hears no more; at the new one it hears again."""
    with (
        Cache(url, namespace="test", near=Near(), deadline=2) as here,
        Cache(url, namespace="test", deadline=2) as other,
    ):
        here.store("q", "first")
        part = here._namespace.state.partition_of(here._ask("q").digest)

        def near():
            before = here._namespace.state.counters.peek().get("near_hits", 0)
            return here.lookup("q") and here._namespace.state.counters.peek().get("near_hits", 0) > before

        until(near)
        slot = redis.cluster.key_slot(part.names.c)
        server.move(slot)
        until(lambda: other.store("q", "second"))
        until(lambda: here.serve("q", lambda: "second").value == "second")
        until(near)
        assert other.invalidate("q")
        until(lambda: here.lookup("q") is None)
        server.move(slot)
