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
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from askonce.keys import Request, Verbatim

from .bypass import has_shape, stateful
from .headers import Headers, chosen, without_credentials

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An HTTP request whose content has been read; ``origin`` is scheme and host, ``path`` and ``query`` as sent."""

    method: str
    origin: str
    path: str
    query: str = ""
    headers: Headers
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
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
    api: Api | None = next((name for ending, name in _ENDINGS if call.path.endswith(ending)), None)
    if api is None:
        return "endpoint"
    try:
        body = json.loads(call.content)
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
        "body": keyed(api, body),
    }
    if scope is not None:
        parts["scope"] = scope
    options = body.get("stream_options")
    wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return Plan(api, Request("http", parts), body, bool(body.get("stream")), wants_usage)


def keyed(api: Api, body: Mapping[str, Any], *, but: frozenset[str] = frozenset()) -> dict[str, object]:
    """Return the part of *body* that is in the key, less the names in *but*."""
    return {
        name: Verbatim(value) if isinstance(value, dict | list) else value
        for name, value in body.items()
        if value is not None
        and name not in _UNSEEN
        and name not in but
        and not (name == "n" and value == 1 and value is not True)
        # An answer of the Responses API made with store=false has an id that cannot be continued from.
        and not (name == "store" and value is False and api != "responses")
    }


def _origin(origin: str) -> str:
    scheme, _, host = origin.partition("://")
    return f"{scheme}://{host.rpartition('@')[2]}"
