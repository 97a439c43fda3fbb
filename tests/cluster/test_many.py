"""The contract on a cluster."""

from collections import Counter

import pytest
from tests.contract.test_many import *  # noqa: F403

from askonce._wire.held import Held
from askonce._wire.multiplexed import Multiplexed

# These count what one server sees, or name a part of it.
del test_many_are_read_in_one_round_trip  # noqa: F821


def test_a_batch_costs_a_round_trip_a_server(driver, monkeypatch):
    """However many partitions its requests are of: one to look, one to lease and one to store, on each master."""
    requests = [f"question {number}" for number in range(100)]
    driver.lookup("connected")
    assert (
        driver.get_or_compute_many(requests[:50], lambda missing: missing) == requests[:50]
    )  # all words are known
    spread = {driver.explain(one).partition for one in requests[50:]}
    asked = Counter()
    for kind in (Held, Multiplexed):
        exchange = kind.exchange

        def counting(wire, packed, count, exchange=exchange):
            asked[wire._endpoint.label] += 1
            return exchange(wire, packed, count)

        monkeypatch.setattr(kind, "exchange", counting)

    assert driver.get_or_compute_many(requests[50:], lambda missing: missing) == requests[50:]

    assert len(spread) > 8
    assert list(asked.values()) == [3, 3, 3]

    for turn in ("the script is loaded", "and counted"):  # the leases are given back in one round trip, too
        asked.clear()
        with pytest.raises(ZeroDivisionError):
            driver.get_or_compute_many([f"{turn} {number}" for number in range(50)], lambda _: 1 / 0)
    assert list(asked.values()) == [3, 3, 3]
