"""
Run a program against scripted answers: no Redis, no clock, no threads.

    play(program, (Fetch, fetched(None)), (LEASE, granted()), (Compute, computed("new")), (STORE, stored()))

A line is what the program is expected to ask for and the answer.  Expected is an effect (compared as a whole), a
type of effect, a script, or a call of a script (``like``).  An answer that is an exception is thrown in; one that is
a function is called with the effect.  ``Encode`` and ``Decode`` are performed as the drivers do, unless a line
expects them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from askonce._effects import Compute, Computed, Decode, Encode, Encoded, Fetched, Invoke, InvokeMany
from askonce._flights import Flights
from askonce._programs import Ask, Partition, State
from askonce._programs.state import parse_word
from askonce.entry import FORMAT, HEADER, MAGIC, TAGGED, decode_payload, encode, tag_block
from askonce.errors import BackendUnavailable
from askonce.keys import Fingerprints, Names
from askonce.policy import Policy
from askonce.scripts import (
    FAILED,
    FOUND,
    GRANTED,
    HELD,
    OUTDATED,
    STORED,
    Controlled,
    Leased,
    Script,
    Stored,
    Trimmed,
)
from askonce.stats import Counters

NOW = 1_750_000_000_000
GENERATION, SEQUENCE = 7, 100
WORD = b"7:100"
DIGEST = Fingerprints("", {}).of("a question")
OTHER = Fingerprints("", {}).of("another question")
MEMBER = b"7:" + DIGEST
TOKEN = b"a token"
FENCE = 50


class Holder:
    """The value of a lease key: generation, fence and token, whatever the token is made of besides."""

    def __init__(self, fence: int | None, token: bytes, generation: int = GENERATION) -> None:
        self._head = b"" if fence is None else b"%d:%d:" % (generation, fence)
        self._tail = token

    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes) and other.startswith(self._head) and other.endswith(self._tail)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self._head!r}...{self._tail!r}"


HOLDER = Holder(FENCE, TOKEN)


class Player:
    """A program and where it stands: ``effect`` waits for an answer, or it has ended with ``result``."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self.effect: Any = None
        self.ended = False
        self.result: Any = None
        self.asked: list[Any] = []
        self._go(None)

    def _go(self, answer: Any) -> None:
        try:
            if isinstance(answer, BaseException):
                self.effect = self._program.throw(answer)
            else:
                self.effect = self._program.send(answer)
            self.asked.append(self.effect)
        except StopIteration as stop:
            self.ended, self.result, self.effect = True, stop.value, None
        except BaseException:
            self.ended, self.effect = True, None
            raise

    def answer(self, answer: Any) -> None:
        """Answer the effect that waits, whatever it is."""
        if callable(answer) and not isinstance(answer, type):
            answer = answer(self.effect)
        thrown = isinstance(answer, BaseException) and not isinstance(answer, BackendUnavailable)
        if isinstance(self.effect, InvokeMany) and not isinstance(answer, list) and not thrown:
            answer = [answer] * len(self.effect.calls)  # an outage too is an answer
        self._go(answer)

    def play(self, *lines: tuple[Any, Any]) -> Player:
        """Answer each effect in turn, and stop before the next."""
        for expected, answer in lines:
            self._perform(expected)
            assert not self.ended, f"ended with {self.result!r}, before {_shown(expected)}"
            assert _fits(expected, self.effect), f"expected {_shown(expected)}, not {self.effect}"
            self.answer(answer)
        return self

    def _perform(self, expected: Any = None) -> None:
        """Perform what needs no world: encoding and decoding."""
        while isinstance(self.effect, Encode | Decode) and not _fits(expected, self.effect):
            try:
                if isinstance(self.effect, Encode):
                    flags, payload = encode(self.effect.value, None, self.effect.cost_ms)
                    answer: Any = Encoded(flags, payload)
                else:
                    answer = decode_payload(self.effect.flags, self.effect.payload, None)
            except Exception as error:
                answer = error
            self._go(answer)

    def asks(self) -> Any:
        """Return the effect that waits for an answer of the world."""
        self._perform()
        assert not self.ended, f"ended with {self.result!r}"
        return self.effect

    def end(self) -> Any:
        """Return the program's result; it must have nothing more to ask."""
        self._perform()
        assert self.ended, f"unexpected {self.effect}"
        return self.result


def play(program: Any, *lines: tuple[Any, Any]) -> Any:
    """Answer each effect in turn and return the program's result."""
    return Player(program).play(*lines).end()


@dataclass(frozen=True)
class like:
    """
    A call of *script*, or several, with at least these arguments, named as in the head of the script.

    A list has the argument of each call.
    """

    script: Script[Any]
    words: dict[str, Any]

    def __init__(self, script: Script[Any], **words: Any) -> None:
        object.__setattr__(self, "script", script)
        object.__setattr__(self, "words", words)

    def fits(self, effect: Any) -> bool:
        if not isinstance(effect, Invoke | InvokeMany) or effect.script is not self.script:
            return False
        several = [args for _, _, args in effect.calls] if isinstance(effect, InvokeMany) else [effect.args]
        given = [arguments(effect.script, args) for args in several]
        return all(
            [one[name] for one in given] == (value if isinstance(value, list) else [value] * len(given))
            for name, value in self.words.items()
        )


def signature(script: Script[Any]) -> tuple[list[str], list[str]]:
    """Return the names of the keys and arguments in the head of a script; the last may stand for several."""
    text = script.source.split("-- uses _books\n")[-1]
    head = " ".join(line.removeprefix("--") for line in text.splitlines() if line.startswith("--"))
    match = re.match(rf"\s*{script.name}\(keys=\[([^\]]*)\],\s*args=\[([^\]]*)\]\)", head)
    assert match, f"{script.name}.lua does not begin with its signature"
    keys, args = ([name.strip() for name in re.split(r",(?![^(]*\))", part)] for part in match.groups())
    return keys, [name for name in args if name]


def arguments(script: Script[Any], args: Iterable[Any]) -> dict[str, Any]:
    """Return the arguments of a call by their names in the head of the script, the variable part left out."""
    return dict(zip(signature(script)[1], args, strict=False))


def _fits(expected: Any, effect: Any) -> bool:
    if isinstance(expected, like):
        return expected.fits(effect)
    if isinstance(expected, Script):
        return isinstance(effect, Invoke | InvokeMany) and effect.script is expected
    if isinstance(expected, type):
        return isinstance(effect, expected)
    return bool(effect == expected)


def _shown(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else repr(expected)


# --- the pieces of a world ----------------------------------------------------------------------------------------


def make_state(partitions: int = 1, *, word: bytes | None = WORD, **words: Any) -> State:
    """Return what a process knows, its control word read already."""
    state = State(
        partitions=[Partition(index, Names("ns", index)) for index in range(partitions)],
        flights=Flights(),
        counters=Counters(),
        max_entries=words.pop("max_entries", 100),
        max_units=words.pop("max_units", 10_000),
        meta=b"ao:{ns}:meta",
        agreed=(agreed := words.pop("agreed", True)),
        looked=agreed,
        **words,
    )
    for part in state.partitions:
        part.word = None if word is None else parse_word(word)
        part.newest = part.word.generation if part.word else 0
    return state


def make_ask(state: State, digest: bytes = DIGEST, *, policy: Policy | None = None, **words: Any) -> Ask:
    """Return a request for *digest*."""
    return Ask(
        partition=words.pop("partition", state.partitions[0]),
        digest=digest,
        policy=policy or Policy(ttl=10),
        token=words.pop("token", TOKEN),
        draw=words.pop("draw", 0.0),
        **words,
    )


def entry(
    value: object = "old",
    *,
    age: float = 1.0,
    ttl: float = 10.0,
    generation: int = GENERATION,
    fence: int = 5,
    sequence: int = SEQUENCE,
    tags: tuple[bytes, ...] = (),
    codec: Any = None,
    cost_ms: int = 30,
) -> bytes:
    """Return an entry that was stored *age* seconds before NOW, fresh for *ttl* seconds."""
    flags, payload = encode(value, codec, cost_ms)
    created = NOW - round(age * 1000)
    fresh_until = created + round(ttl * 1000)
    flags |= TAGGED if tags else 0
    header = HEADER.pack(MAGIC, FORMAT, flags, generation, fence, created, fresh_until, fresh_until, sequence)
    return header + tag_block(tags) + payload


def grave(fence: int = 9) -> bytes:
    """Return what an invalidation leaves."""
    return HEADER.pack(MAGIC, FORMAT, 128, 0, fence, NOW, 0, 0, 0)


def fence_of(data: bytes) -> bytes:
    """Return the fence of an entry, as ``lease`` is told of it."""
    return data[8:16]


def fetched(*entries: bytes | None, word: bytes | None = WORD) -> Fetched:
    """Return the answer of ``Fetch``."""
    return Fetched(word, entries, NOW)


def controlled(word: bytes = WORD, *, written: bool = False) -> Controlled:
    """Return the answer of ``control``."""
    return Controlled(NOW, word, int(written))


def granted(fence: int = FENCE, word: bytes = WORD) -> Leased:
    """Return: the lease is yours."""
    return Leased(GRANTED, NOW, word, fence=fence)


def held(fence: int = 40, left_ms: int = 5000, word: bytes = WORD) -> Leased:
    """Return: somebody else has the lease, and asked for it under this control word."""
    return Leased(HELD, NOW, word, fence=fence, left_ms=left_ms, token=word.partition(b":")[2] + b"-another")


def found(data: bytes, word: bytes = WORD) -> Leased:
    """Return: here is an entry that you have not seen."""
    return Leased(FOUND, NOW, word, entry=data)


def failed(text: str = "ValueError", word: bytes = WORD) -> Leased:
    """Return: the flight that you waited for has failed."""
    return Leased(FAILED, NOW, word, text=text)


def outdated(word: bytes = b"8:100") -> Leased:
    """Return: your generation is not the current one."""
    return Leased(OUTDATED, NOW, word)


def stored(code: int = STORED, *, over: int = 0, victims: tuple[bytes, ...] = (), **words: int) -> Stored:
    """Return the answer of ``store``."""
    return Stored(code, NOW, words.get("swept", 0), words.get("evicted", 0), over, list(victims))


def trimmed(*, over: int = 0, victims: tuple[bytes, ...] = (), swept: int = 0, evicted: int = 0) -> Trimmed:
    """Return the answer of ``trim``."""
    return Trimmed(NOW, swept, evicted, over, list(victims))


def computed(*values: Any, cost_ms: int = 30) -> list[Computed]:
    """Return the answer of ``Compute``."""
    return [Computed(value, cost_ms) for value in values]


class Cancelled(BaseException):
    """What a cancelled task, or an interrupted thread, meets."""


def counts(state: State) -> dict[str, int]:
    """Return the counters that have moved."""
    return state.counters.peek()


def is_compute(*indices: int) -> Any:
    """Return what fits a Compute of these indices, whatever leases it keeps."""
    return _Indices(indices)


@dataclass(frozen=True)
class _Indices:
    indices: tuple[int, ...]

    def __eq__(self, effect: object) -> bool:
        return isinstance(effect, Compute) and effect.indices == self.indices

    __hash__ = None  # type: ignore[assignment]


class Registered:
    """A registration for a message, and whether it was given up."""

    def __init__(self) -> None:
        self.open = True

    def close(self) -> None:
        self.open = False


def run(program: Any, respond: Any) -> Any:
    """Answer every effect by ``respond(effect)``, performing what needs no world; return the result."""
    player = Player(program)
    for _ in range(1000):
        player._perform()
        if player.ended:
            return player.result
        try:
            answer = respond(player.effect)
        except Exception as error:
            answer = error
        player._go(answer)
    raise AssertionError(f"the program does not end: {player.asked[-10:]}")


def outcome_of(program: Any, respond: Any) -> tuple[Any, BaseException | None]:
    """Return what ``run`` returns, and what the program raised."""
    try:
        return run(program, respond), None
    except AssertionError:
        raise
    except BaseException as error:
        return None, error
