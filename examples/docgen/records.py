"""What passes between the workers and the process that reports: where to work, jobs, and what each call did."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from askonce import Source
from examples.docgen.sources import Function


class Kind(Enum):
    """The three ways in which the application asks."""

    CHAIN = "chain"
    AGENT = "agent"
    PLAIN = "plain call"


@dataclass(frozen=True, slots=True)
class Provider:
    """Where the model is: at OpenAI, if nothing else is said."""

    api_key: str = field(repr=False)
    base_url: str | None = None


@dataclass(frozen=True, slots=True)
class Workplace:
    """All that a worker needs to know; it crosses to the new process."""

    redis_url: str
    namespace: str
    provider: Provider
    source_tree: Path


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to ask about one function, under one version of the prompts."""

    kind: Kind
    function: Function
    prompt_version: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model as the application made it, wherever the answer came from.

    `question` is equal for calls that could share an answer.
    """

    kind: Kind
    question: str
    source: Source
    seconds: float
    input_tokens: int
    output_tokens: int

    @property
    def computed(self) -> bool:
        """Whether this call went to the model itself."""
        return self.source in (Source.COMPUTED, Source.BYPASSED)


@dataclass(frozen=True, slots=True)
class Done:
    """A job that ended: its text and its calls, or why it failed."""

    job: Job
    text: str
    calls: tuple[Call, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker that has imported and connected what it needs."""

    worker: int
