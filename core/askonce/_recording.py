"""What a stream's leader records, and what its consumer was given: the parts of a stream that wait for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ._call import Call
from ._namespace import Namespace
from ._programs import Ask, Held
from ._tapes import Tape
from .entry import Codec, decode_chunk, encode_chunk, whole
from .errors import StreamBroken
from .served import AnyServed

#: How often the leader of a stream whose consumer has gone looks whether anybody follows it.
LOOK_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stream was asked with."""

    wanted: Ask
    call: Call
    codec: Codec[Any] | None
    drain: float  # seconds for which a stream whose consumer has gone is read to its end
    while_followed: bool  # ... or as long as somebody follows it
    on_served: Callable[[AnyServed], object] | None = None  # told of what is replayed

    def told(self, served: AnyServed) -> Any:
        """Tell the caller of what is replayed; return its chunks."""
        if self.on_served is not None:
            self.on_served(served)
        return served.value


class Passed:
    """
    The chunks that one consumer was given, so that a second source goes on where the first broke off.

    A source that begins differently cannot: ``StreamBroken``.
    """

    def __init__(self, codec: Codec[Any] | None) -> None:
        self.codec = codec
        self._chunks: list[bytes] = []
        self._place = 0
        self._own = 0  # chunks of the consumer's own call, which are not kept

    @property
    def nothing(self) -> bool:
        """Whether the consumer was given nothing yet."""
        return not self._chunks and not self._own

    def begin_source(self) -> None:
        """Expect a source from its first chunk on."""
        self._place = 0

    def take(self, chunk: bytes) -> Iterator[Any]:
        """Yield the chunk, decoded anew, if the consumer does not have it yet.  Raises Corrupt, then nothing is noted."""
        value = decode_chunk(chunk, self.codec)
        if self._is_new(chunk):
            yield value

    def conclude(self, stored: list[bytes]) -> Iterator[Any]:
        """
        Yield what is missing of a whole stored stream.

        It may be stored in another form than it was passed on: then text and bytes are compared as one piece.
        """
        if stored[: len(self._chunks)] == self._chunks:
            for chunk in stored[len(self._chunks) :]:
                self._chunks.append(chunk)
                yield decode_chunk(chunk, self.codec)
            return
        given, all_of_it = whole(self._chunks, self.codec), whole(stored, self.codec)
        if type(given) is not type(all_of_it) or not isinstance(given, str | bytes):
            raise StreamBroken(len(self._chunks))
        if not all_of_it.startswith(given):
            raise StreamBroken(len(self._chunks))
        if len(all_of_it) > len(given):
            yield all_of_it[len(given) :]

    def is_new(self, chunk: Any) -> bool:
        """Return whether a chunk of the consumer's own call is one that it does not have yet."""
        if self._place >= len(self._chunks):
            self._own += 1
            return True  # nothing was passed on by another source: there is nothing to compare with
        try:
            encoded = encode_chunk(chunk, self.codec)
        except Exception:  # noqa: BLE001  the codec is the user's; what cannot be compared cannot go on
            raise StreamBroken(len(self._chunks)) from None
        return self._is_new(encoded)

    def _is_new(self, chunk: bytes) -> bool:
        place, self._place = self._place, self._place + 1
        if place >= len(self._chunks):
            self._chunks.append(chunk)
            return True
        if self._chunks[place] != chunk:
            raise StreamBroken(len(self._chunks))
        return False


class Recording:
    """What the leader of a stream records while it passes chunks on."""

    def __init__(self, namespace: Namespace, held: Held, codec: Codec[Any] | None) -> None:
        self.tape = held.flight.tape if held.flight is not None else Tape()
        self.whole = True
        self._codec = codec
        self._held = held
        self._namespace = namespace
        self._most = namespace.settings.max_bytes
        self._begun = time.perf_counter()
        namespace.publish(held)

    @property
    def cost_ms(self) -> int:
        """What the stream took so far."""
        return round((time.perf_counter() - self._begun) * 1000)

    def add(self, chunk: Any) -> None:
        """Record a chunk; one that cannot be, or is too much, ends the recording and not the stream."""
        if not self.whole:
            return
        try:
            self.tape.append(encode_chunk(chunk, self._codec))
        except Exception:  # noqa: BLE001  the codec is the user's
            self._give_up("uncacheable")
        else:
            if self.tape.size > self._most:
                self._give_up("too_large")

    def _give_up(self, counter: str) -> None:
        self.whole = False
        self._namespace.state.counters.add(counter)
        self._namespace.give_up(self._held)  # whoever follows calls for itself, and compares
        self.tape.end()
