"""Invalidation, and what an operator asks: one entry, a tag, the whole namespace; what the books hold; what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .._effects import Program, ask, detach, invoke, invoke_many
from ..entry import LONGEST_HEAD, UNIT, parse
from ..errors import BackendUnavailable, Disagreement
from ..scripts import BUMP, FORGET, TAG, Arg
from ..stats import EntryInfo, Stats, Usage, from_counters
from .find import agree, connect, failed, is_tag_invalidated
from .state import Ask, Partition, State, Word, by_partition, chunks, parse_word
from .write import check_books, note_word, trim

#: How long a grave refuses what was computed before an invalidation: longer than calls to a model take.
_GRAVE_MS: Final = 600_000
#: Generations that one invalidation follows.
_MOST_TURNS: Final = 4
#: Invalidated tags that are kept; see tag.lua for what becomes of older ones.
_TAGS_KEPT: Final = 10_000
#: Entries of an old generation that one call sweeps.
_SWEEP_AT_ONCE: Final = 64
#: Members of each book that ``usage`` compares with their entries.
_SAMPLE: Final = 256
#: Entries that one round trip of ``entries`` describes.
_PAGE: Final = 64


def invalidate(state: State, asks: Sequence[Ask]) -> Program[int]:
    """Remove entries and refuse what is being computed for them.  Return how many there were."""
    removed = 0
    for part, group in by_partition(asks):
        for chunk in chunks(group):
            digests = [wanted.digest for wanted in chunk]
            _ground(state, digests)
            try:
                removed += yield from _forget(state, part, digests)
            except BackendUnavailable as error:
                failed(state, error)
                continue
            _ground(state, digests)
    state.counters.add("invalidated", removed)
    return removed


def _ground(state: State, digests: Sequence[bytes]) -> None:
    state.drop_near(digests)
    for digest in digests:
        state.flights.ground(digest)


def _forget(state: State, part: Partition, digests: Sequence[bytes]) -> Program[int]:
    names, removed = part.names, 0
    word = yield from connect(state, part)
    for _ in range(_MOST_TURNS):
        members = [word.prefix + digest for digest in digests]
        keys = (names.l, names.x, names.f, names.w, *(names.e + member for member in members))
        removed += yield from invoke(FORGET, part.index, keys, _GRAVE_MS, part.publish, *members)
        # A control word that was lost meanwhile is of another generation by now: its entry is another key.
        now = yield from connect(state, part)
        if now.generation == word.generation:
            break
        word = now
    return removed


def invalidate_tag(state: State, tag: bytes) -> Program[bool]:
    """
    Make every entry with this tag unreachable, whatever their number.

    Return whether Redis has noted it in all partitions; those that can be told are.
    """
    errors: list[BackendUnavailable] = []
    reached: list[Partition] = []
    for part in state.partitions:
        try:
            if part.word is None:
                yield from connect(state, part)
            reached.append(part)
        except BackendUnavailable as error:
            errors.append(error)
    calls = [
        (part.index, (part.names.c, part.names.tv, part.names.w), (part.publish, _TAGS_KEPT, tag.hex()))
        for part in reached
    ]
    for part, word in zip(reached, (yield from invoke_many(TAG, calls)), strict=True):
        if isinstance(word, BackendUnavailable):
            errors.append(word)
        else:
            note_word(part, word)
    state.clear_near()
    _all_failed(state, errors)
    return not errors


def bump(state: State) -> Program[int]:
    """
    Make every entry unreachable; return the new generation, or 0 if some part of Redis could not be told.

    Those that can be told are, and this process tells the others as soon as it meets them again.  If none could be
    told, nothing has happened.
    """
    told, generation, errors = yield from _bump(state)
    for part in told:
        yield from detach(_sweep_behind(state, part))
    _all_failed(state, errors)
    return 0 if errors else generation


def clear(state: State) -> Program[int]:
    """Make every entry unreachable and remove all of them; return how many were removed."""
    told, _, errors = yield from _bump(state)
    removed = 0
    for part in told:
        try:
            removed += yield from _sweep(state, part)
        except BackendUnavailable as error:
            errors.append(error)
    _all_failed(state, errors)
    return removed


def _bump(state: State) -> Program[tuple[list[Partition], int, list[BackendUnavailable]]]:
    """Return the partitions that were told of a new generation, that generation, and why others were not."""
    reached: list[Partition] = []
    told: list[Partition] = []
    errors: list[BackendUnavailable] = []
    for part in state.partitions:
        try:
            yield from connect(state, part)
            reached.append(part)
        except BackendUnavailable as error:
            errors.append(error)
    generation = max(part.newest for part in state.partitions) + 1
    calls = [(part.index, (part.names.c, part.names.w), (generation, part.publish)) for part in reached]
    for part, raw in zip(reached, (yield from invoke_many(BUMP, calls)), strict=True):
        if isinstance(raw, BackendUnavailable):
            errors.append(raw)
            continue
        told.append(part)
        note_word(part, raw)
        word = parse_word(raw)
        generation = max(generation, word.generation if word else 0)
    for part in state.partitions:
        if told and part not in told:  # see ``adopt``: what is older than the newest seen is never accepted
            part.newest, part.word = max(part.newest, generation), None
    state.clear_near()
    return told, generation, errors


def _all_failed(state: State, errors: Sequence[BackendUnavailable]) -> None:
    """Count failures after all partitions were asked; a strict cache raises the first."""
    state.counters.add("backend_errors", max(len(errors) - 1, 0))
    if errors:
        failed(state, errors[0])


def tell_used(state: State, used: Mapping[bytes, float]) -> Program[None]:
    """Tell Redis which members near copies were served of, and when last: its order stays that of use."""
    homes: dict[int, list[Arg]] = {}
    for member, now_ms in used.items():
        part = state.partition_of(member.rpartition(b":")[2])
        homes.setdefault(part.index, []).extend((b"%.3f" % now_ms, member))
    for index, scores in homes.items():
        try:
            yield from ask(index, ("ZADD", state.partitions[index].names.l, "XX", "GT", *scores))
        except BackendUnavailable:
            state.counters.add("backend_errors")


def _sweep(state: State, part: Partition) -> Program[int]:
    """Remove entries of older generations: nobody touches them, so they are the head of ``l``."""
    names, swept = part.names, 0
    while True:
        word = part.word or (yield from connect(state, part))
        (head,) = yield from ask(part.index, ("ZRANGE", names.l, 0, _SWEEP_AT_ONCE - 1))
        old = [member for member in head if _older(member, word)]
        if not old:
            return swept
        keys = (names.l, names.x, names.f, names.w, *(names.e + member for member in old))
        removed = yield from invoke(FORGET, part.index, keys, 0, part.publish, *old)
        state.counters.add("invalidated", removed)
        swept += removed


def _older(member: bytes, word: Word) -> bool:
    generation, _, _ = member.partition(b":")
    return generation.isdigit() and int(generation) < word.generation


def _sweep_behind(state: State, part: Partition) -> Program[None]:
    try:
        yield from _sweep(state, part)
    except BackendUnavailable:
        state.counters.add("backend_errors")


def usage(state: State) -> Program[Usage]:
    """Return what the books hold, after expired entries have left them."""
    entries = units = 0
    known = True
    try:
        if not state.agreed:
            yield from agree(state)  # trimming by other bounds than the namespace has would evict
        for part in state.partitions:
            counted = yield from _usage(state, part)
            entries, units = entries + counted[0], units + counted[1]
    except BackendUnavailable as error:
        failed(state, error)
        entries, units, known = 0, 0, False
    count = len(state.partitions)
    return Usage(
        entries=entries,
        bytes=units * UNIT,
        max_entries=state.max_entries * count,
        max_bytes=state.max_units * UNIT * count,
        known=known,
    )


def _usage(state: State, part: Partition) -> Program[tuple[int, int]]:
    while (yield from trim(state, part)):
        pass
    yield from check_books(state, part, (yield from _expiring(part)), _SAMPLE)
    members, total = yield from ask(part.index, ("ZCARD", part.names.x), ("ZSCORE", part.names.x, "#"))
    return max(members - 1, 0), -int(float(total or 0))


def _expiring(part: Partition) -> Program[set[bytes]]:
    """Return the members that expire first: the books round up to seconds, their entries may be gone already."""
    (soonest,) = yield from ask(part.index, ("ZRANGE", part.names.x, 1, _SAMPLE))
    return set(soonest)


def entries(
    state: State, part: Partition, cursor: bytes, now_ms: int
) -> Program[tuple[bytes, list[tuple[bytes, EntryInfo]]]]:
    """
    Return some of a partition's entries by their members, and the cursor of those that follow, ``b"0"`` at the end.

    What stays in the books meanwhile is listed at least once (as ZSCAN promises), what comes or goes perhaps.
    """
    try:
        word = part.word or (yield from connect(state, part))
        ((cursor, scanned),) = yield from ask(part.index, ("ZSCAN", part.names.x, cursor, "COUNT", _PAGE))
        members = [member for member in scanned[::2] if member.startswith(word.prefix)]
        infos: list[tuple[bytes, EntryInfo]] = []
        for some in chunks(members, _PAGE):  # a small book comes whole, however many were asked for
            commands = [
                command
                for name in (part.names.e + member for member in some)
                for command in (("GETRANGE", name, 0, LONGEST_HEAD), ("STRLEN", name))
            ]
            replies = yield from ask(part.index, *commands)
            for member, data, length in zip(some, replies[::2], replies[1::2], strict=True):
                entry = parse(data)
                if entry is None or (yield from is_tag_invalidated(part, entry, word)):
                    continue
                info = EntryInfo(
                    digest=member.removeprefix(word.prefix).decode(),
                    label=entry.label,
                    age=max(now_ms - entry.created, 0) / 1000,
                    ttl=max(entry.fresh_until - now_ms, 0) / 1000,
                    bytes=length,
                )
                infos.append((member, info))
    except BackendUnavailable as error:
        failed(state, error)
        return b"0", []
    return cursor, infos


def flush(state: State) -> Program[Stats]:
    """Add this process's counters to the fleet's; return the sum, of what can be read if some of Redis is away."""
    totals: dict[str, int] = {}
    errors: list[BackendUnavailable] = []
    if state.disagreement:
        failed(state, Disagreement(state.disagreement))
        return from_counters(state.counters.peek(), fleet=False)
    for part in state.partitions:
        pending = state.counters.take()
        added = [("HINCRBY", part.names.s, name, count) for name, count in pending.items()]
        try:
            *_, reply = yield from ask(part.index, *added, ("HGETALL", part.names.s))
        except BackendUnavailable as error:
            state.counters.give_back(pending)
            errors.append(error)
            continue
        _add(totals, {name.decode(): int(count) for name, count in zip(reply[::2], reply[1::2], strict=True)})
    _all_failed(state, errors)
    if errors:
        _add(totals, state.counters.peek())
    return from_counters(totals, fleet=not errors)


def _add(totals: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, count in counts.items():
        totals[name] = totals.get(name, 0) + count


def whereabouts(state: State, part: Partition) -> Program[int | None]:
    """Return the partition's current generation, or None while Redis is away."""
    try:
        return (yield from connect(state, part)).generation
    except BackendUnavailable as error:
        failed(state, error)
        return None
