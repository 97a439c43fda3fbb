"""A stand-in for a provider of language models: OpenAI's API and Anthropic's, on this machine, without a bill.

It answers ``/v1/chat/completions`` (whole and streamed, with tools and structured output), ``/v1/responses`` and
Anthropic's ``/v1/messages`` (text, whole and streamed), ``/v1/embeddings`` and ``/v1/models`` as a provider does: it takes its time, counts tokens, and now and then says 429 or 500. Everything it says and
does follows from a seed and the request, so a run can be repeated. It counts what reaches it, which
makes it the witness of how often a cache really asked: ``/standin/stats``.

It understands nothing: an answer is made of what a regular expression finds in the question.

    python -m examples.standin --port 8000

    with start(seed=7) as standin:
        client = OpenAI(base_url=standin.base_url, api_key="any")
"""

from examples.standin.behaviour import Behaviour, Stats
from examples.standin.process import Standin, start

__all__ = ["Behaviour", "Standin", "Stats", "start"]
