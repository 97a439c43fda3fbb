"""One request through the cache, for asyncio.  ``_threads`` is the twin; keep them side by side."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from askonce.errors import BackendUnavailable, NotCached, Uncacheable
from askonce.served import AnyServed

from . import _status as status
from . import wire
from ._aflights import AsyncFlight, AsyncFlightReader, AsyncFlights
from ._asked import MARK, Asked, asked_of
from ._call import AsyncCall, AsyncSend, aread
from ._embeddings import Batch, Upstream, aembed
from ._library import Library
from ._options import Options
from ._reading import Unstored


class Asyncio:
    """What the transports of one way in do with a request: serve it, share it, or pass it on."""

    def __init__(self, library: Library, options: Options) -> None:
        self.options = options
        self._library, self._flights = library, AsyncFlights()
        self._cache = options.cache.aio

    async def handle(self, request: Any, send: AsyncSend) -> Any:
        """Return the response to *request*; *send* is the way upstream, whose errors pass as they are."""
        if MARK in request.extensions:
            return await send(request)
        asked = asked_of(request, self.options)
        if isinstance(asked, Asked) and not _in_asyncio():
            asked = "no-asyncio-loop"
            self._cache.bypass(asked)
        request.extensions[MARK] = True
        if isinstance(asked, str):
            return self._library.own(await send(request), status.bypass(asked))
        try:
            with asked.words():
                if asked.plan.stream:
                    return await self._stream(request, asked, send)
                batch = Batch.of(asked.plan) if asked.plan.api == "embeddings" else None
                if batch is not None:
                    return await self._embed(request, asked, batch, send)
                return await self._whole(request, asked, send)
        except NotCached:
            return self._library.absent()
        except Uncacheable:
            self._cache.bypass("uncacheable")
            return self._library.own(await send(request), status.bypass("uncacheable"))

    async def _whole(self, request: Any, asked: Asked, send: AsyncSend) -> Any:
        call = AsyncCall(self._library, asked, request, send)
        try:
            served = await self._cache.serve(
                asked.plan.request, call.whole, codec=asked.reading, max_wait=asked.timeout
            )
        except (BackendUnavailable, NotCached, Uncacheable):
            raise  # the first by a strict cache alone
        except Exception as error:  # noqa: BLE001  this caller's own, or what another one's call came to
            if call.response is not None or error is call.error:
                return self._own(call, error)
            return await self._alone(request, asked, send)
        given = served.value
        if isinstance(given, wire.Rendered):
            await call.close()  # a refusal that a stale answer stands in for
            return self._library.rendered(
                given.body,
                given.headers,
                status.of_served(served, partial(self.options.cache.fingerprint, asked.plan.request)),
            )
        if call.response is not None:
            return self._own(call, None)
        if isinstance(given, Unstored) and given.status == 200 and given.echo == asked.reading.echo:
            return self._library.rendered(
                given.body,
                given.headers,
                status.of_served(served, partial(self.options.cache.fingerprint, asked.plan.request)),
            )
        return await self._alone(request, asked, send)

    async def _stream(self, request: Any, asked: Asked, send: AsyncSend) -> Any:
        told: list[AnyServed] = []

        def begin(key: Any) -> AsyncFlight:
            call = AsyncCall(self._library, asked, request, send)
            source = self._cache.stream(
                asked.plan.request,
                call.produce,
                codec=asked.reading,
                drain="followed",
                max_wait=asked.timeout,
                fold=call.folded,
                on_served=told.append,
            )
            return AsyncFlight(self._flights, key, call, source)

        key = asked.flight_key(self.options.cache, asyncio.get_running_loop())
        flight, own = self._flights.join(key, begin)
        reader = AsyncFlightReader(flight, asked.timeout, own=own)
        try:
            await flight.wait(None if own else asked.timeout)
        except BaseException:
            await reader.close()
            if own and flight.call.refused:  # nobody else is given that response
                await flight.call.close()
            raise
        first, call = flight.first, flight.call
        if isinstance(first, wire.Head):
            if own and call.response is not None:
                word = status.of_own(read=asked.directives.read)
                return self._library.arunning(reader, None, call.response, word)
            return self._library.arunning(reader, first, None, status.COLLAPSED)
        await reader.close()
        if isinstance(first, wire.Rendered):
            if not own:  # rendered for the one who began: what is there as a whole is read anew
                return await self._stream(request, asked, send)
            fields = (
                status.of_served(told[0], partial(self.options.cache.fingerprint, asked.plan.request))
                if told
                else {status.FIELD: status.COLLAPSED}
            )
            return self._library.rendered(first.body, first.headers, fields)
        if isinstance(flight.error, BackendUnavailable | NotCached | Uncacheable):
            raise flight.error
        if own and (call.refused or (flight.error is not None and flight.error is call.error)):
            return self._own(call, flight.error)
        return await self._alone(request, asked, send)

    def _own(self, call: AsyncCall, error: BaseException | None) -> Any:
        """Return what came for this caller, or raise what did instead."""
        if call.response is None or (call.raw is None and call.response.status_code == 200):
            assert error is not None  # noqa: S101  narrows: without a response there is an error
            raise error
        word = status.of_own(read=call.asked.directives.read)
        return self._library.own(call.response, word, call.raw)

    async def _alone(self, request: Any, asked: Asked, send: AsyncSend) -> Any:
        """Go upstream, sharing nothing: another caller's failure is not this one's, and nobody queues up behind it."""
        self._cache.bypass("not shared")
        return self._library.own(await send(request), status.of_own(read=asked.directives.read))

    async def _embed(self, request: Any, asked: Asked, batch: Batch, send: AsyncSend) -> Any:
        async def ask(content: bytes | None) -> Upstream[tuple[Any, bytes]]:
            response = await send(
                request if content is None else self._library.with_content(request, content)
            )
            raw = await aread(response)
            decoded = self._library.decoded(response.headers, raw)
            return Upstream(response.status_code, response.headers, decoded, (response, raw))

        embedded = await aembed(self._cache, batch, ask)
        if embedded.passed is not None:
            response, raw = embedded.passed
            return self._library.own(response, status.of_own(read=asked.directives.read), raw)
        fields = {status.FIELD: status.of_items(embedded.hits, embedded.items)}
        return self._library.rendered(embedded.body, embedded.headers, fields)


def _in_asyncio() -> bool:
    """Return whether a task of asyncio runs here: trio's do not, and its guest mode borrows a loop without one."""
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False
