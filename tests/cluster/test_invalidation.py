"""The contract on a cluster."""

from tests.contract.test_invalidation import *  # noqa: F403
