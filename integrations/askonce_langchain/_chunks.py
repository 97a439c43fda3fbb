"""
Between an answer and its chunks: what ``invoke`` would have returned for a stream, and a stored answer as a stream.

One entry serves both, so what is stored of a stream is the answer that ``invoke`` would have given and stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.language_models._utils import _update_message_content_to_blocks
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

from ._codec import Streamed

_COPIED: Final = ("additional_kwargs", "response_metadata", "usage_metadata", "name")
_WORD: Final = re.compile(r"\S*\s*")


def answer_of(chunks: Sequence[Generation], *, output_version: str | None = None) -> Streamed:
    """Return the answer that came in *chunks*, as ``invoke`` gives it: a list with one generation; empty if none came."""
    if not chunks:
        return Streamed([], [])
    if isinstance(chunks[0], ChatGenerationChunk):
        answer: Generation = _chat_answer(chunks, output_version)
        texts = [chunk.message.content for chunk in chunks if isinstance(chunk, ChatGeneration)]
    else:
        answer = _completion(chunks)
        texts = [chunk.text for chunk in chunks]
    cuts = [len(text) for text in texts if text]
    return Streamed([answer], cuts if len(cuts) > 1 and all(type(text) is str for text in texts) else [])


def _chat_answer(chunks: Sequence[Generation], output_version: str | None) -> ChatGeneration:
    (answer,) = generate_from_stream(iter(chunks)).generations  # type: ignore[arg-type]
    message: BaseMessage = answer.message
    if output_version == "v1" and isinstance(message, AIMessage):
        message = _update_message_content_to_blocks(message, "v1")
    message.response_metadata = {**(answer.generation_info or {}), **message.response_metadata}
    return ChatGeneration(message=message, generation_info=answer.generation_info)


def _completion(chunks: Sequence[Generation]) -> Generation:
    whole: GenerationChunk | None = None
    for chunk in chunks:
        if isinstance(chunk, GenerationChunk):
            whole = chunk if whole is None else whole + chunk
    return Generation(
        text=whole.text if whole else "", generation_info=whole.generation_info if whole else None
    )


def chunks_of(generations: Sequence[Generation], *, pieces: bool) -> Iterator[Any]:
    """Yield a stored answer as the chunks of a stream: one, or its text in *pieces* as it came."""
    answer = generations[0]
    text = answer.message.content if isinstance(answer, ChatGeneration) else answer.text
    if not pieces or not isinstance(text, str):
        yield _chunk(answer, text)
        return
    *first, last = _cut(text, generations.cuts if isinstance(generations, Streamed) else []) or [""]
    for piece in first:
        if isinstance(answer, ChatGeneration):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
        else:
            yield GenerationChunk(text=piece)
    yield _chunk(answer, last)


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    if sum(cuts) != len(text):  # it came whole: by words then
        return [word for word in _WORD.findall(text) if word]
    ends = [sum(cuts[:number]) for number in range(1, len(cuts) + 1)]
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _chunk(answer: Generation, content: Any) -> GenerationChunk | ChatGenerationChunk:
    if not isinstance(answer, ChatGeneration):
        return GenerationChunk(text=content, generation_info=answer.generation_info)
    message = answer.message
    fields: dict[str, Any] = {
        name: getattr(message, name) for name in _COPIED if getattr(message, name, None)
    }
    calls: list[Mapping[str, Any]] = []
    if isinstance(message, AIMessage):
        for number, call in enumerate(message.tool_calls):
            arguments = json.dumps(call["args"], ensure_ascii=False)
            calls.append({**call, "type": "tool_call_chunk", "args": arguments, "index": number})
    chunk = AIMessageChunk(content=content, **fields, tool_call_chunks=calls, chunk_position="last")  # type: ignore[arg-type]
    return ChatGenerationChunk(message=chunk, generation_info=answer.generation_info)
