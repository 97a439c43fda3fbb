"""What a test body needs beyond ``driver`` to be written once for threads and asyncio."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def begin_on(driver: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """Call a method (of a lease, of a memoized function) in the colour of *driver*; return a future of its result."""
    if driver.colour == "threads":
        context = contextvars.copy_context()
        return driver.inner._pool.submit(context.run, lambda: method(*args, **kwargs))

    async def call() -> Any:
        return await method(*args, **kwargs)

    return asyncio.run_coroutine_threadsafe(call(), driver.inner._loop)


def call_on(driver: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method in the colour of *driver* and return its result."""
    return begin_on(driver, method, *args, **kwargs).result(20)


def ask(driver: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the cache with the context of the test: ``control`` blocks hold."""
    turned = [driver.inner.function(arg) if callable(arg) else arg for arg in args]
    return call_on(driver, getattr(driver.inner.cache, name), *turned, **kwargs)


def close(driver: Any) -> None:
    """Close the cache of *driver*; it connects anew if it is used again."""
    call_on(driver, driver.inner.cache.close if driver.colour == "threads" else driver.inner.cache.aclose)
