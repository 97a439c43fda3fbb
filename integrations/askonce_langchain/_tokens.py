"""
A stored answer, told to those who listen for tokens.

Where somebody listens (an agent that is streamed, ``astream_events``), LangChain's ``invoke`` asks the model for a
stream and tells each token.  For an answer from a cache it tells nothing, so that such a listener would hear of it
at its end or never.  Here it is told as a live one is, and has the id of the run, by which its listeners know it
again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from ._chunks import chunks_of


def tell(
    model: BaseChatModel, result: ChatResult, run_manager: Any, arguments: Mapping[str, Any], *, pieces: bool
) -> None:
    """Tell the listeners of a run its stored answer, if they would have been told a live one."""
    if _is_told(model, run_manager, arguments, async_api=False):
        for chunk in _chunks(result, run_manager, pieces):
            run_manager.on_llm_new_token(chunk.message.content, chunk=chunk)


async def atell(
    model: BaseChatModel, result: ChatResult, run_manager: Any, arguments: Mapping[str, Any], *, pieces: bool
) -> None:
    """Do what ``tell`` does."""
    if _is_told(model, run_manager, arguments, async_api=True):
        for chunk in _chunks(result, run_manager, pieces):
            await run_manager.on_llm_new_token(chunk.message.content, chunk=chunk)


def _is_told(
    model: BaseChatModel, run_manager: Any, arguments: Mapping[str, Any], *, async_api: bool
) -> bool:
    if run_manager is None or not run_manager.handlers:
        return False
    events = getattr(
        model, "_should_use_protocol_streaming", None
    )  # langchain-core 1.4: told by LangChain itself
    if events is not None and events(async_api=async_api, run_manager=run_manager, **arguments):
        return False
    return model._should_stream(async_api=async_api, run_manager=run_manager, **arguments)


def _chunks(result: ChatResult, run_manager: Any, pieces: bool) -> Iterator[ChatGenerationChunk]:
    message_id = result.generations[0].message.id = f"lc_run--{run_manager.run_id}"
    for chunk in chunks_of(result.generations, pieces=pieces):
        chunk.message.id = message_id
        yield chunk
