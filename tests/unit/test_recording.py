"""What a stream's leader records, and what its consumer was given."""

from __future__ import annotations

import pytest

from askonce import Cache, StreamBroken, Uncacheable
from askonce._flights import Flight
from askonce._programs import Held
from askonce._recording import Passed, Recording
from askonce.entry import Corrupt, encode_chunk

from .play import make_ask, make_state


def encoded(*chunks, codec=None):
    """Return chunks as they are recorded."""
    return [encode_chunk(chunk, codec) for chunk in chunks]


def given(passed, *chunks):
    """Return what a source that holds these chunks gives to the consumer."""
    passed.begin_source()
    return [value for chunk in encoded(*chunks) for value in passed.take(chunk)]


class Upper:
    """A codec."""

    name = "upper"

    def encode(self, value):
        return value.lower().encode()

    def decode(self, data):
        return data.decode().upper()


# --- what the consumer was given ----------------------------------------------------------------------------------


def test_a_first_source_is_passed_on_whole():
    """Chunk by chunk, decoded, equal chunks too."""
    assert given(Passed(None), "a", "a", b"b", {"n": 1}, None) == ["a", "a", b"b", {"n": 1}, None]


def test_a_second_source_goes_on_where_the_first_broke_off():
    """What the consumer has is compared, not given twice."""
    passed = Passed(None)
    assert given(passed, "a", "b") == ["a", "b"]
    assert given(passed, "a") == []
    assert given(passed, "a", "b", "c", "d") == ["c", "d"]
    assert given(passed, "a", "b", "c", "d", "e") == ["e"]


@pytest.mark.parametrize("other", [("x",), ("a", "x"), ("ab",), (b"a",), ("a ",)])
def test_a_source_that_begins_differently_is_refused(other):
    """StreamBroken says how many chunks the consumer has."""
    passed = Passed(None)
    given(passed, "a", "b", "c")

    with pytest.raises(StreamBroken) as caught:
        given(passed, *other)
    assert caught.value.passed == 3


def test_each_consumer_decodes_for_itself():
    """By its own codec, and into objects of its own."""
    chunk = encode_chunk("a", Upper())
    assert list(Passed(Upper()).take(chunk)) == ["A"]
    passed = Passed(None)
    (one,), (other,) = list(passed.take(*encoded({"n": []}))), list(Passed(None).take(*encoded({"n": []})))
    assert one is not other


def test_a_chunk_that_cannot_be_read_is_not_taken_for_given():
    """After Corrupt the consumer still has what it had, and another source may go on from there."""
    passed = Passed(None)
    assert given(passed, "a") == ["a"]
    with pytest.raises(Corrupt):
        list(passed.take(encode_chunk("b", Upper())))

    assert given(passed, "a", "b") == ["b"]


def test_an_own_call_is_compared_with_what_was_given():
    """Its chunks are the model's own objects: new ones are passed on as they are."""
    passed = Passed(None)
    given(passed, "a", "b")
    passed.begin_source()

    assert [passed.is_new(chunk) for chunk in ("a", "b", "c", "d")] == [False, False, True, True]


def test_an_own_call_that_says_something_else_is_refused():
    """At its first chunk that differs."""
    passed = Passed(None)
    given(passed, "a", "b")
    passed.begin_source()
    assert passed.is_new("a") is False

    with pytest.raises(StreamBroken):
        passed.is_new("x")


def test_an_own_call_from_the_beginning_is_compared_with_nothing():
    """Its chunks need no encoding for it: what cannot be recorded can still be passed on."""
    passed = Passed(None)
    passed.begin_source()

    assert passed.is_new({1, 2, 3})
    assert passed.is_new(object())


def test_an_own_chunk_that_cannot_be_compared_breaks_the_stream():
    """The consumer hears of a broken stream, not of how chunks are recorded."""
    passed = Passed(None)
    given(passed, "a", "b")
    passed.begin_source()

    with pytest.raises(StreamBroken):
        passed.is_new({1, 2, 3})


# --- a whole stored stream ----------------------------------------------------------------------------------------


def concluded(passed, *stored):
    """Return what a stored stream of these chunks still gives to the consumer."""
    passed.begin_source()
    return list(passed.conclude(encoded(*stored)))


@pytest.mark.parametrize("before", [(), ("a",), ("a", "b"), ("a", "b", "c")])
def test_a_stored_stream_gives_what_is_missing(before):
    """All of it to who has nothing, nothing to who has all."""
    passed = Passed(None)
    given(passed, *before)

    assert concluded(passed, "a", "b", "c") == ["a", "b", "c"][len(before) :]


def test_a_stream_that_was_stored_in_one_piece_gives_the_rest_of_it():
    """The holder of a lease publishes chunks and finishes with the whole text."""
    passed = Passed(None)
    given(passed, "Why", " no")
    assert concluded(passed, "Why not?") == ["t?"]

    passed = Passed(None)
    given(passed, b"a", b"b")
    assert concluded(passed, b"abc") == [b"c"]

    passed = Passed(None)
    given(passed, "Why", " not?")
    assert concluded(passed, "Why not?") == []


@pytest.mark.parametrize(
    ("before", "stored"),
    [
        (("a", "b"), ("a", "x")),
        (("a", "b"), ("a",)),
        (("a", "b"), ("xab",)),
        (("a",), (b"a",)),
        (({"n": 1},), ({"n": 2},)),
    ],
)
def test_a_stored_stream_that_begins_differently_is_refused(before, stored):
    """Half of one answer is not continued by half of another; nor is a longer one cut short."""
    passed = Passed(None)
    given(passed, *before)

    with pytest.raises(StreamBroken):
        concluded(passed, *stored)


# --- what the leader records --------------------------------------------------------------------------------------


@pytest.fixture
def namespace():
    """A namespace that asks no Redis: nothing listens there."""
    return Cache("redis://127.0.0.1:1/0", namespace="test", max_bytes="4kb")._namespace


def recording(namespace, codec=None, flight=True):
    """Return a recording without a lease, and its flight."""
    wanted = make_ask(make_state())
    boarded = namespace.state.flights.board(wanted.flight_key)[0] if flight else None
    return Recording(namespace, Held(wanted, boarded, None), codec), boarded


def test_a_leader_records_for_its_flight(namespace):
    """Followers read the flight's own tape, as it is made."""
    made, flight = recording(namespace)
    made.add("a")
    made.add({"n": 1})

    assert isinstance(flight, Flight)
    assert flight.tape.chunks == encoded("a", {"n": 1})
    assert made.whole
    assert not flight.tape.ended


def test_a_call_that_nobody_shares_is_recorded_too(namespace):
    """Who calls for itself has no flight; its recording is its own."""
    made, _ = recording(namespace, flight=False)
    made.add("a")

    assert made.tape.chunks == encoded("a")


def test_chunks_are_recorded_by_the_codec(namespace):
    """As they will be stored."""
    made, _ = recording(namespace, codec=Upper())
    made.add("A")

    assert made.tape.chunks == encoded("A", codec=Upper())


class Failing:
    """A codec that fails in its own way."""

    name = "failing"

    def encode(self, value):
        raise RuntimeError("the user's")

    def decode(self, data):
        raise RuntimeError("the user's")


GIVEN_UP = {
    "uncacheable": (None, {1, 2, 3}, "uncacheable"),
    "a codec that fails": (Failing(), "x", "uncacheable"),
    "too large": (None, "x" * 5000, "too_large"),
}


@pytest.mark.parametrize("why", GIVEN_UP)
def test_a_chunk_that_cannot_be_recorded_ends_the_recording(namespace, why):
    """Not the stream: it is counted once, what follows is not recorded, and nobody joins the flight any more."""
    codec, chunk, counter = GIVEN_UP[why]
    made, flight = recording(namespace, codec)
    before = len(made.tape.chunks)
    made.add(chunk)
    after = len(made.tape.chunks)
    made.add(chunk)
    made.add("x")

    assert not made.whole
    assert (before, len(made.tape.chunks)) == (0, after)
    assert namespace.state.counters.peek() == {counter: 1}
    assert (flight.tape.ended, flight.tape.complete) == (True, False)
    assert len(namespace.state.flights) == 0


def test_many_small_chunks_are_too_large_together(namespace):
    """It is the stream that is bounded, not its chunks."""
    made, _ = recording(namespace)
    for _ in range(50):
        made.add("x" * 100)

    assert not made.whole
    assert namespace.state.counters.peek() == {"too_large": 1}
    assert made.tape.size <= 4096 + 101


def test_uncacheable_is_no_error_of_the_stream(namespace):
    """encode_chunk raises it; the recording keeps it to itself."""
    with pytest.raises(Uncacheable):
        encode_chunk({1, 2}, None)
    made, _ = recording(namespace)
    made.add({1, 2})
