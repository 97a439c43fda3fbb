"""Settings of the unit tests, and what most tests of the programs begin with."""

import pytest
from hypothesis import settings

from .play import make_state

# A busy machine is no counterexample.
settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture
def state():
    """What a process knows that has one partition, and has read its control word."""
    return make_state()


@pytest.fixture
def part(state):
    """The partition of ``state``."""
    return state.partitions[0]
