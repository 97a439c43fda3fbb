"""One job done and timed."""

from typing import assert_never

from openai import OpenAIError

from examples.docgen.application import Documenter
from examples.docgen.records import Done, Job, Kind
from examples.docgen.stopwatch import Stopwatch


def do(documenter: Documenter, job: Job) -> Done:
    """The text and the calls of a job. A refusal by the provider is reported; a fault of our own ends the worker."""
    watch = Stopwatch(job)
    try:
        return Done(job, _text(documenter, job, watch), tuple(watch.calls))
    except OpenAIError as error:
        return Done(job, "", tuple(watch.calls), error=f"{type(error).__name__}: {error}")


def _text(documenter: Documenter, job: Job, watch: Stopwatch) -> str:
    match job.kind:
        case Kind.CHAIN:
            return documenter.explain(job, {"callbacks": [watch]})
        case Kind.AGENT:
            return documenter.uses(job, {"callbacks": [watch]})
        case Kind.PLAIN:
            return watch.time(lambda: documenter.example(job)).value["text"]
        case _:
            assert_never(job.kind)
