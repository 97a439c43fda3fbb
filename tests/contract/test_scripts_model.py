"""
The scripts beside a model of them in Python: the same calls in any order, the same answers, the same keys afterwards.

The scripts run on a real server, through the wire that the cache uses.  The model knows nothing of Redis: dicts, and
the rules that the heads of the scripts state.  Time does not pass by waiting: what would have expired is deleted, as
Redis does it, or set back, as if it had been stored earlier.
"""

import math
import struct
from dataclasses import dataclass, field, replace

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from askonce import Cache
from askonce._call import Call
from askonce._effects import invoke
from askonce.scripts import (
    BUMP,
    CONTROL,
    FAILED,
    FENCED_OFF,
    FORGET,
    FOUND,
    GRANTED,
    HEAL,
    HELD,
    LEASE,
    MOVED,
    OUTDATED,
    PUBLISH,
    RELEASE,
    RENEW,
    REPLACED,
    SLIDE,
    STORE,
    STORED,
    TAG,
    TOO_LARGE,
    TRIM,
)

EPOCH, UNIT, OVERHEAD, HEADER = 1_704_067_200, 2**22, 384, struct.Struct(">2sBBI5Q")
LEASE_MS, TOMBSTONE_MS, GRAVE_MS, KEEP_MS = 600_000, 500_000, 700_000, 400_000
HOUR = 3_600_000

DIGESTS = [b"a" * 27, b"b" * 27]
TAGS = [f"{number:016x}" for number in range(1, 6)]
digests = st.sampled_from(DIGESTS)
tokens = st.sampled_from([b"100-one", b"100-two"])
sizes = st.sampled_from([6, 100, 1000, 4000])
bounds = st.sampled_from([(10_000, 1_000_000), (1, 1_000_000), (10_000, 30), (10_000, 10)])
numbers = st.integers(0, 1_000)


@dataclass
class Entry:
    """What stands under an entry's key: an entry, a grave, or something that a stranger wrote (fence None)."""

    length: int
    fence: int | None = None
    flags: int = 0
    generation: int = 0
    created: int = 0
    fresh: int = 0
    retained: int = 0
    sequence: int = 0
    tags: tuple[str, ...] = ()
    began: int = 0  # the turn in which its computation began: the truth that sequences stand for

    @property
    def is_grave(self):
        return self.flags >= 128


@dataclass
class Lease:
    """What stands under a lease's key: a holder's token, or the text of a failure."""

    generation: int
    fence: int
    text: bytes
    failed: bool = False

    @property
    def value(self):
        return b"%b%d:%d:%b" % (b"!" if self.failed else b"", self.generation, self.fence, self.text)


@dataclass(frozen=True)
class Grant:
    """A lease that was given out, live or long lost; ``began`` is the turn, ``sequence`` that of its control word."""

    digest: bytes
    generation: int
    fence: int
    token: bytes
    sequence: int
    began: int

    @property
    def holder(self):
        return b"%d:%d:%b" % (self.generation, self.fence, self.token)

    @property
    def member(self):
        return b"%d:%b" % (self.generation, self.digest)


@dataclass
class Model:
    """One partition, as the heads of the scripts describe it."""

    word: tuple[int, int] | None = None
    last_fence: int = 0
    entries: dict[bytes, Entry] = field(default_factory=dict)
    leases: dict[bytes, Lease] = field(default_factory=dict)
    used: dict[bytes, float] = field(default_factory=dict)  # l
    recorded: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # x: expiry and units
    total: int = 0  # of units, as the books say
    tags: dict[str, int] = field(default_factory=dict)
    floor: int | None = None
    running: dict[tuple[bytes, int], list[bytes]] = field(default_factory=dict)

    # --- the books ---

    def record(self, member, expiry_ms, units):
        there = member in self.recorded
        self.total += units - (self.recorded[member][1] if there else 0)
        self.recorded[member] = (math.ceil(expiry_ms / 1000), units)
        return there

    def drop(self, member):
        self.used.pop(member, None)
        if member not in self.recorded:
            return 0
        self.total -= self.recorded.pop(member)[1]
        return 1

    def sweep(self, limit, now_ms):
        dead = [member for member, (expiry, _) in self.recorded.items() if expiry <= now_ms // 1000]
        dead.sort(key=lambda member: (self.score(member), member))
        for member in dead[:limit]:
            self.drop(member)
        return len(dead[:limit])

    def score(self, member):
        expiry, units = self.recorded[member]
        return (expiry - EPOCH) * UNIT + units

    def over(self, bound):
        return len(self.recorded) > bound[0] or self.total > bound[1]

    def evict(self, victims, bound):
        evicted = 0
        for member, score in victims:
            if not self.over(bound):
                break
            if self.used.get(member) == score or (member not in self.used and member in self.recorded):
                self.entries.pop(member, None)
                evicted += self.drop(member)
        return evicted

    def is_near(self, bound):
        return len(self.recorded) >= bound[0] * 0.98 or self.total >= bound[1] * 0.98

    def outlook(self, count, bound):
        entries = len(self.recorded)
        if count == 0 or not self.is_near(bound):
            return []
        if len(self.used) < entries:
            return sorted(self.recorded, key=lambda member: (self.score(member), member))[:count]
        return sorted(self.used, key=lambda member: (self.used[member], member))[:count]

    # --- tags ---

    def invalidate(self, tags, keep, sequence):
        if self.floor is None:
            self.floor = sequence - 1
        self.tags |= dict.fromkeys(tags, sequence)
        beyond = len(self.tags) + 1 - keep
        if beyond > 0:
            oldest = sorted(self.tags, key=lambda tag: (self.tags[tag], tag))[:beyond]
            self.floor = self.tags[oldest[-1]]
            for tag in oldest:
                del self.tags[tag]

    def readers_refuse(self, entry):
        """What a reader decides from the header, the word and the list of tags, as the head of tag.lua says."""
        if not entry.tags or entry.sequence >= self.word[1]:
            return False
        newest = max([self.floor or 0, *self.tags.values()])
        if newest < self.word[1]:  # the list was lost
            return True
        return entry.sequence < (self.floor or 0) or any(
            self.tags.get(tag, 0) > entry.sequence for tag in entry.tags
        )


class Scripts(RuleBasedStateMachine):
    """Every rule calls one script and the model, and compares; then the whole state is compared."""

    def __init__(self, url):
        super().__init__()
        self.raw = redis.Redis.from_url(url)
        self.raw.flushdb()
        self.cache = Cache(url, namespace="model", deadline=5.0, strict=True)
        self.part = self.cache._namespace.state.partitions[0]
        self.names = self.part.names
        self.model = Model()
        self.turn = 0
        self.newest = 0  # generation
        self.grants = []
        self.fences = [0]  # given out so far
        self.victims = []  # named by the last store or trim, as Redis wrote them
        self.invalidated = {}  # tag -> turn of its last invalidation
        self.forgotten = {}  # member -> turn of its last invalidation, while its grave stands
        self.books_were_lost = False

    def teardown(self):
        self.cache.close()
        self.raw.close()

    def call(self, script, keys, *args):
        """Run a script through the driver and its wire; note when."""
        self.turn += 1
        self.before = self.micros()
        answer = self.cache._run(invoke(script, 0, keys, *args), Call())
        self.after = self.micros()
        return answer

    def micros(self):
        seconds, micros = self.raw.time()
        return seconds * 1_000_000 + micros

    def now(self, now_ms):
        """Check a time in an answer and return it."""
        assert self.before // 1000 <= now_ms <= self.after // 1000
        return now_ms

    def new_fence(self, fence, *above):
        """Check a fence that was given out: above all before it, above what it must exceed, not behind the clock."""
        assert fence > max(self.fences), "fences rise"
        assert all(fence > one for one in above)
        assert self.before <= fence <= max(self.after, *(one + 1 for one in above))
        self.fences.append(fence)
        self.model.last_fence = fence

    def used_now(self, member):
        """Take over the time of the last use that Redis noted for *member*, if it is that of this call."""
        score = self.raw.zscore(self.names.l, member)
        assert score is not None
        assert self.before / 1000 - 0.001 <= score <= self.after / 1000 + 0.001
        self.model.used[member] = score

    @property
    def raw_word(self):
        return b"%d:%d" % self.model.word

    def member(self, digest):
        return b"%d:%b" % (self.model.word[0], digest)

    def key(self, member):
        return self.names.e + member

    # --- the control word ---

    @initialize()
    def begin(self):
        self.read_the_word()

    def read_the_word(self):
        """CONTROL finds the word, or writes a first one by the clock."""
        answer = self.call(CONTROL, (self.names.c,))
        now_ms = self.now(answer.now_ms)
        if self.model.word is None:
            assert answer.written == 1
            generation, sequence = map(int, answer.word.split(b":"))
            assert (sequence, generation) == (now_ms, now_ms // 1000 - EPOCH)
            self.model.word = (generation, sequence)
        assert answer.word == self.raw_word
        if answer.written and self.model.word[0] <= self.newest:  # as a process does that remembers
            self.bumped_to(self.newest + 1)
        self.newest = max(self.newest, self.model.word[0])

    @rule(step=st.sampled_from([-1, 0, 0, 0, 1]))
    def bump(self, step):
        """BUMP sets the generation if it is greater, and never back."""
        self.bumped_to(self.model.word[0] + step)
        self.newest = max(self.newest, self.model.word[0])

    def bumped_to(self, generation):
        word = self.call(BUMP, (self.names.c, self.names.w), generation, self.part.publish)
        self.model.word = (max(self.model.word[0], generation), self.model.word[1])
        assert word == self.raw_word

    @rule(
        tags=st.lists(st.sampled_from(TAGS), min_size=1, max_size=3, unique=True),
        keep=st.sampled_from([3, 5, 100]),
    )
    def invalidate_tags(self, tags, keep):
        """TAG raises the sequence by one and notes it; the oldest tags beyond *keep* fall under the floor."""
        floor = self.model.floor
        word = self.call(TAG, (self.names.c, self.names.tv, self.names.w), self.part.publish, keep, *tags)
        self.model.word = (self.model.word[0], self.model.word[1] + 1)
        assert word == self.raw_word
        self.model.invalidate(tags, keep, self.model.word[1])
        assert floor is None or self.model.floor >= floor
        self.invalidated |= dict.fromkeys(tags, self.turn)

    # --- leases ---

    @rule(
        digest=digests,
        token=tokens,
        behind=st.sampled_from([0, 0, 0, 1]),
        seen=st.sampled_from(["nothing", "what is there", "something else"]),
        waited=st.sampled_from(["nobody", "who failed", "somebody else", "anybody"]),
    )
    def lease(self, digest, token, behind, seen, waited):
        """LEASE answers with the entry, the lease, who holds it, how they failed, or that the generation is old."""
        model, generation = self.model, self.model.word[0] - behind
        member = b"%d:%b" % (generation, digest)
        entry, held = model.entries.get(member), model.leases.get(digest)
        stored = entry.fence if entry and entry.fence is not None else 0
        invalidated = stored if entry and entry.is_grave else 0
        seen_fence = {"nothing": b"", "what is there": stored.to_bytes(8, "big"), "something else": bytes(8)}[
            seen
        ]
        waited_for = {
            "nobody": b"",
            "who failed": b"%d" % (held.fence if held else 1),
            "somebody else": b"1",
            "anybody": b"*",
        }[waited]
        keys = (self.names.c, self.key(member), self.names.k + digest, self.names.f)
        answer = self.call(LEASE, keys, generation, token, LEASE_MS, seen_fence, waited_for)

        self.now(answer.now_ms)
        assert answer.word == self.raw_word
        if behind:
            assert answer.code == OUTDATED
        elif (
            entry
            and entry.fence is not None
            and not entry.is_grave
            and seen_fence != stored.to_bytes(8, "big")
        ):
            assert (answer.code, answer.entry) == (FOUND, self.raw.get(self.key(member)))
        elif held and held.generation == generation and not held.failed and held.text == token:
            assert (answer.code, answer.fence) == (GRANTED, held.fence)  # asked again after a lost reply
        elif held and held.generation == generation and not held.failed and held.fence > invalidated:
            assert (answer.code, answer.fence, answer.token) == (HELD, held.fence, held.text)
            assert 0 < answer.left_ms <= LEASE_MS
        elif (
            held
            and held.generation == generation
            and held.failed
            and waited_for in (b"*", b"%d" % held.fence)
        ):
            assert (answer.code, answer.text) == (FAILED, held.text.decode())
        else:
            assert answer.code == GRANTED
            self.new_fence(answer.fence, model.last_fence, stored)
            model.leases[digest] = Lease(generation, answer.fence, token)
            self.grants.append(Grant(digest, generation, answer.fence, token, model.word[1], self.turn))

    @rule(
        digest=digests,
        token=tokens,
        waited=st.sampled_from(["nobody", "who failed", "somebody else"]),
        between=st.sampled_from(["nothing", "nothing", "tag", "forget", "publish"]),
        end=st.sampled_from(["store", "store", "fail", "hand over"]),
        size=sizes,
        bound=bounds,
        peek=numbers,
    )
    def compute(self, digest, token, waited, between, end, size, bound, peek):
        """LEASE by somebody who knows what is stored; if it is granted, its STORE or RELEASE, and LEASE once more."""
        self.lease(digest, token, 0, "what is there", waited)
        if not self.grants or not self.is_live(self.grants[-1]) or self.grants[-1].digest != digest:
            return
        if between == "tag":
            self.invalidate_tags(TAGS[:1], 5)
        elif between == "forget":
            self.forget([digest], GRAVE_MS)
        elif between == "publish":
            self.publish(0, [b"a", b"b"], "nothing")
            self.publish(0, [b"c"], "a part of it")
        if end == "store":
            self.store(self.grants[-1], None, size, set(TAGS[:1]), bound, peek, True)
        else:
            self.release(0, TOMBSTONE_MS if end == "fail" else 0, b"builtins.ValueError", False)
            self.lease(digest, token, 0, "what is there", waited)

    @precondition(lambda self: self.grants)
    @rule(number=numbers)
    def renew(self, number):
        """RENEW prolongs a lease, and what was published under it, for its holder alone."""
        grant = self.recent(number)
        lease, running, mine = self.names.k + grant.digest, self.running(grant), self.is_live(grant)
        if mine:
            self.raw.pexpire(lease, 1000)
            self.raw.pexpire(running, 1000)
        answer = self.call(RENEW, (lease, running), grant.holder, LEASE_MS)
        assert answer is mine
        if mine:
            assert self.raw.pttl(lease) > 1000
            assert self.raw.pttl(running) > 1000 or not self.raw.exists(running)

    @precondition(lambda self: self.grants)
    @rule(
        number=numbers,
        tombstone=st.sampled_from([0, TOMBSTONE_MS, TOMBSTONE_MS]),
        text=st.sampled_from([b"", b"builtins.ValueError"]),
        by_token=st.booleans(),
    )
    def release(self, number, tombstone, text, by_token):
        """RELEASE by the holder, or by its random part alone: the lease is free, or a failure stands in its place."""
        grant = self.recent(number)
        held = self.model.leases.get(grant.digest)
        holder = b"-" + grant.token.partition(b"-")[2] if by_token else grant.holder
        mine = held is not None and not held.failed and held.value.endswith(holder)
        keys = (self.names.k + grant.digest, self.names.w)
        answer = self.call(RELEASE, keys, holder, tombstone, text, self.part.publish, b"d" + grant.digest)
        assert answer is mine
        if mine and tombstone:
            self.model.leases[grant.digest] = replace(held, text=text, failed=True)
        elif mine:
            del self.model.leases[grant.digest]

    @precondition(lambda self: self.grants)
    @rule(
        number=numbers,
        chunks=st.lists(st.binary(max_size=3), min_size=1, max_size=3),
        lost=st.sampled_from(["nothing", "nothing", "the list", "a part of it"]),
    )
    def publish(self, number, chunks, lost):
        """PUBLISH appends chunks for the holder of the lease alone, if the list holds all that was published before."""
        grant = self.recent(number)
        running, flight = self.running(grant), (grant.digest, grant.fence)
        before = self.model.running.get(flight, [])
        if lost != "nothing" and before:
            self.raw.delete(running) if lost == "the list" else self.raw.lpop(running)
        whole = self.raw.llen(running) == len(before)
        keys = (self.names.k + grant.digest, running, self.names.w)
        words = (grant.holder, KEEP_MS, self.part.publish, b"r" + grant.digest, len(before))
        answer = self.call(PUBLISH, keys, *words, *chunks)
        if self.is_live(grant) and whole:
            self.model.running[flight] = before + chunks
            assert answer == len(before) + len(chunks)
            assert 0 < self.raw.pttl(running) <= KEEP_MS
        else:
            assert answer == 0
            assert whole or not self.is_live(grant) or not self.raw.exists(running), "a part is no beginning"
            self.raw.delete(running)
            self.model.running.pop(flight, None)

    def running(self, grant):
        return self.names.r + b"%b:%d" % (grant.digest, grant.fence)

    def recent(self, number):
        return self.grants[-1 - number % min(len(self.grants), 4)]

    def is_live(self, grant):
        held = self.model.leases.get(grant.digest)
        return held is not None and held.value == grant.holder

    # --- entries ---

    @precondition(lambda self: self.grants)
    @rule(
        number=numbers,
        size=sizes,
        tags=st.sets(st.sampled_from(TAGS), max_size=2),
        bound=bounds,
        peek=numbers,
        tidy=st.booleans(),
    )
    def store_under_a_lease(self, number, size, tags, bound, peek, tidy):
        """STORE with the fence of a lease, which may have been lost long ago."""
        self.store(self.recent(number), None, size, tags, bound, peek, tidy)

    @rule(
        digest=digests,
        size=sizes,
        tags=st.sets(st.sampled_from(TAGS), max_size=2),
        bound=bounds,
        peek=numbers,
        tidy=st.booleans(),
    )
    def store_without_a_lease(self, digest, size, tags, bound, peek, tidy):
        """STORE of a value that was computed just now: the last writer wins."""
        self.store(None, digest, size, tags, bound, peek, tidy)

    def store(self, grant, digest, size, tags, bound, peek, tidy):
        model, peek = self.model, peek % 5
        generation = grant.generation if grant else model.word[0]
        digest = grant.digest if grant else digest
        member, tags = b"%d:%b" % (generation, digest), tuple(sorted(tags))
        block = bytes([len(tags)]) + b"".join(map(bytes.fromhex, tags)) if tags else b""
        body = block + b"x" * size
        there, held = model.entries.get(member), model.leases.get(digest)
        victims, self.victims = self.victims, []
        keys = (
            self.names.l, self.names.x, self.key(member), self.names.c, self.names.k + digest, self.names.w,
            *(self.key(victim) for victim in victims[::2]),
        )  # fmt: skip
        answer = self.call(
            STORE, keys, generation, member, 8 if tags else 0, grant.sequence if grant else b"", body, HOUR, 1000,
            bound[0], bound[1], OVERHEAD, 16, peek, grant.fence if grant else b"", grant.holder if grant else b"",
            self.part.publish, b"d" + digest, int(tidy), *victims,
        )  # fmt: skip
        now_ms, units = self.now(answer.now_ms), math.ceil((48 + len(body) + OVERHEAD) / 64)
        mine = grant is not None and held is not None and held.value == grant.holder

        refusal = None
        if generation != model.word[0]:
            refusal = MOVED
        elif grant and there and there.fence is not None and there.fence > grant.fence:
            refusal = FENCED_OFF
        elif units > bound[1]:
            refusal = TOO_LARGE
        if refusal is not None:
            assert tuple(answer) == (refusal, now_ms, -1, 0, 0, [])
            if mine and refusal == TOO_LARGE:  # who waits computes at once: this failure stands for a moment
                model.leases[digest] = replace(held, text=b"", failed=True)
                self.raw.pexpire(self.names.k + digest, TOMBSTONE_MS)
            elif mine:
                del model.leases[digest]
            return
        if mine:
            del model.leases[digest]
        assert answer.code == (REPLACED if member in model.recorded else STORED)
        assert grant is None or grant.began > self.forgotten.get(member, 0), (
            "computed before it was invalidated"
        )
        self.forgotten.pop(member, None)
        (fence,) = (
            struct.unpack(">Q", self.raw.getrange(self.key(member), 8, 15))
            if self.raw.exists(self.key(member))
            else (grant.fence if grant else 0,)
        )
        if there and there.fence is not None:
            assert fence >= there.fence, "an entry is never overwritten by an older one"
        model.entries[member] = Entry(
            48 + len(body), fence, 8 if tags else 0, generation, now_ms, now_ms + HOUR, now_ms + HOUR + 1000,
            grant.sequence if grant else model.word[1], tags, grant.began if grant else self.turn,
        )  # fmt: skip
        model.record(member, now_ms + HOUR + 1000, units)
        model.used[member] = now_ms + 0.9999  # exact below, if it is still there
        if model.is_near(bound):
            self.after_eviction(answer, victims, bound, peek, 16, now_ms, member)
            return
        swept = model.sweep(16, now_ms) if tidy else -1
        assert tuple(answer)[2:] == (swept, 0, 0, [])
        self.used_now(member)
        self.victims = []

    def after_eviction(self, answer, victims, bound, peek, sweep, now_ms, member=None):
        """Compare what a store or trim says it swept, evicted and names next with the model."""
        model = self.model
        pairs = [(victim, float(score)) for victim, score in zip(victims[::2], victims[1::2], strict=True)]
        swept = model.sweep(sweep, now_ms)
        evicted = model.evict(pairs, bound)
        assert (answer.swept, answer.evicted, answer.over) == (swept, evicted, int(model.over(bound)))
        if member is not None and member in model.used:
            self.used_now(member)
        assert answer.victims[::2] == model.outlook(peek, bound)
        self.victims = answer.victims

    @rule(bound=bounds, peek=numbers, sweep=st.sampled_from([0, 1, 16, 16]))
    def trim(self, bound, peek, sweep):
        """TRIM sweeps what has expired and evicts the victims that were named, while over a bound."""
        victims, self.victims = self.victims, []
        keys = (self.names.l, self.names.x, *(self.key(victim) for victim in victims[::2]))
        answer = self.call(TRIM, keys, sweep, *bound, peek % 5, *victims)
        self.after_eviction(answer, victims, bound, peek % 5, sweep, self.now(answer.now_ms))

    @rule(digest=digests)
    def touch(self, digest):
        """A hit: noted for what is in the books, and for nothing else."""
        member = self.member(digest)
        self.before = self.micros()
        changed = self.raw.zadd(self.names.l, {member: self.before / 1000}, xx=True, ch=True)
        assert changed == (member in self.model.used)
        if member in self.model.used:
            self.model.used[member] = self.raw.zscore(self.names.l, member)

    @rule(chosen=st.lists(digests, min_size=1, unique=True), grave_ms=st.sampled_from([0, GRAVE_MS]))
    def forget(self, chosen, grave_ms):
        """FORGET removes entries, and leaves graves above every fence that was given out."""
        members = [self.member(digest) for digest in chosen]
        keys = (self.names.l, self.names.x, self.names.f, self.names.w, *map(self.key, members))
        removed = self.call(FORGET, keys, grave_ms, self.part.publish, *members)
        assert removed == sum(self.model.drop(member) for member in members)
        for member in members:
            there = self.model.entries.pop(member, None)
            if not grave_ms:
                self.forgotten.pop(member, None)
                continue
            fence = int.from_bytes(self.raw.getrange(self.key(member), 8, 15), "big")
            self.new_fence(fence, self.model.last_fence, there.fence if there and there.fence else 0)
            created = int.from_bytes(self.raw.getrange(self.key(member), 16, 23), "big")
            self.model.entries[member] = Entry(48, fence, 128, created=self.now(created))
            self.forgotten[member] = self.turn

    @rule(chosen=st.lists(digests, min_size=1, unique=True))
    def heal(self, chosen):
        """HEAL makes the books of these members agree with their entries, in both directions."""
        model, members = self.model, [self.member(digest) for digest in chosen]
        answer = self.call(HEAL, (self.names.l, self.names.x, *map(self.key, members)), OVERHEAD, *members)
        dropped = adopted = 0
        for member in members:
            entry = model.entries.get(member)
            if entry is None or entry.length <= 48:
                dropped += model.drop(member)
                continue
            units = math.ceil((entry.length + OVERHEAD) / 64)
            if model.recorded.get(member, (0, 0))[1] != units:
                adopted += 1
                model.record(member, entry.retained, units)
                expiry = self.expiry_of(member)
                assert (
                    abs(expiry - model.recorded[member][0]) <= 1
                )  # by what was left to live, not by the header
                model.recorded[member] = (expiry, units)
            if member not in model.used:
                self.used_now(member)
        assert (answer.dropped, answer.adopted) == (dropped, adopted)

    def expiry_of(self, member):
        return int(self.raw.zscore(self.names.x, member)) // UNIT + EPOCH

    @rule(
        digest=digests,
        ttl=st.sampled_from([1000, HOUR, 3 * HOUR]),
        max_age=st.sampled_from([2 * HOUR, 5 * HOUR]),
        window=st.sampled_from([0, 0, HOUR]),
    )
    def slide(self, digest, ttl, max_age, window):
        """SLIDE keeps an entry fresh for longer, within its greatest age; lifetimes never shrink."""
        member = self.member(digest)
        entry = self.model.entries.get(member)
        keys = (self.names.l, self.names.x, self.key(member))
        answer = self.call(SLIDE, keys, member, ttl, max_age, window)
        if entry is None or entry.fence is None or entry.is_grave or member not in self.model.recorded:
            assert answer == 0
            return
        limit = entry.created + max_age
        if min(self.after // 1000 + ttl, limit) <= entry.fresh:
            assert answer == 0
        elif answer:
            assert entry.fresh < answer <= limit
            assert min(self.before // 1000 + ttl, limit) <= answer <= min(self.after // 1000 + ttl, limit)
            retained = max(answer + window, entry.retained)
            self.model.entries[member] = replace(entry, fresh=answer, retained=retained)
            self.model.record(member, retained, self.model.recorded[member][1])
        else:
            assert min(self.before // 1000 + ttl, limit) <= entry.fresh

    # --- time passes, Redis evicts, strangers write ---

    @rule(digest=digests, what=st.sampled_from(["lease", "entry", "entry and record", "entry and record"]))
    def time_passes(self, digest, what):
        """A lease, a failure or an entry expires; its record stays in the books until it is swept or found dead."""
        if what == "lease":
            self.raw.delete(self.names.k + digest)
            self.model.leases.pop(digest, None)
            return
        member = self.member(digest)
        self.raw.delete(self.key(member))
        self.model.entries.pop(member, None)
        self.forgotten.pop(member, None)
        if what == "entry and record" and member in self.model.recorded:
            units = self.model.recorded[member][1]
            past = self.micros() // 1_000_000 - 10
            self.raw.zadd(self.names.x, {member: (past - EPOCH) * UNIT + units})
            self.model.recorded[member] = (past, units)

    @rule(what=st.sampled_from(["word", "fence counter", "tags", "scripts", "book x", "book l", "book l"]))
    def something_is_lost(self, what):
        """Redis evicts a key, or a failover loses it."""
        model = self.model
        match what:
            case (
                "word"
            ):  # who reads next writes another; a process that remembers a greater generation says so
                self.raw.delete(self.names.c)
                model.word = None
                self.read_the_word()
            case "fence counter":  # fences go on to rise: by the clock, and above the entry's
                self.raw.delete(self.names.f)
                model.last_fence = 0
            case "tags":  # what the list held is unknown from now on
                self.raw.delete(self.names.tv)
                model.tags, model.floor = {}, None
            case "scripts":  # a restarted server holds none: the wire loads what it needs
                self.raw.script_flush()
            case "book l":  # the only way in which the two books come to hold different members
                self.raw.delete(self.names.l)
                model.used.clear()
                self.books_were_lost = True
            case "book x":
                self.raw.delete(self.names.x)
                model.recorded.clear()
                model.total = 0
                self.books_were_lost = True

    @rule(digest=digests, size=st.sampled_from([0, 47, 48, 49, 5000]))
    def a_stranger_writes(self, digest, size):
        """Something else stands under the key of an entry."""
        member = self.member(digest)
        self.raw.set(self.key(member), b"?" * size, px=HOUR)
        retained = self.micros() // 1000 + HOUR
        self.model.entries[member] = Entry(size, retained=retained)
        self.forgotten.pop(member, None)

    @precondition(lambda self: self.books_were_lost)
    @rule()
    def both_books_are_healed(self):
        """Every member of either book, and every entry: afterwards both hold the same again."""
        members = sorted({*self.model.used, *self.model.recorded, *self.model.entries})
        if members:
            generation = self.model.word[0]
            current = [member[-27:] for member in members if member.startswith(b"%d:" % generation)]
            if current:
                self.heal(current)
            older = [member for member in members if not member.startswith(b"%d:" % generation)]
            if older:  # swept as after a bump
                keys = (self.names.l, self.names.x, self.names.f, self.names.w, *map(self.key, older))
                removed = self.call(FORGET, keys, 0, self.part.publish, *older)
                assert removed == sum(self.model.drop(member) for member in older)
                for member in older:
                    self.model.entries.pop(member, None)
        self.books_were_lost = False

    @rule(digest=digests, what=st.sampled_from(["sweep", "evict without l", "heal"]), peek=numbers)
    def upkeep(self, digest, what, peek):
        """What chance alone brings about too seldom."""
        wide, narrow = (10_000, 1_000_000), (1, 1_000_000)
        self.store(None, digest, 100, set(), wide, 0, True)
        match what:
            case "sweep":
                self.time_passes(digest, "entry and record")
                self.trim(wide, 0, 16)
            case "evict without l":  # then those that expire first are named
                for other in DIGESTS:
                    self.store(None, other, 100, set(), wide, 0, False)
                self.something_is_lost("book l")
                self.store(None, digest, 6, set(), narrow, 1 + peek % 4, False)
                self.trim(narrow, 4, 0)
            case "heal":
                self.a_stranger_writes(digest, 5000)
                self.heal([digest])

    # --- after every rule ---

    @invariant()
    def redis_holds_what_the_model_holds(self):
        """Every key of the partition, and no other; every lifetime is bounded."""
        names, model = self.names, self.model
        if model.word is None:
            return
        expected = {names.c: self.raw_word}
        expected |= {names.k + digest: lease.value for digest, lease in model.leases.items()}
        if model.last_fence:
            expected[names.f] = b"%d" % model.last_fence
        lists = {names.r + b"%b:%d" % key: chunks for key, chunks in model.running.items()}
        keys = sorted(self.raw.scan_iter(names.prefix + b"*", count=1000))
        books = {
            names.x: model.recorded or (names.x in keys),
            names.l: model.used,
            names.tv: model.floor is not None,
        }
        assert keys == sorted(
            [
                *expected,
                *lists,
                *(self.key(member) for member in model.entries),
                *(name for name in books if books[name]),
            ]
        )
        pipe = self.raw.pipeline(transaction=False)
        for name in expected:
            pipe.get(name)
        for name in lists:
            pipe.lrange(name, 0, -1)
        for member in model.entries:
            pipe.get(self.key(member)).pttl(self.key(member))
        pipe.zrange(names.x, 0, -1, withscores=True)
        pipe.zrange(names.l, 0, -1, withscores=True)
        pipe.zrange(names.tv, 0, -1, withscores=True)
        replies = iter(pipe.execute())
        assert [next(replies) for _ in expected] == list(expected.values())
        assert [next(replies) for _ in lists] == list(lists.values())
        for entry in model.entries.values():
            self.compare(entry, next(replies), next(replies))
        recorded, used, tags = (dict(next(replies)) for _ in range(3))
        assert recorded.pop(b"#", 0) == -model.total
        assert recorded == {member: model.score(member) for member in model.recorded}
        assert used == model.used
        assert tags.pop(b"#", None) == model.floor
        assert tags == {tag.encode(): sequence for tag, sequence in model.tags.items()}

    @staticmethod
    def compare(entry, data, left_ms):
        assert len(data) == entry.length
        assert 0 < left_ms <= max(GRAVE_MS, 6 * HOUR)
        if entry.fence is not None:
            assert HEADER.unpack_from(data) == (
                b"AO", 1, entry.flags, entry.generation, entry.fence, entry.created, entry.fresh, entry.retained,
                entry.sequence,
            )  # fmt: skip

    @invariant()
    def the_books_are_right(self):
        """The sum is that of the units; both books hold the same members, unless Redis evicted one of them."""
        assert self.model.total == sum(units for _, units in self.model.recorded.values())
        if not self.books_were_lost:
            assert self.model.used.keys() == self.model.recorded.keys()

    @invariant()
    def nothing_invalidated_is_served(self):
        """Whatever was lost meanwhile: no reader accepts an entry whose tag was invalidated since it was begun."""
        if self.model.word is None:
            return
        for member, entry in self.model.entries.items():
            if not entry.tags or not member.startswith(b"%d:" % self.model.word[0]):
                continue
            if any(self.invalidated.get(tag, 0) > entry.began for tag in entry.tags):
                assert self.model.readers_refuse(entry), "a reader would serve what was invalidated"


@pytest.mark.slow
def test_scripts_and_model_agree(url):
    """A hundred and fifty times fifty calls in random order: the same answers, the same keys, and every invariant after each."""
    run_state_machine_as_test(
        lambda: Scripts(url),
        settings=settings(
            max_examples=150,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_grave_is_above_what_it_buries(url):
    """Behind a clock that stepped back, and without the counter, an invalidation still refuses what began before it."""
    state = Scripts(url)
    try:
        state.begin()
        state.store_without_a_lease(
            digest=DIGESTS[0], size=6, tags=set(), bound=(10, 1000), peek=0, tidy=True
        )
        member = state.member(DIGESTS[0])
        ahead = state.micros() + 3_600_000_000  # given out while the clock was ahead
        state.raw.setrange(state.key(member), 8, ahead.to_bytes(8, "big"))
        state.raw.delete(state.names.f)
        keys = (state.names.l, state.names.x, state.names.f, state.names.w, state.key(member))
        assert state.call(FORGET, keys, GRAVE_MS, state.part.publish, member) == 1

        assert int.from_bytes(state.raw.getrange(state.key(member), 8, 15), "big") > ahead
    finally:
        state.teardown()
