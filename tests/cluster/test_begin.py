"""The contract on a cluster."""

from tests.contract.test_begin import *  # noqa: F403
