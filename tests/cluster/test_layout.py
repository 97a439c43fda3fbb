"""The contract on a cluster."""

from tests.contract.test_layout import *  # noqa: F403
