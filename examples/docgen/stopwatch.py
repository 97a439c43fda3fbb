"""Times the model calls of one job, and notes which of them the cache answered."""

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from askonce import Served, Source
from examples.docgen.application import Answer
from examples.docgen.records import Call, Job


class Stopwatch(BaseCallbackHandler):
    """The calls of one job, in order. In chains and agents it is a callback: LangChain tells of cached answers too."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._started: dict[UUID, float] = {}
        self.calls: list[Call] = []

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],  # noqa: ARG002  (the signature is LangChain's)
        messages: list[list[BaseMessage]],  # noqa: ARG002
        *,
        run_id: UUID,
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Start the watch of one model call."""
        self._started[run_id] = time.perf_counter()

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002
        """Stop it, and read off the answer where it came from."""
        seconds = time.perf_counter() - self._started.pop(run_id)
        generation = response.generations[0][0]
        message = generation.message if isinstance(generation, ChatGeneration) else None
        assert isinstance(message, AIMessage)  # noqa: S101  (a chat model answers with nothing else)
        served = message.response_metadata.get("askonce", {"source": Source.COMPUTED.value})
        usage = message.usage_metadata
        tokens = (usage["input_tokens"], usage["output_tokens"]) if usage else (0, 0)
        self._note(Source(served["source"]), seconds, *tokens)

    def time(self, call: Callable[[], Served[Answer]]) -> Served[Answer]:
        """Make a plain call and note it."""
        began = time.perf_counter()
        served = call()
        seconds = time.perf_counter() - began
        self._note(served.source, seconds, served.value["input_tokens"], served.value["output_tokens"])
        return served

    def _note(self, source: Source, seconds: float, input_tokens: int, output_tokens: int) -> None:
        question = question_of(self._job, step=len(self.calls))
        self.calls.append(Call(self._job.kind, question, source, seconds, input_tokens, output_tokens))


def question_of(job: Job, *, step: int = 0) -> str:
    """A name for what is asked, equal for equal questions; an agent asks in several steps."""
    function = job.function
    return f"{job.kind.value} {function.path} {function.name} {function.sha} {job.prompt_version} {step}"
