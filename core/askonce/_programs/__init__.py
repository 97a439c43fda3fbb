"""
The decisions: hit, stale, lead, wait, store, evict.

Read this package to know what askonce does.  Everything that is asked of Redis, of the caller's function or of time
is an effect (see ``_effects``).  Rules that keep it so:

1. a program does no I/O, reads no clock, draws no random number: time comes in replies, tokens come as arguments;
2. user code (functions, codecs) is only called by an effect;
3. ``except BaseException`` around a ``yield`` first re-raises ``GeneratorExit``: a closing generator may not yield;
4. cancellation enters by ``throw``, so a cancelled leader gives its lease back and hands over;
5. drivers run a program to its end.
"""

from .admin import bump, clear, entries, flush, invalidate, invalidate_tag, tell_used, usage, whereabouts
from .begin import END_MARK, NOTHING_UNSENT, Held, Unsent, abandon, begin, fail, finish, publish_call
from .compute import get_or_compute
from .find import lookup, stand_in
from .many import get_many, get_or_compute_many, store_many
from .state import AT_ONCE, META, Ask, Partition, State, Word
from .stream import Behind, Elsewhere, end, fallback, is_followed, pull, read_ahead, rest, take_up, tune_in
from .write import PEEK, Given, is_outdated, not_encoded, not_stored, note_stored, store, store_call, tidy_up

__all__ = [
    "AT_ONCE",
    "END_MARK",
    "META",
    "NOTHING_UNSENT",
    "PEEK",
    "Ask",
    "Behind",
    "Elsewhere",
    "Given",
    "Held",
    "Partition",
    "State",
    "Unsent",
    "Word",
    "abandon",
    "begin",
    "bump",
    "clear",
    "end",
    "entries",
    "fail",
    "fallback",
    "finish",
    "flush",
    "get_many",
    "get_or_compute",
    "get_or_compute_many",
    "invalidate",
    "invalidate_tag",
    "is_followed",
    "is_outdated",
    "lookup",
    "not_encoded",
    "not_stored",
    "note_stored",
    "publish_call",
    "pull",
    "read_ahead",
    "rest",
    "stand_in",
    "store",
    "store_call",
    "store_many",
    "take_up",
    "tell_used",
    "tidy_up",
    "tune_in",
    "usage",
    "whereabouts",
]
