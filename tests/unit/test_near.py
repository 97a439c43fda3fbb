"""The near cache: bounds, lifetimes, and what is refused because something was said of it meanwhile."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from askonce import Cache, ConfigurationError, Near
from askonce.entry import FORMAT, HEADER, MAGIC, Entry, parse
from askonce.keys import DIGEST_LENGTH, Fingerprints
from askonce.near import NearCache

NOW = 1_750_000_000_000.0
CHANNEL = b"ao:{n:1}:w"
DIGESTS = [Fingerprints("", {}).of(number) for number in range(8)]


def member(number: int, generation: int = 7) -> bytes:
    return b"%d:%b" % (generation, DIGESTS[number])


def entry(body: bytes = b"answer", fresh_for: float = 1e9, generation: int = 7) -> Entry:
    created, fresh = int(NOW), int(NOW + fresh_for)
    found = parse(HEADER.pack(MAGIC, FORMAT, 0, generation, 1, created, fresh, fresh, 0) + body)
    assert found is not None
    return found


def opened(**bounds) -> NearCache:
    near = NearCache(Near(**bounds))
    near.opened(CHANNEL)
    return near


def kept(near: NearCache, number: int, body: bytes = b"answer", mark: int | None = None) -> bool:
    near.keep(CHANNEL, member(number), entry(body), NOW, near.mark if mark is None else mark)
    return near.get(member(number), NOW) is not None


def test_a_digest_is_as_long_as_the_near_cache_takes_it_to_be():
    """A copy is found by the end of its member."""
    assert {len(digest) for digest in DIGESTS} == {DIGEST_LENGTH}


# --- lifetimes and bounds -------------------------------------------------------------------------------------------


def test_a_copy_is_what_redis_holds():
    """Byte by byte: it is decoded and judged at every hit."""
    near = opened()
    near.keep(CHANNEL, member(0), entry(b"the answer"), NOW, near.mark)
    assert near.get(member(0), NOW) == entry(b"the answer").data


@pytest.mark.parametrize(("fresh_for", "ttl", "lives"), [(5_000, 30, 5_000), (60_000, 30, 30_000)])
def test_a_copy_lives_until_its_entry_is_stale_or_its_own_time_is_over(fresh_for, ttl, lives):
    """Whichever comes first, to the millisecond."""
    near = opened(ttl=ttl)
    near.keep(CHANNEL, member(0), entry(fresh_for=fresh_for), NOW, near.mark)
    assert near.get(member(0), NOW + lives - 1) is not None
    assert near.get(member(0), NOW + lives) is None


def test_what_is_stale_already_is_not_kept():
    """It is Redis's to say who refreshes it."""
    near = opened()
    near.keep(CHANNEL, member(0), entry(fresh_for=0), NOW, near.mark)
    assert len(near) == 0


def test_a_copy_of_another_generation_is_none():
    """The control word that is known decides, not the message."""
    near = opened()
    assert kept(near, 0)
    assert near.get(member(0, generation=8), NOW) is None


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 700)), max_size=60))
def test_the_least_recently_used_leaves_first_and_no_bound_is_passed(steps):
    """As an exact LRU of the same bounds, by entries and by bytes."""
    near = opened(max_entries=3, max_bytes=2_600)
    model: OrderedDict[int, int] = OrderedDict()
    for number, reads, length in steps:
        if reads:
            assert (near.get(member(number), NOW) is not None) is (number in model)
            if number in model:
                model.move_to_end(number)
            continue
        near.keep(CHANNEL, member(number), entry(b"." * (length + 1)), NOW, near.mark)
        model.pop(number, None)
        model[number] = length + 1 + HEADER.size + 400
        while len(model) > 3 or sum(model.values()) > 2_600:
            model.popitem(last=False)
        assert near.weight == sum(model.values())
    assert len(near) == len(model)


def test_an_entry_larger_than_the_bound_leaves_the_others_alone():
    """It is not kept at all."""
    near = opened(max_bytes=2_000)
    assert kept(near, 0)
    assert not kept(near, 1, b"." * 2_000)
    assert near.get(member(0), NOW) is not None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("max_entries", 0),
        ("max_entries", True),
        ("max_entries", "many"),
        ("max_bytes", "64 parsecs"),
        ("ttl", 0),
    ],
)
def test_a_bound_that_is_none_is_refused(word, value):
    """With what was given, and what is allowed."""
    with pytest.raises(ConfigurationError, match=word):
        Near(**{word: value})


def test_a_cache_takes_a_near_and_nothing_else():
    """A number is no bound."""
    with pytest.raises(ConfigurationError, match="near=1000 is no Near"):
        Cache("redis://127.0.0.1:1/0", near=1000)  # type: ignore[arg-type]


# --- what was said meanwhile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (b"d" + DIGESTS[0], [1]),
        (b"x" + member(0), [1]),
        (b"x" + member(0, generation=9), [1]),
        (b"c8:100", []),
        (b"r" + DIGESTS[0], [0, 1]),
        (b"", [0, 1]),
        (b"what nobody says", [0, 1]),
    ],
)
def test_a_message_drops_what_it_names(message, left):
    """An entry stored or invalidated; all of them when the control word moved; nothing else."""
    near = opened()
    assert kept(near, 0)
    assert kept(near, 1)
    near.heard(message)
    assert [number for number in (0, 1) if near.get(member(number), NOW)] == left


def test_what_was_read_before_a_message_is_not_kept_after_it():
    """The reply may be older than the message, whichever arrives first; that of another entry is kept."""
    near = opened()
    mark = near.mark
    near.heard(b"x" + member(0))
    assert not kept(near, 0, mark=mark)
    assert kept(near, 1, mark=mark)
    assert kept(near, 0)


def test_nothing_is_kept_while_messages_may_be_missed():
    """Not before the subscription, not after its loss, nor what was read before it came back."""
    near = NearCache(Near())
    assert not kept(near, 0)
    mark = near.mark
    near.opened(CHANNEL)
    assert not kept(near, 0, mark=mark)
    assert kept(near, 0)
    near.lost(CHANNEL)
    assert near.get(member(0), NOW) is None
    assert not kept(near, 0)
    near.opened(CHANNEL)
    near.lost(b"ao:{n:2}:w")
    assert kept(near, 0)


def test_drops_that_are_forgotten_refuse_all_that_was_read_before_them():
    """Only the last 4096 are known one by one."""
    near, order = opened(), random.Random(1)
    mark = near.mark
    near.drop(DIGESTS[0])
    others = [Fingerprints("", {}).of(("other", number)) for number in range(4_096)]
    for digest in order.sample(others, len(others)):
        near.drop(digest)
    assert not kept(near, 0, mark=mark)
    assert kept(near, 0)


class Interleaved(RuleBasedStateMachine):
    """
    Readers, whose replies come late, and a server whose messages come late: both in order, each in its own time.

    What a copy says must be what the server held at some moment since the last message that was delivered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.near = opened(max_entries=4)
        self.stored = dict.fromkeys(range(3), 0)  # what the server holds: a version of each
        self.floor = dict.fromkeys(range(3), 0)  # below it, a copy contradicts a message that was delivered
        self.under_way: list[tuple[int, int, int]] = []
        self.messages: list[tuple[int, int]] = []

    @rule(number=st.integers(0, 2))
    def store(self, number):
        self.stored[number] += 1
        self.messages.append((number, self.stored[number]))

    @rule(number=st.integers(0, 2))
    def read(self, number):
        mark = self.near.mark
        self.under_way.append((number, self.stored[number], mark))

    @rule(place=st.integers(0, 5))
    def reply(self, place):
        if place < len(self.under_way):
            number, version, mark = self.under_way.pop(place)
            self.near.keep(CHANNEL, member(number), entry(b"%d" % version), NOW, mark)

    @rule()
    def deliver(self):
        if self.messages:
            number, version = self.messages.pop(0)
            self.near.heard(b"d" + DIGESTS[number])
            self.floor[number] = version

    @rule()
    def break_off(self):
        self.near.lost(CHANNEL)
        self.messages.clear()
        self.near.opened(CHANNEL)
        self.floor = dict(self.stored)

    @invariant()
    def no_copy_contradicts_a_message(self):
        for number, floor in self.floor.items():
            data = self.near.get(member(number), NOW)
            assert data is None or int(data[HEADER.size :]) >= floor


TestInterleaved = Interleaved.TestCase


# --- recency ----------------------------------------------------------------------------------------------------------


def test_uses_are_told_once_a_second():
    """The last time of each member that was served, and nothing twice."""
    near = opened()
    assert kept(near, 0)
    assert near.is_due(NOW)
    near.take_used()
    near.get(member(0), NOW + 10)
    near.get(member(0), NOW + 20)
    assert not near.is_due(NOW + 999)
    assert near.is_due(NOW + 1_000)
    assert near.take_used() == {member(0): NOW + 20}
    assert near.take_used() == {}
