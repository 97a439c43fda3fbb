"""
The call of a model that one request makes, if the cache has nothing for it: what is sent, received and recorded.

It keeps what belongs to its own caller alone (the response with all its headers, the library's error), so that whoever
else is given the answer gets none of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

from askonce.policy import Refused

from . import wire
from ._asked import Asked
from ._library import Library
from ._reading import Unstored

Send: TypeAlias = Callable[[Any], Any]
AsyncSend: TypeAlias = Callable[[Any], Awaitable[Any]]


class Failed(Exception):
    """Upstream refused for now (429, 5xx): a stale answer may stand in (RFC 5861, 4), and nobody else is given it."""


class _Call:
    """What the two colours have in common."""

    def __init__(self, library: Library, asked: Asked, request: Any) -> None:
        self.library, self.asked, self.request = library, asked, request
        #: What came for this request, as soon as its headers are there.
        self.response: Any = None
        #: What was received of its body, if all of it was read: as it came, content-encoding included.
        self.raw: bytes | None = None
        self.error: BaseException | None = None
        #: Whether the last event of the stream is in, and whether upstream said that the body is complete.
        self.over = self.ended = False
        #: Set when nobody in this process reads any more; and if what came is an answer, to be stored with no more read.
        self.left = self.stop = False

    @property
    def refused(self) -> bool:
        """Whether upstream answered with an error status: that response belongs to this caller, unread."""
        return self.response is not None and self.response.status_code != 200

    def _recorded(self, response: Any, raw: bytes) -> wire.Entry | Unstored:
        body = self.library.decoded(response.headers, raw)
        entry = wire.record(self.asked.plan, response.status_code, response.headers, body, ended=True)
        if isinstance(entry, wire.Entry):
            return entry
        headers = dict(wire.head(self.asked.plan, response.headers).headers)
        headers.pop("content-encoding", None)
        return Unstored(200, headers, body, entry, self.asked.reading.echo)

    def _refusal(self, response: Any) -> Unstored | None:
        """Return what is told to others of an error status; raise Failed for one that may be over soon."""
        status = response.status_code
        if status == 200:
            return None
        if status == 429 or status >= 500:
            raise Failed(f"status {status}")
        return Unstored(status, {}, b"", f"status {status}", "")

    def folded(self, chunks: list[Any]) -> wire.Entry:
        """Return what is stored of a whole stream; raise Refused if it is no answer to be stored."""
        if not chunks:
            raise Refused(f"status {self.response.status_code}")
        head, body = chunks[0], self.library.decoded(chunks[0].headers, b"".join(chunks[1:]))
        entry = wire.record(self.asked.plan, 200, head.headers, body, ended=self.ended)
        if isinstance(entry, str):
            raise Refused(entry)
        return entry

    def is_whole(self, head: wire.Head, chunks: list[bytes]) -> bool:
        """Return whether what came so far is an answer, though upstream may have more."""
        try:
            body = self.library.decoded(head.headers, b"".join(chunks))
        except Exception:  # noqa: BLE001  half of a compressed body
            return False
        return wire.is_whole(self.asked.plan, body)


class Call(_Call):
    """The call, made by a thread."""

    def __init__(self, library: Library, asked: Asked, request: Any, send: Send) -> None:
        super().__init__(library, asked, request)
        self._send, self._owner = send, threading.get_ident()
        self._chunks: Iterator[bytes] = iter(())

    def whole(self) -> wire.Entry | Unstored:
        """Send the request and read all of the answer.  Raises Failed, or the library's error."""
        if threading.get_ident() != self._owner:
            return self._behind()
        try:
            response = self.response = self._send(self.request)
            if (refused := self._refusal(response)) is not None:
                return refused
            self.raw = read(response)
            return self._recorded(response, self.raw)
        except BaseException as error:
            self.error = error
            raise

    def _behind(self) -> wire.Entry | Unstored:
        """Return what refreshes a stale answer that its caller has been given already."""
        response = self._send(self.request)
        try:
            return self._refusal(response) or self._recorded(response, read(response))
        finally:
            response.stream.close()

    def produce(self) -> Iterator[wire.Head | bytes]:
        """Send the request; yield a head, then the body as it comes, up to the last event."""
        try:
            response = self._send(self.request)
            self.response = response
            if self._refusal(response) is not None:
                return  # without a head there is nothing to follow
            yield self.asked.reading.head(response.headers)
            ending = wire.Ending(self.asked.plan)
            self._chunks = iter(response.stream)
            for chunk in self._chunks:
                if ending(chunk):
                    self.over = True
                yield chunk
                if self.over or self.stop:
                    return
            self.ended = True
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise
        finally:
            if self.left:
                self.close()

    def rest(self) -> Iterator[bytes]:
        """Return what upstream sends behind the last event: read to its end, the connection can be used again."""
        return self._chunks

    def close(self) -> None:
        """Let go of upstream."""
        if self.response is not None:
            with contextlib.suppress(Exception):  # what matters is what was read
                self.response.stream.close()


class AsyncCall(_Call):
    """The call, made by a task."""

    def __init__(self, library: Library, asked: Asked, request: Any, send: AsyncSend) -> None:
        super().__init__(library, asked, request)
        self._send = send
        task = asyncio.current_task()
        # Not the task itself: its result may be the stream that is to be collected.
        self._owner = None if task is None else weakref.ref(task)
        self._body: _Body | None = None

    async def whole(self) -> wire.Entry | Unstored:
        """Send the request and read all of the answer.  Raises Failed, or the library's error."""
        if self._owner is None or asyncio.current_task() is not self._owner():
            return await self._behind()
        try:
            response = self.response = await self._send(self.request)
            if (refused := self._refusal(response)) is not None:
                return refused
            self.raw = await aread(response)
            return self._recorded(response, self.raw)
        except BaseException as error:
            self.error = error
            raise

    async def _behind(self) -> wire.Entry | Unstored:
        """Return what refreshes a stale answer that its caller has been given already."""
        response = await self._send(self.request)
        try:
            return self._refusal(response) or self._recorded(response, await aread(response))
        finally:
            await response.stream.aclose()

    async def produce(self) -> AsyncIterator[wire.Head | bytes]:
        """
        Send the request; yield a head, then the body as it comes, up to the last event.

        Cancelled after ``left`` was set, it goes on: with an empty chunk, at which the consumer may leave it to others.
        """
        try:
            response = self.response = await self._send(self.request)
            if self._refusal(response) is not None:
                return  # without a head there is nothing to follow
            self._body = _Body(response)
            yield self.asked.reading.head(response.headers)
            ending = wire.Ending(self.asked.plan)
            while True:
                try:
                    chunk = await self._body.next()
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not self.left or task is None:
                        raise
                    task.uncancel()
                    chunk = b""
                if chunk is None:
                    self.ended = True
                    return
                if ending(chunk):
                    self.over = True
                if not self.stop:
                    yield chunk
                if self.over or self.stop:
                    return
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise
        finally:
            if self.left:
                await self.close()

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what upstream sends behind the last event: read to its end, the connection can be used again."""
        while self._body is not None and (chunk := await self._body.next()) is not None:
            yield chunk

    async def close(self) -> None:
        """Let go of upstream."""
        if self._body is not None:
            await self._body.close()
        if self.response is not None:
            with contextlib.suppress(Exception):  # what matters is what was read
                await self.response.stream.aclose()


class _Body:
    """A body that a task of its own reads: who waits for the next chunk may be cancelled, the reading may not."""

    def __init__(self, response: Any) -> None:
        self._chunks: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        self._reading = asyncio.ensure_future(self._read(response))
        self._reading.add_done_callback(lambda _: self._wake())

    async def _read(self, response: Any) -> None:
        async for chunk in response.stream:
            self._chunks.append(chunk)
            self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> bytes | None:
        """Return the next chunk, None at the end.  Raises what reading raised."""
        while not self._chunks:
            if self._reading.done():
                self._reading.result()
                return None
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._chunks.popleft()

    async def close(self) -> None:
        """End the reading."""
        if not self._reading.done():
            self._reading.cancel()
            await asyncio.wait({self._reading})
        elif not self._reading.cancelled():
            self._reading.exception()  # seen


def read(response: Any) -> bytes:
    """Return all of the body, as it came."""
    try:
        return b"".join(response.stream)
    finally:
        response.stream.close()


async def aread(response: Any) -> bytes:
    """Return all of the body, as it came."""
    try:
        return b"".join([chunk async for chunk in response.stream])
    finally:
        await response.stream.aclose()
