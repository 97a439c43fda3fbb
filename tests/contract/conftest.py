"""What the contract tests look at Redis with: a plain client, and the names of the keys of namespace ``test``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from askonce.keys import Names, partition_tags

from .processes import Crew


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """A plain client on the database of the test: a stranger to the cache."""
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def names() -> Names:
    """The key names of the namespace ``test``, which ``make_driver`` uses."""
    return Names("test", partition_tags("test", 1)[0])


@pytest.fixture(scope="session")
def _crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.dismiss()


@pytest.fixture
def crew(_crew: Crew) -> Crew:
    """Processes to hire: ``crew.hire(8)``."""
    return _crew
