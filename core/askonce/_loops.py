"""What threads and event loops need to know of each other."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Detached work of each loop; a task that nothing refers to may be collected while it runs.
_background: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = (
    weakref.WeakKeyDictionary()
)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that this thread is running, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def awaited(value: Awaitable[T] | T) -> T:
    """Return *value*, awaited if it can be."""
    if isinstance(value, Awaitable):
        result: T = await value
        return result
    return value


async def within(future: Future[T], seconds: float, otherwise: R) -> T | R:
    """
    Return what *future* holds, or *otherwise* after *seconds*.

    One impatient caller does not cancel what others wait for.  The future may belong to any thread or loop.
    """
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, even if nobody asks
    # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with the result.
    await asyncio.wait({waiting}, timeout=seconds)
    return future.result() if future.done() else otherwise


def detach(work: Coroutine[Any, Any, Any], context: Context | None = None) -> asyncio.Task[Any]:
    """
    Run *work* in the background of the running loop, in *context*, by default a copy of the caller's.

    A loop that shuts down may never begin it.
    """
    loop = asyncio.get_running_loop()
    prune()
    tasks = _background.setdefault(loop, set())
    task = loop.create_task(work, context=context)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def prune() -> None:
    """Forget the work of loops that were closed over it: it refers to its loop, and would keep it for ever."""
    for loop in [other for other in _background if other.is_closed()]:
        _background.pop(loop, None)


async def settle() -> None:
    """Wait for all that was detached on the running loop."""
    tasks = _background.get(asyncio.get_running_loop())
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)
