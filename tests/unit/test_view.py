"""What is public and asks nothing of Redis: arguments, scopes, what a cache says of itself."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from askonce import AsyncCache, Cache, ConfigurationError, Policy, Refused, Request, Uncacheable, control
from askonce._view import memo_request
from askonce.control import NONE
from askonce.keys import Fingerprints, tag_hash

URL = "redis://127.0.0.1:1/0"


@pytest.fixture(params=[Cache, AsyncCache])
def kind(request):
    return request.param


def admit(value: Any) -> str:
    return "5m"


# --- arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"url": 6379}, "url is int; give text such as redis://host:6379/0"),
        ({"url": "http://h"}, "is not understood; give one of redis://host:6379/0"),
        ({"url": URL, "client": redis.Redis()}, "both url and client= were given; give one of them"),
        ({"client": "redis"}, "client=str is not supported; give a redis.Redis"),
        ({"namespace": ""}, "namespace='' is not allowed: give 1 to 64 of A-Z a-z 0-9 _ . -"),
        ({"namespace": "a b"}, "namespace='a b' is not allowed"),
        ({"namespace": 3}, "namespace=3 is not allowed"),
        ({"version": 3}, "version=3 is int; give text such as 'v3'"),
        ({"version": None}, "version=None is NoneType; give text such as 'v3'"),
        ({"policy": "24h"}, "policy='24h' is no Policy; give askonce.Policy(ttl='24h')"),
        ({"policy": Policy}, "is no Policy; give askonce.Policy(ttl='24h')"),
        ({"max_entries": 0}, "max_entries=0 is no bound; give a whole number from 1 to 1000000000"),
        ({"max_entries": -1}, "max_entries=-1 is no bound"),
        ({"max_entries": 1.5}, "max_entries=1.5 is no bound"),
        ({"max_entries": "10"}, "max_entries='10' is no bound"),
        ({"max_entries": True}, "max_entries=True is no bound"),
        ({"max_entries": None}, "max_entries=None is no bound"),
        ({"max_entries": 10**10}, "max_entries=10000000000 is no bound"),
        (
            {"max_bytes": "much"},
            "max_bytes='much' is no size: give a positive number of bytes, or text such as '64kb'",
        ),
        ({"max_bytes": 0}, "max_bytes=0 is no size"),
        ({"max_bytes": 100}, "max_bytes=100 holds no entry at all; give at least 512"),
        ({"deadline": "soon"}, "deadline='soon' is no duration: give seconds, a timedelta, or text"),
        ({"deadline": 0}, "deadline=0 is out of range: give 0.001 s to 3650 days"),
        ({"deadline": None}, "deadline=None is no duration"),
    ],
)
def test_a_wrong_argument_is_refused_where_it_is_given(kind, words, message):
    """The message says what was given and what is allowed."""
    words = dict(words) if "client" in words else {"url": URL, **words}
    url = words.pop("url", None)
    with pytest.raises(ConfigurationError) as error:
        kind(url, **words)

    assert message in str(error.value)


@pytest.mark.parametrize("words", [{"version": "\ud800"}, {"admit": "no function"}, {"on_event": 3}])
def test_other_arguments_are_checked_too(kind, words):
    """What would fail at some later call is refused at once, with the name of the argument."""
    with pytest.raises(ConfigurationError, match=next(iter(words))):
        kind(URL, **words)


def test_arguments_are_given_by_name(kind):
    """Only the URL has a place, and unknown names are errors."""
    with pytest.raises(TypeError):
        kind(URL, "docs")
    with pytest.raises(TypeError):
        kind(URL, name_space="docs")


def test_making_a_cache_connects_to_nothing(kind, monkeypatch):
    """Not even a socket is opened."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    cache = kind(URL, namespace="docs", version="v3", policy=Policy(ttl=5))

    assert (cache.namespace, cache.version, cache.policy) == ("docs", "v3", Policy(ttl=5))


def test_defaults(kind):
    """A cache without arguments has a name, no version and the default policy."""
    cache = kind(URL)

    assert (cache.namespace, cache.version, cache.policy) == ("default", "", Policy())


# --- scopes -------------------------------------------------------------------------------------------------------


def digest(cache: Any, request: object = "q") -> bytes:
    return cache._ask(request).digest


def test_a_scope_is_part_of_the_key(kind):
    """Each part and its value tell keys apart; the order in which they were added does not."""
    cache = kind(URL)
    scopes = [
        cache,
        cache.scope(repo="a"),
        cache.scope(repo="b"),
        cache.scope(path="a"),
        cache.scope(repo="a", path="b"),
    ]

    assert len({digest(scope) for scope in scopes}) == 5
    assert digest(cache.scope(repo="a").scope(path="b")) == digest(cache.scope(path="b", repo="a"))
    assert digest(cache.scope(repo="a").scope(repo="b")) == digest(cache.scope(repo="b"))
    assert digest(cache.scope()) == digest(cache)


def test_a_scope_shares_everything_else(kind):
    """Flights, counters, connections, policy and admission are the parent's."""
    cache = kind(URL, policy=Policy(ttl=5), admit=admit)
    child = cache.scope(tenant="a")

    assert type(child) is kind
    assert child._namespace is cache._namespace
    assert child.policy is cache.policy
    assert child._call().admit is admit
    child.bypass("because")
    assert cache._namespace.state.counters.peek() == {"bypassed": 1, "bypassed:because": 1}


@pytest.mark.parametrize("part", [object(), {1: 2}, float("nan"), {"a"}])
def test_a_scope_that_cannot_be_keyed_is_refused(kind, part):
    """At once, with the path."""
    with pytest.raises(ConfigurationError, match=r"scope\['tenant'\]"):
        kind(URL).scope(tenant=part)


def test_a_scope_may_be_called_self_or_url(kind):
    """A part's name is the user's; those of the method's own parameters are not special."""
    assert digest(kind(URL).scope(url="a", namespace="b", kind="c")) != digest(kind(URL))


def test_the_block_adds_to_the_scope(kind):
    """``control(scope=...)`` holds for every cache inside, on top of its own scope."""
    cache = kind(URL).scope(tenant="a")
    with control(scope={"repo": 1}):
        inside = digest(cache)
    assert inside == digest(cache.scope(repo=1))
    assert inside != digest(cache)


def test_version_and_namespace_are_told_apart(kind):
    """The version is in the fingerprint; the namespace is in the names."""
    assert digest(kind(URL, version="1")) != digest(kind(URL, version="2"))
    one, other = kind(URL, namespace="one"), kind(URL, namespace="other")
    assert digest(one) == digest(other)
    assert one._ask("q").partition.names.prefix != other._ask("q").partition.names.prefix


def test_both_colours_share_keys_and_state():
    """``cache.aio`` is another view of the same namespace."""
    cache = Cache(URL, version="3").scope(a=1)

    assert type(cache.aio) is AsyncCache
    assert cache.aio is cache.aio
    assert cache.aio._namespace is cache._namespace
    assert digest(cache.aio) == digest(cache)
    assert cache.aio.version == "3"


# --- what a call decides ------------------------------------------------------------------------------------------


def test_the_calls_own_words_win_over_the_blocks(kind):
    """ttl of the call, then of the block; tags of both."""
    cache = kind(URL)
    with control(ttl="1h", tags=["a"], max_age=5, read=False, write=False, only_if_cached=True):
        block = cache._ask("q")
        own = cache._ask("q", ttl="5m", tags=["b", "a"])

    assert (block.ttl_ms, own.ttl_ms, cache._ask("q").ttl_ms) == (3_600_000, 300_000, None)
    assert block.tags == (tag_hash("a"),)
    assert own.tags == tuple(sorted((tag_hash("a"), tag_hash("b"))))
    assert (own.max_age, own.read, own.write, own.only_if_cached) == (5.0, False, False, True)


@pytest.mark.parametrize("words", [{"ttl": "soon"}, {"ttl": 0}, {"tags": [""]}, {"tags": [3]}])
def test_a_wrong_word_of_a_call_is_refused(kind, words):
    """Like a wrong argument of the cache."""
    with pytest.raises(ConfigurationError):
        kind(URL)._ask("q", **words)


def test_every_request_has_a_token_of_its_own(kind):
    """Two callers never take each other's lease; the draw of the jitter lies between 0 and 1."""
    cache = kind(URL)
    asks = [cache._ask("q") for _ in range(100)]

    assert len({wanted.token for wanted in asks}) == 100
    assert all(len(wanted.token) >= 16 and b":" not in wanted.token for wanted in asks)
    assert all(0.0 <= wanted.draw < 1.0 for wanted in asks)


@given(st.lists(st.integers(0, 5), max_size=12), st.sets(st.integers(0, 5)))
def test_many_requests_are_made_distinct(numbers, served):
    """Equal requests are asked once, in the order of their first place; what is served already is not asked."""
    cache = Cache(URL)
    digests, places = cache._digests([{"q": number} for number in numbers], NONE)

    firsts = sorted(set(numbers), key=numbers.index)
    assert digests == [digest(cache, {"q": number}) for number in firsts]
    assert [digests[place] for place in places] == [digest(cache, {"q": number}) for number in numbers]
    asks = cache._asks(digests, NONE, served)
    assert [wanted.index for wanted in asks] == [place for place in range(len(firsts)) if place not in served]
    assert all(wanted.digest == digests[wanted.index] for wanted in asks)


def test_a_request_without_a_form_is_refused(kind):
    """Before anything is asked of Redis."""
    with pytest.raises(Uncacheable, match=r"request\['client'\]"):
        kind(URL)._ask({"client": object()})


def test_admission_is_the_calls_or_the_caches(kind):
    """What a call brings along wins; an error of it refuses the answer."""
    cache = kind(URL, admit=admit)

    def broken(value: Any) -> None:
        raise KeyError(value)

    assert cache._call().encode("x", 0).ttl_ms == 300_000
    assert cache._call(admit=lambda _: None).encode("x", 0).ttl_ms is None
    with pytest.raises(Refused):
        cache._call(admit=broken).encode("x", 0)
    with pytest.raises(Refused):
        cache._call(admit=lambda _: "soon").encode("x", 0)


# --- what a cache says of itself ----------------------------------------------------------------------------------


def test_repr_names_everything_but_secrets(kind):
    """Where, namespace, version and scope; no user, no password."""
    cache = kind("redis://me:s3cret@db.example:6380/2", namespace="docs", version="v3").scope(repo="a", n=1)

    assert repr(cache) == (
        f"{kind.__name__}('redis://db.example:6380/2', namespace='docs', version='v3', repo='a', n=1)"
    )


def again(cache: Any, how: str) -> Any:
    return {"pickle": lambda: pickle.loads(pickle.dumps(cache)), "deepcopy": lambda: copy.deepcopy(cache),
            "copy": lambda: copy.copy(cache)}[how]()  # fmt: skip


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
def test_a_cache_travels_as_its_configuration(kind, how):
    """Another process, or a deep copy, has the same keys, policy and bounds, and connections of its own."""
    cache = kind(
        "redis://:s3cret@h", namespace="docs", version="v3", policy=Policy(ttl=5), max_entries=7, max_bytes="1mb",
        deadline=0.5, admit=admit, strict=True,
    ).scope(repo="a")  # fmt: skip
    other = again(cache, how)

    assert type(other) is kind
    assert repr(other) == repr(cache)
    assert digest(other) == digest(cache)
    assert (other.policy, other._admit) == (cache.policy, admit)
    assert other._namespace.settings == cache._namespace.settings
    assert dict(other._namespace.place.options) == {"host": "h", "password": "s3cret"}
    assert other._namespace is not cache._namespace
    assert other._namespace.state is not cache._namespace.state


def test_a_cache_that_was_used_travels_too():
    """Threads, locks and open flights stay behind."""
    cache = Cache(URL)
    cache.aio.bypass("x")
    cache._namespace.state.flights.board((b"7:1", b"digest"))
    other = pickle.loads(pickle.dumps(cache))

    assert len(other._namespace.state.flights) == 0
    assert other._namespace.state.counters.peek() == {}


def test_a_cache_of_a_client_does_not_travel(kind):
    """A client is connections: the message says what to do."""
    with pytest.raises(TypeError, match="made from client= cannot be pickled; make it from a URL"):
        pickle.dumps(kind(client=redis.Redis()))


# --- memoize ------------------------------------------------------------------------------------------------------


def summarise(text: str, *more: str, model: str = "m", **options: Any) -> str:
    return text


def request_of(*args: Any, **kwargs: Any) -> Request:
    return memo_request(summarise, ())(*args, **kwargs)


def test_a_call_is_its_name_and_arguments():
    """However the arguments are passed: defaults, names and places make no difference."""
    of = Fingerprints("", {}).of
    expected = of(
        Request(
            "memoize",
            {
                "function": f"{__name__}.summarise",
                "arguments": {"text": "a", "more": [], "model": "m", "options": {}},
            },
        )
    )

    assert of(request_of("a")) == expected
    assert of(request_of(text="a")) == expected
    assert of(request_of("a", model="m")) == expected
    others = [
        request_of("b"),
        request_of("a", "b"),
        request_of("a", model="n"),
        request_of("a", model="m", n=1),
    ]
    assert len({expected, *map(of, others)}) == 5


def test_ignored_arguments_are_not_in_the_key():
    """A client, a trace id."""
    of, request = Fingerprints("", {}).of, memo_request(summarise, ("model", "options"))

    assert of(request("a", model="m", n=object())) == of(request("a", model="n"))


def test_what_cannot_be_ignored_is_refused():
    """A typo would put an object into the key, or keep one out of it."""
    with pytest.raises(
        ConfigurationError, match=r"ignore=\['modle'\] names no parameter of .*summarise\(text"
    ):
        memo_request(summarise, ("modle", "text"))


@pytest.mark.parametrize(
    "fn", [lambda text: text, functools.partial(summarise, "a")], ids=["lambda", "partial"]
)
def test_a_function_without_a_name_is_refused(fn):
    """Two of them would share their answers."""
    with pytest.raises(ConfigurationError, match="has no name of its own to be keyed by; give it a def"):
        Cache(URL).memoize(fn)


def test_memoize_keeps_the_functions_face():
    """Name, docstring and signature; with and without arguments of the decorator."""
    cache = Cache(URL)

    @cache.memoize
    def plain(text: str) -> str:
        """Say it."""
        return text

    @cache.memoize(ttl="1h", tags=["a"], ignore=["client"])
    def worded(client: object, text: str) -> str:
        """Say it again."""
        return text

    assert (plain.__name__, plain.__doc__, worded.__name__, worded.__doc__) == (
        "plain", "Say it.", "worded", "Say it again.",
    )  # fmt: skip


def test_each_colour_memoizes_its_own_functions():
    """An async function is memoized by the async twin; a plain one is refused there."""

    async def later(text: str) -> str:
        return text

    import inspect

    assert inspect.iscoroutinefunction(Cache(URL).memoize(later))
    assert inspect.iscoroutinefunction(AsyncCache(URL).memoize(later))
    with pytest.raises(ConfigurationError, match=r"is no async function; use Cache.memoize"):
        AsyncCache(URL).memoize(summarise)
