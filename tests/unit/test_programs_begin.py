"""Callers that make the call themselves: begin, finish, abandon."""

from __future__ import annotations

from typing import Any

import pytest

from askonce import BackendUnavailable, LeaderFailed, NotCached, Policy, Refused, Served, Source
from askonce._effects import TIMED_OUT, Decode, Detach, Encode, Fetch, Invoke, Join, Listen, Sleep
from askonce._programs import Held, abandon, begin, fail, finish, get_or_compute
from askonce.entry import Corrupt
from askonce.scripts import CONTROL, FENCED_OFF, LEASE, RELEASE, REPLACED, STORE

from .play import (
    FENCE,
    HOLDER,
    MEMBER,
    Cancelled,
    Player,
    Registered,
    computed,
    controlled,
    counts,
    entry,
    failed,
    fence_of,
    fetched,
    found,
    granted,
    grave,
    held,
    like,
    make_ask,
    make_state,
    play,
    run,
    stored,
)

AWAY = BackendUnavailable("no answer")
MISS = (Fetch, fetched(None))
WINDOWS = Policy(ttl=10, stale_while_revalidate=20, stale_if_error=40)
STALE, EXPIRED = entry(age=15), entry(age=45)
HANDED_OVER = (like(RELEASE, holder=HOLDER, tombstone_ms=0), True)


def start(state, *lines, refresh=False, **words):
    return play(begin(state, make_ask(state, **words), refresh=refresh), *lines)


def holding(state, *lines, **words):
    """Return what a caller holds that is to compute, with its lease and a flight that others join."""
    outcome = start(state, *(lines or (MISS, (LEASE, granted()))), **words)
    assert isinstance(outcome, Held)
    assert outcome.grant is not None
    assert len(state.flights) == 1
    return outcome


def joining(state, program=None):
    """Return a caller of this process that waits for the flight."""
    follower = Player(program or get_or_compute(state, make_ask(state))).play(MISS)
    assert isinstance(follower.effect, Join)
    return follower


# --- begin --------------------------------------------------------------------------------------------------------


def test_a_hit_is_served(state):
    """What is stored fresh is served, and nothing is held."""
    assert start(state, (Fetch(0, (MEMBER,)), fetched(entry()))) == Served("old", Source.HIT, 1.0, 9.0)
    assert counts(state) == {"hits": 1}
    assert len(state.flights) == 0


def test_an_early_entry_is_served(state):
    """The caller would pay for an early refresh itself: it is left to others."""
    served = start(state, (Fetch, fetched(entry(age=9))), policy=Policy(ttl=10, early=100), draw=0.999)

    assert served.source is Source.HIT


def test_a_miss_is_the_callers_to_compute(state):
    """The caller holds the lease and a flight, which others join until it ends."""
    outcome = start(state, MISS, (like(LEASE, seen=b""), granted()))

    assert isinstance(outcome, Held)
    assert outcome.grant is not None
    assert outcome.grant.fence == FENCE
    assert outcome.grant.holder == HOLDER
    assert outcome.flight is not None
    assert outcome.flight.fence == FENCE
    assert counts(state) == {"misses": 1}


def test_what_somebody_stored_meanwhile_is_served(state):
    """The lease script answers with the entry: nothing is held."""
    outcome = start(state, MISS, (LEASE, found(entry("theirs"))))

    assert outcome == Served("theirs", Source.COALESCED, 1.0, 9.0)
    assert len(state.flights) == 0


def test_another_process_is_waited_for(state):
    """A caller that holds nothing else sleeps as any other."""
    waiters = [Registered(), Registered()]
    outcome = start(
        state,
        MISS,
        (LEASE, held(40)),
        (Listen, waiters[0]),
        (LEASE, held(40)),
        (Sleep, 1.0),
        (Listen, waiters[1]),
        (like(LEASE, waited=b"40"), found(entry("theirs"))),
    )

    assert outcome.source is Source.COALESCED
    assert not any(waiter.open for waiter in waiters)


def test_a_failure_elsewhere_is_shared(state):
    """Who waited is told, and holds nothing."""
    with pytest.raises(LeaderFailed):
        start(
            state,
            MISS,
            (LEASE, held(40)),
            (Listen, Registered()),
            (LEASE, held(40)),
            (Sleep, 1.0),
            (Listen, Registered()),
            (LEASE, failed("ValueError")),
        )
    assert len(state.flights) == 0


def test_who_holds_an_unfinished_lease_never_sleeps(state):
    """[a, b] and [b, a] must not wait for each other: the second lease is not waited for."""
    outcome = start(state, MISS, (LEASE, held()), waits=False)

    assert isinstance(outcome, Held)
    assert outcome.grant is None


def test_who_holds_an_unfinished_lease_never_joins(state):
    """[a, a]: the flight in the air may be the caller's own."""
    first = holding(state)
    second = start(state, MISS, waits=False)

    assert isinstance(second, Held)
    assert (second.flight, second.grant) == (None, None)
    play(finish(state, second, "x", 1))
    assert first.flight is not None
    assert not first.flight.future.done()
    play(abandon(state, first, None), HANDED_OVER)


def test_a_flight_of_this_process_is_joined(state):
    """A second caller shares what the first one finishes with."""
    first = holding(state)
    second = joining(state, begin(state, make_ask(state), refresh=False))
    assert play(finish(state, first, {"a": 1}, 5), (STORE, stored())) is True
    second.answer(first.flight.future.result(0))

    assert second.end() == Served({"a": 1}, Source.COALESCED, 0.0, 10.0)


def test_impatience_means_computing_alone(state):
    """A flight that does not land in time: the caller computes, holding nothing."""
    first = holding(state)
    second = joining(state, begin(state, make_ask(state), refresh=False))
    second.answer(TIMED_OUT)

    assert second.end().flight is None
    play(abandon(state, first, None), HANDED_OVER)


def test_what_landed_in_a_form_that_is_not_usable(state):
    """``usable`` may refuse what another caller computed: then this one computes, and no error reaches it."""
    first = holding(state)
    second = joining(state, begin(state, make_ask(state), refresh=False))
    play(finish(state, first, "x", 5), (STORE, stored()))
    second.answer(first.flight.future.result(0))
    second.play((Decode, Corrupt("not usable by this caller")))
    if not second.ended:
        second.play((LEASE, granted()))

    assert isinstance(second.end(), Held)


def test_a_stale_entry_is_revalidated_by_one(state):
    """The first caller that finds it computes; all others are served the stale answer at once."""
    first = start(
        state, (Fetch, fetched(STALE)), (like(LEASE, seen=fence_of(STALE)), granted()), policy=WINDOWS
    )
    second = start(state, (Fetch, fetched(STALE)), policy=WINDOWS)

    assert isinstance(first, Held)
    assert second.source is Source.STALE
    play(finish(state, first, "new", 5), (STORE, stored(REPLACED)))


@pytest.mark.parametrize("answer", [held(), AWAY], ids=["revalidated elsewhere", "redis away"])
def test_a_stale_entry_that_cannot_be_revalidated_is_served(state, answer):
    """Another process is at it, or Redis does not give the lease: the stale answer will do."""
    served = start(state, (Fetch, fetched(STALE)), (LEASE, answer), policy=WINDOWS)

    assert served.source is Source.STALE
    assert counts(state)["stale"] == 1
    assert len(state.flights) == 0


def test_an_expired_entry_is_a_miss(state):
    """It could only stand in for an error, which the caller alone would know of."""
    outcome = start(
        state, (Fetch, fetched(EXPIRED)), (like(LEASE, seen=fence_of(EXPIRED)), granted()), policy=WINDOWS
    )

    assert isinstance(outcome, Held)


@pytest.mark.parametrize("words", [{"refresh": True}, {"read": False}])
@pytest.mark.parametrize("data", [None, entry(), STALE, grave()], ids=["nothing", "fresh", "stale", "grave"])
def test_a_refresh_serves_nothing_that_is_stored(state, words, data):
    """Whatever is there is only seen, so that it can be replaced."""
    seen = fence_of(data) if data else b""
    outcome = start(
        state, (CONTROL, controlled()), (Fetch, fetched(data)), (like(LEASE, seen=seen), granted()), **words
    )

    assert isinstance(outcome, Held)
    assert outcome.grant is not None


@pytest.mark.parametrize("refresh", [False, True])
def test_after_an_invalidation_no_older_flight_is_joined(state, refresh):
    """The flight in the air began before: the caller computes anew, whether it asks for a refresh or not."""
    first = holding(state)
    lines = [(CONTROL, controlled())] if refresh else []
    second = Player(begin(state, make_ask(state), refresh=refresh)).play(*lines, (Fetch, fetched(grave(60))))

    assert isinstance(second.effect, Invoke)
    second.play((like(LEASE, seen=fence_of(grave(60))), granted(fence=61)))
    assert second.end().flight is not first.flight


@pytest.mark.parametrize(
    "lines",
    [[(Fetch, AWAY)], [MISS, (LEASE, AWAY)], [MISS, (LEASE, held()), (Listen, AWAY)]],
    ids=["fetch", "lease", "listen"],
)
def test_without_redis_the_call_is_the_callers(lines):
    """It holds a flight, which others of the process join, and no lease; a strict cache raises."""
    state = make_state()
    outcome = start(state, *lines)
    assert isinstance(outcome, Held)
    assert outcome.grant is None
    assert len(state.flights) == 1
    follower = joining(state)
    assert play(finish(state, outcome, "new", 5)) is False
    follower.answer(outcome.flight.future.result(0))
    assert follower.end().value == "new"

    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        start(strict, *lines)
    assert len(strict.flights) == 0


@pytest.mark.parametrize("error", [Cancelled(), KeyError("bug")])
@pytest.mark.parametrize("step", range(7))
def test_whatever_happens_while_beginning_nothing_is_left(step, error):
    """Interrupted at any step: no flight, no waiter."""
    state, number, waiters = make_state(), -1, []

    def respond(effect: Any) -> Any:
        nonlocal number
        number += 1
        if number == step:
            return error
        match effect:
            case Fetch():
                return fetched(None)
            case Listen():
                waiters.append(Registered())
                return waiters[-1]
            case Sleep():
                return 0.1
        return held(left_ms=100)

    with pytest.raises(type(error)):
        run(begin(state, make_ask(state), refresh=False), respond)
    assert len(state.flights) == 0
    assert not any(waiter.open for waiter in waiters)


def test_only_if_cached_never_makes_a_caller_compute(state):
    """A lease is the duty to compute, which is what was forbidden."""
    with pytest.raises(NotCached):
        start(state, MISS, only_if_cached=True)
    assert len(state.flights) == 0


def test_only_if_cached_serves_a_stale_entry(state):
    """It may be served, and it is not the caller's to revalidate."""
    served = start(state, (Fetch, fetched(STALE)), policy=WINDOWS, only_if_cached=True)

    assert served.source is Source.STALE
    assert len(state.flights) == 0


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_is_expired_stands_in_for_the_failure_of_another(state, elsewhere):
    """Who waited for a computation that failed is served the last good answer, as one who computes is."""
    found_expired = (Fetch, fetched(EXPIRED))
    if elsewhere:
        lines = [(LEASE, held(40)), (Listen, Registered()), (LEASE, failed("ValueError"))]
        served = start(state, found_expired, *lines, policy=WINDOWS)
    else:
        first = holding(state)
        second = Player(begin(state, make_ask(state, policy=WINDOWS), refresh=False))
        second.play(found_expired, (Decode, "old"))
        play(abandon(state, first, ValueError()), (RELEASE, True))
        second.answer(first.flight.future.exception(0))
        served = second.end()

    assert (served.value, served.source) == ("old", Source.STALE_IF_ERROR)
    assert counts(state)["stale_if_error"] == 1
    assert len(state.flights) == 0


# --- finish -------------------------------------------------------------------------------------------------------


def test_finishing_stores_and_lands(state):
    """One store gives the lease back; who joined has a value of its own."""
    mine = holding(state)
    follower = joining(state)
    line = like(STORE, generation=7, sequence=100, fence=FENCE, holder=HOLDER, ttl_ms=10_000), stored()
    assert play(finish(state, mine, {"a": 1}, 5), line) is True
    follower.answer(mine.flight.future.result(0))

    assert follower.end().value == {"a": 1}
    assert len(state.flights) == 0
    assert counts(state) == {"misses": 2, "computed": 1, "stored": 1, "coalesced": 1}


@pytest.mark.parametrize("answer", [stored(FENCED_OFF), AWAY], ids=["fenced off", "away"])
def test_finishing_without_storing_lands_all_the_same(state, answer):
    """False says that it was not stored; those who joined have the answer."""
    mine = holding(state)
    program = Player(finish(state, mine, "new", 5)).play((STORE, answer))
    if not program.ended:
        program.play((RELEASE, AWAY))

    assert program.end() is False
    assert mine.flight.future.result(0).payload is not None


@pytest.mark.parametrize("error", [Refused("empty"), TypeError("no form")])
def test_finishing_with_what_may_not_be_stored(state, error):
    """Those who wait elsewhere compute side by side; here they share the value."""
    mine = holding(state)
    follower = joining(state)
    value = object()
    assert (
        play(finish(state, mine, value, 5), (Encode, error), (like(RELEASE, text="", tombstone_ms=300), True))
        is False
    )
    follower.answer(mine.flight.future.result(0))

    assert follower.end().value is value


def test_finishing_in_a_strict_cache_raises(state):
    """The caller is told, and nobody is left waiting."""
    state = make_state(strict=True)
    mine = holding(state)
    with pytest.raises(BackendUnavailable):
        Player(finish(state, mine, "new", 5)).play((STORE, AWAY), (RELEASE, AWAY))

    assert len(state.flights) == 0


@pytest.mark.parametrize("step", [(Encode, Cancelled()), (STORE, Cancelled())], ids=["encoding", "storing"])
def test_an_interrupted_finish_hands_over(state, step):
    """Who joined leads next."""
    mine = holding(state)
    with pytest.raises(Cancelled):
        play(finish(state, mine, "new", 5), step)

    assert mine.flight.future.result(0) is None
    assert len(state.flights) == 0


def test_writing_may_be_forbidden(state):
    """With write=False the lease is given back and nothing is stored."""
    mine = holding(state, write=False)

    assert play(finish(state, mine, "new", 5), (like(RELEASE, text="", tombstone_ms=300), True)) is False


# --- abandon ------------------------------------------------------------------------------------------------------


def test_abandoning_hands_over(state):
    """Without an error one of those who wait computes."""
    mine = holding(state)
    follower = joining(state)
    play(abandon(state, mine, None), HANDED_OVER)
    assert mine.flight.future.result(0) is None
    follower.answer(None)

    assert follower.effect.script is LEASE
    follower._program.close()


def test_abandoning_with_an_error_shares_it(state):
    """The error is raised by all who joined, its type by those who wait elsewhere."""
    mine = holding(state)
    follower, error = joining(state), ValueError("key sk-123")
    play(abandon(state, mine, error), (like(RELEASE, text="ValueError", tombstone_ms=300), True))
    with pytest.raises(ValueError) as raised:
        follower.answer(mine.flight.future.exception(0))

    assert raised.value is error


def test_an_error_that_is_not_shared(state):
    """With share_errors=False an error concerns the caller alone: the others take over."""
    mine = holding(state, share_errors=False)
    play(abandon(state, mine, ValueError("mine")), HANDED_OVER)

    assert mine.flight.future.result(0) is None


def test_abandoning_without_redis(state):
    """There is nothing to give back, and the flight lands."""
    mine = start(state, (Fetch, AWAY))
    play(abandon(state, mine, None))
    assert len(state.flights) == 0

    state = make_state()
    mine = holding(state)
    play(abandon(state, mine, None), (RELEASE, AWAY))
    assert len(state.flights) == 0


def test_finishing_what_was_never_held(state):
    """A caller that had to compute alone stores nothing and lands nothing."""
    assert play(finish(state, Held(make_ask(state), None, None), "new", 5)) is False
    assert play(abandon(state, Held(make_ask(state), None, None), ValueError())) is None


# --- fail ---------------------------------------------------------------------------------------------------------


def test_a_failure_is_stood_in_for(state):
    """What was expired when the caller began is served, without asking Redis again; the error is shared."""
    mine = holding(state, (Fetch, fetched(EXPIRED)), (LEASE, granted()), policy=WINDOWS)
    follower = joining(state)
    served = play(fail(state, mine, ValueError("key sk-123")), (like(RELEASE, text="ValueError"), True))

    assert (served.value, served.source, served.ttl) == ("old", Source.STALE_IF_ERROR, 0.0)
    assert counts(state) == {"misses": 2, "stale_if_error": 1}
    with pytest.raises(ValueError, match="sk-123"):
        follower.answer(mine.flight.future.exception(0))


def test_a_failed_revalidation_serves_what_is_stale(state):
    """As a refresh behind a caller that fails: the stale answer is served, and others are kept from trying."""
    mine = holding(state, (Fetch, fetched(STALE)), (LEASE, granted()), policy=WINDOWS)
    release = like(RELEASE, holder=HOLDER, text="", tombstone_ms=1_000)
    served = play(fail(state, mine, ValueError()), (release, True))

    assert (served.value, served.source) == ("old", Source.STALE)
    assert mine.flight.future.result(0) is None
    assert counts(state) == {"stale": 1, "refresh_errors": 1}


@pytest.mark.parametrize("data", [None, entry(age=60), grave()], ids=["nothing", "dead", "grave"])
def test_nothing_stands_in_for_a_failure(state, data):
    """None: the error is the caller's to raise."""
    mine = holding(state, (Fetch, fetched(data)), (LEASE, granted()), policy=WINDOWS)

    assert play(fail(state, mine, ValueError()), (like(RELEASE, text="ValueError"), True)) is None
    assert counts(state) == {"misses": 1}


def test_nothing_stands_in_for_a_failed_refresh(state):
    """Who asked for nothing stored is given nothing stored."""
    expired = [(CONTROL, controlled()), (Fetch, fetched(EXPIRED)), (LEASE, granted())]
    mine = start(state, *expired, policy=WINDOWS, refresh=True)

    assert play(fail(state, mine, ValueError()), (RELEASE, True)) is None


@pytest.mark.parametrize("lines", [[(LEASE, AWAY)], [(LEASE, held())]], ids=["redis away", "holds another"])
def test_without_a_lease_a_failure_is_stood_in_for(state, lines):
    """What was found before serves, whatever became of the lease."""
    outcome = start(state, (Fetch, fetched(EXPIRED)), *lines, policy=WINDOWS, waits=False)

    assert outcome.grant is None
    assert play(fail(state, outcome, ValueError())).source is Source.STALE_IF_ERROR


def test_one_who_begins_serves_one_who_asks(state):
    """``begin`` and ``get_or_compute`` share flights in both directions."""
    asker = Player(get_or_compute(state, make_ask(state))).play(MISS, (LEASE, granted()))
    beginner = joining(state, begin(state, make_ask(state), refresh=False))
    asker.answer(computed("new"))
    asker.play((STORE, stored())).end()
    beginner.answer(beginner.effect.flight.future.result(0))

    assert beginner.end().source is Source.COALESCED
    assert Detach not in {type(effect) for effect in asker.asked}
