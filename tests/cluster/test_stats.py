"""The contract on a cluster."""

from tests.contract.test_stats import *  # noqa: F403

# These count what one server sees, or name a part of it.
del test_counters_move_by_their_rules  # noqa: F821
