"""What the drivers read, judge and note without a program."""

from __future__ import annotations

import pytest

from askonce._clock import Clock
from askonce._effects import Encoded
from askonce._programs import store
from askonce._programs.state import parse_word
from askonce._straight import Straight
from askonce._wire.commands import pack_script
from askonce.near import Near, NearCache
from askonce.policy import Policy
from askonce.scripts import STORE

from .play import DIGEST, MEMBER, NOW, WORD, Player, counts, entry, make_ask, stored

POLICY = Policy(ttl=10, jitter=0.5, stale_if_error=5)


@pytest.fixture
def straight(state):
    return Straight(state, Clock(), [None], lambda: 0.5)


def reads(straight, part, members, now):
    """Read entries that are there; return how many of them Redis is told of."""
    _, due = straight.pack_fetch(part, members, now)
    found = [WORD, *[entry() for _ in members]]
    straight.fetched(part, members, now, 0, [found, len(due)] if due else [found])
    return len(due)


def test_a_use_is_told_once_a_second(straight, part):
    """Of each member, whatever it is read together with."""
    now = straight.clock.now()

    assert reads(straight, part, (b"A", b"B"), now) == 2
    assert reads(straight, part, (b"A", b"B"), now + 1) == 0
    assert reads(straight, part, (b"A", b"B", b"C"), now + 2) == 1
    assert reads(straight, part, (b"A", b"B", b"C"), now + 3) == 0
    assert reads(straight, part, (b"C",), now + 1_000) == 1


@pytest.mark.parametrize(
    ("word", "data", "policy"),
    [
        (b"7:101", entry(), Policy()),  # the control word has moved
        (WORD, entry(generation=6), Policy()),
        (WORD, entry(age=20), Policy()),
        (WORD, entry(tags=(b"12345678",), sequence=99), Policy()),
        (WORD, None, Policy()),
        (WORD, entry()[:40], Policy()),
        (WORD, entry(), Policy(early=1.0)),
    ],
)
def test_what_is_no_plain_hit_is_left_to_the_program(straight, state, part, word, data, policy):
    """What was read goes along, and nothing is counted."""
    replies = [[word, data]]
    served, fetched = straight.judged(part, part.word, MEMBER, NOW, 0, replies, policy, None, None)

    assert (served, fetched.word, fetched.entries) == (None, word, [data])
    assert counts(state) == {}


@pytest.mark.parametrize("near", [None, Near()])
def test_a_plain_hit_is_served_and_counted(state, part, near):
    """With its age and what is left of its life."""
    state.near = None if near is None else NearCache(near)
    straight = Straight(state, Clock(), [None], lambda: 0.5)
    data = entry("answer", age=1.0, ttl=10.0)
    served, _ = straight.judged(part, part.word, MEMBER, NOW, 0, [[WORD, data]], Policy(), None, None)

    assert (served.value, served.age, served.ttl) == ("answer", 1.0, 9.0)
    assert counts(state) == {"hits": 1}


# --- a plain store ------------------------------------------------------------------------------------------------


@pytest.fixture
def sends(straight, state, part):
    def sends(payload=b"payload", ttl_ms=None, *, flags=1, admitted_ms=None, victims=(), policy=POLICY):
        """Return what the straight path sends, and what the program does."""
        encoded, now_ms = Encoded(flags, payload, admitted_ms), int(straight.clock.now())
        part.victims = list(victims)
        packed = straight.pack_store(part, part.word, DIGEST, encoded, policy, ttl_ms)
        part.victims = list(victims)
        wanted = make_ask(state, policy=policy, ttl_ms=ttl_ms, draw=0.5, now_ms=now_ms)
        effect = Player(store(state, wanted, "new", 0, encoded)).asks()
        return packed, pack_script(STORE, effect.keys, effect.args)

    return sends


@pytest.mark.parametrize("victims", [[], [b"7:v", b"10"]])
@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize(("ttl_ms", "admitted_ms"), [(None, None), (2_000, None), (2_000, 3_000)])
def test_a_plain_store_sends_what_the_program_would(
    straight, part, sends, victims, swept, ttl_ms, admitted_ms
):
    """To the last argument: lifetime with its jitter, limits, victims, whether to sweep."""
    if swept:
        part.swept_ms = int(straight.clock.now())
    ours, theirs = sends(ttl_ms=ttl_ms, admitted_ms=admitted_ms, victims=victims)
    assert ours == theirs


def test_what_a_plain_store_is_packed_by_follows_what_changes(straight, part, sends):
    """Generation, flags, stale window, the command that publishes, and any payload: what was packed first does not stay."""
    part.swept_ms = int(straight.clock.now())
    for change in (
        {},
        {"flags": 0},
        {"policy": Policy(ttl=10, stale_while_revalidate=7)},
        {"payload": b""},
        {"payload": b"\xff" * 27 + b"$1\r\n\xfe\r\n$2\r\n-1\r\n" + b"x" * 9_999},
        {"ttl_ms": 3650 * 86_400_000},
        {"word": b"8:100"},
        {"publish": b"SPUBLISH"},
    ):
        if word := change.pop("word", None):
            part.word = parse_word(word)
        part.publish = change.pop("publish", part.publish)
        ours, theirs = sends(**change)
        assert ours == theirs


@pytest.mark.parametrize("left", [{"over": 1, "victims": [b"7:v", b"10"]}, {"suspect": b"7:s"}, {}])
def test_what_a_plain_store_left_is_for_the_program(straight, state, part, left):
    """Room to make, books to heal; else it is done."""
    if "suspect" in left:
        part.suspect(left.pop("suspect"))
    reply = stored()._replace(**left)

    assert straight.noted(part, DIGEST, reply) is bool(left or part.suspects)
    assert counts(state) == {"stored": 1}


def test_a_plain_store_drops_the_near_copy(state, part):
    """Its own callers do not wait for the message."""
    state.near = NearCache(Near())
    mark = state.near.mark
    Straight(state, Clock(), [None], lambda: 0.5).noted(part, DIGEST, stored())
    assert state.near.mark > mark
