"""What every benchmark asks and is answered: chat requests of 1.5 KB, answers of 2 KB."""

from __future__ import annotations

import random
from typing import Any

ANSWER = "".join(random.Random(1).choices("abcdefghij klmnop", k=2048))
QUESTION = "Explain what this function does, step by step, and name its edge cases. "
LLM_STRING = "[('_type', 'fake'), ('model', 'gpt-4o-mini'), ('temperature', 0.7)]"


def request(number: int) -> dict[str, Any]:
    """Return a chat request of 1.5 KB, as an application would make it."""
    return {
        "model": "gpt-4o-mini",
        "temperature": 0.7,
        "max_tokens": 512,
        "messages": [
            {"role": "system", "content": "You are a careful technical writer. " * 8},
            {"role": "user", "content": prompt(number)},
        ],
        "tools": [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}],
        "stop": None,
    }


def prompt(number: int) -> str:
    """Return the user's part of a request, 1 KB, for caches that are asked by text."""
    return f"{number}: " + QUESTION * 14


def answer(number: int) -> str:
    """Return an answer of 2,048 letters, each number another one, with nothing in it to compress."""
    return "".join(random.Random(number).choices(_LETTERS, k=2048))


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ."
