"""The write path: store an entry, keep the books within their limits and in agreement with what Redis holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .._effects import Encoded, Program, Renewal, ScriptCall, ask, detach, encode, invoke, invoke_many
from .._flights import Landed
from ..entry import LABELLED, OVERHEAD, TAGGED, label_block, tag_block
from ..errors import BackendUnavailable, Moved, OutOfMemory, Uncacheable
from ..keys import Names
from ..policy import Refused
from ..scripts import FENCED_OFF, HEAL, MOVED, RELEASE, REPLACED, STORE, STORED, TOO_LARGE, TRIM, Arg, Stored
from .find import connect, failed
from .state import Ask, Partition, State, Word, chunks, parse_word

#: Entries that a store sweeps, and victims that it asks to be named for the next one (redis.md measured both).
_SWEEP: Final = 16
PEEK: Final = 4
#: Victims of one trim: about 0.4 ms of the server.
_TRIM: Final = 64
#: Trims that a caller waits for; the rest runs in the background.
_FOREGROUND_TRIMS: Final = 8
#: Between two samples of the books that are compared with their entries.
_HEAL_MS: Final = 60_000
#: Between two times that room is made in a Redis that is out of memory.
_SHED_MS: Final = 1_000
#: How long a failure is shared with those who waited for it.
TOMBSTONE_MS: Final = 300

_COUNTED = {FENCED_OFF: "fenced_off", TOO_LARGE: "too_large", MOVED: "outdated"}


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that this caller holds: the right to compute, and the fence by which its store is judged."""

    word: Word
    fence: int
    token: bytes

    @property
    def holder(self) -> bytes:
        """The value of the lease key while it is ours."""
        return b"%d:%d:%b" % (self.word.generation, self.fence, self.token)

    def renewal(self, wanted: Ask) -> Renewal:
        """Return what keeps this lease while the caller's function runs."""
        part = wanted.partition
        key, running = part.names.k + wanted.digest, part.names.r + b"%b:%d" % (wanted.digest, self.fence)
        return Renewal(part.index, key, running, self.holder, wanted.policy.lease_ms)


def store(
    state: State, wanted: Ask, value: Any, cost_ms: int, encoded: Encoded | None = None
) -> Program[bool]:
    """Store *value*, *encoded* if it is already, without a lease: the last writer wins.  Return whether it was stored."""
    if not wanted.write:
        return False
    if encoded is None:
        encoded = yield from encode_for_store(state, value, cost_ms)
    if encoded is None:
        return False
    try:
        return (yield from write(state, wanted, encoded, None)) in {STORED, REPLACED}
    except BackendUnavailable as error:
        return (yield from not_stored(state, wanted.partition, wanted.now_ms, error))


def not_stored(state: State, part: Partition, now_ms: int, error: BackendUnavailable) -> Program[bool]:
    """Count a store that failed, make room if Redis has none, and return False; a strict cache raises."""
    failed(state, error)
    yield from shed(state, part, now_ms, error)
    return False


def encode_for_store(state: State, value: Any, cost_ms: int) -> Program[Encoded | None]:
    """Return *value* encoded, None if admission refuses it; raise Uncacheable if it cannot be stored.  Counted."""
    try:
        return (yield from encode(value, cost_ms))
    except (Refused, Uncacheable) as error:
        not_encoded(state, error)
    return None


def not_encoded(state: State, error: Refused | Uncacheable) -> None:
    """Count why a value is not to be stored; raise Uncacheable again."""
    if isinstance(error, Uncacheable):
        state.counters.add("uncacheable")
        raise error
    state.counters.add_reason("rejected", error.reason)


def keep(state: State, wanted: Ask, value: Any, cost_ms: int, grant: Grant | None) -> Program[Landed]:
    """
    Store a value that was just computed, give the lease back, and return what followers are handed.

    Without a lease nothing is stored.  Never fails, unless the cache is strict: the value is in the caller's hand.
    """
    encoded = yield from admitted(state, value, cost_ms)
    if encoded is None or not wanted.write:
        yield from release(state, wanted, grant, "")
        return landing(wanted, value, encoded, grant, stored=False)
    stored = False
    if grant is not None:
        try:
            stored = (yield from write(state, wanted, encoded, grant)) in {STORED, REPLACED}
        except BackendUnavailable as error:
            yield from release(state, wanted, grant, "")
            yield from shed(state, wanted.partition, wanted.now_ms, error)
            failed(state, error)
    return landing(wanted, value, encoded, grant, stored=stored)


def admitted(state: State, value: Any, cost_ms: int) -> Program[Encoded | None]:
    """Return *value* encoded, or None, counted, if admission or its codec refuses it: it is still the answer."""
    try:
        return (yield from encode(value, cost_ms))
    except GeneratorExit:
        raise
    except Refused as refusal:
        state.counters.add_reason("rejected", refusal.reason)
    except Exception:  # noqa: BLE001  the codec is the user's
        state.counters.add("uncacheable")
    return None


def landing(wanted: Ask, value: Any, encoded: Encoded | None, grant: Grant | None, *, stored: bool) -> Landed:
    """Return what the followers of this computation are handed."""
    fence = grant.fence if grant else 0
    if encoded is None:
        return Landed(0, None, value, 0.0, fence)
    ttl = lifetime_ms(wanted, encoded) / 1000 if stored else 0.0
    return Landed(encoded.flags, encoded.payload, None, ttl, fence)


def lifetime_ms(wanted: Ask, encoded: Encoded) -> int:
    """Return the freshness lifetime: what admission says, else the call, else the policy; with jitter."""
    ttl_ms = wanted.ttl_ms if encoded.ttl_ms is None else encoded.ttl_ms
    return wanted.policy.lifetime_ms(ttl_ms, wanted.draw)


def write(state: State, wanted: Ask, encoded: Encoded, grant: Grant | None) -> Program[int]:
    """
    Run ``store`` and what it makes necessary; return its code, counted.

    What was computed under a lease is refused once the generation has moved.  A value that was not computed under
    anything is stored under the generation that is current.
    """
    part = wanted.partition
    current = grant.word if grant else part.word or (yield from connect(state, part))
    stored = yield from _store(state, wanted, current, encoded, grant)
    if is_outdated(part, stored) and grant is None:
        current = yield from connect(state, part)
        stored = yield from _store(state, wanted, current, encoded, None)
    yield from settle(state, part, stored)
    return stored.code


def is_outdated(part: Partition, stored: Stored) -> bool:
    """Return whether a store was refused because the generation has moved; then the control word is to be read anew."""
    if stored.code != MOVED:
        return False
    part.word = None
    return True


def _store(state: State, wanted: Ask, word: Word, encoded: Encoded, grant: Grant | None) -> Program[Stored]:
    keys, args = store_call_of(state, wanted, word, encoded, grant)
    stored = yield from invoke(STORE, wanted.partition.index, keys, *args)
    state.drop_near((wanted.digest,))
    return stored


def store_call_of(
    state: State, wanted: Ask, word: Word, encoded: Encoded, grant: Grant | None
) -> tuple[tuple[bytes, ...], tuple[Arg, ...]]:
    """Return keys and arguments of the ``store`` for *wanted*; without a lease its value was computed just now."""
    ttl_ms, window_ms = lifetime_ms(wanted, encoded), wanted.policy.window_ms
    if not wanted.tags and wanted.label is None:
        flags, body = encoded.flags, encoded.payload
    else:
        flags = encoded.flags | (TAGGED if wanted.tags else 0) | (LABELLED if wanted.label is not None else 0)
        body = label_block(wanted.label) + tag_block(wanted.tags) + encoded.payload
    part, digest = wanted.partition, wanted.digest
    victims, tidy = part.take_victims(PEEK), part.is_to_sweep(wanted.now_ms)
    command = part.names, part.publish, word, digest, flags, body, ttl_ms, window_ms
    return store_call(state, *command, victims=victims, tidy=tidy, grant=grant)


def store_call(
    state: State,
    names: Names,
    publish: bytes,
    word: Word,
    digest: bytes,
    flags: int,
    body: bytes,
    ttl_ms: int,
    window_ms: int,
    *,
    victims: Sequence[bytes] = (),
    tidy: bool = False,
    grant: Grant | None = None,
) -> tuple[tuple[bytes, ...], tuple[Arg, ...]]:
    """Return keys and arguments of a ``store``; with *tidy* it sweeps, and the *victims* are those it evicts."""
    member = word.prefix + digest
    keys = (names.l, names.x, names.e + member, names.c, names.k + digest, names.w)
    args: tuple[Arg, ...] = (
        word.generation,
        member,
        flags,
        word.sequence if grant else b"",
        body,
        ttl_ms,
        window_ms,
        state.max_entries,
        state.max_units,
        OVERHEAD,
        _SWEEP,
        PEEK,
        grant.fence if grant else b"",
        grant.holder if grant else b"",
        publish,
        b"d" + digest,
        int(tidy),
    )
    return (*keys, *[names.e + victim for victim in victims[::2]]), (*args, *victims)


def settle(state: State, part: Partition, stored: Stored) -> Program[None]:
    """Count what a store did, and do what it left."""
    if note_stored(state, part, stored):
        yield from tidy_up(state, part, stored)


def note_stored(state: State, part: Partition, stored: Stored) -> bool:
    """Count what a store did, and keep what it said; return whether it left anything to ``tidy_up``."""
    counters = state.counters
    counters.add(_COUNTED.get(stored.code, "stored"))
    if stored.code == REPLACED:
        counters.add("replaced")
    if stored.swept > 0:
        counters.add("expired", stored.swept)
    if stored.evicted:
        counters.add("evicted", stored.evicted)
    part.victims = part.victims or stored.victims
    part.note_pressure(stored.victims, stored.now_ms)
    if 0 <= stored.swept < _SWEEP:
        part.swept_ms = stored.now_ms
    part.healed_ms = part.healed_ms or stored.now_ms
    return bool(stored.over) or _is_to_heal(part, stored)


def tidy_up(state: State, part: Partition, stored: Stored) -> Program[None]:
    """Trim what is still over a limit, heal what looked wrong."""
    if stored.over:
        part.over = True
        if not part.making_room:
            yield from _make_room(state, part)
    if _is_to_heal(part, stored):
        part.healed_ms = stored.now_ms
        yield from detach(heal(state, part, part.take_suspects()))


def _is_to_heal(part: Partition, stored: Stored) -> bool:
    return bool(part.suspects) or stored.now_ms - part.healed_ms >= _HEAL_MS


def _make_room(state: State, part: Partition) -> Program[None]:
    """Trim for all callers here whose store found the partition over a limit: one of them at a time."""
    part.making_room = True
    try:
        for _ in range(_FOREGROUND_TRIMS):
            part.over = False
            if not (yield from trim(state, part)) and not part.over:
                return
    except BackendUnavailable:
        state.counters.add("backend_errors")  # what was stored is stored
        return
    finally:
        part.making_room = False
    yield from detach(drain(state, part))


def trim(state: State, part: Partition, max_units: int | None = None) -> Program[bool]:
    """Evict the named victims, sweep the expired; return whether there is more to do."""
    most = state.max_units if max_units is None else min(max_units, state.max_units)
    victims = part.take_victims(_TRIM)
    keys = (part.names.l, part.names.x, *(part.names.e + victim for victim in victims[::2]))
    trimmed = yield from invoke(TRIM, part.index, keys, _TRIM, state.max_entries, most, _TRIM, *victims)
    state.counters.add("expired", trimmed.swept)
    state.counters.add("evicted", trimmed.evicted)
    part.victims = trimmed.victims
    return bool(trimmed.over and trimmed.victims) or trimmed.swept == _TRIM


def drain(state: State, part: Partition) -> Program[None]:
    """Trim until the partition is within its limits: a limit was lowered, or a large entry needs much room."""
    try:
        while (yield from trim(state, part)):
            pass
    except BackendUnavailable:
        state.counters.add("backend_errors")


def shed(state: State, part: Partition, now_ms: int, error: BackendUnavailable) -> Program[None]:
    """Make room behind the caller if Redis is out of memory: a tenth of what the books hold, once a second."""
    if isinstance(error, OutOfMemory) and now_ms - part.shed_ms >= _SHED_MS:
        part.shed_ms = now_ms
        yield from detach(_shed(state, part))


def _shed(state: State, part: Partition) -> Program[None]:
    try:
        (total,) = yield from ask(part.index, ("ZSCORE", part.names.x, "#"))
        goal = int(-float(total or 0) * 0.9)
        while (yield from trim(state, part, goal)):
            pass
        yield from check_books(state, part, set(), 32)
    except BackendUnavailable:
        state.counters.add("backend_errors")


def heal(state: State, part: Partition, members: set[bytes]) -> Program[None]:
    """Make the books of *members*, and of a sample of both books, agree with their entries."""
    try:
        yield from check_books(state, part, members, 32)
    except BackendUnavailable:
        state.counters.add("backend_errors")


def check_books(state: State, part: Partition, members: set[bytes], sample: int) -> Program[int]:
    """Heal *members* and *sample* random ones of each book; return how many were corrected."""
    names = part.names
    samples = yield from ask(part.index, ("ZRANDMEMBER", names.x, sample), ("ZRANDMEMBER", names.l, sample))
    chosen = sorted(members.union(*samples) - {b"#"})
    if not chosen:
        return 0
    keys = (names.l, names.x, *(names.e + member for member in chosen))
    healed = yield from invoke(HEAL, part.index, keys, OVERHEAD, *chosen)
    state.counters.add("healed", healed.dropped + healed.adopted)
    return healed.dropped + healed.adopted


def release(
    state: State, wanted: Ask, grant: Grant | None, text: str | None, tombstone_ms: int = TOMBSTONE_MS
) -> Program[None]:
    """
    Give a lease back with nothing stored; best effort, it ends by itself.

    *text* is the error that those who wait are to raise, empty if the answer may not be stored; None hands over.
    """
    if grant is not None:
        yield from _release(state, Given(wanted, grant.holder, text, tombstone_ms))


def release_by_token(state: State, wanted: Ask) -> Program[None]:
    """Give back a lease that may have been granted: the caller was interrupted before it heard."""
    yield from _release(state, by_token(wanted))


class Given(NamedTuple):
    """A lease that is given back; see ``release``."""

    wanted: Ask
    holder: bytes
    text: str | None = None
    tombstone_ms: int = TOMBSTONE_MS

    @property
    def call(self) -> ScriptCall:
        """The call that gives it back."""
        part, digest = self.wanted.partition, self.wanted.digest
        tombstone_ms = 0 if self.text is None else self.tombstone_ms
        args = (self.holder, tombstone_ms, self.text or "", part.publish, b"d" + digest)
        return part.index, (part.names.k + digest, part.names.w), args


def by_token(wanted: Ask) -> Given:
    """Return what gives back a lease that may have been granted."""
    return Given(wanted, b"-" + wanted.token)


def release_many(state: State, given: Sequence[Given]) -> Program[None]:
    """Do what ``release`` does for several, in one round trip for each server."""
    for chunk in chunks(given):
        noted: set[int] = set()
        answers = yield from invoke_many(RELEASE, [one.call for one in chunk])
        for one, error in zip(chunk, answers, strict=True):
            if isinstance(error, BackendUnavailable):
                yield from _not_released(state, one.wanted, error, first=id(error) not in noted)
                noted.add(id(error))


def _release(state: State, given: Given) -> Program[None]:
    index, keys, args = given.call
    try:
        yield from invoke(RELEASE, index, keys, *args)
    except BackendUnavailable as error:
        yield from _not_released(state, given.wanted, error)


def _not_released(
    state: State, wanted: Ask, error: BackendUnavailable, *, first: bool = True
) -> Program[None]:
    state.counters.add("backend_errors", first)
    if isinstance(error, Moved) and wanted.partition.publish == b"PUBLISH":
        yield from _wake_all(state, wanted)


def _wake_all(state: State, wanted: Ask) -> Program[None]:
    """
    Tell who waits that the slot is another node's, where channels belong to none (Redis 6.2): any node tells all.

    A channel of a slot says so itself.
    """
    part = wanted.partition
    try:
        yield from ask(part.index, (part.publish, part.names.w, b"d" + wanted.digest))
    except BackendUnavailable:
        state.counters.add("backend_errors")


def note_word(part: Partition, raw: bytes) -> None:
    """Keep a control word that came with another reply, unless it is older than the one known."""
    word = parse_word(raw)
    if (
        word is not None
        and word.generation >= part.newest
        and (part.word is None or word[1:3] > part.word[1:3])
    ):
        part.word = word
        part.note(word)
