"""What runs programs by threads: performs their effects, and does what is plain without one.  ``_adriver`` is its twin."""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar, assert_never

from . import _programs as programs
from ._call import Call
from ._effects import (
    TIMED_OUT,
    Ask,
    Compute,
    Computed,
    Decode,
    Detach,
    Effect,
    Encode,
    Encoded,
    Fetch,
    Fetched,
    FetchMany,
    Invoke,
    InvokeMany,
    Join,
    Listen,
    Program,
    ScriptCall,
    Sleep,
    Tell,
    Tried,
)
from ._loops import running_loop
from ._view import View
from ._wire.commands import answer, answers_of, checked, is_unknown_script, pack, pack_load, pack_script
from .control import NONE, Control
from .entry import Codec
from .errors import BackendUnavailable, ConfigurationError, Unfit
from .scripts import REPLACED, STORE, STORED, Script
from .served import AnyServed

T = TypeVar("T")


class Driver(View):
    """A view whose programs are run by threads."""

    def _straight(
        self, digest: bytes, codec: Codec[Any] | None, usable: Callable[[Any], bool] | None = None
    ) -> tuple[AnyServed | None, Tried]:
        """Serve a plain fresh hit with no program; else return what was fetched, or the error: nothing is asked twice."""
        namespace = self._namespace
        part = namespace.state.partition_of(digest)
        if (word := part.word) is None:
            return None, None
        member, policy, straight = word.prefix + digest, self._policy, namespace.straight
        if (fetched := self._near(part, (member,))) is not None:
            served = straight.plain_hit(
                word, fetched.word, fetched.entries[0], fetched.now_ms, policy, codec, usable
            )
            return served, fetched
        now, mark = namespace.clock.now(), straight.mark(part)
        try:
            replies = self._ask_for(part, (member,), now)
            return straight.judged(part, word, member, now, mark, replies, policy, codec, usable)
        except BackendUnavailable as error:
            self._failed(part.index, error)
            return None, error

    def _straight_many(
        self, digests: Sequence[bytes], codec: Codec[Any] | None, control: Control
    ) -> tuple[dict[int, AnyServed], Tried]:
        """Do what ``_straight`` does for several of one partition; return the hits by their numbers."""
        namespace = self._namespace
        part = namespace.straight.only_partition(digests) if control is NONE else None
        if part is None or (word := part.word) is None:
            return {}, None
        try:
            fetched = self._read(part, tuple([word.prefix + digest for digest in digests]))
        except BackendUnavailable as error:
            self._failed(part.index, error)
            return {}, error
        return namespace.straight.plain_hits(word, fetched, self._policy, codec)

    def _straight_store(
        self, digest: bytes, value: Any, cost_ms: int, ttl_ms: int | None, call: Call
    ) -> Encoded | bool:
        """Store *value* with no program, and return whether it was stored; else return it encoded, for the program."""
        namespace = self._namespace
        part, straight = namespace.state.partition_of(digest), namespace.straight
        encoded = straight.encoded(call, value, cost_ms)
        if encoded is None:
            return False
        if (word := part.word) is None:
            return encoded
        packed = straight.pack_store(part, word, digest, encoded, self._policy, ttl_ms)
        try:
            stored = self._send(STORE, part.index, packed)
        except BackendUnavailable as error:
            self._failed(part.index, error)
            now_ms = int(namespace.clock.now())
            return self._run(programs.not_stored(namespace.state, part, now_ms, error), call)
        if programs.is_outdated(part, stored):
            return encoded
        if straight.noted(part, digest, stored):
            self._run(programs.tidy_up(namespace.state, part, stored), call)
        return stored.code in {STORED, REPLACED}

    def _run(self, program: Program[T], call: Call) -> T:
        reply: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = program.send(reply) if error is None else program.throw(error)
            except StopIteration as stop:
                value: T = stop.value
                return value
            try:
                reply, error = self._perform(effect, call), None
            except BaseException as exc:  # noqa: BLE001  the program decides
                error = exc
                if isinstance(exc, BackendUnavailable):
                    self._note(effect, exc)

    def _note(self, effect: Effect, error: BackendUnavailable) -> None:
        if isinstance(effect, Fetch | Invoke | Ask | Listen):
            self._failed(effect.partition, error)

    def _failed(self, index: int, error: BackendUnavailable) -> None:
        self._namespace.failed(index, error)
        if isinstance(error, Unfit) and (node := self._namespace.nodes[index]) is not None:
            node.held.drop()

    def _note_all(self, answers: Iterable[tuple[int, object]]) -> None:
        """Note the errors among the answers of partitions, one of each type."""
        errors = {type(one): (index, one) for index, one in answers if isinstance(one, BackendUnavailable)}
        for index, error in errors.values():
            self._failed(index, error)

    def _perform(self, effect: Effect, call: Call) -> Any:
        match effect:
            case Fetch(partition, members):
                return self._read(self._namespace.state.partitions[partition], members)
            case FetchMany(fetches):
                return self._fetch_many(fetches)
            case Invoke():
                return self._invoke(effect)
            case InvokeMany():
                return self._invoke_many(effect)
            case Ask(index, commands, leniently):
                replies = self._exchange(index, b"".join(map(pack, commands)), len(commands))
                return replies if leniently else [checked(reply) for reply in replies]
            case Compute():
                return self._compute(effect, call)
            case Encode(value, cost_ms):
                return call.encode(value, cost_ms)
            case Decode(flags, payload):
                return call.decode(flags, payload)
            case Join(flight, seconds):
                if flight.home is not None and flight.home is running_loop():
                    return TIMED_OUT  # its leader needs the very loop that this call blocks
                try:
                    return flight.future.result(seconds)
                except FutureTimeoutError:
                    # It may have landed at the last moment, and the error may be the leader's own.
                    return flight.future.result() if flight.future.done() else TIMED_OUT
            case Listen():
                return self._namespace.listen(effect)
            case Sleep(waiter, seconds):
                start = time.monotonic()
                with contextlib.suppress(FutureTimeoutError):
                    waiter.woken.result(seconds)
                return time.monotonic() - start
            case Detach(program):
                self._namespace.background.submit(functools.partial(self._run, program, call))
                return None
            case Tell(kind, reason):
                self._namespace.tell(kind, reason)
                return None
            case _:
                assert_never(effect)

    def _exchange(self, index: int, packed: bytes, count: int) -> list[Any]:
        namespace = self._namespace
        held = (namespace.nodes[index] or namespace.topology.find(index)).held
        counters = namespace.due_counters(index)
        if not counters:
            return held.exchange(packed, count)
        packed += namespace.pack_counters(index, counters)
        try:
            replies = held.exchange(packed, count + len(counters))
        except BackendUnavailable:
            namespace.state.counters.give_back(counters)
            raise
        namespace.counted(counters, replies[count:])
        return replies[:count]

    def _read(self, part: programs.Partition, members: tuple[bytes, ...]) -> Fetched:
        if (fetched := self._near(part, members)) is not None:
            return fetched
        straight = self._namespace.straight
        now, mark = self._namespace.clock.now(), straight.mark(part)
        replies = self._ask_for(part, members, now)
        return straight.fetched(part, members, now, mark, replies)

    def _near(self, part: programs.Partition, members: tuple[bytes, ...]) -> Fetched | None:
        """Return near copies of all *members*, if there are."""
        namespace = self._namespace
        if namespace.state.near is None or (fetched := namespace.straight.near(part, members)) is None:
            return None
        self._tell_uses()
        return fetched

    def _tell_uses(self) -> None:
        """Let Redis know which near copies were used, behind the caller, if that is due."""
        namespace = self._namespace
        if uses := namespace.straight.due_uses():
            told = programs.tell_used(namespace.state, uses)
            namespace.background.submit(functools.partial(self._run, told, Call()))

    def _ask_for(self, part: programs.Partition, members: tuple[bytes, ...], now: float) -> list[Any]:
        """Return the replies to ``pack_fetch``."""
        packed, touched = self._namespace.straight.pack_fetch(part, members, now)
        return self._exchange(part.index, packed, 2 if touched else 1)

    def _fetch_many(self, fetches: Sequence[Fetch]) -> list[Fetched | BackendUnavailable]:
        straight = self._namespace.straight
        answers = straight.near_copies(fetches)
        self._tell_uses()
        left = [one for one in fetches if one not in answers]
        places = straight.by_server([one.partition for one in left])
        groups = [[left[place] for place in group] for group in places]
        for group in groups:
            answers.update(self._fetch_together(group))
        return [answers[one] for one in fetches]

    def _fetch_together(self, fetches: Sequence[Fetch]) -> dict[Fetch, Fetched | BackendUnavailable]:
        namespace, index = self._namespace, fetches[0].partition
        now, marks = namespace.clock.now(), namespace.straight.marks(fetches)
        try:
            packed, counts = namespace.straight.pack_fetches(fetches, now)
            replies = self._exchange(index, packed, sum(counts))
        except BackendUnavailable as error:
            self._failed(index, error)
            return dict.fromkeys(fetches, error)
        answers = namespace.straight.fetched_many(fetches, now, marks, counts, replies)
        self._note_all((one.partition, answer) for one, answer in answers.items())
        return answers

    def _invoke(self, effect: Invoke[T]) -> T:
        packed = pack_script(effect.script, effect.keys, effect.args)
        return self._send(effect.script, effect.partition, packed)

    def _send(self, script: Script[T], index: int, packed: bytes) -> T:
        """Return the answer to a script that is packed; it is loaded where the server does not know it."""
        before = time.monotonic()
        replies = self._exchange(index, packed, 1)
        if is_unknown_script(replies):
            before = time.monotonic()
            replies = self._exchange(index, pack_load(script) + packed, 2)[1:]
        result = answer(script, replies[0])
        self._namespace.clock.note(result, before, time.monotonic())
        return result

    def _invoke_many(self, effect: InvokeMany[T]) -> list[T | BackendUnavailable]:
        groups = self._namespace.straight.by_server([index for index, _, _ in effect.calls])
        answers: dict[int, T | BackendUnavailable] = {}
        for group in groups:
            found = self._invoke_together(effect.script, [effect.calls[place] for place in group])
            answers.update(zip(group, found, strict=True))
        return [answers[place] for place in range(len(effect.calls))]

    def _invoke_together(
        self, script: Script[T], calls: Sequence[ScriptCall]
    ) -> list[T | BackendUnavailable]:
        namespace, index, count = self._namespace, calls[0][0], len(calls)
        packed = b"".join([pack_script(script, keys, args) for _, keys, args in calls])
        before = time.monotonic()
        try:
            replies = self._exchange(index, packed, count)
            if is_unknown_script(replies):
                before = time.monotonic()
                replies = self._exchange(index, pack_load(script) + packed, count + 1)[1:]
        except BackendUnavailable as error:
            self._failed(index, error)
            return [error] * count
        answers = answers_of(script, replies)
        namespace.clock.note(answers[0], before, time.monotonic())
        self._note_all((index, answer) for (index, _, _), answer in zip(calls, answers, strict=True))
        return answers

    def _compute(self, effect: Compute, call: Call) -> list[Computed]:
        compute = call.compute
        assert compute is not None  # noqa: S101  only programs that were given a function yield Compute
        with self._namespace.renewing(effect.leases), call.running(effect.indices):
            start = time.perf_counter()
            values = compute(effect.indices)
            cost_ms = round((time.perf_counter() - start) * 1000)
        for value in values:
            if inspect.iscoroutine(value):
                value.close()
                raise ConfigurationError(
                    "fn returned a coroutine; use AsyncCache, or Cache.aio, for async functions"
                )
        return call.computed(effect.indices, values, cost_ms)
