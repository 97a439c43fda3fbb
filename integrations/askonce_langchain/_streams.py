"""
Streams through the cache.

LangChain's streaming methods ask the model's ``_stream`` for chunks and never a cache.  Here they run as they are,
with a *view* of the model in its place: the view passes every attribute on, except those that produce chunks or
events, which look up first and record what comes.  The model is not touched, so that copies, pickling and
``configurable_fields`` work as ever, and the calls that LangChain looks up itself never see a view.

A stream is stored only when its producer came to its end; who asks meanwhile, in any process, reads along.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, closing, nullcontext
from typing import TYPE_CHECKING, Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables.config import ensure_config

from askonce import Source, upstream
from askonce.policy import Refused
from askonce.served import AnyServed

from ._calls import ModelCall, StreamCodec, metadata_of
from ._chunks import answer_of, chunks_of
from ._stale import is_of_the_model

if TYPE_CHECKING:
    from ._cache import AskonceCache

_EVENTS: Final = "_stream_chat_model_events"
_ASYNC_EVENTS: Final = "_astream_chat_model_events"


class _Stream:
    """One stream of a model through the cache: what is asked, and what comes."""

    def __init__(
        self,
        cache: AskonceCache,
        call: ModelCall,
        prompt: str,
        llm_string: str,
        produce: Callable[[Any], Any],
        run_manager: Any,
    ) -> None:
        self._cache, self._call = cache, call
        self._prompt, self._llm_string = prompt, llm_string
        self._produce, self._run_manager = produce, run_manager
        self._asked: object | None = None
        self._source, self._age = "coalesced", 0.0
        #: Whether what comes is this caller's own: its producer tells its listeners itself.
        self.own = False
        #: Whether something stored was served: what is produced then is for others, behind this caller.
        self._is_served = False
        #: What failed in the producer and is not the model's: nothing stands in for that.
        self._of_the_caller: Exception | None = None

    def open(self, *, colour: Any) -> Any:
        """Return the chunks, stored, running anywhere or produced now; None if they are to pass uncached."""
        self._call.looks_up(self._prompt)
        with self._call.words():
            self._asked = self._cache._request(self._call, self._prompt, self._llm_string)
            if self._asked is None:
                return None
            return colour.stream(
                self._asked,
                self._produced,
                codec=StreamCodec(self._call),
                share_errors=False,
                drain="followed",
                fold=self._folded,
                on_served=self._served,
            )

    def produced(self) -> Any:
        """Return the chunks of the model itself."""
        return self._produced()

    def replayed(self, stored: list[Generation]) -> Iterator[Any]:
        """Return a stored answer as chunks."""
        self.own = False
        if self._of_the_caller is not None:
            raise self._of_the_caller
        self._cache._marked(stored, self._source, self._age)
        return chunks_of(stored, pieces=self._cache.replay == "pieces")

    def _produced(self) -> Any:
        self.own = not self._is_served
        chunks = self._produce(self._run_manager if self.own else None)
        produced = _aupstream if hasattr(chunks, "__aiter__") else _upstream
        return produced(chunks, self._failed)

    def _failed(self, error: Exception) -> None:
        if self._is_served:
            return
        self._source = Source.STALE_IF_ERROR.value  # of what comes after this, if anything does
        if not is_of_the_model(error):
            self._of_the_caller = error

    def _served(self, served: AnyServed) -> None:
        self._source, self._age, self._is_served = served.source.value, served.age, True

    def _folded(self, chunks: list[Any]) -> Sequence[Generation]:
        """Return what is stored: the answer that ``invoke`` would have given."""
        model = self._call.model
        # Its caller had an answer long ago, and may have set the model anew before it was asked.
        if self._is_served and self._cache._asked(self._call, self._prompt, self._llm_string) != self._asked:
            raise Refused("model changed")
        whole = answer_of(chunks, output_version=getattr(model, "output_version", None))
        answer = self._call.shaped(whole)
        if answer is None:
            raise Refused("shape")
        return answer


class _View:
    """A model whose streams are cached.  It exists for one call."""

    #: A stored answer needs no leave: the producer asks for it.
    rate_limiter = None

    def __init__(self, model: BaseLanguageModel[Any], cache: AskonceCache, config: Any) -> None:
        config = ensure_config(config)
        self._model, self._cache = model, cache
        self._metadata = metadata_of(model, config.get("metadata"), config.get("callbacks"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _call(self, stop: Any, arguments: Mapping[str, Any]) -> ModelCall:
        return ModelCall(self._cache, self._model, stop, arguments, (self._metadata,))

    def _strings(self, question: Any, stop: Any, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Return the two strings by which LangChain would look up this question."""
        raise NotImplementedError

    def _leave(self) -> None:
        limiter = getattr(self._model, "rate_limiter", None)
        if limiter is not None:
            limiter.acquire(blocking=True)

    async def _aleave(self) -> None:
        limiter = getattr(self._model, "rate_limiter", None)
        if limiter is not None:
            await limiter.aacquire(blocking=True)

    def _stream(
        self, question: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        def produce(run_manager: Any) -> Iterator[Any]:
            self._leave()
            yield from self._model._stream(question, stop=stop, run_manager=run_manager, **kwargs)  # type: ignore[attr-defined]

        prompt, llm_string = self._strings(question, stop, kwargs)
        stream = _Stream(self._cache, self._call(stop, kwargs), prompt, llm_string, produce, run_manager)
        chunks = stream.open(colour=self._cache.cache)
        with closing(stream.produced() if chunks is None else chunks) as coming:
            for come in coming:
                for chunk in stream.replayed(come) if isinstance(come, list) else (come,):
                    if run_manager is not None and not stream.own:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    async def _astream(
        self, question: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async def produce(run_manager: Any) -> AsyncIterator[Any]:
            await self._aleave()
            native = self._model._astream(question, stop=stop, run_manager=run_manager, **kwargs)  # type: ignore[attr-defined]
            async with _closing(native):
                async for chunk in native:
                    yield chunk

        prompt, llm_string = self._strings(question, stop, kwargs)
        stream = _Stream(self._cache, self._call(stop, kwargs), prompt, llm_string, produce, run_manager)
        chunks = stream.open(colour=self._cache.cache.aio)
        async with aclosing(stream.produced() if chunks is None else chunks) as coming:
            async for come in coming:
                for chunk in stream.replayed(come) if isinstance(come, list) else (come,):
                    if run_manager is not None and not stream.own:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk


class ChatView(_View):
    """A chat model whose streams are cached, event streams too."""

    _model: BaseChatModel

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name == _EVENTS and found is not None:
            return functools.partial(self._events, found)
        if name == _ASYNC_EVENTS and found is not None:
            return functools.partial(self._aevents, found)
        return found

    def _strings(
        self, question: Sequence[BaseMessage], stop: Any, arguments: Mapping[str, Any]
    ) -> tuple[str, str]:
        bare = [m.model_copy(update={"id": None}) if m.id is not None else m for m in question]
        if self._cache.live_parameters:
            return dumps(bare), ""
        return dumps(bare), self._model._get_llm_string(stop=stop, **arguments)

    def _iter_v2_events(self, *args: Any, **kwargs: Any) -> Any:
        return BaseChatModel._iter_v2_events(self, *args, **kwargs)  # type: ignore[arg-type]

    def _aiter_v2_events(self, *args: Any, **kwargs: Any) -> Any:
        return BaseChatModel._aiter_v2_events(self, *args, **kwargs)  # type: ignore[arg-type]

    def _events(
        self, native: Any, messages: Any, *, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        """Yield the events of a model that produces them itself, or of the answer that is stored."""
        from langchain_core.language_models._compat_bridge import message_to_events  # noqa: PLC0415  langchain-core 1.4
        from langchain_core.language_models.chat_model_stream import ChatModelStream  # noqa: PLC0415  as above

        call, (prompt, llm_string) = self._call(stop, kwargs), self._strings(messages, stop, kwargs)
        call.looks_up(prompt)
        with call.words():
            hit = self._cache._begin(call, prompt, llm_string)
        if hit is not None and isinstance(hit[0], ChatGeneration):
            yield from message_to_events(hit[0].message, message_id=_message_id(run_manager))
            return
        whole, begun, finished = ChatModelStream(), False, False
        try:
            self._leave()
            for event in native(messages, stop=stop, run_manager=run_manager, **kwargs):
                begun = True
                whole.dispatch(event)
                # Before the last event is handed on: nobody asks for more after it.
                if whole.output_message is not None and not finished:
                    finished = True
                    self._cache._finish(
                        call, prompt, llm_string, [ChatGeneration(message=whole.output_message)]
                    )
                yield event
        except Exception as error:
            stale = None if begun else self._cache._stale(call, error)
            if stale is None or not isinstance(stale[0][0], ChatGeneration):
                raise
            yield from message_to_events(stale[0][0].message, message_id=_message_id(run_manager))
        finally:
            call.end()

    async def _aevents(
        self, native: Any, messages: Any, *, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Yield what ``_events`` yields."""
        from langchain_core.language_models._compat_bridge import amessage_to_events  # noqa: PLC0415  as above
        from langchain_core.language_models.chat_model_stream import AsyncChatModelStream  # noqa: PLC0415  as above

        call, (prompt, llm_string) = self._call(stop, kwargs), self._strings(messages, stop, kwargs)
        call.looks_up(prompt)
        with call.words():
            hit = await self._cache._abegin(call, prompt, llm_string)
        if hit is not None and isinstance(hit[0], ChatGeneration):
            async for event in amessage_to_events(hit[0].message, message_id=_message_id(run_manager)):
                yield event
            return
        whole, begun, finished = AsyncChatModelStream(), False, False
        try:
            await self._aleave()
            events = native(messages, stop=stop, run_manager=run_manager, **kwargs)
            async with _closing(events):
                async for event in events:
                    begun = True
                    whole.dispatch(event)
                    if whole.output_message is not None and not finished:
                        finished = True
                        await self._cache._afinish(
                            call, prompt, llm_string, [ChatGeneration(message=whole.output_message)]
                        )
                    yield event
        except Exception as error:
            stale = None if begun else await self._cache._astale(call, error)
            if stale is None or not isinstance(stale[0][0], ChatGeneration):
                raise
            async for event in amessage_to_events(stale[0][0].message, message_id=_message_id(run_manager)):
                yield event
        finally:
            await call.aend()


class CompletionView(_View):
    """A completion model whose streams are cached."""

    _model: BaseLLM

    def _strings(self, question: str, stop: Any, arguments: Mapping[str, Any]) -> tuple[str, str]:  # noqa: ARG002
        if self._cache.live_parameters:
            return question, ""
        params = dict((getattr(self._model, "_dict_for_compat", None) or self._model.dict)())
        return question, str(sorted({**params, "stop": stop}.items()))


def _upstream(chunks: Iterator[Any], failed: Callable[[Exception], None]) -> Iterator[Any]:
    """Yield *chunks*; adapters below the producer stay out of the way, not those of who consumes them."""
    with closing(chunks):  # type: ignore[type-var]  # a generator of this module
        while True:
            with upstream("llm"):
                try:
                    chunk = next(chunks)
                except StopIteration:
                    return
                except Exception as error:
                    failed(error)
                    raise
            yield chunk


async def _aupstream(chunks: AsyncIterator[Any], failed: Callable[[Exception], None]) -> AsyncIterator[Any]:
    """Do what ``_upstream`` does."""
    async with _closing(chunks):
        while True:
            with upstream("llm"):
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    return
                except Exception as error:
                    failed(error)
                    raise
            yield chunk


def _message_id(run_manager: Any) -> str | None:
    return None if run_manager is None else f"lc_run--{run_manager.run_id}"


def _closing(chunks: Any) -> AbstractAsyncContextManager[Any]:
    """Return what closes *chunks* at the end, if they are a generator."""
    return aclosing(chunks) if hasattr(chunks, "aclose") else nullcontext()
