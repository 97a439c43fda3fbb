"""
Streams by asyncio.  ``_stream`` is its twin; keep them side by side.

A consumer is given every chunk once and in order, whichever source it comes from: the stored stream, one that is
running here or elsewhere, or its own call.  When a source ends early the next one is compared with what was passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
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
                leading = _lead(driver, asked, outcome, fn, passed)
                try:
                    async for chunk in leading:
                        yield chunk
                finally:
                    with contextlib.suppress(RuntimeError):  # the loop shuts down and is closing it by itself
                        await leading.aclose()
                return
            case Flight():
                following = _follow_here(wanted, outcome, passed)
                async for chunk in following:
                    yield chunk
                if outcome.tape is not None and outcome.tape.complete and passed.level_with(outcome.tape):
                    state.counters.add("coalesced")
                    return
                outcome = await driver._run(programs.tune_in(state, wanted), call)
            case programs.Elsewhere():
                source = _Elsewhere(driver, wanted, outcome, call, passed)
                async for chunk in source.chunks():
                    yield chunk
                if source.next is None:
                    state.counters.add("coalesced")
                    return
                outcome = source.next


async def _follow_here(wanted: programs.Ask, flight: Flight, passed: Passed) -> AsyncIterator[Any]:
    """Yield what the tape holds as it comes, until the stream ends or takes too long."""
    tape = flight.tape
    if tape is None:
        return
    count = 0
    while True:
        if await within(tape.more(count), wanted.policy.max_wait_s, TIMED_OUT) is TIMED_OUT:
            return
        for recorded in tape.chunks[count:]:
            count += 1
            for chunk in passed.take(recorded):
                yield chunk
        if tape.ended and count == len(tape.chunks):
            if tape.error is not None:
                raise tape.error
            return


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


async def _lead(
    driver: Driver, asked: Asked, held: programs.Held, fn: Callable[[], Any], passed: Passed
) -> AsyncGenerator[Any, None]:
    """Yield what the producer yields, recorded; store it once it has come to its end."""
    namespace, call = driver._namespace, asked.call
    owner: object = asyncio.current_task()
    recording = Recording(namespace, held, passed.codec)
    namespace.hold(owner, held)
    producer: AsyncIterator[Any] | None = None
    try:
        producer = await _opened(fn)
        async for chunk in producer:
            recording.add(chunk)
            if passed.is_new(chunk):
                yield chunk
    except GeneratorExit:
        if asked.drain > 0 and producer is not None:
            detach(_drain(driver, asked, held, producer, recording, owner))
            owner = None  # the background ends it
        else:
            await _close(producer)
            await driver._run(programs.abandon(namespace.state, held, None), call)
        raise
    except BaseException as error:
        shared = error if isinstance(error, Exception) else None
        await driver._run(programs.abandon(namespace.state, held, shared), call)
        raise
    else:
        await _end(driver, held, call, recording)
    finally:
        if owner is not None:
            namespace.unhold(owner, held)


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
