"""
Server-sent events: read, written, and watched for the last one.

https://html.spec.whatwg.org/multipage/server-sent-events.html, 9.2.6: lines end in LF, CR LF or CR, a blank line ends
an event, a line that starts with a colon is a comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from .plan import Plan

_BOM: Final = b"\xef\xbb\xbf"

# json.dumps makes one for each call.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

#: What chat and completions send after the last chunk.
DONE: Final = b"data: [DONE]\n\n"


class Event(NamedTuple):
    """One event: its name (or empty), its data (or empty), and its lines as they came, less comments."""

    name: str
    data: bytes
    raw: bytes

    @property
    def is_done(self) -> bool:
        """Whether this is the mark that nothing follows."""
        return self.data.startswith(b"[DONE]")

    @property
    def kind(self) -> str:
        """What happened, in the APIs that name it: by the event's name, else by the type in its data."""
        if self.name:
            return self.name
        value = self.read()
        return value["type"] if isinstance(value.get("type"), str) else ""

    def read(self) -> dict[str, Any]:
        """Return the data as JSON; raise ValueError if it is no JSON object."""
        value = json.loads(self.data)
        if isinstance(value, dict):
            return value
        raise ValueError("no object")


def events(body: bytes, *, ended: bool = True) -> Iterator[Event]:
    """Iterate over the events in *body*; the last one may lack its blank line if the stream has *ended*."""
    lines: list[bytes] = []
    for line in body.removeprefix(_BOM).splitlines():
        if line:
            if not line.startswith(b":"):  # a comment keeps a connection open: no use in a replay
                lines.append(line)
        elif lines:
            yield _event(lines)
            lines = []
    if ended and lines:
        yield _event(lines)


def _event(lines: list[bytes]) -> Event:
    name, data = "", []
    for line in lines:
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ").decode("utf-8", "replace")
    return Event(name, b"\n".join(data), b"\n".join(lines) + b"\n\n")


def written(value: object, name: str = "") -> bytes:
    """Return an event with *value* as its data."""
    head = f"event: {name}\n" if name else ""
    return head.encode() + b"data: " + compact(value) + b"\n\n"


def compact(value: object) -> bytes:
    """Return *value* as JSON, as the APIs write it: UTF-8, no blanks; raise ValueError for what JSON cannot say."""
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:  # a lone surrogate, which has no UTF-8
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _lines(name: str) -> tuple[bytes, ...]:
    """Return how a line may begin that names an event, or gives its type first."""
    lines = [f"event: {name}", f"event:{name}"]
    lines += [f'data:{blank}{{"type":{inner}"{name}"' for blank in ("", " ") for inner in ("", " ")]
    return tuple(line.encode() for line in lines)


_DONE_LINES: Final = (b"data: [DONE]", b"data:[DONE]")
_LAST: Final = {
    "responses": (*_DONE_LINES, *_lines("response.completed"), *_lines("response.incomplete")),
    "messages": (*_DONE_LINES, *_lines("message_stop")),
}
_LONGEST_MARK: Final = max(len(mark) for marks in _LAST.values() for mark in marks)


class Ending:
    """
    Tells when the last event of a stream has come in whole, chunk by chunk, at a microsecond each.

    It looks at how lines begin, which is exact: JSON holds no raw line end.  It keeps a few bytes, never the stream.
    """

    __slots__ = ("_after_cr", "_line", "_marked", "_marks")

    def __init__(self, plan: Plan) -> None:
        self._marks = _LAST.get(plan.api, _DONE_LINES)
        self._line = b""  # how the line begins that has not ended yet
        self._marked = False  # whether the event that has not ended yet is the last one
        self._after_cr = False

    def __call__(self, chunk: bytes) -> bool:
        """Return whether the last event ended in this chunk."""
        if not chunk:
            return False
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a line end
        self._after_cr = chunk.endswith(b"\r")
        lines = (self._line + chunk).splitlines()
        ends = chunk.endswith((b"\n", b"\r"))
        self._line = lines.pop()[:_LONGEST_MARK] if lines and not ends else b""
        came = False
        for line in lines:
            if not line:
                came, self._marked = came or self._marked, False
            elif line.startswith(self._marks):
                self._marked = True
        return came
