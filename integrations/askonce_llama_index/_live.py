"""
A call that streams, through the cache: replayed, followed while it runs, or led and recorded.

It is looked up in the call, so that a hit begins to show where a miss does.  The provider's generator is made in the
call too and asked for its first chunk by the consumer, as LlamaIndex has it: a first chunk of our own, which nobody is
given, opens the recording.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, suppress
from typing import Any, TypeAlias

from askonce import Request, Uncacheable, upstream
from askonce.served import AnyServed

from ._calls import KIND, ModelCall, passed
from ._codec import Answer, Entry
from ._hits import asteps, steps, tagged
from ._streams import OPENED, Opened, Reader, Recorded, Recorder, replay

#: Around each step of the model's own stream.
_Guard: TypeAlias = Callable[[], AbstractContextManager[Any]]


def stream(asked: ModelCall) -> Any:
    """Answer a call that returns a generator."""
    request = asked.request()
    if request is None:
        return asked.parent()
    live = _Live(asked, request)
    try:
        chunks = asked.cache.stream(request, live.produce, **live.words())
    except Uncacheable as error:
        passed(asked.cache, error)
        return asked.parent()
    first = next(chunks)
    if first is OPENED:
        return _passed_on(chunks, chunks)
    return _passed_on(asked.shown(lambda: live.chunks(first, chunks), live.source), chunks)


async def astream(asked: ModelCall) -> Any:
    """Answer a call that is awaited and then gives an async generator."""
    request = asked.request()
    if request is None:
        return await asked.parent()
    live = _Live(asked, request)
    try:
        chunks = asked.cache.aio.stream(request, live.aproduce, **live.words())
    except Uncacheable as error:
        passed(asked.cache, error)
        return await asked.parent()
    first = await anext(chunks)
    if first is OPENED:
        return _apassed_on(chunks, chunks)
    return _apassed_on(await asked.shown(lambda: live.achunks(first, chunks), live.source), chunks)


class _Live:
    """One stream: what is asked, and what comes."""

    def __init__(self, asked: ModelCall, request: Request) -> None:
        self._asked, self._request = asked, request
        #: Whether this caller has its answer: what is produced then takes the place of a stale one, behind it.
        self._is_served = False
        self._recorder = Recorder()
        self._reader = Reader()
        #: Where the chunks come from, unless they are this caller's own.
        self.source = "coalesced"

    def words(self) -> dict[str, Any]:
        """Return how the core is to treat this stream."""
        return {
            "codec": self._recorder,
            "admit": self._asked.admit,
            "share_errors": False,
            "drain": "followed",  # whose reader leaves must not break the answer of another
            "fold": self._recorder.fold,
            "on_served": self._served,
        }

    def _served(self, served: AnyServed) -> None:
        self.source, self._is_served = served.source.value, True

    def produce(self) -> Iterator[Opened | Answer]:
        """Yield what the parent's method yields."""
        if self._is_served:
            return self._produce(self._asked.snapshot(), _refreshing)
        return self._produce(self._asked, _guarded)

    def _produce(self, asked: ModelCall, guard: _Guard) -> Iterator[Opened | Answer]:
        with guard():
            chunks = asked.parent()
        yield OPENED
        with closing(steps(chunks, guard)) as coming:
            for chunk in coming:
                self._see(chunk)
                yield chunk
        if asked is not self._asked:
            asked.verify(self._request)

    def aproduce(self) -> AsyncIterator[Opened | Answer]:
        """Do what `produce` does."""
        if self._is_served:
            return self._aproduce(self._asked.snapshot(), _refreshing)
        return self._aproduce(self._asked, _guarded)

    async def _aproduce(self, asked: ModelCall, guard: _Guard) -> AsyncIterator[Opened | Answer]:
        with guard():
            chunks = await asked.parent()
        yield OPENED
        async with aclosing(asteps(chunks, guard)) as coming:
            async for chunk in coming:
                self._see(chunk)
                yield chunk
        if asked is not self._asked:
            asked.verify(self._request)

    def _see(self, chunk: Answer) -> None:
        with suppress(
            Exception
        ):  # what is not seen cannot be written: the recording ends, the stream does not
            self._recorder.see(chunk)

    def _built(self, item: Any) -> Iterator[Answer]:
        if isinstance(item, Entry):
            yield from replay(item)
        elif isinstance(item, Recorded):
            if item.form is not None:
                yield self._reader.read(item.form)
        elif item is not OPENED:  # its leader is gone, and this caller went on by a call of its own
            yield item

    def chunks(self, first: Any, rest: Iterator[Any]) -> Iterator[Answer]:
        """Yield the chunks that are stored, or that another caller's call gives."""
        yield from self._built(first)
        for item in rest:
            yield from self._built(item)

    async def achunks(self, first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Answer]:
        """Do what `chunks` does."""
        for chunk in self._built(first):
            yield chunk
        async for item in rest:
            for chunk in self._built(item):
                yield chunk


def _guarded() -> AbstractContextManager[Any]:
    return upstream(KIND)


@contextmanager
def _refreshing() -> Iterator[None]:
    with upstream(KIND), tagged("refresh"):
        yield


def _passed_on(shown: Any, chunks: Any) -> Iterator[Answer]:
    """Yield what is shown, and close the core's stream below it with its consumer."""
    with closing(chunks), closing(shown):
        yield from shown


async def _apassed_on(shown: Any, chunks: Any) -> AsyncIterator[Answer]:
    """Do what `_passed_on` does."""
    async with aclosing(chunks), aclosing(shown):
        async for chunk in shown:
            yield chunk
