"""
From the bytes of an answer to the entry that is stored.

Whether a stream is whole is judged by its content, since its reader mostly leaves at the last event, before the end of
the body.  However the bytes were split on their way, the entry is the same: it ends with the answer's last event.
"""

from __future__ import annotations

import json
from typing import Final

from .admission import expected, refusal
from .assembled import Assembled, assembled
from .entry import Entry, kept
from .headers import Headers
from .plan import Plan
from .scrub import may_echo, scrub
from .sse import DONE, Event, compact, events, written

_OK: Final = 200
_STREAM: Final = "text/event-stream"
_CHUNKED: Final = frozenset({"chat", "completions"})

#: What reading an answer of another shape may raise.
UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def record(plan: Plan, status: int, headers: Headers, body: bytes, *, ended: bool) -> Entry | str:
    """
    Return the entry of an answer, or in few words why it is not stored.

    ``body`` is all that was received, its content-encoding undone.  ``ended``: the server said that it is complete;
    otherwise its reader has stopped there, and a stream may be whole all the same.
    """
    if status != _OK:
        return f"status {status}"
    try:
        if (headers.get("content-type") or "").lower().startswith(_STREAM):
            return _stream(plan, headers, body, ended)
        return _json(plan, headers, body) if ended else "incomplete"
    except UNREADABLE:
        return "unreadable"


def is_whole(plan: Plan, body: bytes, *, ended: bool = False) -> bool:
    """Return whether nothing of a stream's answer is missing, good or bad."""
    try:
        read = assembled(plan.api, list(events(body, ended=ended)))
        return _is_whole(plan, read, ended)
    except UNREADABLE:
        return False


def _is_whole(plan: Plan, read: Assembled, ended: bool) -> bool:
    if read.closed or ended:
        return True
    if plan.api not in _CHUNKED:
        return False
    finished = [choice["finish_reason"] is not None for choice in read.answer.get("choices") or ()]
    told = not plan.wants_usage or bool(read.answer["usage"])
    return told and len(finished) >= expected(plan.body) and all(finished)


def _json(plan: Plan, headers: Headers, body: bytes) -> Entry | str:
    answer = json.loads(body)
    if reason := refusal(plan.api, plan.body, answer):
        return reason
    if may_echo(body) and scrub(answer):
        body = compact(answer)
    return Entry("json", body, kept(headers))


def _stream(plan: Plan, headers: Headers, body: bytes, ended: bool) -> Entry | str:
    read = assembled(plan.api, list(events(body, ended=ended)))
    if not _is_whole(plan, read, ended):
        return "incomplete"
    if reason := refusal(plan.api, plan.body, read.answer):
        return reason
    told = [event for event in read.events if not event.is_done]
    parts = [_scrubbed(event) for event in told] if may_echo(body) else [event.raw for event in told]
    if plan.api in _CHUNKED:
        parts.append(DONE)  # some servers leave it out, and some readers leave before it
    usage_seen = bool(read.answer.get("usage"))
    return Entry("sse", b"".join(parts), kept(headers), plan.wants_usage, usage_seen)


def _scrubbed(event: Event) -> bytes:
    if not may_echo(event.data):
        return event.raw
    value = event.read()
    return written(value, event.name) if scrub(value) else event.raw
