"""
What the model APIs say on the wire, as values: no HTTP library, no Redis, no event loop, no clock.

    plan(call)                         a request   -> Plan, or why the cache steps aside
    record(plan, status, headers, ...) an answer   -> Entry, or why it is not stored
    render(plan, entry)                an entry    -> the answer of this request, or None: it cannot serve it

Nothing here raises on what comes from outside, be it a request, an answer or a stored entry.
"""

from .directives import Directives, directives
from .entry import CODEC, KEPT_HEADERS, Entry, Head, head
from .headers import OWN_PREFIX, Headers, checked_key_headers, credential, header_names, read_headers
from .plan import Api, Call, Plan, plan
from .record import is_whole, record
from .render import Hits, Rendered, render
from .sse import Ending

__all__ = [
    "CODEC",
    "KEPT_HEADERS",
    "OWN_PREFIX",
    "Api",
    "Call",
    "Directives",
    "Ending",
    "Entry",
    "Head",
    "Headers",
    "Hits",
    "Plan",
    "Rendered",
    "checked_key_headers",
    "credential",
    "directives",
    "head",
    "header_names",
    "is_whole",
    "plan",
    "read_headers",
    "record",
    "render",
]
