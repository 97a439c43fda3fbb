"""Many requests at once: one round trip a server, one call of the caller's function for all that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .._effects import (
    Computed,
    Encoded,
    Fetch,
    Fetched,
    Program,
    ScriptCall,
    Tried,
    compute_many,
    detach,
    fetch_many,
    invoke_many,
)
from .._flights import Flight, Landed
from ..errors import BackendUnavailable, LeaderFailed, Moved, NotCached, OutOfMemory
from ..policy import Freshness
from ..scripts import FOUND, GRANTED, LEASE, MOVED, REPLACED, STORE, STORED, Arg, Leased, Stored
from ..served import AnyServed, Served, Source
from .compute import error_type, lead, pause_ms, share
from .find import Found, connect, failed, find, judge, keep_step, serve, use
from .state import Ask, State, Word, by_partition, parse_word, together
from .write import (
    TOMBSTONE_MS,
    Given,
    Grant,
    admitted,
    by_token,
    encode_for_store,
    landing,
    release_many,
    settle,
    shed,
    store_call_of,
    write,
)


def get_many(state: State, asks: Sequence[Ask], fetched: Tried = None) -> Program[list[AnyServed | None]]:
    """
    Serve each request, or None; one round trip for 128 of them.

    *fetched* is what the driver's straight path has read of all, or failed to; they are then of one partition.
    """
    founds, _ = yield from _find_many(state, asks, fetched)
    served = [serve(state, founds.get(wanted.digest)) for wanted in asks]
    for wanted, outcome in zip(asks, served, strict=True):
        if outcome is not None:
            yield from use(state, wanted, outcome)
    return served


def _find_many(
    state: State, asks: Sequence[Ask], fetched: Tried
) -> Program[tuple[dict[bytes, Found], set[int]]]:
    """Return what was found, and which partitions are away."""
    founds: dict[bytes, Found] = {}
    away: set[int] = set()
    if fetched is not None and (word := asks[0].partition.word) is not None:
        try:
            if isinstance(fetched, BackendUnavailable):
                raise fetched
            yield from _judge_group(state, word, asks, fetched, founds)
        except BackendUnavailable as error:
            failed(state, error)
            away.add(asks[0].partition.index)
        return founds, away
    for chunk in together(asks):
        asked: list[tuple[Word, list[Ask]]] = []
        for part, group in by_partition(chunk):
            if part.index not in away:
                try:
                    asked.append((part.word or (yield from connect(state, part)), group))
                except BackendUnavailable as error:
                    failed(state, error)
                    away.add(part.index)
        fetches = [
            Fetch(group[0].partition.index, tuple(word.prefix + wanted.digest for wanted in group))
            for word, group in asked
        ]
        answers = (yield from fetch_many(fetches)) if fetches else []
        for (word, group), answer in zip(asked, answers, strict=True):
            if isinstance(answer, BackendUnavailable):
                away.add(group[0].partition.index)
                continue
            try:
                yield from _judge_group(state, word, group, answer, founds)
            except BackendUnavailable as error:
                failed(state, error)
                away.add(group[0].partition.index)
        yield from _note_failures(state, [group[0] for _, group in asked], answers)
    return founds, away


def _judge_group(
    state: State, word: Word, group: Sequence[Ask], fetched: Fetched, founds: dict[bytes, Found]
) -> Program[None]:
    in_step = yield from keep_step(state, group[0].partition, word, fetched.word)
    for wanted, data in zip(group, fetched.entries, strict=True):
        if not wanted.read:
            found = None if data is None else Found(data[8:16])  # only to be replaced
        elif in_step is not None:
            found = yield from judge(state, wanted, in_step, data, fetched.now_ms)
        else:
            found = yield from find(state, wanted)
        if found is not None:
            founds[wanted.digest] = found


def get_or_compute_many(state: State, asks: Sequence[Ask], fetched: Tried = None) -> Program[list[AnyServed]]:
    """
    Serve all requests (distinct, in order), computing each missing one at most once among all callers.

    The caller's function is called once with what nobody else is computing; the rest is joined after that, so that
    two callers with crossing requests never wait for each other.  What fails in the hands of others is then asked of
    this caller's function.  An exception among the values is the failure of that request alone, raised at the end.
    """
    founds, away = yield from _find_many(state, asks, fetched)
    served: dict[bytes, AnyServed] = {}
    missing: list[Ask] = []
    stale: list[Ask] = []
    for wanted in asks:
        found = founds.get(wanted.digest)
        if (outcome := serve(state, found)) is not None:
            served[wanted.digest] = outcome
            if found is not None and found.freshness is not Freshness.FRESH and not wanted.only_if_cached:
                stale.append(wanted)
            yield from use(state, wanted, outcome)
            continue
        if wanted.only_if_cached:
            raise NotCached(f"only_if_cached: nothing servable is stored for request {wanted.index}")
        missing.append(wanted)
    yield from _refresh_behind(state, stale, founds)
    failures: dict[bytes, Exception] = {}
    try:
        theirs = yield from _round(state, missing, founds, served, failures, away)
        again = [wanted for wanted in missing if wanted.digest in theirs]
        if again:
            failures.update((yield from _round(state, again, founds, served, failures, away)))
    except Exception as error:  # noqa: BLE001  raised below, unless what is stored stands in
        for wanted in missing:
            failures.setdefault(wanted.digest, error)
    _stand_in(state, missing, founds, served)
    _raise([failures[wanted.digest] for wanted in missing if wanted.digest not in served])
    return [served[wanted.digest] for wanted in asks]


def _round(
    state: State,
    asks: Sequence[Ask],
    founds: dict[bytes, Found],
    served: dict[bytes, AnyServed],
    failures: dict[bytes, Exception],
    away: set[int],
) -> Program[dict[bytes, Exception]]:
    """Compute what nobody else does, join the rest; return what failed in the hands of others."""
    mine: dict[bytes, tuple[Ask, Flight]] = {}
    theirs: dict[bytes, Exception] = {}
    try:
        for wanted in asks:
            found = founds.get(wanted.digest)
            least = found.least_fence if found else 0
            flight, leads = state.flights.board(wanted.flight_key, wanted.home, least)
            if leads:
                mine[wanted.digest] = wanted, flight
        yield from _compute_mine(state, mine, founds, served, failures, away)
        for digest in list(mine):  # held elsewhere
            wanted, flight = mine.pop(digest)
            reachable = wanted.partition.index not in away
            try:
                served[digest] = yield from lead(state, wanted, flight, founds.get(digest), reachable)
            except LeaderFailed as error:
                theirs[digest] = error
        for wanted in asks:  # led by others here: only now, when nobody can be waiting for this call
            digest = wanted.digest
            if digest in served or digest in failures or digest in theirs:
                continue
            reachable = wanted.partition.index not in away
            try:
                served[digest] = yield from share(state, wanted, founds.get(digest), reachable)
            except Exception as error:  # noqa: BLE001  the leader's
                theirs[digest] = error
    except BaseException as error:
        for _, flight in mine.values():
            state.flights.land(flight, error=error if isinstance(error, Exception) else None)
        raise
    return theirs


def _refresh_behind(state: State, stale: list[Ask], founds: dict[bytes, Found]) -> Program[None]:
    """Recompute what is stale behind the caller, in one call of its function."""
    mine: dict[bytes, tuple[Ask, Flight]] = {}
    for wanted in stale:
        flight, leads = state.flights.board(wanted.flight_key, wanted.home)
        if leads:
            mine[wanted.digest] = replace(wanted, refreshes=True), flight
    if mine:
        yield from detach(_refresh(state, mine, founds))


def _refresh(
    state: State, mine: dict[bytes, tuple[Ask, Flight]], founds: dict[bytes, Found]
) -> Program[None]:
    failures: dict[bytes, Exception] = {}
    flights = [flight for _, flight in mine.values()]
    try:
        yield from _compute_mine(state, mine, founds, {}, failures, set())
        state.counters.add("refresh_errors", len(failures))
    except GeneratorExit:
        raise
    except BackendUnavailable:
        state.counters.add("backend_errors")
    except Exception:  # noqa: BLE001  nobody waits for it; stale entries stay until their window ends
        state.counters.add("refresh_errors")
    finally:
        for flight in flights:
            state.flights.land(flight)  # what has landed stays so


def _stand_in(
    state: State, missing: list[Ask], founds: dict[bytes, Found], served: dict[bytes, AnyServed]
) -> None:
    """Serve what is past its freshness for what failed, where it may be (RFC 5861, 4)."""
    for wanted in missing:
        found = founds.get(wanted.digest)
        if wanted.digest not in served and found is not None and found.freshness is Freshness.EXPIRED:
            state.counters.add("stale_if_error")
            served[wanted.digest] = found.served(Source.STALE_IF_ERROR)


def _raise(failures: list[Exception]) -> None:
    """Raise the first failure as it is; the caller catches what it would catch from its function."""
    if not failures:
        return
    if len({id(error) for error in failures}) > 1:
        failures[0].add_note(f"{len(failures)} requests of the batch failed; this is the first failure")
    raise failures[0]


def _compute_mine(
    state: State,
    mine: dict[bytes, tuple[Ask, Flight]],
    founds: dict[bytes, Found],
    served: dict[bytes, AnyServed],
    failures: dict[bytes, Exception],
    away: set[int],
) -> Program[None]:
    """Compute what this call leads and holds the leases of; what it serves, or fails at, leaves *mine*."""
    grants: dict[bytes, Grant] = {}
    asked: list[Ask] = []
    try:
        refused = yield from _lease_all(state, mine, founds, served, grants, asked, away)
    except GeneratorExit:
        raise
    except BackendUnavailable:  # the cache is strict
        yield from _release_all(state, [one for one in asked if one.digest in grants], grants)
        raise
    except BaseException:  # cancelled: a lease that this call has not heard of may have been granted
        yield from _release_all(state, asked, grants)
        raise
    turn = [
        wanted
        for wanted, _ in mine.values()
        if wanted.digest in grants or (not wanted.refreshes and wanted.digest in refused)
    ]
    if not turn:
        return
    leases = tuple(grants[wanted.digest].renewal(wanted) for wanted in turn if wanted.digest in grants)
    try:
        computed = yield from compute_many(tuple(wanted.index for wanted in turn), leases)
    except GeneratorExit:
        raise
    except BaseException as error:
        text = error_type(error) if isinstance(error, Exception) else None
        given = [_given(one, grants, text, pause_ms(state, one)) for one in turn if one.digest in grants]
        yield from release_many(state, given)
        raise
    answers: list[tuple[Ask, Computed]] = []
    given = []
    for wanted, answer in zip(turn, computed, strict=True):
        if not isinstance(answer.value, Exception):
            answers.append((wanted, answer))
            continue
        failures[wanted.digest] = answer.value
        _, flight = mine.pop(wanted.digest)
        state.flights.land(flight, error=answer.value)
        if wanted.digest in grants:
            given.append(_given(wanted, grants, error_type(answer.value), pause_ms(state, wanted)))
    state.counters.add("computed", len(answers))
    try:
        yield from release_many(state, given)
        landed = yield from _keep_many(state, answers, grants)
    except (GeneratorExit, BackendUnavailable):
        raise
    except BaseException:  # cancelled: what is stored has no lease any more
        yield from _release_all(state, [wanted for wanted, _ in answers if wanted.digest in grants], grants)
        raise
    for wanted, answer in answers:
        source = Source.COMPUTED if wanted.digest in grants else Source.BYPASSED
        if source is Source.BYPASSED:
            state.counters.add_reason("bypassed", "backend")
        _, flight = mine.pop(wanted.digest)
        state.refresh_failures.pop(wanted.digest, None)
        state.flights.land(flight, landed[wanted.digest])
        served[wanted.digest] = Served(answer.value, source, 0.0, landed[wanted.digest].ttl)


def _release_all(state: State, asks: list[Ask], grants: dict[bytes, Grant]) -> Program[None]:
    given = [_given(one, grants, None) if one.digest in grants else by_token(one) for one in asks]
    yield from release_many(state, given)


def _given(
    wanted: Ask, grants: dict[bytes, Grant], text: str | None, tombstone_ms: int = TOMBSTONE_MS
) -> Given:
    return Given(wanted, grants[wanted.digest].holder, text, tombstone_ms)


def _lease_all(
    state: State,
    mine: dict[bytes, tuple[Ask, Flight]],
    founds: dict[bytes, Found],
    served: dict[bytes, AnyServed],
    grants: dict[bytes, Grant],
    asked: list[Ask],
    away: set[int],
) -> Program[set[bytes]]:
    """Fill *grants*, take out of *mine* what somebody stored meanwhile; return what Redis refused a lease for."""
    refused: set[bytes] = set()
    for chunk in together([wanted for wanted, _ in mine.values()]):
        under: list[tuple[Word, Ask]] = []
        for part, group in by_partition(chunk):
            word = None
            if part.index not in away:
                try:
                    word = part.word or (yield from connect(state, part))
                except BackendUnavailable as error:
                    failed(state, error)
            if word is None:
                refused.update(wanted.digest for wanted in group)
            else:
                under += [(word, wanted) for wanted in group]
        asked += [wanted for _, wanted in under]
        calls = [_lease_call(word, wanted, founds) for word, wanted in under]
        answers: list[Leased | BackendUnavailable] = yield from invoke_many(LEASE, calls)
        there: list[tuple[Word, Ask, Leased]] = []
        for (word, wanted), leased in zip(under, answers, strict=True):
            if isinstance(leased, BackendUnavailable):
                refused.add(wanted.digest)
            elif leased.code == GRANTED:
                current = parse_word(leased.word) or word
                grants[wanted.digest] = Grant(current, leased.fence, b"%d-%b" % (word.sequence, wanted.token))
            elif leased.code == FOUND and not wanted.read:
                refused.add(wanted.digest)  # stored meanwhile: this caller wants an answer of its own
            elif leased.code == FOUND:
                there.append((parse_word(leased.word) or word, wanted, leased))
        yield from _note_failures(state, [wanted for _, wanted in under], answers)
        for current, wanted, leased in there:  # now that all that was granted is known
            try:
                found = yield from judge(state, wanted, current, leased.entry, leased.now_ms)
            except BackendUnavailable as error:
                failed(state, error)
                refused.add(wanted.digest)
                continue
            if found is not None and found.freshness in {Freshness.FRESH, Freshness.EARLY}:
                _, flight = mine.pop(wanted.digest)
                state.flights.land(flight, found.landed())
                state.counters.add("coalesced")
                served[wanted.digest] = found.served(Source.COALESCED)
    return refused


def _lease_call(word: Word, wanted: Ask, founds: dict[bytes, Found]) -> ScriptCall:
    part, names = wanted.partition, wanted.partition.names
    found = founds.get(wanted.digest)
    keys = (names.c, names.e + word.prefix + wanted.digest, names.k + wanted.digest, names.f)
    args: tuple[Arg, ...] = (
        word.generation,
        b"%d-%b" % (word.sequence, wanted.token),
        wanted.policy.lease_ms,
        found.seen if found else b"",
        b"*" if wanted.refreshes else b"",
    )
    return part.index, keys, args


def _note_failures(state: State, asks: Sequence[Ask], answers: Sequence[object]) -> Program[None]:
    """Count what has failed, once for all calls that failed together; a strict cache raises it."""
    noted: set[int] = set()
    for wanted, error in zip(asks, answers, strict=True):
        if isinstance(error, BackendUnavailable) and id(error) not in noted:
            noted.add(id(error))
            yield from shed(state, wanted.partition, wanted.now_ms, error)
            failed(state, error)


def _keep_many(
    state: State, answers: Sequence[tuple[Ask, Computed]], grants: dict[bytes, Grant]
) -> Program[dict[bytes, Landed]]:
    ready: dict[bytes, Encoded] = {}
    refused: list[Given] = []
    landed: dict[bytes, Landed] = {}
    for wanted, answer in answers:
        encoded = yield from admitted(state, answer.value, answer.cost_ms)
        landed[wanted.digest] = landing(
            wanted, answer.value, encoded, grants.get(wanted.digest), stored=False
        )
        if encoded is not None and wanted.write and wanted.digest in grants:
            ready[wanted.digest] = encoded
        elif wanted.digest in grants:
            refused.append(_given(wanted, grants, ""))
    yield from release_many(state, refused)
    for chunk in together([wanted for wanted, _ in answers if wanted.digest in ready]):
        to_store = [(wanted, ready[wanted.digest], grants[wanted.digest]) for wanted in chunk]
        codes = yield from _store_chunk(state, to_store)
        for (wanted, encoded, grant), code in zip(to_store, codes, strict=True):
            if code in {STORED, REPLACED}:
                landed[wanted.digest] = landing(wanted, None, encoded, grant, stored=True)
    return landed


def store_many(state: State, asks: Sequence[Ask], values: Sequence[Any]) -> Program[list[bool]]:
    """Store a value for each request, without leases; return which were stored.  One round trip a server."""
    stored = [False] * len(asks)
    ready: dict[int, Encoded] = {}
    for wanted, value in zip(asks, values, strict=True):
        if wanted.write:
            encoded = yield from encode_for_store(state, value, 0)
            if encoded is not None:
                ready[wanted.index] = encoded
    for chunk in together([wanted for wanted in asks if wanted.index in ready]):
        codes = yield from _store_chunk(state, [(wanted, ready[wanted.index], None) for wanted in chunk])
        for wanted, code in zip(chunk, codes, strict=True):
            stored[wanted.index] = code in {STORED, REPLACED}
    return stored


def _store_chunk(
    state: State, chunk: Sequence[tuple[Ask, Encoded, Grant | None]]
) -> Program[list[int | None]]:
    """Store in one round trip for each server; return the code of each, None where Redis did not answer."""
    codes: list[int | None] = [None] * len(chunk)
    places: list[int] = []
    calls: list[ScriptCall] = []
    away: set[int] = set()
    for place, (wanted, encoded, grant) in enumerate(chunk):
        part = wanted.partition
        if part.index in away:
            continue
        try:
            word = grant.word if grant else part.word or (yield from connect(state, part))
        except BackendUnavailable as error:
            failed(state, error)
            away.add(part.index)
            continue
        keys, args = store_call_of(state, wanted, word, encoded, grant)
        places.append(place)
        calls.append((part.index, keys, args))
    answers: list[Stored | BackendUnavailable] = yield from invoke_many(STORE, calls)
    asked = [chunk[place][0] for place in places]
    state.drop_near(wanted.digest for wanted in asked)
    given: list[Given] = []
    last = {wanted.partition.index: wanted for wanted in asked}
    for place, wanted, stored in zip(places, asked, answers, strict=True):
        _, encoded, grant = chunk[place]
        if isinstance(stored, BackendUnavailable):
            if grant is not None and isinstance(stored, OutOfMemory | Moved):
                # It answers: nobody need wait for the lease's end.
                given.append(Given(wanted, grant.holder, ""))
            continue
        if stored.code == MOVED and grant is None:
            codes[place] = yield from _write_anew(state, wanted, encoded)
            continue
        # Only the last reply's victims are still the least recently used, and only it says what is over now.
        is_last = last[wanted.partition.index] is wanted
        yield from settle(state, wanted.partition, stored if is_last else stored._replace(over=0, victims=[]))
        codes[place] = stored.code
    yield from release_many(state, given)
    yield from _note_failures(state, asked, answers)
    return codes


def _write_anew(state: State, wanted: Ask, encoded: Encoded) -> Program[int | None]:
    """Store under the generation that is current now."""
    wanted.partition.word = None
    try:
        return (yield from write(state, wanted, encoded, None))
    except BackendUnavailable as error:
        failed(state, error)
        return None
