"""The write path: store, trim, heal, shed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from askonce import BackendUnavailable, Policy, Refused, Uncacheable
from askonce._effects import Ask as AskRedis
from askonce._effects import Detach, Encode, Encoded, Invoke
from askonce._programs import store
from askonce._programs.state import parse_word
from askonce._programs.write import check_books, drain, heal, trim
from askonce.errors import OutOfMemory
from askonce.keys import tag_hash
from askonce.scripts import BUMP, CONTROL, FENCED_OFF, HEAL, MOVED, REPLACED, STORE, TOO_LARGE, TRIM, Healed

from .play import (
    DIGEST,
    MEMBER,
    NOW,
    Cancelled,
    Player,
    arguments,
    controlled,
    counts,
    like,
    make_ask,
    make_state,
    play,
    stored,
    trimmed,
)

AWAY = BackendUnavailable("no answer")
PREFIX = b"ao:{ns:0}:"
L, X = PREFIX + b"l", PREFIX + b"x"


def put(state, *lines, value="new", **words):
    return play(store(state, make_ask(state, **words), value, 30), *lines)


# --- store --------------------------------------------------------------------------------------------------------


def test_a_value_is_stored_without_a_lease(state):
    """The last writer wins: no fence, no holder, under the current generation and tag sequence."""
    line = (
        like(STORE, generation=7, member=MEMBER, fence=b"", holder=b"", sequence=b"", ttl_ms=10_000),
        stored(),
    )

    assert put(state, line) is True
    assert counts(state) == {"stored": 1}


def test_the_first_store_of_a_process_connects():
    """The generation is read first."""
    state = make_state(word=None)

    assert put(state, (CONTROL, controlled()), (like(STORE, generation=7), stored())) is True


@pytest.mark.parametrize(
    ("code", "result", "expected"),
    [
        (REPLACED, True, {"stored": 1, "replaced": 1}),
        (FENCED_OFF, False, {"fenced_off": 1}),
        (TOO_LARGE, False, {"too_large": 1}),
    ],
)
def test_what_a_store_returns(state, code, result, expected):
    """True if it was stored, False if it was refused, counted by the reason."""
    assert put(state, (STORE, stored(code))) is result
    assert counts(state) == expected


def test_a_value_of_the_callers_is_stored_under_the_generation_that_is_current(state, part):
    """It was computed under none: if the generation has moved, it is stored under the new one."""
    result = put(
        state,
        (like(STORE, generation=7, member=MEMBER), stored(MOVED)),
        (CONTROL, controlled(b"8:1")),
        (like(STORE, generation=8, member=b"8:" + DIGEST), stored()),
    )

    assert result is True
    assert part.word == parse_word(b"8:1")
    assert counts(state) == {"stored": 1}


def test_a_generation_behind_ours_is_given_back_while_storing(state):
    """Nothing is stored under a generation that was bumped away."""
    put(
        state,
        (STORE, stored(MOVED)),
        (CONTROL, controlled(b"6:1")),
        (like(BUMP, generation=7), b"7:1"),
        (like(STORE, generation=7), stored()),
    )


def test_a_generation_that_moves_all_the_time(state):
    """A second refusal is final."""
    assert put(state, (STORE, stored(MOVED)), (CONTROL, controlled(b"8:1")), (STORE, stored(MOVED))) is False
    assert counts(state) == {"outdated": 1}


def test_lifetime_and_tags_of_the_call(state):
    """The call's words reach the script, jitter included."""
    tags = (tag_hash("a"),)
    put(
        state,
        (Encode, Encoded(1, b"payload")),
        (like(STORE, ttl_ms=1500, window_ms=5000, flags=9, body=b"\x01" + tags[0] + b"payload"), stored()),
        ttl_ms=2000,
        tags=tags,
        draw=0.5,
        policy=Policy(ttl=10, jitter=0.5, stale_while_revalidate=5),
    )


def test_writing_may_be_forbidden(state):
    """With write=False nothing is even encoded."""
    assert put(state, write=False) is False
    assert counts(state) == {}


def test_admission_may_refuse(state):
    """False, and counted with its reason."""
    assert put(state, (Encode, Refused("cut short"))) is False
    assert counts(state) == {"rejected": 1, "rejected:cut short": 1}


def test_a_value_that_cannot_be_stored_is_an_error_of_the_callers(state):
    """``store`` was asked to store it: that it cannot is said, and counted."""
    with pytest.raises(Uncacheable):
        put(state, value=object())
    assert counts(state) == {"uncacheable": 1}


@pytest.mark.parametrize("word", [None, b"7:100"])
def test_without_redis_nothing_is_stored(word):
    """False, counted; a strict cache raises."""
    lines = [(STORE, AWAY)] if word else [(CONTROL, AWAY)]
    state = make_state(word=word)
    assert put(state, *lines) is False
    assert counts(state) == {"backend_errors": 1}
    with pytest.raises(BackendUnavailable):
        put(make_state(word=word, strict=True), *lines)


def test_an_interrupted_store_is_interrupted(state):
    """An interrupt is nobody's failure of Redis."""
    with pytest.raises(Cancelled):
        put(state, (STORE, Cancelled()))
    assert counts(state) == {}


# --- eviction -----------------------------------------------------------------------------------------------------


def test_named_victims_are_passed_with_the_next_store(state, part):
    """Their entries stand in KEYS and their scores in ARGV: what the last reply named, once."""
    part.victims = [b"7:v", b"10", b"7:w", b"11"]
    program = Player(store(state, make_ask(state), "new", 0))
    effect = program.asks()

    assert effect.keys[6:] == (PREFIX + b"e:7:v", PREFIX + b"e:7:w")
    assert effect.args[17:] == (b"7:v", b"10", b"7:w", b"11")
    program.answer(stored(victims=(b"7:z", b"12"), evicted=2))
    assert program.end() is True
    assert part.victims == [b"7:z", b"12"]
    assert counts(state) == {"stored": 1, "evicted": 2}


def test_a_store_over_a_limit_trims(state, part):
    """The victims that the store named are evicted in further trips, until the partition is within its limits."""
    program = Player(store(state, make_ask(state), "new", 0))
    program.play((STORE, stored(over=1, victims=(b"7:v", b"1"))))
    effect = program.asks()
    assert effect == Invoke(TRIM, 0, (L, X, PREFIX + b"e:7:v"), (64, 100, 10_000, 64, b"7:v", b"1"))
    program.answer(trimmed(over=1, victims=(b"7:w", b"2"), evicted=1))
    assert program.asks().keys == (L, X, PREFIX + b"e:7:w")
    program.answer(trimmed(evicted=1, swept=3))

    assert program.end() is True
    assert counts(state) == {"stored": 1, "evicted": 2, "expired": 3}


def test_who_is_far_over_a_limit_does_not_keep_the_caller(state):
    """A lowered limit is drained behind the caller after a few trips."""
    program = Player(store(state, make_ask(state), "new", 0)).play(
        (STORE, stored(over=1, victims=(b"7:v", b"1")))
    )
    trips = 0
    while isinstance(program.asks(), Invoke):
        trips += 1
        program.answer(trimmed(over=1, victims=(b"7:w", b"2"), evicted=1))
    drained = program.effect.program
    program.answer(None)

    assert program.end() is True
    assert 1 <= trips <= 10
    play(drained, (TRIM, trimmed(over=1, victims=(b"7:x", b"3"))), (TRIM, trimmed()))


@pytest.mark.parametrize(
    ("answer", "more"),
    [
        (trimmed(), False),
        (trimmed(over=1, victims=(b"v", b"1")), True),
        (trimmed(over=1), False),
        (trimmed(swept=64), True),
        (trimmed(swept=63), False),
        (trimmed(victims=(b"v", b"1")), False),
    ],
)
def test_when_there_is_more_to_trim(state, answer, more):
    """Over a limit with somebody to evict, or as many expired as one call sweeps."""
    assert play(trim(state, state.partitions[0]), (TRIM, answer)) is more


def test_a_store_sweeps_once_a_second_and_while_there_is_more(state, part):
    """Further ones do not look for what has expired, unless the last one found as much as one call takes."""
    told = []

    def put(now_ms, swept=0):  # of which Redis says at NOW that it swept so many
        wanted = make_ask(state, now_ms=now_ms)

        def respond(effect):
            told.append(arguments(STORE, effect.args)["tidy"])
            return stored(swept=swept)

        play(store(state, wanted, "value", 0), (STORE, respond))

    put(NOW)
    put(NOW + 999, swept=-1)
    put(NOW + 1_000, swept=16)
    put(NOW + 1_001, swept=3)
    put(NOW + 999, swept=-1)
    put(NOW - 60_000)  # the clock was set back

    assert told == [1, 0, 1, 1, 0, 1]
    assert counts(state)["expired"] == 19


def test_stores_that_go_together_all_sweep(state, part):
    """Until Redis has said that there is no more: a batch takes out as much as it puts in."""
    told = []
    for number in range(3):
        wanted = make_ask(state, now_ms=NOW + number)
        told.append(arguments(STORE, Player(store(state, wanted, "value", 0)).asks().args)["tidy"])

    assert told == [1, 1, 1]


def test_each_store_passes_a_few_of_the_victims_that_a_trim_named(state, part):
    """Four, not sixty-four: the rest is left to the stores that run at the same time."""
    victims = tuple(b"%d" % number for number in range(128))
    play(trim(state, part), (TRIM, trimmed(victims=victims)))
    one, two = (Player(store(state, make_ask(state), "new", 0)) for _ in range(2))

    assert one.asks().args[17:] == victims[:8]
    assert two.asks().args[17:] == victims[8:16]
    one.answer(stored(victims=(b"7:z", b"12"), evicted=1))
    assert part.victims == list(victims[16:])


def test_one_caller_makes_room_for_all(state, part):
    """Stores that find the partition over a limit meanwhile do not trim as well, and are seen to."""
    first, second = (Player(store(state, make_ask(state), "new", 0)) for _ in range(2))
    first.play((STORE, stored(over=1, victims=(b"7:v", b"1"))))
    assert first.asks().script is TRIM
    second.play((STORE, stored(over=1)))
    assert second.end() is True

    first.answer(trimmed(evicted=1))
    assert first.asks().script is TRIM
    first.answer(trimmed(evicted=1))
    assert first.end() is True
    assert part.making_room is False


def test_room_is_made_again_after_a_failure(state, part):
    """Whoever made it has gone, with an error or interrupted."""
    for lost in (AWAY, Cancelled()):
        program = Player(store(state, make_ask(state), "new", 0))
        program.play((STORE, stored(over=1, victims=(b"7:v", b"1"))))
        assert program.asks().script is TRIM
        with contextlib.suppress(Cancelled):
            program.answer(lost)
        assert part.making_room is False


def test_draining_ends_without_redis(state):
    """Nobody waits for it."""
    play(drain(state, state.partitions[0]), (TRIM, AWAY))

    assert counts(state) == {"backend_errors": 1}


# --- heal ---------------------------------------------------------------------------------------------------------


def test_suspects_are_healed_behind_the_next_store(state, part):
    """Members whose touch disagreed with their entry, and a sample of both books."""
    part.suspects = {b"7:s"}
    program = Player(store(state, make_ask(state), "new", 0)).play((STORE, stored()))
    healing = program.asks().program
    program.play((Detach, None)).end()
    assert part.suspects == set()
    samples = ("ZRANDMEMBER", X, 32), ("ZRANDMEMBER", L, 32)
    heal_ = Invoke(
        HEAL,
        0,
        (L, X, *(PREFIX + b"e:" + m for m in (b"7:a", b"7:b", b"7:s"))),
        (384, b"7:a", b"7:b", b"7:s"),
    )
    play(healing, (AskRedis(0, samples), [[b"7:a", b"#"], [b"7:b", b"7:a"]]), (heal_, Healed(2, 1)))

    assert counts(state) == {"stored": 1, "healed": 3}


def test_books_without_members_need_no_healing(state, part):
    """An empty namespace costs one look."""
    assert play(check_books(state, part, set(), 32), (AskRedis, [[], [b"#"]])) == 0


def test_a_member_of_both_books_is_healed_once(state, part):
    """Samples overlap."""
    lines = (AskRedis, [[b"7:a"], [b"7:a"]]), (like(HEAL, overhead=384), Healed(0, 0))
    program = Player(check_books(state, part, {b"7:a"}, 32)).play(*lines[:1])
    assert program.effect.keys == (L, X, PREFIX + b"e:7:a")
    program.play(*lines[1:])

    assert program.end() == 0


@pytest.mark.parametrize("lines", [[(AskRedis, AWAY)], [(AskRedis, [[b"7:a"], []]), (HEAL, AWAY)]])
def test_healing_ends_without_redis(state, part, lines):
    """Nobody waits for it."""
    play(heal(state, part, {b"7:a"}), *lines)

    assert counts(state) == {"backend_errors": 1}


# --- out of memory ------------------------------------------------------------------------------------------------


def test_a_redis_without_room_is_shed(state, part):
    """A tenth of what the books hold goes, behind the caller, and not more than once a second."""
    full = OutOfMemory("-OOM")
    program = Player(store(state, make_ask(state, now_ms=NOW), "new", 0)).play((STORE, full))
    shedding = program.asks().program
    program.play((Detach, None))
    assert program.end() is False
    assert put(state, (STORE, full), now_ms=NOW + 999) is False
    again = Player(store(state, make_ask(state, now_ms=NOW + 1000), "new", 0)).play((STORE, full))
    assert isinstance(again.asks(), Detach)
    play(
        shedding,
        (AskRedis(0, (("ZSCORE", X, "#"),)), [b"-5000"]),
        (like(TRIM, max_units=4500, max_entries=100), trimmed(over=1, victims=(b"7:v", b"1"))),
        (like(TRIM, max_units=4500), trimmed(evicted=1)),
        (AskRedis, [[], []]),
    )

    assert counts(state) == {"backend_errors": 3, "evicted": 1}


def test_shedding_never_raises_a_limit(state):
    """Nine tenths of a partition that is far over its bound is still the bound."""
    program = Player(store(state, make_ask(state, now_ms=NOW), "new", 0)).play((STORE, OutOfMemory("-OOM")))
    lines: list[Any] = [
        (AskRedis, [b"-50000"]),
        (like(TRIM, max_units=10_000), trimmed()),
        (AskRedis, [[], []]),
    ]
    play(program.asks().program, *lines)


@pytest.mark.parametrize("total", [None, b"0", b"-0"])
def test_shedding_without_books(state, total):
    """Whatever fills the memory, it is not ours: nothing to evict, and no error."""
    program = Player(store(state, make_ask(state, now_ms=NOW), "new", 0)).play((STORE, OutOfMemory("-OOM")))
    play(program.asks().program, (AskRedis, [total]), (TRIM, trimmed()), (AskRedis, [[], []]))


def test_other_failures_shed_nothing(state):
    """A server that is away has no memory to make room in."""
    assert put(state, (STORE, AWAY), now_ms=NOW) is False
