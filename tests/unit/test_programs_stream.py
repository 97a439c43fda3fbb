"""Streams: serve a whole one, follow one that is running, or lead."""

from __future__ import annotations

from typing import Any

import pytest

from askonce import BackendUnavailable, LeaderFailed, NotCached, Policy, Served, Source
from askonce._effects import Ask as AskRedis
from askonce._effects import Fetch, Listen, Sleep
from askonce._flights import Flight
from askonce._programs import Chunks, Elsewhere, Held, end, follow, tune_in
from askonce.scripts import CONTROL, LEASE, RELEASE, REPLACED, STORE

from .play import (
    DIGEST,
    FENCE,
    HOLDER,
    Cancelled,
    Player,
    Registered,
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
    outcome_of,
    play,
    stored,
)

AWAY = BackendUnavailable("no answer")
MISS = (Fetch, fetched(None))
WINDOWS = Policy(ttl=10, stale_while_revalidate=20)
STALE = entry("old", age=15)
RUNNING = b"ao:{ns:0}:r:" + DIGEST + b":40"


@pytest.fixture
def state():
    return make_state()


def tune(state, *lines, **words):
    return play(tune_in(state, make_ask(state, **words)), *lines)


def leading(state):
    outcome = tune(state, MISS, (LEASE, granted()))
    assert isinstance(outcome, Held)
    return outcome


# --- tuning in ----------------------------------------------------------------------------------------------------


def test_a_whole_stream_is_served(state):
    """What is stored fresh is replayed, and nothing is held."""
    assert tune(state, (Fetch, fetched(entry("old")))) == Served("old", Source.HIT, 1.0, 9.0)
    assert counts(state) == {"hits": 1}
    assert len(state.flights) == 0


def test_the_first_to_ask_leads(state):
    """It holds the lease, and a flight whose tape the others read."""
    outcome = leading(state)

    assert outcome.grant is not None
    assert outcome.flight is not None
    assert outcome.flight.fence == FENCE
    assert counts(state) == {"misses": 1}


def test_who_asks_meanwhile_follows_the_flight(state):
    """In the process nothing more is asked of Redis."""
    first = leading(state)
    second = tune(state, MISS)

    assert isinstance(second, Flight)
    assert second is first.flight


def test_a_stream_of_another_process_is_followed(state):
    """Nobody waits for its end: the fence says which chunks are its."""
    assert tune(state, MISS, (LEASE, held(40))) == Elsewhere(40)
    assert len(state.flights) == 0


def test_who_must_not_wait_computes(state):
    """A caller that holds an unfinished lease follows nobody, here or elsewhere."""
    outcome = tune(state, MISS, (LEASE, held(40)), waits=False)
    assert isinstance(outcome, Held)
    assert outcome.grant is None
    again = tune(state, MISS, waits=False)
    assert isinstance(again, Held)
    assert again.flight is None


def test_what_somebody_stored_meanwhile_is_served(state):
    """The lease script answers with the entry; those who joined have it too."""
    program = Player(tune_in(state, make_ask(state))).play(MISS)
    flight, _ = state.flights.board(make_ask(state).flight_key)
    program.play((LEASE, found(entry("theirs"))))

    assert program.end().source is Source.COALESCED
    assert flight.future.result(0).payload is not None


def test_a_stale_stream_is_revalidated_by_one(state):
    """All others are served the stale one at once."""
    first = tune(
        state, (Fetch, fetched(STALE)), (like(LEASE, seen=fence_of(STALE)), granted()), policy=WINDOWS
    )
    assert isinstance(first, Held)
    assert tune(state, (Fetch, fetched(STALE)), policy=WINDOWS).source is Source.STALE

    other = make_state()
    served = tune(other, (Fetch, fetched(STALE)), (LEASE, held(40)), policy=WINDOWS)
    assert served.source is Source.STALE
    assert len(other.flights) == 0


def test_after_an_invalidation_no_older_stream_is_followed(state):
    """Neither the flight of this process nor the stream that is led elsewhere."""
    first = leading(state)
    second = Player(tune_in(state, make_ask(state))).play((Fetch, fetched(grave(60))))
    assert second.asks().script is LEASE
    second.play((LEASE, held(fence=55)))
    outcome = second.end()

    assert isinstance(outcome, Held)
    assert outcome.flight is not first.flight


def test_unread_streams_serve_nothing_that_is_stored(state):
    """With read=False what is there is only replaced."""
    lines = (
        (CONTROL, controlled()),
        (Fetch, fetched(entry())),
        (like(LEASE, seen=fence_of(entry())), granted()),
    )

    assert isinstance(tune(state, *lines, read=False), Held)


@pytest.mark.parametrize("data", [None, entry(age=500)])
def test_only_if_cached_never_streams_a_new_answer(state, data):
    """What is not there is an error."""
    with pytest.raises(NotCached):
        tune(state, (Fetch, fetched(data)), only_if_cached=True)
    assert len(state.flights) == 0


def test_only_if_cached_serves_a_stale_stream(state):
    """And leaves the revalidation to others."""
    assert tune(state, (Fetch, fetched(STALE)), policy=WINDOWS, only_if_cached=True).source is Source.STALE
    assert len(state.flights) == 0


def test_a_function_that_asks_for_its_own_stream_computes(state):
    """It would wait for itself."""
    leading(state)
    outcome = tune(state, MISS, leading=frozenset({DIGEST}))

    assert isinstance(outcome, Held)
    assert outcome.flight is None


@pytest.mark.parametrize("lines", [[(Fetch, AWAY)], [MISS, (LEASE, AWAY)]])
def test_without_redis_the_stream_is_the_callers(lines):
    """Others of the process follow it all the same; a strict cache raises."""
    state = make_state()
    outcome = tune(state, *lines)
    assert isinstance(outcome, Held)
    assert outcome.grant is None
    assert len(state.flights) == 1

    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        tune(strict, *lines)
    assert len(strict.flights) == 0


# --- following ----------------------------------------------------------------------------------------------------


def following(state, *lines, count=2, **words):
    """Play ``follow`` of the stream with fence 40 after *count* chunks; no registration may be left."""
    waiters = []

    def register(_: Any) -> Registered:
        waiters.append(Registered())
        return waiters[-1]

    program = Player(follow(state, make_ask(state, **words), Elsewhere(40), count))
    try:
        for expected, answer in lines:
            program.play((expected, register if expected is Listen else answer))
        return program.end()
    finally:
        assert not any(waiter.open for waiter in waiters)


def test_chunks_that_are_there_are_read_at_once(state):
    """From the caller's own place on; the registration comes first, so that no message is lost."""
    line = AskRedis(0, (("LRANGE", RUNNING, 2, -1),)), [[b"sc", b"sd"]]
    outcome = following(state, (Listen, None), line)

    assert isinstance(outcome, Chunks)
    assert (list(outcome.chunks), outcome.last) == ([b"sc", b"sd"], False)


def test_a_follower_sleeps_until_there_is_more(state):
    """Nothing new and the leader at work: it waits for the message, or for the end of the lease."""
    program = Player(follow(state, make_ask(state), Elsewhere(40), 0))
    program.play(
        (Listen, Registered()), (AskRedis, [[]]), (like(LEASE, waited=b"40", seen=b""), held(40, left_ms=700))
    )
    assert isinstance(program.effect, Sleep)
    assert 0.7 <= program.effect.seconds < 0.71
    program.play((Sleep, 0.2), (Listen, Registered()), (AskRedis, [[b"sa"]]))

    assert list(program.end().chunks) == [b"sa"]


def test_a_stream_that_failed_fails_for_its_followers(state):
    """With the type of the error."""
    with pytest.raises(LeaderFailed):
        following(state, (Listen, None), (AskRedis, [[]]), (LEASE, failed("ValueError")))


def test_a_leader_that_is_gone_is_replaced(state):
    """The lease is granted to one of the followers, which leads with a flight of its own."""
    outcome = following(state, (Listen, None), (AskRedis, [[]]), (LEASE, granted(fence=60)))

    assert isinstance(outcome, Held)
    assert outcome.flight is not None
    assert outcome.flight.fence == 60


def test_a_lease_that_is_not_needed_is_given_back(state):
    """Another thread of the process leads already."""
    state.flights.board(make_ask(state).flight_key)
    lines = (
        (Listen, None),
        (AskRedis, [[]]),
        (LEASE, granted()),
        (like(RELEASE, holder=HOLDER, tombstone_ms=0), True),
    )

    assert following(state, *lines) is None


def test_another_leader_is_followed(state):
    """Who leads now, by its fence."""
    assert following(state, (Listen, None), (AskRedis, [[]]), (LEASE, held(60))) == Elsewhere(60)


def test_an_answer_that_may_not_be_stored_has_no_more_chunks(state):
    """Neither a lease nor an entry: the caller is told so."""
    assert following(state, (Listen, None), (AskRedis, [[]]), (LEASE, failed(""))) is None


def test_a_followers_patience_ends(state):
    """After max_wait it is on its own."""
    lines = [(Listen, None), (AskRedis, [[]]), (LEASE, held(40)), (Sleep, 1.0)] * 2

    assert following(state, *lines, policy=Policy(ttl=10, max_wait=2)) is None


@pytest.mark.parametrize("error", [AWAY, Cancelled()])
@pytest.mark.parametrize("step", range(4))
def test_whatever_happens_while_following_no_registration_is_left(state, step, error):
    """An error at each effect in turn ends the following, and the waiting."""
    waiters, number = [], -1

    def respond(effect: Any) -> Any:
        nonlocal number
        number += 1
        if number == step:
            return error
        match effect:
            case Listen():
                waiters.append(Registered())
                return waiters[-1]
            case AskRedis():
                return [[]]
            case Sleep():
                return 200.0
        return held(40) if effect.script is LEASE else True

    result, raised = outcome_of(follow(state, make_ask(state), Elsewhere(40), 0), respond)

    assert not any(waiter.open for waiter in waiters)
    if error is AWAY:  # the caller is on its own, and the failure counted
        assert (result, raised) == (None, None)
        assert counts(state)["backend_errors"] == 1
    else:
        assert raised is error


def test_following_in_a_strict_cache_raises():
    """Redis away is an error there."""
    state = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        following(state, (Listen, None), (AskRedis, AWAY))


# --- ending -------------------------------------------------------------------------------------------------------


def chunk_encoding(effect: Any) -> Any:
    from askonce._effects import Encoded
    from askonce.entry import encode_stream

    return Encoded(*encode_stream(effect.value, effect.cost_ms))


def ending(state, mine, answers):
    """Play ``end`` of a stream of two chunks; *answers* by the name of the script or command."""
    asked = []

    def respond(effect: Any) -> Any:
        name = effect.script.name if hasattr(effect, "script") else effect.commands[0][0]
        asked.append(name)
        return answers.get(name, [1])

    from askonce._effects import Encode

    program = Player(end(state, mine, [b"sa", b"sb"], 5))
    while not program.ended:
        program.answer(chunk_encoding if isinstance(program.effect, Encode) else respond)
    return program.result, asked


def test_a_stream_that_came_to_its_end_is_stored(state):
    """One store gives the lease back; the flight lands with all chunks."""
    mine = leading(state)
    result, asked = ending(state, mine, {"store": stored(REPLACED)})

    assert result is True
    assert asked[0] == "store"
    assert mine.flight.future.result(0).payload is not None
    assert len(state.flights) == 0
    assert counts(state)["stored"] == 1


def test_a_stream_that_cannot_be_stored_lands_all_the_same(state):
    """Redis went away while it ran: those who joined have it."""
    mine = leading(state)
    result, _ = ending(state, mine, {"store": AWAY, "release": AWAY, "UNLINK": AWAY})

    assert result is False
    assert mine.flight.future.result(0).payload is not None


def test_a_stream_without_a_lease_is_not_stored(state):
    """It was led without Redis."""
    mine = tune(state, (Fetch, AWAY))
    result, asked = ending(state, mine, {})

    assert result is False
    assert STORE.name not in asked
    assert len(state.flights) == 0
