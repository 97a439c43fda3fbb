"""What one operation brings along for its effects: the caller's function, codec and admission."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ._effects import Computed, Encoded
from .entry import Codec, Unusable, decode_chunk, decode_payload, decode_stream, encode, encode_stream, whole
from .errors import ConfigurationError
from .policy import Admit, Refused, lifetime_ms

#: The digests whose computation the running code is part of.
leading: ContextVar[frozenset[bytes]] = ContextVar("askonce_leading", default=frozenset())


@dataclass(slots=True, eq=False)
class Call:
    """What one operation brings along for its effects: the caller's function, codec and admission."""

    codec: Codec[Any] | None = None
    admit: Admit | None = None
    usable: Callable[[Any], bool] | None = None
    compute: Callable[[Sequence[int]], Any] | None = None  # indices -> values, awaited by the async driver
    digests: Sequence[bytes] = ()
    streams: bool = False
    fold: Callable[[list[Any]], Any] | None = None  # of a stream: chunks -> what is stored instead of them

    def encode(self, value: Any, cost_ms: int) -> Encoded:
        """Perform ``Encode``; the value of a stream is given as its encoded chunks."""
        if self.fold is not None:
            value = self._folded(self.fold, value)
        ttl_ms, chunks = None, self.streams and self.fold is None
        if self.admit is not None:
            ttl_ms = self._admitted(self.admit, whole(value, self.codec) if chunks else value)
        if chunks:
            return Encoded(*encode_stream(value, cost_ms), ttl_ms)
        return Encoded(*encode(value, self.codec, cost_ms), ttl_ms)

    def _folded(self, fold: Callable[[list[Any]], Any], chunks: list[bytes]) -> Any:
        try:
            return fold([decode_chunk(chunk, self.codec) for chunk in chunks])
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"fold failed: {type(error).__qualname__}") from error

    @staticmethod
    def _admitted(admit: Admit, value: Any) -> int | None:
        try:
            ttl = admit(value)
            return lifetime_ms(ttl)
        except Refused:
            raise
        except Exception as error:
            raise Refused(f"admission failed: {type(error).__qualname__}") from error

    def decode(self, flags: int, payload: bytes) -> Any:
        """Perform ``Decode``; what the caller cannot use counts as unreadable.  A stream is its encoded chunks."""
        if self.streams:
            return decode_stream(flags, payload, self.codec)
        value = decode_payload(flags, payload, self.codec)
        if self.usable is not None and not self.usable(value):
            raise Unusable("not usable by this caller")
        return value

    def computed(self, indices: Sequence[int], values: Sequence[Any], cost_ms: int) -> list[Computed]:
        """Return the answer to ``Compute``; what it took is shared out evenly."""
        if len(values) != len(indices):
            raise ConfigurationError(
                f"fn returned {len(values)} values for {len(indices)} requests; return one for each, in their order"
            )
        return [Computed(value, cost_ms // len(indices)) for value in values]

    @contextlib.contextmanager
    def running(self, indices: Sequence[int]) -> Iterator[None]:
        """Mark the code inside as part of the computation of these requests."""
        reset = leading.set(leading.get() | {self.digests[index] for index in indices})
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):  # collected in another context, which has nothing to reset
                leading.reset(reset)
