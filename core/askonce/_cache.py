"""The cache for threads.  ``_aio`` is its twin; keep them side by side."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Literal, ParamSpec, TypeVar, assert_never, overload

from . import _programs as programs
from ._aio import AsyncCache
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
)
from ._loops import running_loop
from ._stream import stream
from ._view import View, memo_request
from ._warm import WarmReport, fill
from ._wire.commands import answer, checked, is_unknown_script, pack, pack_load, pack_script
from ._wire.endpoint import Client, Endpoint
from .control import NONE, Control, current
from .entry import Codec, encode_chunk
from .errors import BackendUnavailable, ConfigurationError, Unfit
from .keys import Explanation, tag_hash
from .policy import Admit, Duration, seconds
from .scripts import Script
from .served import AnyServed, Served
from .stats import EntryInfo, Stats, Usage

T = TypeVar("T")
P = ParamSpec("P")


class Cache(View):
    """A response cache for code that blocks; safe to share between threads."""

    @functools.cached_property
    def aio(self) -> AsyncCache:
        """The async twin: same keys, flights, connections' breaker and counters."""
        return self._sibling(AsyncCache, self._fingerprints)

    def client(self, *, timeout: Duration = 10.0) -> Client:
        """
        Return a client of redis-py for the cache's server, the embedded one too: for data of the application's own.

        It is a new one with connections of its own, waits *timeout* seconds for a reply, retries nothing and raises
        redis-py's errors.  Raises ConfigurationError for a cluster and for Sentinels: make their client by redis-py.
        """
        place = self._namespace.place
        if not isinstance(place, Endpoint) or place.own is not None:
            raise ConfigurationError(
                f"{place.label}: a client of one server is made; make this one by redis-py"
            )
        return place.client(seconds("timeout", timeout, at_least=0.001))

    def lookup(self, request: object, *, codec: Codec[Any] | None = None) -> AnyServed | None:
        """
        Return what is stored for *request*, fresh or stale, or None.  Costs one round trip.

        Raises Uncacheable for a request that has no canonical form.
        """
        control, fetched = current(), None
        digest = self._digest(request, control)
        if control is NONE:
            served, fetched = self._straight(digest, codec)
            if served is not None:
                return served
        wanted = self._namespace.ask(digest, self._policy, control)
        return self._run(programs.lookup(self._namespace.state, wanted, fetched), self._call(codec))

    def store(
        self,
        request: object,
        value: object,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        cost: float | None = None,
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
        label: str | None = None,
    ) -> bool:
        """
        Store *value* for *request*; return True if it was admitted and stored.

        ``cost`` is what it took to compute, in seconds; ``label`` is what ``entries`` lists it as.  Raises Uncacheable for a request or a value that cannot be
        stored without guessing.
        """
        wanted = self._ask(request, ttl=ttl, tags=tags, label=label)
        cost_ms = round((cost or 0.0) * 1000)
        return self._run(
            programs.store(self._namespace.state, wanted, value, cost_ms), self._call(codec, admit)
        )

    def get_or_compute(
        self,
        request: object,
        fn: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> T:
        """
        Return what is stored for *request*, or what *fn* returns, called once among all who ask at the same time.

        The value is in the caller's hand whatever becomes of the cache.  Exceptions of *fn* pass unwrapped; Uncacheable
        is raised for a request that has no canonical form, LeaderFailed if another process computed it and failed; with
        ``share_errors=False`` one of those who wait computes next instead.  ``max_wait``: the most that this caller
        waits for another's answer, in seconds, if less than the policy's.
        """
        value: T = self.serve(
            request,
            fn,
            ttl=ttl,
            tags=tags,
            codec=codec,
            admit=admit,
            share_errors=share_errors,
            max_wait=max_wait,
        ).value
        return value

    def serve(
        self,
        request: object,
        fn: Callable[[], T],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
    ) -> Served[T]:
        """Do what ``get_or_compute`` does, and return the value together with its source, age and ttl."""
        control, fetched = current(), None
        digest = self._digest(request, control)
        if control is NONE:
            served, fetched = self._straight(digest, codec)
            if served is not None:
                return served
        call = self._call(codec, admit, lambda _: [fn()], (digest,))
        wanted = self._namespace.ask(
            digest,
            self._policy,
            control,
            ttl=ttl,
            tags=tags,
            share_errors=share_errors,
            max_wait=max_wait,
            waits=not self._namespace.holds(threading.current_thread()),
        )
        return self._run(programs.get_or_compute(self._namespace.state, wanted, fetched), call)

    def stream(
        self,
        request: object,
        fn: Callable[[], Iterable[T]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[T] | None = None,
        admit: Admit | None = None,
        drain: Duration | Literal["followed"] = 0.0,
        share_errors: bool = True,
        max_wait: Duration | None = None,
        fold: Callable[[list[T]], Any] | None = None,
        on_served: Callable[[AnyServed], object] | None = None,
    ) -> Iterator[T]:
        """
        Return the chunks of an answer: stored, running anywhere, or produced by *fn*, which is called at most once.

        Recorded while they are passed on, and stored only when the producer came to its end.  Who asks meanwhile, in
        any process, is given the same chunks from the first on as they come.  When the consumer goes away early, the
        producer is closed and a follower takes over; with ``drain`` it is read to its end in the background, for at
        most that long, or, with ``"followed"``, as long as somebody follows.  No chunk is given twice: if a followed stream breaks off and the model's new answer begins
        differently, StreamBroken is raised.

        ``share_errors``: those who follow get the producer's error; otherwise one of them calls the model.
        ``fold(chunks)`` makes what is stored of a whole stream, instead of the list of its chunks (or raises
        ``Refused``).  ``on_served`` is told of a stored stream before its first chunk.
        """
        asked = self._stream_words(
            request,
            codec,
            admit,
            drain,
            fold,
            on_served,
            ttl=ttl,
            tags=tags,
            share_errors=share_errors,
            max_wait=max_wait,
        )
        return stream(self, asked, fn)

    def get_many(
        self, requests: Sequence[object], *, codec: Codec[Any] | None = None
    ) -> list[AnyServed | None]:
        """Return what ``lookup`` returns, for each request in order, in one round trip."""
        control = current()
        digests, numbers = self._digests(requests, control)
        served, fetched = self._straight_many(digests, codec, control)
        found: dict[int, AnyServed | None] = {**served}
        if asks := self._asks(digests, control, served):
            program = programs.get_many(self._namespace.state, asks, fetched)
            rest = self._run(program, self._call(codec))
            found.update((wanted.index, one) for wanted, one in zip(asks, rest, strict=True))
        return [found[number] for number in numbers]

    def store_many(
        self,
        requests: Sequence[object],
        values: Sequence[object],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
        labels: Sequence[str | None] | None = None,
    ) -> list[bool]:
        """
        Do what ``store`` does for each request and its value, in one round trip; return which were stored.

        Raises Uncacheable, with nothing stored, if a request or a value cannot be stored without guessing.
        """
        asks = self._each(requests, len(values), labels, ttl=ttl, tags=tags)
        return self._run(programs.store_many(self._namespace.state, asks, values), self._call(codec, admit))

    def get_or_compute_many(
        self,
        requests: Sequence[T],
        fn: Callable[[list[T]], Sequence[Any]],
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
    ) -> list[Any]:
        """
        Return a value for each request, in order.

        ``fn(missing)`` is called once with the distinct requests that are neither stored nor being computed by anybody,
        in order, and returns their values in that order, or an exception in the place of one that failed:
        the others are stored, then the first failure is raised.  What fails in the hands of others is asked of *fn* in
        a second call.
        """
        control = current()
        digests, numbers = self._digests(requests, control)
        served, fetched = self._straight_many(digests, codec, control)
        if len(served) == len(digests):
            return [served[number].value for number in numbers]
        asks = self._asks(
            digests,
            control,
            served,
            ttl=ttl,
            tags=tags,
            waits=not self._namespace.holds(threading.current_thread()),
        )
        firsts = dict(zip(reversed(numbers), reversed(requests), strict=True))

        def compute(indices: Sequence[int]) -> Sequence[Any]:
            return fn([firsts[index] for index in indices])

        call = self._call(codec, admit, compute, digests)
        program = programs.get_or_compute_many(self._namespace.state, asks, fetched)
        rest = self._run(program, call)
        served.update((wanted.index, one) for wanted, one in zip(asks, rest, strict=True))
        return [served[number].value for number in numbers]

    def begin(
        self,
        request: object,
        *,
        usable: Callable[[Any], bool] | None = None,
        share_errors: bool = True,
        max_wait: Duration | None = None,
        codec: Codec[Any] | None = None,
        refresh: bool = False,
    ) -> AnyServed | Lease:
        """
        Return what is stored for *request*, or a Lease: the caller computes, and ends with finish, fail or abandon.

        ``usable(value)`` may refuse what is stored.  ``share_errors``: an error given to ``fail`` or ``abandon`` is
        raised by those who wait for it, unless something stored may stand in.  ``refresh``: serve nothing that is stored.
        A thread that holds an unfinished lease never waits.
        """
        control, fetched, owner = current(), None, threading.current_thread()
        digest = self._digest(request, control)
        if control is NONE and not refresh:
            served, fetched = self._straight(digest, codec, usable)
            if served is not None:
                return served
        call = self._call(codec)
        call.usable = usable
        wanted = self._namespace.ask(
            digest,
            self._policy,
            control,
            waits=not self._namespace.holds(owner),
            share_errors=share_errors,
            max_wait=max_wait,
        )
        outcome = self._run(programs.begin(self._namespace.state, wanted, fetched, refresh=refresh), call)
        return Lease(self, outcome, call, owner) if isinstance(outcome, programs.Held) else outcome

    def warm(
        self,
        requests: Iterable[T],
        fn: Callable[[T], Any],
        *,
        concurrency: int = 8,
        on_progress: Callable[[WarmReport], object] | None = None,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        codec: Codec[Any] | None = None,
        admit: Admit | None = None,
    ) -> WarmReport:
        """
        Fill the cache ahead of demand: do what ``get_or_compute`` does for each request, with ``fn(request)``.

        At most *concurrency* at a time, read from *requests* as they are needed.  Returns how many were computed and
        found; a request that fails is listed there with its exception, and stops nothing.  ``on_progress`` is told
        after each request.
        """

        def serve(request: T) -> AnyServed:
            return self.serve(request, lambda: fn(request), ttl=ttl, tags=tags, codec=codec, admit=admit)

        return fill(requests, serve, concurrency, on_progress)

    def invalidate(self, request: object) -> bool:
        """
        Remove the entry of *request*, and refuse what is being computed for it.

        Return whether there was anything; False too if Redis could not be told.
        """
        return self.invalidate_many([request]) > 0

    def invalidate_many(self, requests: Sequence[object]) -> int:
        """Do what ``invalidate`` does for each request, together; return how many entries were removed."""
        control = current()
        asks = self._asks(self._digests(requests, control)[0], control)
        return self._run(programs.invalidate(self._namespace.state, asks), Call())

    def invalidate_tag(self, tag: str) -> bool:
        """Make every entry with *tag* unreachable, however many; return whether Redis has noted it."""
        return self._run(programs.invalidate_tag(self._namespace.state, tag_hash(tag)), Call())

    def bump(self) -> int:
        """
        Make every entry of the namespace unreachable, at once and in every process; memory is freed behind.

        Return the new generation, or 0 if Redis could not be told.
        """
        return self._run(programs.bump(self._namespace.state), Call())

    def clear(self) -> int:
        """Make every entry of the namespace unreachable and remove all; return how many were removed."""
        return self._run(programs.clear(self._namespace.state), Call())

    @overload
    def memoize(self, fn: Callable[P, T]) -> Callable[P, T]: ...
    @overload
    def memoize(
        self,
        fn: None = None,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    def memoize(
        self,
        fn: Callable[P, T] | None = None,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> Any:
        """
        Decorate a function: its name and arguments are the request, what it returns is stored.

        ``ignore`` names parameters that do not shape the answer (a client, ``self``).  What the function reads
        elsewhere is not in the key: pass it as an argument, or put it into ``version`` or a scope.
        """
        if fn is None:
            return functools.partial(self.memoize, ttl=ttl, tags=tags, ignore=ignore)
        if inspect.iscoroutinefunction(fn):
            return self.aio.memoize(fn, ttl=ttl, tags=tags, ignore=ignore)  # type: ignore[call-overload]
        request = memo_request(fn, ignore)

        @functools.wraps(fn)
        def memoized(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.get_or_compute(
                request(*args, **kwargs), lambda: fn(*args, **kwargs), ttl=ttl, tags=tags
            )

        return memoized

    def stats(self) -> Stats:
        """Return the counters of the whole fleet; of this process alone while Redis is away (``fleet=False``)."""
        return self._run(programs.flush(self._namespace.state), Call())

    def usage(self) -> Usage:
        """Return what the books hold now, expired entries excluded; ``known=False`` while Redis is away."""
        return self._run(programs.usage(self._namespace.state), Call())

    def entries(self, *, limit: int | None = None, prefix: str = "") -> Iterator[EntryInfo]:
        """
        Iterate over what is stored in the namespace, in no order: at most *limit* entries with labels from *prefix*.

        What stays meanwhile is listed once; it ends early, and counts an error, if Redis goes away.  Asks for 64
        entries a round trip.
        """
        seen: set[bytes] = set()
        left = float("inf") if limit is None else limit
        for part in self._namespace.state.partitions:
            cursor = b"0"
            while left > 0:
                now_ms = int(self._namespace.clock.now())
                cursor, page = self._run(
                    programs.entries(self._namespace.state, part, cursor, now_ms), Call()
                )
                for member, info in page:
                    if member not in seen and left > 0 and (info.label or "").startswith(prefix):
                        left -= 1
                        yield info
                    seen.add(member)
                if cursor == b"0":
                    break

    def explain(self, request: object, other: object = None) -> Explanation:
        """Return every part of the key of *request*, and, given an *other*, where the two requests differ."""
        wanted = self._ask(request)
        generation = self._run(programs.whereabouts(self._namespace.state, wanted.partition), Call())
        return self._explained(request, other, wanted, generation)

    def close(self) -> None:
        """Wait for background work and close connections; scopes share them.  A closed cache connects anew if used."""
        with contextlib.suppress(BackendUnavailable):  # strict: there is nobody to count for
            self._run(programs.flush(self._namespace.state), Call())
        self._namespace.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the driver -------------------------------------------------------------------------------------------

    def _straight(
        self, digest: bytes, codec: Codec[Any] | None, usable: Callable[[Any], bool] | None = None
    ) -> tuple[AnyServed | None, Fetched | None]:
        """Serve a plain fresh hit with no program; else return what was fetched, so that nothing is read twice."""
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
        except BackendUnavailable:
            return None, None  # the program meets it again, at once, and decides

    def _straight_many(
        self, digests: Sequence[bytes], codec: Codec[Any] | None, control: Control
    ) -> tuple[dict[int, AnyServed], Fetched | None]:
        """Do what ``_straight`` does for several of one partition; return the hits by their numbers."""
        namespace = self._namespace
        part = namespace.straight.only_partition(digests) if control is NONE else None
        if part is None or (word := part.word) is None:
            return {}, None
        try:
            fetched = self._read(part, tuple([word.prefix + digest for digest in digests]))
        except BackendUnavailable:
            return {}, None  # as above
        return namespace.straight.plain_hits(word, fetched, self._policy, codec)

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
            self._namespace.failed(effect.partition, error)
            if isinstance(error, Unfit) and (node := self._namespace.nodes[effect.partition]) is not None:
                node.held.drop()

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
        if uses := namespace.straight.due_uses():
            told = programs.tell_used(namespace.state, uses)
            namespace.background.submit(functools.partial(self._run, told, Call()))
        return fetched

    def _ask_for(self, part: programs.Partition, members: tuple[bytes, ...], now: float) -> list[Any]:
        """Return the replies to ``pack_fetch``."""
        packed, touched = self._namespace.straight.pack_fetch(part, members, now)
        return self._exchange(part.index, packed, 2 if touched else 1)

    def _fetch_many(self, fetches: Sequence[Fetch]) -> list[Fetched | BackendUnavailable]:
        straight = self._namespace.straight
        answers = straight.near_copies(fetches)
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
            namespace.failed(index, error)
            return dict.fromkeys(fetches, error)
        return namespace.straight.fetched_many(fetches, now, marks, counts, replies)

    def _invoke(self, effect: Invoke[T]) -> T:
        packed = pack_script(effect.script, effect.keys, effect.args)
        before = time.monotonic()
        replies = self._exchange(effect.partition, packed, 1)
        if is_unknown_script(replies):
            before = time.monotonic()
            replies = self._exchange(effect.partition, pack_load(effect.script) + packed, 2)[1:]
        result = answer(effect.script, replies[0])
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
        index, count = calls[0][0], len(calls)
        packed = b"".join([pack_script(script, keys, args) for _, keys, args in calls])
        try:
            replies = self._exchange(index, packed, count)
            if is_unknown_script(replies):
                replies = self._exchange(index, pack_load(script) + packed, count + 1)[1:]
        except BackendUnavailable as error:
            self._namespace.failed(index, error)
            return [error] * count
        return self._namespace.answers(script, [index for index, _, _ in calls], replies)

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


class Lease:
    """
    The right and the duty to compute one answer: ends with ``finish``, ``fail`` or ``abandon``.

    As a context manager it abandons what was not finished, with the error if there is one.
    """

    def __init__(self, cache: Cache, held: programs.Held, call: Call, owner: object) -> None:
        self._cache, self._held, self._call, self._owner = cache, held, call, owner
        self._done = False
        self._published = False
        self._begun = time.perf_counter()
        cache._namespace.hold(owner, held)

    def finish(
        self,
        value: object,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        cost: float | None = None,
    ) -> bool:
        """Store *value*, give the lease back and serve all who wait; return whether it was stored."""
        held = self._cache._namespace.with_words(self._held, ttl, tags)  # a wrong word does not end it
        if self._end():
            return False
        taken = time.perf_counter() - self._begun if cost is None else cost
        unsent = self._cache._namespace.unpublished(held)
        return self._cache._run(
            programs.finish(self._cache._namespace.state, held, value, round(taken * 1000), unsent),
            self._call,
        )

    def abandon(self, error: Exception | None = None) -> None:
        """Give the lease back with nothing stored: those who wait raise *error*, or one of them computes."""
        if not self._end():
            self._cache._run(programs.abandon(self._cache._namespace.state, self._held, error), self._call)

    def fail(self, error: Exception) -> AnyServed | None:
        """
        Do what ``abandon`` does; return what is stored and may stand in for the answer, or None: raise *error*.

        That is what ``begin`` found past its freshness, within ``stale_if_error`` or ``stale_while_revalidate``.
        """
        if self._end():
            return None
        return self._cache._run(programs.fail(self._cache._namespace.state, self._held, error), self._call)

    def publish(self, chunk: object) -> None:
        """
        Pass a chunk on to those who follow with ``stream``, here and in other processes, before the value is finished.

        Raises Uncacheable for a chunk that cannot be recorded.
        """
        if self._held.flight is None or self._done:
            return
        if not self._published:
            self._published = True
            self._cache._namespace.publish(self._held)
        self._held.flight.tape.append(encode_chunk(chunk, self._call.codec))

    def _end(self) -> bool:
        """Note the end; return whether it was ended before."""
        done, self._done = self._done, True
        if not done:
            self._cache._namespace.unhold(self._owner, self._held)
        return done

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.abandon(error if isinstance(error, Exception) else None)

    def __del__(self) -> None:
        if not getattr(self, "_done", True):
            self._cache._namespace.orphan(self._owner, self._held)
