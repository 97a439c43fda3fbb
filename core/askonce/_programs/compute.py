"""
Once: one computation for all who ask the same at the same time.

In the process first: the first caller to board a key's flight leads, the others join.  The leader then asks Redis for
the lease, which only one process holds; the others sleep until its message, or until the lease's time is over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .._effects import Program, TimedOut, Tried, compute, decode, detach, fetch, invoke, join, listen, sleep
from .._flights import Flight, Landed
from ..entry import Corrupt, is_grave
from ..errors import BackendUnavailable, LeaderFailed, NotCached
from ..policy import Freshness
from ..scripts import FAILED, FOUND, GRANTED, HELD, LEASE, Leased
from ..served import AnyServed, Served, Source
from .find import Found, connect, failed, find, judge, serve, stand_in, use
from .state import Ask, State, parse_word
from .write import TOMBSTONE_MS, Grant, keep, note_word, release, release_by_token

#: Turns of the lease loop that are not a wait: more means that somebody else rewrites the entry all the time.
_MOST_TURNS = 8

#: Between refreshes that fail, doubling.
_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS, _MOST_FAILURES = 1_000, 60_000, 10_000


def get_or_compute(state: State, wanted: Ask, fetched: Tried = None) -> Program[AnyServed]:
    """Serve *wanted*, computing it at most once among all concurrent callers."""
    if not wanted.read:
        return (yield from _unread(state, wanted))
    found, reachable = None, True
    try:
        found = yield from find(state, wanted, fetched)
    except BackendUnavailable as error:
        failed(state, error)
        reachable = False
    if (served := serve(state, found)) is not None:
        if found is not None and found.freshness is not Freshness.FRESH and not wanted.only_if_cached:
            yield from refresh_behind(state, wanted, found)
        yield from use(state, wanted, served)
        return served
    if wanted.only_if_cached:
        raise NotCached("only_if_cached: nothing servable is stored for this request")
    try:
        return (yield from share(state, wanted, found, reachable))
    except Exception:
        if (kept := stand_in(state, found)) is None:
            raise
        return kept


def share(state: State, wanted: Ask, found: Found | None, reachable: bool) -> Program[AnyServed]:
    """Lead the flight of *wanted*, or join it."""
    if wanted.digest in wanted.leading:
        # The function asks for its own key: waiting for itself would never end.
        return (yield from alone(state, wanted, "reentrant"))
    least = found.least_fence if found else 0
    while True:
        flight, leads = state.flights.board(wanted.flight_key, wanted.home, least)
        if leads:
            return (yield from lead(state, wanted, flight, found, reachable))
        if (
            not wanted.waits
        ):  # the caller holds an unfinished lease: two such callers could wait for each other
            return (yield from alone(state, wanted, "holds a lease"))
        landed = yield from join(flight, wanted.policy.max_wait_s)
        if isinstance(landed, TimedOut):
            return (yield from alone(state, wanted, "max_wait"))
        if landed is not None and landed.fence >= least:
            served = yield from coalesced(state, landed)
            return served or (yield from alone(state, wanted, "codec"))
        # The leader gave up, or began before an invalidation: whoever boards first leads the next flight.


def lead(
    state: State, wanted: Ask, flight: Flight, found: Found | None, reachable: bool
) -> Program[AnyServed]:
    try:
        served, landed = yield from _fly(state, wanted, flight, found, reachable)
    except GeneratorExit:
        state.flights.land(flight)
        raise
    except BaseException as error:
        shared = isinstance(error, Exception) and wanted.share_errors
        state.flights.land(flight, error=error if shared else None)  # type: ignore[arg-type]
        raise
    state.flights.land(flight, landed)
    return served


def _fly(
    state: State, wanted: Ask, flight: Flight, found: Found | None, reachable: bool
) -> Program[tuple[AnyServed, Landed]]:
    grant: Grant | Found | None = None
    reason = "backend"
    if reachable:
        try:
            grant = yield from acquire(state, wanted, found.seen if found else b"")
            reason = "not granted"
        except BackendUnavailable as error:
            failed(state, error)
    if isinstance(grant, Found):
        served = grant.served(Source.COALESCED)
        state.counters.add("coalesced")
        return served, grant.landed()
    if grant is None:
        state.counters.add_reason("bypassed", reason)
    else:
        flight.fence = grant.fence
    return (yield from _compute(state, wanted, grant))


def _compute(state: State, wanted: Ask, grant: Grant | None) -> Program[tuple[AnyServed, Landed]]:
    leases = (grant.renewal(wanted),) if grant else ()
    try:
        computed = yield from compute(wanted.index, leases)
    except GeneratorExit:
        raise
    except Exception as error:
        # Behind callers it keeps others from trying for a while, whether it is shared or not.
        text = error_type(error) if wanted.share_errors else "" if wanted.refreshes else None
        yield from release(state, wanted, grant, text, pause_ms(state, wanted))
        raise
    except BaseException:  # cancelled, or interrupted: somebody who waits takes over
        yield from release(state, wanted, grant, None)
        raise
    state.counters.add("computed")
    state.refresh_failures.pop(wanted.digest, None)
    landed = yield from keep(state, wanted, computed.value, computed.cost_ms, grant)
    return Served(computed.value, Source.COMPUTED if grant else Source.BYPASSED, 0.0, landed.ttl), landed


def pause_ms(state: State, wanted: Ask) -> int:
    """Return how long a failure stands: for those who wait, or, behind callers, until the next try, doubling."""
    if not wanted.refreshes:
        return TOMBSTONE_MS
    failures = state.refresh_failures
    if len(failures) >= _MOST_FAILURES:
        failures.clear()
    failures[wanted.digest] = number = failures.get(wanted.digest, 0) + 1
    return min(_FIRST_PAUSE_MS << min(number - 1, 16), _LONGEST_PAUSE_MS)


def acquire(state: State, wanted: Ask, seen: bytes) -> Program[Grant | Found | None]:
    """
    Return the lease, or an entry that somebody stored meanwhile, or None: compute without the cache.

    *seen* is the fence of an entry that will not do.  Waits for another holder as long as the policy allows.
    """
    left, waited = wanted.policy.max_wait_s, b"*" if wanted.refreshes else b""
    waiter = None
    try:
        while True:
            outcome = yield from take_lease(state, wanted, seen, waited)
            if not isinstance(outcome, Leased):
                return outcome
            if not wanted.waits or wanted.refreshes or left <= 0:
                return None
            waited = b"%d" % outcome.fence  # from here on its failure is this caller's too
            if waiter is None:  # register for the message first, then look again: no wake-up is lost
                waiter = yield from listen(wanted.partition.index, wanted.digest)
                continue
            left -= yield from sleep(waiter, min(left, max(outcome.left_ms, 1) / 1000 + 0.001))
            waiter.close()
            waiter = yield from listen(wanted.partition.index, wanted.digest)
    finally:
        if waiter is not None:
            waiter.close()


def take_lease(
    state: State, wanted: Ask, seen: bytes, waited: bytes
) -> Program[Grant | Found | Leased | None]:
    """
    Ask for the lease once; return it, an entry that will do, who holds it, or None: compute without the cache.

    *waited* is the fence of the flight that was waited for: its failure is raised here.
    """
    part = wanted.partition
    for _ in range(_MOST_TURNS):
        word = part.word or (yield from connect(state, part))
        names = part.names
        keys = (names.c, names.e + word.prefix + wanted.digest, names.k + wanted.digest, names.f)
        token = b"%d-%b" % (word.sequence, wanted.token)
        try:
            leased = yield from invoke(
                LEASE, part.index, keys, word.generation, token, wanted.policy.lease_ms, seen, waited
            )
        except (GeneratorExit, BackendUnavailable):
            raise
        except BaseException:  # cancelled or interrupted: the lease may have been granted
            yield from release_by_token(state, wanted)
            raise
        if leased.code == HELD:
            return leased
        if leased.code == GRANTED:
            note_word(part, leased.word)
            return Grant(parse_word(leased.word) or word, leased.fence, token)
        if leased.code == FOUND:
            note_word(part, leased.word)
            if wanted.read:
                found = yield from judge(
                    state, wanted, parse_word(leased.word) or word, leased.entry, leased.now_ms
                )
                if found is not None and found.freshness in {Freshness.FRESH, Freshness.EARLY}:
                    return found
            seen = leased.entry[8:16]
        elif leased.code == FAILED:
            if leased.text and not wanted.refreshes:
                raise LeaderFailed(leased.text)
            return None
        else:
            part.word, seen = None, b""
    return None


def alone(state: State, wanted: Ask, reason: str) -> Program[AnyServed]:
    """Compute without sharing and without storing; count why."""
    state.counters.add_reason("bypassed", reason)
    computed = yield from compute(wanted.index, ())
    state.counters.add("computed")
    return Served(computed.value, Source.BYPASSED)


def coalesced(state: State, landed: Landed) -> Program[AnyServed | None]:
    """Serve what another caller of this process computed, decoded anew; None if this caller's codec cannot read it."""
    value: Any = landed.value
    if landed.payload is not None:
        try:
            value = yield from decode(landed.flags, landed.payload)
        except Corrupt:
            return None
    state.counters.add("coalesced")
    return Served(value, Source.COALESCED, 0.0, landed.ttl)


def _unread(state: State, wanted: Ask) -> Program[AnyServed]:
    """Compute without serving what is stored (``control(read=False)``), and store the answer in its place."""
    if wanted.only_if_cached:
        raise NotCached("only_if_cached: and read=False forbids to look")
    if not wanted.write:
        return (yield from alone(state, wanted, "control"))
    grant = None
    try:
        there = yield from what_is_stored(state, wanted)
        taken = yield from acquire(state, replace(wanted, waits=False), there.seen if there else b"")
        grant = taken if isinstance(taken, Grant) else None
    except BackendUnavailable as error:
        failed(state, error)
    if grant is None:  # somebody else is computing it, and stores what is as new; or Redis is away
        state.counters.add_reason("bypassed", "not granted")
    served, _ = yield from _compute(state, wanted, grant)
    return served


def what_is_stored(state: State, wanted: Ask) -> Program[Found | None]:
    """Return the fence of whatever is stored, so that a lease to replace it can be had."""
    part = wanted.partition
    word = yield from connect(state, part)
    data = (yield from fetch(part.index, (word.prefix + wanted.digest,))).entries[0]
    return None if data is None else Found(data[8:16], grave=is_grave(data))


def refresh_behind(state: State, wanted: Ask, found: Found | None) -> Program[None]:
    """Recompute a stale entry behind the caller: one refresh in the process, and by the lease one in the fleet."""
    flight, leads = state.flights.board(wanted.flight_key, wanted.home)
    if leads:
        yield from detach(_refresh(state, replace(wanted, refreshes=True), flight, found))


def _refresh(state: State, wanted: Ask, flight: Flight, found: Found | None) -> Program[None]:
    landed = None
    try:
        grant = yield from acquire(state, wanted, found.seen if found else b"")
        if isinstance(grant, Grant):
            flight.fence = grant.fence
            _, landed = yield from _compute(state, wanted, grant)
    except GeneratorExit:
        raise
    except BackendUnavailable:
        state.counters.add("backend_errors")
    except Exception:  # noqa: BLE001  nobody waits for it; the stale entry stays until its window ends
        state.counters.add("refresh_errors")
    finally:
        state.flights.land(flight, landed)


def error_type(error: Exception) -> str:
    """Return the qualified name of an error's class; its text may quote a credential and stays here."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
