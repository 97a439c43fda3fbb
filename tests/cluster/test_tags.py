"""The contract on a cluster."""

from tests.contract.test_tags import *  # noqa: F403
