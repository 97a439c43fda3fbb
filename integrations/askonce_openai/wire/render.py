"""
From a stored entry to the answer of this request, in the form that it asks for.

| entry                | asked for               | given                                                   |
|----------------------|-------------------------|---------------------------------------------------------|
| JSON                 | stream                  | a stream made of it                                     |
| stream with usage    | JSON                    | put together                                            |
| stream with usage    | stream without          | its usage taken out, if it was there for being asked    |
| stream without usage | JSON, or with usage     | a miss: a typed ``usage`` would be None                 |
| ... though asked for | stream with usage       | as it is: the server tells none                         |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from askonce import ConfigurationError

from .assembled import Json, assembled
from .entry import Entry
from .plan import Plan
from .record import UNREADABLE
from .scrub import fill, is_echoed
from .sse import compact, events, written
from .streamed import streamed

_TYPES: Final = {"json": "application/json", "sse": "text/event-stream; charset=utf-8"}
_CHUNKED: Final = frozenset({"chat", "completions"})
_OPTIONS: Final = {"replay": ("verbatim", "coalesced"), "usage_on_hit": ("keep", "zero")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """
    How a hit looks; by default exactly as the answer was received.

    ``replay="coalesced"`` gives a stream in few large events, which saves the SDK its work on many small ones.
    ``fresh_ids`` gives each hit ids of its own, which mean nothing to the provider.  ``usage_on_hit="zero"`` is for
    meters: nothing was used.
    """

    replay: Literal["verbatim", "coalesced"] = "verbatim"
    fresh_ids: bool = False
    usage_on_hit: Literal["keep", "zero"] = "keep"

    def __post_init__(self) -> None:
        for name, allowed in _OPTIONS.items():
            if (given := getattr(self, name)) not in allowed:
                raise ConfigurationError(f"{name}={given!r} is not known: give one of {', '.join(allowed)}")
        if not isinstance(self.fresh_ids, bool):
            raise ConfigurationError(f"fresh_ids={self.fresh_ids!r}: give True or False")


class Rendered(NamedTuple):
    """The answer to this request; ``headers`` are those that were stored, with the content-type of this form."""

    body: bytes
    headers: Mapping[str, str]


AS_RECEIVED: Final = Hits()


def render(plan: Plan, entry: object, hits: Hits = AS_RECEIVED, *, token: str = "") -> Rendered | None:
    """
    Return the answer that *entry* gives to this request, or None: a miss.

    ``token`` is what fresh ids are made of: random text, another for each hit.
    """
    if not isinstance(entry, Entry):
        return None
    try:
        body = _as_stream(plan, entry, hits) if plan.stream else _as_json(plan, entry)
        if body is None:
            return None
        if hits.usage_on_hit == "zero":
            body = _changed(body, plan.stream, _without_cost)
        if hits.fresh_ids:
            body = _changed(body, plan.stream, _renamed(_ids(plan, entry), token))
    except UNREADABLE:
        return None
    form: Literal["json", "sse"] = "sse" if plan.stream else "json"
    if entry.form == form and "content-type" in entry.headers:
        return Rendered(body, entry.headers)
    return Rendered(body, {**entry.headers, "content-type": _TYPES[form]})


def _as_json(plan: Plan, entry: Entry) -> bytes | None:
    if entry.form == "json":
        if not is_echoed(plan.body):
            return entry.body
        answer = json.loads(entry.body)
    else:
        read = assembled(plan.api, list(events(entry.body)))
        if not read.exact or (plan.api in _CHUNKED and not entry.usage_seen):
            return None
        answer = read.answer
    fill(plan.api, answer, plan.body)
    return compact(answer)


def _as_stream(plan: Plan, entry: Entry, hits: Hits) -> bytes | None:
    if entry.form == "json":
        return _made(plan, json.loads(entry.body))
    if plan.api in _CHUNKED and plan.wants_usage and not (entry.usage_seen or entry.usage_asked):
        return None
    if hits.replay == "coalesced":
        read = assembled(plan.api, list(events(entry.body)))
        if read.exact:
            return _made(plan, read.answer)
    body = entry.body
    if is_echoed(plan.body):
        body = _changed(body, True, lambda value: fill(plan.api, value, plan.body))
    if plan.api in _CHUNKED and entry.usage_asked and not plan.wants_usage:
        return _without_usage(body)
    return body


def _made(plan: Plan, answer: Json) -> bytes | None:
    fill(plan.api, answer, plan.body)
    return streamed(plan.api, answer, wants_usage=plan.wants_usage)


def _without_usage(body: bytes) -> bytes:
    parts: list[bytes] = []
    for event in events(body):
        if b'"usage"' not in event.data:
            parts.append(event.raw)
            continue
        value = event.read()
        if value.pop("usage", None) and not value.get("choices"):
            continue  # the chunk that was sent for its usage
        parts.append(written(value, event.name))
    return b"".join(parts)


# --- options ------------------------------------------------------------------------------------------------------


def _changed(body: bytes, stream: bool, change: Callable[[Json], None]) -> bytes:
    """Return *body* with *change* made to its answer, or to each of its events."""
    if not stream:
        answer = json.loads(body)
        change(answer)
        return compact(answer)
    parts: list[bytes] = []
    for event in events(body):
        if not event.data or event.is_done:
            parts.append(event.raw)
        else:
            value = event.read()
            change(value)
            parts.append(written(value, event.name))
    return b"".join(parts)


def _without_cost(value: Json) -> None:
    for holder in (value, value.get("response"), value.get("message")):
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            holder["usage"] = _zero(holder["usage"])


def _zero(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _zero(inner) for name, inner in value.items()}
    return 0 if isinstance(value, int | float) and not isinstance(value, bool) else value


#: Where an answer, and the events about it, hold ids of the answer and of its parts.
_ID_NAMES: Final = frozenset({"id", "item_id", "call_id"})


def _ids(plan: Plan, entry: Entry) -> set[str]:
    """Return the ids that the provider gave to this answer, its items and its calls."""
    if entry.form == "json":
        answer = json.loads(entry.body)
    else:
        answer = assembled(plan.api, list(events(entry.body))).answer
    found = [answer.get("id")]
    for choice in answer.get("choices") or ():
        found += [call.get("id") for call in (choice.get("message") or {}).get("tool_calls") or ()]
    for item in (*(answer.get("output") or ()), *(answer.get("content") or ())):
        found += [item.get("id"), item.get("call_id")]
    return {one for one in found if isinstance(one, str) and one}


def _renamed(old: set[str], token: str) -> Callable[[Json], None]:
    """Return what gives each id of *old* a new one with the same prefix, the same wherever it stands."""
    new: dict[str, str] = {}
    for one in old:
        prefix = one[: max(one.rfind("-"), one.rfind("_")) + 1]
        digest = hashlib.blake2b(f"{token} {one}".encode("utf-8", "surrogatepass"), digest_size=12)
        new[one] = prefix + digest.hexdigest()

    def rename(value: Any) -> None:
        if isinstance(value, list):
            for inner in value:
                rename(inner)
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name in _ID_NAMES and isinstance(inner, str):
                    value[name] = new.get(inner, inner)
                else:
                    rename(inner)

    return rename
