"""
Headers of a request: which choose the answer, which are a credential.

A credential is never in the key: tokens rotate, and two keys of one account are given the same answers.  Where they
must not be, its digest is made a scope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Protocol

from askonce import ConfigurationError


class Headers(Protocol):
    """Headers by lower-case name: those of httpx and httpx2, or a dict."""

    def get(self, name: str, /) -> str | None: ...  # noqa: D102


#: The headers in every key: they choose account, project, or another behaviour of the API.
KEY_HEADERS: Final = (
    "openai-organization",
    "openai-project",
    "openai-beta",
    "anthropic-beta",
    "anthropic-version",
)

_CREDENTIALS: Final = (
    "authorization",
    "api-key",  # Azure
    "x-api-key",  # Anthropic
    "x-goog-api-key",
    "ocp-apim-subscription-key",  # Azure API Management
)
_NEVER_KEYED: Final = frozenset({*_CREDENTIALS, "cookie", "proxy-authorization"})

# Parameters of a query by which some gateways take the credential.
_IN_QUERY: Final = frozenset(
    {"key", "api_key", "api-key", "apikey", "access_token", "token", "sig", "signature", "subscription-key"}
)


def credential(headers: Headers, query: str = "") -> str:
    """Return a digest of whatever authenticates the caller; empty if nothing does."""
    given = [(name, value) for name in _CREDENTIALS if (value := headers.get(name))]
    given += [("?", part) for part in query.split("&") if _is_credential(part)]
    if not given:
        return ""
    return hashlib.blake2b(repr(given).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def checked_key_headers(names: Iterable[str]) -> tuple[str, ...]:
    """Return the further headers that go into the key, in lower case; raise ConfigurationError for a credential."""
    if isinstance(names, str):
        raise ConfigurationError(f"key_headers={names!r} is text: give a list of names, such as [{names!r}]")
    lower = tuple(name.lower() for name in names)
    for name in lower:
        if name in _NEVER_KEYED:
            raise ConfigurationError(
                f"key_headers: {name!r} holds a credential, which rotates and is never in a key; "
                "to keep callers apart give scope='api_key'"
            )
    return lower


def chosen(headers: Headers, further: Iterable[str]) -> dict[str, str]:
    """Return the headers that are in the key."""
    return {name: value for name in (*KEY_HEADERS, *further) if (value := headers.get(name)) is not None}


def without_credentials(query: str) -> str:
    """Return *query* without the parameters that are a credential."""
    if "=" not in query:
        return query
    return "&".join(part for part in query.split("&") if not _is_credential(part))


def _is_credential(part: str) -> bool:
    return part.partition("=")[0].lower() in _IN_QUERY
