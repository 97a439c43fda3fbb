"""
Many programs at once, in several processes, over a model of the scripts: the world of ``test_simulation``.

``Server`` says in Python what the Lua scripts promise (the contract tests hold both to it).  ``World`` runs programs
in an order that a seed decides: each effect takes a random time on its way to the server and back, messages travel,
functions fail, callers are cancelled, replies are lost.  Time is virtual and in milliseconds; nothing here waits.
"""

from __future__ import annotations

import heapq
import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from askonce import BackendUnavailable, LeaderFailed, Policy, Refused
from askonce import _programs as programs
from askonce._effects import (
    TIMED_OUT,
    Ask,
    Compute,
    Computed,
    Decode,
    Detach,
    Encode,
    Encoded,
    Fetch,
    Fetched,
    Invoke,
    InvokeMany,
    Join,
    Listen,
    Sleep,
)
from askonce._flights import Flights
from askonce._programs import Held, Partition, State
from askonce.entry import FORMAT, HEADER, MAGIC, decode_payload, encode
from askonce.keys import Fingerprints, Names, tag_hash
from askonce.scripts import Controlled, Healed, Leased, Stored, Trimmed
from askonce.served import Served, Source
from askonce.stats import Counters

from .play import arguments

EPOCH_MS = 1_750_000_000_000
NAMES = Names("ns", 0)
DIGESTS = [Fingerprints("", {}).of(number) for number in range(4)]
#: The first two keys carry one tag, the others another.
TAGS = [(tag_hash("even"),), (tag_hash("even"),), (tag_hash("odd"),), (tag_hash("odd"),)]


class Boom(Exception):
    """The caller's function fails."""


class Cancelled(BaseException):
    """The caller is cancelled."""


# --- the server ---------------------------------------------------------------------------------------------------


class Server:
    """One partition, as the scripts treat it."""

    def __init__(self, clock: Callable[[], float], publish: Callable[[bytes], None]) -> None:
        self._clock, self._publish = clock, publish
        self.step_ms = 0
        self.word: bytes | None = None
        self.fence = 0
        self.entries: dict[bytes, tuple[bytes, int]] = {}
        self.leases: dict[bytes, tuple[bytes, int]] = {}
        self.tags: dict[bytes, int] = {}
        self.counters: dict[bytes, int] = {}
        #: The greatest fence of a grave, by member.
        self.graves: dict[bytes, int] = {}
        #: When each lease ended other than by its time.
        self.ended: dict[int, float] = {}

    def now(self) -> int:
        return EPOCH_MS + int(self._clock()) + self.step_ms

    def _get(self, table: dict[bytes, tuple[bytes, int]], key: bytes) -> bytes | None:
        value, until = table.get(key, (None, 0))
        if value is not None and until <= self.now():
            del table[key]
            return None
        return value

    def live_lease(self, digest: bytes) -> bytes | None:
        held = self._get(self.leases, digest)
        return held if held is not None and not held.startswith(b"!") else None

    def answer(self, effect: Any) -> Any:
        """Perform an effect as one step."""
        match effect:
            case Fetch(_, members):
                return Fetched(self.word, [self._get(self.entries, member) for member in members], self.now())
            case Invoke(script, _, keys, args):
                return self._run(script, keys, args)
            case InvokeMany(script, calls):
                return [self._run(script, keys, args) for _, keys, args in calls]
            case Ask(_, commands):
                return [self._command(*command) for command in commands]
        raise AssertionError(effect)

    def _run(self, script: Any, keys: tuple[bytes, ...], args: tuple[Any, ...]) -> Any:
        given = {name.rstrip("."): value for name, value in arguments(script, args).items()}
        return getattr(self, "do_" + script.name)(keys, given, args)

    def _command(self, *words: Any) -> Any:
        match words:
            case ("ZRANGE", NAMES.tv, after, "+inf", "BYSCORE", "WITHSCORES"):
                found = sorted((score, tag) for tag, score in self.tags.items() if score > int(after[1:]))
                return [item for score, tag in found for item in (tag, b"%d" % score)]
            case ("ZRANGE", NAMES.l, 0, last):
                return sorted(self.entries, key=lambda member: int(member.split(b":")[0]))[: last + 1]
            case ("HGETALL", *_):
                return [item for name, count in self.counters.items() for item in (name, b"%d" % count)]
            case ("HINCRBY", _, name, count):
                name = name.encode() if isinstance(name, str) else name
                self.counters[name] = self.counters.get(name, 0) + count
                return self.counters[name]
            case ("ZRANDMEMBER", *_):
                return []
            case ("PEXPIRE", *_):
                return 1
            case ("EXISTS", *_):  # nobody follows a stream from elsewhere
                return 0
        raise AssertionError(words)

    def do_control(self, keys: Any, given: Any, args: Any) -> Controlled:
        written = self.word is None
        if self.word is None:
            self.word = b"%d:%d" % (self.now() // 1000 - 1_704_067_200, self.now())
        return Controlled(self.now(), self.word, int(written))

    def do_lease(self, keys: Any, given: Any, args: Any) -> Leased:
        now, word = self.now(), self.word or b""
        generation = b"%d" % given["generation"]
        if word.partition(b":")[0] != generation:
            return Leased(5, now, word)
        entry = self._get(self.entries, keys[1].removeprefix(NAMES.e))
        stored = invalidated = 0
        if entry is not None and len(entry) >= 48 and entry[:3] == b"AO\1":
            stored = int.from_bytes(entry[8:16], "big")
            if entry[3] >= 128:
                invalidated = stored
            elif entry[8:16] != given["seen"]:
                return Leased(1, now, word, entry=entry)
        digest = keys[2].removeprefix(NAMES.k)
        held = self._get(self.leases, digest)
        if held is not None and (match := re.fullmatch(rb"(!?)(\d+):(\d+):(.*)", held, re.DOTALL)):
            failed, of, fence, rest = match.groups()
            if of == generation:
                if not failed and rest == given["token"]:
                    self.leases[digest] = held, now + given["lease_ms"]
                    return Leased(2, now, word, fence=int(fence))
                if not failed and int(fence) > invalidated:
                    left = self.leases[digest][1] - now
                    return Leased(3, now, word, fence=int(fence), left_ms=left, token=rest)
                if failed and given["waited"] in (fence, b"*"):
                    return Leased(4, now, word, text=rest.decode())
        self.fence = max(self.fence + 1, stored + 1, now * 1000)
        holder = b"%b:%d:%b" % (generation, self.fence, given["token"])
        self.leases[digest] = holder, now + given["lease_ms"]
        return Leased(2, now, word, fence=self.fence)

    def do_renew(self, keys: Any, given: Any, args: Any) -> bool:
        digest = keys[0].removeprefix(NAMES.k)
        if self._get(self.leases, digest) != given["holder"]:
            return False
        self.leases[digest] = given["holder"], self.now() + given["lease_ms"]
        return True

    def do_release(self, keys: Any, given: Any, args: Any) -> bool:
        digest, holder = keys[0].removeprefix(NAMES.k), given["holder"]
        value = self._get(self.leases, digest) or b"!"
        by_token = holder[:1] in (b":", b"-")  # its caller was interrupted before it heard of the fence
        if value != holder and not (by_token and not value.startswith(b"!") and value.endswith(holder)):
            return False
        self._end(digest, value, given["tombstone_ms"], given["text"])
        self._publish(given["message"])
        return True

    def _end(self, digest: bytes, holder: bytes, tombstone_ms: int, text: bytes | str) -> None:
        generation, fence, _ = holder.split(b":", 2)
        self.ended[int(fence)] = self._clock()
        if tombstone_ms == 0:
            del self.leases[digest]
        else:
            text = text.encode() if isinstance(text, str) else text
            self.leases[digest] = b"!%b:%b:%b" % (generation, fence, text), self.now() + tombstone_ms

    def do_store(self, keys: Any, given: Any, args: Any) -> Stored:
        now, member, digest = self.now(), given["member"], keys[4].removeprefix(NAMES.k)
        held, holder, fence = self._get(self.leases, digest), given["holder"], given["fence"]

        def land() -> None:
            if held is None and holder == b"":
                return
            if held == holder:
                self._end(digest, holder, 0, b"")
            self._publish(given["message"])

        generation, _, latest = (self.word or b"").partition(b":")
        if generation != b"%d" % given["generation"]:
            land()
            return Stored(-3, now, 0, 0, 0, [])
        entry, stored = self._get(self.entries, member), 0
        if entry is not None and len(entry) >= 16 and entry[:3] == b"AO\1":
            stored = int.from_bytes(entry[8:16], "big")
        if fence == b"":
            fence = max(stored + 1, now * 1000)
        elif stored > fence:
            land()
            return Stored(-1, now, 0, 0, 0, [])
        fresh = now + given["ttl_ms"]
        retained = fresh + given["window_ms"]
        sequence = int(latest) if given["sequence"] == b"" else given["sequence"]
        times = fence, now, fresh, retained, sequence
        header = HEADER.pack(MAGIC, FORMAT, given["flags"], given["generation"], *times)
        self.entries[member] = header + given["body"], retained
        land()
        return Stored(1 if entry is None else 2, now, 0, 0, 0, [])

    def do_forget(self, keys: Any, given: Any, args: Any) -> int:
        removed = 0
        for member in args[2:]:
            entry = self._get(self.entries, member)
            removed += entry is not None and len(entry) > 48
            self.entries.pop(member, None)
            if given["grave_ms"]:
                self.fence = max(self.fence + 1, self.now() * 1000)
                grave = HEADER.pack(MAGIC, FORMAT, 128, 0, self.fence, self.now(), 0, 0, 0)
                self.entries[member] = grave, self.now() + given["grave_ms"]
                self.graves[member] = self.fence
        return removed

    def do_bump(self, keys: Any, given: Any, args: Any) -> bytes:
        generation, _, sequence = (self.word or b"-1:%d" % self.now()).partition(b":")
        if int(generation) < given["generation"]:
            self.word = b"%d:%b" % (given["generation"], sequence)
        assert self.word is not None
        return self.word

    def do_tag(self, keys: Any, given: Any, args: Any) -> bytes:
        if self.word is None:
            self.do_control(keys, given, args)
        assert self.word is not None
        generation, sequence = map(int, self.word.split(b":"))
        if not self.tags:
            self.tags[b"#"] = sequence
        self.word = b"%d:%d" % (generation, sequence + 1)
        for tag in args[2:]:
            self.tags[tag.encode() if isinstance(tag, str) else tag] = sequence + 1
        return self.word

    def do_trim(self, keys: Any, given: Any, args: Any) -> Trimmed:
        return Trimmed(self.now(), 0, 0, 0, [])

    def do_heal(self, keys: Any, given: Any, args: Any) -> Healed:
        return Healed(0, 0)


# --- processes and what they run ----------------------------------------------------------------------------------


@dataclass(eq=False)
class Waiter:
    """A registration of one process for the message of one digest."""

    process: Process
    digest: bytes
    woken: bool = False
    wake: Callable[[], None] | None = None

    def close(self) -> None:
        if self in self.process.waiters:
            self.process.waiters.remove(self)


class Process:
    """One process: its state, and its subscription."""

    def __init__(self) -> None:
        self.state = State(
            partitions=[Partition(0, NAMES)],
            flights=Flights(),
            counters=Counters(),
            max_entries=100,
            max_units=1000,
            meta=b"",
            agreed=True,
        )
        self.waiters: list[Waiter] = []


@dataclass(eq=False)
class Task:
    """A program that runs in a process."""

    process: Process
    program: Any
    kind: str
    keys: tuple[int, ...] = ()
    asked: float = 0.0
    turn: int = 0
    effect: Any = None
    began: float = 0.0
    faulted: bool = False
    waits_for: int = 0
    ended: bool = False
    then: Callable[[Any, BaseException | None], None] | None = None


@dataclass(frozen=True)
class Weather:
    """What may happen in a run, and how often (each a probability of one event)."""

    processes: int = 4
    tasks: int = 24
    span_ms: int = 2000
    compute_ms: tuple[int, int] = (1, 400)
    policy: Policy = field(default_factory=lambda: Policy(ttl=60, lease=1, max_wait=60))
    kinds: tuple[str, ...] = ("ask",)
    boom: float = 0.0
    refused: float = 0.0
    cancelled: float = 0.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    lost_message: float = 0.0
    renews: bool = True
    clock_steps: int = 0
    lost_keys: int = 0


@dataclass
class Invalidation:
    """An invalidation that has returned, and what it concerned."""

    start: float
    end: float
    keys: tuple[int, ...]


class World:
    """One run."""

    #: The longest way of a request, a reply or a message.
    LATENCY = 3.0

    def __init__(self, seed: int, weather: Weather) -> None:
        self.rng = random.Random(seed)
        self.weather = weather
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count(1)
        self.server = Server(lambda: self.now, self._published)
        self.processes = [Process() for _ in range(weather.processes)]
        self.tasks: list[Task] = []
        #: The fences under which is computed.
        self.computing: dict[tuple[bytes, int], set[int]] = {}
        self.computations: list[int] = []
        self.invalidations: list[Invalidation] = []
        self.last_answer = 0.0
        self.quiet_leases = True  # no lease was granted to somebody who never heard of it

    def at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), call))

    def run(self) -> None:
        """Start everything at random times, run until nothing is left to happen, and check what must hold."""
        rng, weather = self.rng, self.weather
        for _ in range(weather.tasks):
            self.at(rng.uniform(0, weather.span_ms), self._start_any)
        for _ in range(weather.clock_steps):
            self.at(rng.uniform(0, weather.span_ms), self._step_clock)
        for _ in range(weather.lost_keys):
            self.at(rng.uniform(0, weather.span_ms), self._lose_a_key)
        for _ in range(100_000):
            if not self._events:
                break
            self.now, _, call = heapq.heappop(self._events)
            call()
        else:
            raise AssertionError("the run does not end")
        self._check_the_end()

    # --- starting -------------------------------------------------------------------------------------------------

    def _start_any(self) -> None:
        kind = self.rng.choice(self.weather.kinds)
        process = self.rng.choice(self.processes)
        getattr(self, "_start_" + kind)(process)

    def _ask(self, process: Process, key: int, index: int = 0, **words: Any) -> programs.Ask:
        return programs.Ask(
            partition=process.state.partitions[0],
            digest=DIGESTS[key],
            policy=self.weather.policy,
            token=b"t%d" % next(self._numbers),
            draw=self.rng.random(),
            tags=TAGS[key],
            index=index,
            now_ms=self.server.now(),
            **words,
        )

    def _start(
        self, process: Process, program: Any, kind: str, keys: tuple[int, ...], then: Any = None
    ) -> Task:
        task = Task(process, program, kind, keys, self.now, then=then)
        self.tasks.append(task)
        if self.rng.random() < self.weather.cancelled:
            self.at(self.rng.uniform(0, 600), lambda: self._cancel(task))
        self._step(task, None)
        return task

    def _cancel(self, task: Task) -> None:
        if not task.ended and isinstance(
            task.effect, Fetch | Invoke | InvokeMany | Ask | Compute | Join | Sleep
        ):
            if isinstance(task.effect, Invoke | InvokeMany) and task.effect.script.name == "lease":
                self.quiet_leases = False
            task.faulted = True
            self._resume(task, task.turn, Cancelled())

    def _start_ask(self, process: Process) -> None:
        key = self.rng.randrange(len(DIGESTS))
        self._start(process, programs.get_or_compute(process.state, self._ask(process, key)), "ask", (key,))

    def _start_unread(self, process: Process) -> None:
        key = self.rng.randrange(len(DIGESTS))
        wanted = self._ask(process, key, read=False)
        self._start(process, programs.get_or_compute(process.state, wanted), "unread", (key,))

    def _start_lookup(self, process: Process) -> None:
        key = self.rng.randrange(len(DIGESTS))
        self._start(process, programs.lookup(process.state, self._ask(process, key)), "lookup", (key,))

    def _start_many(self, process: Process) -> None:
        keys = tuple(self.rng.sample(range(len(DIGESTS)), self.rng.randint(1, len(DIGESTS))))
        asks = [self._ask(process, key, index) for index, key in enumerate(keys)]
        self._start(process, programs.get_or_compute_many(process.state, asks), "many", keys)

    def _start_begin(self, process: Process) -> None:
        key = self.rng.randrange(len(DIGESTS))
        wanted = self._ask(process, key, share_errors=self.rng.random() < 0.5)

        def then(outcome: Any, error: BaseException | None) -> None:
            if isinstance(outcome, Held):
                self._compute_by_itself(process, outcome, key)

        self._start(process, programs.begin(process.state, wanted, refresh=False), "begin", (key,), then)

    def _compute_by_itself(self, process: Process, held: Held, key: int) -> None:
        began, turn = self.now, next(self._numbers)
        leases = (held.grant.renewal(held.wanted),) if held.grant else ()
        if held.grant:
            self._enter(DIGESTS[key], held.grant.word.generation, held.grant.fence)
            self._renew(leases, lambda: not done)
        done: list[bool] = []

        def end() -> None:
            done.append(True)
            if held.grant:
                self._leave(DIGESTS[key], held.grant.word.generation, held.grant.fence)
            if self.rng.random() < self.weather.boom:
                error = self.rng.choice([Boom("no"), None])
                program: Any = programs.abandon(process.state, held, error)
            else:
                program = programs.finish(
                    process.state, held, {"key": key, "began": began, "number": turn}, 5
                )
            self._start(process, program, "end", (key,))

        self.at(self.rng.uniform(*self.weather.compute_ms), end)

    def _start_invalidate(self, process: Process) -> None:
        key = self.rng.randrange(len(DIGESTS))
        self._invalidating(process, programs.invalidate(process.state, [self._ask(process, key)]), (key,))

    def _start_tag(self, process: Process) -> None:
        tag = self.rng.choice(["even", "odd"])
        keys = tuple(key for key, tags in enumerate(TAGS) if tag_hash(tag) in tags)
        self._invalidating(process, programs.invalidate_tag(process.state, tag_hash(tag)), keys)

    def _start_bump(self, process: Process) -> None:
        self._invalidating(process, programs.bump(process.state), tuple(range(len(DIGESTS))))

    def _invalidating(self, process: Process, program: Any, keys: tuple[int, ...]) -> None:
        start = self.now

        def then(outcome: Any, error: BaseException | None) -> None:
            if error is None and not task.faulted:
                self.invalidations.append(Invalidation(start, self.now, keys))

        task = Task(process, program, "invalidation", keys, self.now, then=then)
        self.tasks.append(task)
        self._step(task, None)

    def _step_clock(self) -> None:
        self.server.step_ms += self.rng.choice([-5000, -300, 300, 5000])

    def _lose_a_key(self) -> None:
        match self.rng.choice("fek"):
            case "f":
                self.server.fence = 0
            case "e":
                for member in [m for m, (data, _) in self.server.entries.items() if len(data) > 48][:1]:
                    del self.server.entries[
                        member
                    ]  # not a grave: Redis evicts those only under allkeys policies
            case "k":
                for digest in list(self.server.leases)[:1]:
                    value, _ = self.server.leases.pop(digest)
                    if not value.startswith(b"!"):
                        self.quiet_leases = False

    # --- running --------------------------------------------------------------------------------------------------

    def _step(self, task: Task, answer: Any) -> None:
        task.turn += 1
        try:
            if isinstance(answer, BaseException):
                task.effect = task.program.throw(answer)
            else:
                task.effect = task.program.send(answer)
        except StopIteration as stop:
            self._ended(task, stop.value, None)
        except (Boom, Cancelled, LeaderFailed) as error:
            self._ended(task, None, error)
        else:
            self._perform(task, task.effect)

    def _resume(self, task: Task, turn: int, answer: Any) -> None:
        """Go on with *answer*, unless the effect of that turn was answered already."""
        if task.turn == turn and not task.ended:
            self._step(task, answer)

    def _later(self, task: Task, delay: float, answer: Any) -> None:
        turn = task.turn
        self.at(delay, lambda: self._resume(task, turn, answer))

    def _way(self) -> float:
        return self.rng.uniform(0.05, self.LATENCY)

    def _perform(self, task: Task, effect: Any) -> None:
        match effect:
            case Fetch() | Invoke() | InvokeMany() | Ask():
                self._exchange(task, effect)
            case Compute():
                self._compute(task, effect)
            case Encode(value, cost_ms):
                self._later(task, self.rng.choice([0, 0.1]), self._encoded(value, cost_ms))
            case Decode(flags, payload):
                self._later(task, self.rng.choice([0, 0.1]), decode_payload(flags, payload, None))
            case Join(flight, seconds):
                turn = task.turn
                flight.future.add_done_callback(
                    lambda future: self.at(0, lambda: self._joined(task, turn, future))
                )
                self._later(task, seconds * 1000, TIMED_OUT)
            case Listen(digest=digest):
                if self.rng.random() < self.weather.lost_request:
                    task.faulted = True
                    self._later(task, 5, BackendUnavailable("no subscription"))
                    return
                waiter = Waiter(task.process, digest)
                task.process.waiters.append(waiter)
                self._later(task, self.rng.choice([0, 0.1]), waiter)
            case Sleep(waiter, seconds):
                self._sleep(task, waiter, seconds)
            case Detach(program):
                child = Task(task.process, program, "behind", task.keys, self.now)
                self.tasks.append(child)
                self.at(self.rng.choice([0, 0.5]), lambda: self._step(child, None))
                self._later(task, 0, None)
            case _:
                raise AssertionError(effect)

    def _encoded(self, value: Any, cost_ms: int) -> Any:
        if self.rng.random() < self.weather.refused:
            return Refused("empty")
        return Encoded(*encode(value, None, cost_ms))

    def _exchange(self, task: Task, effect: Any) -> None:
        turn, error = task.turn, BackendUnavailable("no answer")
        away = [error] * len(effect.calls) if isinstance(effect, InvokeMany) else error
        if self.rng.random() < self.weather.lost_request:
            task.faulted = True
            self._later(task, self._way(), away)
            return

        def execute() -> None:
            answer = self.server.answer(effect)
            for leased in answer if isinstance(answer, list) else [answer]:
                if isinstance(leased, Leased):
                    task.waits_for = leased.fence
            if self.rng.random() < self.weather.lost_reply:
                task.faulted = True
                if isinstance(effect, Invoke | InvokeMany) and effect.script.name == "lease":
                    self.quiet_leases = False
                answer = away
            self.at(self._way(), lambda: self._resume(task, turn, answer))

        self.at(self._way(), execute)

    def _joined(self, task: Task, turn: int, future: Any) -> None:
        error = future.exception()
        self._resume(task, turn, error if error is not None else future.result())

    def _sleep(self, task: Task, waiter: Waiter, seconds: float) -> None:
        start, turn, fence = self.now, task.turn, task.waits_for

        def woken() -> None:
            self._resume(task, turn, (self.now - start) / 1000)

        def time_is_over() -> None:
            if task.turn == turn and not task.ended:
                ended = self.server.ended.get(fence)
                on_time = ended is None or self.now - ended <= 2 * self.LATENCY
                assert on_time or self.weather.lost_message, "a lost wake-up: the lease had ended long ago"
                self._resume(task, turn, seconds)

        if waiter.woken:
            self.at(0, woken)
            return
        waiter.wake = lambda: self.at(0, woken)
        self.at(seconds * 1000, time_is_over)

    def _published(self, message: bytes) -> None:
        for process in self.processes:
            if self.rng.random() >= self.weather.lost_message:
                self.at(self._way(), lambda process=process: self._deliver(process, message[1:]))

    def _deliver(self, process: Process, digest: bytes) -> None:
        for waiter in [waiter for waiter in process.waiters if waiter.digest == digest]:
            waiter.close()
            waiter.woken = True
            if waiter.wake is not None:
                waiter.wake()

    # --- computing ------------------------------------------------------------------------------------------------

    def _compute(self, task: Task, effect: Compute) -> None:
        turn, began = task.turn, self.now
        keys = [task.keys[index] for index in effect.indices]
        self.computations += keys
        held = {
            lease.key.removeprefix(NAMES.k): tuple(map(int, lease.holder.split(b":")[:2]))
            for lease in effect.leases
        }
        for digest, (generation, fence) in held.items():
            self._enter(digest, generation, fence)
        for key in keys:
            unleased = DIGESTS[key] not in held
            assert not unleased or not self.calm or task.kind == "unread", (
                "computed without a lease, for no reason"
            )
        self._renew(effect.leases, lambda: task.turn == turn and not task.ended)
        failed = self.rng.random() < self.weather.boom
        values = [{"key": key, "began": began, "number": next(self._numbers)} for key in keys]
        answer: Any = Boom("no") if failed else [Computed(value, 5) for value in values]
        self.at(self.rng.uniform(*self.weather.compute_ms), lambda: self._resume(task, turn, answer))
        resume = task.program

        def left() -> None:
            for digest, (generation, fence) in held.items():
                self._leave(digest, generation, fence)

        task.program = _Watched(resume, left)

    @property
    def calm(self) -> bool:
        """Whether nothing happens that makes anybody compute without a lease."""
        weather = self.weather
        return not (
            weather.lost_request
            or weather.lost_reply
            or weather.refused
            or weather.boom
            or not weather.renews
        )

    @property
    def leases_hold(self) -> bool:
        """Whether a lease lasts as long as the computation under it."""
        return self.weather.renews and not (
            self.weather.clock_steps
            or self.weather.lost_keys
            or self.weather.lost_request
            or self.weather.lost_reply
        )

    def _enter(self, digest: bytes, generation: int, fence: int) -> None:
        fences = self.computing.setdefault((digest, generation), set())
        invalidated = self.server.graves.get(b"%d:%b" % (generation, digest), 0)
        assert all(one < invalidated for one in fences) or not self.leases_hold, (
            "two compute under live leases"
        )
        fences.add(fence)

    def _leave(self, digest: bytes, generation: int, fence: int) -> None:
        self.computing[digest, generation].discard(fence)

    def _renew(self, leases: tuple[Any, ...], running: Callable[[], bool]) -> None:
        if not self.weather.renews:
            return
        for lease in leases:

            def again(lease: Any = lease) -> None:
                if running():
                    self.server.do_renew(
                        (lease.key,), {"holder": lease.holder, "lease_ms": lease.lease_ms}, ()
                    )
                    self.at(lease.lease_ms / 3, again)

            self.at(lease.lease_ms / 3, again)

    # --- what must hold -------------------------------------------------------------------------------------------

    def _ended(self, task: Task, outcome: Any, error: BaseException | None) -> None:
        task.ended, task.effect = True, None
        self.last_answer = self.now
        if isinstance(error, Cancelled):
            assert task.faulted, "nobody cancelled it"
        if isinstance(error, Boom | LeaderFailed):
            assert self.weather.boom
            assert task.kind != "lookup"
        if isinstance(error, LeaderFailed):
            assert error.error_type.endswith("Boom")
        if error is None and task.kind in {"ask", "unread", "lookup", "begin", "many"}:
            self._check_served(task, outcome)
        if task.then is not None:
            task.then(outcome, error)

    def _check_served(self, task: Task, outcome: Any) -> None:
        served = outcome if isinstance(outcome, list) else [outcome]
        if task.kind == "many":
            assert len(served) == len(task.keys)
        for key, one in zip(task.keys, served, strict=True):
            if not isinstance(one, Served):
                assert task.kind in {"lookup", "begin"}
                continue
            value = one.value
            assert value["key"] == key, "an answer to another question"
            assert value["began"] <= self.now
            for invalidation in self.invalidations:
                # Who could not reach Redis cannot know: it may share what its process is computing.
                if key in invalidation.keys and invalidation.end < task.asked and not task.faulted:
                    assert value["began"] >= invalidation.start, (
                        f"served at {self.now:.1f} as {one.source}, asked at {task.asked:.1f}: computed at "
                        f"{value['began']:.1f}, invalidated from {invalidation.start:.1f} to {invalidation.end:.1f}"
                    )
            if task.kind == "unread":
                assert value["began"] >= task.asked
                assert one.source in {Source.COMPUTED, Source.BYPASSED}

    def _check_the_end(self) -> None:
        for task in self.tasks:
            assert task.ended, f"{task.kind} was never answered: it waits for {task.effect}"
        for process in self.processes:
            assert len(process.state.flights) == 0, "a flight is left in the air"
            assert process.waiters == [], "a registration is left"
        if self.quiet_leases and not (
            self.weather.lost_request or self.weather.lost_reply or self.weather.cancelled
        ):
            left = [digest for digest in DIGESTS if self.server.live_lease(digest)]
            assert not left, "a lease is left behind"

    def total(self, name: str) -> int:
        """Return a counter of all processes."""
        return sum(process.state.counters.peek().get(name, 0) for process in self.processes)


class _Watched:
    """A program whose next step tells that the computation is over."""

    def __init__(self, program: Any, left: Callable[[], None]) -> None:
        self._program, self._left = program, left

    def _over(self) -> None:
        left, self._left = self._left, lambda: None
        left()

    def send(self, answer: Any) -> Any:
        self._over()
        return self._program.send(answer)

    def throw(self, error: BaseException) -> Any:
        self._over()
        return self._program.throw(error)


def with_policy(weather: Weather, **words: Any) -> Weather:
    """Return *weather* with other lifetimes."""
    return replace(weather, policy=replace(weather.policy, **words))
