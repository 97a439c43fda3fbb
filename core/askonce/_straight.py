"""
The straight path: what both drivers read, judge and note before a program is needed.

A plain hit (fresh, of the current generation, no tag of it invalidated since) is served from here in one round trip,
and so is a plain store (no lease, no tags, no label, no block of control).  What was read of anything else, or encoded,
is handed to the program, so that nothing is done twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from ._call import Call
from ._clock import Clock
from ._effects import Encoded, Fetch, Fetched
from ._programs import AT_ONCE, PEEK, Partition, State, Word, not_encoded, note_stored, store_call
from ._wire.commands import checked, pack, pack_script
from ._wire.node import Node
from .entry import HEADER, Codec, Corrupt, parse, read_plain
from .errors import BackendUnavailable, Uncacheable
from .keys import DIGEST_LENGTH
from .policy import Policy, Refused
from .scripts import STORE, Stored
from .served import AnyServed, Served, Source


class Reading:
    """What the tasks of a loop read of one partition at a time: one command for all."""

    __slots__ = ("_partition", "_straight")

    def __init__(self, straight: Straight, partition: Partition) -> None:
        self._straight, self._partition = straight, partition

    def pack(self, members: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
        """Return one write that reads *members*, and which of them it touches."""
        return self._straight.pack_fetch(self._partition, members, self._straight.clock.now())


#: What stands in a form for what is filled in, and how it looks when packed; no other word of a store is like it.
_DIGEST: Final = b"\xff" * DIGEST_LENGTH
_BODY: Final = b"\xfe"
_LIFETIME: Final = -1
_BLANKS: Final = re.compile(rb"\xff{%d}|\$1\r\n\xfe\r\n|\$2\r\n-1\r\n" % DIGEST_LENGTH)
#: Forms: one for each partition and stale window of a policy, twice.  All are made anew when there are more.
_MOST_FORMS: Final = 2_048


class _Form(NamedTuple):
    """
    A plain store, packed but for what differs from one to the next: digest (four times), body, lifetime.

    Its other words, two dozen, are the same each time.
    """

    word: Word
    publish: bytes
    pieces: list[bytes]

    def filled(self, digest: bytes, body: bytes, lifetime_ms: int) -> bytes:
        """Return the command."""
        a, b, c, d, e, f, g = self.pieces
        size, ttl = b"$%d\r\n" % len(body), b"%d" % lifetime_ms
        lifetime = b"$%d\r\n%b\r\n" % (len(ttl), ttl)
        return b"".join((a, digest, b, digest, c, digest, d, size, body, b"\r\n", e, lifetime, f, digest, g))


class Straight:
    """The straight path of one namespace in one process."""

    def __init__(
        self, state: State, clock: Clock, nodes: Sequence[Node | None], draw: Callable[[], float]
    ) -> None:
        self._state, self.clock, self._nodes, self._draw = state, clock, nodes, draw
        self._near = state.near
        self._forms: dict[tuple[int, int, int], _Form] = {}
        self.readings = [Reading(self, part) for part in state.partitions]

    # --- one request ------------------------------------------------------------------------------------------

    def near(self, part: Partition, members: Sequence[bytes]) -> Fetched | None:
        """Return what near copies hold, as if it had been fetched; None unless there is one of each member."""
        near, word = self._near, part.word
        if near is None or word is None:
            return None
        now = self.clock.now()
        copies: list[bytes] = []
        for member in members:
            data = near.get(member, now)
            if data is None:
                return None
            copies.append(data)
        self._state.counters.add("near_hits", len(copies))
        return Fetched(word.raw, copies, int(now))

    def mark(self, part: Partition) -> int:
        """Return where the near cache stands before Redis is asked; from now on it hears of changes."""
        near = self._near
        if near is None:
            return 0
        if not near.hears(part.names.w) and (node := self._nodes[part.index]) is not None:
            node.listener.watch(part.names.w, near)
        return near.mark

    def due_uses(self) -> dict[bytes, float]:
        """Return uses of near copies that Redis is to be told of, about once a second."""
        near = self._near
        if near is None or not near.is_due(self.clock.now()):
            return {}
        return near.take_used()

    def pack_fetch(self, part: Partition, members: Sequence[bytes], now: float) -> tuple[bytes, list[bytes]]:
        """
        Return one write that reads the control word and the entries, and which members it touches.

        It has one reply, and another one if it touches any.
        """
        names, touched = part.names, part.touched_lately(now)
        packed = pack(("MGET", names.c, *[names.e + member for member in members]))
        due = [member for member in members if member not in touched]
        if due:
            this_use = b"%.3f" % now
            touches = [word for member in due for word in (this_use, member)]
            packed += pack(("ZADD", names.l, "XX", "CH", *touches))
        return packed, due

    def judged(
        self,
        part: Partition,
        word: Word,
        member: bytes,
        now: float,
        mark: int,
        replies: Sequence[Any],
        policy: Policy,
        codec: Codec[Any] | None,
        usable: Callable[[Any], bool] | None,
    ) -> tuple[AnyServed | None, Fetched | None]:
        """Return the replies to ``pack_fetch`` for one member as a plain hit, or else as ``fetched`` does."""
        found = replies[0]
        if len(replies) == 1 and type(found) is list and self._near is None:  # nothing to note but the hit
            raw, data = found
            served = self.plain_hit(word, raw, data, int(now), policy, codec, usable)
            if served is not None:
                return served, None
            return None, self.fetched(part, (member,), now, mark, replies)
        fetched = self.fetched(part, (member,), now, mark, replies)
        return self.plain_hit(
            word, fetched.word, fetched.entries[0], fetched.now_ms, policy, codec, usable
        ), fetched

    def plain_hit(
        self,
        word: Word,
        raw: bytes | None,
        data: bytes | None,
        now_ms: int,
        policy: Policy,
        codec: Codec[Any] | None,
        usable: Callable[[Any], bool] | None = None,
    ) -> AnyServed | None:
        """
        Return a fresh entry, served and counted; None leaves everything to the program.

        *word* is the control word by which the member was named, *raw* the one that was read beside the entry.
        """
        if policy.hot is not None or policy.early:  # then uses are counted, or chances drawn
            return None
        if data is None or raw != word.raw:
            return None
        try:
            value, age_ms, ttl_ms = read_plain(data, word.generation, now_ms, codec, word.sequence)
        except Corrupt:  # or of another generation, no longer fresh, with tags to be asked for
            return None
        if usable is not None and not usable(value):
            return None
        self._state.counters.add("hits")
        return Served(value, Source.HIT, age_ms / 1000, ttl_ms / 1000)

    def fetched(
        self, part: Partition, members: Sequence[bytes], now: float, mark: int, replies: Sequence[Any]
    ) -> Fetched:
        """
        Return the replies to ``pack_fetch`` as an answer; a touch that failed is just lost.

        Near copies are kept of what is fresh and was not dropped since *mark*.
        """
        found = replies[0]
        word, *entries = found if type(found) is list else checked(found)
        # Out of step, what was read may be invalidated, and who still has the old word could not tell.
        if (near := self._near) is not None and part.word is not None and word == part.word.raw:
            for member, data in zip(members, entries, strict=True):
                if data is not None and (entry := parse(data)) is not None:
                    near.keep(part.names.w, member, entry, now, mark)
        if len(replies) > 1 or None in entries:
            _compare_touches(part, members, entries, replies[1:])
        return Fetched(word, entries, int(now))

    # --- one value --------------------------------------------------------------------------------------------

    def encoded(self, call: Call, value: Any, cost_ms: int) -> Encoded | None:
        """Return *value* encoded, None if admission refuses it; raise Uncacheable if it cannot be stored.  Counted."""
        try:
            return call.encode(value, cost_ms)
        except (Refused, Uncacheable) as error:
            not_encoded(self._state, error)
        return None

    def pack_store(
        self, part: Partition, word: Word, digest: bytes, encoded: Encoded, policy: Policy, ttl_ms: int | None
    ) -> bytes:
        """Return the command that stores what is *encoded*; *ttl_ms* is the caller's, if admission has none."""
        flags, payload, admitted_ms = encoded
        lifetime_ms = policy.lifetime_ms(ttl_ms if admitted_ms is None else admitted_ms, self._draw())
        state, names, publish, window_ms = self._state, part.names, part.publish, policy.window_ms
        victims = part.take_victims(PEEK) if part.victims else ()
        tidy = part.is_to_sweep(int(self.clock.now()))
        if victims or tidy:
            command = names, publish, word, digest, flags, payload, lifetime_ms, window_ms
            return pack_script(STORE, *store_call(state, *command, victims=victims, tidy=tidy))
        kind = (part.index, flags, window_ms)
        form = self._forms.get(kind)
        if form is None or form.word is not word or form.publish is not publish:
            if form is None and len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            call = store_call(state, names, publish, word, _DIGEST, flags, _BODY, _LIFETIME, window_ms)
            form = self._forms[kind] = _Form(word, publish, _BLANKS.split(pack_script(STORE, *call)))
        return form.filled(digest, payload, lifetime_ms)

    def noted(self, part: Partition, digest: bytes, stored: Stored) -> bool:
        """Note what a store did; return whether it left anything to ``tidy_up``."""
        self._state.drop_near((digest,))
        return note_stored(self._state, part, stored)

    # --- several requests of one partition --------------------------------------------------------------------

    def only_partition(self, digests: Sequence[bytes]) -> Partition | None:
        """Return the partition that all *digests* are of, if they are few enough for one round trip."""
        parts = {self._state.partition_of(digest).index for digest in digests}
        if len(parts) != 1 or len(digests) > AT_ONCE:
            return None
        return self._state.partitions[parts.pop()]

    def plain_hits(
        self, word: Word, fetched: Fetched, policy: Policy, codec: Codec[Any] | None
    ) -> tuple[dict[int, AnyServed], Fetched]:
        """Return the plain hits by their places, and what was fetched of the others."""
        hits: dict[int, AnyServed] = {}
        left: list[bytes | None] = []
        for place, data in enumerate(fetched.entries):
            served = self.plain_hit(word, fetched.word, data, fetched.now_ms, policy, codec)
            if served is None:
                left.append(data)
            else:
                hits[place] = served
        return hits, fetched._replace(entries=left)

    # --- several partitions -----------------------------------------------------------------------------------

    def near_copies(self, fetches: Sequence[Fetch]) -> dict[Fetch, Fetched | BackendUnavailable]:
        """Return what near copies can answer alone."""
        found = {one: self.near(self._state.partitions[one.partition], one.members) for one in fetches}
        return {one: fetched for one, fetched in found.items() if fetched is not None}

    def by_server(self, partitions: Sequence[int]) -> list[list[int]]:
        """Return the places of those *partitions* that one server can be asked for together."""
        groups: dict[Node | int, list[int]] = {}
        for place, index in enumerate(partitions):
            groups.setdefault(self._nodes[index] or index, []).append(place)  # alone where it is not known
        return list(groups.values())

    def marks(self, fetches: Sequence[Fetch]) -> list[int]:
        """Return the ``mark`` of each."""
        return [self.mark(self._state.partitions[one.partition]) for one in fetches]

    def pack_fetches(self, fetches: Sequence[Fetch], now: float) -> tuple[bytes, list[int]]:
        """Return one write for all, and how many replies each has."""
        parts = self._state.partitions
        packed = [self.pack_fetch(parts[one.partition], one.members, now) for one in fetches]
        return b"".join([commands for commands, _ in packed]), [2 if due else 1 for _, due in packed]

    def fetched_many(
        self,
        fetches: Sequence[Fetch],
        now: float,
        marks: Sequence[int],
        counts: Sequence[int],
        replies: Sequence[Any],
    ) -> dict[Fetch, Fetched | BackendUnavailable]:
        """Return the answer, or the error, of each."""
        answers: dict[Fetch, Fetched | BackendUnavailable] = {}
        left = iter(replies)
        for one, mark, count in zip(fetches, marks, counts, strict=True):
            part, mine = self._state.partitions[one.partition], list(islice(left, count))
            try:
                answers[one] = self.fetched(part, one.members, now, mark, mine)
            except BackendUnavailable as error:
                answers[one] = error
        return answers


def _compare_touches(
    part: Partition, members: Sequence[bytes], entries: Sequence[bytes | None], touched: Sequence[Any]
) -> None:
    """Note whose books disagree with their entries, and for whom no further use has to be told for a while."""
    changed = touched[0] if touched else None
    if len(members) == 1:
        there = entries[0] is not None and len(entries[0]) > HEADER.size  # no grave
        # 0 for an entry that is there: it is in no book.  1 for one that is not: somebody deleted it.  Not
        # touched, and not there: it was there a moment ago.
        if (not touched and not there) or (changed in (0, 1) and bool(changed) is not there):
            part.suspect(members[0])
    known = {member for member, entry in zip(members, entries, strict=True) if entry is not None}
    part.touched.difference_update(set(members) - known)
    told = known - part.touched  # the others were not told of
    if changed == len(told):
        part.touched.update(told)
