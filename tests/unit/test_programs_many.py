"""Many requests at once."""

from __future__ import annotations

from typing import Any

import pytest

from askonce import BackendUnavailable, ConfigurationError, NotCached, Policy, Refused, Source
from askonce._effects import Ask, Compute, Detach, Encode, Fetch, FetchMany, Invoke, InvokeMany, Join, Listen
from askonce._programs import get_many, get_or_compute, get_or_compute_many
from askonce.keys import Fingerprints
from askonce.scripts import CONTROL, FENCED_OFF, LEASE, RELEASE, REPLACED, STORE, TRIM

from .play import (
    SEQUENCE,
    Cancelled,
    Holder,
    Player,
    Registered,
    arguments,
    computed,
    controlled,
    counts,
    entry,
    fence_of,
    fetched,
    found,
    granted,
    grave,
    held,
    is_compute,
    like,
    make_ask,
    make_state,
    outcome_of,
    play,
    run,
    stored,
)

AWAY = BackendUnavailable("no answer")
WINDOWS = Policy(ttl=10, stale_while_revalidate=20, stale_if_error=40)
STALE, EXPIRED = entry(age=15), entry(age=45)
_of = Fingerprints("", {}).of


def digests(count: int) -> list[bytes]:
    return [_of(number) for number in range(count)]


def asks(state, count, **words):
    """Return requests for the first *count* digests, each with a token of its own."""
    return [
        make_ask(state, digest, index=number, token=b"t%d" % number, **words)
        for number, digest in enumerate(digests(count))
    ]


def many(state, count, *lines, **words):
    """Play ``get_or_compute_many`` to its end; nothing may be left in the air."""
    try:
        served = play(get_or_compute_many(state, asks(state, count, **words)), *lines)
    except AssertionError:
        raise
    except BaseException:
        assert len(state.flights) == 0
        raise
    assert len(state.flights) == 0
    return served


def values(served) -> list[Any]:
    return [outcome.value if outcome else None for outcome in served]


def sources(served) -> list[Source | None]:
    return [outcome.source if outcome else None for outcome in served]


# --- get_many -----------------------------------------------------------------------------------------------------


def test_many_are_read_in_one_round_trip(state):
    """One fetch, an answer for each in order, None for what is not there."""
    members = tuple(b"7:" + digest for digest in digests(4))
    line = Fetch(0, members), fetched(entry("a"), None, entry("c"), entry(age=100))
    served = play(get_many(state, asks(state, 4)), line)

    assert values(served) == ["a", None, "c", None]
    assert counts(state) == {"hits": 2, "misses": 2}


def test_none_are_read_in_no_round_trip(state):
    """Nothing asked, nothing done."""
    assert play(get_many(state, [])) == []
    assert many(state, 0) == []


def test_a_round_trip_is_bounded(state):
    """Many hundreds are read in several trips, so that one deadline is enough for each."""
    program = Player(get_many(state, asks(state, 300)))
    sizes = []
    while not program.ended:
        assert isinstance(program.effect, Fetch)
        sizes.append(len(program.effect.members))
        program.answer(fetched(*[entry(len(sizes))] * sizes[-1]))
        program._perform()

    assert sum(sizes) == 300
    assert max(sizes) <= 128
    assert values(program.result) == [1] * 128 + [2] * 128 + [3] * 44


def over(state, count):
    """Return requests for the first *count* digests, dealt out to the partitions in turn."""
    parts = state.partitions
    return [
        make_ask(state, digest, partition=parts[number % len(parts)], index=number, token=b"t%d" % number)
        for number, digest in enumerate(digests(count))
    ]


def test_partitions_are_read_at_the_same_time():
    """Requests are grouped by partition, and come back in the order asked."""
    state = make_state(2)
    of = digests(4)
    both = FetchMany((Fetch(0, (b"7:" + of[0], b"7:" + of[2])), Fetch(1, (b"7:" + of[1], b"7:" + of[3]))))
    served = play(
        get_many(state, over(state, 4)), (both, [fetched(entry(0), entry(2)), fetched(entry(1), None)])
    )

    assert values(served) == [0, 1, 2, None]


@pytest.mark.parametrize(
    "lines",
    [
        [(FetchMany, [AWAY, fetched(entry(1), None)])],
        [
            (CONTROL, AWAY),
            (Fetch(1, (b"7:" + digests(4)[1], b"7:" + digests(4)[3])), fetched(entry(1), None)),
        ],
    ],
    ids=["fetch", "connect"],
)
def test_a_partition_that_is_away_takes_no_other_with_it(lines):
    """The others are served as ever; a strict cache raises."""
    state = make_state(2)
    if len(lines) == 2:
        state.partitions[0].word = None
    assert values(play(get_many(state, over(state, 4)), *lines)) == [None, 1, None, None]
    assert counts(state) == {"hits": 1, "misses": 3, "backend_errors": 1}


def test_what_a_partition_that_is_away_misses_is_computed_without_it():
    """Together with what is missing elsewhere, in one call; leases are asked for, and answers kept, where they can be."""
    state = make_state(2)
    served = play(
        get_or_compute_many(state, over(state, 4)),
        (FetchMany, [AWAY, fetched(entry(1), None)]),
        leases(granted(50)),
        (Compute, lambda effect: computed(*effect.indices)),
        stores(stored()),
    )

    assert values(served) == [0, 1, 2, 3]
    assert sources(served) == [Source.BYPASSED, Source.HIT, Source.BYPASSED, Source.COMPUTED]
    assert counts(state)["bypassed:backend"] == 2


def test_a_partition_that_refuses_leases_takes_no_other_with_it():
    """What it would have to lease is computed unshared; the rest is leased and stored."""
    state = make_state(2)
    served = play(
        get_or_compute_many(state, over(state, 2)),
        (FetchMany, [fetched(None), fetched(None)]),
        leases(AWAY, granted(50)),
        (Compute, lambda effect: computed(*effect.indices)),
        stores(stored()),
    )

    assert values(served) == [0, 1]
    assert sources(served) == [Source.BYPASSED, Source.COMPUTED]


def test_a_moved_generation_is_read_again(state):
    """What was read under the old generation is not served."""
    new = [b"8:" + digest for digest in digests(2)]
    served = play(
        get_many(state, asks(state, 2)),
        (Fetch, fetched(entry("outdated"), entry("outdated"), word=b"8:1")),
        (Fetch(0, (new[0],)), fetched(entry("new", generation=8), word=b"8:1")),
        (Fetch(0, (new[1],)), fetched(None, word=b"8:1")),
    )

    assert values(served) == ["new", None]


def test_many_without_redis_are_misses():
    """Nothing is served and no error raised; a strict cache raises."""
    state = make_state()
    assert play(get_many(state, asks(state, 3)), (Fetch, AWAY)) == [None] * 3
    assert counts(state) == {"misses": 3, "backend_errors": 1}
    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        play(get_many(strict, asks(strict, 3)), (Fetch, AWAY))


def test_what_was_read_before_redis_went_away_is_served(state):
    """The first trip's entries are good, whatever became of the second."""
    lines = (Fetch, fetched(*[entry("a")] * 128)), (Fetch, AWAY)
    served = play(get_many(state, asks(state, 130)), *lines)

    assert values(served) == ["a"] * 128 + [None] * 2


def test_reading_may_be_forbidden(state):
    """With read=False nothing is served, whatever is there."""
    served = run(get_many(state, asks(state, 2, read=False)), lambda _: fetched(entry(), entry()))

    assert served == [None, None]


# --- get_or_compute_many ------------------------------------------------------------------------------------------


def leases(*answers):
    return LEASE, list(answers)


def stores(*answers):
    return STORE, list(answers)


def test_the_function_is_called_once_with_exactly_what_is_missing(state):
    """Hits are served; the rest is leased, computed in one call, in order, and stored."""
    program = Player(get_or_compute_many(state, asks(state, 5)))
    program.play((Fetch, fetched(None, entry("b"), None, entry("d"), entry(age=100, fence=9))))
    lease = program.asks()
    assert isinstance(lease, InvokeMany)
    given = [arguments(LEASE, args) for _, _, args in lease.calls]
    assert [call["token"] for call in given] == [
        Holder(None, b"t0"),
        Holder(None, b"t2"),
        Holder(None, b"t4"),
    ]
    assert [call["seen"] for call in given] == [b"", b"", fence_of(entry(fence=9))]
    program.play(leases(granted(50), granted(51), granted(52)))
    compute = program.asks()
    assert compute.indices == (0, 2, 4)
    assert [renewal.holder for renewal in compute.leases] == [
        Holder(50, b"t0"),
        Holder(51, b"t2"),
        Holder(52, b"t4"),
    ]
    program.play((Compute, computed("A", "C", "E")))
    store = program.asks()
    assert [arguments(STORE, args)["holder"] for _, _, args in store.calls] == [
        Holder(50, b"t0"),
        Holder(51, b"t2"),
        Holder(52, b"t4"),
    ]
    program.play(stores(stored(), stored(REPLACED), stored()))

    served = program.end()
    assert values(served) == ["A", "b", "C", "d", "E"]
    assert sources(served) == [Source.COMPUTED, Source.HIT, Source.COMPUTED, Source.HIT, Source.COMPUTED]
    assert [outcome.ttl for outcome in served] == [10.0, 9.0, 10.0, 9.0, 10.0]
    assert counts(state) == {"hits": 2, "misses": 3, "computed": 3, "stored": 3, "replaced": 1}
    assert len(state.flights) == 0


def test_all_hits_call_nothing(state):
    """One round trip and no lease."""
    assert values(many(state, 2, (Fetch, fetched(entry("a"), entry("b"))))) == ["a", "b"]


def test_what_others_are_computing_is_joined_after_ones_own(state):
    """Flights in the air are not led: they are joined when this call's own part is done."""
    other = Player(get_or_compute(state, make_ask(state, digests(2)[0]))).play((Fetch, fetched(None)))
    flight = state.flights.board(make_ask(state, digests(2)[0]).flight_key)[0]
    program = Player(get_or_compute_many(state, asks(state, 2))).play(
        (Fetch, fetched(None, None)),
        leases(granted()),
        (is_compute(1), computed("B")),
        stores(stored()),
    )
    assert program.asks() == Join(flight, 120.0)
    other.play((LEASE, granted()), (Compute, computed("A")), (STORE, stored())).end()
    program.answer(flight.future.result(0))

    served = program.end()
    assert values(served) == ["A", "B"]
    assert sources(served) == [Source.COALESCED, Source.COMPUTED]


def test_what_this_call_leads_is_led_before_anything_is_joined(state):
    """Two calls with crossing requests never wait for each other, even if their leases are held elsewhere."""
    other = Player(get_or_compute(state, make_ask(state, digests(2)[0]))).play((Fetch, fetched(None)))
    program = Player(get_or_compute_many(state, asks(state, 2))).play(
        (Fetch, fetched(None, None)), leases(held())
    )
    effect = program.asks()

    assert isinstance(effect, Invoke), (
        "the flight of 1 is this call's to lead; the one of 0 is joined after it"
    )
    program.play((LEASE, granted()), (is_compute(1), computed("B")), (STORE, stored()))
    assert isinstance(program.asks(), Join)
    program._program.close()
    other._program.close()


def test_a_lease_that_is_held_elsewhere_is_waited_for_after_ones_own(state):
    """What can be computed is computed first; then this call sleeps as a single request would."""
    served = many(
        state,
        2,
        (Fetch, fetched(None, None)),
        leases(held(40), granted()),
        (is_compute(1), computed("B")),
        stores(stored()),
        (LEASE, held(40)),
        (Listen, Registered()),
        (LEASE, found(entry("theirs"))),
    )

    assert values(served) == ["theirs", "B"]
    assert sources(served) == [Source.COALESCED, Source.COMPUTED]


def test_what_somebody_stored_meanwhile_is_served(state):
    """The lease script answers with the entry; the function is called with the rest."""
    served = many(
        state,
        2,
        (Fetch, fetched(None, None)),
        leases(found(entry("theirs")), granted()),
        (is_compute(1), computed("B")),
        stores(stored()),
    )

    assert values(served) == ["theirs", "B"]
    assert counts(state)["coalesced"] == 1


def test_followers_of_what_was_found_have_values_of_their_own(state):
    """What one caller does to its value is not seen by another."""
    program = Player(get_or_compute_many(state, asks(state, 1))).play((Fetch, fetched(None)))
    assert isinstance(program.asks(), InvokeMany)
    follower = Player(get_or_compute(state, make_ask(state, digests(1)[0]))).play((Fetch, fetched(None)))
    flight = follower.asks().flight
    program.play(leases(found(entry({"a": 1}))))
    mine = program.end()[0].value
    follower.answer(flight.future.result(0))

    assert follower.end().value == mine
    assert follower.result.value is not mine


def test_what_was_just_stored_is_not_computed_again_for_being_early(state):
    """An entry that is due for an early refresh is served all the same."""
    policy = Policy(ttl=10, early=100)
    served = many(
        state, 1, (Fetch, fetched(None)), leases(found(entry("theirs", age=0))), policy=policy, draw=0.999
    )

    assert values(served) == ["theirs"]


def test_a_lease_that_redis_refused_concerns_one_request(state):
    """It is computed in the same call as the others, and not stored."""
    served = many(
        state,
        2,
        (Fetch, fetched(None, None)),
        leases(AWAY, granted()),
        (is_compute(0, 1), computed("A", "B")),
        stores(stored()),
    )

    assert values(served) == ["A", "B"]
    assert sources(served) == [Source.BYPASSED, Source.COMPUTED]
    assert counts(state)["bypassed:backend"] == counts(state)["backend_errors"] == 1


def test_leases_that_redis_refused_are_raised_by_a_strict_cache():
    """And the leases that it did grant are given back."""
    state, released = make_state(strict=True), []

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(None, None)
            case InvokeMany(script=script) if script is LEASE:
                return [granted(50), AWAY]
            case InvokeMany():
                released.extend(arguments(RELEASE, args)["holder"] for _, _, args in effect.calls)
                return [True] * len(effect.calls)

    with pytest.raises(BackendUnavailable):
        run(get_or_compute_many(state, asks(state, 2)), respond)

    assert Holder(50, b"t0") in released
    assert len(state.flights) == 0


@pytest.mark.parametrize(
    "error", [ValueError("no"), ConfigurationError("fn returned 1 values for 2 requests")]
)
def test_an_error_gives_all_leases_back(state, error):
    """Who waits for any of them is told, everything of this call lands, and the caller has its exception."""
    name = "ValueError" if type(error) is ValueError else "askonce.errors.ConfigurationError"
    program = Player(get_or_compute_many(state, asks(state, 3)))
    program.play((Fetch, fetched(None, None, None)), leases(granted(50), held(), granted(52)))
    program.play((is_compute(0, 2), error))
    both = [Holder(50, b"t0"), Holder(52, b"t2")]
    with pytest.raises(type(error)) as raised:
        program.play((like(RELEASE, holder=both, text=name, tombstone_ms=300), True))

    assert raised.value is error
    assert len(state.flights) == 0


def test_a_cancelled_call_hands_all_leases_over(state):
    """Each of them can be led by somebody who waits; nothing is raised by followers."""
    program = Player(get_or_compute_many(state, asks(state, 2)))
    program.play((Fetch, fetched(None, None)))
    program.asks()
    flights = [state.flights.board(wanted.flight_key)[0] for wanted in asks(state, 2)]
    program.play(leases(granted(50), granted(51)), (Compute, Cancelled()))
    with pytest.raises(Cancelled):
        program.play((like(RELEASE, holder=[Holder(50, b"t0"), Holder(51, b"t1")], tombstone_ms=0), True))

    assert [flight.future.result(0) for flight in flights] == [None, None]


def test_a_call_cancelled_while_it_leases_gives_back_what_it_has(state):
    """Leases of the first trip are not kept until they end by themselves."""
    released: list[bytes] = []

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(*[None] * len(effect.members))
            case InvokeMany(script=script) if script is LEASE:
                if effect.calls[0][2][1] != Holder(None, b"t0"):
                    return Cancelled()
                return [granted(50 + number) for number in range(len(effect.calls))]
            case InvokeMany():
                released.extend(arguments(RELEASE, args)["holder"] for _, _, args in effect.calls)
                return [True] * len(effect.calls)

    with pytest.raises(Cancelled):
        run(get_or_compute_many(state, asks(state, 130)), respond)

    for number in range(128):
        assert Holder(50 + number, b"t%d" % number) in released
    assert len(state.flights) == 0


def test_a_call_cancelled_while_it_stores_gives_back_what_is_not_stored(state):
    """Nobody knows what has reached Redis; giving back a lease that the store has ended does nothing."""
    program = Player(get_or_compute_many(state, asks(state, 2)))
    program.play((Fetch, fetched(None, None)), leases(granted(50), granted(51)))
    program.play((Compute, computed("A", "B")), (STORE, Cancelled()))
    with pytest.raises(Cancelled):
        program.play((like(RELEASE, holder=[Holder(50, b"t0"), Holder(51, b"t1")], tombstone_ms=0), True))

    assert len(state.flights) == 0


def test_a_tag_that_cannot_be_read_stops_no_other_request():
    """An answer was stored meanwhile, and Redis goes away before its tag is known: computed, and the others leased."""
    state = make_state(2)
    tagged = found(entry("theirs", tags=(b"12345678",), sequence=SEQUENCE - 50))
    served = play(
        get_or_compute_many(state, over(state, 2)),
        (FetchMany, [fetched(None), fetched(None)]),
        leases(tagged, granted(50)),
        (Ask, AWAY),
        (Compute, lambda effect: computed(*effect.indices)),
        stores(stored()),
    )

    assert values(served) == [0, 1]
    assert sources(served) == [Source.BYPASSED, Source.COMPUTED]
    assert counts(state)["backend_errors"] == 1


def test_expired_entries_stand_in_for_an_error(state):
    """stale-if-error holds for many as for one: if each missing one has an old answer, those are served."""

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(EXPIRED, entry("b"), EXPIRED)
            case InvokeMany():
                return [granted(50), granted(51)] if effect.script is LEASE else [True, True]
            case Compute():
                return ValueError("model is down")

    served = run(get_or_compute_many(state, asks(state, 3, policy=WINDOWS)), respond)

    assert sources(served) == [Source.STALE_IF_ERROR, Source.HIT, Source.STALE_IF_ERROR]
    assert counts(state)["stale_if_error"] == 2


def test_stale_entries_are_served_and_refreshed_behind(state):
    """All of them by one call of the function, behind the caller; a call before it computes what is missing."""
    program = Player(get_or_compute_many(state, asks(state, 3, policy=WINDOWS)))
    program.play((Fetch, fetched(STALE, None, STALE)))
    refresh = program.asks().program
    program.play((Detach, None), leases(granted()), (is_compute(1), computed("B")), stores(stored()))
    assert values(program.end()) == ["old", "B", "old"]
    assert len(state.flights) == 2
    play(
        refresh,
        leases(granted(), granted()),
        (is_compute(0, 2), computed("A", "C")),
        stores(stored(), stored()),
    )

    assert len(state.flights) == 0


@pytest.mark.parametrize("error", [ValueError("down"), AWAY])
def test_a_refresh_of_many_that_fails_keeps_away_and_is_counted(state, error):
    """Nobody hears of it; the leases are given back with a pause that doubles."""
    program = Player(get_or_compute_many(state, asks(state, 2, policy=WINDOWS)))
    program.play((Fetch, fetched(STALE, STALE)))
    refresh = Player(program.asks().program)
    program.play((Detach, None)).end()
    if error is AWAY:
        refresh.play((LEASE, AWAY)).end()
        assert counts(state)["backend_errors"] == 1
    else:
        refresh.play(leases(granted(), granted()), (is_compute(0, 1), error))
        refresh.play((like(RELEASE, tombstone_ms=[1000, 1000]), True)).end()
        assert counts(state)["refresh_errors"] == 1
    assert len(state.flights) == 0


def test_what_is_refreshed_elsewhere_is_left_to_that(state):
    """Only what this call holds the lease of is computed."""
    program = Player(get_or_compute_many(state, asks(state, 2, policy=WINDOWS)))
    program.play((Fetch, fetched(STALE, STALE)))
    refresh = program.asks().program
    program.play((Detach, None)).end()
    play(refresh, leases(held(), granted()), (is_compute(1), computed("B")), stores(stored()))
    assert len(state.flights) == 0


def test_what_may_not_be_stored_is_served(state):
    """The others are stored; the refused one's lease is given back for all to compute."""
    served = many(
        state,
        3,
        (Fetch, fetched(None, None, None)),
        leases(granted(50), granted(51), granted(52)),
        (Compute, computed("A", "", object())),
        (Encode, lambda effect: encoded(effect)),
        (Encode, Refused("empty")),
        (like(RELEASE, holder=[Holder(51, b"t1"), Holder(52, b"t2")], text=""), True),
        stores(stored()),
    )

    assert [outcome.ttl for outcome in served] == [10.0, 0.0, 0.0]
    assert counts(state)["rejected:empty"] == counts(state)["uncacheable"] == 1


def encoded(effect: Any) -> Any:
    from askonce._effects import Encoded
    from askonce.entry import encode

    return Encoded(*encode(effect.value, None, effect.cost_ms))


def test_a_refused_store_costs_nobody_the_answer(state):
    """Each answer of the stores counts for itself."""
    served = many(
        state,
        3,
        (Fetch, fetched(None, None, None)),
        leases(granted(50), granted(51), granted(52)),
        (Compute, computed("A", "B", "C")),
        stores(stored(), stored(FENCED_OFF), AWAY),
    )

    assert values(served) == ["A", "B", "C"]
    assert [outcome.ttl for outcome in served] == [10.0, 0.0, 0.0]
    assert counts(state) == {"misses": 3, "computed": 3, "stored": 1, "fenced_off": 1, "backend_errors": 1}


def test_a_strict_cache_raises_for_a_failed_store():
    """One that Redis refused among many is an error of the backend too."""
    state = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        many(
            state,
            2,
            (Fetch, fetched(None, None)),
            leases(granted(50), granted(51)),
            (Compute, computed("A", "B")),
            stores(stored(), AWAY),
        )


def test_victims_are_passed_once(state):
    """The first of many stores evicts what the last reply named; the last one's reply names the next."""
    part = state.partitions[0]
    part.victims = [b"7:v", b"1"]
    program = Player(get_or_compute_many(state, asks(state, 2)))
    program.play(
        (Fetch, fetched(None, None)), leases(granted(50), granted(51)), (Compute, computed("A", "B"))
    )
    first, second = program.asks().calls
    assert first[1][6:] == (b"ao:{ns:0}:e:7:v",)
    assert first[2][-2:] == (b"7:v", b"1")
    assert len(second[1]) == 6
    program.play(stores(stored(over=1, victims=(b"7:x", b"2")), stored(victims=(b"7:y", b"3")))).end()

    assert part.victims == [b"7:y", b"3"]


def test_what_is_over_a_limit_after_the_last_store_is_trimmed(state):
    """Only the last reply says what is over now."""
    from .play import trimmed

    many(
        state,
        2,
        (Fetch, fetched(None, None)),
        leases(granted(50), granted(51)),
        (Compute, computed("A", "B")),
        stores(stored(over=1), stored(over=1, victims=(b"7:y", b"3"))),
        (TRIM, trimmed()),
    )


@pytest.mark.parametrize(
    "lines",
    [[(Fetch, AWAY)], [(Fetch, fetched(None, None)), (LEASE, AWAY)]],
    ids=["fetch", "lease"],
)
def test_without_redis_the_function_is_called_once_with_all(lines):
    """Uncached, unstored and counted; a strict cache raises."""
    state = make_state()
    served = many(state, 2, *lines, (Compute((0, 1), ()), computed("A", "B")))

    assert values(served) == ["A", "B"]
    assert sources(served) == [Source.BYPASSED] * 2
    assert counts(state)["bypassed:backend"] == 2

    strict = make_state(strict=True)
    answers = iter([answer for _, answer in lines])
    served, raised = outcome_of(get_or_compute_many(strict, asks(strict, 2)), lambda _: next(answers, AWAY))
    assert served is None
    assert raised is AWAY
    assert "computed" not in counts(strict)


def test_only_if_cached_never_computes(state):
    """One that is missing is an error, whichever it is."""
    with pytest.raises(NotCached, match="request 1"):
        many(state, 2, (Fetch, fetched(entry(), None)), only_if_cached=True)
    assert values(many(state, 1, (Fetch, fetched(entry())), only_if_cached=True)) == ["old"]


def test_unread_serves_nothing_that_is_stored(state):
    """With read=False every request is computed, whatever Redis holds, and replaces it."""

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(*[entry("stored")] * len(effect.members))
            case Compute():
                return computed(*[f"new {index}" for index in effect.indices])
            case InvokeMany() | Invoke():
                many_ = isinstance(effect, InvokeMany)
                calls = effect.calls if many_ else ((effect.partition, effect.keys, effect.args),)
                answers = [answer(effect.script, args) for _, _, args in calls]
                return answers if many_ else answers[0]

    def answer(script: Any, args: Any) -> Any:
        if script is CONTROL:
            return controlled()
        if script is LEASE:
            seen = arguments(LEASE, args)["seen"]
            return granted() if seen == fence_of(entry()) else found(entry("stored"))
        return stored(REPLACED) if script is STORE else True

    served = run(get_or_compute_many(state, asks(state, 2, read=False)), respond)

    assert values(served) == ["new 0", "new 1"]


def test_unread_serves_nothing_that_somebody_stored_meanwhile(state):
    """With read=False an entry that came between the look and the lease is not this caller's answer."""

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(None)
            case Compute():
                return computed("mine")
            case InvokeMany():
                return [found(entry("theirs"))] if effect.script is LEASE else [stored()]
            case Invoke():
                lease = (
                    found(entry("theirs")) if arguments(LEASE, effect.args).get("seen") == b"" else granted()
                )
                return {"lease": lease, "store": stored(), "release": True, "control": controlled()}[
                    effect.script.name
                ]

    assert values(run(get_or_compute_many(state, asks(state, 1, read=False)), respond)) == ["mine"]


def test_who_must_not_wait_does_not_join(state):
    """A thread that holds an unfinished lease computes by itself what others are computing."""
    other = Player(get_or_compute(state, make_ask(state, digests(1)[0]))).play((Fetch, fetched(None)))
    program = Player(get_or_compute_many(state, asks(state, 1, waits=False))).play((Fetch, fetched(None)))

    assert not isinstance(program.asks(), Join)
    program._program.close()
    other._program.close()


def test_a_function_that_asks_for_its_own_keys_computes(state):
    """What this code is computing already is not waited for."""
    outer = Player(get_or_compute_many(state, asks(state, 2))).play(
        (Fetch, fetched(None, None)), leases(granted(50), granted(51))
    )
    assert isinstance(outer.asks(), Compute)
    inner = many_inside(state, frozenset(digests(2)))
    assert values(inner) == ["inner", "inner"]
    outer.play((Compute, computed("A", "B")), stores(stored(), stored()))

    assert values(outer.end()) == ["A", "B"]


def many_inside(state, leading):
    lines = (
        (Fetch, fetched(None, None)),
        (is_compute(0), computed("inner")),
        (is_compute(1), computed("inner")),
    )
    return play(get_or_compute_many(state, asks(state, 2, leading=leading)), *lines)


def test_after_an_invalidation_no_older_flight_is_joined(state):
    """A grave's fence above the flight's: this call leads anew."""
    first = Player(get_or_compute(state, make_ask(state, digests(1)[0]))).play(
        (Fetch, fetched(None)), (LEASE, granted(50))
    )
    program = Player(get_or_compute_many(state, asks(state, 1))).play((Fetch, fetched(grave(60))))

    assert isinstance(program.asks(), InvokeMany)
    program.play(leases(granted(61)), (Compute, computed("new")), stores(stored()))
    assert values(program.end()) == ["new"]
    first._program.close()


@pytest.mark.parametrize("step", range(10))
@pytest.mark.parametrize(
    "error", [AWAY, Cancelled(), KeyError("a driver's mistake")], ids=["away", "cancelled", "bug"]
)
def test_whatever_happens_at_any_step_nothing_is_left(step, error):
    """An error at each effect in turn: the caller is answered or gets that error, and no flight stays."""
    state, number = make_state(), -1
    single = iter([held(), held(), granted()])

    def respond(effect: Any) -> Any:
        nonlocal number
        number += 1
        if number == step:
            together = isinstance(effect, InvokeMany) and error is AWAY
            return [error] * len(effect.calls) if together else error
        match effect:
            case Fetch():
                return fetched(None, None)
            case InvokeMany():
                answers = {"lease": [granted(), held()], "store": [stored()], "release": [True, True]}
                return answers[effect.script.name][: len(effect.calls)]
            case Invoke():
                return {"lease": lambda: next(single, granted()), "store": stored, "release": lambda: True}[
                    effect.script.name
                ]()
            case Compute():
                return computed(*["new"] * len(effect.indices))
            case Listen():
                return Registered()
            case Detach():
                return None
        return 0.1

    served, raised = outcome_of(get_or_compute_many(state, asks(state, 2)), respond)
    if raised is None:
        assert values(served) == ["new", "new"]
    else:
        assert raised is error
    assert len(state.flights) == 0
