"""The permissions that the documentation names for a cluster are enough, and it needs no other."""

import pytest
from tests.contract.test_acl import COMMANDS, OPTIONAL, everything

from askonce import Policy

PLAIN = {"publish", "subscribe", "unsubscribe"}
#: In a cluster these stand in place of the plain ones.
SHARDED = {"pubsub|shardnumsub", "spublish", "ssubscribe", "sunsubscribe"}


@pytest.fixture
def user(server, url):
    """Make a user of exactly these commands on every node; returns its URL."""

    def user(commands):
        for client in server.clients:
            client.execute_command(
                "ACL SETUSER",
                "app",
                "reset",
                "on",
                ">secret",
                "resetchannels",  # as in the contract's
                "~ao:*",
                "&ao:*",
                *(f"+{one}" for one in commands),
            )
            client.acl_log_reset()
        return url.replace("://", "://app:secret@")

    yield user
    for client in server.clients:
        client.acl_deluser("app")


@pytest.mark.parametrize("channels", [SHARDED, PLAIN], ids=["sharded", "plain"])
def test_the_documented_permissions_are_enough(user, server, make_driver, raw, channels):
    """Every path of a strict cache works, by channels of a slot, or, as on Redis 6.2, by those that all nodes hear."""
    at = user({*COMMANDS, "cluster|slots"} - PLAIN | channels)
    policy = Policy(ttl="1d", stale_while_revalidate="1d", lease=0.6)
    driver, other = (make_driver(at, strict=True, policy=policy, max_entries=32) for _ in range(2))

    everything(driver, other, raw, server.clients)

    refused = {
        one["object"] for client in server.clients for one in client.acl_log() if one["reason"] != "auth"
    }
    assert refused <= OPTIONAL | ({"pubsub|shardnumsub", "pubsub"} if channels is PLAIN else set())
    assert driver.stats().backend_errors == 0
