"""The example of a web application that streams, run as a reader would, and asked without a server."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from examples.fastapi_stream import QUESTION, create_app
from examples.standin import start
from langchain_openai import ChatOpenAI

from askonce_langchain import AskonceCache

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "examples.fastapi_stream", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        command, env=inherited | environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def standin():
    with start(latency=(0.0, 0.05), error_rate=0.0) as standin:
        yield standin


@pytest.fixture
async def make(standin):
    """Make models whose connections are of this test's event loop; langchain-openai shares them among models."""
    async with httpx.AsyncClient() as client:
        yield lambda **words: ChatOpenAI(
            **{"model": "gpt-4.1-mini", "base_url": standin.base_url, "api_key": "any", **words},
            http_async_client=client,
        )


@pytest.fixture
def model(make, url):
    cache = AskonceCache(url, deadline=2.0)
    yield make(cache=cache)
    cache.cache.close()


def browser(app, **options):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://app")


async def ask(app, question, **options):
    async with browser(app, **options) as client:
        return await client.get("/answer", params={"question": question})


async def test_the_page_asks_for_the_answer(model):
    async with browser(create_app(model)) as client:
        page = await client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'fetch("/answer?"' in page.text


async def test_the_text_is_the_models(model, make):
    """All of it, in whichever pieces it came."""
    reply = await ask(create_app(model), QUESTION)
    assert (reply.status_code, reply.headers["x-askonce"]) == (200, "computed")
    assert reply.text == (await make(cache=False).ainvoke(QUESTION)).text != ""


async def test_an_error_of_the_model_is_one_of_the_request(make):
    """Nothing was sent yet: the browser hears of it."""
    with start(latency=(0.0, 0.0), error_rate=1.0) as broken:
        app = create_app(make(base_url=broken.base_url, max_retries=0))
        reply = await ask(app, QUESTION, raise_app_exceptions=False)
    assert reply.status_code == 500


async def test_the_second_answer_comes_from_the_cache(model, standin):
    """And so does one that was asked while the first was being streamed."""
    app, before = create_app(model), standin.stats().calls
    first, again = [await ask(app, "once?") for _ in range(2)]
    together = await asyncio.gather(*[ask(app, "together?") for _ in range(5)])
    assert (first.headers["x-askonce"], again.headers["x-askonce"]) == ("computed", "hit")
    assert first.text == again.text
    assert {together[0].text} == {reply.text for reply in together}
    assert standin.stats().calls - before == 2


def test_it_checks_itself(url):
    """Served, asked twice over the network, the second answer from the cache."""
    done = run("--check", "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    first, again = done.stdout.splitlines()
    assert first.startswith("first: computed")
    assert again.startswith("again: hit")
    assert first.partition(" ms ")[2] == again.partition(" ms ")[2] != ""


def test_without_a_key_it_says_what_is_missing():
    done = run("--live")
    assert (done.returncode, done.stdout) == (2, "")
    assert "OPENAI_API_KEY" in done.stderr
