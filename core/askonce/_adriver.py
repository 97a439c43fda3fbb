"""What runs programs by asyncio: performs their effects, and does what is plain without one.  ``_driver`` is its twin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import Context
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
from ._loops import detach, within
from ._view import View
from ._wire.commands import answer, answers_of, checked, is_unknown_script, pack, pack_load, pack_script
from .control import NONE, Control
from .entry import Codec
from .errors import BackendUnavailable, Unfit
from .scripts import REPLACED, STORE, STORED, Script
from .served import AnyServed

T = TypeVar("T")


async def _all(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what they return; one alone begins at once, and several in the next turn of the loop."""
    return [await coroutines[0]] if len(coroutines) == 1 else await asyncio.gather(*coroutines)


def _close_registration(registered: asyncio.Future[Any]) -> None:
    """Close a registration whose caller was cancelled before it had it."""
    if not registered.cancelled() and registered.exception() is None:
        registered.result().close()


class AsyncDriver(View):
    """A view whose programs are run by asyncio."""

    async def _straight(
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
            replies = await self._ask_for(part, (member,), now)
            return straight.judged(part, word, member, now, mark, replies, policy, codec, usable)
        except BackendUnavailable as error:
            await self._failed(part.index, error)
            return None, error

    async def _straight_many(
        self, digests: Sequence[bytes], codec: Codec[Any] | None, control: Control
    ) -> tuple[dict[int, AnyServed], Tried]:
        """Do what ``_straight`` does for several of one partition; return the hits by their numbers."""
        namespace = self._namespace
        part = namespace.straight.only_partition(digests) if control is NONE else None
        if part is None or (word := part.word) is None:
            return {}, None
        try:
            fetched = await self._read(part, tuple([word.prefix + digest for digest in digests]))
        except BackendUnavailable as error:
            await self._failed(part.index, error)
            return {}, error
        return namespace.straight.plain_hits(word, fetched, self._policy, codec)

    async def _straight_store(
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
            stored = await self._send(STORE, part.index, packed)
        except BackendUnavailable as error:
            await self._failed(part.index, error)
            now_ms = int(namespace.clock.now())
            return await self._run(programs.not_stored(namespace.state, part, now_ms, error), call)
        if programs.is_outdated(part, stored):
            return encoded
        if straight.noted(part, digest, stored):
            await self._run(programs.tidy_up(namespace.state, part, stored), call)
        return stored.code in {STORED, REPLACED}

    async def _run(self, program: Program[T], call: Call) -> T:
        reply: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = program.send(reply) if error is None else program.throw(error)
            except StopIteration as stop:
                value: T = stop.value
                return value
            try:
                reply, error = await self._perform(effect, call), None
            except BaseException as exc:  # noqa: BLE001  the program decides
                error = exc
                if isinstance(exc, BackendUnavailable):
                    await self._note(effect, exc)

    async def _note(self, effect: Effect, error: BackendUnavailable) -> None:
        if isinstance(effect, Fetch | Invoke | Ask | Listen):
            await self._failed(effect.partition, error)

    async def _failed(self, index: int, error: BackendUnavailable) -> None:
        self._namespace.failed(index, error)
        if isinstance(error, Unfit) and (node := self._namespace.nodes[index]) is not None:
            await node.multiplexers.drop()

    async def _note_all(self, answers: Iterable[tuple[int, object]]) -> None:
        """Note the errors among the answers of partitions, one of each type."""
        errors = {type(one): (index, one) for index, one in answers if isinstance(one, BackendUnavailable)}
        for index, error in errors.values():
            await self._failed(index, error)

    async def _perform(self, effect: Effect, call: Call) -> Any:
        match effect:
            case Fetch(partition, members):
                return await self._read(self._namespace.state.partitions[partition], members)
            case FetchMany(fetches):
                return await self._fetch_many(fetches)
            case Invoke():
                return await self._invoke(effect)
            case InvokeMany():
                return await self._invoke_many(effect)
            case Ask(index, commands, leniently):
                replies = await self._exchange(index, b"".join(map(pack, commands)), len(commands))
                return replies if leniently else [checked(reply) for reply in replies]
            case Compute():
                return await self._compute(effect, call)
            case Encode(value, cost_ms):
                return call.encode(value, cost_ms)
            case Decode(flags, payload):
                return call.decode(flags, payload)
            case Join(flight, seconds):
                return await within(flight.future, seconds, TIMED_OUT)
            case Listen():
                if self._namespace.listens(effect):
                    return self._namespace.listen(effect)
                registering = asyncio.get_running_loop().run_in_executor(None, self._namespace.listen, effect)
                try:
                    return await asyncio.shield(registering)
                except asyncio.CancelledError:
                    registering.add_done_callback(_close_registration)
                    raise
            case Sleep(waiter, seconds):
                start = time.monotonic()
                await within(waiter.woken, seconds, None)
                return time.monotonic() - start
            case Detach(program):
                detach(self._run(program, call), Context())  # as in a thread: the caller's run may be over
                return None
            case Tell(kind, reason):
                self._namespace.tell(kind, reason)
                return None
            case _:
                assert_never(effect)

    async def _exchange(self, index: int, packed: bytes, count: int) -> list[Any]:
        namespace = self._namespace
        node = namespace.nodes[index] or await namespace.topology.afind(index)
        wire, counters = node.multiplexers.here(), namespace.due_counters(index)
        if not counters:
            return await wire.exchange(packed, count)
        packed += namespace.pack_counters(index, counters)
        try:
            replies = await wire.exchange(packed, count + len(counters))
        except BackendUnavailable:
            namespace.state.counters.give_back(counters)
            raise
        namespace.counted(counters, replies[count:])
        return replies[:count]

    async def _read(self, part: programs.Partition, members: tuple[bytes, ...]) -> Fetched:
        if (fetched := self._near(part, members)) is not None:
            return fetched
        straight = self._namespace.straight
        now, mark = self._namespace.clock.now(), straight.mark(part)
        replies = await self._ask_for(part, members, now)
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
            detach(self._run(told, Call()), Context())

    def _ask_for(
        self, part: programs.Partition, members: tuple[bytes, ...], now: float
    ) -> Awaitable[list[Any]]:
        """Return the replies to ``pack_fetch``, asked for together with what other tasks read now."""
        namespace = self._namespace
        node = namespace.nodes[part.index]
        if len(members) == 1 and node is not None and not namespace.flush_is_due():
            return node.multiplexers.here().fetch(namespace.straight.readings[part.index], members[0])
        packed, touched = namespace.straight.pack_fetch(part, members, now)
        return self._exchange(part.index, packed, 2 if touched else 1)

    async def _fetch_many(self, fetches: Sequence[Fetch]) -> list[Fetched | BackendUnavailable]:
        straight = self._namespace.straight
        answers = straight.near_copies(fetches)
        self._tell_uses()
        left = [one for one in fetches if one not in answers]
        places = straight.by_server([one.partition for one in left])
        groups = [[left[place] for place in group] for group in places]
        for found in await _all(list(map(self._fetch_together, groups))):
            answers.update(found)
        return [answers[one] for one in fetches]

    async def _fetch_together(self, fetches: Sequence[Fetch]) -> dict[Fetch, Fetched | BackendUnavailable]:
        namespace, index = self._namespace, fetches[0].partition
        now, marks = namespace.clock.now(), namespace.straight.marks(fetches)
        try:
            packed, counts = namespace.straight.pack_fetches(fetches, now)
            replies = await self._exchange(index, packed, sum(counts))
        except BackendUnavailable as error:
            await self._failed(index, error)
            return dict.fromkeys(fetches, error)
        answers = namespace.straight.fetched_many(fetches, now, marks, counts, replies)
        await self._note_all((one.partition, answer) for one, answer in answers.items())
        return answers

    async def _invoke(self, effect: Invoke[T]) -> T:
        packed = pack_script(effect.script, effect.keys, effect.args)
        return await self._send(effect.script, effect.partition, packed)

    async def _send(self, script: Script[T], index: int, packed: bytes) -> T:
        """Return the answer to a script that is packed; it is loaded where the server does not know it."""
        before = time.monotonic()
        replies = await self._exchange(index, packed, 1)
        if is_unknown_script(replies):
            before = time.monotonic()
            replies = (await self._exchange(index, pack_load(script) + packed, 2))[1:]
        result = answer(script, replies[0])
        self._namespace.clock.note(result, before, time.monotonic())
        return result

    async def _invoke_many(self, effect: InvokeMany[T]) -> list[T | BackendUnavailable]:
        groups = self._namespace.straight.by_server([index for index, _, _ in effect.calls])
        answers: dict[int, T | BackendUnavailable] = {}
        together = [
            self._invoke_together(effect.script, [effect.calls[place] for place in group]) for group in groups
        ]
        for group, found in zip(groups, await _all(together), strict=True):
            answers.update(zip(group, found, strict=True))
        return [answers[place] for place in range(len(effect.calls))]

    async def _invoke_together(
        self, script: Script[T], calls: Sequence[ScriptCall]
    ) -> list[T | BackendUnavailable]:
        namespace, index, count = self._namespace, calls[0][0], len(calls)
        packed = b"".join([pack_script(script, keys, args) for _, keys, args in calls])
        before = time.monotonic()
        try:
            replies = await self._exchange(index, packed, count)
            if is_unknown_script(replies):
                before = time.monotonic()
                again = await self._exchange(index, pack_load(script) + packed, count + 1)
                replies = again[1:]
        except BackendUnavailable as error:
            await self._failed(index, error)
            return [error] * count
        answers = answers_of(script, replies)
        namespace.clock.note(answers[0], before, time.monotonic())
        await self._note_all((index, answer) for (index, _, _), answer in zip(calls, answers, strict=True))
        return answers

    async def _compute(self, effect: Compute, call: Call) -> list[Computed]:
        compute = call.compute
        assert compute is not None  # noqa: S101  only programs that were given a function yield Compute
        with self._namespace.renewing(effect.leases), call.running(effect.indices):
            start = time.perf_counter()
            values = await compute(effect.indices)
            cost_ms = round((time.perf_counter() - start) * 1000)
        return call.computed(effect.indices, values, cost_ms)
