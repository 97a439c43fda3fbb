"""The contract on a cluster."""

from tests.contract.test_many import *  # noqa: F403

# These count what one server sees, or name a part of it.
del test_many_are_read_in_one_round_trip  # noqa: F821
