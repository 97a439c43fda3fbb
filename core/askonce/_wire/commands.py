"""Commands as bytes, replies as answers: what both wires have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import hiredis
from redis.connection import DefaultParser
from redis.exceptions import (
    AskError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from ..errors import BackendUnavailable, Moved, OutOfMemory, Unfit
from ..scripts import Arg, Script

R = TypeVar("R")

_MOVED = (AskError, TryAgainError, ClusterDownError)  # redis-py's MovedError is an AskError
# redis-py 5 has these types for its own cluster client alone: elsewhere the first word tells.
_MOVED_WORDS = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")
_UNFIT = (MasterDownError, NoPermissionError, ReadOnlyError)
_UNFIT_WORDS = ("READONLY", "MASTERDOWN", "LOADING", "BUSY ", "NOPERM", "NOAUTH", "NOREPLICAS", "UNKILLABLE")

#: Bytes that are read at a time.
READ_SIZE: Final = 65_536

#: What a ``reader`` returns until there is a whole reply.
MORE: Final = object()

#: Return the exception that stands for an error reply: redis-py's own, so that all of them are told apart alike.
as_error: Final[Callable[[str], Exception]] = DefaultParser.parse_error


def reader() -> hiredis.Reader:
    """Return what makes replies of bytes; an error of Redis is one too."""
    return hiredis.Reader(protocolError=InvalidResponse, replyError=as_error, notEnoughData=MORE)


#: Return one command in the protocol's form.
pack: Callable[[tuple[Arg, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]  # its stub says one


def pack_script(script: Script[Any], keys: tuple[bytes, ...], args: tuple[Arg, ...]) -> bytes:
    """Return the command that runs *script*."""
    return pack(("EVALSHA", script.sha, len(keys), *keys, *args))


def pack_load(script: Script[Any]) -> bytes:
    """Return the command that loads *script*: SCRIPT LOAD, for Redis may drop what came by EVAL (since 7.4)."""
    return pack(("SCRIPT", "LOAD", script.source))


def is_unknown_script(replies: Iterable[Any]) -> bool:
    """Return whether a reply says that the server does not hold the script (new, restarted, flushed)."""
    return any(isinstance(reply, NoScriptError) for reply in replies)


def checked(reply: Any) -> Any:
    """Return *reply*, or raise BackendUnavailable if Redis answered with an error."""
    if isinstance(reply, ResponseError):
        # redis-py takes the first word off these: it makes their type
        word = f"{type(reply).__name__.removesuffix('Error').upper()} " if isinstance(reply, _MOVED) else ""
        raise _kind(reply)(f"Redis answered: {word}{reply}") from reply
    return reply


def _kind(error: ResponseError) -> type[BackendUnavailable]:
    text = str(error)
    # Redis 6.2 wraps the error that a script meets: then only the text says what it is.
    if isinstance(error, OutOfMemoryError) or "OOM " in text or "maxmemory" in text:
        return OutOfMemory
    if isinstance(error, _UNFIT) or any(word in text for word in _UNFIT_WORDS):
        return Unfit
    if isinstance(error, _MOVED) or text.startswith(_MOVED_WORDS):
        return Moved
    return BackendUnavailable


def answer(script: Script[R], reply: Any) -> R:
    """Return the answer of *script*; an answer of another shape is an error of the server, not ours."""
    checked(reply)
    try:
        return script.decode(reply)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise BackendUnavailable(f"{script.name} answered {reply!r:.200}") from error


def answers_of(script: Script[R], replies: Iterable[Any]) -> list[R | BackendUnavailable]:
    """Return the answer, or the error, of each reply to *script*."""
    found: list[R | BackendUnavailable] = []
    for reply in replies:
        try:
            found.append(answer(script, reply))
        except BackendUnavailable as error:
            found.append(error)
    return found
