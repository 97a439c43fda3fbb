"""
A call of a model while it runs: what LangChain's two strings do not tell a cache.

LangChain asks its cache before a call (``lookup``) and tells it the answer (``update``), but not which model is
called, with which words of control, nor that the call has failed.  The hooks note all this here, so that a lookup
that finds nothing leads: it holds a lease until the update, or until the call ends without one.  Without hooks there
are only the tasks in which LangChain awaits its chat models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary, ref

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.outputs import Generation

from askonce import AskonceError, AsyncLease, ConfigurationError, Lease, control
from askonce.policy import Refused
from askonce.upstream import claim

from ._admission import refusal
from ._codec import GenerationsCodec, decode_stream, encode_piece
from ._live import live, sets_limit
from ._shape import as_given_by, as_invoked
from ._stale import Told, is_of_the_model

_WORDS: Final = frozenset({"max_age", "only_if_cached", "read", "scope", "tags", "ttl", "write"})
_AS_IT_IS: Final = contextlib.nullcontext()


class Led(NamedTuple):
    """A question that a call leads, and the lease by which it does."""

    prompt: str
    lease: Lease | AsyncLease


class Call:
    """
    One call of a model.

    *metadata* has that of the run for each lookup that LangChain makes, in order; what else is looked up while the
    call runs is not of this call.
    """

    __slots__ = ("__weakref__", "_leads", "_metadata", "_prompts", "cache", "served")

    def __init__(self, cache: object, metadata: Sequence[Mapping[str, Any] | None] = (None,)) -> None:
        self.cache = cache
        #: Whether it was answered from the cache.
        self.served = False
        self._metadata = metadata
        self._prompts: list[str] = []
        self._leads: list[Led] = []

    def looks_up(self, prompt: str) -> bool:
        """Note a lookup; return whether it is one of this call's own."""
        if len(self._prompts) == len(self._metadata):
            return False
        self._prompts.append(prompt)
        return True

    def looked_up(self, prompt: str) -> bool:
        """Return whether this call has looked up *prompt*."""
        return prompt in self._prompts

    def words(self) -> contextlib.AbstractContextManager[None]:
        """Return the block of control that the metadata of the run ask for; raise ConfigurationError if they err."""
        return words(self._metadata[len(self._prompts) - 1])

    def live(self) -> dict[str, object] | None:
        """Return what tells this call from others, if its model is known; raise Uncacheable if that cannot be told."""
        return None

    @property
    def limited(self) -> bool:
        """Whether the caller is known to have set a limit for the length of the answer."""
        return False

    def shaped(self, generations: Sequence[Generation], llm_string: str) -> Sequence[Generation] | None:
        """Return the answer in the shape that the model gives to a plain ``invoke``; None if it has none."""
        return as_invoked(generations, llm_string)

    @property
    def codec(self) -> AdmittingCodec:
        """The codec for the answer of this call."""
        return AdmittingCodec(self)

    def lead(self, prompt: str, lease: Lease | AsyncLease) -> None:
        """Note that this call computes the answer to *prompt*; adapters below it stay out of the way."""
        self._leads.append(Led(prompt, lease))
        call = ref(self)  # a context may outlive the call
        claim("llm", lambda: (one := call()) is not None and bool(one._leads))

    def led(self, prompt: str) -> Lease | AsyncLease | None:
        """Return the lease for *prompt*, which the caller is now to end; None if this call does not lead it."""
        for number, led in enumerate(self._leads):
            if led.prompt == prompt:
                return self._leads.pop(number).lease
        return None

    def leads(self) -> list[Led]:
        """Return what this call leads and has not answered, in the order in which it was looked up."""
        return list(self._leads)

    def may_stand_in(self, error: Exception) -> bool:
        """Return whether something stored may be served in place of *error*: it is the model's own."""
        return is_of_the_model(error)

    def end(self) -> None:
        """Give back what was led and not answered: somebody who waits leads next."""
        for led in self._leads:
            if isinstance(led.lease, Lease):
                with contextlib.suppress(AskonceError):  # the call's own error is the one to be seen
                    led.lease.abandon()
        self.drop()

    async def aend(self) -> None:
        """Do what ``end`` does."""
        for led in self._leads:
            if isinstance(led.lease, AsyncLease):
                with contextlib.suppress(AskonceError):
                    await led.lease.abandon()
        self.drop()

    def drop(self) -> None:
        """Leave what was led to the core, which gives back a lease that is collected."""
        self._leads.clear()


class ModelCall(Call):
    """A call whose model a hook has seen."""

    __slots__ = ("_run", "_told", "arguments", "model", "stop")

    def __init__(
        self,
        cache: object,
        model: BaseLanguageModel[Any],
        stop: object,
        arguments: Mapping[str, Any],
        metadata: Sequence[Mapping[str, Any] | None],
    ) -> None:
        super().__init__(cache, metadata)
        self.model, self.stop, self.arguments = model, stop, arguments
        self._run: Any = None
        self._told: Told | None = None

    def listened(self, run: Any) -> None:
        """Note the run whose listeners are told of this call, if it comes to lead."""
        self._run = run

    def lead(self, prompt: str, lease: Lease | AsyncLease) -> None:
        """Do what ``Call.lead`` does, and listen to the run from now on."""
        super().lead(prompt, lease)
        self.listen(self._run)

    def listen(self, run: Any) -> None:
        """Listen to what a run is told, where anybody does."""
        if run is not None and run.handlers:
            self._told = Told()
            run.handlers = [*run.handlers, self._told]  # other runs have that list too

    def may_stand_in(self, error: Exception) -> bool:
        """Return whether something stored may be served in place of *error*: nobody was told another answer."""
        return not (self._told is not None and self._told.told) and super().may_stand_in(error)

    def live(self) -> dict[str, object] | None:
        """Return what tells this call from others; raise Uncacheable if that cannot be told."""
        return live(self.model, self.stop, self.arguments)

    @property
    def limited(self) -> bool:
        """Whether the caller has set a limit for the length of the answer."""
        return sets_limit(self.model, self.arguments)

    def shaped(self, generations: Sequence[Generation], llm_string: str = "") -> Sequence[Generation] | None:  # noqa: ARG002  the model says more
        """Return the answer in the shape that the model gives to a plain ``invoke``; None if it has none."""
        return as_given_by(self.model, generations)


#: The call that the running code is part of.
running: ContextVar[ModelCall | None] = ContextVar("askonce_langchain_call", default=None)

_of_tasks: WeakKeyDictionary[asyncio.Task[Any], Call] = WeakKeyDictionary()


def call_of_task(cache: object) -> Call | None:
    """
    Return the call that the running task is, without any hook: LangChain awaits a chat model in a task of its own.

    The call ends with the task, however that ends.
    """
    task = asyncio.current_task()
    if task is None or getattr(task.get_coro(), "__name__", "") != "_agenerate_with_cache":
        return None
    call = _of_tasks.get(task)
    if call is None:
        call = _of_tasks[task] = Call(cache)
        task.add_done_callback(lambda _: call.drop())
    return call if call.cache is cache else None


def leave(outer: Token[ModelCall | None]) -> None:
    """Make the outer call the running one again."""
    with contextlib.suppress(ValueError):  # collected in another context, which has nothing to reset
        running.reset(outer)


class AdmittingCodec(GenerationsCodec):
    """Writes what is worth keeping; those who wait for it are given the answer either way."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def encode(self, value: Sequence[Generation]) -> bytes:
        """Return *value* as bytes; raise Refused if it is not worth keeping, Uncacheable if it cannot be kept."""
        if why := refusal(value) and refusal(value, limited=self._call.limited):
            raise Refused(why)
        return super().encode(value)


class StreamCodec(AdmittingCodec):
    """Writes and reads the chunks of a stream, and whole answers."""

    def encode(self, value: Generation | Sequence[Generation]) -> bytes:
        """Return a chunk, or a whole answer, as bytes."""
        return encode_piece(value) if isinstance(value, Generation) else super().encode(value)

    def decode(self, data: bytes) -> Any:
        """Return a chunk, or a whole answer as ``Streamed``."""
        return decode_stream(data)


def words(metadata: Mapping[str, Any] | None) -> contextlib.AbstractContextManager[None]:
    """Return the block of control in *metadata*: ``{"askonce": {"ttl": 60}}``; raise ConfigurationError if it errs."""
    given = metadata.get("askonce") if metadata else None
    if given is None:
        return _AS_IT_IS
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"metadata['askonce'] is {type(given).__name__}: give words of askonce.control, such as {{'ttl': 60}}"
        )
    if unknown := given.keys() - _WORDS:
        named, known = ", ".join(map(repr, sorted(unknown))), ", ".join(sorted(_WORDS))
        raise ConfigurationError(f"metadata['askonce'] has {named}; its words are {known}")
    return control(**given)


def metadata_of(
    model: BaseLanguageModel[Any], metadata: Mapping[str, Any] | None, callbacks: Any
) -> Mapping[str, Any] | None:
    """Return the metadata of a run as LangChain makes them: the outer run's, the call's, the model's own."""
    outer: Mapping[str, Any] | None = (
        callbacks.metadata if isinstance(callbacks, BaseCallbackManager) else None
    )
    for further in (metadata, model.metadata):
        if further:
            outer = {**outer, **further} if outer else further
    return outer
