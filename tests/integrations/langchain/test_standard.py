"""The suites of langchain-tests, on every server, with and without copies in the process."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite
from tests.conftest import every_server  # noqa: F401  a fixture

from askonce import Near
from askonce_langchain import AskonceCache

NEAR: Any = {"params": [None, Near()], "ids": ["redis alone", "near"]}


class TestSync(SyncCacheTestSuite):
    """The synchronous contract."""

    @pytest.fixture(**NEAR)
    def cache(self, request: pytest.FixtureRequest, url: str) -> AskonceCache:
        return AskonceCache(url, near=request.param, deadline=2.0)


class TestAsync(AsyncCacheTestSuite):
    """The asynchronous contract; every test has an event loop of its own."""

    @pytest.fixture(**NEAR)
    async def cache(self, request: pytest.FixtureRequest, url: str) -> AskonceCache:
        return AskonceCache(url, near=request.param, deadline=2.0)
