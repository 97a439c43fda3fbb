"""A stream under way, recorded."""

from __future__ import annotations

import threading

from askonce._tapes import Tape


def test_chunks_are_kept_in_order():
    """What is appended is there, with its size."""
    tape = Tape()
    for chunk in (b"a", b"", b"bc"):
        tape.append(chunk)

    assert (tape.chunks, tape.size) == ([b"a", b"", b"bc"], 3)
    assert not tape.ended


def test_who_waits_for_more_is_woken():
    """By the next chunk, or by the end; who is behind already does not wait."""
    tape = Tape()
    first = tape.more(0)
    assert not first.done()
    tape.append(b"a")
    assert first.done()
    assert tape.more(0).done()
    second = tape.more(1)
    assert not second.done()
    tape.end(complete=True)
    assert second.done()
    assert tape.more(1).done()
    assert tape.more(100).done()


def test_the_first_end_counts():
    """A stream ends once: complete, with an error, or given up."""
    error = ValueError("no")
    for words, expected in [
        ({"complete": True}, (True, None)),
        ({"error": error}, (False, error)),
        ({}, (False, None)),
    ]:
        tape = Tape()
        tape.end(**words)
        tape.end(complete=True)
        tape.end(error=KeyError())
        assert (tape.complete, tape.error, tape.ended) == (*expected, True)


def test_who_has_given_up_waiting_is_no_error():
    """A follower that was cancelled does not disturb the leader."""
    tape = Tape()
    tape.more(0).cancel()
    other = tape.more(0)
    tape.append(b"a")

    assert other.done()


def test_a_follower_may_look_while_it_is_woken():
    """Whoever is woken may read, wait again, or end the tape: no lock is in the way."""
    tape, seen = Tape(), []

    def again(_: object) -> None:
        seen.append(list(tape.chunks))
        tape.end()

    tape.more(0).add_done_callback(again)
    tape.append(b"a")

    assert seen == [[b"a"]]
    assert tape.ended


def test_many_followers_read_what_the_leader_writes():
    """Each of them has every chunk, once and in order, however they interleave."""
    tape, found = Tape(), []
    expected = [b"%d" % number for number in range(500)]

    def follow() -> None:
        place, mine = 0, []
        while True:
            tape.more(place).result(10)
            mine += tape.chunks[place:]
            place = len(mine)
            if tape.ended and place == len(tape.chunks):
                found.append(mine)
                return

    threads = [threading.Thread(target=follow) for _ in range(4)]
    for thread in threads:
        thread.start()
    for chunk in expected:
        tape.append(chunk)
    tape.end(complete=True)
    for thread in threads:
        thread.join()

    assert found == [expected] * 4
