"""The contract on a Redis Cluster of three masters and three replicas: what needs one server's keys stays with those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from tests.contract.processes import Crew
from tests.servers import Cluster, promised


@pytest.fixture(scope="session", name="server")
def one_cluster() -> Iterator[Cluster]:
    """A cluster that all tests share.  Do not freeze, kill or configure it."""
    with Cluster(promised()["valkey"]) as running:
        yield running


@pytest.fixture
def url(server: Cluster) -> str:
    """The URL of the cluster, empty."""
    server.flushall()
    return server.url


@pytest.fixture
def own_cluster() -> Iterator[Callable[..., Cluster]]:
    """Start clusters that a test may freeze, kill or configure."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(Cluster(promised()["valkey"], *options))


@pytest.fixture
def raw(server: Cluster, url: str) -> Iterator[redis.RedisCluster]:
    """A plain client of the cluster: a stranger to the cache."""
    with redis.RedisCluster(host="127.0.0.1", port=server.servers[0].port) as client:
        yield client


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> None:
    pytest.skip("one server")


@pytest.fixture
def names() -> None:
    pytest.skip("one server's keys")


@pytest.fixture(scope="session")
def _crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.dismiss()


@pytest.fixture
def crew(_crew: Crew) -> Crew:
    """Processes to hire: ``crew.hire(8)``."""
    return _crew
