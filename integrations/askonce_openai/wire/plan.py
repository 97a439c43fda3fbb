"""
From an HTTP request to its plan: which API is asked, in which form, and what the answer depends on.

The key holds everything that may shape the answer, unknown parameters included.  Left out is what the model never
sees: who asks (``user``, ``metadata``), the provider's own caching, and the form (``stream``), since one entry serves
all forms.  Below the top level the order of mappings counts: it reaches the model, "reason" before or after "answer"
in a schema makes another prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from askonce.keys import Request, Verbatim

from .bypass import has_shape, stateful
from .headers import Headers, chosen, without_credentials

try:
    from jiter import from_json  # comes with the SDKs; three times as fast
except ImportError:
    from_json = json.loads

Api: TypeAlias = Literal["chat", "completions", "responses", "messages", "embeddings"]

# The longer ending first: "/chat/completions" also ends in "/completions".
_ENDINGS: Final[tuple[tuple[str, Api], ...]] = (
    ("/chat/completions", "chat"),
    ("/responses", "responses"),
    ("/embeddings", "embeddings"),
    ("/completions", "completions"),
    ("/v1/messages", "messages"),
)

_UNSEEN: Final = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "stream",
        "stream_options",
    }
)

_DEFAULTS: Final = frozenset({"n", "store"})


class Call(NamedTuple):
    """An HTTP request whose content has been read; ``origin`` is scheme and host, ``path`` and ``query`` as sent."""

    method: str
    origin: str
    path: str
    headers: Headers
    content: bytes
    query: str = ""


class Plan(NamedTuple):
    """
    What is asked, and how it is to be answered.

    ``request`` is what the core makes the key of.  ``body`` is the content, read; it is not to be changed.
    ``wants_usage``: a stream is to tell its usage.
    """

    api: Api
    request: Request
    body: dict[str, Any]
    stream: bool
    wants_usage: bool


def plan(call: Call, *, key_headers: Sequence[str] = (), scope: object = None) -> Plan | str:
    """
    Return the plan of a request, or in one word why it is none of the cache's business.

    ``key_headers`` are further headers in the key (see ``checked_key_headers``); ``scope``, a JSON-like value, keeps
    callers apart.  The core may still find the request Uncacheable: NaN, or nested beyond reason.
    """
    if call.method != "POST":
        return "method"
    if (api := _api_of(call.path)) is None:
        return "endpoint"
    try:
        body = _read(call.content)
    except (ValueError, RecursionError):
        return "not-json"
    if not has_shape(body, api):
        return "shape"
    if reason := stateful(api, body):
        return reason
    parts: dict[str, object] = {
        "origin": _origin(call.origin),
        "path": call.path,
        "query": without_credentials(call.query),
        "headers": chosen(call.headers, key_headers),
        "body": _keyed(api, body),
    }
    if scope is not None:
        parts["scope"] = scope
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return Plan(api, Request("http", parts), body, bool(body.get("stream")), wants_usage)


def _api_of(path: str) -> Api | None:
    for ending, api in _ENDINGS:
        if path.endswith(ending):
            return api
    return None


def _read(content: bytes) -> Any:
    try:
        return from_json(content)
    except ValueError:
        return json.loads(content)  # it takes more: lone surrogates, a byte order mark


def _keyed(api: Api, body: Mapping[str, Any]) -> dict[str, object]:
    """Return the part of *body* that is in the key."""
    return {
        name: Verbatim(value) if isinstance(value, (dict, list)) else value
        for name, value in body.items()
        if value is not None
        and name not in _UNSEEN
        and not (name in _DEFAULTS and _is_default(api, name, value))
    }


def _is_default(api: Api, name: str, value: object) -> bool:
    """Return whether a parameter says what holds without it."""
    if name == "n":
        return value == 1 and value is not True
    # An answer of the Responses API made with store=false has an id that cannot be continued from.
    return value is False and api != "responses"


def _origin(origin: str) -> str:
    if "@" not in origin:
        return origin
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{host.rpartition('@')[2]}"
