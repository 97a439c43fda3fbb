"""
The kinds of blocks of a message that must be told apart, as far as the installed LlamaIndex has them.

Thoughts, tool calls and videos became blocks in the course of 0.14, and the blocks got a common base after that.
"""

from __future__ import annotations

from typing import Any, Final

from llama_index.core.base.llms import types

from ._types import BY_FIELD, found


class _Absent:
    """Stands in for a kind of block that this version does not have: nothing is one."""


VideoBlock: Final[Any] = getattr(types, "VideoBlock", _Absent)
ThinkingBlock: Final[Any] = getattr(types, "ThinkingBlock", _Absent)
ToolCallBlock: Final[Any] = getattr(types, "ToolCallBlock", _Absent)

_BASE: Final[Any] = getattr(types, "BaseContentBlock", None)
_KINDS: Final = (_BASE,) if _BASE else tuple(kind for name in BY_FIELD if (kind := found(name)))


def is_block(value: object) -> bool:
    """Return whether *value* is a block of a message, of whatever kind."""
    return isinstance(value, _KINDS)


def thinking(content: str) -> list[Any]:
    """Return the block that holds a thought, in a list; an empty one if this version has no such block."""
    return [] if ThinkingBlock is _Absent or not content else [ThinkingBlock(content=content)]
