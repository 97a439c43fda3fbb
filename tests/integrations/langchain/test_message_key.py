"""Keys of nodes: messages count by what they say, everything else by what it is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import CachePolicy
from pydantic import BaseModel, ConfigDict, PrivateAttr

from askonce.errors import Uncacheable
from askonce.keys import Verbatim
from askonce_langchain import AskonceNodeCache
from askonce_langchain._message_key import canonical_messages, message_key


class Form(BaseModel):
    model_config = ConfigDict(extra="allow")
    text: str = ""
    messages: list[BaseMessage] = []


class Twin(BaseModel):
    text: str = ""


class Private(BaseModel):
    _hidden: int = PrivateAttr(1)


@dataclasses.dataclass
class Record:
    text: str
    messages: list[BaseMessage] = dataclasses.field(default_factory=list)


def call(order: str, **kwargs: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": "t", "args": dict.fromkeys(order, 1), "id": "1"}], **kwargs)


ALIKE = [
    (HumanMessage("q", id="1"), HumanMessage("q", id="2")),
    (HumanMessage("q"), HumanMessage("q", id="2")),
    (AIMessage("a", id="1", usage_metadata={"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}), AIMessage("a")),
    (AIMessage("a", response_metadata={"finish_reason": "stop", "askonce": {"source": "hit", "age": 1}}), AIMessage("a")),
    (AIMessageChunk("a", id="1", chunk_position="last"), AIMessage("a")),
    (ToolMessage("r", tool_call_id="1", artifact=object()), ToolMessage("r", tool_call_id="1", artifact=None)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"x": {3, 1, 2}}, {"x": {1, 2, 3}}),
    ((1, 2), [1, 2]),
    (1.0, 1),
    (Form(text="x", messages=[HumanMessage("q", id="1")]), Form(text="x", messages=[HumanMessage("q", id="2")])),
    (Record("x", [HumanMessage("q", id="1")]), Record("x", [HumanMessage("q", id="2")])),
    (datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)),
]  # fmt: skip

DIFFERENT = [
    (HumanMessage("q"), HumanMessage("p")),
    (HumanMessage("q"), SystemMessage("q")),
    (HumanMessage("q"), AIMessage("q")),
    (HumanMessage("q"), HumanMessage("q", name="n")),
    (HumanMessage("q"), HumanMessage([{"type": "text", "text": "q"}])),
    ([HumanMessage("a"), HumanMessage("b")], [HumanMessage("b"), HumanMessage("a")]),
    ([HumanMessage("a")], [HumanMessage("a"), HumanMessage("a")]),
    (call("ab"), call("ba")),
    (call("a"), AIMessage("")),
    (ToolMessage("r", tool_call_id="1"), ToolMessage("r", tool_call_id="2")),
    (ToolMessage("r", tool_call_id="1"), ToolMessage("r", tool_call_id="1", status="error")),
    (AIMessage("a", response_metadata={"id": "resp_1"}), AIMessage("a", response_metadata={"id": "resp_2"})),
    (HumanMessage("q"), {"type": "human", "content": "q"}),
    (HumanMessage("q"), "q"),
    ({"messages": [], "n": 1}, {"messages": [], "n": 2}),
    ({"a": None}, {}),
    ([], None),
    (True, 1),
    ("1", 1),
    (b"x", "x"),
    ({1}, [1]),
    (Form(text="x"), Twin(text="x")),
    (Form(text="x"), {"text": "x"}),
    (Form(text="x"), Form(text="x", more=1)),
    (Record("x"), {"text": "x", "messages": []}),
    (Document("d"), Document("d", metadata={"n": 1})),
    (date(2025, 1, 1), "2025-01-01"),
    (datetime(2025, 1, 1), datetime(2025, 1, 1, tzinfo=UTC)),
    (timedelta(seconds=1), timedelta(seconds=2)),
    (Decimal("1.0"), "1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), ALIKE)
def test_alike(left: object, right: object) -> None:
    """What a model is sent the same of is the same question."""
    assert message_key({"x": left}) == message_key({"x": right})
    assert message_key(left) == message_key(right)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different(left: object, right: object) -> None:
    """Everything else is another question, and each of the two is always the same one."""
    for wrap in (lambda value: value, lambda value: {"x": [value]}):
        assert message_key(wrap(left)) != message_key(wrap(right))
        assert message_key(wrap(left)) == message_key(wrap(left))
        assert message_key(wrap(right)) == message_key(wrap(right))


def test_arguments() -> None:
    """Where an argument stands counts, and its name."""
    assert (
        len(
            {
                message_key(1, 2),
                message_key((1, 2)),
                message_key(2, 1),
                message_key(1, b=2),
                message_key(1, c=2),
            }
        )
        == 5
    )


@pytest.mark.parametrize(
    "value",
    [
        object(), lambda: 1, float("nan"), {1: "a"}, Private(), RemoveMessage(id="1"), Form, Verbatim(object()),
        HumanMessage("q", additional_kwargs={"o": object()}), ToolMessage([{"o": object()}], tool_call_id="1"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_told_apart(value: object) -> None:
    """It has a new key each time, and raises nothing: that would fail the graph."""
    assert message_key({"x": value}) != message_key({"x": value})


def test_a_cycle_has_a_new_key() -> None:
    """A list that contains itself has no end."""
    cycle: list[Any] = []
    cycle.append(cycle)
    assert message_key(cycle) != message_key(cycle)


def test_nothing_of_the_text_is_in_the_key() -> None:
    """The key is a digest: 27 letters."""
    key = message_key([HumanMessage("SECRET")])
    assert len(key) == 27
    assert key != "SECRET"


def test_other_processes_make_the_same_key() -> None:
    """No seed and no address is in it."""
    program = """if True:
        from langchain_core.messages import HumanMessage
        from askonce_langchain import message_key
        print(message_key({"x": {"b", "a", "c"}, "m": [HumanMessage("q", id="1")]}))
    """
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == message_key({"m": [HumanMessage("q")], "x": {"a", "b", "c"}})


def test_canonical_messages() -> None:
    """Messages as they count; none is an empty list, one that removes another is refused."""
    assert canonical_messages([]) == []
    assert canonical_messages([HumanMessage("q", id="1")]) == [
        ["HumanMessage", {"content": "q", "type": "human"}]
    ]
    with pytest.raises(Uncacheable, match="messages"):
        canonical_messages([RemoveMessage(id="1")])


@pytest.mark.parametrize(
    ("policy", "runs"), [(CachePolicy(ttl=60), 2), (CachePolicy(key_func=message_key, ttl=60), 1)]
)
def test_the_same_text_runs_the_node_once(url: str, policy: CachePolicy[Any], runs: int) -> None:
    """LangGraph's own key of a node holds the ids of its messages, and runs it again (langgraph#4890)."""
    ran: list[int] = []

    def node(state: MessagesState) -> dict[str, Any]:
        ran.append(1)
        return {"messages": [AIMessage("x")]}

    cache: AskonceNodeCache[Any] = AskonceNodeCache(url, deadline=2.0)
    builder = StateGraph(MessagesState).add_node("n", node, cache_policy=policy)
    graph = builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache)
    for _ in range(2):
        graph.invoke({"messages": [{"role": "user", "content": "hi"}]})
    assert len(ran) == runs
    cache.cache.close()


def test_a_state_of_ones_own(url: str) -> None:
    """A node whose state is a Pydantic model, or a dataclass, is keyed by its fields."""

    def node(state: Any) -> dict[str, Any]:
        ran.append(state.text)
        return {"text": state.text + "!"}

    for schema, make in ((Form, Form), (Record, Record)):
        ran: list[str] = []
        cache: AskonceNodeCache[Any] = AskonceNodeCache(url, deadline=2.0)
        builder = StateGraph(schema).add_node("n", node, cache_policy=CachePolicy(key_func=message_key))
        graph = builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache)
        for text in ("a", "a", "b"):
            for id_ in "12":
                state = graph.invoke(make(text=text, messages=[HumanMessage("q", id=id_)]))
                assert state["text"] == text + "!"
        assert ran == ["a", "b"]
        cache.cache.clear()
        cache.cache.close()
