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
from typing import Any, Final

from . import _programs as programs
from ._call import Call
from ._driver import Driver
from ._effects import Program
from ._flights import Flight
from ._loops import running_loop
from ._recording import LOOK_AGAIN_S, Asked, Passed, Recording
from .entry import Corrupt
from .errors import StreamBroken
from .served import Served

#: What to go on with when a leader gave up: look again.
_AGAIN: Final = object()


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
                yield from passed.conclude(asked.told(outcome))
                return
            case programs.Behind(served=served):
                try:
                    if asked.on_served is not None:
                        asked.on_served(served)  # first: who is told knows what *fn* is called for
                finally:
                    namespace.background.submit(partial(_produce_behind, driver, asked, outcome, fn))
                yield from passed.conclude(served.value)
                return
            case programs.Held():
                yield from _lead(driver, asked, outcome, fn, passed)
                return
            case Flight():
                follow = _follow_here(driver, wanted, outcome, call, passed)
            case _:
                follow = _follow_elsewhere(driver, wanted, outcome, call, passed)
        try:
            outcome = yield from follow
        except Corrupt:  # written by another codec: of no use to this caller
            outcome = programs.Held(wanted, None, None)
        except Exception:
            kept = driver._run(programs.fallback(state, wanted), call) if passed.nothing else None
            if kept is None:
                raise
            yield from passed.conclude(asked.told(kept))
            return
        if outcome is None:
            state.counters.add("coalesced")
            return
        if outcome is _AGAIN:
            outcome = driver._run(programs.tune_in(state, wanted), call)


def _follow_here(
    driver: Driver, wanted: programs.Ask, flight: Flight, call: Call, passed: Passed
) -> Generator[Any, None, Any]:
    """Yield what the leader passes on as it comes, or what it lands; return None at the end, or what to go on with."""
    alone = programs.Held(wanted, None, None)
    if flight.home is not None and flight.home is running_loop():
        return alone  # its leader needs the very loop that this call blocks
    tape, count = flight.tape, 0
    with tape.follow():
        while not (tape.ended and count == len(tape.chunks)):
            try:
                tape.more(count).result(wanted.policy.max_wait_s)
            except FutureTimeoutError:
                driver._namespace.state.counters.add_reason("bypassed", "max_wait")
                return alone
            for chunk in tape.chunks[count:]:
                count += 1
                yield from passed.take(chunk)
    if tape.error is not None:
        raise tape.error
    if not tape.complete:
        return programs.Elsewhere(flight.elsewhere) if flight.elsewhere else _AGAIN
    if count:
        return None
    landed = driver._run(programs.rest(wanted, flight), call)
    if landed is None:
        return alone
    yield from passed.conclude(landed)
    return None


def _follow_elsewhere(
    driver: Driver, wanted: programs.Ask, elsewhere: programs.Elsewhere, call: Call, passed: Passed
) -> Generator[Any, None, Any]:
    """Yield what the leader elsewhere publishes; return None at the end, or what to go on with."""
    relay, count = driver._namespace.state.relays.of(wanted.digest, elsewhere.fence), 0
    while True:
        while count < len(relay.chunks):
            if relay.lags(time.monotonic()):
                try:
                    driver._run(programs.read_ahead(driver._namespace.state, wanted, elsewhere, relay), call)
                finally:
                    relay.give(time.monotonic())
            chunk, count = relay.chunks[count], count + 1
            yield from passed.take(chunk)
        if relay.ended and count == len(relay.chunks):
            break
        turn = relay.turn(count, time.monotonic())
        if turn is None:
            try:
                outcome = driver._run(programs.pull(driver._namespace.state, wanted, elsewhere, relay), call)
            finally:
                relay.give(time.monotonic())
            if outcome is not None:
                return outcome
        else:
            try:
                turn.result(wanted.policy.max_wait_s)
            except FutureTimeoutError:
                driver._namespace.state.counters.add_reason("bypassed", "max_wait")
                return programs.Held(wanted, None, None)
    if relay.error is not None:
        raise relay.error
    if relay.stored is not None:
        yield from passed.conclude(relay.stored)
    return None if relay.complete else _AGAIN


def _lead(
    driver: Driver, asked: Asked, held: programs.Held, fn: Callable[[], Iterable[Any]], passed: Passed
) -> Iterator[Any]:
    """Yield what the producer yields, recorded; store it once it has come to its end."""
    namespace = driver._namespace
    leading = _Leading(driver, asked, held, Recording(namespace, held, passed.codec))
    try:
        leading.producer = iter(fn())
        for chunk in leading.producer:
            new = passed.is_new(chunk)  # first: what breaks this consumer's stream is given to nobody
            leading.recording.add(chunk)
            if new:
                try:
                    yield chunk
                except BaseException:  # the consumer's: break, close, an error that it throws in
                    leading.gone()
                    raise
    except StreamBroken:  # of this consumer alone: others may go on with what the model says now
        leading.close(None)
        raise
    except Exception as error:
        leading.close(error)
        kept = programs.stand_in(namespace.state, held.fallback) if passed.nothing else None
        if kept is None:
            raise
        yield from passed.conclude(asked.told(kept))
    except BaseException:
        leading.close(None)
        raise
    else:
        leading.end()


def _produce_behind(
    driver: Driver, asked: Asked, behind: programs.Behind, fn: Callable[[], Iterable[Any]]
) -> None:
    """Produce a stale stream anew, for nobody in particular."""
    namespace = driver._namespace
    held = driver._run(programs.take_up(namespace.state, behind), asked.call)
    if held is None:
        return
    leading = _Leading(driver, asked, held, Recording(namespace, held, asked.codec))
    try:
        leading.producer = iter(fn())
        for chunk in leading.producer:
            leading.recording.add(chunk)
    except Exception as error:  # noqa: BLE001  nobody is there to hear of it; the stale stream stays
        leading.close(error)
    except BaseException:
        leading.close(None)
        raise
    else:
        leading.end()


class _Leading:
    """A stream that this consumer leads, until it ends, fails, or is left to the background."""

    def __init__(self, driver: Driver, asked: Asked, held: programs.Held, recording: Recording) -> None:
        self.recording = recording
        self.producer: Iterator[Any] = iter(())
        self._driver, self._asked, self._held = driver, asked, held
        self._owner: object = threading.current_thread()
        self._lock = threading.Lock()
        self._over = False
        self._timer: threading.Timer | None = None
        driver._namespace.hold(self._owner, held)

    def end(self) -> None:
        """The producer came to its end: store what was recorded."""
        if self._first():
            namespace, recording, held = self._driver._namespace, self.recording, self._held
            if recording.whole:
                chunks, unsent = recording.tape.chunks, namespace.unpublished(held)
                self._run(programs.end(namespace.state, held, chunks, recording.cost_ms, unsent))
            else:
                self._run(programs.abandon(namespace.state, held, None))

    def close(self, error: Exception | None, *, drained: bool = False) -> None:
        """The producer failed, or is not wanted any more: give the lease back.  Not if it was left to a drain."""
        if (drained or self._owner is not None) and self._first():
            try:
                # First, and without waiting for a producer that takes its time to close: others may go on.
                self._run(programs.abandon(self._driver._namespace.state, self._held, error))
            finally:
                close = getattr(self.producer, "close", None)
                if close is not None:
                    close()

    def gone(self) -> None:
        """The consumer has gone: go on in the background for a while, or as long as somebody follows, or hand over."""
        followed = self._asked.while_followed and not self._over and self._followed()
        if followed or (self._asked.drain > 0 and not self._over):
            self._driver._namespace.leave(self._owner)
            self._owner = None
            self._driver._namespace.background.submit(self._drain)
            # A producer that hangs cannot be interrupted; the lease can be given back.
            patience = self._held.wanted.policy.max_wait_s if followed else self._asked.drain
            self._timer = threading.Timer(patience, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        else:
            self.close(None)

    def _drain(self) -> None:
        until = time.monotonic() + self._asked.drain
        try:
            for chunk in self.producer:
                self.recording.add(chunk)
                if time.monotonic() > until:
                    if self._over or not (self._asked.while_followed and self._followed()):
                        self.close(None, drained=True)
                        return
                    until = time.monotonic() + LOOK_AGAIN_S
            self.end()
        except Exception as error:  # noqa: BLE001  nobody is there to hear of it but those who follow
            self.close(error, drained=True)

    def _followed(self) -> bool:
        program = programs.is_followed(self._driver._namespace.state, self._held)
        return self.recording.tape.followed or self._driver._run(program, self._asked.call)

    def _give_up(self) -> None:
        if self._first():
            self._run(programs.abandon(self._driver._namespace.state, self._held, None))

    def _first(self) -> bool:
        """Note the end; return whether it is the first."""
        with self._lock:
            first, self._over = not self._over, True
        if first:
            if self._timer is not None:
                self._timer.cancel()
            self._driver._namespace.unhold(self._owner, self._held)
        return first

    def _run(self, program: Program[Any]) -> None:
        self._driver._run(program, self._asked.call)
