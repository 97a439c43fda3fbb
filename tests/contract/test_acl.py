"""An ACL user with exactly the commands that the documentation names can do everything, and misses none."""

import logging
import re

import pytest
import redis

from askonce import Policy, Source, scripts

from .colours import call_on
from .polling import age, registered, until
from .upstream import Gate

#: The commands of the documentation, and nothing else; the two forms of pub/sub for cluster mode are not used here.
COMMANDS = [
    "get",
    "mget",
    "set",
    "getrange",
    "setrange",
    "strlen",
    "del",
    "unlink",
    "exists",
    "pexpire",
    "pexpireat",
    "pttl",
    "zadd",
    "zrem",
    "zincrby",
    "zscore",
    "zcard",
    "zrange",
    "zrandmember",
    "zscan",
    "hsetnx",
    "hincrby",
    "hgetall",
    "rpush",
    "llen",
    "lrange",
    "evalsha",
    "script|load",
    "publish",
    "subscribe",
    "unsubscribe",
    "time",
    "ping",
]
#: What is asked for and not needed; Redis 6.2 logs a command without its subcommand.
OPTIONAL = {"client|setinfo", "client", "info"}
NEVER = [
    "config",
    "keys",
    "scan",
    "flushall",
    "flushdb",
    "eval",
    "script|flush",
    "client|kill",
    "debug",
    "module|load",
    "function|load",
    "monitor",
]


@pytest.fixture
def user(own_server):
    """Make a user of exactly these commands; returns the URL and an administrator's client."""

    def user(*commands, keys="~ao:*", channels="&ao:*"):
        server = own_server()
        admin = redis.Redis.from_url(server.url, protocol=2)  # by RESP3 redis-py 8.0 gives bytes
        admin.acl_setuser("app", enabled=True, passwords=["+secret"], reset=True)
        # Redis 6.2 gives a new user all channels.
        admin.execute_command(
            "ACL", "SETUSER", "app", "resetchannels", keys, channels, *(f"+{command}" for command in commands)
        )
        return server.url.replace("redis://", "redis://app:secret@"), admin

    return user


def everything(driver, other, raw, servers=()):
    """Use every path of a cache; a strict one raises at the first command that is not allowed."""
    driver.store("q", "answer", tags=["t"])
    assert driver.lookup("q").value == "answer"
    assert driver.get_or_compute("p", lambda: "computed") == "computed"
    assert driver.get_or_compute_many(["p", "r"], lambda _: ["many"]) == ["computed", "many"]
    assert [one.value for one in driver.get_many(["q", "r"])] == ["answer", "many"]
    call_on(driver, driver.begin("s").finish, "begun")
    call_on(driver, driver.begin("u").abandon)
    with pytest.raises(RuntimeError):
        driver.get_or_compute("v", raises)
    gate = Gate()
    leading = driver.start("serve", "waited for", gate)
    gate.wait()
    following = other.start("serve", "waited for", lambda: "never")
    until(lambda: registered(other.cache._namespace))
    gate.open()
    assert (leading.result(10).value, following.result(10).value) == ("answer", "answer")
    until(lambda: other.lookup("waited for") is not None)
    age(raw, driver.explain("p").key, 90_000)
    assert driver.serve("p", lambda: "refreshed").source is Source.STALE
    until(lambda: driver.lookup("p").value == "refreshed")
    lease = driver.begin("kept for a while")
    until(lambda: any("cmdstat_pexpire" in one.info("commandstats") for one in servers or [raw]))  # renewed
    call_on(driver, lease.finish, "kept")
    for number in range(40):  # beyond the bound: evictions
        driver.store(number, "answer")
    raw.delete(driver.explain(39).key)  # healed
    driver.lookup(39)
    driver.store(38, "again")
    driver.store("short", "answer", ttl=0.01)
    assert driver.invalidate("q") in {True, False}
    assert driver.invalidate_tag("t") is True
    assert driver.lookup("q") is None
    assert driver.usage().known
    assert driver.explain("q").key
    assert driver.bump() > 0
    assert driver.clear() >= 0
    assert driver.stats().fleet
    raw.script_flush()
    driver.store("after all", "answer")


def raises():
    raise RuntimeError("quota")


def test_the_documented_permissions_are_enough(user, make_driver):
    """Every path of a strict cache works, and nothing was refused."""
    url, admin = user(*COMMANDS)
    policy = Policy(ttl="1d", stale_while_revalidate="1d", lease=0.6)
    driver, other = (make_driver(url, strict=True, policy=policy, max_entries=20) for _ in range(2))

    everything(driver, other, admin)

    assert [
        one["object"] for one in admin.acl_log() if one["reason"] != "auth" and one["object"] not in OPTIONAL
    ] == []
    assert driver.stats().backend_errors == 0


def test_scripts_use_no_other_command():
    """What the scripts and the programs call is in the list: nothing is needed that only a rare path would show."""
    called = set()
    for script in scripts.ALL:
        code = re.sub(r"--[^\n]*", "", script.source)
        called |= {name.lower() for name in re.findall(r'redis\.p?call\(\s*"(\w+)"', code)}
        assert not re.search(r"redis\.p?call\(\s*[^\"\s]", code.replace("redis.call(publish", "")), (
            script.name
        )

    assert called <= set(COMMANDS) | {"spublish"}
    assert called.isdisjoint(NEVER)


def test_other_keys_and_channels_are_not_touched(user, make_driver):
    """~ao:* and &ao:* are enough: no name is made outside them."""
    url, admin = user(*COMMANDS, keys="~ao:{mine}*", channels="&ao:{mine:*")
    admin.execute_command("ACL", "SETUSER", "app", "~ao:{mine:*")
    driver = make_driver(url, strict=True, namespace="mine")

    assert driver.get_or_compute("q", lambda: "answer") == "answer"
    assert driver.usage().entries == 1
    assert {key.partition(b"}")[0].partition(b":")[2][:5] for key in admin.keys("*")} == {b"{mine"}
    assert [one["object"] for one in admin.acl_log() if one["object"] not in OPTIONAL] == []


@pytest.mark.parametrize(
    "missing", ["evalsha", "mget", "zadd", "publish", "subscribe", "hincrby", "script|load"]
)
def test_a_permission_that_is_missing_costs_no_answer(user, make_driver, caplog, missing):
    """Calls are made without the cache; nothing is raised but by a strict cache, and the log does not overflow."""
    caplog.set_level(logging.WARNING)
    url, _ = user(*(command for command in COMMANDS if command != missing))
    driver = make_driver(url)
    for number in range(30):
        assert driver.get_or_compute({"n": number % 3}, lambda: "answer") == "answer"
    driver.stats()

    assert len(caplog.records) <= 5
    assert "secret" not in caplog.text
    if missing in {"evalsha", "mget"}:
        assert missing in caplog.text.lower()
        assert driver.stats().bypassed > 0


def test_another_namespace_is_refused_by_redis(user, make_driver):
    """A user of one namespace reads nothing of another one, and its calls are made without the cache."""
    url, admin = user(*COMMANDS, keys="~ao:{mine:*", channels="&ao:{mine:*")
    theirs = make_driver(f"redis://127.0.0.1:{admin.get_connection_kwargs()['port']}/0", namespace="theirs")
    theirs.store("q", "secret answer")
    driver = make_driver(url, namespace="theirs")

    assert driver.lookup("q") is None
    assert driver.get_or_compute("q", lambda: "own") == "own"
    assert theirs.lookup("q").value == "secret answer"
