"""The decorator: a function's name and arguments are the request."""

import functools
import inspect

import pytest

from askonce import AsyncCache, Cache, ConfigurationError, Uncacheable

from .colours import call_on


@pytest.fixture
def memo(driver):
    """Decorate a plain function in the colour of the driver; the result is called like the function."""

    def memo(fn, **words):
        cache = driver.cache
        if driver.colour == "threads":
            return cache.memoize(fn, **words) if words else cache.memoize(fn)

        @functools.wraps(fn)
        async def afn(*args, **kwargs):
            return fn(*args, **kwargs)

        memoized = cache.memoize(afn, **words) if words else cache.memoize(afn)
        assert inspect.iscoroutinefunction(memoized)
        return lambda *args, **kwargs: call_on(driver, memoized, *args, **kwargs)

    return memo


def test_a_call_with_the_same_arguments_is_a_hit(memo):
    """However they are written: by place, by name, or left to their defaults."""
    calls = []

    def summarise(text, style="short", *, lines=3):
        calls.append((text, style, lines))
        return f"{style} {text} {lines}"

    cached = memo(summarise)

    assert cached("a") == "short a 3"
    for again in (("a", "short"), ("a",)):
        assert cached(*again, lines=3) == "short a 3"
    assert cached(text="a", style="short") == "short a 3"
    assert len(calls) == 1
    assert cached("a", lines=4) == "short a 4"
    assert cached("b") == "short b 3"
    assert len(calls) == 3


def test_variable_arguments_count(memo):
    """*args and **kwargs are in the key; the order of keywords is not."""
    calls = []

    def fn(*args, **kwargs):
        calls.append(1)
        return len(calls)

    cached = memo(fn)

    assert cached(1, 2, a=1, b=2) == cached(1, 2, b=2, a=1) == 1
    assert cached(2, 1, a=1, b=2) == 2
    assert cached(1, 2) == 3
    assert cached(1, 2, a=1, c=2) == 4


def test_ignored_parameters_do_not_shape_the_key(memo):
    """A client, a logger or self are left out, whatever they are."""
    calls = []

    def fn(client, text):
        calls.append(text)
        return f"answer to {text}"

    cached = memo(fn, ignore=("client",))

    assert cached(object(), "a") == cached(client=object(), text="a") == "answer to a"
    assert calls == ["a"]


def test_functions_do_not_share_answers(memo):
    """The qualified name is in the key."""

    def one(text):
        return "one"

    def two(text):
        return "two"

    assert (memo(one)("a"), memo(two)("a")) == ("one", "two")


def test_words_of_the_decorator_hold_for_every_call(driver, memo):
    """ttl and tags are those of the entries."""
    calls = []

    def fn(text):
        calls.append(text)
        return text

    cached = memo(fn, ttl="1h", tags=["t"])
    cached("a")
    cached("a")
    assert len(calls) == 1
    driver.invalidate_tag("t")
    cached("a")
    assert len(calls) == 2


def test_arguments_without_canonical_form_are_refused(memo):
    """The path names the argument."""

    def fn(thing):
        return "answer"

    with pytest.raises(Uncacheable, match="thing"):
        memo(fn)(object())


def test_errors_pass_and_are_not_kept(memo):
    """The next call calls again."""
    calls = []

    def fn(text):
        calls.append(text)
        if len(calls) == 1:
            raise RuntimeError("quota")
        return text

    cached = memo(fn)

    with pytest.raises(RuntimeError, match="quota"):
        cached("a")
    assert cached("a") == "a"


def test_wrong_arguments_are_the_functions_own_error(memo):
    """A call that the function would refuse is refused with a TypeError."""

    def fn(text):
        return text

    with pytest.raises(TypeError, match="nonsense"):
        memo(fn)("a", nonsense=1)


def test_the_decorated_function_looks_like_itself(url):
    """Name, documentation and signature stay."""
    with Cache(url, namespace="test") as cache:

        @cache.memoize(ttl="1h")
        def summarise(text: str, lines: int = 3) -> str:
            """Summarise."""
            return text[:lines]

        assert (summarise.__name__, summarise.__doc__) == ("summarise", "Summarise.")
        assert list(inspect.signature(summarise).parameters) == ["text", "lines"]
        assert summarise("abcdef") == "abc"


def test_a_method_is_memoized_without_its_self(url):
    """ignore=("self",) makes methods of any object share answers."""
    with Cache(url, namespace="test") as cache:
        calls = []

        class Writer:
            @cache.memoize(ignore=("self",))
            def write(self, text):
                calls.append(text)
                return text.upper()

        assert Writer().write("a") == Writer().write("a") == "A"
        assert calls == ["a"]


def test_what_cannot_be_keyed_is_refused_when_it_is_decorated(url):
    """A lambda has no name of its own; a parameter that does not exist cannot be ignored."""
    with Cache(url, namespace="test") as cache:
        with pytest.raises(ConfigurationError, match="no name of its own"):
            cache.memoize(lambda text: text)

        def fn(text):
            return text

        with pytest.raises(ConfigurationError, match="client"):
            cache.memoize(fn, ignore=("client",))


async def test_a_sync_cache_decorates_coroutine_functions(url):
    """They are run by its async twin."""
    cache = Cache(url, namespace="test")
    calls = []

    @cache.memoize
    async def fn(text):
        calls.append(text)
        return text.upper()

    assert [await fn("a"), await fn("a")] == ["A", "A"]
    assert calls == ["a"]
    await cache.aio.aclose()


def test_an_async_cache_refuses_plain_functions(url):
    """It would have to block the loop or change the function's colour."""

    def fn(text):
        return text

    with pytest.raises(ConfigurationError, match=r"Cache\.memoize"):
        AsyncCache(url).memoize(fn)
