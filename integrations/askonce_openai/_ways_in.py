"""Where the cache is put in, one client at a time: ``wrap``, and clients that are made with it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

from askonce import Cache
from askonce.errors import ConfigurationError, MissingExtra

from ._library import library_of
from ._options import Choices, Options
from ._transport import put_around

T = TypeVar("T")


def wrap(client: T, url_or_cache: str | Cache | None = None, **choices: Unpack[Choices]) -> T:
    """
    Put a cache around the transports of an SDK's client, or of an httpx(2) client, in place; return the same client.

    Proxies, TLS, limits, timeouts and backends stay.  Clients that share the HTTP client share the cache; a second
    time changes nothing.  Without a URL or a ``Cache`` it is ``Cache()``.

    ``replay="coalesced"`` gives stored streams in few large events; ``fresh_ids`` gives each hit ids of its own;
    ``usage_on_hit="zero"`` is for meters.  ``scope``: ``"api_key"`` or a function of the HTTP request, where callers
    must not share answers.  ``key_headers``: headers by which a gateway chooses the model.  See ``Choices``.

    Raises ConfigurationError for what is no such client, or has another cache already.
    """
    http: Any = getattr(client, "_client", client)
    library = library_of(http)
    options = Options.checked(url_or_cache, **choices)
    there = put_around(library, http, options)
    if there is not None and not there.same(options):
        raise ConfigurationError(
            "this client, or one that shares its HTTP client, has another cache already: wrap it once, or give each "
            "model an HTTP client of its own (http_client=askonce_openai.http_client(...))"
        )
    return client


def http_client(
    url_or_cache: str | Cache | None = None, *, base: Callable[..., Any] | None = None, **words: Any
) -> Any:
    """
    Return an HTTP client with a cache, for ``OpenAI(http_client=...)`` and what takes one like it.

    Made by *base*: by default the SDK's own ``DefaultHttpxClient``, whose limits, timeouts and redirects it keeps;
    openai's if that is installed, else anthropic's, else httpx2's or httpx's ``Client``.  The *words* are those of
    ``wrap`` (``Choices``), and any that *base* takes.
    """
    return _made(base or _default("DefaultHttpxClient", "Client"), url_or_cache, words)


def async_http_client(
    url_or_cache: str | Cache | None = None, *, base: Callable[..., Any] | None = None, **words: Any
) -> Any:
    """Do what ``http_client`` does, for ``AsyncOpenAI(http_client=...)``."""
    return _made(base or _default("DefaultAsyncHttpxClient", "AsyncClient"), url_or_cache, words)


def _made(base: Callable[..., Any], url_or_cache: str | Cache | None, words: dict[str, Any]) -> Any:
    choices = {name: words.pop(name) for name in Choices.__annotations__ if name in words}
    return wrap(base(**words), url_or_cache, **choices)


def _default(of_sdk: str, of_library: str) -> Callable[..., Any]:
    for package, name in (
        ("openai", of_sdk),
        ("anthropic", of_sdk),
        ("httpx2", of_library),
        ("httpx", of_library),
    ):
        if importlib.util.find_spec(package) is not None:
            found: Callable[..., Any] = getattr(importlib.import_module(package), name)
            return found
    raise MissingExtra("neither an SDK nor an HTTP library is installed: pip install 'askonce[openai]'")
