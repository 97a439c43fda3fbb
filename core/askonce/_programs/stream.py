"""
Streams: serve a whole one, follow one that is running here or elsewhere, or lead.

The stored value of a stream is the list of its encoded chunks.  A follower elsewhere reads the chunks that the leader
publishes, and the rest from the entry once the stream has landed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from .._effects import Program, TimedOut, ask, decode, join, listen, sleep
from .._flights import Flight
from .._tapes import Relay
from ..entry import Corrupt
from ..errors import BackendUnavailable, NotCached
from ..policy import Freshness
from ..scripts import Leased
from ..served import AnyServed, Source
from .begin import END_MARK, NOTHING_UNSENT, Held, Unsent, finish
from .compute import acquire, take_lease, what_is_stored
from .find import Found, failed, find, serve, stand_in, use
from .state import Ask, State
from .write import Grant, release

#: Behind the name of a stream's chunks: somebody in another process follows it.
_FOLLOWED: Final = b":f"
#: How long published chunks outlive their stream: for those who are about to look, and for those who follow it.
_LINGER_MS: Final = 5_000
_LINGER_FOLLOWED_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A stream that another process is leading, by the fence of its lease."""

    fence: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """
    More chunks of a stream that is led elsewhere; ``last`` if there are no more to come.

    ``stored``: these are not the next ones but all of them, as they stand in the entry.
    """

    chunks: list[bytes]
    last: bool = False
    stored: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """A whole stream to serve, which its caller, who has boarded the flight, is to produce anew in the background."""

    served: AnyServed
    wanted: Ask
    seen: bytes
    flight: Flight


def tune_in(state: State, wanted: Ask) -> Program[AnyServed | Behind | Held | Flight | Elsewhere]:
    """Serve the whole stream, or return the flight to follow here, the one elsewhere, or what the caller holds."""
    found, reachable, seen = None, True, b""
    try:
        if wanted.read:
            found = yield from find(state, wanted)
        else:
            found = yield from what_is_stored(state, wanted)
        seen = found.seen if found else b""
    except BackendUnavailable as error:
        failed(state, error)
        reachable = False
    if wanted.digest in wanted.leading:  # the function asks for its own key: waiting would never end
        return _alone(state, wanted, "reentrant")
    if found is not None and found.freshness in {Freshness.FRESH, Freshness.EARLY, Freshness.STALE}:
        served = serve(state, found)
        assert served is not None  # noqa: S101  it may be served as it is
        yield from use(state, wanted, served)
        if found.freshness is Freshness.FRESH or wanted.only_if_cached:
            return served
        flight, leads = state.flights.board(wanted.flight_key, wanted.home)
        return Behind(served, wanted, seen, flight) if leads else served
    state.counters.add("misses")
    if wanted.only_if_cached:
        raise NotCached("only_if_cached: nothing servable is stored for this request")
    least = found.least_fence if found else 0
    flight, leads = state.flights.board(wanted.flight_key, wanted.home, least)
    if leads:
        return (yield from _lead(state, wanted, flight, found, seen, reachable))
    if (
        flight.fence < least
    ):  # it may have begun before the invalidation: nobody knows before it has its lease
        return _alone(state, wanted, "not granted")
    return flight if wanted.waits else _alone(state, wanted, "holds a lease")


def _alone(state: State, wanted: Ask, reason: str) -> Held:
    """Let the caller call for itself, sharing nothing; count why."""
    state.counters.add_reason("bypassed", reason)
    return Held(wanted, None, None)


def _lead(
    state: State, wanted: Ask, flight: Flight, found: Found | None, seen: bytes, reachable: bool
) -> Program[AnyServed | Held | Elsewhere]:
    outcome: Grant | Found | Leased | None = None
    try:
        if reachable:
            try:
                outcome = yield from take_lease(state, wanted, seen, b"")
            except BackendUnavailable as error:
                failed(state, error)
                reachable = False
    except BaseException as error:
        state.flights.land(flight, error=error if isinstance(error, Exception) else None)
        raise
    # Past its freshness, it may stand in for a producer that fails (RFC 5861, 4).
    fallback = found if found is not None and found.freshness is Freshness.EXPIRED else None
    if isinstance(outcome, Grant):
        flight.fence = outcome.fence
        return Held(wanted, flight, outcome, fallback)
    if isinstance(outcome, Found):
        state.flights.land(flight, outcome.landed())
        state.counters.add("coalesced")
        return outcome.served(Source.COALESCED)
    if isinstance(outcome, Leased) and wanted.waits and not _outdated(wanted, found, outcome):
        flight.elsewhere = outcome.fence  # who has joined it follows, too
        state.flights.land(flight)
        return Elsewhere(outcome.fence)
    state.counters.add_reason("bypassed", "not granted" if reachable else "backend")
    return Held(wanted, flight, None, fallback)


def take_up(state: State, behind: Behind) -> Program[Held | None]:
    """
    Return what is held while a stale stream is produced anew.

    None if somebody elsewhere does so, or if it failed a moment ago.
    """
    wanted, grant = replace(behind.wanted, refreshes=True), None
    try:
        taken = yield from acquire(state, wanted, behind.seen)
        grant = taken if isinstance(taken, Grant) else None
    except BackendUnavailable:
        state.counters.add("backend_errors")
    finally:
        if grant is None:
            state.flights.land(behind.flight)
    if grant is None:
        return None
    behind.flight.fence = grant.fence
    return Held(wanted, behind.flight, grant)


def _outdated(wanted: Ask, found: Found | None, leased: Leased) -> bool:
    """Return whether the stream that is led elsewhere began before an invalidation that this caller knows of."""
    if found is not None and leased.fence < found.least_fence:
        return True
    word = wanted.partition.word
    # By any tag: its leader may have named more than this caller does.
    return word is not None and leased.sequence < word.sequence


def pull(
    state: State, wanted: Ask, elsewhere: Elsewhere, relay: Relay
) -> Program[Held | Flight | Elsewhere | None]:
    """
    Read on for all who follow *relay*.

    Return None once there is more of it, or it has ended, else what this caller goes on with: the others look again.
    """
    try:
        outcome = yield from follow(state, wanted, elsewhere, len(relay.chunks))
    except Exception as error:
        relay.end(error=error)
        raise
    if not isinstance(outcome, Chunks):
        relay.end()
        return outcome or Held(wanted, None, None)
    if outcome.stored:
        relay.stored = outcome.chunks
        relay.end(complete=True)
    else:
        _pass_on(relay, outcome)
    return None


def read_ahead(state: State, wanted: Ask, elsewhere: Elsewhere, relay: Relay) -> Program[None]:
    """Read what is published by now, for consumers who take their time with what they have."""
    try:
        published, _, _ = yield from _published(wanted, elsewhere, len(relay.chunks))
    except BackendUnavailable:
        state.counters.add("backend_errors")  # when the consumer has nothing left, it is tried again
    else:
        _pass_on(relay, published)


def _pass_on(relay: Relay, published: Chunks) -> None:
    for chunk in published.chunks:
        relay.append(chunk)
    if published.last:
        relay.end(complete=True)


def follow(
    state: State, wanted: Ask, elsewhere: Elsewhere, count: int
) -> Program[Chunks | Held | Flight | Elsewhere | None]:
    """
    Return the chunks after the first *count* of a stream that is led elsewhere.

    Or, once its leader is gone: what this caller holds to lead itself, who leads now, here or elsewhere, or None:
    nobody.  Raises LeaderFailed if the leader's producer failed.
    """
    try:
        return (yield from _follow(state, wanted, elsewhere, count))
    except BackendUnavailable as error:
        failed(state, error)
        return None


def _follow(
    state: State, wanted: Ask, elsewhere: Elsewhere, count: int
) -> Program[Chunks | Held | Flight | Elsewhere | None]:
    left = wanted.policy.max_wait_s
    while left > 0:
        waiter = yield from listen(wanted.partition.index, wanted.digest, chunks=True)
        try:
            published, fence, left_ms = yield from _published(wanted, elsewhere, count)
            if published.chunks or published.last:
                return published
            if fence == elsewhere.fence:  # under way, if of an older generation by now
                left -= yield from sleep(waiter, min(left, max(left_ms, 1) / 1000 + 0.001))
                continue
            outcome = yield from take_lease(state, wanted, b"", b"%d" % elsewhere.fence)
            return (yield from _after(state, wanted, outcome))
        finally:
            waiter.close()
    state.counters.add_reason("bypassed", "max_wait")
    return None


def _published(wanted: Ask, elsewhere: Elsewhere, count: int) -> Program[tuple[Chunks, int, int]]:
    """Return the chunks after the first *count*, the fence of who leads now, and how long its lease lasts, in ms."""
    names = wanted.partition.names
    running, lease = names.r + b"%b:%d" % (wanted.digest, elsewhere.fence), names.k + wanted.digest
    chunks, holder, left_ms, _ = yield from ask(
        wanted.partition.index,
        ("LRANGE", running, count, -1),
        ("GET", lease),
        ("PTTL", lease),
        ("SET", running + _FOLLOWED, b"", "PX", wanted.policy.lease_ms),
    )
    whole = bool(chunks) and chunks[-1] == END_MARK
    return Chunks(chunks[:-1] if whole else chunks, last=whole), _fence_of(holder), left_ms


def _fence_of(holder: bytes | None) -> int:
    """Return the fence of the computation that holds a lease; 0 if nobody does."""
    fields = (holder or b"").split(b":")
    return int(fields[1]) if len(fields) == 3 and fields[0].isdigit() and fields[1].isdigit() else 0


def _after(
    state: State, wanted: Ask, outcome: Grant | Found | Leased | None
) -> Program[Chunks | Held | Flight | Elsewhere | None]:
    if isinstance(outcome, Leased):
        return Elsewhere(outcome.fence)
    if isinstance(outcome, Found):
        return Chunks(outcome.value, last=True, stored=True)
    if outcome is None:
        return None
    flight, leads = state.flights.board(wanted.flight_key, wanted.home)
    if not leads:  # another caller of this process is about to ask for the lease: it gets this one
        yield from release(state, wanted, outcome, None)
        return flight
    flight.fence = outcome.fence
    return Held(wanted, flight, outcome)


def rest(wanted: Ask, flight: Flight) -> Program[list[bytes] | None]:
    """Return the chunks of a flight that has landed without passing them on, or None if it has nothing for us."""
    landed = yield from join(flight, wanted.policy.max_wait_s)
    if landed is None or isinstance(landed, TimedOut) or landed.payload is None:
        return None
    try:
        chunks: list[bytes] = yield from decode(landed.flags, landed.payload)
    except Corrupt:
        return None
    return chunks


def end(
    state: State, held: Held, chunks: list[bytes], cost_ms: int, unsent: Unsent = NOTHING_UNSENT
) -> Program[bool]:
    """Store a stream that has come to its end; what was published of it goes soon after."""
    stored = yield from finish(state, held, chunks, cost_ms, unsent, is_stream=True)
    if held.grant is not None:
        part = held.wanted.partition
        running = part.names.r + b"%b:%d" % (held.wanted.digest, held.grant.fence)
        try:  # those who follow elsewhere have a while to read the rest of it
            _, followed = yield from ask(
                part.index, ("PEXPIRE", running, _LINGER_MS), ("EXISTS", running + _FOLLOWED)
            )
            if followed:
                yield from ask(part.index, ("PEXPIRE", running, _LINGER_FOLLOWED_MS))
        except BackendUnavailable:
            state.counters.add("backend_errors")  # it expires with the lease
    return stored


def is_followed(state: State, held: Held) -> Program[bool]:
    """Return whether somebody in another process follows the stream that this caller leads."""
    if held.grant is None:
        return False
    part = held.wanted.partition
    running = part.names.r + b"%b:%d" % (held.wanted.digest, held.grant.fence)
    try:
        (there,) = yield from ask(part.index, ("EXISTS", running + _FOLLOWED))
    except BackendUnavailable:
        state.counters.add("backend_errors")
        return False
    return bool(there)


def fallback(state: State, wanted: Ask) -> Program[AnyServed | None]:
    """Return what is past its freshness and may stand in for a stream that failed elsewhere (RFC 5861, 4)."""
    if not wanted.read or not wanted.policy.window_ms:
        return None
    try:
        found = yield from find(state, wanted)
    except BackendUnavailable as error:
        failed(state, error)
        return None
    return stand_in(state, found)
