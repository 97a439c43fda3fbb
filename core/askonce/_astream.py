"""
Streams by asyncio.  ``_stream`` is its twin; keep them side by side.

A consumer is given every chunk once and in order, whichever source it comes from: the stored stream, one that is
running here or elsewhere, or its own call.  When a source ends early the next one is compared with what was passed on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import Any, Final

from . import _programs as programs
from ._adriver import AsyncDriver
from ._call import Call
from ._effects import TIMED_OUT, Program
from ._flights import Flight
from ._loops import awaited, detach, within
from ._recording import LOOK_AGAIN_S, Asked, Passed, Recording
from .entry import Corrupt
from .errors import StreamBroken
from .served import Served

#: What to go on with when a leader gave up: look again.
_AGAIN: Final = object()


async def stream(driver: AsyncDriver, asked: Asked, fn: Callable[[], Any]) -> AsyncIterator[Any]:
    """Yield the chunks of one stream; *fn* is called if nobody else has it or is producing it."""
    namespace, state = driver._namespace, driver._namespace.state
    home, waits = asyncio.get_running_loop(), not namespace.holds(asyncio.current_task())
    wanted = replace(asked.wanted, home=home, waits=waits)
    passed, call = Passed(asked.codec), asked.call
    outcome: Any = await driver._run(programs.tune_in(state, wanted), call)
    while True:
        passed.begin_source()
        match outcome:
            case Served():
                for chunk in passed.conclude(asked.told(outcome)):
                    yield chunk
                return
            case programs.Behind(served=served, flight=flight):
                try:
                    if asked.on_served is not None:
                        asked.on_served(served)  # first: who is told knows what *fn* is called for
                finally:
                    work = detach(_produce_behind(driver, asked, outcome, fn), Context())  # as in a thread
                    work.add_done_callback(partial(_landed, state, flight))
                for chunk in passed.conclude(served.value):
                    yield chunk
                return
            case programs.Held():
                leading = _Leading(driver, asked, outcome, fn, passed)
                try:
                    async for chunk in leading:
                        try:
                            yield chunk
                        except BaseException:  # the consumer's: break, close, an error that it throws in
                            await leading.gone()
                            raise
                except Exception:
                    kept = programs.stand_in(state, outcome.fallback) if passed.nothing else None
                    if kept is None:
                        raise
                    for chunk in passed.conclude(asked.told(kept)):
                        yield chunk
                return
            case Flight():
                source: _Here | _Elsewhere = _Here(driver, wanted, outcome, call, passed)
            case _:
                source = _Elsewhere(driver, wanted, outcome, call, passed)
        try:
            async for chunk in source.chunks():
                yield chunk
            outcome = source.next
        except Corrupt:  # written by another codec: of no use to this caller
            outcome = programs.Held(wanted, None, None)
        except Exception:
            kept = await driver._run(programs.fallback(state, wanted), call) if passed.nothing else None
            if kept is None:
                raise
            for chunk in passed.conclude(asked.told(kept)):
                yield chunk
            return
        if outcome is None:
            state.counters.add("coalesced")
            return
        if outcome is _AGAIN:
            outcome = await driver._run(programs.tune_in(state, wanted), call)


async def _produce_behind(
    driver: AsyncDriver, asked: Asked, behind: programs.Behind, fn: Callable[[], Any]
) -> None:
    """Produce a stale stream anew, for nobody in particular."""
    held = await driver._run(programs.take_up(driver._namespace.state, behind), asked.call)
    if held is not None:
        with suppress(Exception):  # nobody is there to hear of it; the stale stream stays
            async for _ in _Leading(driver, asked, held, fn, Passed(asked.codec)):
                pass


def _landed(state: programs.State, flight: Flight, _: object) -> None:
    state.flights.land(flight)  # also where the loop ended before the work began


class _Here:
    """A stream that is led in this process; ``next`` is None once it came to its end, else what to go on with."""

    def __init__(
        self, driver: AsyncDriver, wanted: programs.Ask, flight: Flight, call: Call, passed: Passed
    ) -> None:
        self._driver, self._wanted, self._flight = driver, wanted, flight
        self._call, self._passed = call, passed
        self.next: Any = programs.Held(wanted, None, None)

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield what the leader passes on as it comes, or what it lands."""
        tape, count = self._flight.tape, 0
        with tape.follow():
            while not (tape.ended and count == len(tape.chunks)):
                if await within(tape.more(count), self._wanted.policy.max_wait_s, TIMED_OUT) is TIMED_OUT:
                    self._driver._namespace.state.counters.add_reason("bypassed", "max_wait")
                    return
                for recorded in tape.chunks[count:]:
                    count += 1
                    for chunk in self._passed.take(recorded):
                        yield chunk
        if tape.error is not None:
            raise tape.error
        if not tape.complete:
            elsewhere = self._flight.elsewhere
            self.next = programs.Elsewhere(elsewhere) if elsewhere else _AGAIN
            return
        if not count:
            landed = await self._driver._run(programs.rest(self._wanted, self._flight), self._call)
            if landed is None:
                return
            for chunk in self._passed.conclude(landed):
                yield chunk
        self.next = None


class _Elsewhere:
    """A stream that is led elsewhere; ``next`` is None once it came to its end, else what to go on with."""

    def __init__(
        self,
        driver: AsyncDriver,
        wanted: programs.Ask,
        elsewhere: programs.Elsewhere,
        call: Call,
        passed: Passed,
    ) -> None:
        self._driver, self._wanted, self._elsewhere = driver, wanted, elsewhere
        self._call, self._passed = call, passed
        self.next: Any = None

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield what the leader publishes."""
        namespace, wanted, count = self._driver._namespace, self._wanted, 0
        relay = namespace.state.relays.of(wanted.digest, self._elsewhere.fence)
        while True:
            while count < len(relay.chunks):
                if relay.lags(time.monotonic()):
                    try:
                        await self._driver._run(
                            programs.read_ahead(namespace.state, wanted, self._elsewhere, relay), self._call
                        )
                    finally:
                        relay.give(time.monotonic())
                recorded, count = relay.chunks[count], count + 1
                for chunk in self._passed.take(recorded):
                    yield chunk
            if relay.ended and count == len(relay.chunks):
                break
            turn = relay.turn(count, time.monotonic())
            if turn is None:
                try:
                    outcome = await self._driver._run(
                        programs.pull(namespace.state, wanted, self._elsewhere, relay), self._call
                    )
                finally:
                    relay.give(time.monotonic())
                if outcome is not None:
                    self.next = outcome
                    return
            elif await within(turn, wanted.policy.max_wait_s, TIMED_OUT) is TIMED_OUT:
                namespace.state.counters.add_reason("bypassed", "max_wait")
                self.next = programs.Held(wanted, None, None)
                return
        if relay.error is not None:
            raise relay.error
        if relay.stored is not None:
            for chunk in self._passed.conclude(relay.stored):
                yield chunk
        self.next = None if relay.complete else _AGAIN


class _Leading:
    """
    A stream that this consumer leads: passes on what the producer yields, recorded, and stores it at its end.

    Not a generator: when a loop shuts down it closes all of those at once, whichever drives which.
    """

    def __init__(
        self, driver: AsyncDriver, asked: Asked, held: programs.Held, fn: Callable[[], Any], passed: Passed
    ) -> None:
        self._driver, self._asked, self._held, self._fn = driver, asked, held, fn
        self._passed = passed
        self._owner: object = asyncio.current_task()
        self._producer: AsyncIterator[Any] | None = None
        self._recording = Recording(driver._namespace, held, passed.codec)
        self._over = False
        driver._namespace.hold(self._owner, held)

    def __aiter__(self) -> _Leading:
        return self

    async def __anext__(self) -> Any:
        try:
            if self._producer is None:
                self._producer = await _opened(self._fn)
            while True:
                chunk = await anext(self._producer)
                new = self._passed.is_new(
                    chunk
                )  # first: what breaks this consumer's stream is given to nobody
                self._recording.add(chunk)
                if new:
                    return chunk
        except StopAsyncIteration:
            await self._end()
            raise
        except StreamBroken:  # of this consumer alone: others may go on with what the model says now
            await self._close(None)
            raise
        except BaseException as error:
            await self._close(error if isinstance(error, Exception) else None)
            raise

    async def gone(self) -> None:
        """The consumer has gone: go on in the background for a while, or as long as somebody follows, or hand over."""
        # A loop that shuts down begins nothing any more; asyncio says so in this name only.
        ending = getattr(asyncio.get_running_loop(), "_asyncgens_shutdown_called", False)
        goes_on = self._producer is not None and not self._over and not ending
        followed = self._asked.while_followed and goes_on and await self._followed()
        if self._producer is not None and goes_on and (followed or self._asked.drain > 0):
            self._driver._namespace.leave(self._owner)
            self._owner = None
            patience = self._held.wanted.policy.max_wait_s if followed else self._asked.drain
            detach(self._drain(self._producer, patience)).add_done_callback(lambda _: self._lost())
        else:
            await self._close(None)

    async def _drain(self, producer: AsyncIterator[Any], patience: float) -> None:
        until = time.monotonic() + self._asked.drain
        try:
            async with asyncio.timeout(patience):
                async for chunk in producer:
                    self._recording.add(chunk)
                    if time.monotonic() > until:
                        if not (self._asked.while_followed and await self._followed()):
                            raise TimeoutError
                        until = time.monotonic() + LOOK_AGAIN_S
            await self._end()
        except TimeoutError:
            await self._close(None, drained=True)
        except BaseException as error:  # nobody is there to hear of it but those who follow
            await self._close(error if isinstance(error, Exception) else None, drained=True)
            if not isinstance(error, Exception):
                raise

    async def _end(self) -> None:
        """The producer came to its end: store what was recorded."""
        if self._first():
            namespace, recording, held = self._driver._namespace, self._recording, self._held
            if recording.whole:
                chunks, unsent = recording.tape.chunks, namespace.unpublished(held)
                await self._run(programs.end(namespace.state, held, chunks, recording.cost_ms, unsent))
            else:
                await self._run(programs.abandon(namespace.state, held, None))

    async def _close(self, error: Exception | None, *, drained: bool = False) -> None:
        """The producer failed, or is not wanted any more: give the lease back.  Not if it was left to a drain."""
        if (drained or self._owner is not None) and self._first():
            try:
                # First, and without waiting for a producer that takes its time to close: others may go on.
                await self._run(programs.abandon(self._driver._namespace.state, self._held, error))
            finally:
                close = getattr(self._producer, "aclose", None)
                if close is not None:
                    try:
                        await close()
                    except RuntimeError as trouble:
                        if "already running" not in str(trouble):  # the loop shuts down and is closing it
                            raise

    async def _followed(self) -> bool:
        program = programs.is_followed(self._driver._namespace.state, self._held)
        return self._recording.tape.followed or await self._driver._run(program, self._asked.call)

    def _lost(self) -> None:
        """Hand over what nobody can end any more: the loop has ended first."""
        if not self._over:
            self._over = True
            self._driver._namespace.orphan(self._owner, self._held)

    def __del__(self) -> None:
        if not getattr(self, "_over", True):
            self._lost()

    def _first(self) -> bool:
        """Note the end; return whether it is the first."""
        first, self._over = not self._over, True
        if first:
            self._driver._namespace.unhold(self._owner, self._held)
        return first

    async def _run(self, program: Program[Any]) -> None:
        await self._driver._run(program, self._asked.call)


async def _opened(fn: Callable[[], Any]) -> AsyncIterator[Any]:
    """Return the producer's chunks: an async iterable, or what an awaitable of one gives; a plain iterable too."""
    opened = await awaited(fn())
    if hasattr(opened, "__aiter__"):
        chunks: AsyncIterator[Any] = aiter(opened)
        return chunks
    return _plain(opened)


async def _plain(chunks: Any) -> AsyncIterator[Any]:
    for chunk in chunks:
        yield chunk
