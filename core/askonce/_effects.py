"""
What a program may ask of the outside world.

A program is a generator that holds one cache operation's whole decision.  It yields the effects below and is sent
their results; an effect that fails is thrown back in.  A program does no I/O, never sleeps, draws no random number
and reads no clock, so the same one is run by threads (``_driver``), by asyncio (``_adriver``) and, in the tests, by a
plain list of answers.

Programs call ``yield from invoke(...)`` rather than ``yield Invoke(...)``: it reads the same, and the type checker
then knows the type of the answer.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from ._flights import Flight, Landed
from .errors import BackendUnavailable
from .scripts import Arg, Script

T = TypeVar("T")
R = TypeVar("R")

#: One Redis command.
Command: TypeAlias = tuple[Arg, ...]


class Waiter(Protocol):
    """A registration for the message that a flight elsewhere has landed; ``woken`` is done when there is one."""

    @property
    def woken(self) -> Future[None]: ...
    def close(self) -> None:
        """Stop waiting."""


class TimedOut:
    """The answer of ``Join`` when the flight is still in the air, or must not be waited for from here."""


TIMED_OUT = TimedOut()


class Fetched(NamedTuple):
    """The answer of ``Fetch``: what the members hold, by a clock that follows the server's."""

    word: bytes | None
    entries: Sequence[bytes | None]
    now_ms: int


#: What a program need not ask for any more: what was fetched before it began, or the error.
Tried: TypeAlias = Fetched | BackendUnavailable | None


@dataclass(frozen=True, slots=True)
class Computed:
    """The answer of ``Compute``: what the caller's function returned, and how long it took."""

    value: Any
    cost_ms: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read the control word and entries of one partition, and touch the entries, in one round trip."""

    partition: int
    members: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class FetchMany:
    """Do several ``Fetch``, in one round trip for each server; an error is an answer, not thrown."""

    fetches: tuple[Fetch, ...]


@dataclass(frozen=True, slots=True)
class Invoke(Generic[R]):
    """Run a script."""

    script: Script[R]
    partition: int
    keys: tuple[bytes, ...]
    args: tuple[Arg, ...]


#: One call of a script: its partition, keys and arguments.
ScriptCall: TypeAlias = tuple[int, tuple[bytes, ...], tuple[Arg, ...]]


@dataclass(frozen=True, slots=True)
class InvokeMany(Generic[R]):
    """Run a script several times, in one round trip for each server; an error is an answer, not thrown."""

    script: Script[R]
    calls: tuple[ScriptCall, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """
    Send reading or counting commands to a partition in one round trip; an error is thrown.

    *leniently*: it is an answer (a permission that is missing, and not needed).
    """

    partition: int
    commands: tuple[Command, ...]
    leniently: bool = False


@dataclass(frozen=True, slots=True)
class Renewal:
    """A lease that is to be renewed while the caller's function runs."""

    partition: int
    key: bytes
    running: bytes  # the chunks that are published under it
    holder: bytes
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Call the caller's function for the requests at these places, keeping their leases."""

    indices: tuple[int, ...]
    leases: tuple[Renewal, ...]


@dataclass(frozen=True, slots=True)
class Encode:
    """Ask admission and encode a value; both may be the user's.  Throws Refused, Uncacheable, or their error."""

    value: Any
    cost_ms: int


class Encoded(NamedTuple):
    """The answer of ``Encode``; ``ttl_ms`` is what admission decided, None if it left that to the call."""

    flags: int
    payload: bytes
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode a payload; the codec may be the user's, and may refuse it."""

    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Join:
    """Wait until *flight* lands, at most *seconds*."""

    flight: Flight
    seconds: float


@dataclass(frozen=True, slots=True)
class Listen:
    """Register for the message that the flight of *digest* has landed, wherever it is led, or has more chunks."""

    partition: int
    digest: bytes
    chunks: bool = False


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for *waiter*'s message, at most *seconds*; the answer is how long it took."""

    waiter: Waiter
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Detach:
    """Run *program* in the background and do not wait for it."""

    program: Program[None]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the operator something, see ``stats.Event``; the answer is None."""

    kind: str
    reason: str


Effect: TypeAlias = (
    Fetch
    | FetchMany
    | Invoke[Any]
    | InvokeMany[Any]
    | Ask
    | Compute
    | Encode
    | Decode
    | Join
    | Listen
    | Sleep
    | Detach
    | Tell
)
Program: TypeAlias = Generator[Effect, Any, T]


def fetch(partition: int, members: tuple[bytes, ...]) -> Program[Fetched]:
    """Return the control word and the entries of *members*."""
    answer: Fetched = yield Fetch(partition, members)
    return answer


def fetch_many(fetches: Sequence[Fetch]) -> Program[list[Fetched | BackendUnavailable]]:
    """Return what each of them finds, or the error."""
    if len(fetches) == 1:
        try:
            return [(yield from fetch(fetches[0].partition, fetches[0].members))]
        except BackendUnavailable as error:
            return [error]
    answers: list[Fetched | BackendUnavailable] = yield FetchMany(tuple(fetches))
    return answers


def invoke(script: Script[R], partition: int, keys: tuple[bytes, ...], *args: Arg) -> Program[R]:
    """Return the answer of *script*."""
    answer: R = yield Invoke(script, partition, keys, args)
    return answer


def invoke_many(script: Script[R], calls: Sequence[ScriptCall]) -> Program[list[R | BackendUnavailable]]:
    """Return the answer, or the error, of each call of *script*; what has failed together has one error."""
    if not calls:
        return []
    answers: list[R | BackendUnavailable] = yield InvokeMany(script, tuple(calls))
    return answers


def ask(partition: int, *commands: Command) -> Program[list[Any]]:
    """Return the replies to *commands*."""
    replies: list[Any] = yield Ask(partition, commands)
    return replies


def compute(index: int, leases: tuple[Renewal, ...]) -> Program[Computed]:
    """Return what the caller's function makes of one request."""
    computed: list[Computed] = yield Compute((index,), leases)
    return computed[0]


def compute_many(indices: tuple[int, ...], leases: tuple[Renewal, ...]) -> Program[list[Computed]]:
    """Return what the caller's function makes of several requests, in their order."""
    computed: list[Computed] = yield Compute(indices, leases)
    return computed


def encode(value: Any, cost_ms: int) -> Program[Encoded]:
    """Return *value* as it is to be stored."""
    encoded: Encoded = yield Encode(value, cost_ms)
    return encoded


def decode(flags: int, payload: bytes) -> Program[Any]:
    """Return the value in *payload*."""
    value: Any = yield Decode(flags, payload)
    return value


def join(flight: Flight, seconds: float) -> Program[Landed | TimedOut | None]:
    """Return what *flight* lands, None if its leader gave up, or TIMED_OUT."""
    landed: Landed | TimedOut | None = yield Join(flight, seconds)
    return landed


def listen(partition: int, digest: bytes, *, chunks: bool = False) -> Program[Waiter]:
    """Return a registration for the message of *digest*."""
    waiter: Waiter = yield Listen(partition, digest, chunks)
    return waiter


def sleep(waiter: Waiter, seconds: float) -> Program[float]:
    """Return how many seconds passed until the message came, at most *seconds*."""
    passed: float = yield Sleep(waiter, seconds)
    return passed


def ask_leniently(partition: int, *commands: Command) -> Program[list[Any]]:
    """Return the replies to *commands*, errors among them."""
    replies: list[Any] = yield Ask(partition, commands, leniently=True)
    return replies


def tell(kind: str, reason: str) -> Program[None]:
    """Tell the operator something."""
    yield Tell(kind, reason)


def detach(program: Program[None]) -> Program[None]:
    """Start *program* in the background."""
    yield Detach(program)
