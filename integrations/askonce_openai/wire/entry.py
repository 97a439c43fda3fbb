"""
What is stored of an answer: the bytes as they were received, whether JSON or a stream, and a few headers.

Not what an SDK made of them: vendors' fields survive, and the next version of the SDK reads them anew.  The codec also
writes what the leader of a running answer publishes: its head, then its chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import ormsgpack

from .headers import Headers
from .plan import Plan

#: What is stored, and given to followers, of an answer's headers: no cookie, no rate limit of another caller.
KEPT_HEADERS: Final = (
    "content-type",
    "x-request-id",
    "request-id",
    "openai-model",
    "openai-version",
    "openai-processing-ms",
    "date",
)

#: Of what is written here; what has another number is a miss.
_FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A whole answer that was admitted.

    ``form`` is how it was received.  Of a stream: ``usage_asked``, whether the request asked for usage;
    ``usage_seen``, whether the stream carried any.
    """

    form: Literal["json", "sse"]
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    usage_asked: bool = False
    usage_seen: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before the chunks of a running answer: its headers, and the form that its request asked for."""

    headers: Mapping[str, str]
    stream: bool
    wants_usage: bool


def kept(headers: Headers) -> dict[str, str]:
    """Return the headers of an answer that may be given to other callers."""
    return {name: value for name in KEPT_HEADERS if (value := headers.get(name)) is not None}


def head(plan: Plan, headers: Headers) -> Head:
    """Return the head of a running answer; followers are given its chunks as they are, so how they are encoded too."""
    encoding = headers.get("content-encoding")
    further = {} if encoding is None else {"content-encoding": encoding}
    return Head({**kept(headers), **further}, plan.stream, plan.wants_usage)


Part: TypeAlias = Entry | Head | bytes


class _Codec:
    """MessagePack: a list that begins with its format, or the bytes of a chunk.  Bodies stand in it as they are."""

    name = "http"

    def encode(self, value: Part) -> bytes:
        match value:
            case Entry():
                usage = [value.usage_asked, value.usage_seen]
                return ormsgpack.packb([_FORMAT, value.form, dict(value.headers), *usage, value.body])
            case Head():
                asked = [value.stream, value.wants_usage]
                return ormsgpack.packb([_FORMAT, "head", dict(value.headers), *asked])
            case _:
                return ormsgpack.packb(value)

    def decode(self, data: bytes) -> Part:
        """Return what was written; raise ValueError for anything else, half an answer included."""
        # "dict() as headers", since "dict(headers)" takes CPython 3.11 ten times as long.
        match ormsgpack.unpackb(data):
            case bytes() as chunk:
                return chunk
            case [
                2,
                "json" | "sse" as form,
                dict() as headers,
                bool() as asked,
                bool() as seen,
                bytes() as body,
            ]:
                if _are_texts(headers):
                    return Entry(form, body, headers, asked, seen)
            case [2, "head", dict() as headers, bool() as stream, bool() as usage]:
                if _are_texts(headers):
                    return Head(headers, stream, usage)
        raise ValueError("not written by this version")


def _are_texts(headers: dict[str, Any]) -> bool:
    return {str}.issuperset(map(type, headers.values()))  # the names are: another key is no map here


#: Writes and reads what adapters of this package give to the core (an ``askonce.Codec``).
CODEC: Final = _Codec()
