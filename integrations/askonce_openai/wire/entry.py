"""
What is stored of an answer: the bytes as they were received, whether JSON or a stream, and a few headers.

Not what an SDK made of them: vendors' fields survive, and the next version of the SDK reads them anew.  The codec also
writes what the leader of a running answer publishes: its head, then its chunks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from .headers import Headers
from .plan import Plan
from .sse import compact

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

_FORMAT: Final = 1


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
    """One letter that says which, then the thing; no base64, no JSON inside JSON."""

    name = "http"

    def encode(self, value: Part) -> bytes:
        match value:
            case Entry():
                about = {
                    "v": _FORMAT,
                    "form": value.form,
                    "headers": dict(value.headers),
                    "usage": [value.usage_asked, value.usage_seen],
                    "length": len(value.body),
                }
                return b"E" + compact(about) + b"\n" + value.body
            case Head():
                asked = [value.stream, value.wants_usage]
                return b"H" + compact({"v": _FORMAT, "headers": dict(value.headers), "asked": asked})
            case _:
                return b"C" + value

    def decode(self, data: bytes) -> Part:
        """Return what was written; raise ValueError for anything else."""
        kind, rest = data[:1], data[1:]
        if kind == b"C":
            return rest
        line, _, body = rest.partition(b"\n")
        about = json.loads(line)
        match kind, about:
            case b"E", {
                "v": 1,
                "form": "json" | "sse" as form,
                "headers": dict(headers),
                "usage": [bool(asked), bool(seen)],
                "length": int(length),
            } if _texts(headers) and length == len(body):  # half an answer is none
                return Entry(form, body, headers, asked, seen)
            case b"H", {"v": 1, "headers": dict(headers), "asked": [bool(stream), bool(usage)]} if _texts(
                headers
            ):
                return Head(headers, stream, usage)
        raise ValueError("not written by this version")


def _texts(given: dict[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in given.values())


#: Writes and reads what adapters of this package give to the core (an ``askonce.Codec``).
CODEC: Final = _Codec()
