"""
What the headers of one request ask of the cache, on top of the ``askonce.control`` block around it.

``cache-control`` has its meaning of RFC 9111, 5.2.1; the rest are headers of our own, which never reach upstream.  Of
two askers the stricter wins; for ``ttl`` and ``scope`` the header.  A ``ttl`` that cannot be read is ignored; any text
is a scope, since one that was ignored would let callers share what they keep apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypedDict

from askonce import ConfigurationError
from askonce.control import Control
from askonce.policy import seconds

from .headers import OWN_PREFIX, Headers

# RFC 9111, 1.2.2: a greater number counts as this; ten years is the longest duration of the core.
_LONGEST: Final = 3650 * 86_400.0


class Words(TypedDict, total=False):
    """The keyword arguments of ``askonce.control`` that headers give."""

    read: bool
    write: bool
    ttl: float
    max_age: float
    tags: tuple[str, ...]
    scope: dict[str, object]
    only_if_cached: bool


@dataclass(frozen=True, slots=True)
class Directives:
    """
    What holds for this request.

    ``words`` are for ``askonce.control(**words)`` around the call: what the headers change, nothing else.
    """

    read: bool = True
    write: bool = True
    max_age: float | None = None
    only_if_cached: bool = False
    words: Words = field(default_factory=Words)


def directives(headers: Headers, outer: Control) -> Directives:
    """Return what *headers* and the block around the call ask for together."""
    words = _cache_control(headers.get("cache-control") or "", outer)
    if (ttl := _ttl(headers.get(OWN_PREFIX + "ttl") or "")) is not None:
        words["ttl"] = ttl
    if scope := headers.get(OWN_PREFIX + "scope"):
        words["scope"] = _scope(scope)
    if tags := _listed(headers.get(OWN_PREFIX + "tags") or ""):
        words["tags"] = tuple(tags)
    return Directives(
        read=words.get("read", outer.read),
        write=words.get("write", outer.write),
        max_age=words.get("max_age", outer.max_age),
        only_if_cached=words.get("only_if_cached", outer.only_if_cached),
        words=words,
    )


def _cache_control(text: str, outer: Control) -> Words:
    words = Words()
    for directive in _listed(text.lower()):
        name, _, value = directive.partition("=")
        match name.strip():
            case "no-cache":
                words["read"] = False
            case "no-store":
                words["write"] = False
            case "only-if-cached":
                words["only_if_cached"] = True
            case "max-age":
                age = value.strip().strip('"')
                if not (age.isascii() and age.isdigit()) or int(age[:12]) == 0:
                    words["read"] = False  # unreadable counts as stale: RFC 9111, 4.2.1
                else:
                    limits = (float(age[:12]), words.get("max_age"), outer.max_age, _LONGEST)
                    words["max_age"] = min(limit for limit in limits if limit is not None)
    return words


def _ttl(text: str) -> float | None:
    try:
        return seconds("ttl", float(text) if _is_number(text) else text, at_least=0.001)
    except ConfigurationError:
        return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _scope(text: str) -> dict[str, object]:
    """Return ``tenant=acme, repo=x`` as the parts it names; any other text as one part."""
    pairs = [part.partition("=") for part in _listed(text)]
    names = {name.strip() for name, _, _ in pairs}
    if all(name.strip() and equals for name, equals, _ in pairs) and len(names) == len(pairs) > 0:
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {"scope": text}


def _listed(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]
