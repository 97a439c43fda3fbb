"""The read path: fetch an entry, keep step with the control word, judge what was found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .._effects import Program, Tried, ask, ask_leniently, decode, detach, fetch, invoke, tell
from .._flights import Landed
from ..entry import TAGGED, Corrupt, Entry, Unusable, cost_ms, is_grave, parse
from ..errors import BackendUnavailable, Disagreement, OutOfMemory, Unfit
from ..policy import Freshness
from ..scripts import BUMP, CONTROL, SLIDE
from ..served import AnyServed, Served, Source
from .state import META, Ask, Partition, State, Word, parse_word

_EVICTS_ANY = re.compile(rb"\nmaxmemory_policy:(allkeys-[a-z]+)\r")

#: A control word that moves at every turn means a storm of bumps: then this call does without.
_MOST_TURNS = 4

_MOST_TAGS = 20_000

#: Members whose uses are gathered in the process before they are counted in Redis.
_MOST_COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """
    An entry and what may be done with it.

    ``seen`` is its fence, by which a lease to replace it is asked for.  Of a grave nothing but that is left: what was
    computed under a lower fence was invalidated.
    """

    seen: bytes
    grave: bool = False
    freshness: Freshness = Freshness.DEAD
    value: Any = None
    age: float = 0.0
    ttl: float = 0.0
    flags: int = 0
    payload: bytes | None = None

    @property
    def least_fence(self) -> int:
        """The fence that an answer must have to be served now."""
        return int.from_bytes(self.seen, "big") if self.grave else 0

    def landed(self) -> Landed:
        """Return what those who joined the flight are handed: each decodes a value of its own."""
        return Landed(self.flags, self.payload, None, self.ttl, int.from_bytes(self.seen, "big"))

    def served(self, source: Source) -> AnyServed:
        """Return this entry as the outcome of a request."""
        return Served(self.value, source, self.age, self.ttl)


def lookup(state: State, wanted: Ask, fetched: Tried = None) -> Program[AnyServed | None]:
    """Serve what is stored, fresh or stale, or return None."""
    if not wanted.read:
        return None
    try:
        found = yield from find(state, wanted, fetched)
    except BackendUnavailable as error:
        failed(state, error)
        found = None
    served = serve(state, found)
    if served is not None:
        yield from use(state, wanted, served)
    return served


def serve(state: State, found: Found | None) -> AnyServed | None:
    """Serve what was found if it may be served as it is, and count it; a miss is counted too."""
    if found is not None and found.freshness in {Freshness.FRESH, Freshness.EARLY}:
        state.counters.add("hits")
        return found.served(Source.HIT)
    if found is not None and found.freshness is Freshness.STALE:
        state.counters.add("stale")
        return found.served(Source.STALE)
    state.counters.add("misses")
    return None


def stand_in(state: State, found: Found | None) -> AnyServed | None:
    """Serve what was found in place of an error (RFC 5861, 4), if it may be, and count it."""
    if found is None or found.freshness is not Freshness.EXPIRED:
        return None
    state.counters.add("stale_if_error")
    return found.served(Source.STALE_IF_ERROR)


def find(state: State, wanted: Ask, fetched: Tried = None) -> Program[Found | None]:
    """
    Return what is stored for *wanted*, judged, or None.

    *fetched* is what the driver's straight path has read already, or failed to.  An entry that cannot be used is
    returned as DEAD: its fence is needed to replace it.
    """
    if isinstance(fetched, BackendUnavailable):
        raise fetched
    part = wanted.partition
    for _ in range(_MOST_TURNS):
        word = part.word or (yield from connect(state, part))
        if fetched is None:
            fetched = yield from fetch(part.index, (word.prefix + wanted.digest,))
        in_step = yield from keep_step(state, part, word, fetched.word)
        if in_step is not None:
            return (yield from judge(state, wanted, in_step, fetched.entries[0], fetched.now_ms))
        fetched = None
    raise BackendUnavailable("the control word moves faster than this call can read")


def connect(state: State, part: Partition) -> Program[Word]:
    """Return the partition's control word, written first if there is none."""
    if not state.agreed:
        yield from agree(state)
    controlled = yield from invoke(CONTROL, part.index, (part.names.c,))
    word = _parsed(part, controlled.word)
    if controlled.written and word.raw != part.newest_raw and word.generation <= part.newest:
        # It was lost less than a second after it was written: the clock alone would bring old entries back.
        part.newest += 1
    return (yield from adopt(part, word))


def agree(state: State) -> Program[None]:
    """
    Fix the layout of the namespace if nobody has; raise Disagreement if it was fixed otherwise.

    Processes with different numbers of partitions would not find each other's entries and, worse, not hear of each
    other's invalidations.
    """
    if state.disagreement:
        raise Disagreement(state.disagreement)
    everything = ("HGETALL", state.meta)
    (reply,) = yield from ask(META, everything)
    fixed = _fields(reply)
    missing = [
        ("HSETNX", state.meta, name, value) for name, value in state.layout.items() if name not in fixed
    ]
    if missing:
        try:  # somebody else may be doing it, too: what stands there in the end holds
            *_, reply = yield from ask(META, *missing, everything)
            fixed = _fields(reply)
        except (OutOfMemory, Unfit):
            pass  # full, or a replica: what is stored can be served
    others = [name for name, value in state.layout.items() if fixed.get(name, str(value)) != str(value)]
    if others:
        there, here = (
            ", ".join(f"{name}={layout[name]}" for name in others) for layout in (fixed, state.layout)
        )
        state.disagreement = (
            f"{state.meta.decode()} says {there}, this cache has {here}: make it like the others, or in a namespace "
            "of its own"
        )
        yield from tell("disagreement", state.disagreement)
        raise Disagreement(state.disagreement)
    state.agreed = len(fixed) >= len(state.layout)
    if state.agreed and not state.looked:
        state.looked = True
        yield from detach(warn_of_eviction(state))


def warn_of_eviction(state: State) -> Program[None]:
    """Tell the operator if a server evicts any key it likes: the books too (redis.io, "Key eviction")."""
    for part in state.partitions:
        try:
            (info,) = yield from ask_leniently(part.index, ("INFO", "memory"))
        except BackendUnavailable:
            return
        policy = _EVICTS_ANY.search(info) if isinstance(info, bytes) else None  # INFO may not be permitted
        if policy and b"\nmaxmemory:0\r" not in info:
            name = policy[1].decode()
            yield from tell(
                "eviction",
                f"maxmemory-policy {name} lets Redis evict the books by which askonce keeps its bounds: they heal, but "
                "entries may be counted late; give askonce a server with noeviction or a volatile policy",
            )
            return


def _fields(reply: list[bytes]) -> dict[str, str]:
    texts = [item.decode("utf-8", "replace") for item in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def adopt(part: Partition, word: Word) -> Program[Word]:
    """Make *word* the partition's control word; if it is older than one seen before, give that back to Redis."""
    if word.generation < part.newest:  # a failover, or a restored backup, lost a bump
        keys = (part.names.c, part.names.w)
        word = _parsed(part, (yield from invoke(BUMP, part.index, keys, part.newest, part.publish)))
    part.note(word)
    part.word = word
    return word


def _parsed(part: Partition, raw: bytes) -> Word:
    word = parse_word(raw)
    if word is None:
        raise BackendUnavailable(f"{part.names.c!r} holds {raw!r}, which is no control word")
    return word


def keep_step(state: State, part: Partition, used: Word, raw: bytes | None) -> Program[Word | None]:
    """
    Compare the control word that Redis holds with the one that was *used*.

    Return the word to judge the reply by, or None: it was asked for under another generation.  A word that was lost
    (by an eviction, a failover, a foreign FLUSHDB) is written again.
    """
    if raw == used.raw:
        return used
    word = parse_word(raw) if raw else None
    if word is None:
        state.agreed = False  # more may have been lost
        yield from connect(state, part)
        return None
    adopted = yield from adopt(part, word)
    return adopted if adopted.generation == used.generation == word.generation else None


def judge(state: State, wanted: Ask, word: Word, data: bytes | None, now_ms: int) -> Program[Found | None]:
    """
    Return what may be done with the stored bytes *data*, or None if there is nothing to replace either.

    *word* is the control word that came with them, not the partition's: another thread may be ahead, or behind.
    """
    if data is None:
        return None
    seen = data[8:16]
    entry = parse(data)
    if entry is None:
        if is_grave(data):
            return Found(seen, grave=True)
        state.counters.add("corrupt")
        return Found(seen)
    if entry.generation != word.generation:
        return Found(seen)
    if (yield from is_tag_invalidated(wanted.partition, entry, word)):
        return Found(seen)
    now_ms = max(now_ms, entry.created)  # the estimate of the server's clock may be behind
    age = (now_ms - entry.created) / 1000
    freshness = wanted.policy.judge(entry.fresh_until, now_ms)
    if freshness is Freshness.DEAD or (wanted.max_age is not None and age > wanted.max_age):
        return Found(seen)
    payload = entry.payload
    if freshness is Freshness.FRESH and wanted.policy.is_early(
        entry.fresh_until, now_ms, cost_ms(payload), wanted.draw
    ):
        freshness = Freshness.EARLY
    try:
        value = yield from decode(entry.flags, payload)
    except Corrupt as error:
        if not isinstance(error, Unusable):
            state.counters.add("corrupt")
        return Found(seen)
    ttl = max(entry.fresh_until - now_ms, 0) / 1000
    return Found(seen, freshness=freshness, value=value, age=age, ttl=ttl, flags=entry.flags, payload=payload)


def is_tag_invalidated(part: Partition, entry: Entry, word: Word) -> Program[bool]:
    """Return whether one of the entry's tags was invalidated after it was computed."""
    if not entry.flags & TAGGED or entry.sequence >= word.sequence:
        return False
    if part.tags_until < word.sequence:
        yield from _read_tags(part, word)
    if entry.sequence < part.tags_floor:
        return True
    return any(part.tags.get(tag.hex().encode(), 0) > entry.sequence for tag in entry.tags)


def _read_tags(part: Partition, word: Word) -> Program[None]:
    if len(part.tags) > _MOST_TAGS:  # twice what Redis keeps: read its list anew
        part.tags, part.tags_until = {}, 0
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


def use(state: State, wanted: Ask, served: AnyServed) -> Program[None]:
    """Count a use towards ``Policy.hot``; in batches of an eighth of the threshold, behind the caller."""
    hot, part, word = wanted.policy.hot, wanted.partition, wanted.partition.word
    if hot is None or word is None:
        return
    member = word.prefix + wanted.digest
    uses = part.uses.get(member, 0) + 1
    if uses < hot.threshold // 8:
        if len(part.uses) >= _MOST_COUNTED:
            part.uses.clear()  # these uses are lost; a hot key comes back at once
        part.uses[member] = uses
        return
    part.uses.pop(member, None)
    yield from detach(_count_uses(state, wanted, member, uses, served.ttl))


def _count_uses(state: State, wanted: Ask, member: bytes, uses: int, ttl: float) -> Program[None]:
    hot, part = wanted.policy.hot, wanted.partition
    if hot is None:
        return
    counter = part.names.h + b"%d" % (wanted.now_ms // hot.window_ms)
    try:
        count, _ = yield from ask(
            part.index, ("HINCRBY", counter, member, uses), ("PEXPIRE", counter, 2 * hot.window_ms)
        )
        if (
            count >= hot.threshold and ttl * 2000 < hot.ttl_ms
        ):  # with half of it left another write is not worth it
            keys = (part.names.l, part.names.x, part.names.e + member)
            yield from invoke(
                SLIDE, part.index, keys, member, hot.ttl_ms, hot.max_age_ms, wanted.policy.window_ms
            )
            state.drop_near((wanted.digest,))  # the copy's times are the old ones
    except BackendUnavailable:
        state.counters.add("backend_errors")


def failed(state: State, error: BackendUnavailable) -> None:
    """Count a failure of Redis that this call does without it; under ``strict`` raise it."""
    state.counters.add("backend_errors")
    if state.strict:
        raise error
