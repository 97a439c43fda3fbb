"""The outcome of a request: the value, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

T_co = TypeVar("T_co", covariant=True)


class Source(Enum):
    """Where a served value came from."""

    HIT = "hit"  # found fresh
    STALE = "stale"  # found stale; it is being refreshed (RFC 5861, 3)
    STALE_IF_ERROR = "stale-if-error"  # computing failed, the last good answer stands in (RFC 5861, 4)
    COMPUTED = "computed"  # this caller computed it
    COALESCED = "coalesced"  # another caller was computing it already
    BYPASSED = "bypassed"  # computed without the cache: Redis away, waited too long, or told so


@dataclass(frozen=True, slots=True)
class Served(Generic[T_co]):
    """
    A value and its source.

    ``age``: seconds since it was stored, on Redis's clock; 0.0 if it was computed just now.
    ``ttl``: seconds that it stays fresh; 0.0 if it is stale already or was not stored.
    """

    value: T_co
    source: Source
    age: float = 0.0
    ttl: float = 0.0


#: A served value whose type only the caller knows: askonce stores what it is given.
AnyServed = Served[Any]
