"""
What is stored, in place of a model that fails: ``Policy.stale_if_error`` for calls that LangChain looks up itself.

LangChain tells its cache of no failure.  The hooks see it: an exception that leaves a call which still leads.  Not
the model's are those that are no ``Exception`` (an interrupt, a cancellation), askonce's own, and what a callback of
the caller raised on purpose (``raise_error``): they pass, as does the model's if nothing is stored, or if a listener
was already told a part of the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.callbacks import manager as callbacks
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, LLMResult

from askonce import AskonceError

_HELPERS: Final = frozenset({"_generate_helper", "_agenerate_helper"})


def is_of_the_model(error: Exception) -> bool:
    """Return whether *error*, raised while a model was called, is the model's own."""
    if isinstance(error, AskonceError):
        return False
    trace = error.__traceback__
    while trace is not None:
        # No handler is called but through this module.
        if trace.tb_frame.f_globals is vars(callbacks):
            return False
        trace = trace.tb_next
    return True


class Told(BaseCallbackHandler):
    """Notes whether the listeners of a run have been told a part of its answer."""

    run_inline = True

    def __init__(self) -> None:
        self.told = False

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:  # noqa: ARG002  LangChain's arguments
        """Note it."""
        self.told = True

    def on_stream_event(self, event: Any, **kwargs: Any) -> None:  # noqa: ARG002  as above
        """Note it; langchain-core 1.4."""
        self.told = True


class Standing:
    """
    A completion model for one call, whose failure *stale* may answer with what is stored for all its prompts.

    *listen* is given the run whose listeners the model tells.
    Such a model tells its run of a failure before that leaves LangChain's method, hence no hook around it would do.
    """

    def __init__(
        self, model: BaseLLM, stale: Callable[[Exception, list[str]], Any], listen: Callable[[Any], None]
    ) -> None:
        self._model, self._stale, self._listen = model, stale, listen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name in _HELPERS:
            return MethodType(getattr(type(self._model), name), self)
        if name == "_generate":
            return functools.wraps(found)(functools.partial(self._generated, found))
        if name == "_agenerate":
            return functools.wraps(found)(functools.partial(self._agenerated, found))
        return found

    def _generated(self, generate: Any, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        self._listen(kwargs.get("run_manager"))
        try:
            result: LLMResult = generate(prompts, *args, **kwargs)
        except Exception as error:
            stale: list[list[Generation]] | None = self._stale(error, prompts)
            if stale is None:
                raise
            return LLMResult(generations=stale)
        return result

    async def _agenerated(self, generate: Any, prompts: list[str], *args: Any, **kwargs: Any) -> LLMResult:
        self._listen(kwargs.get("run_manager"))
        try:
            result: LLMResult = await generate(prompts, *args, **kwargs)
        except Exception as error:
            stale: list[list[Generation]] | None = await self._stale(error, prompts)
            if stale is None:
                raise
            return LLMResult(generations=stale)
        return result
