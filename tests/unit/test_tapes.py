"""A stream under way, recorded while it is passed on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from askonce._loops import within
from askonce._tapes import Relay, Relays, Tape


def ends(tape):
    """Return how the tape ended."""
    return tape.ended, tape.complete, tape.error


def test_chunks_are_kept_in_order_and_counted():
    """Every follower reads from any place; the size is that of the chunks."""
    tape = Tape()
    for chunk in (b"a", b"", b"bcd"):
        tape.append(chunk)

    assert tape.chunks == [b"a", b"", b"bcd"]
    assert tape.size == 4
    assert ends(tape) == (False, False, None)


def test_what_is_there_is_not_waited_for():
    """More than count chunks: the future is done."""
    tape = Tape()
    tape.append(b"a")

    assert tape.more(0).done()
    assert not tape.more(1).done()
    assert not tape.more(5).done()


def test_a_chunk_wakes_all_who_wait():
    """Each looks again, whatever count it waited for."""
    tape = Tape()
    waiting = [tape.more(count) for count in (0, 0, 3)]
    tape.append(b"a")

    assert all(one.done() for one in waiting)


def test_the_end_wakes_all_who_wait():
    """With an answer, an error, or neither; who comes later does not wait at all."""
    for words in ({"complete": True}, {"error": ValueError()}, {}):
        tape = Tape()
        waiting = tape.more(0)
        tape.end(**words)

        assert waiting.done()
        assert tape.more(0).done()
        assert ends(tape) == (True, words.get("complete", False), words.get("error"))


def test_the_first_word_about_the_end_counts():
    """An error behind a whole answer, or an answer behind an error, changes nothing."""
    error = ValueError()
    for first, later in (
        ({"complete": True}, {"error": error}),
        ({"error": error}, {"complete": True}),
        ({}, {"error": error}),
    ):
        tape = Tape()
        tape.end(**first)
        before = ends(tape)
        tape.end(**later)

        assert ends(tape) == before


def test_a_future_that_was_cancelled_does_no_harm():
    """A follower that goes away leaves its future behind."""
    tape = Tape()
    gone, waiting = tape.more(0), tape.more(0)
    gone.cancel()
    tape.append(b"a")

    assert waiting.done()


def test_nothing_is_kept_of_who_has_been_woken():
    """A long stream with many followers does not grow but by its chunks."""
    tape = Tape()
    for count in range(100):
        tape.more(count)
        tape.append(b"x")

    assert tape._waiting == []


def test_a_follower_may_look_again_while_it_is_woken():
    """What a callback does to the tape (an event loop's, the garbage collector's) does not deadlock."""
    tape, seen = Tape(), []

    def woken(_):
        seen.append(list(tape.chunks))
        tape.more(len(tape.chunks)).add_done_callback(lambda _: seen.append(ends(tape)))
        tape.end(complete=True)

    tape.more(0).add_done_callback(woken)
    tape.append(b"a")

    assert seen == [[b"a"], (True, True, None)]


def test_a_recording_is_read_by_threads_while_it_is_made():
    """Ten readers that wait for each chunk have all of them, in order."""
    tape, whole = Tape(), [b"%d" % number for number in range(500)]
    results = []

    def read():
        got = []
        while True:
            tape.more(len(got)).result(10)
            got += tape.chunks[len(got) :]
            if tape.ended and len(got) == len(tape.chunks):
                break
        results.append(got)

    threads = [threading.Thread(target=read) for _ in range(10)]
    for thread in threads:
        thread.start()
    for chunk in whole:
        tape.append(chunk)
    tape.end(complete=True)
    for thread in threads:
        thread.join(10)

    assert results == [whole] * 10


async def test_a_recording_is_read_by_tasks_while_a_thread_makes_it():
    """A task waits for a chunk without blocking its loop, and its impatience is its own."""
    tape = Tape()
    assert await within(tape.more(0), 0.01, "impatient") == "impatient"
    reading = asyncio.create_task(within(tape.more(0), 10, "impatient"))
    await asyncio.sleep(0)
    await asyncio.to_thread(tape.append, b"a")

    assert await reading is None
    assert tape.chunks == [b"a"]


@pytest.mark.parametrize("count", [0, 1])
def test_an_ended_tape_is_read_to_its_last_chunk(count):
    """The end does not hide what came before it."""
    tape = Tape()
    tape.append(b"a")
    tape.end(error=ValueError())

    assert tape.more(count).done()
    assert tape.chunks[count:] == [b"a"][count:]


# --- relays -------------------------------------------------------------------------------------------------------


def test_one_reads_and_the_others_wait_for_it():
    """Who comes while somebody reads is woken by a chunk, and by the end of that turn."""
    relay = Relay()
    assert relay.turn(0, 100.0) is None
    waiting, other = relay.turn(0, 100.0), relay.turn(0, 100.0)
    assert not waiting.done()
    relay.append(b"a")
    assert waiting.done()
    assert other.done()
    assert relay.turn(0, 100.0).done()
    late = relay.turn(1, 100.0)
    relay.give(100.0)
    assert late.done()
    assert relay.turn(1, 100.0) is None


def test_who_takes_its_time_reads_ahead_now_and_then():
    """A second after the last read of anybody, one at a time, and never behind the end."""
    relay = Relay()
    assert relay.turn(0, 100.0) is None
    assert not relay.lags(200.0)  # somebody is reading
    relay.append(b"a")
    relay.give(100.0)
    assert not relay.lags(100.9)
    assert relay.lags(101.0)
    assert not relay.lags(200.0)
    relay.give(110.0)  # it took its time itself
    assert not relay.lags(110.9)
    assert relay.lags(111.0)
    relay.give(111.0)
    relay.end(complete=True)
    assert not relay.lags(200.0)


def test_nobody_reads_on_what_has_ended():
    """There is nothing to wait for."""
    relay = Relay()
    relay.end(complete=True)
    assert relay.turn(0, 100.0).done()


def test_a_relay_lives_as_long_as_somebody_follows_it():
    """The same for all who follow one stream; nothing is kept of it after."""
    relays = Relays()
    one = relays.of(b"d", 1)
    assert relays.of(b"d", 1) is one
    assert relays.of(b"d", 2) is not one
    one.append(b"a")
    del one
    assert relays.of(b"d", 1).chunks == []
