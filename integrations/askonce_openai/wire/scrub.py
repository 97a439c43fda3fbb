"""
What an answer echoes of its request, and what is not another caller's business.

The Responses API gives ``metadata``, ``user`` and the like back.  They are not in the key, so they are taken out of
what is stored, in every event, and a hit is given those of its own request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .assembled import Json

ECHOED: Final = (
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prompt_cache_diagnostics",
)

_ECHOED: Final = frozenset(ECHOED)

# Padding against traffic analysis, of no use in a replay.
_PADDING: Final = "obfuscation"

_SCRUBBED: Final = tuple(f'"{name}"'.encode() for name in (*ECHOED, _PADDING))


def may_echo(data: bytes) -> bool:
    """Return whether there may be anything to scrub: a look at the bytes, which saves reading them."""
    return any(name in data for name in _SCRUBBED)


def scrub(value: Json) -> bool:
    """Take out of an answer, or an event, what is its caller's alone; return whether there was anything."""
    scrubbed = value.pop(_PADDING, None) is not None
    for holder in _holders(value):
        for name in ECHOED:
            if holder.get(name):
                holder[name] = {} if name == "metadata" else None
                scrubbed = True
    return scrubbed


def fill(api: str, value: Json, body: Mapping[str, Any]) -> None:
    """Put into an answer, or an event, what it would echo of the request *body*."""
    for holder in _holders(value):
        for name in ECHOED:
            # Only the Responses API echoes what it may not have told before.
            if body.get(name) is not None and (name in holder or api == "responses"):
                holder[name] = body[name]


def is_echoed(body: Mapping[str, Any]) -> bool:
    """Return whether the request *body* holds anything that an answer may echo."""
    return not _ECHOED.isdisjoint(body) and any(body.get(name) is not None for name in ECHOED)


def _holders(value: Json) -> list[Json]:
    """Return what echoes in *value*: the answer itself, a chunk, or the answer inside an event of Responses."""
    if str(value.get("type")).startswith("response."):
        inner = value.get("response")
        return [inner] if isinstance(inner, dict) else []
    return [value]
