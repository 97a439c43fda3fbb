"""
Streams by asyncio.  ``_stream`` is its twin; keep them side by side.

A consumer is given every chunk once and in order, whichever source it comes from: the stored stream, one that is
running here or elsewhere, or its own call.  When a source ends early the next one is compared with what was passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from . import _programs as programs
from ._effects import TIMED_OUT, Program
from ._flights import Flight
from ._loops import awaited, detach, within
from ._namespace import Call, Namespace
from ._recording import Asked, Passed, Recording
from .served import Served


class Driver(Protocol):
    """What runs programs."""

    _namespace: Namespace

    async def _run(self, program: Program[Any], call: Call) -> Any: ...


async def stream(driver: Driver, asked: Asked, fn: Callable[[], Any]) -> AsyncIterator[Any]:
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
                for stored in outcome.value:
                    for chunk in passed.take(stored):
                        yield chunk
                return
            case programs.Held():
                leading = _Leading(driver, asked, outcome, fn, passed)
                try:
                    async for chunk in leading:
                        yield chunk
                except GeneratorExit:
                    await leading.gone()
                    raise
                return
            case Flight():
                here = _Here(driver, wanted, outcome, call, passed)
                async for chunk in here.chunks():
                    yield chunk
                if here.whole:
                    state.counters.add("coalesced")
                    return
                if outcome.tape.ended:
                    outcome = await driver._run(programs.tune_in(state, wanted), call)
                else:  # waiting for it again would not end
                    outcome = programs.Held(wanted, None, None)
            case programs.Elsewhere():
                source = _Elsewhere(driver, wanted, outcome, call, passed)
                async for chunk in source.chunks():
                    yield chunk
                if source.next is None:
                    state.counters.add("coalesced")
                    return
                outcome = source.next


class _Here:
    """A stream that is led in this process; ``whole`` once the consumer was given all of it."""

    def __init__(
        self, driver: Driver, wanted: programs.Ask, flight: Flight, call: Call, passed: Passed
    ) -> None:
        self._driver, self._wanted, self._flight = driver, wanted, flight
        self._call, self._passed = call, passed
        self.whole = False

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield what the leader passes on as it comes, or what it lands."""
        tape, count = self._flight.tape, 0
        while not (tape.ended and count == len(tape.chunks)):
            if await within(tape.more(count), self._wanted.policy.max_wait_s, TIMED_OUT) is TIMED_OUT:
                return
            for recorded in tape.chunks[count:]:
                count += 1
                for chunk in self._passed.take(recorded):
                    yield chunk
        if tape.error is not None:
            raise tape.error
        self.whole = tape.complete
        if not tape.complete or count:
            return
        program = programs.rest(self._wanted, self._flight)
        landed = await self._driver._run(program, self._call)
        self.whole = landed is not None
        for recorded in landed or ():
            for chunk in self._passed.take(recorded):
                yield chunk


class _Elsewhere:
    """A stream that is led elsewhere; ``next`` is None once it came to its end, else what to go on with."""

    def __init__(
        self,
        driver: Driver,
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
        count = 0
        while True:
            program = programs.follow(self._driver._namespace.state, self._wanted, self._elsewhere, count)
            outcome = await self._driver._run(program, self._call)
            if not isinstance(outcome, programs.Chunks):
                self.next = outcome or programs.Held(self._wanted, None, None)
                return
            for published in outcome.chunks:
                count += 1
                for chunk in self._passed.take(published):
                    yield chunk
            if outcome.last:
                return


class _Leading:
    """
    A stream that this consumer leads: passes on what the producer yields, recorded, and stores it at its end.

    Not a generator: when a loop shuts down it closes all of those at once, whichever drives which.
    """

    def __init__(
        self, driver: Driver, asked: Asked, held: programs.Held, fn: Callable[[], Any], passed: Passed
    ) -> None:
        self._driver, self._asked, self._held, self._fn = driver, asked, held, fn
        self._passed = passed
        self._owner: object = asyncio.current_task()
        self._producer: AsyncIterator[Any] | None = None
        self._recording = Recording(driver._namespace, held, passed.codec)
        driver._namespace.hold(self._owner, held)

    def __aiter__(self) -> _Leading:
        return self

    async def __anext__(self) -> Any:
        try:
            if self._producer is None:
                self._producer = await _opened(self._fn)
            while True:
                chunk = await anext(self._producer)
                self._recording.add(chunk)
                if self._passed.is_new(chunk):
                    return chunk
        except StopAsyncIteration:
            try:
                await _end(self._driver, self._held, self._asked.call, self._recording)
            finally:
                self._unhold()
            raise
        except BaseException as error:
            await self._abandon(error if isinstance(error, Exception) else None)
            raise

    async def gone(self) -> None:
        """The consumer has gone: go on in the background, or hand over."""
        if self._asked.drain > 0 and self._producer is not None:
            detach(
                _drain(self._driver, self._asked, self._held, self._producer, self._recording, self._owner)
            )
        else:
            await _close(self._producer)
            await self._abandon(None)

    async def _abandon(self, error: Exception | None) -> None:
        state = self._driver._namespace.state
        try:
            await self._driver._run(programs.abandon(state, self._held, error), self._asked.call)
        finally:
            self._unhold()

    def _unhold(self) -> None:
        self._driver._namespace.unhold(self._owner, self._held)


async def _end(driver: Driver, held: programs.Held, call: Call, recording: Recording) -> None:
    state = driver._namespace.state
    if recording.whole:
        await driver._run(programs.end(state, held, recording.tape.chunks, recording.cost_ms), call)
    else:
        await driver._run(programs.abandon(state, held, None), call)


async def _drain(
    driver: Driver,
    asked: Asked,
    held: programs.Held,
    producer: AsyncIterator[Any],
    recording: Recording,
    owner: object,
) -> None:
    """Read a stream to its end whose consumer has gone, for as long as was asked."""
    state, call = driver._namespace.state, asked.call
    try:
        async with asyncio.timeout(asked.drain):
            async for chunk in producer:
                recording.add(chunk)
        await _end(driver, held, call, recording)
    except TimeoutError:
        await _close(producer)
        await driver._run(programs.abandon(state, held, None), call)
    except BaseException as error:  # nobody is there to hear of it but those who follow
        shared = error if isinstance(error, Exception) else None
        await driver._run(programs.abandon(state, held, shared), call)
        if shared is None:
            raise
    finally:
        driver._namespace.unhold(owner, held)


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


async def _close(producer: AsyncIterator[Any] | None) -> None:
    close = getattr(producer, "aclose", None)
    if close is not None:
        await close()
