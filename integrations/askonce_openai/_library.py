"""What is needed of an HTTP library, httpx or httpx2: same names, different classes, and neither accepts the other's."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Final, Protocol

from askonce.errors import ConfigurationError

from . import _status as status
from . import wire

NAMES: Final = ("httpx", "httpx2")

#: Of an answer that came over no connection.
_EXTENSIONS: Final = {"http_version": b"HTTP/1.1", "reason_phrase": b"OK"}

_ABSENT = b'{"error":{"message":"only-if-cached: not in the cache","type":"cache_miss","code":null}}'


class Reader(Protocol):
    """One reader of an answer that is coming in, for threads."""

    def chunks(self) -> Iterator[bytes]:
        """Yield what comes; a second call goes on where the first one stopped."""
        ...

    def close(self) -> None:
        """Read no more."""


class AsyncReader(Protocol):
    """One reader of an answer that is coming in, for asyncio."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield what comes; a second call goes on where the first one stopped."""
        ...

    async def close(self) -> None:
        """Read no more."""


class Library:
    """Responses and streams of one HTTP library."""

    def __init__(self, module: ModuleType) -> None:
        lib: Any = module
        self.module = lib
        self.name = module.__name__

        class Body(lib.SyncByteStream, lib.AsyncByteStream):  # type: ignore[misc]
            """A whole body.  With ``Response(content=...)`` the client would never close it, and ``.elapsed`` raise."""

            def __init__(self, body: bytes) -> None:
                self._left = [body]

            def __iter__(self) -> Iterator[bytes]:
                while self._left:
                    yield self._left.pop()

            async def __aiter__(self) -> AsyncIterator[bytes]:
                while self._left:  # openai 3 iterates a second time, to drain
                    yield self._left.pop()

        class Stream(lib.SyncByteStream):  # type: ignore[misc]
            """A body that is coming in, for threads."""

            def __init__(self, reader: Reader) -> None:
                self._reader = reader

            def __iter__(self) -> Iterator[bytes]:
                return self._reader.chunks()

            def close(self) -> None:
                self._reader.close()

        class AsyncStream(lib.AsyncByteStream):  # type: ignore[misc]
            """A body that is coming in, for asyncio."""

            def __init__(self, reader: AsyncReader) -> None:
                self._reader = reader

            def __aiter__(self) -> AsyncIterator[bytes]:
                return self._reader.chunks()

            async def aclose(self) -> None:
                await self._reader.close()

        self._body: Callable[[bytes], Any] = Body
        self._stream: Callable[[Reader], Any] = Stream
        self._async_stream: Callable[[AsyncReader], Any] = AsyncStream

    def rendered(self, body: bytes, headers: Mapping[str, str], fields: Mapping[str, str]) -> Any:
        """Return an answer that was not received for this request."""
        return self._response(200, self._headers({**headers, **fields}), self._body(body), _EXTENSIONS)

    def own(self, response: Any, word: str, body: bytes | None = None) -> Any:
        """Return an answer that was received for this request; with *body*, what was read of it."""
        if body is not None:
            response = self._response(
                response.status_code, response.headers, self._body(body), response.extensions
            )
        before = response.headers.get(status.FIELD)
        response.headers[status.FIELD] = status.appended(before, word)
        return response

    def running(self, reader: Reader, head: wire.Head | None, response: Any, word: str) -> Any:
        """Return an answer that is coming in: the caller's own *response*, or another one's *head*."""
        return self._running(self._stream(reader), head, response, word)

    def arunning(self, reader: AsyncReader, head: wire.Head | None, response: Any, word: str) -> Any:
        """Do what ``running`` does, for asyncio."""
        return self._running(self._async_stream(reader), head, response, word)

    def _running(self, stream: Any, head: wire.Head | None, response: Any, word: str) -> Any:
        if head is not None:  # not the other's cookies and rate limits
            return self._response(200, self._headers({**head.headers, status.FIELD: word}), stream, None)
        made = self._response(200, response.headers, stream, response.extensions)
        return self.own(made, word)

    def absent(self) -> Any:
        """Return the answer to only-if-cached (RFC 9111, 5.2.1.7); SDKs retry a 504 unless they are told not to."""
        headers = {
            "content-type": "application/json",
            "content-length": str(len(_ABSENT)),
            "x-should-retry": "false",
            status.FIELD: status.ONLY_IF_CACHED,
        }
        return self._response(504, headers, self._body(_ABSENT), None)

    def with_content(self, request: Any, content: bytes) -> Any:
        """Return *request* with another body."""
        headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"content-length"]
        return self.module.Request(
            request.method, request.url, headers=headers, content=content, extensions=request.extensions
        )

    def decoded(self, headers: Any, raw: bytes) -> bytes:
        """Return a body without its content-encoding, by the library's own decoder."""
        encoding = headers.get("content-encoding")
        if not encoding:
            return raw
        content: bytes = self.module.Response(
            200, headers={"content-encoding": encoding}, content=raw
        ).content
        return content

    def _headers(self, headers: Mapping[str, str]) -> Any:
        """Return headers as they were received; without an encoding what is no ASCII would be an error."""
        return self.module.Headers(headers, "utf-8")

    def _response(self, code: int, headers: Any, stream: Any, extensions: Any) -> Any:
        return self.module.Response(
            code, headers=headers, stream=stream, extensions=extensions or {"http_version": b"HTTP/1.1"}
        )


@functools.cache
def library(module: ModuleType) -> Library:
    """Return the Library of *module*: one for each, so that its classes are made once."""
    return Library(module)


def library_of(http: object) -> Library:
    """Return the library that an HTTP client belongs to; raise ConfigurationError if it is of neither."""
    for cls in type(http).__mro__:
        name = cls.__module__.partition(".")[0]
        if name in NAMES and name in sys.modules:
            return library(sys.modules[name])
    raise ConfigurationError(
        f"{type(http).__module__}.{type(http).__qualname__} is no client of httpx or httpx2, nor of an SDK on one; give "
        "OpenAI(), AsyncOpenAI(), Anthropic(), httpx.Client() or the like"
    )
