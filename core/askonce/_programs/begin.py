"""
For callers that make the call themselves: between ``begin`` and ``finish`` lies the caller's own code.

A framework between its look-up and its update, a stream between its first and last chunk.  A caller that already holds
an unfinished lease never waits for another one: two such callers could wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from .._effects import Program, TimedOut, Tried, invoke, join
from .._flights import Flight
from ..errors import BackendUnavailable, NotCached
from ..policy import Freshness
from ..scripts import PUBLISH, Arg
from ..served import AnyServed, Source
from .compute import acquire, coalesced, error_type, pause_ms, what_is_stored
from .find import Found, failed, find, serve, stand_in, use
from .state import Ask, State
from .write import Grant, keep, release

#: How many chunks followers elsewhere were given, and those that they were not.
Unsent: TypeAlias = tuple[int, Sequence[bytes]]
NOTHING_UNSENT: Final[Unsent] = (0, ())

#: Published after the last chunk of a stream: no chunk is empty.
END_MARK: Final = b""
#: Chunks of one ``publish``: Lua's ``unpack`` takes some thousands.
_MOST_CHUNKS: Final = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a caller who computes by itself holds: a flight that others may join, and the lease, if it got them."""

    wanted: Ask
    flight: Flight | None
    grant: Grant | None
    fallback: Found | None = None  # what may be served if computing fails


def begin(state: State, wanted: Ask, fetched: Tried = None, *, refresh: bool) -> Program[AnyServed | Held]:
    """Serve *wanted*, or return what the caller holds while it computes.  *refresh* serves nothing stored."""
    found, reachable, seen = None, True, b""
    try:
        if refresh or not wanted.read:
            found = yield from what_is_stored(state, wanted)
        else:
            found = yield from find(state, wanted, fetched)
        seen = found.seen if found else b""
    except BackendUnavailable as error:
        failed(state, error)
        reachable = False
    fresh = found is not None and found.freshness in {Freshness.FRESH, Freshness.EARLY}
    # Refreshing an early entry would make this caller pay in the foreground: left to get_or_compute.
    if fresh and (served := serve(state, found)) is not None:
        yield from use(state, wanted, served)
        return served
    stale = found is not None and found.freshness is Freshness.STALE
    if stale and wanted.only_if_cached and (served := serve(state, found)) is not None:
        return served
    if not stale:
        state.counters.add("misses")
        if wanted.only_if_cached:
            raise NotCached("only_if_cached: nothing servable is stored for this request")
    try:
        return (yield from _share(state, wanted, found, seen, reachable))
    except Exception:
        if (kept := stand_in(state, found)) is None:
            raise
        return kept


def _share(
    state: State, wanted: Ask, found: Found | None, seen: bytes, reachable: bool
) -> Program[AnyServed | Held]:
    """Lead the flight of *wanted*, or join it; raise what its leader failed with."""
    least = found.least_fence if found else 0
    stale = found if found is not None and found.freshness is Freshness.STALE else None
    while True:
        flight, leads = state.flights.board(wanted.flight_key, wanted.home, least)
        if leads:
            return (yield from _lead(state, wanted, flight, found, seen, reachable))
        if stale is not None and (served := serve(state, stale)) is not None:
            return served  # somebody revalidates already
        if not wanted.waits:
            return Held(wanted, None, None, found)
        landed = yield from join(flight, wanted.policy.max_wait_s)
        if isinstance(landed, TimedOut):
            return Held(wanted, None, None, found)
        if landed is not None and landed.fence >= least:
            if (shared := (yield from coalesced(state, landed))) is not None:
                return shared
            seen = landed.fence.to_bytes(8, "big")  # of no use to this caller: it is to be replaced


def _lead(
    state: State, wanted: Ask, flight: Flight, found: Found | None, seen: bytes, reachable: bool
) -> Program[AnyServed | Held]:
    stale = found if found is not None and found.freshness is Freshness.STALE else None
    asks = replace(wanted, waits=False, refreshes=True) if stale else wanted
    try:
        grant: Grant | Found | None = None
        if reachable:
            try:
                grant = yield from acquire(state, asks, seen)
            except BackendUnavailable as error:
                failed(state, error)
    except BaseException as error:
        state.flights.land(flight, error=error if isinstance(error, Exception) else None)
        raise
    if isinstance(grant, Found):
        state.flights.land(flight, grant.landed())
        state.counters.add("coalesced")
        return grant.served(Source.COALESCED)
    if stale is not None and grant is None:
        state.flights.land(flight)
        state.counters.add("stale")
        return stale.served(Source.STALE)
    if grant is not None:
        flight.fence = grant.fence
    return Held(wanted, flight, grant, found)


def finish(
    state: State,
    held: Held,
    value: Any,
    cost_ms: int,
    unsent: Unsent = NOTHING_UNSENT,
    *,
    is_stream: bool = False,
) -> Program[bool]:
    """
    Store what the caller computed, give the lease back, hand the value to all who joined.

    *unsent* are chunks that followers elsewhere have not been given yet, and the mark of the end.  The value of a stream
    is given as its encoded chunks: one that may not be stored is handed to nobody who wants a value.
    """
    landed = None
    state.counters.add("computed")
    state.refresh_failures.pop(held.wanted.digest, None)
    try:
        if unsent[1] and held.grant is not None:
            yield from _publish(state, held.wanted, held.grant, unsent)
        landed = yield from keep(state, held.wanted, value, cost_ms, held.grant)
        stored = landed.ttl > 0
        if is_stream and landed.payload is None:
            if held.flight is not None:
                held.flight.tape.end(complete=True)  # who follows has it all
            landed = None
        return stored
    finally:
        if held.flight is not None:
            state.flights.land(held.flight, landed)


def _publish(state: State, wanted: Ask, grant: Grant, unsent: Unsent) -> Program[None]:
    before, chunks = unsent
    try:
        for start in range(0, len(chunks), _MOST_CHUNKS):
            some = chunks[start : start + _MOST_CHUNKS]
            keys, args = publish_call(wanted, grant, before + start, some)
            if not (yield from invoke(PUBLISH, wanted.partition.index, keys, *args)):
                return
    except BackendUnavailable as error:
        failed(state, error)


def publish_call(
    wanted: Ask, grant: Grant, before: int, chunks: Sequence[bytes]
) -> tuple[tuple[bytes, ...], tuple[Arg, ...]]:
    """Return keys and arguments of one ``publish``, *before* being how many chunks were published so far."""
    names, digest = wanted.partition.names, wanted.digest
    keys = (names.k + digest, names.r + b"%b:%d" % (digest, grant.fence), names.w)
    words = (grant.holder, wanted.policy.lease_ms, wanted.partition.publish, b"r" + digest, before)
    return keys, (*words, *chunks)


def abandon(state: State, held: Held, error: Exception | None) -> Program[None]:
    """Give the lease back with nothing to store; *error* is shared with those who wait, None hands over."""
    wanted = held.wanted
    behind = error is not None and wanted.refreshes  # nobody waits for it
    if behind:
        state.counters.add("refresh_errors")
    shared = error if wanted.share_errors and not behind else None
    if held.flight is not None:
        state.flights.land(held.flight, error=shared)
    if behind:
        yield from release(state, wanted, held.grant, "", pause_ms(state, wanted))
    else:
        yield from release(state, wanted, held.grant, error_type(shared) if shared else None)


def fail(state: State, held: Held, error: Exception) -> Program[AnyServed | None]:
    """Give the lease back as ``abandon`` does; serve what may stand in for the answer (RFC 5861, 4), or return None."""
    kept = held.fallback
    if kept is not None and kept.freshness is Freshness.STALE:  # it was a refresh, if before its caller
        yield from abandon(state, replace(held, wanted=replace(held.wanted, refreshes=True)), error)
        return serve(state, kept)
    yield from abandon(state, held, error)
    return stand_in(state, kept)
