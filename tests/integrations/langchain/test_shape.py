"""An answer made from events has the shape of a plain one before it is stored."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration

from askonce_langchain import AskonceCache
from askonce_langchain._shape import as_invoked

streaming = pytest.importorskip("langchain_core.tracers._streaming")
if not hasattr(streaming, "_V2StreamingCallbackHandler"):
    pytest.skip("event streams: langchain-core 1.4", allow_module_level=True)

TOOL = {
    "type": "function",
    "function": {"name": "t", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
PLAIN = '{"id": ["M"], "kwargs": {}, "lc": 1, "type": "constructor"}---[]'
V1 = PLAIN.replace('"kwargs": {}', '"kwargs": {"output_version": "v1"}')
CALL = {"type": "tool_call", "name": "t", "args": {}, "id": "1"}


class Listening(BaseCallbackHandler, streaming._V2StreamingCallbackHandler):  # type: ignore[misc, name-defined]
    def on_stream_event(self, event: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)


def v1(content: Any, **fields: Any) -> ChatGeneration:
    metadata = {"output_version": "v1", **fields.pop("response_metadata", {})}
    return ChatGeneration(message=AIMessage(content, response_metadata=metadata, **fields))


class TestWithLangChain:
    def test_text(self, provider: Any, cache: AskonceCache) -> None:
        """A plain call gets text, although the answer was made while somebody listened."""
        heard = provider.chat(cache).invoke("q", {"callbacks": [Listening()]})
        assert isinstance(heard.content, list)
        assert provider.chat(cache).invoke("q").content == "answer 1-0"
        assert provider.calls == 1

    async def test_tool_call(self, provider: Any, cache: AskonceCache) -> None:
        """So do callers with tools: the calls stand in their own field."""
        model = provider.chat(cache).bind_tools([TOOL])
        await model.ainvoke("q", {"callbacks": [Listening()]})
        hit = model.invoke("q")
        assert (hit.content, hit.tool_calls[0]["args"], provider.calls) == ("", {"a": 1}, 1)

    def test_other_blocks_are_not_stored(self, provider: Any, cache: AskonceCache) -> None:
        """Blocks of thoughts do not go back to the provider's own: the next caller asks again."""
        model = provider.chat(cache, use_responses_api=True)
        model.invoke("q", {"callbacks": [Listening()]})
        assert "askonce" not in model.invoke("q").response_metadata
        assert provider.calls == 2
        assert cache.cache.stats().rejection_reasons == {"shape": 1}

    def test_a_model_of_that_shape_keeps_it(self, provider: Any, cache: AskonceCache) -> None:
        """A model with ``output_version="v1"`` gives blocks to everybody."""
        model = provider.chat(cache, output_version="v1")
        model.invoke("q", {"callbacks": [Listening()]})
        assert [block["type"] for block in model.invoke("q").content] == ["text"]
        assert provider.calls == 1

    def test_a_hit_is_told_as_events(self, provider: Any, cache: AskonceCache) -> None:
        """Whoever listens hears a stored answer too."""
        provider.chat(cache).invoke("q")
        assert provider.chat(cache).invoke("q", {"callbacks": [Listening()]}).text == "answer 1-0"
        assert provider.calls == 1


class TestPure:
    def test_back_to_text(self) -> None:
        """Texts are joined, calls stay in their field, the given objects are left as they are."""
        given = v1(
            [{"type": "text", "text": "a", "index": 0}, CALL, {"type": "text", "text": "b"}],
            tool_calls=[CALL],
        )
        stored = as_invoked([given], PLAIN)
        assert stored is not None
        assert isinstance(stored[0], ChatGeneration)
        assert (stored[0].text, stored[0].message.content) == ("ab", "ab")
        assert stored[0].message.response_metadata == {}
        assert isinstance(given.message.content, list)

    @pytest.mark.parametrize(
        "generation",
        [
            v1([{"type": "reasoning", "reasoning": "x"}, {"type": "text", "text": "a"}]),
            v1([{"type": "text", "text": "a", "annotations": [{"type": "citation"}]}]),
            v1([{"type": "text", "text": "a"}], response_metadata={"object": "response"}),
            v1(["a"]),
        ],
    )
    def test_no_way_back(self, generation: ChatGeneration) -> None:
        """What plain text cannot hold has no plain shape."""
        assert as_invoked([generation], PLAIN) is None

    @pytest.mark.parametrize("llm_string", [V1, "[('_type', 'custom')]"])
    def test_left_alone(self, llm_string: str) -> None:
        """Blocks are the plain shape of a model set to v1, and may be that of one that is not described."""
        given = [v1([{"type": "reasoning", "reasoning": "x"}])]
        assert as_invoked(given, llm_string) is given
