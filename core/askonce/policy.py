"""
How long an answer may be served.

The lifetimes are those of HTTP caching: a freshness lifetime (RFC 9111, section 4.2) and the two windows behind it,
stale-while-revalidate and stale-if-error (RFC 5861, sections 3 and 4).  Everything here is arithmetic on frozen
values; the clock that it is judged by is the Redis server's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from typing import Any, TypeAlias

from .errors import ConfigurationError

#: Seconds, a ``timedelta``, or text such as ``"250ms"``, ``"90s"``, ``"15m"``, ``"24h"``, ``"7d"``.
Duration: TypeAlias = float | str | timedelta

#: Bytes, or text such as ``"64kb"``, ``"512mb"``, ``"2gb"`` (powers of 1024, as in redis.conf).
Size: TypeAlias = int | str

_DURATION = re.compile(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*(ms|s|m|h|d|w)\s*")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_SIZE = re.compile(r"\s*(\d{1,15})\s*(b|kb|mb|gb)\s*", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}

_MOST_USES = 1_000_000_000

#: The books hold expiry times up to the year 2092 (see scripts/_books.lua); ten years stay well below.
_LONGEST = 3650 * 86_400.0


def seconds(name: str, value: Duration, *, at_least: float = 0.0) -> float:
    """Return a duration in seconds, or raise ConfigurationError naming the argument *name*."""
    result: float | None = None
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        if match := _DURATION.fullmatch(value):
            result = float(match[1]) * _SECONDS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        result = float(min(value, _LONGEST * 2))  # beyond any limit, and still a float
    if result is None or math.isnan(result):
        raise ConfigurationError(
            f"{name}={value!r} is no duration: give seconds, a timedelta, or text such as '90s', '15m', '24h', '7d'"
        )
    if not at_least <= result <= _LONGEST:
        raise ConfigurationError(f"{name}={value!r} is out of range: give {at_least:g} s to 3650 days")
    return result


def lifetime_ms(ttl: Duration | None) -> int | None:
    """Return a caller's ``ttl`` in milliseconds, at least 1; None if none was given."""
    return None if ttl is None else round(seconds("ttl", ttl, at_least=0.001) * 1000)


def size(name: str, value: Size) -> int:
    """Return a size in bytes, or raise ConfigurationError naming the argument *name*."""
    result: int | None = None
    if isinstance(value, str):
        if match := _SIZE.fullmatch(value):
            result = int(match[1]) * _BYTES[match[2].lower()]
    elif isinstance(value, int) and not isinstance(value, bool):
        result = value
    if result is None or result < 1:
        raise ConfigurationError(
            f"{name}={value!r} is no size: give a positive number of bytes, or text such as '64kb', '512mb', '2gb'"
        )
    return result


def whole(name: str, value: int, most: int, what: str = "bound") -> int:
    """Return a whole number from 1 to *most*, or raise ConfigurationError naming the argument *name*."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ConfigurationError(f"{name}={value!r} is no {what}; give a whole number from 1 to {most}")
    return value


class Freshness(Enum):
    """What an entry's age allows a reader to do."""

    FRESH = "fresh"  # serve it
    EARLY = "early"  # serve it, fresh as it is, and refresh it behind the caller
    STALE = "stale"  # serve it, and refresh it behind the caller (RFC 5861, 3)
    EXPIRED = "expired"  # serve it only if computing a new one fails (RFC 5861, 4)
    DEAD = "dead"  # do not serve it


class Refused(Exception):
    """Admission refuses an answer; *reason* is a short word that it is counted by."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not admitted: {reason}")
        self.reason = reason


#: Decides whether an answer is stored: returns None to store it under the call's lifetime, a duration to store it
#: for that long, or raises Refused.  Whatever else it raises refuses too, with that as the reason.
Admit: TypeAlias = Callable[[Any], Duration | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hot:
    """
    When an answer is asked for so often that it earns a longer life.

    Asked ``threshold`` times within ``window`` by the whole fleet, it is kept fresh for ``ttl`` from each further use,
    but never longer than ``max_age`` after it was stored.
    """

    threshold: int = 10
    window: Duration = 3600.0
    ttl: Duration = 21_600.0
    max_age: Duration = 604_800.0

    def __post_init__(self) -> None:
        whole("hot threshold", self.threshold, _MOST_USES, "number of uses")
        for name, at_least in (("window", 1.0), ("ttl", 0.001), ("max_age", 0.001)):
            object.__setattr__(self, name, seconds(f"hot {name}", getattr(self, name), at_least=at_least))

    @property
    def window_ms(self) -> int:
        """The window in which uses are counted, in milliseconds."""
        return round(_float(self.window) * 1000)

    @property
    def ttl_ms(self) -> int:
        """How much longer each use keeps a hot answer, in milliseconds."""
        return round(_float(self.ttl) * 1000)

    @property
    def max_age_ms(self) -> int:
        """The greatest age of a hot answer, in milliseconds."""
        return round(_float(self.max_age) * 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """
    Lifetimes and patience.

    ``ttl`` is the freshness lifetime.  ``jitter`` shortens each lifetime by a random part of up to that fraction,
    so that entries stored together do not expire together; an answer is never served as fresh longer than ``ttl``
    unless it is ``hot``.  ``early`` refreshes a fresh answer behind a caller, the likelier the nearer its end and the
    longer it took to compute: 1.0 is the rule of Vattani, Chierichetti and Lowenstein ("Optimal Probabilistic Cache
    Stampede Prevention", VLDB 2015), 0.0 is off.
    ``lease`` is how long a dead leader can hold others up, ``max_wait`` how long anyone waits for a living one
    before making the call alone.
    """

    ttl: Duration = 86_400.0
    stale_while_revalidate: Duration = 0.0
    stale_if_error: Duration = 0.0
    jitter: float = 0.0
    early: float = 0.0
    hot: Hot | None = None
    lease: Duration = 10.0
    max_wait: Duration = 120.0
    #: Worked out from these, in milliseconds: the freshness lifetime, at least 1; how long past it an entry is
    #: retained, the longer of the two stale windows; the time of a lease.
    ttl_ms: int = field(init=False, repr=False, compare=False)
    window_ms: int = field(init=False, repr=False, compare=False)
    lease_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, at_least in (
            ("ttl", 0.001),
            ("stale_while_revalidate", 0.0),
            ("stale_if_error", 0.0),
            ("lease", 0.05),
            ("max_wait", 0.0),
        ):
            object.__setattr__(self, name, seconds(name, getattr(self, name), at_least=at_least))
        early = self.early
        if isinstance(early, bool) or not isinstance(early, int | float) or not 0.0 <= early <= 100.0:
            raise ConfigurationError(
                f"early={early!r} is no factor: give 0 (off), 1 (the rule), or up to 100"
            )
        if self.hot is not None and not isinstance(self.hot, Hot):
            raise ConfigurationError(
                f"hot={self.hot!r} is no Hot: give askonce.Hot(threshold=10, window='1h')"
            )
        jitter = self.jitter
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0.0 <= jitter < 1.0:
            raise ConfigurationError(
                f"jitter={jitter!r} is no fraction: give 0 (none) up to, not including, 1"
            )
        window = max(_float(self.stale_while_revalidate), _float(self.stale_if_error))
        object.__setattr__(self, "ttl_ms", max(1, round(_float(self.ttl) * 1000)))
        object.__setattr__(self, "window_ms", round(window * 1000))
        object.__setattr__(self, "lease_ms", round(_float(self.lease) * 1000))

    @classmethod
    def short(cls) -> Policy:
        """
        Fifteen minutes: prompts that are being worked on, answers about things that move.

        Costs the most calls: a question asked all day reaches the model up to 96 times.  Needs the least memory.
        """
        return cls(ttl="15m", stale_if_error="1h", jitter=0.1)

    @classmethod
    def medium(cls) -> Policy:
        """
        One day, refreshed behind the caller for another hour: most applications.

        A question asked all day reaches the model once a day, and nobody waits for that call.
        """
        return cls(ttl="24h", stale_while_revalidate="1h", stale_if_error="24h", jitter=0.1)

    @classmethod
    def long(cls) -> Policy:
        """
        Thirty days: the key holds everything that the answer depends on (a hash of the code, a prompt version).

        Costs memory instead of calls, and trust in the key: a changed model behind the same name is seen late.
        """
        return cls(ttl="30d", stale_while_revalidate="1d", stale_if_error="7d", jitter=0.1)

    @property
    def max_wait_s(self) -> float:
        """How long to wait for another caller's answer, in seconds."""
        return _float(self.max_wait)

    def lifetime_ms(self, ttl_ms: int | None, draw: float) -> int:
        """Return the freshness lifetime of one entry; *draw*, from 0 up to 1, decides its share of the jitter."""
        full = self.ttl_ms if ttl_ms is None else ttl_ms
        return full if self.jitter == 0.0 else max(1, round(full * (1.0 - self.jitter * draw)))

    def judge(self, fresh_until_ms: int, now_ms: int) -> Freshness:
        """Say what may be done with an entry that is fresh until *fresh_until_ms* (RFC 9111, 4.2; RFC 5861)."""
        staleness = (now_ms - fresh_until_ms) / 1000
        if staleness < 0:
            return Freshness.FRESH
        if staleness < _float(self.stale_while_revalidate):
            return Freshness.STALE
        if staleness < _float(self.stale_if_error):
            return Freshness.EXPIRED
        return Freshness.DEAD

    def is_early(self, fresh_until_ms: int, now_ms: int, cost_ms: int, draw: float) -> bool:
        """Say whether a fresh entry is to be refreshed now; *draw*, from 0 up to 1, is this caller's chance."""
        return self.early > 0 and now_ms - cost_ms * self.early * math.log(1.0 - draw) >= fresh_until_ms

    def but(self, *, ttl: Duration) -> Policy:
        """Return this policy with another ``ttl``."""
        return replace(self, ttl=ttl)


def _float(value: Duration) -> float:
    """Name what ``__post_init__`` has made of every duration: seconds."""
    assert isinstance(value, float)  # noqa: S101  narrows for the type checkers
    return value
