"""The chain by which LangChain's caches are compared: prompt, a model that answers at once, parser."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from tests.benchmarks.payloads import ANSWER, QUESTION

PROMPT = ChatPromptTemplate.from_messages(
    [("system", "You are a careful technical writer. " * 8), ("user", "{number}: " + QUESTION * 10)]
)


class Canned(BaseChatModel):
    """Answers at once with 2 KB, as a provider's model would: with token counts and a reason to end."""

    model: str = "gpt-4o-mini"
    temperature: float = 0.7
    max_tokens: int = 512

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return True: like the models of the providers' packages, it is told to a cache by its fields."""
        return True

    @property
    def _llm_type(self) -> str:
        return "canned"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[answer(len(messages))])


def answer(number: int) -> ChatGeneration:
    """Return an answer with all that langchain-openai reports of one, and 2 KB of text."""
    prompt, completion = 300, 500 + number
    usage = {
        "completion_tokens": completion,
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {
            "accepted_prediction_tokens": 0,
            "audio_tokens": 0,
            "reasoning_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
    }
    message = AIMessage(
        f"{number}: {ANSWER}",
        additional_kwargs={"refusal": None},
        response_metadata={
            "token_usage": usage,
            "model_provider": "openai",
            "model_name": "gpt-4o-mini-2024-07-18",
            "system_fingerprint": "fp_0123456789",
            "id": f"chatcmpl-{number}",
            "service_tier": "default",
            "finish_reason": "stop",
            "logprobs": None,
        },
        id=f"run--{number}",
        usage_metadata={
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
            "input_token_details": {"audio": 0, "cache_read": 0},
            "output_token_details": {"audio": 0, "reasoning": 0},
        },
    )
    return ChatGeneration(message=message, generation_info={"finish_reason": "stop", "logprobs": None})


def chain_of(model: BaseChatModel) -> Runnable[Any, str]:
    """Return prompt, *model* and parser."""
    return PROMPT | model | StrOutputParser()
