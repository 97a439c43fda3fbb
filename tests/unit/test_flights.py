"""Single-flight within one process."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from askonce._flights import Flight, Flights, Landed

KEY, SAME_REQUEST_LATER, OTHER = (b"7:1", b"digest"), (b"7:2", b"digest"), (b"7:1", b"another")
LANDED = Landed(0, b"payload", None, 5.0)


def test_the_first_to_board_leads():
    """Who comes later gets the same flight and does not lead."""
    flights = Flights()
    flight, leads = flights.board(KEY)

    assert leads
    assert flights.board(KEY) == (flight, False)
    assert flights.board(OTHER)[1]
    assert len(flights) == 2


def test_a_landing_is_shared():
    """Everybody who joined has the result, and the next to ask boards anew."""
    flights = Flights()
    flight, _ = flights.board(KEY)
    flights.land(flight, LANDED)

    assert flight.future.result(0) == LANDED
    assert len(flights) == 0
    assert flights.board(KEY)[1]


def test_an_error_is_shared():
    """The leader's error is raised by all who joined."""
    flights = Flights()
    flight, _ = flights.board(KEY)
    flights.land(flight, error=ValueError("no"))

    assert isinstance(flight.future.exception(0), ValueError)
    assert len(flights) == 0


def test_a_leader_that_gives_up_lands_nothing():
    """None tells those who joined that one of them is to lead."""
    flights = Flights()
    flight, _ = flights.board(KEY)
    flights.land(flight)

    assert flight.future.result(0) is None


def test_a_flight_lands_once():
    """Later landings change nothing, neither the result nor the flight that took off since."""
    flights = Flights()
    flight, _ = flights.board(KEY)
    flights.land(flight, LANDED)
    next_flight, _ = flights.board(KEY)
    flights.land(flight, error=ValueError())
    flights.land(flight)

    assert flight.future.result(0) == LANDED
    assert flights.board(KEY) == (next_flight, False)
    assert not next_flight.future.done()


def test_a_grounded_flight_is_joined_by_nobody_else():
    """Whoever asks after an invalidation boards anew; who joined before still gets the answer."""
    flights = Flights()
    before, _ = flights.board(KEY)
    also_before, _ = flights.board(SAME_REQUEST_LATER)
    bystander, _ = flights.board(OTHER)
    flights.ground(b"digest")
    after, leads = flights.board(KEY)

    assert leads
    assert after is not before
    assert flights.board(SAME_REQUEST_LATER)[1]
    assert flights.board(OTHER) == (bystander, False)
    flights.land(before, LANDED)
    assert before.future.result(0) == LANDED
    assert flights.board(KEY) == (after, False)
    assert not also_before.future.done()


def test_a_moved_control_word_is_another_flight():
    """A flight is boarded under the control word of the moment: after a bump nobody joins an older one."""
    flights = Flights()

    assert flights.board(KEY)[1]
    assert flights.board(SAME_REQUEST_LATER)[1]


def test_a_flight_knows_its_home():
    """The leader's event loop is kept, for those who must not block it."""
    flights, home = Flights(), object()
    flight, _ = flights.board(KEY, home)

    assert flight.home is home
    assert flights.board(KEY, object())[0].home is home


def test_a_cancelled_wait_does_not_stop_a_landing():
    """A future that somebody has cancelled is no error for the leader."""
    flights = Flights()
    flight, _ = flights.board(KEY)
    flight.future.cancel()
    flights.land(flight, LANDED)

    assert len(flights) == 0


def test_a_landing_inside_a_landing():
    """The garbage collector may land another flight while this thread is boarding or landing."""
    flights = Flights()
    orphan, _ = flights.board(OTHER)
    flight, _ = flights.board(KEY)

    class Lands(Future):
        def set_result(self, result):
            flights.land(orphan)
            super().set_result(result)

    flight.future = Lands()
    with flights._lock:
        flights.land(flight, LANDED)

    assert orphan.future.result(0) is None
    assert flight.future.result(0) == LANDED
    assert len(flights) == 0


@pytest.mark.parametrize("round_", range(5))
def test_of_many_threads_one_leads(round_):
    """Whatever the order, exactly one boards first and all others get its result."""
    flights, gate = Flights(), threading.Barrier(8)
    leaders: list[Flight] = []
    results: list[Landed | None] = []

    def ask() -> None:
        gate.wait()
        flight, leads = flights.board(KEY)
        if leads:
            leaders.append(flight)
            gate.wait()
            flights.land(flight, LANDED)
        else:
            gate.wait()
        results.append(flight.future.result(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(leaders) == 1
    assert results == [LANDED] * 8
    assert len(flights) == 0
