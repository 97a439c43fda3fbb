"""Streams: serve, follow here, follow elsewhere, lead, end."""

from __future__ import annotations

import pytest

from askonce import BackendUnavailable, LeaderFailed, NotCached, Policy, Source
from askonce._effects import TIMED_OUT, Ask, Decode, Fetch, Join, Listen, Sleep
from askonce._flights import Flight, Landed
from askonce._programs import (
    END_MARK,
    Behind,
    Elsewhere,
    Held,
    abandon,
    end,
    pull,
    rest,
    take_up,
    tune_in,
)
from askonce._programs.stream import Chunks, follow
from askonce._tapes import Relay
from askonce.entry import Corrupt, decode_stream, encode_chunk, encode_stream
from askonce.scripts import CONTROL, FENCED_OFF, LEASE, PUBLISH, RELEASE, STORE
from askonce.served import Served

from .play import (
    DIGEST,
    HOLDER,
    MEMBER,
    WORD,
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
    outdated,
    play,
    stored,
)

AWAY = BackendUnavailable("no answer")
MISS = (Fetch, fetched(None))
WINDOWS = Policy(ttl=10, stale_while_revalidate=20, stale_if_error=40)
CHUNKS = [encode_chunk(chunk, None) for chunk in ("Why", " not", "?")]
RUNNING = b"r:" + DIGEST + b":40"
STALE, EXPIRED = entry("old", age=15), entry("old", age=45)


def decoded(effect):
    """Perform a Decode as a stream's call does."""
    return decode_stream(effect.flags, effect.payload, None)


def tuned(state, *lines, **words):
    """Play tune_in, decoding as a stream does."""
    return play(tune_in(state, make_ask(state, **words)), *lines)


# --- tune in ------------------------------------------------------------------------------------------------------


def test_a_stored_stream_is_served(state):
    """Its encoded chunks, in order; one round trip."""
    flags, payload = encode_stream(CHUNKS, 30)
    data = entry("x")
    whole = data[:3] + bytes([flags]) + data[4:48] + payload

    served = tuned(state, (Fetch(0, (MEMBER,)), fetched(whole)), (Decode, decoded))

    assert (served.value, served.source) == (CHUNKS, Source.HIT)
    assert counts(state) == {"hits": 1}
    assert len(state.flights) == 0


def test_a_stored_value_is_served_as_one_chunk(state):
    """Both forms share an entry."""
    served = tuned(state, (Fetch, fetched(entry("an answer"))), (Decode, decoded))

    assert served.value == [encode_chunk("an answer", None)]


def test_a_miss_is_led(state):
    """The caller holds the lease and a flight that others read along with."""
    outcome = tuned(state, MISS, (like(LEASE, seen=b""), granted()))

    assert isinstance(outcome, Held)
    assert (outcome.grant.holder, outcome.flight.fence) == (HOLDER, 50)
    assert counts(state) == {"misses": 1}
    assert len(state.flights) == 1


def test_a_running_flight_is_followed(state):
    """Who comes second is given the flight, and asks Redis for nothing more."""
    leading = tuned(state, MISS, (LEASE, granted()))
    flight = tuned(state, MISS)

    assert flight is leading.flight


def test_who_must_not_wait_calls_for_itself(state):
    """A consumer that holds another stream shares nothing, here and elsewhere."""
    tuned(state, MISS, (LEASE, granted()))
    here = tuned(state, MISS, waits=False)
    assert (here.flight, here.grant) == (None, None)
    assert counts(state)["bypassed"] == 1

    other = make_state()
    there = tuned(other, MISS, (LEASE, held(40)), waits=False)
    assert isinstance(there, Held)
    assert there.grant is None


def test_a_stream_led_elsewhere_is_followed_there(state):
    """By the fence of its lease; nobody waits for the flight that was boarded to find out."""
    assert tuned(state, MISS, (LEASE, held(40))) == Elsewhere(40)
    assert len(state.flights) == 0


def test_a_stream_that_was_stored_meanwhile_is_served(state):
    """The lease script answers with the entry; who joined the flight shares it."""
    leader = Player(tune_in(state, make_ask(state))).play(MISS)
    flight = tuned(state, MISS)
    served = leader.play((LEASE, found(entry("theirs"))), (Decode, decoded)).end()

    assert served.source is Source.COALESCED
    assert flight.future.result(0).payload is not None
    assert flight.tape.complete


def test_a_stream_that_began_before_an_invalidation_is_not_followed(state):
    """Elsewhere: a lease whose fence is below the grave's.  Here: a flight under such a lease."""
    outcome = tuned(state, (Fetch, fetched(grave(60))), (LEASE, held(40)))
    assert isinstance(outcome, Held)

    other = make_state()
    leading = tuned(other, MISS, (LEASE, granted(50)))
    outcome = tuned(other, (Fetch, fetched(grave(60))), (LEASE, held(55)))
    assert isinstance(outcome, Held)
    assert outcome.flight is not leading.flight


def test_a_flight_that_has_no_lease_yet_is_not_followed_after_an_invalidation(state):
    """Nobody can say that it began later: its leader may still be granted a lease below the grave's fence."""
    leader = Player(tune_in(state, make_ask(state))).play(MISS)
    outcome = tuned(state, (Fetch, fetched(grave(60))))
    leading = leader.play((LEASE, granted(50))).end()

    assert leading.flight.fence < 60
    assert outcome is not leading.flight


def test_a_stream_whose_tags_may_have_been_invalidated_is_not_followed(state):
    """Elsewhere: its lease was taken at an earlier sequence of tags than this caller has seen."""
    state.partitions[0].word = state.partitions[0].word._replace(raw=b"7:101", sequence=101)
    theirs = held(40, word=b"7:101")._replace(token=b"100-theirs")
    outcome = tuned(state, (Fetch, fetched(None, word=b"7:101")), (LEASE, theirs), tags=(b"12345678",))

    assert isinstance(outcome, Held)


def behind(state):
    """Play tune_in for a stale stream."""
    return tuned(state, (Fetch, fetched(STALE)), (Decode, decoded), policy=WINDOWS)


def test_a_stale_stream_is_served_and_produced_anew_behind_one_caller(state):
    """The others are just served; whoever produces it takes the lease first."""
    first = behind(state)
    assert isinstance(first, Behind)
    assert (first.served.source, first.served.value) == (Source.STALE, [encode_chunk("old", None)])
    assert behind(state).source is Source.STALE
    assert counts(state)["stale"] == 2

    taken = play(take_up(state, first), (like(LEASE, seen=fence_of(STALE)), granted()))
    assert taken.flight is first.flight
    assert taken.flight.fence == taken.grant.fence
    assert taken.wanted.refreshes


@pytest.mark.parametrize(("answer", "errors"), [(held(40), 0), (failed(""), 0), (AWAY, 1)])
def test_a_stale_stream_is_left_alone(state, answer, errors):
    """While somebody elsewhere produces it, shortly after that failed, and where Redis does not answer."""
    first = behind(state)

    assert play(take_up(state, first), (LEASE, answer)) is None
    assert len(state.flights) == 0
    assert counts(state).get("backend_errors", 0) == errors


def test_a_refresh_that_fails_is_told_to_nobody(state):
    """Not to those who joined it; others try again after a pause."""
    first = behind(state)
    taken = play(take_up(state, first), (LEASE, granted()))

    play(abandon(state, taken, ValueError("down")), (like(RELEASE, tombstone_ms=1000, text=""), 1))
    assert counts(state)["refresh_errors"] == 1
    assert first.flight.future.result(0) is None


def test_an_expired_stream_may_stand_in_for_a_producer_that_fails(state):
    """The leader holds it; it is served to nobody else."""
    lines = ((Fetch, fetched(EXPIRED)), (Decode, decoded), (like(LEASE, seen=fence_of(EXPIRED)), granted()))
    leading = tuned(state, *lines, policy=WINDOWS)

    assert isinstance(leading, Held)
    assert leading.fallback.value == [encode_chunk("old", None)]


def test_without_redis_the_caller_leads_without_a_lease(state):
    """Others of the process still follow it."""
    outcome = tuned(state, (Fetch, AWAY))

    assert isinstance(outcome, Held)
    assert outcome.grant is None
    flight = tuned(state, (Fetch, AWAY))
    assert flight is outcome.flight
    assert counts(state)["backend_errors"] == 2


def test_a_strict_cache_raises(state):
    """And leaves no flight behind."""
    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        tuned(strict, (Fetch, AWAY))
    with pytest.raises(BackendUnavailable):
        tuned(strict, MISS, (LEASE, AWAY))

    assert len(strict.flights) == 0


def test_only_if_cached_leads_nothing(state):
    """A miss raises NotCached; a hit is served."""
    with pytest.raises(NotCached):
        tuned(state, MISS, only_if_cached=True)

    assert len(state.flights) == 0
    assert (
        tuned(state, (Fetch, fetched(entry())), (Decode, decoded), only_if_cached=True).source is Source.HIT
    )


@pytest.mark.parametrize("data", [None, entry(age=500)])
def test_only_if_cached_computes_nothing_anew(state, data):
    """What is not there, or dead, is an error."""
    with pytest.raises(NotCached):
        tuned(state, (Fetch, fetched(data)), only_if_cached=True)

    assert len(state.flights) == 0


def test_only_if_cached_serves_a_stale_stream(state):
    """And leaves the revalidation to others."""
    served = tuned(state, (Fetch, fetched(STALE)), (Decode, decoded), policy=WINDOWS, only_if_cached=True)

    assert served.source is Source.STALE
    assert len(state.flights) == 0


def test_a_function_that_asks_for_its_own_stream_computes(state):
    """It would wait for itself."""
    tuned(state, MISS, (LEASE, granted()))
    outcome = tuned(state, MISS, leading=frozenset({DIGEST}))

    assert isinstance(outcome, Held)
    assert outcome.flight is None


def test_unread_asks_for_a_lease_to_replace_what_is_stored(state):
    """read=False: the fence of the entry is shown, and the entry is not decoded."""
    data = entry()
    outcome = tuned(
        state,
        (CONTROL, controlled()),
        (Fetch, fetched(data)),
        (like(LEASE, seen=fence_of(data)), granted()),
        read=False,
    )

    assert isinstance(outcome, Held)


@pytest.mark.parametrize("interruption", [Cancelled(), KeyboardInterrupt()])
def test_an_interrupted_caller_gives_back_what_it_may_have_been_granted(state, interruption):
    """It was interrupted between question and answer; who joined looks again."""
    caller = Player(tune_in(state, make_ask(state))).play(MISS)
    flight = tuned(state, MISS)
    caller.play((LEASE, interruption))
    with pytest.raises(type(interruption)):
        caller.play((like(RELEASE, tombstone_ms=0), True))

    assert flight.tape.ended
    assert not flight.tape.complete
    assert len(state.flights) == 0


def test_callers_who_come_first_at_the_same_time_do_not_bump():
    """One of them writes the control word; that another has read it before is no sign that it was lost."""
    state = make_state(word=None)
    writes, finds = (Player(tune_in(state, make_ask(state))) for _ in range(2))
    finds.play((CONTROL, controlled(written=False)))
    writes.play((CONTROL, controlled(written=True)))

    assert isinstance(writes.asks(), Fetch)


# --- following elsewhere ------------------------------------------------------------------------------------------


def looks(state, chunks=(), holder=b"7:40:theirs", left_ms=5000, count=0):
    """Return the line in which a follower reads what was published after its first *count* chunks, and the lease."""

    def answer(effect):
        names = state.partitions[0].names
        assert effect.commands[0] == ("LRANGE", names.prefix + RUNNING, count, -1)
        replies = {"LRANGE": list(chunks), "GET": holder, "PTTL": left_ms, "SET": b"OK"}
        return [replies[command[0]] for command in effect.commands]

    return (Ask, answer)


def following(state, *lines, count=0, **words):
    """Play follow, decoding as a stream does."""
    return play(follow(state, make_ask(state, **words), Elsewhere(40), count), *lines)


def test_published_chunks_are_read_from_the_followers_own_count_on(state):
    """In order, and only what is new."""
    waiter = Registered()

    outcome = following(state, (Listen(0, DIGEST, True), waiter), looks(state, CHUNKS[1:], count=1), count=1)

    assert outcome == Chunks(CHUNKS[1:])
    assert not outcome.last
    assert not waiter.open


def test_the_mark_of_the_end_is_no_chunk(state):
    """It says that there are no more to come."""
    outcome = following(state, (Listen, Registered()), looks(state, [*CHUNKS, END_MARK]))

    assert (outcome.chunks, outcome.last) == (CHUNKS, True)


def test_a_follower_sleeps_until_there_is_more(state):
    """Registered before it looks, so that no message is lost; at most as long as the lease has left."""
    waiters = [Registered(), Registered()]

    def slept(effect):
        assert effect.seconds == pytest.approx(5, abs=0.01)
        return 0.5

    outcome = following(
        state,
        (Listen, waiters[0]),
        looks(state),
        (Sleep, slept),
        (Listen, waiters[1]),
        looks(state, CHUNKS[:1]),
    )

    assert outcome == Chunks(CHUNKS[:1])
    assert [waiter.open for waiter in waiters] == [False, False]


def test_a_follower_waits_no_longer_than_the_policy_allows(state):
    """Then it calls for itself: None."""
    policy = Policy(ttl=10, max_wait=3)
    waits = [
        ((Listen, Registered()), looks(state), (Sleep, 2.0)),
        ((Listen, Registered()), looks(state), (Sleep, 1.5)),
    ]

    assert following(state, *waits[0], *waits[1], policy=policy) is None


def test_a_stream_that_has_landed_is_read_from_its_entry(state):
    """Whole: the consumer is given what it does not have."""
    for count in (0, 2):
        outcome = following(
            state, (Listen, Registered()), looks(state, holder=None, count=count),
            (like(LEASE, waited=b"40"), found(entry("an answer", fence=40))), (Decode, decoded), count=count,
        )  # fmt: skip

        assert isinstance(outcome, Chunks)
        assert (outcome.chunks, outcome.last) == ([encode_chunk("an answer", None)], True)


def test_a_stream_of_a_later_leader_is_read_too(state):
    """The first one died; somebody else was faster and has stored the whole: nobody calls the model again."""
    outcome = following(
        state, (Listen, Registered()), looks(state, holder=None, count=2),
        (LEASE, found(entry("another", fence=41))), (Decode, decoded), count=2,
    )  # fmt: skip

    assert outcome is not None


def test_a_dead_leader_is_replaced(state):
    """The follower holds the lease, and a flight that others join."""
    outcome = following(
        state, (Listen, Registered()), looks(state, holder=None), (like(LEASE, waited=b"40"), granted())
    )

    assert isinstance(outcome, Held)
    assert outcome.grant.holder == HOLDER
    assert outcome.flight.fence == 50
    assert len(state.flights) == 1


def test_a_dead_leader_that_was_replaced_by_another_is_followed_there(state):
    """By the new fence."""
    assert following(
        state, (Listen, Registered()), looks(state, holder=b"7:41:another"), (LEASE, held(41))
    ) == Elsewhere(41)


def test_a_lease_that_nobody_needs_is_given_back(state):
    """Somebody of this process leads already, and is followed."""
    flight, _ = state.flights.board(make_ask(state).flight_key)
    outcome = following(
        state,
        (Listen, Registered()),
        looks(state, holder=None),
        (LEASE, granted()),
        (like(RELEASE, holder=HOLDER), True),
    )

    assert outcome is flight


def test_the_failure_of_a_leader_reaches_its_followers(state):
    """LeaderFailed, with the type of the error."""
    waiter = Registered()
    with pytest.raises(LeaderFailed, match="ValueError"):
        following(
            state,
            (Listen, waiter),
            looks(state, holder=b"!7:40:ValueError"),
            (like(LEASE, waited=b"40"), failed("ValueError")),
        )

    assert not waiter.open


def test_an_answer_that_may_not_be_stored_is_computed_side_by_side(state):
    """An empty failure: the follower calls for itself."""
    assert (
        following(state, (Listen, Registered()), looks(state, holder=b"!7:40:"), (LEASE, failed(""))) is None
    )


def test_a_stream_goes_on_over_a_bump(state):
    """Its leader still holds its lease, of an older generation: the follower stays with it."""
    state.partitions[0].word = None
    outcome = following(
        state,
        (Listen, Registered()),
        looks(state),
        (Sleep, 0.1),
        (Listen, Registered()),
        looks(state, CHUNKS[:1]),
    )

    assert outcome == Chunks(CHUNKS[:1])


def test_after_a_bump_a_follower_whose_leader_is_gone_leads_under_the_new_generation(state):
    """OUTDATED, then the new word, then the lease."""
    outcome = following(
        state, (Listen, Registered()), looks(state, holder=None), (LEASE, outdated(b"8:100")),
        (CONTROL, controlled(b"8:100")), (like(LEASE, generation=8), granted(word=b"8:100")),
    )  # fmt: skip

    assert isinstance(outcome, Held)
    assert outcome.grant.word.generation == 8


@pytest.mark.parametrize("where", ["listen", "look", "lease"])
def test_a_follower_survives_the_loss_of_redis(state, where):
    """Counted, and None: it calls for itself.  Under strict it raises."""
    lines = [(Listen, Registered()), looks(state, holder=None), (LEASE, AWAY)]
    at = ("listen", "look", "lease").index(where)
    lines = [*lines[:at], (lines[at][0], AWAY)]

    assert following(state, *lines) is None
    assert counts(state) == {"backend_errors": 1}
    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        following(strict, *lines)


@pytest.mark.parametrize("error", [AWAY, Cancelled()])
@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("leader", ["at work", "gone"])
def test_whatever_happens_while_following_no_registration_is_left(state, leader, step, error):
    """An error at each effect in turn ends the following, and the waiting; no flight is left either."""
    waiters, asked = [], []

    def respond(effect):
        asked.append(effect)
        if len(asked) == step + 1:
            return error
        match effect:
            case Listen():
                waiters.append(Registered())
                return waiters[-1]
            case Ask():
                holder = b"7:40:theirs" if leader == "at work" else None
                return [
                    {"LRANGE": [], "GET": holder, "PTTL": 5000, "SET": b"OK"}[command[0]]
                    for command in effect.commands
                ]
            case Sleep():
                return 200.0
        return failed("") if effect.script is LEASE else True

    result, raised = outcome_of(follow(state, make_ask(state), Elsewhere(40), 0), respond)

    assert not any(waiter.open for waiter in waiters)
    assert len(state.flights) == 0
    if len(asked) <= step or error is AWAY:  # the caller is on its own
        assert (result, raised) == (None, None)
    else:
        assert raised is error


# --- following here -----------------------------------------------------------------------------------------------


def resting(landed):
    """Return what a follower is given of a flight that passed nothing on."""
    state = make_state()
    program = rest(make_ask(state), Flight((WORD, DIGEST), None))
    return play(
        program,
        (Join, landed),
        *([(Decode, decoded)] if isinstance(landed, Landed) and landed.payload else []),
    )


def test_a_value_that_landed_is_a_stream_of_one_chunk():
    """Another caller of the process computed it in one piece."""
    flags, payload = encode_stream(CHUNKS, 30)

    assert resting(Landed(flags, payload, None, 5.0)) == CHUNKS
    data = entry("an answer")
    assert resting(Landed(0, data[48:], None, 5.0)) == [encode_chunk("an answer", None)]


@pytest.mark.parametrize("landed", [None, TIMED_OUT, Landed(0, None, object(), 0.0)])
def test_a_flight_that_has_nothing_for_us_is_left(landed):
    """Its leader gave up, takes too long, or has a value that cannot be encoded."""
    assert resting(landed) is None


def test_a_value_in_another_codec_is_left():
    """Of no use to this caller."""
    state = make_state()
    program = rest(make_ask(state), Flight((WORD, DIGEST), None))

    assert (
        play(program, (Join, Landed(0, entry()[48:], None, 5.0)), (Decode, Corrupt("another codec"))) is None
    )


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.fixture
def leading(state):
    """What the leader of a stream holds."""
    return tuned(state, MISS, (LEASE, granted()))


def test_a_stream_that_has_ended_is_stored_and_its_chunks_go(state, leading):
    """Stored first, so that who follows finds the rest there."""
    running = state.partitions[0].names.r + DIGEST + b":50"
    asked = play(
        end(state, leading, CHUNKS, 30),
        (like(STORE, fence=50, holder=HOLDER), stored()),
        (Ask(0, (("PEXPIRE", running, 5_000), ("EXISTS", running + b":f"))), [1, 0]),
    )

    assert asked is True
    assert leading.flight.tape.complete
    assert leading.flight.future.result(0).payload is not None
    assert counts(state)["stored"] == 1
    assert len(state.flights) == 0


def test_the_chunks_of_a_stream_that_is_followed_elsewhere_stay_for_longer(state, leading):
    """A consumer may take its time."""
    running = state.partitions[0].names.r + DIGEST + b":50"
    play(
        end(state, leading, CHUNKS, 30),
        (STORE, stored()),
        (Ask, [1, 1]),
        (Ask(0, (("PEXPIRE", running, 60_000),)), [1]),
    )


def test_what_was_not_published_yet_is_published_before_the_end(state, leading):
    """In calls of at most a thousand chunks, the mark of the end behind them; then it is stored."""
    unsent = [*(b"s%d" % number for number in range(2100)), END_MARK]
    sent = []

    def published(effect):
        before, chunks = effect.args[4], effect.args[5:]
        assert before == 7 + sum(map(len, sent)), "each call says how many were published before it"
        sent.append(chunks)
        return before + len(chunks)

    play(
        end(state, leading, unsent[:-1], 30, (7, unsent)), (PUBLISH, published), (PUBLISH, published), (PUBLISH, published),
        (STORE, stored()), (Ask, [1, 0]),
    )  # fmt: skip

    assert [chunk for chunks in sent for chunk in chunks] == unsent
    assert max(map(len, sent)) <= 1000


def test_a_stream_that_lost_its_lease_is_still_judged_by_its_fence(state, leading):
    """publish answers 0: no more of it is published; store decides."""
    play(
        end(state, leading, CHUNKS, 30, (0, [*CHUNKS, END_MARK])), (PUBLISH, 0), (STORE, stored(FENCED_OFF)),
        (Ask, [1, 0]),
    )  # fmt: skip

    assert counts(state)["fenced_off"] == 1
    assert leading.flight.tape.ended


def test_redis_that_goes_away_at_the_end_fails_nothing(state, leading):
    """The consumer has all chunks; followers here have them too."""
    program = Player(end(state, leading, CHUNKS, 30, (0, [END_MARK]))).play((PUBLISH, AWAY), (STORE, AWAY))
    while not program.ended:  # what it still tries to give back is its own affair
        program.answer(AWAY)

    assert program.result is False
    assert leading.flight.tape.complete
    assert len(state.flights) == 0


def test_a_stream_without_a_lease_is_not_stored(state):
    """Nobody knows what was invalidated meanwhile; those who joined have it."""
    alone = tuned(state, (Fetch, AWAY))

    assert play(end(state, alone, CHUNKS, 30)) is False
    assert alone.flight.tape.complete


@pytest.mark.parametrize("error", [None, ValueError("secret")])
def test_an_abandoned_stream_tells_those_who_follow(state, leading, error):
    """Here by its tape, elsewhere by what stands in the place of the lease."""
    tombstone = (
        (like(RELEASE, tombstone_ms=0), True) if error is None else (like(RELEASE, text="ValueError"), True)
    )
    play(abandon(state, leading, error), tombstone)

    assert leading.flight.tape.ended
    assert leading.flight.tape.error is error
    assert not leading.flight.tape.complete
    assert len(state.flights) == 0


def test_a_stream_led_here_is_read_to_its_end_by_all_who_joined(state, leading):
    """The flight keeps what came after it was boarded, for late comers too."""
    for chunk in CHUNKS:
        leading.flight.tape.append(chunk)
    late = tuned(state, MISS)

    assert late is leading.flight
    assert late.tape.chunks == CHUNKS
    assert isinstance(served_after(state, leading), Served)


def served_after(state, leading):
    """Return what who asks after the end is given."""
    play(end(state, leading, CHUNKS, 30), (STORE, stored()), (Ask, [1, 0]))
    flags, payload = encode_stream(CHUNKS, 30)
    data = entry("x")
    return tuned(state, (Fetch, fetched(data[:3] + bytes([flags]) + data[4:48] + payload)), (Decode, decoded))


# --- one reader a process -----------------------------------------------------------------------------------------


def pulling(state, relay, *lines):
    """Return what ``pull`` answers."""
    return play(pull(state, make_ask(state), Elsewhere(40), relay), *lines)


def test_what_one_reads_all_have(state):
    """Chunks go to the relay, those after the ones that it holds; the caller looks at it again."""
    relay = Relay()
    relay.append(b"sa")
    assert pulling(state, relay, (Listen, Registered()), looks(state, [b"sb", b"sc"], count=1)) is None
    assert relay.chunks == [b"sa", b"sb", b"sc"]
    assert not relay.ended


def test_the_end_of_a_relay(state):
    """After the mark of the end there is nothing more to read."""
    relay = Relay()
    assert pulling(state, relay, (Listen, Registered()), looks(state, [b"sb", END_MARK])) is None
    assert (relay.chunks, relay.ended, relay.complete) == ([b"sb"], True, True)


def test_a_stored_stream_ends_the_relay(state):
    """The leader landed before all was read: everybody goes on with the entry."""
    relay = Relay()
    data = entry("abc")
    assert (
        pulling(
            state,
            relay,
            (Listen, Registered()),
            looks(state, holder=None),
            (LEASE, found(data)),
            (Decode, [b"sabc"]),
        )
        is None
    )
    assert (relay.stored, relay.complete) == ([b"sabc"], True)


def test_who_is_granted_the_lease_leads_and_the_others_look_again(state):
    """A leader that is gone ends the relay without completing it."""
    relay = Relay()
    outcome = pulling(state, relay, (Listen, Registered()), looks(state, holder=None), (LEASE, granted()))
    assert isinstance(outcome, Held)
    assert (relay.ended, relay.complete, relay.error) == (True, False, None)


def test_a_failure_is_that_of_all_who_follow(state):
    """LeaderFailed is raised by each."""
    relay = Relay()
    with pytest.raises(LeaderFailed):
        pulling(
            state,
            relay,
            (Listen, Registered()),
            looks(state, holder=b"!7:40:ValueError"),
            (LEASE, failed("ValueError")),
        )
    assert isinstance(relay.error, LeaderFailed)


def test_who_is_cancelled_while_reading_ends_nothing(state):
    """Another one reads on."""
    relay = Relay()
    with pytest.raises(Cancelled):
        pulling(state, relay, (Listen, Cancelled()))
    assert not relay.ended
