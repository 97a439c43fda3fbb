"""No credential is in a key, a value, a log or an error: everything is searched after a run of everything."""

from __future__ import annotations

import hashlib
import logging

import openai
import pytest
from tests.integrations.openai.kit import ask, ask_raw, atext, flights, text

import askonce_openai

SECRET = "sk-proj-S3cr3tS3cr3tS3cr3t"


async def everything(client, aclient, azure):
    """Each API in both forms: answers, hits, errors, bypasses, streams that are left; sync and async."""
    for _ in range(2):
        ask(client)
        list(ask(client, "s", stream=True))
        text(ask(client, "s", stream=True, stream_options={"include_usage": True}))
        client.responses.create(model="m", input="q")
        list(client.responses.create(model="m", input="q2", stream=True))
        client.embeddings.create(model="e", input=["a", "b"])
        client.completions.create(model="m", prompt="p")
        azure.chat.completions.create(model="dep", messages=[{"role": "user", "content": "hi"}])
        ask_raw(client, extra_headers={"x-askonce-tags": "t"})
        ask(client, store=True)
        ask(client, "left", stream=True).close()
        for model in ("m-400", "m-500", "m-429"):
            for stream in (False, True):
                with pytest.raises(openai.APIStatusError):
                    ask(client, model=model, stream=stream)
                with pytest.raises(openai.APIStatusError):
                    await ask(aclient, model=model, stream=stream)
        await ask(aclient, "async")
        await atext(await ask(aclient, "async s", stream=True))
        await aclient.embeddings.create(model="e", input=["a", "c"])
        await (await ask(aclient, "async left", stream=True)).close()


@pytest.mark.parametrize("scope", [None, "api_key"])
async def test_it_is_nowhere(client, provider, cache, raw_values, caplog, scope):
    """Not even its hash, unless it was asked to keep callers apart; then it is within the fingerprint alone."""
    caplog.set_level(logging.DEBUG, "askonce")
    words = {"api_key": SECRET, "max_retries": 0, "options": {"scope": scope}}
    made, amade = client(**words), client(openai.AsyncOpenAI, **words)
    azure = client(openai.AzureOpenAI, azure_endpoint=provider.url, api_version="2025-01-01", **words)
    await everything(made, amade, azure)
    assert flights(made) == flights(amade) == 0
    assert provider.last["chat"]["headers"]["authorization"] == f"Bearer {SECRET}"
    stored = raw_values()
    assert len(stored) > 5000
    logged = "\n".join(f"{record.getMessage()} {record.exc_info}" for record in caplog.records)
    told = f"{cache!r} {cache.stats()} {[*cache.entries()]} {made._client._transport.askonce.options!r}"
    for form in (SECRET, SECRET[8:], hashlib.sha256(SECRET.encode()).hexdigest()):
        assert form.encode() not in stored
        assert form not in logged
        assert form not in told
    await amade.close()


def test_errors_of_ours_quote_none(client, provider, cache):
    made = client(api_key=SECRET)
    with pytest.raises(ValueError) as caught:
        askonce_openai.wrap(made, cache, fresh_ids=True)
    assert SECRET not in str(caught.value)
