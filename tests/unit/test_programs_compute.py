"""Once: hit, stale, lead, wait, give up, hand over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from askonce import BackendUnavailable, LeaderFailed, NotCached, Policy, Refused, Served, Source
from askonce._effects import (
    TIMED_OUT,
    Compute,
    Decode,
    Detach,
    Encode,
    Encoded,
    Fetch,
    Invoke,
    Join,
    Listen,
    Renewal,
    Sleep,
)
from askonce._effects import Ask as AskRedis
from askonce._flights import Landed
from askonce._programs import get_or_compute
from askonce._programs.state import parse_word
from askonce.entry import Corrupt
from askonce.entry import encode as encode_entry
from askonce.errors import Moved, OutOfMemory
from askonce.keys import tag_hash
from askonce.scripts import (
    BUMP,
    CONTROL,
    FENCED_OFF,
    LEASE,
    MOVED,
    RELEASE,
    REPLACED,
    STORE,
    TOO_LARGE,
)

from .play import (
    DIGEST,
    FENCE,
    HOLDER,
    MEMBER,
    NOW,
    OTHER,
    TOKEN,
    WORD,
    Cancelled,
    Holder,
    Player,
    Registered,
    arguments,
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
    outcome_of,
    outdated,
    play,
    run,
    stored,
    trimmed,
)

AWAY = BackendUnavailable("no answer")
MISS = (Fetch, fetched(None))
WINDOWS = Policy(ttl=10, stale_while_revalidate=20, stale_if_error=40)
STALE, EXPIRED = entry(age=15), entry(age=45)
PREFIX = b"ao:{ns:0}:"
RENEWAL = Renewal(0, PREFIX + b"k:" + DIGEST, PREFIX + b"r:" + DIGEST + b":50", HOLDER, 10_000)
LEASED = Compute((0,), (RENEWAL,))
UNLEASED = Compute((0,), ())


def ask(state, *lines, **words):
    """Play ``get_or_compute`` to its end; nothing may be left in the air."""
    try:
        result = play(get_or_compute(state, make_ask(state, **words)), *lines)
    except AssertionError:
        raise
    except BaseException:
        assert len(state.flights) == 0
        raise
    assert len(state.flights) == 0
    return result


def given_back(text: bytes | str = "", tombstone_ms: int = 300):
    return like(RELEASE, holder=HOLDER, text=text, tombstone_ms=tombstone_ms), True


HANDED_OVER = (like(RELEASE, holder=HOLDER, tombstone_ms=0), True)

# --- hit and miss -------------------------------------------------------------------------------------------------


def test_a_hit_computes_nothing(state):
    """A fresh entry costs one round trip."""
    assert ask(state, (Fetch(0, (MEMBER,)), fetched(entry()))) == Served("old", Source.HIT, 1.0, 9.0)
    assert counts(state) == {"hits": 1}


def test_a_hit_that_the_straight_path_left_over(state):
    """The driver's reply is used, and nothing is read twice."""
    served = play(get_or_compute(state, make_ask(state), fetched(entry())))

    assert served.source is Source.HIT


def test_a_miss_is_computed_and_stored(state):
    """The lease, the caller's function while the lease is kept, one store: nothing else."""
    keys = (PREFIX + b"c", PREFIX + b"e:" + MEMBER, PREFIX + b"k:" + DIGEST, PREFIX + b"f")
    served = ask(
        state,
        (Fetch(0, (MEMBER,)), fetched(None)),
        (Invoke(LEASE, 0, keys, (7, Holder(None, TOKEN), 10_000, b"", b"")), granted()),
        (LEASED, computed("new")),
        (Encode("new", 30), Encoded(0, b"payload")),
        (
            like(
                STORE,
                generation=7,
                member=MEMBER,
                flags=0,
                sequence=100,
                body=b"payload",
                ttl_ms=10_000,
                window_ms=0,
                max_entries=100,
                max_units=10_000,
                overhead=384,
                fence=FENCE,
                holder=HOLDER,
                publish=b"PUBLISH",
                message=b"d" + DIGEST,
            ),
            stored(),
        ),
    )

    assert served == Served("new", Source.COMPUTED, 0.0, 10.0)
    assert counts(state) == {"misses": 1, "computed": 1, "stored": 1}


def test_the_store_names_its_keys(state):
    """Books, entry, control word, lease and channel, all of one partition."""
    program = Player(get_or_compute(state, make_ask(state))).play(
        MISS, (LEASE, granted()), (Compute, computed("new")), (Encode, Encoded(0, b"x"))
    )

    assert program.effect.keys == tuple(
        PREFIX + name for name in (b"l", b"x", b"e:" + MEMBER, b"c", b"k:" + DIGEST, b"w")
    )


@pytest.mark.parametrize(
    ("code", "counter"), [(FENCED_OFF, "fenced_off"), (TOO_LARGE, "too_large"), (MOVED, "outdated")]
)
def test_a_refused_store_costs_nobody_the_answer(state, code, counter):
    """A later leader, the size, a bump: the value is the caller's, it just does not stay."""
    served = ask(state, MISS, (LEASE, granted()), (Compute, computed("new")), (STORE, stored(code)))

    assert served == Served("new", Source.COMPUTED, 0.0, 0.0)
    assert counts(state) == {"misses": 1, "computed": 1, counter: 1}


def test_what_was_computed_under_an_old_generation_is_not_stored_under_the_new(state, part):
    """A bump during the computation: the store is refused and not tried again."""
    ask(
        state, MISS, (LEASE, granted()), (LEASED, computed("new")), (like(STORE, generation=7), stored(MOVED))
    )

    assert part.word is None, "the next call reads the word anew"


def test_the_lifetime_of_an_answer(state):
    """First admission decides, then the call, then the policy; jitter shortens each of them."""
    lines = MISS, (LEASE, granted()), (Compute, computed("new"))
    policy = Policy(ttl=100, jitter=0.5, stale_if_error=7)
    for ttl_ms, admitted, draw, expected in [
        (None, None, 0.0, 100_000),
        (None, None, 0.5, 75_000),
        (20_000, None, 0.0, 20_000),
        (20_000, 4_000, 0.0, 4_000),
        (None, 4_000, 0.5, 3_000),
    ]:
        store = like(STORE, ttl_ms=expected, window_ms=7000), stored()
        encoded = Encode, Encoded(0, b"payload", admitted)
        served = ask(state, *lines, encoded, store, policy=policy, ttl_ms=ttl_ms, draw=draw)
        assert served.ttl == expected / 1000


def test_tags_are_stored_with_the_sequence_of_the_lease(state):
    """An invalidation that falls into the computation is later than what is in the header."""
    tags = (tag_hash("a"), tag_hash("b"))
    body = b"\x02" + tags[0] + tags[1] + b"payload"
    ask(
        state,
        MISS,
        (LEASE, granted(word=b"7:105")),
        (Compute, computed("new")),
        (Encode, Encoded(1, b"payload")),
        (like(STORE, flags=9, sequence=105, body=body), stored()),
        tags=tags,
    )


def test_replacing_and_evicting_is_counted(state, part):
    """What a store did to others is in its reply; the next victims are kept for the next store."""
    reply = stored(REPLACED, swept=2, evicted=3, victims=(b"m", b"1"))
    ask(state, MISS, (LEASE, granted()), (Compute, computed("new")), (STORE, reply))

    assert counts(state) == {
        "misses": 1,
        "computed": 1,
        "stored": 1,
        "replaced": 1,
        "expired": 2,
        "evicted": 3,
    }
    assert part.victims == [b"m", b"1"]


# --- what may not be stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Refused("empty"), {"rejected": 1, "rejected:empty": 1}),
        (TypeError("no form"), {"uncacheable": 1}),
        (KeyError("in the codec"), {"uncacheable": 1}),
    ],
    ids=["admission", "value", "codec"],
)
def test_what_may_not_be_stored_is_served(state, error, expected):
    """The value is the caller's; who waits elsewhere is told to compute side by side, not one after the other."""
    served = ask(state, MISS, (LEASE, granted()), (Compute, computed("new")), (Encode, error), given_back(""))

    assert served == Served("new", Source.COMPUTED, 0.0, 0.0)
    assert counts(state) == {"misses": 1, "computed": 1, **expected}


def test_a_value_without_a_form_is_served(state):
    """An object that cannot be encoded is given back as it is."""
    value = object()

    assert ask(state, MISS, (LEASE, granted()), (Compute, computed(value)), given_back("")).value is value


def test_writing_may_be_forbidden(state):
    """With write=False the answer is shared and not stored."""
    served = ask(state, MISS, (LEASE, granted()), (Compute, computed("new")), given_back(""), write=False)

    assert (served.value, served.ttl) == ("new", 0.0)


def test_an_interrupt_while_encoding_is_an_interrupt(state):
    """Only errors refuse a value; whoever interrupts the caller does so."""
    with pytest.raises(Cancelled):
        ask(state, MISS, (LEASE, granted()), (Compute, computed("new")), (Encode, Cancelled()))


# --- waiting for another process ----------------------------------------------------------------------------------


def test_a_waiter_registers_then_looks_again_then_sleeps(state):
    """No message is lost: the second look comes after the registration; awake, it asks once more."""
    first, second = Registered(), Registered()
    served = ask(
        state,
        MISS,
        (like(LEASE, waited=b""), held(40, left_ms=5000)),
        (Listen(0, DIGEST), first),
        (like(LEASE, waited=b"40"), held(40, left_ms=4000)),
        (Sleep(first, 4.001), 1.5),
        (Listen(0, DIGEST), second),
        (like(LEASE, waited=b"40", seen=b""), found(entry("theirs", age=0.1, fence=40))),
    )

    assert served == Served("theirs", Source.COALESCED, 0.1, 9.9)
    assert counts(state) == {"misses": 1, "coalesced": 1}
    assert not first.open
    assert not second.open


def test_a_flight_that_landed_between_two_looks(state):
    """Nobody sleeps for a message that has been sent already."""
    waiter = Registered()
    served = ask(
        state,
        MISS,
        (LEASE, held()),
        (Listen, waiter),
        (LEASE, granted()),
        (Compute, computed("new")),
        (STORE, stored()),
    )

    assert served.source is Source.COMPUTED
    assert not waiter.open


def test_a_waiter_takes_over(state):
    """A leader that handed over, or died: the lease is granted to one of those who wait."""
    served = ask(
        state,
        MISS,
        (LEASE, held()),
        (Listen, Registered()),
        (LEASE, held()),
        (Sleep, 0.5),
        (Listen, Registered()),
        (LEASE, granted()),
        (LEASED, computed("new")),
        (STORE, stored()),
    )

    assert served.source is Source.COMPUTED


def test_patience_ends(state):
    """Who has waited for max_wait computes alone, leaves the lease alone, and stores nothing."""
    policy = Policy(ttl=10, max_wait=8)
    waiters = [Registered() for _ in range(3)]
    served = ask(
        state,
        MISS,
        (LEASE, held()),
        (Listen, waiters[0]),
        (LEASE, held(left_ms=5000)),
        (Sleep(waiters[0], 5.001), 5.0),
        (Listen, waiters[1]),
        (LEASE, held(left_ms=9000)),
        (Sleep(waiters[1], 3.0), 3.0),
        (Listen, waiters[2]),
        (LEASE, held()),
        (UNLEASED, computed("mine")),
        policy=policy,
    )

    assert served == Served("mine", Source.BYPASSED)
    assert counts(state) == {"misses": 1, "computed": 1, "bypassed": 1, "bypassed:not granted": 1}
    assert not any(waiter.open for waiter in waiters)


def test_without_patience_nobody_listens(state):
    """With max_wait=0 a lease that is held means: compute at once."""
    policy = Policy(ttl=10, max_wait=0)
    served = ask(state, MISS, (LEASE, held()), (UNLEASED, computed("mine")), policy=policy)

    assert served.source is Source.BYPASSED


@pytest.mark.parametrize("left_ms", [0, -1, -2])
def test_a_lease_about_to_end_is_waited_for_a_moment(state, left_ms):
    """Whatever Redis says of the lease's time, the sleep is longer than nothing and short."""
    program = Player(get_or_compute(state, make_ask(state))).play(
        MISS, (LEASE, held()), (Listen, Registered()), (LEASE, held(left_ms=left_ms))
    )

    assert isinstance(program.effect, Sleep)
    assert 0 < program.effect.seconds < 0.01


def test_a_failure_elsewhere_is_shared_with_those_who_waited(state):
    """The type of the error arrives, and the next to ask computes anew."""
    with pytest.raises(LeaderFailed) as error:
        ask(
            state,
            MISS,
            (LEASE, held(40)),
            (Listen, Registered()),
            (LEASE, held(40)),
            (Sleep, 0.5),
            (Listen, Registered()),
            (like(LEASE, waited=b"40"), failed("openai.RateLimitError")),
        )

    assert error.value.error_type == "openai.RateLimitError"
    assert counts(state) == {"misses": 1}


def test_an_answer_that_may_not_be_stored_is_computed_side_by_side(state):
    """An empty tombstone: everybody who waited computes at once."""
    served = ask(
        state,
        MISS,
        (LEASE, held(40)),
        (Listen, Registered()),
        (LEASE, held(40)),
        (Sleep, 0.5),
        (Listen, Registered()),
        (LEASE, failed("")),
        (UNLEASED, computed("mine")),
    )

    assert served.source is Source.BYPASSED


def test_a_generation_that_moved_while_asking(state, part):
    """The lease is asked for under the new generation, and nothing seen under the old one is passed."""
    served = ask(
        state,
        (Fetch, fetched(EXPIRED)),
        (like(LEASE, generation=7, seen=fence_of(EXPIRED)), outdated(b"8:100")),
        (CONTROL, controlled(b"8:100")),
        (like(LEASE, generation=8, seen=b""), granted(word=b"8:100")),
        (Compute((0,), (replace(RENEWAL, holder=Holder(FENCE, TOKEN, generation=8)),)), computed("new")),
        (like(STORE, generation=8, member=b"8:" + DIGEST), stored()),
        policy=WINDOWS,
    )

    assert served.source is Source.COMPUTED
    assert part.word == parse_word(b"8:100")


def test_a_generation_behind_ours_is_given_back_while_asking(state, part):
    """A lease is never asked for under a generation that was bumped away."""
    ask(
        state,
        MISS,
        (LEASE, outdated(b"6:90")),
        (CONTROL, controlled(b"6:90")),
        (like(BUMP, generation=7), b"7:90"),
        (like(LEASE, generation=7), granted(word=b"7:90")),
        (Compute, computed("new")),
        (like(STORE, generation=7, sequence=90), stored()),
    )

    assert part.word == parse_word(b"7:90")


@pytest.mark.parametrize(
    "data",
    [entry()[:48] + b"?????", entry(age=500), entry(generation=3), entry("stale", age=15)],
    ids=["corrupt", "dead", "other generation", "stale"],
)
def test_an_entry_that_will_not_do_is_replaced(state, data):
    """What somebody stored meanwhile and cannot be served fresh is named as seen, and the lease is had."""
    served = ask(
        state,
        MISS,
        (like(LEASE, seen=b""), found(data)),
        (like(LEASE, seen=fence_of(data)), granted()),
        (LEASED, computed("new")),
        (STORE, stored(REPLACED)),
        policy=WINDOWS,
    )

    assert served.source is Source.COMPUTED


@pytest.mark.parametrize(
    "data",
    [
        b"AO\1\0" + b"\1" * 60,
        entry()[:4] + b"\0\0\0\7" + b"\0\0\0\0\0\0\0\5" + b"\xff" * 40,
        grave(9),
        entry(age=500),
    ],
    ids=["corrupt", "noise", "grave", "dead"],
)
def test_what_was_found_and_will_not_do_is_seen(state, data):
    """The fence of whatever stands there goes into the first request for a lease."""
    ask(
        state,
        (Fetch, fetched(data)),
        (like(LEASE, seen=fence_of(data)), granted()),
        (LEASED, computed("new")),
        (STORE, stored(REPLACED)),
    )


def test_an_entry_rewritten_all_the_time_is_left_alone(state):
    """Somebody stores what this caller cannot read, again and again: it computes without the cache."""
    fence = 60

    def respond(effect: Any) -> Any:
        nonlocal fence
        match effect:
            case Fetch():
                return fetched(None)
            case Invoke():
                assert effect.script is LEASE
                fence += 1
                assert fence < 100
                return found(entry(age=500, fence=fence))
            case Compute():
                return computed("mine")
        raise AssertionError(effect)

    served = run(get_or_compute(state, make_ask(state)), respond)

    assert served == Served("mine", Source.BYPASSED)
    assert len(state.flights) == 0


def test_what_was_just_stored_is_not_computed_again_for_being_early(state):
    """A waiter that finds the leader's answer takes it, even if it is due for an early refresh already."""
    policy = Policy(ttl=10, early=100)
    served = ask(state, MISS, (LEASE, found(entry("theirs", age=0))), policy=policy, draw=0.999)

    assert served == Served("theirs", Source.COALESCED, 0.0, 10.0)


# --- the function fails -------------------------------------------------------------------------------------------


def test_an_error_passes_unwrapped_and_is_shared(state):
    """The caller gets its own exception; who waits elsewhere gets its type and nothing of its text."""
    error = ValueError("key sk-123 is wrong")
    with pytest.raises(ValueError) as raised:
        ask(state, MISS, (LEASE, granted()), (Compute, error), given_back("ValueError"))

    assert raised.value is error
    assert counts(state) == {"misses": 1}


def test_the_type_of_an_error_is_qualified(state):
    """An error of a library is named with its module."""

    class ProviderError(Exception):
        pass

    name = f"{__name__}.{ProviderError.__qualname__}"
    with pytest.raises(ProviderError):
        ask(state, MISS, (LEASE, granted()), (Compute, ProviderError("x")), given_back(name))


@pytest.mark.parametrize("answer", [True, False, AWAY], ids=["released", "lost", "away"])
def test_a_lease_that_cannot_be_given_back_changes_nothing(state, answer):
    """The caller's own exception wins; the lease ends by itself."""
    with pytest.raises(ValueError):
        ask(state, MISS, (LEASE, granted()), (Compute, ValueError()), (RELEASE, answer))


@pytest.mark.parametrize("wait", [None, b"40"])
def test_an_expired_entry_stands_in_for_an_error(state, wait):
    """stale-if-error (RFC 5861, 4): the last good answer is served, here and where the leader failed."""
    seen = like(LEASE, seen=fence_of(EXPIRED))
    lines: list[Any] = [(Fetch, fetched(EXPIRED))]
    if wait is None:
        lines += [(seen, granted()), (LEASED, ValueError("model is down")), given_back("ValueError")]
    else:
        lines += [(seen, held(40)), (Listen, Registered()), (LEASE, held(40)), (Sleep, 1.0)]
        lines += [(Listen, Registered()), (like(LEASE, waited=wait), failed("ValueError"))]

    assert ask(state, *lines, policy=WINDOWS) == Served("old", Source.STALE_IF_ERROR, 45.0, 0.0)
    assert counts(state) == {"misses": 1, "stale_if_error": 1}


def test_an_expired_entry_does_not_stand_in_for_an_answer(state):
    """If the function returns, its answer is served and replaces the expired one."""
    served = ask(
        state,
        (Fetch, fetched(EXPIRED)),
        (LEASE, granted()),
        (LEASED, computed("new")),
        (STORE, stored(REPLACED)),
        policy=WINDOWS,
    )

    assert served.value == "new"


def test_a_dead_entry_stands_in_for_nothing(state):
    """Behind the window an error is an error."""
    with pytest.raises(ValueError):
        ask(
            state,
            (Fetch, fetched(entry(age=100))),
            (LEASE, granted()),
            (Compute, ValueError()),
            (RELEASE, True),
        )


@pytest.mark.parametrize("policy", [Policy(ttl=10), WINDOWS])
def test_a_cancelled_leader_hands_over(state, policy):
    """Cancelled or interrupted: the lease is given back at once, and nothing stands in for an answer."""
    with pytest.raises(Cancelled):
        ask(
            state,
            (Fetch, fetched(EXPIRED)),
            (LEASE, granted()),
            (LEASED, Cancelled()),
            HANDED_OVER,
            policy=policy,
        )


def test_a_closed_program_asks_for_nothing(state):
    """A driver that is torn down may not be yielded to; the flight lands all the same."""
    program = Player(get_or_compute(state, make_ask(state))).play(MISS, (LEASE, granted()))
    assert isinstance(program.effect, Compute)
    program._program.close()

    assert len(state.flights) == 0


# --- Redis away ---------------------------------------------------------------------------------------------------

WAITS: list[tuple[Any, Any]] = [
    MISS, (LEASE, held()), (Listen, Registered()), (LEASE, held()), (Sleep, 0.1), (Listen, Registered()),
]  # fmt: skip


@pytest.mark.parametrize(
    "lines",
    [
        [(Fetch, AWAY)],
        [MISS, (LEASE, AWAY)],
        [MISS, (LEASE, outdated()), (CONTROL, AWAY)],
        [MISS, (LEASE, held()), (Listen, AWAY)],
        [*WAITS[:3], (LEASE, AWAY)],
        [*WAITS[:5], (Listen, AWAY)],
        [*WAITS, (LEASE, AWAY)],
    ],
    ids=["fetch", "lease", "connect", "listen", "second lease", "second listen", "third lease"],
)
def test_without_redis_the_function_is_called(lines):
    """Whatever fails before the computation, the caller gets its answer, once, uncached and counted."""
    state = make_state()
    served = ask(state, *lines, (UNLEASED, computed("new")))

    assert served == Served("new", Source.BYPASSED)
    assert counts(state)["bypassed:backend"] == counts(state)["bypassed"] == 1
    assert counts(state)["backend_errors"] == 1

    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        ask(strict, *lines)
    assert "computed" not in counts(strict)


def test_after_a_failed_read_redis_is_not_asked_again(state):
    """A call waits for a dead Redis once: no lease, no store, no release."""
    program = Player(get_or_compute(state, make_ask(state))).play((Fetch, AWAY), (UNLEASED, computed("new")))

    assert program.end().source is Source.BYPASSED


def test_a_failed_store_costs_nobody_the_answer(state):
    """The value is in the caller's hand; a strict cache raises."""
    lines = MISS, (LEASE, granted()), (LEASED, computed("new")), (STORE, AWAY)
    program = Player(get_or_compute(state, make_ask(state))).play(*lines)
    if not program.ended:
        program.play((RELEASE, AWAY))
    assert program.end() == Served("new", Source.COMPUTED, 0.0, 0.0)
    assert counts(state)["backend_errors"] >= 1
    assert "stored" not in counts(state)

    strict = make_state(strict=True)
    program = Player(get_or_compute(strict, make_ask(strict))).play(*lines[:-1])
    with pytest.raises(BackendUnavailable):
        program.play((STORE, AWAY), (RELEASE, AWAY))
    assert len(strict.flights) == 0


def test_a_store_that_redis_has_refused_gives_the_lease_back(state):
    """Out of memory: those who wait in other processes do not sleep until the end of a lease that nobody keeps."""
    asked: list[str] = []

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(None)
            case Compute():
                return computed("new")
            case Detach():
                return None
            case Invoke():
                asked.append(effect.script.name)
                return {"lease": granted(), "store": OutOfMemory("no room"), "release": True}[
                    effect.script.name
                ]

    assert run(get_or_compute(state, make_ask(state)), respond).value == "new"
    assert asked == ["lease", "store", "release"]


@pytest.mark.parametrize(("publish", "tells"), [(b"PUBLISH", True), (b"SPUBLISH", False)])
def test_who_waits_for_a_slot_that_moved_is_woken(state, publish, tells):
    """By any node, where channels belong to no slot (Redis 6.2); a channel of a slot ends by itself."""
    state.partitions[0].publish = publish
    program = Player(get_or_compute(state, make_ask(state)))
    program.play(
        MISS, (LEASE, granted()), (LEASED, computed("new")), (STORE, Moved("slot")), (RELEASE, Moved("slot"))
    )

    if tells:
        program.play((AskRedis(0, ((publish, state.partitions[0].names.w, b"d" + DIGEST),)), [1]))
    assert program.end().value == "new"


def test_a_store_whose_upkeep_failed_is_a_store(state):
    """Trimming comes after the entry was written: its failure does not make the entry unwritten."""
    lines = (
        MISS,
        (LEASE, granted()),
        (Compute, computed("new")),
        (STORE, stored(over=1)),
        (like(trim_script()), AWAY),
    )

    assert ask(state, *lines).ttl == 10.0
    assert counts(state) == {"misses": 1, "computed": 1, "stored": 1, "backend_errors": 1}


def trim_script():
    from askonce.scripts import TRIM

    return TRIM


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize(
    "error", [AWAY, Cancelled(), KeyError("a driver's mistake")], ids=["away", "cancelled", "bug"]
)
@pytest.mark.parametrize("data", [None, EXPIRED], ids=["miss", "expired"])
def test_whatever_happens_at_any_step_nothing_is_left(step, error, data):
    """An error at each effect in turn: the caller is answered or gets that error, no flight and no waiter stays."""
    state, waiters = make_state(), []
    leases = iter([held(), held(), granted()])
    number = -1

    def respond(effect: Any) -> Any:
        nonlocal number
        number += 1
        if number == step:
            return error
        match effect:
            case Fetch():
                return fetched(data)
            case Listen():
                waiters.append(Registered())
                return waiters[-1]
            case Sleep():
                return 0.1
            case Compute():
                return computed("new")
            case Detach():
                return None
            case Invoke():
                return {"lease": lambda: next(leases, granted()), "store": stored, "release": lambda: True}[
                    effect.script.name
                ]()

    served, raised = outcome_of(get_or_compute(state, make_ask(state, policy=WINDOWS)), respond)
    if raised is None:
        assert served.value in {"new", "old"}
    else:
        assert raised is error
        assert error is not AWAY or step == 7, "Redis away reaches nobody, but for what the function raised"
    assert len(state.flights) == 0
    assert not any(waiter.open for waiter in waiters)


# --- stale while revalidate ---------------------------------------------------------------------------------------


def stale_served(state, data=STALE, **words):
    """Play a stale hit; return the refresh that was detached."""
    program = Player(get_or_compute(state, make_ask(state, policy=words.pop("policy", WINDOWS), **words)))
    program.play((Fetch, fetched(data)))
    effect = program.asks()
    assert isinstance(effect, Detach)
    program.answer(None)
    assert program.end().source is (Source.STALE if data is STALE else Source.HIT)
    return effect.program


def test_a_stale_entry_is_served_and_refreshed_behind(state):
    """RFC 5861, 3: the caller has the old answer at once, one refresh is under way, and it is stored."""
    refresh = stale_served(state)
    assert len(state.flights) == 1
    play(
        refresh,
        (like(LEASE, seen=fence_of(STALE), waited=b"*"), granted()),
        (LEASED, computed("new")),
        (like(STORE, fence=FENCE, holder=HOLDER), stored(REPLACED)),
    )

    assert len(state.flights) == 0
    assert counts(state) == {"stale": 1, "computed": 1, "stored": 1, "replaced": 1}


def test_a_process_refreshes_once_at_a_time(state):
    """While a refresh is under way further callers are served and start none."""
    refresh = stale_served(state)
    served = play(get_or_compute(state, make_ask(state, policy=WINDOWS)), (Fetch, fetched(STALE)))

    assert served.source is Source.STALE
    assert counts(state) == {"stale": 2}
    refresh.close()


@pytest.mark.parametrize(
    "answer",
    [held(), failed("ValueError"), failed(""), found(entry("theirs", age=0))],
    ids=["under way elsewhere", "failed a moment ago", "may not be stored", "done elsewhere"],
)
def test_a_refresh_that_is_not_needed_ends(state, answer):
    """Another process refreshes, has refreshed, or has just failed to: this one never waits, and computes nothing."""
    play(stale_served(state), (LEASE, answer))

    assert len(state.flights) == 0
    assert counts(state) == {"stale": 1}


@pytest.mark.parametrize("strict", [False, True])
def test_a_refresh_without_redis_ends(strict):
    """Nobody waits for it: not even a strict cache raises."""
    state = make_state(strict=strict)
    play(stale_served(state), (LEASE, AWAY))

    assert len(state.flights) == 0
    assert counts(state) == {"stale": 1, "backend_errors": 1}


def test_refreshes_that_fail_keep_away_longer_and_longer(state):
    """Each failure doubles the pause for the whole fleet, up to a minute; a success forgets them."""
    pauses = []
    for _ in range(9):
        program = Player(stale_served(state)).play((LEASE, granted()), (LEASED, ValueError("down")))
        pauses.append(arguments(RELEASE, program.effect.args)["tombstone_ms"])
        program.play((like(RELEASE, text="ValueError"), True)).end()
    play(stale_served(state), (LEASE, granted()), (LEASED, computed("new")), (STORE, stored()))
    play(stale_served(state), (LEASE, granted()), (LEASED, ValueError()), given_back("ValueError", 1000))

    assert pauses == [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]
    assert counts(state)["refresh_errors"] == 10
    assert len(state.flights) == 0


def test_failures_that_are_remembered_are_bounded(state):
    """A process that meets failures of a million keys does not grow without end."""
    state.refresh_failures.update({b"%d" % number: 1 for number in range(10_000)})
    play(stale_served(state), (LEASE, granted()), (LEASED, ValueError()), (RELEASE, True))

    assert len(state.refresh_failures) <= 10_000


def test_a_cancelled_refresh_hands_over(state):
    """A process that ends gives the lease back; who joined meanwhile leads."""
    refresh = Player(stale_served(state)).play((LEASE, granted()))
    flight, leads = state.flights.board(make_ask(state).flight_key)
    assert not leads
    with pytest.raises(Cancelled):
        refresh.play((LEASED, Cancelled()), HANDED_OVER)

    assert flight.future.result(0) is None
    assert len(state.flights) == 0


def test_who_misses_joins_a_refresh(state):
    """A caller to whom the entry is too old waits for the refresh that is under way, and shares it."""
    refresh = Player(stale_served(state)).play((LEASE, granted()))
    caller = Player(get_or_compute(state, make_ask(state))).play((Fetch, fetched(STALE)))
    assert isinstance(caller.effect, Join)
    refresh.play((LEASED, computed("new")), (STORE, stored())).end()
    caller.answer(caller.effect.flight.future.result(0))

    assert caller.end() == Served("new", Source.COALESCED, 0.0, 10.0)


def test_an_early_entry_is_served_and_refreshed_behind(state):
    """Probabilistic early refresh: fresh as it is, one caller's chance says that it is time."""
    policy = Policy(ttl=10, early=100)
    refresh = stale_served(state, entry(age=9), policy=policy, draw=0.99)
    play(refresh, (LEASE, granted()), (LEASED, computed("new")), (STORE, stored()))

    assert counts(state) == {"hits": 1, "computed": 1, "stored": 1}


# --- flights ------------------------------------------------------------------------------------------------------


def leading(state, *lines, **words):
    """A leader that was played so far, and the flight that others join."""
    leader = Player(get_or_compute(state, make_ask(state, **words))).play(MISS, *lines)
    flight, leads = state.flights.board(make_ask(state).flight_key)
    assert not leads
    return leader, flight


def joining(state, **words):
    """A caller that waits for a flight of this process."""
    program = Player(get_or_compute(state, make_ask(state, **words))).play(MISS)
    assert isinstance(program.effect, Join)
    return program


def test_a_follower_shares_the_answer(state):
    """Who asks while another thread computes joins, asks Redis for nothing more, and decodes a value of its own."""
    leader, flight = leading(state, (LEASE, granted()))
    follower = joining(state)
    assert follower.effect == Join(flight, 120.0)
    value = {"a": [1]}
    leader.play((LEASED, computed(value)), (STORE, stored()))
    assert leader.end() == Served(value, Source.COMPUTED, 0.0, 10.0)
    follower.answer(flight.future.result(0))

    assert follower.end() == Served(value, Source.COALESCED, 0.0, 10.0)
    assert follower.result.value is not value
    assert counts(state) == {"misses": 2, "computed": 1, "stored": 1, "coalesced": 1}


def test_followers_of_a_leader_that_found_an_answer_have_values_of_their_own(state):
    """What one caller does to its value is not seen by another."""
    leader, flight = leading(state)
    first, second = joining(state), joining(state)
    leader.play((LEASE, found(entry({"a": [1]}))))
    values = [leader.end().value]
    for follower in (first, second):
        follower.answer(flight.future.result(0))
        values.append(follower.end().value)
    values[0]["a"].append(2)

    assert values == [{"a": [1, 2]}, {"a": [1]}, {"a": [1]}]


def test_a_follower_shares_the_error(state):
    """The leader's own exception is raised by all who joined in this process."""
    leader, flight = leading(state, (LEASE, granted()))
    follower, error = joining(state), ValueError("no")
    with pytest.raises(ValueError):
        leader.play((LEASED, error), (RELEASE, True))
    with pytest.raises(ValueError) as raised:
        follower.answer(flight.future.exception(0))

    assert raised.value is error


def test_a_follower_that_has_an_old_answer_serves_it(state):
    """stale-if-error holds for those who joined too."""
    leader = Player(get_or_compute(state, make_ask(state, policy=WINDOWS))).play((Fetch, fetched(EXPIRED)))
    assert leader.asks().script is LEASE
    follower = Player(get_or_compute(state, make_ask(state, policy=WINDOWS))).play((Fetch, fetched(EXPIRED)))
    flight = follower.asks().flight
    leader.play((LEASE, granted()), (LEASED, ValueError()), (RELEASE, True))
    assert leader.end().source is Source.STALE_IF_ERROR
    follower.answer(flight.future.exception(0))

    assert follower.end().source is Source.STALE_IF_ERROR
    assert counts(state)["stale_if_error"] == 2


def test_a_follower_takes_over_from_a_cancelled_leader(state):
    """None lands: whoever boards first leads the next flight, the others join that."""
    leader, flight = leading(state, (LEASE, granted()))
    first, second = joining(state), joining(state)
    with pytest.raises(Cancelled):
        leader.play((LEASED, Cancelled()), HANDED_OVER)
    assert flight.future.result(0) is None
    first.answer(None)
    second.answer(None)
    assert isinstance(second.effect, Join)
    assert second.effect.flight is not flight
    first.play((LEASE, granted()), (LEASED, computed("new")), (STORE, stored()))

    assert first.end().source is Source.COMPUTED


def test_a_follower_whose_patience_ends_computes_alone(state):
    """A leader that hangs: the follower computes without sharing, and is counted."""
    leader, _ = leading(state, (LEASE, granted()))
    follower = joining(state, policy=Policy(ttl=10, max_wait=3))
    assert follower.effect.seconds == 3.0
    follower.play((Join, TIMED_OUT), (UNLEASED, computed("mine")))

    assert follower.end() == Served("mine", Source.BYPASSED)
    assert counts(state)["bypassed:max_wait"] == 1
    assert not leader.ended
    leader._program.close()


@pytest.mark.parametrize("encodable", [True, False])
def test_followers_of_what_could_not_be_stored(state, encodable):
    """An answer that was refused is shared as it is, and so is one that has no form at all."""
    leader, flight = leading(state, (LEASE, granted()))
    value = "text" if encodable else object()
    follower = joining(state)
    refused = [(STORE, stored(TOO_LARGE))] if encodable else [(RELEASE, True)]
    leader.play((LEASED, computed(value)), *refused).end()
    follower.answer(flight.future.result(0))

    assert follower.end() == Served(value, Source.COALESCED, 0.0, 0.0)


def test_followers_of_a_leader_without_redis(state):
    """Flights work without Redis: one call in the process."""
    leader = Player(get_or_compute(state, make_ask(state))).play((Fetch, AWAY))
    follower = Player(get_or_compute(state, make_ask(state))).play((Fetch, AWAY))
    flight = follower.effect.flight
    leader.play((UNLEASED, computed("new"))).end()
    follower.answer(flight.future.result(0))

    assert follower.end().source is Source.COALESCED


def test_a_follower_that_cannot_read_what_landed_computes(state):
    """Another codec, or a form that this caller cannot use, is a miss and never an error of the backend."""
    leader, flight = leading(state, (LEASE, granted()))
    follower = joining(state)
    leader.play((LEASED, computed("new")), (STORE, stored())).end()
    follower.answer(flight.future.result(0))
    follower.play((Decode, Corrupt("written by another codec")))
    if isinstance(follower.effect, Invoke):  # it may lead a flight of its own
        follower.play((LEASE, granted()))
    follower.play((Compute, computed("mine")))
    if not follower.ended:
        follower.play((STORE, stored()))

    assert follower.end().value == "mine"


def test_a_function_that_asks_for_its_own_key_computes(state):
    """Waiting for oneself would never end."""
    leader, _ = leading(state, (LEASE, granted()))
    served = play(
        get_or_compute(state, make_ask(state, leading=frozenset({OTHER, DIGEST}))),
        MISS,
        (UNLEASED, computed("inner")),
    )
    assert served == Served("inner", Source.BYPASSED)
    assert counts(state)["bypassed:reentrant"] == 1
    leader.play((LEASED, computed("outer")), (STORE, stored()))

    assert leader.end().value == "outer"


def test_a_function_that_asks_for_another_key_shares(state):
    """Only its own key is special."""
    served = ask(
        state,
        MISS,
        (LEASE, granted()),
        (LEASED, computed("new")),
        (STORE, stored()),
        leading=frozenset({OTHER}),
    )

    assert served.source is Source.COMPUTED


def test_who_must_not_wait_does_not_join(state):
    """A thread that holds an unfinished lease waits for nobody: the flight might be its own."""
    leader, _ = leading(state, (LEASE, granted()))
    caller = Player(get_or_compute(state, make_ask(state, waits=False))).play(MISS)
    assert isinstance(caller.effect, Compute)
    caller.answer(computed("mine"))

    assert caller.end().source is Source.BYPASSED
    leader._program.close()


def test_who_must_not_wait_does_not_sleep(state):
    """Nor for another process."""
    served = ask(state, MISS, (LEASE, held()), (UNLEASED, computed("mine")), waits=False)

    assert served.source is Source.BYPASSED


# --- invalidation and flights -------------------------------------------------------------------------------------


def test_a_flight_from_before_an_invalidation_is_not_joined(state):
    """The grave's fence is above the leader's: who asks after the invalidation leads anew."""
    leader, flight = leading(state, (LEASE, granted(fence=50)))
    later = Player(get_or_compute(state, make_ask(state))).play((Fetch, fetched(grave(60))))
    assert isinstance(later.effect, Invoke)
    later.play(
        (like(LEASE, seen=fence_of(grave(60))), granted(fence=61)),
        (Compute, computed("new")),
        (STORE, stored()),
    )
    leader.play((LEASED, computed("old")), (STORE, stored(FENCED_OFF)))

    assert (later.end().value, leader.end().value) == ("new", "old")
    assert flight.future.result(0).fence == 50
    assert len(state.flights) == 0


def test_a_flight_from_after_an_invalidation_is_joined(state):
    """A leader whose fence is above the grave's computes what everybody wants."""
    leader = Player(get_or_compute(state, make_ask(state))).play(
        (Fetch, fetched(grave(60))), (LEASE, granted(fence=61))
    )
    later = Player(get_or_compute(state, make_ask(state))).play((Fetch, fetched(grave(60))))
    assert isinstance(later.effect, Join)
    leader.play((Compute, computed("new")), (STORE, stored())).end()
    later.answer(later.effect.flight.future.result(0))

    assert later.end() == Served("new", Source.COALESCED, 0.0, 10.0)


@pytest.mark.parametrize("fence", [0, 59])
def test_an_answer_from_before_an_invalidation_is_not_shared(state, fence):
    """A flight that had no lease yet when it was joined, and lands what began before: the caller boards anew."""
    leader = Player(get_or_compute(state, make_ask(state))).play(MISS)
    later = Player(get_or_compute(state, make_ask(state))).play((Fetch, fetched(grave(60))))
    assert isinstance(later.effect, Join)
    leader._program.close()
    later.answer(Landed(*encode_entry("old", None, 0), None, 0.0, fence))
    later.play((LEASE, granted(fence=61)), (Compute, computed("new")), (STORE, stored()))

    assert later.end().value == "new"


def test_after_a_bump_nobody_joins_an_older_flight(state):
    """A flight belongs to the control word under which it was boarded."""
    leader, _ = leading(state, (LEASE, granted()))
    later = Player(get_or_compute(state, make_ask(state))).play(
        (Fetch, fetched(None, word=b"8:100")), (Fetch, fetched(None, word=b"8:100"))
    )
    assert isinstance(later.effect, Invoke)
    later._program.close()
    leader._program.close()


# --- control ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [None, EXPIRED, entry(age=500), grave()], ids=["nothing", "expired", "dead", "grave"]
)
def test_only_if_cached_never_computes(state, data):
    """RFC 9111, 5.2.1.7: what is not servable is an error, and no flight was boarded."""
    with pytest.raises(NotCached):
        ask(state, (Fetch, fetched(data)), policy=WINDOWS, only_if_cached=True)


def test_only_if_cached_serves_what_is_there(state):
    """A hit is a hit."""
    assert ask(state, (Fetch, fetched(entry())), only_if_cached=True).source is Source.HIT


def test_only_if_cached_without_redis(state):
    """Nothing can be served, and nothing is computed."""
    with pytest.raises(NotCached):
        ask(state, (Fetch, AWAY), only_if_cached=True)


def test_only_if_cached_and_unread_contradict_each_other(state):
    """Neither looking nor computing is allowed."""
    with pytest.raises(NotCached):
        ask(state, only_if_cached=True, read=False)


@pytest.mark.parametrize(
    ("data", "seen"), [(None, b""), (entry(), fence_of(entry())), (grave(), fence_of(grave()))]
)
def test_unread_replaces_what_is_stored(state, data, seen):
    """With read=False nothing stored is served; the answer replaces it under a lease."""
    served = ask(
        state,
        (CONTROL, controlled()),
        (Fetch(0, (MEMBER,)), fetched(data)),
        (like(LEASE, seen=seen), granted()),
        (LEASED, computed("new")),
        (like(STORE, fence=FENCE, holder=HOLDER), stored(REPLACED)),
        read=False,
    )

    assert served.source is Source.COMPUTED
    assert served.value == "new"


def unread_without_a_lease(state, answer=None):
    """Play a call with read=False while another caller has the lease; return its store, if it tries one."""
    program = Player(get_or_compute(state, make_ask(state, read=False))).play(
        (CONTROL, controlled(b"7:105")),
        (Fetch, fetched(None, word=b"7:105")),
        (LEASE, held(40)),
        (UNLEASED, computed("new")),
    )
    program._perform()
    store = program.effect
    if not program.ended:
        program.play((STORE, answer or stored()))
    assert program.end().value == "new"
    return store


def test_unread_does_not_wait(state):
    """Another caller computes: this one does too; what it stores counts as begun when it read the control word."""
    store = unread_without_a_lease(state)
    if store is not None:
        given = arguments(STORE, store.args)
        assert (given["generation"], given["sequence"]) == (7, 105)


def test_unread_without_a_lease_does_not_undo_an_invalidation(state):
    """A store without a fence wins over a grave: what began before an invalidation must not be stored so."""
    store = unread_without_a_lease(state)

    assert store is None or arguments(STORE, store.args)["fence"] != b""


def test_unread_during_a_bump_is_not_stored(state):
    """What was computed while the generation moved is refused, and not stored under the new one."""
    store = unread_without_a_lease(state, stored(MOVED))

    assert store is None or counts(state)["outdated"] == 1


def test_unread_serves_nothing_that_somebody_stored_meanwhile(state):
    """An entry that came between the look and the lease is not this caller's answer."""

    def respond(effect: Any) -> Any:
        match effect:
            case Fetch():
                return fetched(None)
            case Compute():
                return computed("mine")
            case Invoke():
                if effect.script is LEASE and arguments(LEASE, effect.args)["seen"] == b"":
                    return found(entry("theirs"))
                return {"control": controlled(), "lease": granted(), "store": stored(), "release": True}[
                    effect.script.name
                ]

    assert run(get_or_compute(state, make_ask(state, read=False)), respond).value == "mine"


def test_unread_joins_no_flight(state):
    """Who wants a new answer does not share one that began before."""
    leader, _ = leading(state, (LEASE, granted()))
    program = Player(get_or_compute(state, make_ask(state, read=False)))
    assert program.asks().script is CONTROL
    program._program.close()
    leader._program.close()


def test_neither_read_nor_written(state):
    """With read=False and write=False the cache is not there, and says so."""
    served = ask(state, (UNLEASED, computed("new")), read=False, write=False)

    assert served == Served("new", Source.BYPASSED)
    assert counts(state) == {"bypassed": 1, "bypassed:control": 1, "computed": 1}


@pytest.mark.parametrize("lines", [[(CONTROL, AWAY)], [(CONTROL, controlled()), (Fetch, AWAY)]])
def test_unread_without_redis(lines):
    """The answer is computed, not stored, and said to be bypassed."""
    state = make_state()
    served = ask(state, *lines, (UNLEASED, computed("new")), read=False)

    assert served == Served("new", Source.BYPASSED)
    assert counts(state)["bypassed"] == counts(state)["backend_errors"] == 1


def test_unread_that_fails_gives_the_lease_back(state):
    """An error and a cancellation end it as any other computation."""
    lines = (CONTROL, controlled()), (Fetch, fetched(entry())), (LEASE, granted())
    with pytest.raises(ValueError):
        ask(state, *lines, (LEASED, ValueError()), given_back("ValueError"), read=False)
    with pytest.raises(Cancelled):
        ask(state, *lines, (LEASED, Cancelled()), HANDED_OVER, read=False)


def test_times_in_these_tests():
    """The entries above are as old as they say."""
    assert int.from_bytes(STALE[16:24], "big") == NOW - 15_000
    assert WORD == b"7:100"
    assert trimmed().victims == []
