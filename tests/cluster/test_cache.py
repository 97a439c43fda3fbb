"""The contract on a cluster."""

from tests.contract.test_cache import *  # noqa: F403

# These count what one server sees, or name a part of it.
del test_a_database_number_counts  # noqa: F821
del test_a_unix_socket_serves_as_well  # noqa: F821
del test_a_client_of_the_users_gives_the_address_and_nothing_else  # noqa: F821
del test_an_async_client_serves_both_colours  # noqa: F821
del test_a_cache_of_a_client_does_not_pickle  # noqa: F821
del test_look_ups_of_one_moment_are_one_command  # noqa: F821
