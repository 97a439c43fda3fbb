"""The cache for asyncio.  ``_cache`` is its twin; keep them side by side."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, overload

from . import _programs as programs
from ._adriver import AsyncDriver
from ._astream import stream
from ._call import Call
from ._loops import awaited, running_loop, settle
from ._view import memo_request
from ._warm import WarmReport, afill
from .control import NONE, current
from .entry import Codec, encode_chunk
from .errors import BackendUnavailable, ConfigurationError
from .keys import Explanation, tag_hash
from .policy import Admit, Duration, lifetime_ms
from .served import AnyServed, Served
from .stats import EntryInfo, Stats, Usage

T = TypeVar("T")
P = ParamSpec("P")


class AsyncCache(AsyncDriver):
    """A response cache for code that awaits; safe to share between tasks and event loops."""

    async def lookup(self, request: object, *, codec: Codec[Any] | None = None) -> AnyServed | None:
        """
        Return what is stored for *request*, fresh or stale, or None.  Costs one round trip.

        Raises Uncacheable for a request that has no canonical form.
        """
        control, fetched = current(), None
        digest = self._digest(request, control)
        if control is NONE:
            served, fetched = await self._straight(digest, codec)
            if served is not None:
                return served
        wanted = self._namespace.ask(digest, self._policy, control)
        return await self._run(programs.lookup(self._namespace.state, wanted, fetched), self._call(codec))

    async def store(
        self,
        request: object,
        value: object,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        cost: float | None = None,
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
        label: str | None = None,
    ) -> bool:
        """
        Store *value* for *request*; return True if it was admitted and stored.

        ``cost`` is what it took to compute, in seconds; ``label`` is what ``entries`` lists it as.  Raises Uncacheable
        for a request or a value that cannot be stored without guessing.
        """
        control, call, encoded = current(), self._call(codec, admit), None
        digest, cost_ms = self._digest(request, control), round((cost or 0.0) * 1000)
        if control is NONE and not tags and label is None:
            done = await self._straight_store(digest, value, cost_ms, lifetime_ms(ttl), call)
            if isinstance(done, bool):
                return done
            encoded = done
        wanted = self._namespace.ask(digest, self._policy, control, ttl=ttl, tags=tags, label=label)
        return await self._run(programs.store(self._namespace.state, wanted, value, cost_ms, encoded), call)

    @overload
    async def get_or_compute(
        self,
        request: object,
        fn: Callable[[], Awaitable[T]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> T: ...
    @overload
    async def get_or_compute(
        self,
        request: object,
        fn: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> T: ...
    async def get_or_compute(
        self,
        request: object,
        fn: Callable[[], Awaitable[T]] | Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> T:
        """
        Return what is stored for *request*, or what *fn* returns, called once among all who ask at the same time.

        The value is in the caller's hand whatever becomes of the cache.  Exceptions of *fn* pass unwrapped; Uncacheable
        is raised for a request that has no canonical form, LeaderFailed if another process computed it and failed; with
        ``share_errors=False`` one of those who wait computes next instead.  ``max_wait``: the most that this caller
        waits for another's answer, in seconds, if less than the policy's.
        """
        served = await self.serve(
            request,
            fn,
            ttl=ttl,
            tags=tags,
            codec=codec,
            admit=admit,
            share_errors=share_errors,
            max_wait=max_wait,
        )
        return served.value

    @overload
    async def serve(
        self,
        request: object,
        fn: Callable[[], Awaitable[T]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> Served[T]: ...
    @overload
    async def serve(
        self,
        request: object,
        fn: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> Served[T]: ...
    async def serve(
        self,
        request: object,
        fn: Callable[[], Awaitable[T]] | Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> Served[T]:
        """Do what ``get_or_compute`` does, and return the value together with its source, age and ttl."""
        control, fetched = current(), None
        digest = self._digest(request, control)

        if control is NONE:
            served, fetched = await self._straight(digest, codec)
            if served is not None:
                return served

        async def compute(_: Sequence[int]) -> list[T]:
            return [await awaited(fn())]

        call = self._call(codec, admit, compute, (digest,))
        wanted = self._namespace.ask(
            digest,
            self._policy,
            control,
            ttl=ttl,
            tags=tags,
            share_errors=share_errors,
            max_wait=max_wait,
            home=asyncio.get_running_loop(),
            waits=not self._namespace.holds(asyncio.current_task()),
        )
        return await self._run(programs.get_or_compute(self._namespace.state, wanted, fetched), call)

    def stream(
        self,
        request: object,
        fn: Callable[[], AsyncIterator[T] | Awaitable[AsyncIterator[T]] | Iterable[T]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        drain: Duration | Literal["followed"] = 0.0,
        share_errors: bool = True,
        max_wait: Duration | None = None,
        fold: Callable[[list[T]], Any] | None = None,
        on_served: Callable[[AnyServed], object] | None = None,
    ) -> AsyncIterator[T]:
        """
        Return the chunks of an answer: stored, running anywhere, or produced by *fn*, which is called at most once.

        Recorded while they are passed on, and stored only when the producer came to its end.  Who asks meanwhile, in
        any process, is given the same chunks from the first on as they come.  When the consumer goes away early, the
        producer is closed and a follower takes over; with ``drain`` it is read to its end in the background, for at
        most that long, or, with ``"followed"``, as long as somebody follows.  No chunk is given twice: if a
        followed stream breaks off and the model's new answer begins differently, StreamBroken is raised.

        ``share_errors``: those who follow get the producer's error; otherwise one of them calls the model.
        ``fold(chunks)`` makes what is stored of a whole stream, instead of the list of its chunks (or raises
        ``Refused``).  ``on_served`` is told of a stored stream before its first chunk.
        """
        home = running_loop()
        asked = self._stream_words(
            request,
            codec,
            admit,
            drain,
            fold,
            on_served,
            ttl=ttl,
            tags=tags,
            home=home,
            share_errors=share_errors,
            max_wait=max_wait,
        )
        return stream(self, asked, fn)

    async def get_many(
        self, requests: Sequence[object], *, codec: Codec[Any] | None = None
    ) -> list[AnyServed | None]:
        """Return what ``lookup`` returns, for each request in order, in one round trip."""
        control = current()
        digests, numbers = self._digests(requests, control)
        served, fetched = await self._straight_many(digests, codec, control)
        found: dict[int, AnyServed | None] = {**served}
        if asks := self._asks(digests, control, served):
            program = programs.get_many(self._namespace.state, asks, fetched)
            rest = await self._run(program, self._call(codec))
            found.update((wanted.index, one) for wanted, one in zip(asks, rest, strict=True))
        return [found[number] for number in numbers]

    async def store_many(
        self,
        requests: Sequence[object],
        values: Sequence[object],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> list[bool]:
        """
        Do what ``store`` does for each request and its value, in one round trip; return which were stored.

        Raises Uncacheable, with nothing stored, if a request or a value cannot be stored without guessing.
        """
        asks = self._each(requests, len(values), labels, ttl=ttl, tags=tags)
        return await self._run(
            programs.store_many(self._namespace.state, asks, values), self._call(codec, admit)
        )

    async def get_or_compute_many(
        self,
        requests: Sequence[T],
        fn: Callable[[list[T]], Awaitable[Sequence[Any]] | Sequence[Any]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
    ) -> list[Any]:
        """
        Return a value for each request, in order.

        ``fn(missing)`` is called once with the distinct requests that are neither stored nor being computed by anybody,
        in order, and returns their values in that order, or an exception in the place of one that failed:
        the others are stored, then the first failure is raised.  What fails in the hands of others is asked of *fn* in
        a second call.
        """
        control = current()
        digests, numbers = self._digests(requests, control)
        served, fetched = await self._straight_many(digests, codec, control)
        if len(served) == len(digests):
            return [served[number].value for number in numbers]
        asks = self._asks(
            digests,
            control,
            served,
            ttl=ttl,
            tags=tags,
            home=asyncio.get_running_loop(),
            waits=not self._namespace.holds(asyncio.current_task()),
        )
        firsts = dict(zip(reversed(numbers), reversed(requests), strict=True))

        async def compute(indices: Sequence[int]) -> Sequence[Any]:
            return await awaited(fn([firsts[index] for index in indices]))

        call = self._call(codec, admit, compute, digests)
        program = programs.get_or_compute_many(self._namespace.state, asks, fetched)
        rest = await self._run(program, call)
        served.update((wanted.index, one) for wanted, one in zip(asks, rest, strict=True))
        return [served[number].value for number in numbers]

    async def begin(
        self,
        request: object,
        *,
        usable: Callable[[Any], bool] | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
        codec: Codec[Any] | None = None,
        refresh: bool = False,
    ) -> AnyServed | AsyncLease:
        """
        Return what is stored for *request*, or a Lease: the caller computes, and ends with finish, fail or abandon.

        ``usable(value)`` may refuse what is stored.  ``share_errors``: an error given to ``fail`` or ``abandon`` is
        raised by those who wait for it, unless something stored may stand in.  ``refresh``: serve nothing that is
        stored.  A thread that holds an unfinished lease never waits.
        """
        control, fetched, owner = current(), None, asyncio.current_task()
        digest = self._digest(request, control)
        if control is NONE and not refresh:
            served, fetched = await self._straight(digest, codec, usable)
            if served is not None:
                return served
        call = self._call(codec)
        call.usable = usable
        wanted = self._namespace.ask(
            digest,
            self._policy,
            control,
            home=asyncio.get_running_loop(),
            waits=not self._namespace.holds(owner),
            share_errors=share_errors,
            max_wait=max_wait,
        )
        outcome = await self._run(
            programs.begin(self._namespace.state, wanted, fetched, refresh=refresh), call
        )
        return AsyncLease(self, outcome, call, owner) if isinstance(outcome, programs.Held) else outcome

    async def warm(
        self,
        requests: Iterable[T],
        fn: Callable[[T], Awaitable[Any]] | Callable[[T], Any],
        *,
        concurrency: int = 8,
        on_progress: Callable[[WarmReport], object] | None = None,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
    ) -> WarmReport:
        """
        Fill the cache ahead of demand: do what ``get_or_compute`` does for each request, with ``fn(request)``.

        At most *concurrency* at a time, read from *requests* as they are needed.  Returns how many were computed and
        found; a request that fails is listed there with its exception, and stops nothing.  ``on_progress`` is told
        after each request.
        """

        async def serve(request: T) -> AnyServed:
            return await self.serve(
                request, lambda: fn(request), ttl=ttl, tags=tags, codec=codec, admit=admit
            )

        return await afill(requests, serve, concurrency, on_progress)

    async def invalidate(self, request: object) -> bool:
        """
        Remove the entry of *request*, and refuse what is being computed for it.

        Return whether there was anything; False too if Redis could not be told.
        """
        return await self.invalidate_many([request]) > 0

    async def invalidate_many(self, requests: Sequence[object]) -> int:
        """Do what ``invalidate`` does for each request, together; return how many entries were removed."""
        control = current()
        asks = self._asks(self._digests(requests, control)[0], control)
        return await self._run(programs.invalidate(self._namespace.state, asks), Call())

    async def invalidate_tag(self, tag: str) -> bool:
        """Make every entry with *tag* unreachable, however many; return whether Redis has noted it."""
        return await self._run(programs.invalidate_tag(self._namespace.state, tag_hash(tag)), Call())

    async def bump(self) -> int:
        """
        Make every entry of the namespace unreachable, at once and in every process; memory is freed behind.

        Return the new generation, or 0 if Redis could not be told.
        """
        return await self._run(programs.bump(self._namespace.state), Call())

    async def clear(self) -> int:
        """Make every entry of the namespace unreachable and remove all; return how many were removed."""
        return await self._run(programs.clear(self._namespace.state), Call())

    @overload
    def memoize(self, fn: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def memoize(
        self,
        fn: None = None,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]: ...
    def memoize(
        self,
        fn: Callable[P, Awaitable[T]] | None = None,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Any:
        """
        Decorate a function: its name and arguments are the request, what it returns is stored.

        ``ignore`` names parameters that do not shape the answer (a client, ``self``).  What the function reads
        elsewhere is not in the key: pass it as an argument, or put it into ``version`` or a scope.
        """
        if fn is None:
            return functools.partial(self.memoize, ttl=ttl, tags=tags, ignore=ignore)
        if not inspect.iscoroutinefunction(fn):
            raise ConfigurationError(f"memoize: {fn!r} is no async function; use Cache.memoize for it")
        request = memo_request(fn, ignore)

        @functools.wraps(fn)
        async def memoized(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.get_or_compute(
                request(*args, **kwargs), lambda: fn(*args, **kwargs), ttl=ttl, tags=tags
            )

        return memoized

    async def stats(self) -> Stats:
        """Return the counters of the whole fleet; of this process alone while Redis is away (``fleet=False``)."""
        return await self._run(programs.flush(self._namespace.state), Call())

    async def usage(self) -> Usage:
        """Return what the books hold now, expired entries excluded; ``known=False`` while Redis is away."""
        return await self._run(programs.usage(self._namespace.state), Call())

    async def entries(self, *, limit: int | None = None, prefix: str = "") -> AsyncIterator[EntryInfo]:
        """
        Iterate over what is stored in the namespace, in no order: at most *limit* entries with labels from *prefix*.

        What stays meanwhile is listed once; it ends early, and counts an error, if Redis goes away.  Asks for 64
        entries a round trip.
        """
        seen: set[bytes] = set()
        left = float("inf") if limit is None else limit
        for part in self._namespace.state.partitions:
            cursor = b"0"
            while left > 0:
                now_ms = int(self._namespace.clock.now())
                cursor, page = await self._run(
                    programs.entries(self._namespace.state, part, cursor, now_ms), Call()
                )
                for member, info in page:
                    if member not in seen and left > 0 and (info.label or "").startswith(prefix):
                        left -= 1
                        yield info
                    seen.add(member)
                if cursor == b"0":
                    break

    async def explain(self, request: object, other: object = None) -> Explanation:
        """Return every part of the key of *request*, and, given an *other*, where the two requests differ."""
        wanted = self._ask(request)
        generation = await self._run(programs.whereabouts(self._namespace.state, wanted.partition), Call())
        return self._explained(request, other, wanted, generation)

    async def aclose(self) -> None:
        """Wait for background work and close connections; scopes share them.  A closed cache connects anew if used."""
        await settle()
        with contextlib.suppress(BackendUnavailable):  # strict: there is nobody to count for
            await self._run(programs.flush(self._namespace.state), Call())
        for node in self._namespace.topology.known:
            await node.multiplexers.aclose()
        self._namespace.close()

    async def __aenter__(self) -> AsyncCache:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class AsyncLease:
    """
    The right and the duty to compute one answer: ends with ``finish``, ``fail`` or ``abandon``.

    As a context manager it abandons what was not finished, with the error if there is one.
    """

    def __init__(self, cache: AsyncCache, held: programs.Held, call: Call, owner: object) -> None:
        self._cache, self._held, self._call, self._owner = cache, held, call, owner
        self._done = False
        self._published = False
        self._begun = time.perf_counter()
        cache._namespace.hold(owner, held)

    async def finish(
        self,
        value: object,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        cost: float | None = None,
    ) -> bool:
        """Store *value*, give the lease back and serve all who wait; return whether it was stored."""
        held = self._cache._namespace.with_words(self._held, ttl, tags)  # a wrong word does not end it
        if self._end():
            return False
        taken = time.perf_counter() - self._begun if cost is None else cost
        unsent = self._cache._namespace.unpublished(held)
        return await self._cache._run(
            programs.finish(self._cache._namespace.state, held, value, round(taken * 1000), unsent),
            self._call,
        )

    async def abandon(self, error: Exception | None = None) -> None:
        """Give the lease back with nothing stored: those who wait raise *error*, or one of them computes."""
        if not self._end():
            await self._cache._run(
                programs.abandon(self._cache._namespace.state, self._held, error), self._call
            )

    async def fail(self, error: Exception) -> AnyServed | None:
        """
        Do what ``abandon`` does; return what is stored and may stand in for the answer, or None: raise *error*.

        That is what ``begin`` found past its freshness, within ``stale_if_error`` or ``stale_while_revalidate``.
        """
        if self._end():
            return None
        return await self._cache._run(
            programs.fail(self._cache._namespace.state, self._held, error), self._call
        )

    async def publish(self, chunk: object) -> None:
        """
        Pass a chunk on to those who follow with ``stream``, here and in other processes, before the value is finished.

        Raises Uncacheable for a chunk that cannot be recorded.
        """
        if self._held.flight is None or self._done:
            return
        if not self._published:
            self._published = True
            self._cache._namespace.publish(self._held)
        self._held.flight.tape.append(encode_chunk(chunk, self._call.codec))

    def _end(self) -> bool:
        """Note the end; return whether it was ended before."""
        done, self._done = self._done, True
        if not done:
            self._cache._namespace.unhold(self._owner, self._held)
        return done

    async def __aenter__(self) -> AsyncLease:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        await self.abandon(error if isinstance(error, Exception) else None)

    def __del__(self) -> None:
        if not getattr(self, "_done", True):
            self._cache._namespace.orphan(self._owner, self._held)
