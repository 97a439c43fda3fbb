"""
The events of a stream out of one JSON answer: what the same request would have been given with ``stream``.

The fewest events that say all of it: a whole choice, part or block at a time, for consumers that put pieces together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .assembled import Json
from .sse import DONE, compact, written


def streamed(api: str, answer: Json, *, wants_usage: bool) -> bytes | None:
    """Return the stream that says *answer*; None for an API that does not stream.  Raises KeyError and its like."""
    match api:
        case "chat":
            return b"".join(_chunks(answer, _chat_parts(answer), wants_usage)) + DONE
        case "completions":
            return b"".join(_chunks(answer, iter(answer["choices"]), wants_usage)) + DONE
        case "responses":
            return _numbered(_response(answer))
        case "messages":
            return b"".join(written(event, event["type"]) for event in _message(answer))
    return None


# --- chat and completions -----------------------------------------------------------------------------------------


def _chunks(answer: Json, parts: Iterator[Json], wants_usage: bool) -> Iterator[bytes]:
    base = {name: value for name, value in answer.items() if name not in {"choices", "usage"}}
    if base.get("object") == "chat.completion":
        base["object"] = "chat.completion.chunk"
    usage = answer.get("usage")
    tells_usage = wants_usage and usage is not None
    if tells_usage:
        base["usage"] = None
    for part in parts:
        yield written({**base, "choices": [part]})
    if tells_usage:
        yield written({**base, "choices": [], "usage": usage})


def _chat_parts(answer: Json) -> Iterator[Json]:
    for choice in answer["choices"]:
        message = choice["message"]
        delta = {
            name: value
            for name, value in message.items()
            if name not in {"content", "tool_calls"} and value not in (None, [])
        }
        delta["content"] = message.get("content")
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        index = choice["index"]
        yield {"index": index, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
        last: Json = {"delta": {}, "logprobs": None}
        yield {**{name: value for name, value in choice.items() if name != "message"}, **last}


# --- Responses ----------------------------------------------------------------------------------------------------


def _numbered(given: Iterator[Json]) -> bytes:
    return b"".join(
        written({"type": event.pop("type"), "sequence_number": number, **event}, kind)
        for number, event in enumerate(given)
        for kind in [event["type"]]
    )


def _response(answer: Json) -> Iterator[Json]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(answer.get("output") or ()):
        at = {"output_index": index, "item_id": item.get("id")}
        added, pieces = _item(item, at)
        yield {"type": "response.output_item.added", "output_index": index, "item": added}
        yield from pieces
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    yield {"type": f"response.{answer['status']}", "response": answer}


def _item(item: Json, at: Json) -> tuple[Json, Iterator[Json]]:
    """Return the item as it is when it begins, and the events by which it grows."""
    match item["type"]:
        case "message":
            return {**item, "status": "in_progress", "content": []}, _texts(item, at)
        case "function_call":
            begun = {**item, "status": "in_progress", "arguments": ""}
            done = {"arguments": item["arguments"], "name": item["name"]}
            return begun, _argument("response.function_call_arguments", at, item["arguments"], done)
        case "custom_tool_call":
            begun = {**item, "status": "in_progress", "input": ""}
            done = {"input": item["input"]}
            return begun, _argument("response.custom_tool_call_input", at, item["input"], done)
        case "reasoning":
            return {**item, "summary": []}, _thoughts(item, at)
        case _:
            return item, iter(())


def _texts(item: Json, at: Json) -> Iterator[Json]:
    for number, part in enumerate(item["content"]):
        here = {**at, "content_index": number}
        if part["type"] != "output_text":
            yield {"type": "response.content_part.added", **here, "part": part}
        else:
            text, logprobs = part["text"], part.get("logprobs") or []
            begun = {**part, "text": "", "annotations": []}
            yield {"type": "response.content_part.added", **here, "part": begun}
            yield {"type": "response.output_text.delta", **here, "delta": text, "logprobs": logprobs}
            for place, note in enumerate(part.get("annotations") or ()):
                noted = {"annotation_index": place, "annotation": note}
                yield {"type": "response.output_text.annotation.added", **here, **noted}
            yield {"type": "response.output_text.done", **here, "text": text, "logprobs": logprobs}
        yield {"type": "response.content_part.done", **here, "part": part}


def _argument(kind: str, at: Json, value: str, done: Json) -> Iterator[Json]:
    yield {"type": f"{kind}.delta", **at, "delta": value}
    yield {"type": f"{kind}.done", **at, **done}


def _thoughts(item: Json, at: Json) -> Iterator[Json]:
    for number, part in enumerate(item.get("summary") or ()):
        here, text = {**at, "summary_index": number}, part["text"]
        begun = {**part, "text": ""}
        yield {"type": "response.reasoning_summary_part.added", **here, "part": begun}
        yield {"type": "response.reasoning_summary_text.delta", **here, "delta": text}
        yield {"type": "response.reasoning_summary_text.done", **here, "text": text}
        yield {"type": "response.reasoning_summary_part.done", **here, "part": part}


# --- Messages -----------------------------------------------------------------------------------------------------


def _message(answer: Json) -> Iterator[Json]:
    begun = {**answer, "content": [], "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(answer["content"]):
        start, deltas = _block(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": answer.get("stop_sequence")}
    yield {"type": "message_delta", "delta": stop, "usage": answer.get("usage") or {}}
    yield {"type": "message_stop"}


def _block(block: Json) -> tuple[Json, list[Json]]:
    """Return the block as it is when it begins, and the deltas by which it grows."""
    match block["type"]:
        case "text":
            start: dict[str, Any] = {**block, "text": ""}
            cited = block.get("citations")
            if "citations" in block:
                start["citations"] = None if cited is None else []
            deltas: list[Json] = [{"type": "text_delta", "text": block["text"]}]
            return start, deltas + [{"type": "citations_delta", "citation": one} for one in cited or ()]
        case "tool_use":
            text = compact(block["input"]).decode()
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
        case "thinking":
            start = {**block, "thinking": ""}
            deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
            if block.get("signature"):
                start["signature"] = ""
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return start, deltas
        case _:
            return block, []
