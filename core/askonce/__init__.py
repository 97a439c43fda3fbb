"""
Ask a model once: a response cache for LLM applications, on Redis.

    from askonce import Cache

    cache = Cache("redis://localhost:6379/0", namespace="docs")
    answer = cache.get_or_compute({"model": "gpt-4o-mini", "prompt": "Why?"}, call_the_model)

The names below are the public API; every other module is private.
"""

from ._aio import AsyncCache, AsyncLease
from ._cache import Cache, Lease
from ._warm import WarmReport
from .control import control
from .entry import Codec, Unusable
from .errors import (
    AskonceError,
    BackendUnavailable,
    ConfigurationError,
    LeaderFailed,
    MissingExtra,
    NotCached,
    StreamBroken,
    Uncacheable,
)
from .keys import Difference, Explanation, Request, Verbatim
from .near import Near
from .policy import Admit, Duration, Freshness, Hot, Policy, Refused, Size
from .served import Served, Source
from .stats import EntryInfo, Event, Stats, Usage
from .upstream import in_upstream, upstream
from .vectors import VectorCodec

__all__ = [
    "Admit",
    "AskonceError",
    "AsyncCache",
    "AsyncLease",
    "BackendUnavailable",
    "Cache",
    "Codec",
    "ConfigurationError",
    "Difference",
    "Duration",
    "EntryInfo",
    "Event",
    "Explanation",
    "Freshness",
    "Hot",
    "LeaderFailed",
    "Lease",
    "MissingExtra",
    "Near",
    "NotCached",
    "Policy",
    "Refused",
    "Request",
    "Served",
    "Size",
    "Source",
    "Stats",
    "StreamBroken",
    "Uncacheable",
    "Unusable",
    "Usage",
    "VectorCodec",
    "Verbatim",
    "WarmReport",
    "control",
    "in_upstream",
    "upstream",
]
