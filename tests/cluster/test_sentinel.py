"""A master watched by Sentinels: found by asking them, and again when it is lost or has become a replica."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel
from tests.conftest import Asyncio, Driver, Threads
from tests.contract.polling import until
from tests.servers import Watched, promised

from askonce import Cache

pytestmark = pytest.mark.slow
COMMAND = promised()["valkey"]


@pytest.fixture
def watched():
    with ExitStack() as stack:
        yield Watched(stack, COMMAND)


def right(driver, number):
    return driver.get_or_compute(number, lambda: f"answer {number}") == f"answer {number}"


def stored(driver):
    """Return whether what is stored is found."""
    return driver.store("works", "yes") and driver.lookup("works") is not None


def test_a_failover(watched):
    """Known by URL, or by a client of either colour: no exception, no wrong answer; soon the new master serves."""
    words = {"sentinel_kwargs": {"password": "sentinel's"}, "password": "data's"}
    addresses = [("127.0.0.1", one.port) for one in watched.sentinels]
    sync = redis.sentinel.Sentinel(addresses, **words).master_for("m")
    awaited = redis.asyncio.sentinel.Sentinel(addresses, **words).master_for("m")
    drivers = [
        Driver(Threads(watched.url, namespace="url")),
        Driver(Asyncio(watched.url, namespace="url")),
        Driver(Threads(client=sync, namespace="sync")),
        Driver(Asyncio(client=awaited, namespace="async")),
    ]
    try:
        for driver in drivers:
            until(lambda driver=driver: stored(driver), 30)
        assert watched.master() == 0
        watched.servers[0].kill()
        until(lambda: all(right(driver, n) for n, driver in enumerate(drivers)) and watched.master() == 1, 30)
        for driver in drivers:
            until(lambda driver=driver: stored(driver), 30)
        watched.servers[0].start()  # it comes back as what it was, and is told better
        until(lambda: watched.clients[0].info("replication")["role"] == "slave", 30)
        assert all(right(driver, number) for number, driver in enumerate(drivers))
        assert all(stored(driver) for driver in drivers)
    finally:
        for driver in drivers:
            driver.inner.stop()


def test_a_master_that_became_a_replica_is_left(watched):
    """READONLY: the Sentinels are asked again, though the connection is as good as ever."""
    with Cache(watched.url, namespace="test", deadline=0.5) as cache:
        until(lambda: stored(cache), 30)
        until(lambda: watched.clients[1].info("replication")["master_link_status"] == "up", 30)
        watched.watch.execute_command("SENTINEL FAILOVER", "m")
        until(lambda: watched.master() == 1, 30)
        until(lambda: watched.clients[0].info("replication")["role"] == "slave", 30)
        until(lambda: stored(cache), 30)
        assert cache._namespace.nodes[0].endpoint.options["port"] == watched.servers[1].port


def test_a_service_that_no_sentinel_knows(watched):
    """The reason says so."""
    events = []
    with Cache(watched.url.replace("/m/", "/n/"), on_event=events.append) as cache:
        assert cache.get_or_compute("q", lambda: "answer") == "answer"
        until(lambda: events)
    assert "knows no master 'n'" in events[0].reason
