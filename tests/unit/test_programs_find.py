"""The read path: fetch, keep step with the control word, judge."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from askonce import BackendUnavailable, Hot, Policy, Served, Source
from askonce._effects import Ask as AskRedis
from askonce._effects import Decode, Detach, Fetch, Tell
from askonce._programs import META, lookup
from askonce._programs.find import warn_of_eviction
from askonce._programs.state import parse_word
from askonce.entry import HEADER, Corrupt
from askonce.errors import Disagreement, OutOfMemory, Unfit
from askonce.keys import Fingerprints, tag_hash
from askonce.scripts import BUMP, CONTROL, SLIDE

from .play import (
    DIGEST,
    MEMBER,
    NOW,
    SEQUENCE,
    WORD,
    Cancelled,
    Player,
    controlled,
    counts,
    entry,
    fetched,
    grave,
    like,
    make_ask,
    make_state,
    play,
)

AWAY = BackendUnavailable("no answer")
WINDOWS = Policy(ttl=10, stale_while_revalidate=20, stale_if_error=40)
A, B = tag_hash("a"), tag_hash("b")
META_READ = AskRedis(META, (("HGETALL", b"ao:{ns}:meta"),))
LAYOUT = [b"partitions", b"1", b"overhead", b"384", b"format", b"1"]
#: The layout of the namespace is read, and is ours.
AGREED = (META_READ, [LAYOUT])


def look(state, *lines, **words):
    return play(lookup(state, make_ask(state, **words)), *lines)


def test_a_hit_costs_one_round_trip(state):
    """Control word and entry come together; age and ttl are by the server's clock."""
    served = look(state, (Fetch(0, (MEMBER,)), fetched(entry(age=1.5, ttl=10))))

    assert served == Served("old", Source.HIT, 1.5, 8.5)
    assert counts(state) == {"hits": 1}


def test_what_the_straight_path_has_read_is_not_read_again(state):
    """The program goes on from the driver's reply."""
    program = lookup(state, make_ask(state), fetched(entry()))

    assert play(program).source is Source.HIT


def test_the_first_call_of_a_process_connects():
    """Without a control word it is read, or written, first."""
    state = make_state(word=None)

    served = look(state, (CONTROL, controlled()), (Fetch(0, (MEMBER,)), fetched(entry())))

    assert served.source is Source.HIT
    assert state.partitions[0].word == parse_word(WORD)


@pytest.mark.parametrize(
    ("age", "source"),
    [(0, Source.HIT), (9.999, Source.HIT), (10, Source.STALE), (29.999, Source.STALE), (30, None), (49, None), (50, None), (500, None)],
)  # fmt: skip
def test_what_lookup_serves(state, age, source):
    """Fresh and stale entries are served; one that may only stand in for an error, or is dead, is not."""
    served = look(state, (Fetch, fetched(entry(age=age))), policy=WINDOWS)

    assert (served.source if served else None) is source
    assert counts(state) == {{Source.HIT: "hits", Source.STALE: "stale", None: "misses"}[source]: 1}


def test_nothing_stored_is_a_miss(state):
    """No entry, no answer, and nothing more is asked."""
    assert look(state, (Fetch, fetched(None))) is None
    assert counts(state) == {"misses": 1}


def test_an_age_is_never_negative(state):
    """A process whose idea of the server's clock lags serves what was stored a moment ahead of it."""
    served = look(state, (Fetch, fetched(entry(age=-2, ttl=10))))

    assert (served.age, served.ttl) == (0.0, 10.0)


@pytest.mark.parametrize(
    ("max_age", "hit"), [(None, True), (5.0, True), (4.0, True), (3.999, False), (0.0, False)]
)
def test_max_age(state, max_age, hit):
    """What is older than the caller accepts is a miss, fresh as it may be."""
    assert (look(state, (Fetch, fetched(entry(age=4))), max_age=max_age) is not None) is hit


def test_reading_may_be_forbidden(state):
    """With read=False Redis is not even asked."""
    assert look(state, read=False) is None
    assert counts(state) == {}


# --- the control word ---------------------------------------------------------------------------------------------


def test_a_moved_generation_is_adopted_and_read_again(state, part):
    """The entry of the old generation is never judged; the new generation's is fetched."""
    new = b"8:" + DIGEST
    served = look(
        state,
        (Fetch(0, (MEMBER,)), fetched(entry("outdated"), word=b"8:100")),
        (Fetch(0, (new,)), fetched(entry("new", generation=8), word=b"8:100")),
    )

    assert served.value == "new"
    assert part.word == parse_word(b"8:100")


def test_a_moved_tag_sequence_costs_nothing(state, part):
    """Only the tags are in doubt: an entry without tags is served from the same reply."""
    assert look(state, (Fetch, fetched(entry(), word=b"7:101"))).source is Source.HIT
    assert part.word == parse_word(b"7:101")


@pytest.mark.parametrize("raw", [None, b"", b"nonsense", b"7", b"99999999999:1"])
def test_a_lost_control_word_is_written_again(state, part, raw):
    """An eviction, a FLUSHDB or a stranger: nothing read beside it is believed."""
    served = look(
        state,
        (Fetch, fetched(entry("outdated"), word=raw)),
        AGREED,
        (CONTROL, controlled(b"50:1", written=True)),
        (Fetch(0, (b"50:" + DIGEST,)), fetched(None, word=b"50:1")),
    )

    assert served is None
    assert part.word == parse_word(b"50:1")


def test_a_generation_behind_ours_is_given_back(state, part):
    """A failover lost a bump: the first reader repairs it, and what was read under the old one is not served."""
    served = look(
        state,
        (Fetch, fetched(entry("outdated"), word=b"6:90")),
        (like(BUMP, generation=7), b"7:90"),
        (Fetch(0, (MEMBER,)), fetched(None, word=b"7:90")),
    )

    assert served is None
    assert part.word == parse_word(b"7:90")


def test_a_generation_behind_ours_is_given_back_on_connecting():
    """A process that forgot its word, but not its generation, does not adopt an older one."""
    state = make_state()
    state.partitions[0].word = None
    served = look(
        state,
        (CONTROL, controlled(b"6:90")),
        (like(BUMP, generation=7), b"7:90"),
        (Fetch(0, (MEMBER,)), fetched(None, word=b"7:90")),
    )

    assert served is None


def test_a_word_written_anew_within_a_second_is_greater_than_the_lost_one():
    """The clock alone, in seconds, would bring the lost generation's entries back."""
    state = make_state(word=b"50:1")
    look(
        state,
        (Fetch, fetched(entry(generation=50), word=None)),
        AGREED,
        (CONTROL, controlled(b"50:2", written=True)),
        (like(BUMP, generation=51), b"51:2"),
        (Fetch(0, (b"51:" + DIGEST,)), fetched(None, word=b"51:2")),
    )

    assert state.partitions[0].word == parse_word(b"51:2")


def test_a_storm_of_bumps_is_left_alone(state):
    """A word that moves at every turn is not followed for ever: the call does without."""
    program = Player(lookup(state, make_ask(state)))
    generation = 8
    while not program.ended:
        assert generation < 30
        program.play((Fetch, fetched(entry(), word=b"%d:100" % generation)))
        generation += 1

    assert program.result is None
    assert counts(state) == {"backend_errors": 1, "misses": 1}


def test_a_word_that_cannot_be_written_is_an_error_of_the_backend():
    """A key of ours that holds something else is no reason to guess."""
    state = make_state(word=None)

    assert look(state, (CONTROL, controlled(b"a list of a stranger"))) is None
    assert counts(state) == {"backend_errors": 1, "misses": 1}


# --- what is not ours ---------------------------------------------------------------------------------------------

STRANGE = {
    "text": b"an answer of another program, longer than a header is",
    "short": b"x",
    "empty": b"",
    "cut header": entry()[:40],
    "no payload": entry()[:48],
    "cut preamble": entry()[:50],
    "newer format": b"AO\x02" + entry()[3:],
    "encrypted": entry()[:3] + b"\x04" + entry()[4:],
    "unknown kind": entry()[:48] + b"?" + entry()[49:],
    "short grave": grave()[:30],
    "grave with a payload": grave() + b"s\0\0\0\0x",
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE.keys())
def test_what_cannot_be_read_is_a_miss(state, data):
    """Whatever stands there is no error of the caller's; it is counted as corrupt."""
    assert look(state, (Fetch, fetched(data))) is None
    assert counts(state) == {"misses": 1, "corrupt": 1}


def test_a_grave_is_a_miss_and_no_corruption(state):
    """What an invalidation leaves is ours."""
    assert look(state, (Fetch, fetched(grave()))) is None
    assert counts(state) == {"misses": 1}


@pytest.mark.parametrize("generation", [6, 8])
def test_an_entry_says_itself_of_which_generation_it_is(state, generation):
    """An entry under a key of another generation is not served, whoever renamed it."""
    assert look(state, (Fetch, fetched(entry(generation=generation)))) is None


def test_what_the_codec_cannot_read_is_a_miss(state):
    """Another codec's entry, or a value that the caller cannot use."""
    assert look(state, (Fetch, fetched(entry())), (Decode, Corrupt("another codec"))) is None
    assert counts(state) == {"misses": 1, "corrupt": 1}


def test_a_dead_entry_is_not_decoded(state):
    """User code does not see what is not served."""
    program = Player(lookup(state, make_ask(state))).play((Fetch, fetched(entry(age=100))))

    assert program.ended
    assert [type(effect) for effect in program.asked] == [Fetch]


# --- tags ---------------------------------------------------------------------------------------------------------


def read_tags(after: int, *pairs: object):
    """The line that reads the tags invalidated after a sequence, in the order of their scores."""
    command = ("ZRANGE", b"ao:{ns:0}:tv", f"({after}", "+inf", "BYSCORE", "WITHSCORES")
    return AskRedis(0, (command,)), [
        [item if isinstance(item, bytes) else str(item).encode() for item in pairs]
    ]


def tagged(*tags: bytes, sequence: int = SEQUENCE, digest_value: object = "old") -> bytes:
    return entry(digest_value, tags=tags, sequence=sequence)


def test_tags_are_not_asked_for_while_nothing_was_invalidated(state):
    """An entry that is as young as the last invalidation needs no look."""
    assert look(state, (Fetch, fetched(tagged(A)))).source is Source.HIT


@pytest.mark.parametrize(
    ("tags", "hit"), [((A,), False), ((B,), True), ((B, A), False), ((A, B), False), ((), True)]
)
def test_an_entry_with_an_invalidated_tag_is_a_miss(state, tags, hit):
    """Each tag of the entry counts; an entry without tags is not concerned."""
    lines = [(Fetch, fetched(tagged(*tags), word=b"7:101"))]
    if tags:
        lines.append(read_tags(0, A.hex().encode(), 101))
    served = look(state, *lines)

    assert (served is not None) is hit


def test_an_entry_from_after_the_invalidation_is_a_hit(state):
    """What was computed since then is not concerned; its sequence is that of the lease."""
    lines = [
        (Fetch, fetched(tagged(A, sequence=101), word=b"7:102")),
        read_tags(0, A.hex().encode(), 101, B.hex().encode(), 102),
    ]

    assert look(state, *lines).source is Source.HIT


def test_invalidated_tags_are_read_once(state):
    """The list is read from where it was left, and only when the sequence has moved."""
    look(state, (Fetch, fetched(tagged(A), word=b"7:101")), read_tags(0, A.hex().encode(), 101))
    assert look(state, (Fetch, fetched(tagged(A), word=b"7:101"))) is None
    assert look(state, (Fetch, fetched(tagged(B), word=b"7:101"))).source is Source.HIT
    assert (
        look(state, (Fetch, fetched(tagged(B), word=b"7:102")), read_tags(101, B.hex().encode(), 102)) is None
    )
    assert look(state, (Fetch, fetched(tagged(A), word=b"7:102"))) is None


@pytest.mark.parametrize(("sequence", "hit"), [(89, False), (90, True), (95, True)])
def test_below_the_floor_every_entry_with_tags_is_refused(state, sequence, hit):
    """Which tags were invalidated so long ago is forgotten, so all that are older are refused."""
    data = tagged(B, sequence=sequence)
    served = look(state, (Fetch, fetched(data, word=b"7:101")), read_tags(0, b"#", 90, A.hex().encode(), 101))

    assert (served is not None) is hit


def test_a_lost_list_refuses_every_entry_with_tags_that_is_older(state):
    """The sequence says that something was invalidated and the list does not say what."""
    assert look(state, (Fetch, fetched(tagged(B), word=b"7:105")), read_tags(0)) is None
    assert look(state, (Fetch, fetched(tagged(B, sequence=104), word=b"7:105"))) is None
    assert look(state, (Fetch, fetched(tagged(B, sequence=105), word=b"7:105"))).source is Source.HIT
    assert look(state, (Fetch, fetched(entry(), word=b"7:105"))).source is Source.HIT


def test_tags_that_cannot_be_read_are_a_miss(state):
    """An entry in doubt is not served, and the doubt is not remembered as an answer."""
    ask, _ = read_tags(0)
    assert look(state, (Fetch, fetched(tagged(B), word=b"7:101")), (ask, AWAY)) is None
    assert counts(state) == {"misses": 1, "backend_errors": 1}
    lines = [(Fetch, fetched(tagged(B), word=b"7:101")), read_tags(0, A.hex().encode(), 101)]
    assert look(state, *lines).source is Source.HIT


# --- the layout of the namespace ----------------------------------------------------------------------------------

FIRST = [(CONTROL, controlled(WORD)), (Fetch, fetched(entry()))]


def fix(*names: str):
    values = {"partitions": 1, "overhead": 384, "format": 1}
    written = [("HSETNX", b"ao:{ns}:meta", name, values[name]) for name in names]
    return AskRedis(META, (*written, ("HGETALL", b"ao:{ns}:meta")))


def test_the_layout_is_read_once():
    """On the first connecting of a process, whatever the number of partitions; every later call costs nothing."""
    state = make_state(word=None, agreed=False)
    look(state, AGREED, (Detach, None), *FIRST)

    assert state.agreed
    state.partitions[0].word = None
    assert look(state, *FIRST).source is Source.HIT


@pytest.mark.parametrize(
    ("there", "missing"),
    [([], ["partitions", "overhead", "format"]), ([b"format", b"1"], ["partitions", "overhead"])],
)
def test_a_namespace_without_a_layout_is_given_ours(there, missing):
    """The first process fixes it: what stands there afterwards holds, for another one may have been faster."""
    state = make_state(word=None, agreed=False)
    written = [1] * len(missing)
    lines = [(META_READ, [there]), (fix(*missing), [*written, LAYOUT]), (Detach, None), *FIRST]
    assert look(state, *lines).source is Source.HIT
    assert state.agreed


@pytest.mark.parametrize("name", ["partitions", "overhead", "format"])
@pytest.mark.parametrize("race", [False, True], ids=["there", "race"])
def test_another_layout_is_not_used(name, race):
    """The operator is told once, every call is made without the cache, and Redis is not asked again."""
    state = make_state(word=None, agreed=False)
    others = list(LAYOUT)
    others[others.index(name.encode()) + 1] = b"7"
    lines = [(META_READ, [others])]
    if race:
        lines = [(META_READ, [[]]), (fix("partitions", "overhead", "format"), [0, 0, 0, others])]
    told = []
    assert look(state, *lines, (Tell, lambda effect: told.append(effect.reason))) is None
    assert look(state) is None
    assert counts(state) == {"misses": 2, "backend_errors": 2}
    assert f"ao:{{ns}}:meta says {name}=7, this cache has {name}=" in told[0]

    strict = make_state(word=None, agreed=False, strict=True)
    with pytest.raises(Disagreement, match=f"{name}=7"):
        look(strict, *lines, (Tell, None))
    with pytest.raises(Disagreement, match=f"{name}=7"):
        look(strict)


@pytest.mark.parametrize("error", [OutOfMemory("full"), Unfit("READONLY")])
def test_a_layout_that_cannot_be_fixed_now(error):
    """A full Redis and a replica still serve what they hold; the next connecting tries again."""
    state = make_state(word=None, agreed=False)
    assert look(state, (META_READ, [[]]), (AskRedis, error), *FIRST).source is Source.HIT
    assert not state.agreed


def test_an_unknown_layout_is_not_guessed():
    """While nobody knows it, calls are made without the cache."""
    state = make_state(word=None, agreed=False)
    assert look(state, (META_READ, AWAY)) is None
    assert look(state, (META_READ, [[]]), (AskRedis, AWAY)) is None
    assert counts(state) == {"misses": 2, "backend_errors": 2}


INFO = AskRedis(0, (("INFO", "memory"),), leniently=True)
MEMORY = b"# Memory\r\nmaxmemory:%b\r\nmaxmemory_human:0B\r\nmaxmemory_policy:%b\r\n"


@pytest.mark.parametrize(
    ("info", "warns"),
    [
        (MEMORY % (b"3000000", b"allkeys-lru"), True),
        (MEMORY % (b"3000000", b"allkeys-random"), True),
        (MEMORY % (b"3000000", b"volatile-lru"), False),
        (MEMORY % (b"3000000", b"noeviction"), False),
        (MEMORY % (b"0", b"allkeys-lru"), False),
        (ResponseError("NOPERM this user has no permissions to run the 'info' command"), False),
        (None, False),
    ],
)
def test_a_redis_that_may_evict_the_books_is_told_of(info, warns):
    """Once, by the name of its policy; not if nothing is ever evicted, nor if INFO is not permitted."""
    told = []
    lines = [(Tell, lambda effect: told.append((effect.kind, effect.reason)))] if warns else []
    play(warn_of_eviction(make_state()), (INFO, [info]), *lines)
    assert [(kind, "maxmemory-policy allkeys-" in reason) for kind, reason in told] == [
        ("eviction", True)
    ] * warns


def test_redis_away_says_nothing_of_its_policy():
    """And is no error of a call."""
    state = make_state()
    play(warn_of_eviction(state), (INFO, AWAY))
    assert counts(state) == {}


# --- Redis away ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        (WORD, [(Fetch, AWAY)]),
        (None, [(CONTROL, AWAY)]),
        (WORD, [(Fetch, fetched(None, word=None)), (META_READ, AWAY)]),
        (WORD, [(Fetch, fetched(None, word=None)), AGREED, (CONTROL, AWAY)]),
        (WORD, [(Fetch, fetched(None, word=b"6:1")), (BUMP, AWAY)]),
        (WORD, [(Fetch, fetched(None, word=b"8:1")), (Fetch, AWAY)]),
    ],
    ids=["fetch", "connect", "lost layout", "lost word", "give back", "second fetch"],
)
def test_redis_away_is_a_miss(word, lines):
    """At whatever step Redis fails, a look-up is a miss that is counted; a strict cache raises instead."""
    state = make_state(word=word)
    assert look(state, *lines) is None
    assert counts(state) == {"misses": 1, "backend_errors": 1}

    strict = make_state(word=word, strict=True)
    with pytest.raises(BackendUnavailable):
        look(strict, *lines)
    assert counts(strict) == {"backend_errors": 1}


def test_a_cancelled_lookup_is_cancelled(state):
    """Whoever interrupts a look-up interrupts it."""
    with pytest.raises(Cancelled):
        look(state, (Fetch, Cancelled()))


# --- early and hot ------------------------------------------------------------------------------------------------


def test_an_early_entry_is_a_hit(state):
    """An entry that is due for an early refresh is fresh all the same; a look-up refreshes nothing."""
    policy = Policy(ttl=10, early=100)
    served = look(state, (Fetch, fetched(entry(age=9))), policy=policy, draw=0.99)

    assert served.source is Source.HIT


HOT = Policy(ttl=10, hot=Hot(threshold=16, window="1h", ttl="6h", max_age="7d"))


def test_uses_are_counted_in_batches(state, part):
    """An eighth of the threshold is gathered in the process and counted behind the caller; misses are no uses."""
    now = 5 * 3_600_000 + 17
    for uses in (1, 2, 3, 4):
        lines = [(Fetch, fetched(entry()))]
        if uses % 2 == 0:
            lines.append((Detach, None))
        look(state, *lines, policy=HOT, now_ms=now)
    look(state, (Fetch, fetched(None)), policy=HOT, now_ms=now)

    program = Player(lookup(state, make_ask(state, policy=HOT, now_ms=now))).play((Fetch, fetched(entry())))
    assert program.end() is not None
    program = Player(lookup(state, make_ask(state, policy=HOT, now_ms=now))).play((Fetch, fetched(entry())))
    counting = program.asks().program
    counter = part.names.h + b"5"
    increment = AskRedis(0, (("HINCRBY", counter, MEMBER, 2), ("PEXPIRE", counter, 7_200_000)))
    assert play(counting, (increment, [15, 1])) is None


@pytest.mark.parametrize(
    ("count", "ttl", "slides"), [(15, 5, False), (16, 5, True), (99, 5, True), (99, 20_000, False)]
)
def test_a_hot_entry_is_kept_longer(state, count, ttl, slides):
    """From the threshold on an entry is kept fresh, unless half of the hot lifetime is left anyway."""
    policy = Policy(ttl=ttl, stale_if_error=3, hot=Hot(threshold=16, ttl="6h", max_age="7d"))
    look(state, (Fetch, fetched(entry(ttl=ttl, age=0))), policy=policy)
    program = Player(lookup(state, make_ask(state, policy=policy))).play(
        (Fetch, fetched(entry(ttl=ttl, age=0)))
    )
    lines = [(AskRedis, [count, 1])]
    if slides:
        words = {"member": MEMBER, "ttl_ms": 21_600_000, "max_age_ms": 604_800_000, "window_ms": 3000}
        lines.append((like(SLIDE, **words), NOW))
    play(program.asks().program, *lines)


@pytest.mark.parametrize("lines", [[(AskRedis, AWAY)], [(AskRedis, [99, 1]), (SLIDE, AWAY)]])
def test_uses_that_cannot_be_counted_are_lost(state, lines):
    """Nobody waits for the count; a failure is counted and no more."""
    policy = Policy(ttl=10, hot=Hot(threshold=1))
    program = Player(lookup(state, make_ask(state, policy=policy))).play((Fetch, fetched(entry())))
    play(program.asks().program, *lines)

    assert counts(state)["backend_errors"] == 1


def test_uncounted_uses_are_bounded(state, part):
    """A process that serves a million different answers does not remember each."""
    policy, of = Policy(ttl=10, hot=Hot(threshold=1000)), Fingerprints("", {}).of
    for number in range(10_050):
        program = lookup(state, make_ask(state, of(number), policy=policy), fetched(entry()))
        play(program)

    assert len(part.uses) <= 10_000


def test_the_header_that_these_tests_write_is_the_real_one():
    """The entries above are laid out as the scripts write them."""
    assert HEADER.size == 48
    assert len(grave()) == 48
