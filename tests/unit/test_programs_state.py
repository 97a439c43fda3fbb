"""What the programs of one process know."""

from __future__ import annotations

import collections

import pytest

from askonce._programs.state import parse_word
from askonce._programs.write import note_word
from askonce.keys import Fingerprints

from .play import DIGEST, make_ask, make_state


@pytest.mark.parametrize(
    ("raw", "generation", "sequence"),
    [(b"7:100", 7, 100), (b"0:0", 0, 0), (b"4294967295:999999999999999", 4294967295, 999999999999999)],
)
def test_control_words(raw, generation, sequence):
    """Two decimal numbers and a colon; members begin with the first."""
    word = parse_word(raw)

    assert word is not None
    assert (word.raw, word.generation, word.sequence, word.prefix) == (
        raw,
        generation,
        sequence,
        b"%d:" % generation,
    )


@pytest.mark.parametrize(
    "raw",
    [b"", b":", b"7", b"7:", b":100", b"-7:100", b"7:100:1", b"7:100\n", b" 7:100", b"a:b", b"4294967296:1",
     b"7:12345678901234567", b"\xff" * 10],
)  # fmt: skip
def test_what_is_no_control_word(raw):
    """What a stranger has put there, or does not fit into a header, is none."""
    assert parse_word(raw) is None


def test_one_partition_takes_all():
    """Without a cluster there is nothing to spread."""
    state = make_state()

    assert state.partition_of(DIGEST) is state.partitions[0]


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16, 64])
def test_digests_spread_evenly_over_the_partitions(count):
    """No partition is asked half as often, or twice as often, as its share; limits are divided evenly too."""
    state, of = make_state(count), Fingerprints("", {}).of
    share = 200
    found = collections.Counter(state.partition_of(of(number)).index for number in range(share * count))

    assert set(found) == set(range(count))
    assert min(found.values()) > share / 2
    assert max(found.values()) < share * 2


def test_the_same_digest_is_always_in_the_same_partition():
    """Every process finds an entry where another one put it."""
    one, other = make_state(16), make_state(16)

    assert one.partition_of(DIGEST).index == other.partition_of(DIGEST).index


def test_a_flight_is_boarded_under_the_control_word():
    """The key of a flight is the control word of the moment and the digest."""
    state = make_state()
    wanted = make_ask(state)
    assert wanted.flight_key == (b"7:100", DIGEST)
    state.partitions[0].word = parse_word(b"8:100")
    assert wanted.flight_key == (b"8:100", DIGEST)
    state.partitions[0].word = None
    assert wanted.flight_key == (b"", DIGEST)


def test_named_victims_are_passed_once():
    """Two stores at the same time do not evict the same entries twice."""
    part = make_state().partitions[0]
    part.victims = [b"a", b"1", b"b", b"2", b"c", b"3"]

    assert part.take_victims(2) == [b"a", b"1", b"b", b"2"]
    assert part.take_victims(2) == [b"c", b"3"]
    assert part.take_victims(2) == []


def test_suspects_are_bounded():
    """A process that meets nothing but inconsistent books does not grow without end."""
    part = make_state().partitions[0]
    for number in range(10_000):
        part.suspect(b"%d" % number)

    assert 0 < len(part.suspects) < 1000
    assert len(part.take_suspects()) > 0
    assert part.take_suspects() == set()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"7:101", b"7:101"),
        (b"8:1", b"8:1"),
        (b"7:100", b"7:100"),
        (b"7:99", b"7:100"),
        (b"6:500", b"7:100"),
        (b"", b"7:100"),
        (b"nonsense", b"7:100"),
    ],
)
def test_a_word_that_comes_with_another_reply_is_kept_if_it_is_newer(raw, expected):
    """A reply that was sent earlier and arrives later takes nothing back."""
    part = make_state().partitions[0]
    note_word(part, raw)

    assert part.word is not None
    assert part.word.raw == expected


def test_no_word_older_than_one_seen_before_is_noted():
    """A generation that was seen once is remembered, even while no word is known."""
    part = make_state().partitions[0]
    part.word, part.newest = None, 9
    note_word(part, b"8:1")
    assert part.word is None
    note_word(part, b"9:1")

    assert part.word is not None


def test_a_touch_holds_for_a_while():
    """Until it has passed, the clock has gone back, or too many are remembered."""
    (part,) = make_state().partitions
    part.touched_lately(5_000.0).add(b"m")

    assert b"m" in part.touched_lately(5_999.0)
    assert b"m" not in part.touched_lately(6_000.0)
    part.touched_lately(6_500.0).add(b"m")
    assert b"m" not in part.touched_lately(5_999.0)
    part.touched_lately(5_999.0).update(b"%d" % number for number in range(5_000))
    assert not part.touched_lately(5_999.0)


def test_uses_are_told_more_often_while_entries_are_soon_evicted():
    """A sixteenth of the time between last use and eviction, at most a second; always, if that is not known."""
    (part,) = make_state().partitions
    for victims, touch_ms in (
        ([b"m", b"998400.000"], 100.0),
        ([b"m", b"1.000", b"n", b"999999.000"], 1_000.0),
        ([b"m", b"250000000000000"], 0.0),
        ([], 1_000.0),
    ):
        part.note_pressure(victims, 1_000_000)
        assert part.touch_ms == touch_ms
    part.touch_ms = 0.0
    part.touched_lately(7.0).add(b"m")
    assert not part.touched_lately(7.0)
