"""From an HTTP request to what is asked of the cache; whatever is in the way becomes a reason to step aside."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, NamedTuple

from askonce import Cache, control, in_upstream
from askonce.control import NONE, current

from . import wire
from ._options import Options
from ._reading import Reading

_log = logging.getLogger("askonce")

#: In ``request.extensions``: a transport of ours looks after this request already.
MARK: Final = "askonce"
#: Requests that are no calls of a model: not counted as bypassed.
_FOREIGN: Final = frozenset({"method", "endpoint"})

#: Longer than any ``Policy(max_wait=)`` of use.
_LONGEST_S: Final = 30 * 86_400

#: Of a request that says nothing about the cache.
_PLAIN: Final = wire.Directives()


class Asked(NamedTuple):
    """One request to a model, as the cache sees it."""

    plan: wire.Plan
    directives: wire.Directives
    reading: Reading
    accepts: str | None
    timeout: float | None  # seconds that the caller lets pass between two reads

    def words(self) -> AbstractContextManager[None]:
        """Return the block in which the cache is asked: with the words of the request's own headers."""
        words = self.directives.words
        return control(**words) if words else nullcontext()

    @property
    def shares(self) -> bool:
        """Whether this caller may be given what another one's call brings, and the other way round."""
        asked = self.directives
        return asked.read and asked.write and not asked.only_if_cached

    def flight_key(self, cache: Cache, loop: object = None) -> Hashable | None:
        """Return by what callers find the running answer that they can read too; None if they share none."""
        if not self.shares:
            return None
        form = (self.plan.stream, self.plan.wants_usage, self.accepts, self.reading.echo)
        return (cache.fingerprint(self.plan.request), *form, loop)


def asked_of(request: Any, options: Options) -> Asked | str:
    """
    Return what *request* asks for, or why the cache steps aside; takes our own headers off it.

    Never raises: what goes wrong here must not fail a call.
    """
    try:
        headers = wire.read_headers(request.headers.raw, options.header_names)
        ours = [name for name in headers if name.startswith(wire.OWN_PREFIX)]
        for name in ours:
            del request.headers[name]
        asked = _asked(request, headers, options, plain=not ours)
    except Exception as error:  # noqa: BLE001  a scope function may be the user's
        _log.warning("passed on without the cache: %s", type(error).__qualname__)
        asked = "error"
    if isinstance(asked, str) and asked not in _FOREIGN and asked != "upstream":
        options.cache.bypass(asked)
    return asked


def _asked(request: Any, headers: dict[str, str], options: Options, *, plain: bool) -> Asked | str:
    url = request.url
    path, _, query = url.raw_path.decode("ascii").partition("?")
    try:
        content = request.content
    except Exception:  # noqa: BLE001  RequestNotRead, of either library: a body that comes in pieces is none of ours
        content = b""
    scope: object = None
    if options.scope == "api_key":
        scope = wire.credential(headers, query)
    elif options.scope is not None:
        scope = options.scope(request)
    origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
    call = wire.Call(request.method, origin, path, headers, content, query)
    plan = wire.plan(call, key_headers=options.key_headers, scope=scope)
    if isinstance(plan, str):
        return plan
    if in_upstream("embedding" if plan.api == "embeddings" else "llm"):
        return "upstream"
    accepts = headers.get("accept-encoding")
    block = current()
    plain = plain and block is NONE and "cache-control" not in headers
    return Asked(
        plan,
        _PLAIN if plain else wire.directives(headers, block),
        Reading(plan, options.hits, accepts),
        accepts,
        _patience(request),
    )


def _patience(request: Any) -> float | None:
    """Return the read timeout of the request in seconds; None without one, or one beyond what is waited for anyway."""
    read = (request.extensions.get("timeout") or {}).get("read")
    return read if isinstance(read, int | float) and 0 < read < _LONGEST_S else None
