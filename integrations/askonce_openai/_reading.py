"""
What one caller makes of what is stored or passed on: an entry is rendered for its own request.

An entry that cannot serve this request (a stream without usage, asked for as JSON) is a miss and gets replaced; a
running stream of another form is not followed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from askonce import Unusable
from askonce.errors import Uncacheable
from askonce.policy import Refused

from . import wire
from .wire.scrub import ECHOED

#: In the head of a running answer: of what its caller's request will be echoed.  Never stored.
_ECHO: Final = "x-askonce-echo"


@dataclass(frozen=True, slots=True)
class Unstored:
    """An answer that is not stored, and why.  Who waited for it in the process is given it too, unless it is an error."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str
    echo: str


class Reading:
    """A codec of one call: it decodes entries to what this caller is given."""

    def __init__(self, plan: wire.Plan, hits: wire.Hits, accepts: str | None) -> None:
        self.name = wire.CODEC.name
        self._plan, self._hits, self._accepts = plan, hits, accepts
        self.echo = _echo(plan)
        self._last: tuple[bytes, wire.Rendered] | None = None

    def head(self, headers: wire.Headers) -> wire.Head:
        """Return the head of this caller's own call, as it is passed on."""
        head = wire.head(self._plan, headers)
        return replace(head, headers={**head.headers, _ECHO: self.echo}) if self.echo else head

    def encode(self, value: object) -> bytes:
        """Return what is stored; raise Refused, with its reason, for an answer that is not."""
        if isinstance(value, Unstored):
            raise Refused(value.reason)
        if not isinstance(value, wire.Entry | wire.Head | bytes):
            raise Uncacheable(f"{type(value).__name__} is no recorded answer")
        return wire.CODEC.encode(value)

    def decode(self, data: bytes) -> Any:
        """Return what this caller is given: Rendered, or a part of a running stream, Head or bytes.

        Raises Unusable for what cannot serve its request.
        """
        if self._last is not None and self._last[0] == data:
            return self._last[1]  # a stored stream is decoded once to be judged, and once to be given
        value = wire.CODEC.decode(data)
        if isinstance(value, wire.Head):
            return self._followable(value)
        if not isinstance(value, wire.Entry):
            return value
        token = secrets.token_hex(12) if self._hits.fresh_ids else ""
        rendered = wire.render(self._plan, value, self._hits, token=token)
        if rendered is None:
            raise Unusable("another form was asked for")
        self._last = (data, rendered)
        return rendered

    def _followable(self, head: wire.Head) -> wire.Head:
        if head.wants_usage != self._plan.wants_usage or head.stream != self._plan.stream:
            raise Unusable("a stream of another form")
        if head.headers.get(_ECHO, "") != self.echo:
            raise Unusable("a stream that echoes another caller's request")
        encoding = head.headers.get("content-encoding")
        if encoding is not None and encoding not in (self._accepts or ""):
            raise Unusable("a stream in another encoding")
        return replace(head, headers={name: value for name, value in head.headers.items() if name != _ECHO})


def _echo(plan: wire.Plan) -> str:
    """Return a digest of what the answer will echo of the request; empty if nothing."""
    if plan.api != "responses":
        return ""
    echoed = {name: plan.body[name] for name in ECHOED if plan.body.get(name) is not None}
    if not echoed:
        return ""
    text = json.dumps(echoed, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
