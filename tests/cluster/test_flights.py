"""The contract on a cluster."""

from tests.contract.test_flights import *  # noqa: F403

# These count what one server sees, or name a part of it.
del test_a_process_asks_redis_once_for_all_its_callers  # noqa: F821
del test_a_lost_message_costs_one_lease_at_most  # noqa: F821
del test_nothing_is_lost_between_a_question_and_its_waiting  # noqa: F821
del test_all_caches_of_a_process_wait_on_one_connection  # noqa: F821
