"""
An OpenAI-compatible server on 127.0.0.1: chat, streams, tools, JSON schemas, the Responses API, embeddings.

Every answer holds a running number, so that an answer that was not cached cannot look like one that was.  Words in the
last message change what it does: ``@cut`` ends a stream without a reason and without ``[DONE]``, ``@length`` and
``@filter`` are finish reasons, ``@empty`` says nothing, ``@fail`` is an error 400, ``@words`` says 410 of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


class Provider(ThreadingHTTPServer):
    """Serves as long as the tests run; counts what reaches it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls = self.embedding_calls = self.embedded_texts = 0
        self._counting = threading.Lock()
        #: Called with each body before a chunk or an answer is sent: a test may hold the model up.
        self.gate: Callable[[dict[str, Any], int], object] = lambda _body, _chunk: None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def count(self, texts: int | None = None) -> int:
        with self._counting:
            if texts is None:
                self.calls += 1
                return self.calls
            self.embedding_calls += 1
            self.embedded_texts += texts
            return self.embedding_calls

    @contextmanager
    def expects(self, calls: int) -> Iterator[None]:
        """Hold that the block makes exactly so many calls of a language model."""
        before = self.calls
        yield
        assert self.calls - before == calls

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that left a stream
            super().handle_error(request, client_address)


def decide(body: dict[str, Any], number: int) -> tuple[str | None, list[dict[str, Any]] | None]:
    """Return the content and the tool calls of an answer."""
    messages, tools = body["messages"], body.get("tools")
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return json.dumps({"name": "Tom", "age": 7}), None
    if tools and not any(message.get("role") == "tool" for message in messages):
        function = tools[0]["function"]
        properties = function["parameters"].get("properties", {})
        arguments = {name: 3 if p.get("type") == "integer" else "Tom" for name, p in properties.items()}
        if "age" in properties:
            arguments["age"] = 7
        called = {"name": function["name"], "arguments": json.dumps(arguments)}
        return None, [{"id": f"call_{number}", "type": "function", "function": called}]
    last = str(messages[-1].get("content"))
    if "@words" in last:
        return " ".join(f"w{index}" for index in range(410)), None
    return "" if "@empty" in last else f"answer number {number} to: {last[-40:]}", None


def finish(body: dict[str, Any], tool_calls: object) -> str:
    last = str(body["messages"][-1].get("content"))
    if "@length" in last:
        return "length"
    return "content_filter" if "@filter" in last else "tool_calls" if tool_calls else "stop"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/embeddings"):
            return self._embeddings(body)
        number = self.server.count()
        self.server.gate(body, 0)
        if self.path.endswith("/messages"):
            return self._messages(body, number)
        if self.path.endswith("/api/chat"):
            return self._ollama(body, number)
        if self.path.endswith("/responses"):
            return self._responses(body, number)
        if "prompt" in body:
            return self._completion(body, number)
        if "@fail" in str(body["messages"][-1].get("content")):
            return self._send({"error": {"message": "no", "type": "invalid_request_error"}}, 400)
        content, tool_calls = decide(body, number)
        whole = {"id": f"chatcmpl-{number}", "created": number, "model": body["model"]}
        if body.get("stream"):
            return self._stream(body, whole, content, tool_calls)
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if tool_calls:
            message["tool_calls"] = tool_calls
        choice = {"index": 0, "message": message, "finish_reason": finish(body, tool_calls)}
        return self._send({**whole, "object": "chat.completion", "usage": USAGE, "choices": [choice]})

    def _completion(self, body: dict[str, Any], number: int) -> None:
        whole = {"id": f"cmpl-{number}", "object": "text_completion", "created": 1, "model": body["model"]}
        text = f"text number {number}"
        if not body.get("stream"):
            choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
            return self._send({**whole, "choices": [choice], "usage": USAGE})
        self._begin_events()
        for part, reason in ((text[:5], None), (text[5:], None), ("", "stop")):
            choice = {"index": 0, "text": part, "finish_reason": reason, "logprobs": None}
            self._event({**whole, "choices": [choice]})
        return self._done()

    def _stream(
        self, body: dict[str, Any], whole: dict[str, Any], content: str | None, tool_calls: Any
    ) -> None:
        self._begin_events()
        whole = {**whole, "object": "chat.completion.chunk"}

        def send(delta: dict[str, Any], reason: object = None) -> None:
            self._event({**whole, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        send({"role": "assistant", "content": None if tool_calls else ""})
        for index, call in enumerate(tool_calls or []):
            function = call["function"]
            half = len(function["arguments"]) // 2
            named = {"name": function["name"], "arguments": ""}
            send({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": named}]})
            for part in (function["arguments"][:half], function["arguments"][half:]):
                send({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        words = [] if tool_calls else (content or "").split(" ")
        for index, word in enumerate(words):
            self.server.gate(body, index + 1)
            send({"content": word if index == len(words) - 1 else f"{word} "})
        if "@cut" in str(body["messages"][-1].get("content")):
            return
        send({}, finish(body, tool_calls))
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**whole, "choices": [], "usage": USAGE})
        self._done()

    def _responses(self, body: dict[str, Any], number: int) -> None:
        text = f"answer number {number} to: {str(body['input'])[-40:]}"
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"id": "m1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        usage = {
            "input_tokens": 11,
            "output_tokens": 7,
            "total_tokens": 18,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
        whole = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "completed",
            "output": [item],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage,
        }
        if not body.get("stream"):
            return self._send(whole)
        self._begin_events()
        started = {**whole, "status": "in_progress", "output": [], "usage": None}
        place = {"item_id": "m1", "output_index": 0, "content_index": 0, "logprobs": []}
        events = [{"type": "response.created", "response": started}]
        events += [
            {"type": "response.output_text.delta", **place, "delta": word}
            for word in text.replace(" ", " \0").split("\0")
        ]
        if "@cut" not in str(body["input"]):
            events.append({"type": "response.completed", "response": whole})
        for index, event in enumerate(events):
            data = json.dumps({**event, "sequence_number": index})
            self.wfile.write(f"event: {event['type']}\ndata: {data}\n\n".encode())
        return None

    def _messages(self, body: dict[str, Any], number: int) -> None:
        """Answer as Anthropic does; ``@think`` thinks first."""
        said = str(body["messages"][-1]["content"])
        text, thought = f"answer number {number} to: {said[-40:]}", "let me see"
        stop = "max_tokens" if "@length" in said else "end_turn"
        usage = {"input_tokens": 11, "output_tokens": 7}
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if "@think" in said:
            blocks.insert(0, {"type": "thinking", "thinking": thought, "signature": f"sig{number}"})
        whole = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": blocks,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }
        if not body.get("stream"):
            return self._send(whole)
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}
        ]
        for index, block in enumerate(blocks):
            empty = (
                {**block, "text": ""}
                if block["type"] == "text"
                else {**block, "thinking": "", "signature": ""}
            )
            events.append({"type": "content_block_start", "index": index, "content_block": empty})
            if block["type"] == "text":
                deltas = [
                    {"type": "text_delta", "text": word} for word in text.replace(" ", " \0").split("\0")
                ]
            else:
                deltas = [{"type": "thinking_delta", "thinking": part} for part in ("let ", "me see")]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
            events.append({"type": "content_block_stop", "index": index})
        if "@cut" not in said:
            delta = {"stop_reason": stop, "stop_sequence": None}
            events += [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]
        self._begin_events()
        for event in events:
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        return None

    def _ollama(self, body: dict[str, Any], number: int) -> None:
        """Answer as Ollama does: a line for each piece."""
        text = f"answer number {number} to: {str(body['messages'][-1]['content'])[-40:]}"
        common = {"model": body["model"], "created_at": f"2025-01-01T00:00:{number % 60:02}Z"}
        end = {"done": True, "done_reason": "stop", "prompt_eval_count": 11, "eval_count": 7}
        if not body.get("stream"):
            return self._send({**common, **end, "message": {"role": "assistant", "content": text}})
        self._begin_events()
        for word in text.replace(" ", " \0").split("\0"):
            line = {**common, "message": {"role": "assistant", "content": word}, "done": False}
            self.wfile.write(json.dumps(line).encode() + b"\n")
        last = {**common, **end, "message": {"role": "assistant", "content": ""}}
        self.wfile.write(json.dumps(last).encode() + b"\n")
        return None

    def _embeddings(self, body: dict[str, Any]) -> None:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        self.server.count(len(texts))
        data = []
        for index, text in enumerate(texts):
            numbers = [byte / 255 for byte in hashlib.sha256(str(text).encode()).digest()[:8]]
            vector: object = numbers
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack("<8f", *numbers)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        self._send({"object": "list", "model": body["model"], "data": data, "usage": usage})

    def _begin_events(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def _done(self) -> None:
        self.wfile.write(b"data: [DONE]\n\n")
        self.wfile.flush()

    def _send(self, whole: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(whole).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
