"""What became of a request, in the words of RFC 9211 (``Cache-Status``) and RFC 9111, 5.1 (``Age``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from askonce import Served, Source

#: The name of the field, and of this cache in it.
FIELD: Final = "cache-status"
_NAME: Final = "askonce"

MISS: Final = f"{_NAME}; fwd=miss"
#: Asked for by the caller: ``no-cache``, or ``control(read=False)``.
REQUEST: Final = f"{_NAME}; fwd=request"
COLLAPSED: Final = f"{_NAME}; fwd=miss; collapsed"
ONLY_IF_CACHED: Final = f"{_NAME}; fwd=miss; detail=only-if-cached"

_HIT: Final = {
    Source.HIT: "",
    Source.STALE: "; detail=stale",
    Source.STALE_IF_ERROR: "; detail=stale-if-error",
}


def of_served(served: Served[object], key: Callable[[], str]) -> dict[str, str]:
    """Return the fields of an answer that did not come from this caller's own call; *key* tells a hit's fingerprint."""
    detail = _HIT.get(served.source)
    if detail is None:
        return {FIELD: COLLAPSED}
    word = f'{_NAME}; hit; ttl={int(served.ttl)}; key="{key()}"{detail}'
    return {FIELD: word, "age": str(int(served.age))}


def of_own(*, read: bool) -> str:
    """Return the status of an answer that came from this caller's own call."""
    return MISS if read else REQUEST


def bypass(reason: str) -> str:
    """Return the status of an answer that the cache had no part in."""
    return f'{_NAME}; fwd=bypass; detail="{reason}"'


def of_items(hits: int, asked: int) -> str:
    """Return the status of an answer that was put together of *asked* items, *hits* of them stored."""
    if hits == asked:
        return f"{_NAME}; hit"
    return f'{MISS}; detail="{hits} of {asked} items stored"' if hits else MISS


def appended(before: str | None, status: str) -> str:
    """Return the field with this cache's member behind those of caches nearer to the origin (RFC 9211, 2)."""
    return f"{before}, {status}" if before else status
