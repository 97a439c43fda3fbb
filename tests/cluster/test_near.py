"""The contract on a cluster."""

from tests.contract.test_near import *  # noqa: F403

# These are of one server.
del test_a_client_of_the_user_s_has_a_near_cache_too  # noqa: F821
del test_nobody_listens_for_a_cache_that_is_gone  # noqa: F821
