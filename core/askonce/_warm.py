"""Filling a cache ahead of demand: each request that nobody has asked yet, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from .policy import whole
from .served import AnyServed, Source

R = TypeVar("R")

_MOST_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmReport:
    """
    What ``warm`` did.

    ``requests``: how many were asked so far.  Of these ``computed`` were answered by ``fn``, ``found`` were stored
    already or computed by somebody else meanwhile, ``bypassed`` were answered by ``fn`` without the cache (Redis away);
    ``failures`` are the others, each with what it raised.
    """

    requests: int = 0
    computed: int = 0
    found: int = 0
    bypassed: int = 0
    failures: Sequence[tuple[Any, Exception]] = ()


class _Tally:
    """A report that is being made."""

    def __init__(self, on_progress: Callable[[WarmReport], object] | None) -> None:
        self.report = WarmReport()
        self._on_progress = on_progress

    def add(self, request: object, outcome: AnyServed | BaseException) -> None:
        """Count the outcome of one request, and tell of it; what is no request's failure is raised."""
        done = self.report
        if isinstance(outcome, Exception):
            done = replace(done, failures=(*done.failures, (request, outcome)))
        elif isinstance(outcome, BaseException):
            raise outcome
        elif outcome.source is Source.BYPASSED:
            done = replace(done, bypassed=done.bypassed + 1)
        elif outcome.source is Source.COMPUTED:
            done = replace(done, computed=done.computed + 1)
        else:
            done = replace(done, found=done.found + 1)
        self.report = replace(done, requests=done.requests + 1)
        if self._on_progress is not None:
            self._on_progress(self.report)


def _checked(concurrency: int) -> int:
    return whole("concurrency", concurrency, _MOST_AT_ONCE, "number of calls")


def fill(
    requests: Iterable[R],
    serve: Callable[[R], AnyServed],
    concurrency: int,
    on_progress: Callable[[WarmReport], object] | None,
) -> WarmReport:
    """Serve all *requests* in threads, at most *concurrency* at a time; read no further ahead than that."""
    tally, running = _Tally(on_progress), dict[Future[AnyServed], R]()

    def collect() -> None:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            tally.add(running.pop(done), done.exception() or done.result())

    with ThreadPoolExecutor(_checked(concurrency), "askonce-warm") as pool:
        try:
            for request in requests:
                running[pool.submit(copy_context().run, serve, request)] = request
                if len(running) >= concurrency:
                    collect()
            while running:
                collect()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tally.report


async def afill(
    requests: Iterable[R],
    serve: Callable[[R], Awaitable[AnyServed]],
    concurrency: int,
    on_progress: Callable[[WarmReport], object] | None,
) -> WarmReport:
    """Do the same in tasks."""
    _checked(concurrency)
    tally, running = _Tally(on_progress), dict[asyncio.Future[AnyServed], R]()

    async def collect() -> None:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            tally.add(running.pop(one), one.exception() or one.result())

    try:
        for request in requests:
            running[asyncio.ensure_future(serve(request))] = request
            if len(running) >= concurrency:
                await collect()
        while running:
            await collect()
    finally:
        for left in running:
            left.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return tally.report
