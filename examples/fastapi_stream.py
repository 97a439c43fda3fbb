"""
A web application that streams a model's answer to the browser: from the model once, then from the cache.

    python -m examples.fastapi_stream            serve on port 8000; the model is a stand-in on this machine
    python -m examples.fastapi_stream --check    ask it twice, and say where the answers came from
    python -m examples.fastapi_stream --live     the model is OpenAI's, with OPENAI_API_KEY set

Whoever asks what is being answered already, in this process or another, is given the same text as it comes.  A
browser that goes away leaves nothing half stored.
"""

import argparse
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from askonce_langchain import AskonceCache
from examples.provider import has_key, standin_client
from examples.standin import start

MODEL = "gpt-4.1-mini"
QUESTION = "What does `heapq.heappush` do?"

PAGE = """<!doctype html>
<title>askonce</title>
<form><input name="question" size="60" value="What does `heapq.heappush` do?"> <button>Ask</button></form>
<p id="answer"></p><small id="source"></small>
<script>
document.querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  answer.textContent = "";
  const question = new FormData(event.target).get("question");
  const reply = await fetch("/answer?" + new URLSearchParams({question}));
  source.textContent = reply.headers.get("x-askonce");
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece; !(piece = await reader.read()).done; ) answer.textContent += piece.value;
};
</script>"""


def create_app(model: BaseChatModel) -> FastAPI:
    """Return the application.  It streams as it would without a cache; the header is for the curious."""
    app = FastAPI()

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/answer")
    async def answer(question: str) -> StreamingResponse:
        chunks = model.astream(question)
        first = await anext(chunks)  # an error of the model is one of this request, not of a broken stream
        source = first.response_metadata.get("askonce", {}).get("source", "computed")
        return StreamingResponse(
            _texts(first, chunks), media_type="text/plain", headers={"x-askonce": source}
        )

    return app


async def _texts(first: AIMessageChunk, chunks: AsyncIterator[AIMessageChunk]) -> AsyncIterator[str]:
    yield str(first.text)
    async for chunk in chunks:
        yield str(chunk.text)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free port for as long as the block runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def check(app: FastAPI) -> bool:
    """Ask twice as a browser would; return whether the second answer came from the cache, and was the same."""
    answers = []
    with served(app) as url:
        for time_asked in ("first", "again"):
            began = time.perf_counter()
            with httpx.stream("GET", f"{url}/answer", params={"question": QUESTION}, timeout=60) as reply:
                reply.raise_for_status()
                text = "".join(reply.iter_text())
            source = reply.headers["x-askonce"]
            print(
                f"{time_asked}: {source}, {1000 * (time.perf_counter() - began):.0f} ms  {text.splitlines()[-1]}"
            )
            answers.append((source, text))
    (_, first), (source, again) = answers
    return source == "hit" and first == again


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve, or check; 1 if the check fails, 2 if there is no key to ask a provider with."""
    parser = argparse.ArgumentParser(prog="python -m examples.fastapi_stream", description="Cached streams.")
    parser.add_argument(
        "--check", action="store_true", help="ask twice, say where the answers came from, end"
    )
    parser.add_argument("--live", action="store_true", help="ask OpenAI instead of the stand-in")
    parser.add_argument("--url", help="a Redis to use instead of ASKONCE_URL or an embedded one")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    if options.live and not has_key():
        return 2
    with ExitStack() as stack:
        cache = AskonceCache(options.url, namespace="examples")
        stack.callback(cache.cache.close)
        client = {} if options.live else standin_client(stack.enter_context(start()).base_url)
        app = create_app(ChatOpenAI(model=MODEL, cache=cache, **client))
        if options.check:
            return 0 if check(app) else 1
        uvicorn.run(app, port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
