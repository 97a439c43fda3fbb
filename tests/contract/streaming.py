"""
Streams for tests: a model that streams at the word of the test, and consumers in both colours that read at its word.

A ``Party`` is what Redis sees as a process: a cache, and where its callers run.  Two parties that share a cache are
two colours of one process.  The functions at the end run in real processes, see ``processes``.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Any, ClassVar

import redis

from askonce import AsyncCache, Cache, Policy

from .polling import registered, until
from .processes import Stage

QUESTION = {"model": "m", "prompt": "Why?", "stream": True}
_END = object()


class Producer:
    """
    A model that streams *chunks*, and raises *error* behind them if one is given.

    Of a producer made with ``let=0`` the first chunk comes when it is ``let``, and the end is let as a chunk is.
    """

    _made: ClassVar[weakref.WeakSet[Producer]] = weakref.WeakSet()

    def __init__(
        self, *chunks: Any, error: BaseException | None = None, let: int | None = None, close: str = ""
    ) -> None:
        self.chunks, self.error = chunks, error
        self.calls = self.closed = 0
        self._let = len(chunks) + 1 if let is None else let
        self._close = close
        self._changed = threading.Condition()
        self._made.add(self)

    def let(self, count: int = 1) -> None:
        """Let it produce *count* more."""
        with self._changed:
            self._let += count
            self._changed.notify_all()

    def open(self) -> None:
        """Let it produce all."""
        self.let(len(self.chunks) + 1)

    @classmethod
    def open_all(cls) -> None:
        """Let every producer there is come to its end: no thread is left waiting for a test that failed."""
        for producer in list(cls._made):
            producer.open()

    def called(self, seconds: float = 10.0) -> None:
        """Return once it was called."""
        until(lambda: self.calls, seconds)

    def of(self, colour: str) -> Callable[[], Any]:
        """Return the function that streams in this colour."""
        return self.sync if colour == "threads" else self.awaited

    def sync(self) -> Iterator[Any]:
        """Stream to a thread."""
        self.calls += 1
        whole = False
        try:
            for number, chunk in enumerate(self.chunks):
                self._wait(number)
                yield chunk
            self._wait(len(self.chunks))
            whole = True
            if self.error is not None:
                raise self.error
        finally:
            self.closed += not whole
            if self._close == "raises" and not whole:
                raise RuntimeError("closing the model's stream failed")

    async def awaited(self) -> AsyncIterator[Any]:
        """Stream to a task."""
        self.calls += 1
        whole = False
        try:
            for number, chunk in enumerate(self.chunks):
                await self._awaited(number)
                yield chunk
            await self._awaited(len(self.chunks))
            whole = True
            if self.error is not None:
                raise self.error
        finally:
            self.closed += not whole
            if self._close == "awaits":
                await asyncio.sleep(0.01)
            if self._close == "raises" and not whole:
                raise RuntimeError("closing the model's stream failed")

    def _wait(self, number: int) -> None:
        if self._let <= number:
            with self._changed:
                assert self._changed.wait_for(lambda: self._let > number, 30), "nobody let it go on"

    async def _awaited(self, number: int) -> None:
        end = time.monotonic() + 30
        while self._let <= number:
            assert time.monotonic() < end, "nobody let it go on"
            await asyncio.sleep(0.002)


class Reader:
    """
    A consumer in a thread or task of its own: it reads when it is told, and holds the stream in between.

    ``chunks`` is what it was given so far.
    """

    def __init__(self, stream: Any) -> None:
        self.chunks: list[Any] = []
        self._stream = stream

    def pull(self, count: int | None = None) -> Future[list[Any]]:
        """Let it read *count* chunks, or to the end; return a future of all that it was given so far."""
        future: Future[list[Any]] = Future()
        self._order(count, future)
        return future

    def take(self, count: int | None = None, seconds: float = 15.0) -> list[Any]:
        """Let it read *count* chunks, or to the end; return all that it was given so far."""
        return self.pull(count).result(seconds)

    def leave(self, how: str = "close") -> None:
        """Let it go away: ``close`` the stream, ``drop`` it unfinished, or be ``cancelled`` (a task)."""
        future: Future[list[Any]] = Future()
        if how == "cancelled":
            self.cancel()
        else:
            self._order(how, future)
            future.result(15)

    def cancel(self) -> None:
        """Cancel its task."""
        raise NotImplementedError

    def _order(self, what: Any, future: Future[list[Any]]) -> None:
        raise NotImplementedError


class ThreadReader(Reader):
    """A thread that consumes ``Cache.stream``."""

    def __init__(self, stream: Iterator[Any]) -> None:
        super().__init__(stream)
        self._orders: queue.SimpleQueue[tuple[Any, Future[list[Any]]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def _order(self, what: Any, future: Future[list[Any]]) -> None:
        self._orders.put((what, future))

    def _run(self) -> None:
        stream, self._stream = self._stream, None
        while True:
            what, future = self._orders.get()
            try:
                if what == "close":
                    stream.close()
                elif what == "drop":
                    stream = None
                    gc.collect()
                else:
                    self._read(stream, what)
            except BaseException as error:
                stream = None
                future.set_exception(error)
            else:
                future.set_result(list(self.chunks))

    def _read(self, stream: Iterator[Any], count: int | None) -> None:
        while count is None or count > 0:
            chunk = next(stream, _END)
            if chunk is _END:
                return
            self.chunks.append(chunk)
            count = None if count is None else count - 1


class TaskReader(Reader):
    """A task that consumes ``AsyncCache.stream``."""

    def __init__(self, stream: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(stream)
        self._loop = loop
        self._orders: asyncio.Queue[tuple[Any, Future[list[Any]]]] = asyncio.Queue()
        self._task = asyncio.run_coroutine_threadsafe(self._run(), loop)

    def _order(self, what: Any, future: Future[list[Any]]) -> None:
        self._loop.call_soon_threadsafe(self._orders.put_nowait, (what, future))

    def cancel(self) -> None:
        """Cancel its task, wherever it waits."""
        self._task.cancel()

    async def _run(self) -> None:
        stream, self._stream = self._stream, None
        try:
            while True:
                what, future = await self._orders.get()
                try:
                    if what == "close":
                        await stream.aclose()
                    elif what == "drop":
                        stream = None
                        gc.collect()
                    else:
                        await self._read(stream, what)
                except BaseException as error:
                    stream = None
                    future.set_exception(error)
                    if isinstance(error, asyncio.CancelledError):
                        raise
                else:
                    future.set_result(list(self.chunks))
        finally:
            del stream  # an "async for" that is left lets go of its iterator too

    async def _read(self, stream: AsyncIterator[Any], count: int | None) -> None:
        while count is None or count > 0:
            chunk = await anext(stream, _END)
            if chunk is _END:
                return
            self.chunks.append(chunk)
            count = None if count is None else count - 1


class Party:
    """A cache, and where its callers run: ``cache`` is the sync one, whatever the colour."""

    def __init__(self, colour: str, cache: Cache) -> None:
        self.colour, self.cache, self.namespace = colour, cache, cache._namespace
        self._readers: list[Reader] = []
        if colour == "asyncio":
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
            self._thread.start()

    def read(self, request: object, producer: Producer | Callable[[], Any], **words: Any) -> Reader:
        """Return a reader of the stream of *request*, which has not asked yet."""
        fn = producer.of(self.colour) if isinstance(producer, Producer) else producer
        reader: Reader
        if self.colour == "threads":
            reader = ThreadReader(self.cache.stream(request, fn, **words))
        else:
            reader = TaskReader(self.cache.aio.stream(request, fn, **words), self.loop)
        self._readers.append(reader)
        return reader

    def run(self, coroutine: Any, seconds: float = 15.0) -> Any:
        """Run a coroutine on this party's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    @property
    def following(self) -> bool:
        """Whether a caller of this party waits for more of a stream, here or elsewhere."""
        flights = list(self.namespace.state.flights._flights.values())
        return bool(registered(self.namespace) or any(flight.tape._waiting for flight in flights))

    def follows(self, seconds: float = 10.0) -> None:
        """Return once a caller of this party waits for more of a stream."""
        until(lambda: self.following, seconds)

    def stop(self) -> None:
        """End the readers and close the cache."""
        if self.colour == "threads":
            self.cache.close()
            return
        for reader in self._readers:
            reader.cancel()
        self.run(self.cache.aio.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        assert not self._thread.is_alive(), "the loop does not come back"
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


def nothing_left(*parties: Party, within: float = 5.0) -> None:
    """Return once no flight, registration, renewal, running publication or holder is left in these processes."""

    def left() -> list[str]:
        found = []
        for party in parties:
            namespace = party.namespace
            found += [
                f"{len(kept)} {name}"
                for name, kept in {
                    "flights": namespace.state.flights._flights,
                    "registrations": registered(namespace),
                    "renewals": namespace.renewals._kept,
                    "publications": namespace.publisher._running,
                    "holders": [count for count in namespace._holders.values() if count],
                }.items()
                if kept
            ]
        return found

    end = time.monotonic() + within
    while found := left():
        assert time.monotonic() < end, f"left behind: {found}"
        time.sleep(0.005)


# --- in processes of their own ------------------------------------------------------------------------------------


class Model:
    """
    A model whose calls and pace the test keeps in another database of the same server.

    Call number n produces a chunk once ``let:<n>`` (or ``let``) is above its place.  *samples*: no two calls say the
    same.
    """

    def __init__(
        self, stage: Stage, url: str, chunks: int, *, samples: bool = False, error: str = ""
    ) -> None:
        self._stage, self._chunks, self._samples, self._error = stage, chunks, samples, error
        self._desk = redis.Redis.from_url(url[: url.rindex("/")] + "/9")

    def _begin(self) -> int:
        number = int(self._desk.incr("calls"))
        self._stage.say("called", number)
        return number

    def _text(self, number: int, place: int) -> str:
        return f"call {number} chunk {place}" if self._samples else f"chunk {place}"

    def _let(self, number: int, place: int) -> bool:
        return any(int(let) > place for let in self._desk.mget("let", f"let:{number}") if let)

    def _end(self) -> None:
        if self._error:
            raise RuntimeError(self._error)

    def sync(self) -> Iterator[str]:
        """Stream to a thread."""
        number = self._begin()
        for place in range(self._chunks + 1):
            until(lambda place=place: self._let(number, place), 30)  # type: ignore[misc]
            if place < self._chunks:
                yield self._text(number, place)
        self._end()

    async def awaited(self) -> AsyncIterator[str]:
        """Stream to a task."""
        number = self._begin()
        for place in range(self._chunks + 1):
            async with asyncio.timeout(30):
                while not self._let(number, place):
                    await asyncio.sleep(0.005)
            if place < self._chunks:
                yield self._text(number, place)
        self._end()


def read(
    stage: Stage,
    *,
    url: str,
    model: dict[str, Any],
    colour: str = "threads",
    callers: int = 1,
    processes: int = 1,
    policy: dict[str, Any] | None = None,
) -> None:
    """Let *callers* threads or tasks read one stream, at the same moment in all *processes*, and say what they get."""
    upstream = Model(stage, url, **model)
    words: dict[str, Any] = {"namespace": "test", "policy": Policy(**policy or {}), "deadline": 2.0}
    if colour == "threads":
        _threads(stage, Cache(url, **words), upstream, callers, processes)
    else:
        asyncio.run(_tasks(stage, AsyncCache(url, **words), upstream, callers, processes))


def _threads(stage: Stage, cache: Cache, model: Model, callers: int, processes: int) -> None:
    cache.lookup("connect")

    def call(caller: int) -> None:
        got: list[str] = []
        try:
            for chunk in cache.stream(QUESTION, model.sync):
                got.append(chunk)
                stage.say("chunk", (caller, chunk))
            stage.say("whole", (caller, got))
        except Exception as error:  # any: the test judges
            stage.say("error", (type(error).__name__, got))

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    stage.together(processes)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()


async def _tasks(stage: Stage, cache: AsyncCache, model: Model, callers: int, processes: int) -> None:
    await cache.lookup("connect")

    async def call(caller: int) -> None:
        got: list[str] = []
        try:
            async for chunk in cache.stream(QUESTION, model.awaited):
                got.append(chunk)
                stage.say("chunk", (caller, chunk))
            stage.say("whole", (caller, got))
        except Exception as error:  # any: the test judges
            stage.say("error", (type(error).__name__, got))

    stage.together(processes)
    await asyncio.gather(*(call(caller) for caller in range(callers)))
    await cache.aclose()
