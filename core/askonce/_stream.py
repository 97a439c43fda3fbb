"""
Streams by threads.  ``_astream`` is its twin; keep them side by side.

A consumer is given every chunk once and in order, whichever source it comes from: the stored stream, one that is
running here or elsewhere, or its own call.  When a source ends early the next one is compared with what was passed on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from . import _programs as programs
from ._effects import Program
from ._flights import Flight
from ._loops import running_loop
from ._namespace import Call, Namespace
from ._recording import Asked, Passed, Recording
from .served import Served


class Driver(Protocol):
    """What runs programs."""

    _namespace: Namespace

    def _run(self, program: Program[Any], call: Call) -> Any: ...


def stream(driver: Driver, asked: Asked, fn: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yield the chunks of one stream; *fn* is called if nobody else has it or is producing it."""
    namespace, state = driver._namespace, driver._namespace.state
    wanted = replace(asked.wanted, waits=not namespace.holds(threading.current_thread()))
    passed, call = Passed(asked.codec), asked.call
    outcome: Any = driver._run(programs.tune_in(state, wanted), call)
    while True:
        passed.begin_source()
        match outcome:
            case Served():
                for chunk in outcome.value:
                    yield from passed.take(chunk)
                return
            case programs.Held():
                yield from _lead(driver, asked, outcome, fn, passed)
                return
            case Flight():
                if (yield from _follow_here(driver, wanted, outcome, call, passed)):
                    state.counters.add("coalesced")
                    return
                outcome = _again(wanted, outcome) or driver._run(programs.tune_in(state, wanted), call)
            case programs.Elsewhere():
                outcome = yield from _follow_elsewhere(driver, wanted, outcome, call, passed)
                if outcome is None:
                    state.counters.add("coalesced")
                    return


def _again(wanted: programs.Ask, flight: Flight) -> programs.Held | None:
    """Return what makes this caller call for itself, if waiting for *flight* again would not end."""
    return None if flight.tape.ended else programs.Held(wanted, None, None)


def _follow_here(
    driver: Driver, wanted: programs.Ask, flight: Flight, call: Call, passed: Passed
) -> Generator[Any, None, bool]:
    """Yield what the leader passes on as it comes, or what it lands; return whether that was all."""
    if flight.home is not None and flight.home is running_loop():
        return False  # its leader needs the very loop that this call blocks
    tape, count = flight.tape, 0
    while True:
        try:
            tape.more(count).result(wanted.policy.max_wait_s)
        except FutureTimeoutError:
            return False
        for chunk in tape.chunks[count:]:
            count += 1
            yield from passed.take(chunk)
        if tape.ended and count == len(tape.chunks):
            break
    if tape.error is not None:
        raise tape.error
    if not tape.complete or count:
        return tape.complete
    chunks = driver._run(programs.rest(wanted, flight), call)
    for chunk in chunks or ():
        yield from passed.take(chunk)
    return chunks is not None


def _follow_elsewhere(
    driver: Driver, wanted: programs.Ask, elsewhere: programs.Elsewhere, call: Call, passed: Passed
) -> Generator[Any, None, Any]:
    """Yield what the leader elsewhere publishes; return None at the end, or what to go on with."""
    count = 0
    while True:
        outcome = driver._run(programs.follow(driver._namespace.state, wanted, elsewhere, count), call)
        if not isinstance(outcome, programs.Chunks):
            return outcome or programs.Held(wanted, None, None)
        for chunk in outcome.chunks:
            count += 1
            yield from passed.take(chunk)
        if outcome.last:
            return None


def _lead(
    driver: Driver, asked: Asked, held: programs.Held, fn: Callable[[], Iterable[Any]], passed: Passed
) -> Iterator[Any]:
    """Yield what the producer yields, recorded; store it once it has come to its end."""
    namespace, call = driver._namespace, asked.call
    owner: object = threading.current_thread()
    recording = Recording(namespace, held, passed.codec)
    namespace.hold(owner, held)
    producer: Iterator[Any] = iter(())
    try:
        producer = iter(fn())
        for chunk in producer:
            recording.add(chunk)
            if passed.is_new(chunk):
                yield chunk
    except GeneratorExit:
        if asked.drain > 0:
            namespace.background.submit(partial(_drain, driver, asked, held, producer, recording, owner))
            owner = None  # the background ends it
        else:
            _close(producer)
            driver._run(programs.abandon(namespace.state, held, None), call)
        raise
    except BaseException as error:
        driver._run(
            programs.abandon(namespace.state, held, error if isinstance(error, Exception) else None), call
        )
        raise
    else:
        _end(driver, held, call, recording)
    finally:
        if owner is not None:
            namespace.unhold(owner, held)


def _end(driver: Driver, held: programs.Held, call: Call, recording: Recording) -> None:
    state = driver._namespace.state
    if recording.whole:
        driver._run(programs.end(state, held, recording.tape.chunks, recording.cost_ms), call)
    else:
        driver._run(programs.abandon(state, held, None), call)


def _drain(
    driver: Driver,
    asked: Asked,
    held: programs.Held,
    producer: Iterator[Any],
    recording: Recording,
    owner: object,
) -> None:
    """Read a stream to its end whose consumer has gone, for as long as was asked."""
    state, call, until = driver._namespace.state, asked.call, time.monotonic() + asked.drain
    try:
        for chunk in producer:
            recording.add(chunk)
            if time.monotonic() > until:
                _close(producer)
                driver._run(programs.abandon(state, held, None), call)
                return
        _end(driver, held, call, recording)
    except Exception as error:  # noqa: BLE001  nobody is there to hear of it but those who follow
        driver._run(programs.abandon(state, held, error), call)
    finally:
        driver._namespace.unhold(owner, held)


def _close(producer: Iterator[Any]) -> None:
    close = getattr(producer, "close", None)
    if close is not None:
        close()
