"""The permissions that the documentation names for a cluster are enough, and it needs no other."""

import pytest
from tests.contract.test_acl import COMMANDS, everything

from askonce import Policy

#: In a cluster these stand in place of publish, subscribe, unsubscribe.
SHARDED = ["cluster|slots", "pubsub|shardnumsub", "spublish", "ssubscribe", "sunsubscribe"]


@pytest.fixture
def user(server, url):
    """The URL of a user with exactly these commands, on every node."""
    allowed = [command for command in COMMANDS if command not in {"publish", "subscribe", "unsubscribe"}]
    words = (f"+{command}" for command in (*allowed, *SHARDED))
    given = ("app", "reset", "on", ">secret", "~ao:*", "&ao:*", *words)
    for client in server.clients:
        client.execute_command("ACL SETUSER", *given)
        client.acl_log_reset()
    yield url.replace("://", "://app:secret@")
    for client in server.clients:
        client.acl_deluser("app")


def test_the_documented_permissions_are_enough(user, server, make_driver, raw):
    """Every path of a strict cache works, and nothing was refused."""
    policy = Policy(ttl="1d", stale_while_revalidate="1d", lease=0.6)
    driver, other = (make_driver(user, strict=True, policy=policy, max_entries=32) for _ in range(2))

    everything(driver, other, raw, server.clients)

    refused = {one["object"] for client in server.clients for one in client.acl_log() if one["reason"] != "auth"}
    assert refused <= {"client|setinfo"}
    assert driver.stats().backend_errors == 0
