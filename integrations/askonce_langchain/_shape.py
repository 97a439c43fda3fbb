"""
One shape for an answer, whoever listened while it was made.

With an event handler attached, LangChain's ``invoke`` makes the message from events: its content is a list of v1
blocks, for a model whose content is otherwise text.  It stores that under the key of a plain ``invoke``, which
would then return a list where its caller expects text.  Such an answer goes back to text before it is stored, or
is not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, Generation

from ._keys import model_fields

_TEXT: Final = frozenset({"type", "text", "index"})


def as_invoked(generations: Sequence[Generation], llm_string: str) -> Sequence[Generation] | None:
    """
    Return *generations* in the shape that a plain ``invoke`` gives them; None if they have none.

    A model that *llm_string* does not describe may well be set to v1 itself: its answers stay as they are.
    """
    if not any(map(_is_v1, generations)):
        return generations
    fields = model_fields(llm_string)
    if fields is None or fields.get("output_version") == "v1":
        return generations
    return as_text(generations)


def as_given_by(
    model: BaseLanguageModel[Any], generations: Sequence[Generation]
) -> Sequence[Generation] | None:
    """Return *generations* in the shape that *model* gives them to a plain ``invoke``; None if they have none."""
    return generations if getattr(model, "output_version", None) == "v1" else as_text(generations)


def as_text(generations: Sequence[Generation]) -> Sequence[Generation] | None:
    """Return *generations* as a model that is not set to v1 gives them; None if they cannot be."""
    if not any(map(_is_v1, generations)):
        return generations
    plain = [_plain(generation) for generation in generations]
    return None if None in plain else [generation for generation in plain if generation is not None]


def _is_v1(generation: Generation) -> bool:
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        return False
    return generation.message.response_metadata.get("output_version") == "v1"


def _plain(generation: Generation) -> Generation | None:
    if not isinstance(generation, ChatGeneration) or not _is_v1(generation):
        return generation
    message = generation.message
    metadata = {name: value for name, value in message.response_metadata.items() if name != "output_version"}
    content: Any = message.content
    if isinstance(content, list):
        # A plain answer of the Responses API is a list too, of blocks that these do not tell.
        if metadata.get("object") == "response" or not all(map(_goes_back, content)):
            return None
        content = "".join(block["text"] for block in content if block["type"] == "text")
    message = message.model_copy(update={"content": content, "response_metadata": metadata})
    return ChatGeneration(message=message, generation_info=generation.generation_info)


def _goes_back(block: object) -> bool:
    if not isinstance(block, Mapping):
        return False
    if block.get("type") == "text":
        return block.keys() <= _TEXT and isinstance(block.get("text"), str)
    return block.get("type") == "tool_call"  # the message's own `tool_calls` hold it
