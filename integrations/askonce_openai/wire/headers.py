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

#: Headers that start like this are ours.
OWN_PREFIX: Final = "x-askonce-"
_OWN: Final = OWN_PREFIX.encode()

# What says how the answer is wanted, and from where.
_ASKING: Final = ("accept-encoding", "cache-control")

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


def header_names(further: Iterable[str], *, credentials: bool) -> frozenset[bytes]:
    """Return the names of the headers that are looked at, with *further* ones in the key; ours are not among them."""
    names = (*KEY_HEADERS, *_ASKING, *further, *(_CREDENTIALS if credentials else ()))
    return frozenset(name.encode("latin-1") for name in names)


def read_headers(sent: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> dict[str, str]:
    """Return the headers with these *names*, and ours, of all that are *sent*: most concern nobody here."""
    lines = [
        (str(lower, "latin-1"), str(value, "latin-1"))
        for name, value in sent
        if (lower := name.lower()) in names or lower.startswith(_OWN)
    ]
    found = dict(lines)
    if len(found) < len(lines):  # several lines of one name are one list: RFC 9110, 5.3
        found = {name: ", ".join(value for other, value in lines if other == name) for name in found}
    return found


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
    given = tuple(names)
    for name in given:
        if not isinstance(name, str) or not name.isascii():
            raise ConfigurationError(
                f"key_headers: {name!r} is no name of a header: give text such as 'x-route'"
            )
    lower = tuple(name.lower() for name in given)
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
