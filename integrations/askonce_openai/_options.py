"""What all transports of one way in share: the cache, what tells its callers apart, and how a hit looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from askonce import Cache
from askonce.errors import ConfigurationError

from . import wire

#: ``"api_key"``, or a function from the HTTP request to a JSON-like value.
Scope: TypeAlias = Literal["api_key"] | Callable[[Any], object]


class Choices(TypedDict, total=False):
    """
    The words of ``wrap``, ``http_client``, ``async_http_client`` and ``install``; each may be left out.

    ``replay``: ``"verbatim"``, a stored stream in the events that came, or ``"coalesced"``, in few large ones, which
    saves the SDK its work on many small ones.  ``fresh_ids``: give each hit ids of its own, which mean nothing to the
    provider.  ``usage_on_hit``: ``"keep"`` what was used then, or ``"zero"``, for meters.

    ``scope``: ``"api_key"`` or a function from the HTTP request to a JSON-like value, where callers must not share
    answers.  ``key_headers``: headers of the request that shape the answer, as a gateway chooses the model by them.
    """

    replay: Literal["verbatim", "coalesced"]
    fresh_ids: bool
    usage_on_hit: Literal["keep", "zero"]
    scope: Scope | None
    key_headers: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Options:
    """What was chosen where the cache was put in, with the rest as it is by default."""

    cache: Cache
    hits: wire.Hits
    scope: Scope | None
    key_headers: tuple[str, ...]
    header_names: frozenset[bytes]

    @classmethod
    def checked(
        cls,
        url_or_cache: str | Cache | None,
        *,
        replay: Literal["verbatim", "coalesced"] = "verbatim",
        fresh_ids: bool = False,
        usage_on_hit: Literal["keep", "zero"] = "keep",
        scope: Scope | None = None,
        key_headers: Sequence[str] = (),
        **unknown: object,
    ) -> Options:
        """
        Return the options, or raise ConfigurationError for a word that is out of range.

        One that is none of them is a TypeError, as in any call.
        """
        if unknown:
            raise TypeError(
                f"{', '.join(f'{name}=' for name in unknown)} is no option here; give {', '.join(Choices.__annotations__)}, "
                "and words of the cache (namespace=, near=, ...) to askonce.Cache, which may stand in place of the URL"
            )
        if scope is not None and scope != "api_key" and not callable(scope):
            raise ConfigurationError(
                f"scope={scope!r}: give 'api_key', or a function from the HTTP request to what tells callers apart"
            )
        further = wire.checked_key_headers(key_headers)
        return cls(
            cache=_cache(url_or_cache),
            hits=wire.Hits(replay=replay, fresh_ids=fresh_ids, usage_on_hit=usage_on_hit),
            scope=scope,
            key_headers=further,
            header_names=wire.header_names(further, credentials=scope == "api_key"),
        )

    def same(self, other: Options) -> bool:
        """Return whether a transport with the *other* options does the same for its callers."""
        return (
            _identity(self.cache) == _identity(other.cache)
            and self.hits == other.hits
            and self.scope == other.scope
            and self.key_headers == other.key_headers
        )


def _cache(url_or_cache: str | Cache | None) -> Cache:
    if url_or_cache is None or isinstance(url_or_cache, str):
        return Cache(url_or_cache)
    if isinstance(url_or_cache, Cache):
        return url_or_cache
    raise ConfigurationError(
        f"{url_or_cache!r} is {type(url_or_cache).__name__}; give a URL such as 'redis://localhost:6379/0', an "
        "askonce.Cache (its async twin is used by async clients), or nothing"
    )


def _identity(cache: Cache) -> tuple[object, ...]:
    """Return what two caches that were made from one URL have in common."""
    return (repr(cache), cache.policy)
