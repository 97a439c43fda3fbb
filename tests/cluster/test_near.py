"""The contract on a cluster."""

from tests.contract.test_near import *  # noqa: F403
