"""The suites of langchain-tests, on every server."""

from __future__ import annotations

import pytest
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

from askonce_langchain import AskonceCache


class TestSync(SyncCacheTestSuite):
    """The synchronous contract."""

    @pytest.fixture
    def cache(self, url: str) -> AskonceCache:
        return AskonceCache(url)


class TestAsync(AsyncCacheTestSuite):
    """The asynchronous contract; every test has an event loop of its own."""

    @pytest.fixture
    async def cache(self, url: str) -> AskonceCache:
        return AskonceCache(url)
