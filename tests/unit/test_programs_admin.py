"""Invalidation, and what an operator asks."""

from __future__ import annotations

from typing import Any

import pytest

from askonce import BackendUnavailable, Stats, Usage
from askonce._effects import Ask as AskRedis
from askonce._effects import Detach, Fetch, Invoke, InvokeMany
from askonce._programs import bump, clear, flush, invalidate, invalidate_tag, lookup, usage, whereabouts
from askonce._programs.state import parse_word
from askonce.keys import tag_hash
from askonce.scripts import BUMP, CONTROL, FORGET, HEAL, TAG, TRIM, Healed

from .play import (
    DIGEST,
    MEMBER,
    OTHER,
    Cancelled,
    Player,
    controlled,
    counts,
    fetched,
    like,
    make_ask,
    make_state,
    play,
    run,
    trimmed,
)

AWAY = BackendUnavailable("no answer")
PREFIX = b"ao:{ns:0}:"
L, X, F, W, C, TV, S = (PREFIX + name for name in (b"l", b"x", b"f", b"w", b"c", b"tv", b"s"))


# --- one entry ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("removed", [1, 0])
def test_invalidating_one_entry(state, removed):
    """Under the current generation, with a grave that outlasts a long computation; how many there were comes back."""
    forget = Invoke(FORGET, 0, (L, X, F, W, PREFIX + b"e:" + MEMBER), (600_000, b"PUBLISH", MEMBER))

    assert (
        play(
            invalidate(state, [make_ask(state)]),
            (CONTROL, controlled()),
            (forget, removed),
            (CONTROL, controlled()),
        )
        == removed
    )
    assert counts(state) == ({"invalidated": 1} if removed else {})


def test_an_invalidation_reads_the_generation_first(state, part):
    """A process that has slept through a bump invalidates what can be read now."""
    member = b"9:" + DIGEST
    forget = Invoke(FORGET, 0, (L, X, F, W, PREFIX + b"e:" + member), (600_000, b"PUBLISH", member))

    assert (
        play(
            invalidate(state, [make_ask(state)]),
            (CONTROL, controlled(b"9:1")),
            (forget, 1),
            (CONTROL, controlled(b"9:1")),
        )
        == 1
    )
    assert part.word == parse_word(b"9:1")


def test_an_invalidation_follows_a_control_word_that_was_lost_meanwhile(state):
    """What is computed under the new generation by then is invalidated too."""
    keys = (L, X, F, W, PREFIX + b"e:9:" + DIGEST)
    again = Invoke(FORGET, 0, keys, (600_000, b"PUBLISH", b"9:" + DIGEST))
    lines = [
        (CONTROL, controlled()),
        (FORGET, 0),
        (CONTROL, controlled(b"9:1")),
        (again, 1),
        (CONTROL, controlled(b"9:1")),
    ]

    assert play(invalidate(state, [make_ask(state)]), *lines) == 1


def test_a_generation_behind_ours_is_given_back(state, part):
    """An invalidation after a failover does not adopt what was bumped away."""
    play(
        invalidate(state, [make_ask(state)]),
        (CONTROL, controlled(b"6:1")),
        (like(BUMP, generation=7), b"7:1"),
        (FORGET, 1),
        (CONTROL, controlled(b"7:1")),
    )

    assert part.word == parse_word(b"7:1")


def test_nobody_joins_a_flight_of_what_is_being_invalidated(state):
    """Neither from before the call, nor one that takes off while the call is under way; other keys fly on."""
    wanted = make_ask(state)
    before, _ = state.flights.board(wanted.flight_key)
    other, _ = state.flights.board(make_ask(state, OTHER).flight_key)
    program = Player(invalidate(state, [wanted]))
    during, leads = state.flights.board(wanted.flight_key)
    assert leads
    assert during is not before
    program.play((CONTROL, controlled()), (FORGET, 1), (CONTROL, controlled())).end()

    assert state.flights.board(wanted.flight_key)[1]
    assert state.flights.board(make_ask(state, OTHER).flight_key) == (other, False)


@pytest.mark.parametrize("lines", [[(CONTROL, AWAY)], [(CONTROL, controlled()), (FORGET, AWAY)]])
def test_an_invalidation_that_cannot_be_told(lines):
    """Nothing removed, and counted; a strict cache raises."""
    state = make_state()
    assert play(invalidate(state, [make_ask(state)]), *lines) == 0
    assert counts(state) == {"backend_errors": 1}
    strict = make_state(strict=True)
    with pytest.raises(BackendUnavailable):
        play(invalidate(strict, [make_ask(strict)]), *lines)


# --- tags ---------------------------------------------------------------------------------------------------------


def test_invalidating_a_tag():
    """One script a partition, all at once, whatever the number of entries; the new sequence is known at once."""
    state, tag = make_state(2), tag_hash("doc:7")
    keys = [tuple(b"ao:{ns:%d}:" % index + name for name in (b"c", b"tv", b"w")) for index in (0, 1)]
    args = (b"PUBLISH", 10_000, tag.hex())
    both = InvokeMany(TAG, ((0, keys[0], args), (1, keys[1], args)))

    assert play(invalidate_tag(state, tag), (both, [b"7:101", b"7:105"])) == 1
    assert [part.word.raw for part in state.partitions if part.word] == [b"7:101", b"7:105"]


def test_after_a_tag_nobody_joins_an_older_flight(state):
    """Any of them might compute an entry with that tag."""
    wanted = make_ask(state)
    state.flights.board(wanted.flight_key)
    play(invalidate_tag(state, tag_hash("a")), (TAG, b"7:101"))

    assert state.flights.board(wanted.flight_key)[1]


@pytest.mark.parametrize("done", [0, 1])
def test_a_tag_that_cannot_be_told(done):
    """False if one partition does not know, and the others are told; a strict cache raises."""
    words = [b"7:101", b"7:101"]
    words[done] = AWAY
    state = make_state(2)
    assert play(invalidate_tag(state, tag_hash("a")), (TAG, words)) is False
    assert counts(state) == {"backend_errors": 1}
    assert [part.word.sequence for part in state.partitions] == [101 - (done == 0), 101 - (done == 1)]
    with pytest.raises(BackendUnavailable):
        play(invalidate_tag(make_state(2, strict=True), tag_hash("a")), (TAG, words))


# --- bump and clear -----------------------------------------------------------------------------------------------


def bumped(generation: int, *indices: int):
    """The partitions of these *indices* are told of a generation, and all have it then."""
    calls = [
        (index, (b"ao:{ns:%d}:c" % index, b"ao:{ns:%d}:w" % index), (generation, b"PUBLISH"))
        for index in indices or (0,)
    ]
    return InvokeMany(BUMP, tuple(calls)), [b"%d:100" % generation] * len(calls)


def test_a_bump_is_one_more_than_any_partition_has():
    """All words are read, the greatest plus one is sent to each, and what is old is swept behind the caller."""
    state = make_state(2)
    program = Player(bump(state)).play(
        (CONTROL, controlled(b"7:100")),
        (CONTROL, controlled(b"9:100")),
        bumped(10, 0, 1),
        (Detach, None),
        (Detach, None),
    )

    assert program.end() == 10
    assert [part.word.generation for part in state.partitions if part.word] == [10, 10]


def test_a_bump_at_the_same_time_as_another_one(state, part):
    """A greater generation is already there: that is the one."""
    lines = (CONTROL, controlled(b"7:100")), (like(BUMP, generation=8), b"12:100"), (Detach, None)

    assert play(bump(state), *lines) == 12
    assert part.word == parse_word(b"12:100")


def test_after_a_bump_nobody_joins_an_older_flight(state):
    """All of them compute for a generation that is gone."""
    wanted = make_ask(state)
    state.flights.board(wanted.flight_key)
    play(bump(state), (CONTROL, controlled()), bumped(8), (Detach, None))

    assert state.flights.board(wanted.flight_key)[1]


@pytest.mark.parametrize("program", [bump, clear])
@pytest.mark.parametrize("lines", [[(CONTROL, AWAY)], [(CONTROL, controlled()), (BUMP, AWAY)]])
def test_a_bump_that_cannot_be_told(program, lines):
    """0, and counted; a strict cache raises."""
    state = make_state()
    assert play(program(state), *lines) == 0
    assert counts(state) == {"backend_errors": 1}
    with pytest.raises(BackendUnavailable):
        play(program(make_state(strict=True)), *lines)


@pytest.mark.parametrize(
    "lines",
    [
        [(CONTROL, AWAY), (CONTROL, controlled()), bumped(8, 1)],
        [(CONTROL, controlled()), (CONTROL, controlled()), (BUMP, [AWAY, b"8:100"])],
    ],
)
def test_a_bump_that_a_part_of_redis_misses(lines):
    """0; the others are told and swept, and this process tells the one that was away when it meets it again."""
    state = make_state(2)
    assert play(bump(state), *lines, (Detach, None)) == 0
    assert counts(state) == {"backend_errors": 1}
    missed, told = state.partitions
    assert (missed.word, told.word) == (None, parse_word(b"8:100"))

    served = play(
        lookup(state, make_ask(state)),
        (CONTROL, controlled(b"7:100")),
        (like(BUMP, generation=8), b"8:100"),
        (Fetch(0, (b"8:" + DIGEST,)), fetched(None, word=b"8:100")),
    )
    assert served is None
    assert missed.word == parse_word(b"8:100")


def test_clearing_leaves_out_what_is_away():
    """What can be reached is removed and counted."""
    state = make_state(2)
    lines = (CONTROL, AWAY), (CONTROL, controlled()), bumped(8, 1)
    head = AskRedis(1, (("ZRANGE", b"ao:{ns:1}:l", 0, 63),))

    assert play(clear(state), *lines, (head, [[b"7:a"]]), (FORGET, 1), (head, [[]])) == 1
    assert counts(state) == {"invalidated": 1, "backend_errors": 1}


HEAD = AskRedis(0, (("ZRANGE", L, 0, 63),))


def forget(*members: bytes):
    keys = (L, X, F, W, *(PREFIX + b"e:" + member for member in members))
    return Invoke(FORGET, 0, keys, (0, b"PUBLISH", *members))


def test_clearing_removes_what_is_old(state):
    """The head of the books, sixty-four at a time, until it is current; no graves, for nobody can store there."""
    result = play(
        clear(state),
        (CONTROL, controlled()),
        bumped(8),
        (HEAD, [[b"7:a", b"6:b", b"8:c"]]),
        (forget(b"7:a", b"6:b"), 2),
        (HEAD, [[b"7:d"]]),
        (forget(b"7:d"), 1),
        (HEAD, [[b"8:c", b"a stranger's"]]),
    )

    assert result == 3
    assert counts(state) == {"invalidated": 3}


def test_clearing_that_fails_halfway(state):
    """What is unreachable stays unreachable; the result says that not all was removed."""
    lines = (CONTROL, controlled()), bumped(8), (HEAD, [[b"7:a"]]), (FORGET, AWAY)

    assert play(clear(state), *lines) == 0
    assert counts(state) == {"backend_errors": 1}


def test_sweeping_behind_a_bump(state):
    """The same, and a failure is only counted."""
    program = Player(bump(state)).play((CONTROL, controlled()), bumped(8))
    sweep = program.asks().program
    program.play((Detach, None)).end()
    play(sweep, (HEAD, [[b"7:a"]]), (forget(b"7:a"), 1), (HEAD, AWAY))

    assert counts(state) == {"invalidated": 1, "backend_errors": 1}


# --- usage, counters, whereabouts ---------------------------------------------------------------------------------


def test_usage():
    """Expired entries leave the books first; then counts and units of all partitions, beside the bounds."""
    state = make_state(2, max_entries=50, max_units=1000)

    def respond(effect: Any) -> Any:
        if isinstance(effect, Invoke):
            return trimmed(swept=3) if effect.script is TRIM else Healed(1, 0)
        name = effect.commands[0][0]
        if name == "ZCARD":
            return [[11, b"-300"], [1, None]][effect.partition]
        return [[b"7:a"]] * len(effect.commands)

    assert run(usage(state), respond) == Usage(
        entries=10, bytes=300 * 64, max_entries=100, max_bytes=2000 * 64
    )
    assert counts(state) == {"expired": 6, "healed": 2}


def test_usage_trims_until_nothing_has_expired(state):
    """A thousand expired entries are swept before they are counted."""
    swept = iter([64, 64, 5])

    def respond(effect: Any) -> Any:
        if isinstance(effect, Invoke):
            return trimmed(swept=next(swept)) if effect.script is TRIM else Healed(0, 0)
        return [1, b"0"] if effect.commands[0][0] == "ZCARD" else [[]] * len(effect.commands)

    assert run(usage(state), respond).entries == 0
    assert next(swept, None) is None


def test_usage_is_unknown_without_redis():
    """Zeros that say that they are no answer; a strict cache raises."""
    state = make_state()
    assert play(usage(state), (TRIM, AWAY)) == Usage(
        entries=0, bytes=0, max_entries=100, max_bytes=640_000, known=False
    )
    assert counts(state) == {"backend_errors": 1}
    with pytest.raises(BackendUnavailable):
        play(usage(make_state(strict=True)), (TRIM, AWAY))


def test_counters_are_added_to_the_fleets(state):
    """What is pending here is added, and the sum is the answer."""
    fleet = {b"hits": 40, b"misses": 7, b"of the future": 1}
    state.counters.add("hits", 2)
    state.counters.add_reason("bypassed", "backend")

    def respond(effect: Any) -> Any:
        return [command(fleet, *words) for words in effect.commands]

    assert run(flush(state), respond) == Stats(hits=42, misses=7, bypassed=1, bypass_reasons={"backend": 1})
    assert fleet == {b"hits": 42, b"misses": 7, b"bypassed": 1, b"bypassed:backend": 1, b"of the future": 1}
    assert counts(state) == {}


def command(fleet: dict[bytes, int], name: str, key: bytes, *words: Any) -> Any:
    assert key == S
    if name == "HGETALL":
        return [item for counter, count in fleet.items() for item in (counter, b"%d" % count)]
    assert name == "HINCRBY"
    fleet[words[0].encode()] = fleet.get(words[0].encode(), 0) + words[1]
    return fleet[words[0].encode()]


def test_counters_of_all_partitions_are_added():
    """Each process adds to the first; older ones may have added elsewhere."""
    state = make_state(2)
    lines = (AskRedis, [[b"hits", b"1"]]), (AskRedis, [[b"hits", b"2"]])

    assert play(flush(state), *lines) == Stats(hits=3)


def test_nothing_pending_is_nothing_written(state):
    """Asking for statistics moves none."""
    assert play(flush(state), (AskRedis, [[]])) == Stats()


def test_without_redis_the_counters_are_those_of_this_process(state):
    """What could not be added is shown, kept, and said not to be the fleet's."""
    state.counters.add("hits", 2)
    stats = play(flush(state), (AskRedis, AWAY))

    assert stats == Stats(hits=2, backend_errors=1, fleet=False)
    assert counts(state) == {"hits": 2, "backend_errors": 1}


@pytest.mark.parametrize("step", [0, 1])
def test_counters_that_could_not_be_added_are_not_lost(step):
    """Whichever trip fails: what was added is shown once, and what could not be is pending and shown."""
    state, number = make_state(2), -1
    state.counters.add("hits", 2)

    def respond(effect: Any) -> Any:
        nonlocal number
        number += 1
        return AWAY if number >= step else [command({}, *words) for words in effect.commands]

    stats = run(flush(state), respond)

    assert stats.fleet is False
    assert stats.hits == (2 if step == 0 else 0)  # a fleet that counts nothing answers the first trip
    assert counts(state).get("hits", 0) == stats.hits
    if step == 0:
        assert counts(state) == {"hits": 2, "backend_errors": 2}


def test_a_strict_cache_raises_for_statistics(state):
    """There is nothing else that could fail."""
    with pytest.raises(BackendUnavailable):
        play(flush(make_state(strict=True)), (AskRedis, AWAY))


def test_whereabouts(state, part):
    """The current generation; None while Redis is away."""
    assert play(whereabouts(state, part), (CONTROL, controlled(b"9:1"))) == 9
    assert play(whereabouts(state, part), (CONTROL, AWAY)) is None
    assert counts(state) == {"backend_errors": 1}


@pytest.mark.parametrize("program", [bump, clear, usage, flush])
def test_an_interrupt_is_an_interrupt(state, program):
    """No administration swallows it."""
    with pytest.raises(Cancelled):
        run(program(state), lambda _: Cancelled())


def test_healing_by_usage_is_counted(state):
    """What ``usage`` corrects is in the statistics."""

    def respond(effect: Any) -> Any:
        if isinstance(effect, Invoke):
            return Healed(2, 1) if effect.script is HEAL else trimmed()
        return [1, b"0"] if effect.commands[0][0] == "ZCARD" else [[b"7:a"]] * len(effect.commands)

    run(usage(state), respond)
    assert counts(state) == {"healed": 3}
