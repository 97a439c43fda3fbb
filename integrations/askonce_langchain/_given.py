"""What a constructor is given: a URL with the options of ``askonce.Cache``, or a ``Cache`` that is used as it is."""

from __future__ import annotations

from typing import Any

from askonce import Cache


def cache_of(url_or_cache: str | Cache | None, options: dict[str, Any]) -> Cache:
    """Return the cache that is meant; raise TypeError for options beside a Cache, or for anything else."""
    if isinstance(url_or_cache, Cache):
        if options:
            given = ", ".join(f"{name}=" for name in options)
            raise TypeError(f"{given} given with a Cache: options belong to the Cache itself")
        return url_or_cache
    if url_or_cache is None or isinstance(url_or_cache, str):
        return Cache(url_or_cache, **options)
    kind = type(url_or_cache).__qualname__
    raise TypeError(f"a {kind} was given: give a URL, an askonce.Cache (it serves both colours), or nothing")
