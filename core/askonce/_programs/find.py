"""The read path: fetch an entry, keep step with the control word, judge what was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._effects import Fetched, Program, ask, decode, fetch, invoke
from ..entry import TAGGED, Corrupt, Entry, parse
from ..errors import BackendUnavailable
from ..policy import Freshness
from ..scripts import BUMP, CONTROL
from ..served import AnyServed, Served, Source
from .state import Ask, Partition, State, Word, parse_word

#: A control word that moves at every turn means a storm of bumps: then this call does without.
_MOST_TURNS = 4


@dataclass(frozen=True, slots=True)
class Found:
    """An entry and what may be done with it; ``seen`` is its fence, by which a lease to replace it is asked for."""

    seen: bytes
    freshness: Freshness = Freshness.DEAD
    value: Any = None
    age: float = 0.0
    ttl: float = 0.0

    def served(self, source: Source) -> AnyServed:
        """Return this entry as the outcome of a request."""
        return Served(self.value, source, self.age, self.ttl)


def lookup(state: State, wanted: Ask, fetched: Fetched | None = None) -> Program[AnyServed | None]:
    """Serve what is stored, fresh or stale, or return None."""
    if not wanted.read:
        return None
    try:
        found = yield from find(state, wanted, fetched)
    except BackendUnavailable:
        failed(state)
        found = None
    return serve(state, found)


def serve(state: State, found: Found | None) -> AnyServed | None:
    """Serve what was found if it may be served as it is, and count it; a miss is counted too."""
    if found is not None and found.freshness is Freshness.FRESH:
        state.counters.add("hits")
        return found.served(Source.HIT)
    if found is not None and found.freshness is Freshness.STALE:
        state.counters.add("stale")
        return found.served(Source.STALE)
    state.counters.add("misses")
    return None


def find(state: State, wanted: Ask, fetched: Fetched | None = None) -> Program[Found | None]:
    """
    Return what is stored for *wanted*, judged, or None.

    *fetched* is a reply that the driver's straight path already has.  An entry that cannot be used is returned as
    DEAD: its fence is needed to replace it.
    """
    part = wanted.partition
    for _ in range(_MOST_TURNS):
        word = part.word or (yield from connect(part))
        if fetched is None:
            fetched = yield from fetch(part.index, (word.prefix + wanted.digest,))
        if (yield from keep_step(state, part, word, fetched.word)):
            return (yield from judge(state, wanted, fetched.entries[0], fetched.now_ms))
        fetched = None
    raise BackendUnavailable("the control word moves faster than this call can read")


def connect(part: Partition) -> Program[Word]:
    """Return the partition's control word, written first if there is none."""
    controlled = yield from invoke(CONTROL, part.index, (part.names.c,))
    word = parse_word(controlled.word)
    if word is None:
        raise BackendUnavailable(f"{part.names.c!r} holds {controlled.word!r}, which is no control word")
    part.word = word
    return word


def keep_step(state: State, part: Partition, used: Word, raw: bytes | None) -> Program[bool]:
    """
    Compare the control word that Redis holds with the one that was *used*; return whether the reply may be judged.

    Lost (by an eviction, a failover, a foreign FLUSHDB): a first one is written again.  Behind ours: a failover
    lost a bump, ours is given back.
    """
    if raw == used.raw:
        return True
    word = parse_word(raw) if raw else None
    if word is None:
        part.word = None
        yield from connect(part)
        return False
    if word.generation < used.generation:
        given_back = yield from invoke(
            BUMP, part.index, (part.names.c, part.names.w), used.generation, state.publish
        )
        word = parse_word(given_back) or word
    part.word = word
    return word.generation == used.generation


def judge(state: State, wanted: Ask, data: bytes | None, now_ms: int) -> Program[Found | None]:
    """Return what may be done with the stored bytes *data*, or None if there is nothing to replace either."""
    if data is None:
        return None
    seen = data[8:16]
    entry = parse(data)
    word = wanted.partition.word
    if entry is None or word is None:
        if len(data) < 4 or not data[3] & 128:  # a grave is no corruption
            state.counters.add("corrupt")
        return Found(seen)
    if entry.generation != word.generation:
        return Found(seen)
    if (yield from _tag_invalidated(wanted.partition, entry, word)):
        return Found(seen)
    age = max(now_ms - entry.created, 0) / 1000
    freshness = wanted.policy.judge(entry.fresh_until, now_ms)
    if freshness is Freshness.DEAD or (wanted.max_age is not None and age > wanted.max_age):
        return Found(seen)
    try:
        value = yield from decode(entry.flags, entry.payload)
    except Corrupt:
        state.counters.add("corrupt")
        return Found(seen)
    return Found(seen, freshness, value, age, max(entry.fresh_until - now_ms, 0) / 1000)


def _tag_invalidated(part: Partition, entry: Entry, word: Word) -> Program[bool]:
    if not entry.flags & TAGGED or entry.sequence >= word.sequence:
        return False
    if part.tags_until < word.sequence:
        yield from _read_tags(part, word)
    if entry.sequence < part.tags_floor:
        return True
    return any(part.tags.get(tag.hex().encode(), 0) > entry.sequence for tag in entry.tags)


def _read_tags(part: Partition, word: Word) -> Program[None]:
    (reply,) = yield from ask(
        part.index, ("ZRANGE", part.names.tv, f"({part.tags_until}", "+inf", "BYSCORE", "WITHSCORES")
    )
    latest = 0
    for tag, score in zip(reply[::2], reply[1::2], strict=True):
        sequence = int(float(score))
        latest = max(latest, sequence)
        if tag == b"#":
            part.tags_floor = max(part.tags_floor, sequence)
        else:
            part.tags[tag] = sequence
    if latest < word.sequence:
        # The invalidation that raised the sequence is not in the list: the list was lost (evicted, deleted).
        # Which tags it held is unknown, so every entry with tags that is older is refused.
        part.tags_floor = word.sequence
    part.tags_until = word.sequence


def failed(state: State) -> None:
    """Count a failure of Redis; call it in an ``except BackendUnavailable``: under ``strict`` it raises that again."""
    state.counters.add("backend_errors")
    if state.strict:
        raise  # noqa: PLE0704  re-raises the caller's exception
