"""
Which requests are none of the cache's business.

A POST that merely ends in ``/responses`` may be somebody's write: the shape of the body must be a model request's.  And
an answer that depends on more than its request (a conversation, a tool that the provider runs, the web), or that the
caller wants to leave a trace upstream, is not to be served again.
"""

from __future__ import annotations

from typing import Any, Final, TypeGuard

_REQUIRED: Final = {
    "chat": ("model", "messages"),
    "responses": (),  # a stored prompt may stand in for model and input
    "embeddings": ("model", "input"),
    "completions": ("model", "prompt"),
    "messages": ("model", "messages", "max_tokens"),
}

# Without any of these a request depends on nothing but itself.
_TELLING: Final = frozenset(
    {
        "background",
        "container",
        "conversation",
        "max_tokens",
        "mcp_servers",
        "modalities",
        "previous_response_id",
        "prompt",
        "prompt_cache_options",
        "store",
        "thread",
        "tools",
        "web_search_options",
    }
)

# Tools that the caller runs; a tool without a type is Anthropic's for the same.
_OWN_TOOLS: Final = ("function", "custom", None)


def has_shape(body: object, api: str) -> TypeGuard[dict[str, Any]]:
    """Return whether *body* is a request of this API, as far as can be told."""
    if not isinstance(body, dict):
        return False
    for name in _REQUIRED[api]:
        if _is_blank(body.get(name)):
            return False
    if api == "responses":
        if not _is_blank(prompt := body.get("prompt")):
            return isinstance(prompt, dict)
        return isinstance(body.get("model"), str) and not _is_blank(body.get("input"))
    if not isinstance(body["model"], str) or not isinstance(body.get("tools") or [], list):
        return False
    return api not in {"chat", "messages"} or isinstance(body["messages"], list)


def _is_blank(value: object) -> bool:
    return not value and (value is None or value in ("", [], {}))


def stateful(api: str, body: dict[str, Any]) -> str | None:
    """Return in one word why the answer depends on more than this request, or is wanted upstream; None if not."""
    if _TELLING.isdisjoint(body):
        return None
    if body.get("store") is True:
        return "store"
    if api == "responses":
        if body.get("background"):
            return "background"
        if body.get("previous_response_id") or body.get("conversation"):
            return "conversation"
        if body.get("prompt") and not body["prompt"].get("version"):
            return "prompt-version"  # the newest version, whichever that will be
    if api == "messages":
        if body["max_tokens"] == 0:
            return "prewarm"
        for name in ("thread", "container", "mcp_servers"):
            if body.get(name):
                return name.replace("_", "-")
    options = body.get("prompt_cache_options")
    if isinstance(options, dict) and options.get("prewarm"):
        return "prewarm"
    if body.get("web_search_options") is not None:
        return "web-search"
    if isinstance(modalities := body.get("modalities"), list) and "audio" in modalities:
        return "audio"
    tools = body.get("tools") or []
    if not isinstance(tools, list) or any(
        not isinstance(tool, dict) or tool.get("type") not in _OWN_TOOLS for tool in tools
    ):
        return "hosted-tool"
    return None
