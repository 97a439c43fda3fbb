"""LangGraph's cache of nodes: its contract, exact namespaces, what comes back, and graphs that ask again."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import operator
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
import pytest
import redis
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langgraph.cache.base import BaseCache
from langgraph.cache.redis import RedisCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import CachePolicy, Send
from pydantic import BaseModel, PrivateAttr
from tests.conftest import every_server  # noqa: F401  a fixture

from askonce import BackendUnavailable, Cache, ConfigurationError, Policy, Uncacheable, control
from askonce_langchain import AskonceNodeCache, message_key
from askonce_langchain._values import ValuesCodec

ONE = (("graph", "node"), "one")


class Either:
    """Calls a node cache in one colour, so that one body tests both."""

    def __init__(self, cache: BaseCache[Any], colour: str) -> None:
        self.cache, self._aio = cache, colour == "async"

    def get(self, keys: Any) -> Any:
        return asyncio.run(self.cache.aget(keys)) if self._aio else self.cache.get(keys)

    def set(self, pairs: Any) -> None:
        asyncio.run(self.cache.aset(pairs)) if self._aio else self.cache.set(pairs)

    def clear(self, namespaces: Any = None) -> None:
        asyncio.run(self.cache.aclear(namespaces)) if self._aio else self.cache.clear(namespaces)


@pytest.fixture
def cache(url: str) -> Iterator[AskonceNodeCache[Any]]:
    cache: AskonceNodeCache[Any] = AskonceNodeCache(url, deadline=2.0)
    yield cache
    cache.cache.close()


@pytest.fixture(params=["sync", "async"])
def either(request: pytest.FixtureRequest, cache: AskonceNodeCache[Any]) -> Either:
    return Either(cache, request.param)


@pytest.fixture
def refused() -> Iterator[str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        yield f"redis://127.0.0.1:{closed.getsockname()[1]}"


class TestContract:
    """What LangGraph's own tests ask of its RedisCache, in both colours."""

    def test_set_and_get(self, either: Either) -> None:
        """What was set is found."""
        either.set({ONE: ({"result": 42}, None)})
        assert either.get([ONE]) == {ONE: {"result": 42}}

    def test_several(self, either: Either) -> None:
        """Several are set and found, with and without a lifetime."""
        keys = [(("g", "1"), "a"), (("g", "2"), "b"), (("other",), "c")]
        either.set(
            {key: ({"n": n}, ttl) for n, (key, ttl) in enumerate(zip(keys, (None, 60, None), strict=True))}
        )
        assert either.get(keys) == {key: {"n": n} for n, key in enumerate(keys)}

    def test_namespaces_are_apart(self, either: Either) -> None:
        """The same key in two namespaces is two values."""
        keys = [(("g1", "n"), "k"), (("g2", "n"), "k")]
        either.set({key: ({"n": n}, None) for n, key in enumerate(keys)})
        assert either.get(keys) == {keys[0]: {"n": 0}, keys[1]: {"n": 1}}

    def test_clear_all(self, either: Either) -> None:
        """Without namespaces, all is gone; what is set afterwards is found."""
        keys = [(("g", "1"), "a"), (("g", "2"), "b")]
        either.set({key: ({}, None) for key in keys})
        either.clear()
        assert either.get(keys) == {}
        either.set({keys[0]: ({"new": 1}, None)})
        assert either.get(keys) == {keys[0]: {"new": 1}}

    def test_clear_namespaces(self, either: Either) -> None:
        """The namespaces that are named are gone, the others stay."""
        keys = [(("g1", "n"), "a"), (("g2", "n"), "b"), (("g1", "o"), "c")]
        either.set({key: ({}, None) for key in keys})
        either.clear([("g1", "n"), ("g1", "o")])
        assert either.get(keys) == {keys[1]: {}}

    def test_nothing(self, either: Either) -> None:
        """No keys, no pairs, no namespaces: nothing happens."""
        either.set({ONE: ({}, None)})
        assert either.get([]) == {}
        either.set({})
        either.clear([])
        assert either.get([ONE]) == {ONE: {}}

    def test_missing(self, either: Either) -> None:
        """What was never set is left out."""
        assert either.get([ONE]) == {}

    def test_odd_names(self, either: Either) -> None:
        """An empty namespace, separators, text outside ASCII, half a character."""
        keys = [((), "k"), (("a:b", "c-d"), "e_f"), (("ä", "\ud800"), "*"), (("", ""), "")]
        either.set({key: ({"n": n}, None) for n, key in enumerate(keys)})
        assert either.get(keys) == {key: {"n": n} for n, key in enumerate(keys)}

    def test_large(self, either: Either) -> None:
        """A large value comes back whole."""
        large = {"list": list(range(1000)), "nested": {"text": "x" * 100_000}}
        either.set({ONE: (large, None)})
        assert either.get([ONE]) == {ONE: large}

    def test_damaged(self, either: Either, url: str) -> None:
        """A damaged entry is left out, and the others are found."""
        client = redis.Redis.from_url(url)
        other = (("graph", "node"), "other")
        either.set({ONE: ({"n": 1}, None)})
        (key,) = client.keys("*e:*")
        either.set({other: ({"n": 2}, None)})
        whole = client.get(key)
        client.set(key, whole[:60] + b"\xc1" * 20)
        assert either.get([ONE, other]) == {other: {"n": 2}}


class TestNamespaces:
    def test_none_shares_a_key(self, either: Either) -> None:
        """However the parts of a namespace are cut, it is another one."""
        keys = [
            (("a", "b"), "k"),
            (("a",), "b:k"),
            (("ab",), "k"),
            (("a*",), "k"),
            ((), "a:b:k"),
            (("a", "b", ""), "k"),
        ]
        either.set({key: ({"n": n}, None) for n, key in enumerate(keys)})
        assert either.get(keys) == {key: {"n": n} for n, key in enumerate(keys)}

    @pytest.mark.parametrize("cleared", [("a",), ("a*",), ("a", "b"), (), ("1:a",)])
    def test_clear_is_exact(self, either: Either, cleared: tuple[str, ...]) -> None:
        """Neither a pattern nor the beginning of another namespace clears that one."""
        keys = [((*namespace,), "k") for namespace in ((), ("a",), ("a*",), ("ab",), ("a", "b"), ("1:a",))]
        either.set({key: ({}, None) for key in keys})
        either.clear([cleared])
        assert set(either.get(keys)) == set(keys) - {(cleared, "k")}

    def test_the_peer_confuses_them(self, url: str) -> None:
        """LangGraph's RedisCache writes two namespaces under one key, and clears more than it is told."""
        peer: RedisCache[Any] = RedisCache(redis.Redis.from_url(url))
        peer.set({(("a", "b"), "k"): (1, None), (("a",), "b:k"): (2, None), (("ab",), "k"): (3, None)})
        assert peer.get([(("a", "b"), "k")]) == {(("a", "b"), "k"): 2}
        peer.clear([("a*",)])
        assert peer.get([(("ab",), "k")]) == {}

    @pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
    async def test_the_peer_has_no_async(self, url: str) -> None:
        """LangGraph's RedisCache takes an async client, and does not await it (langgraph#6247)."""
        client = redis.asyncio.Redis.from_url(url)
        peer: RedisCache[Any] = RedisCache(client)
        with pytest.raises(TypeError):
            await peer.aget([ONE])
        await client.aclose()

    def test_what_else_the_cache_holds_stays(self, url: str) -> None:
        """``clear`` on a shared cache removes what nodes wrote and nothing else."""
        shared = Cache(url, deadline=2.0)
        shared.store("model", "answer")
        nodes: AskonceNodeCache[Any] = AskonceNodeCache(shared)
        nodes.set({ONE: (1, None)})
        nodes.clear()
        assert nodes.get([ONE]) == {}
        assert shared.lookup("model").value == "answer"
        shared.close()


class TestLifetime:
    def test_of_the_policy_of_the_node(self, url: str, either: Either) -> None:
        """A ttl of LangGraph's CachePolicy is how long Redis keeps the entry."""
        either.set({ONE: (1, 60)})
        client = redis.Redis.from_url(url)
        (key,) = client.keys("*e:*")
        assert 50 < client.ttl(key) <= 60

    def test_of_the_cache(self, url: str) -> None:
        """Without one, the policy of the cache says."""
        cache: AskonceNodeCache[Any] = AskonceNodeCache(url, policy=Policy(ttl=7), deadline=2.0)
        cache.set({ONE: (1, None)})
        client = redis.Redis.from_url(url)
        (key,) = client.keys("*e:*")
        assert 0 < client.ttl(key) <= 7
        cache.cache.close()

    def test_nothing_is_kept_for_no_time(self, either: Either) -> None:
        """A ttl of 0 stores nothing."""
        either.set({ONE: (1, 0)})
        assert either.get([ONE]) == {}

    @pytest.mark.slow
    def test_a_stale_entry_is_a_miss(self, url: str) -> None:
        """The cache may serve stale answers; a node that is past its ttl runs all the same."""
        cache: AskonceNodeCache[Any] = AskonceNodeCache(
            url, policy=Policy(stale_while_revalidate="1h"), deadline=2.0
        )
        cache.set({ONE: (1, 1)})
        assert cache.get([ONE]) == {ONE: 1}
        assert threading.Event().wait(1.2) is False
        assert cache.get([ONE]) == {}
        cache.cache.close()

    def test_another_version_is_another_key(self, url: str) -> None:
        """What the code of yesterday wrote is not served; for a URL and for a given cache."""
        shared = Cache(url, deadline=2.0)
        for make in (
            lambda version: AskonceNodeCache[Any](url, version=version, deadline=2.0),
            lambda version: AskonceNodeCache[Any](shared, version=version),
        ):
            make("1").set({ONE: (1, None)})
            assert make("2").get([ONE]) == {}
            assert make("1").get([ONE]) == {ONE: 1}
            make("2").clear()

    def test_control(self, cache: AskonceNodeCache[Any]) -> None:
        """Words of the block around a graph hold for its nodes."""
        with control(write=False):
            cache.set({ONE: (1, None)})
        assert cache.get([ONE]) == {}
        with control(tags=["doc"]):
            cache.set({ONE: (1, None)})
        with control(read=False):
            assert cache.get([ONE]) == {}
        assert cache.get([ONE]) == {ONE: 1}
        cache.cache.invalidate_tag("doc")
        assert cache.get([ONE]) == {}


class TestCost:
    @pytest.fixture
    def commands(self, url: str) -> Callable[[], int]:
        """How many reading commands the server has run since it was last asked."""
        client = redis.Redis.from_url(url)
        client.config_resetstat()

        def count() -> int:
            stats = client.info("commandstats")
            client.config_resetstat()
            return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("mget", "get"))

        return count

    def test_one_get_for_all_nodes_of_a_step(
        self, cache: AskonceNodeCache[Any], commands: Callable[[], int]
    ) -> None:
        """Ten nodes that could be cached cost one command."""
        keys = [(("g", str(number)), "k") for number in range(10)]
        cache.set({key: (number, None) for number, key in enumerate(keys)})
        commands()
        assert len(cache.get(keys)) == 10
        assert commands() == 1

    async def test_async_is_no_thread(self, cache: AskonceNodeCache[Any]) -> None:
        """The async half runs on the loop: no thread does its work (langgraph#6247)."""
        await cache.aset({ONE: (1, None)})
        before = threading.active_count()
        assert await cache.aget([ONE]) == {ONE: 1}
        await cache.aclear([ONE[0]])
        assert threading.active_count() == before

    def test_many_loops(self, cache: AskonceNodeCache[Any]) -> None:
        """One cache serves loop after loop."""
        asyncio.run(cache.aset({ONE: (1, None)}))
        assert [asyncio.run(cache.aget([ONE])) for _ in range(3)] == [{ONE: 1}] * 3


class TestOutage:
    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_nothing_is_found_and_nothing_raises(self, refused: str, colour: str) -> None:
        """Without Redis every node runs."""
        either = Either(AskonceNodeCache(refused), colour)
        either.set({ONE: (1, None)})
        assert either.get([ONE]) == {}
        either.clear()
        either.clear([("g",)])

    def test_a_clear_that_was_not_heard_is_told(self, refused: str, caplog: pytest.LogCaptureFixture) -> None:
        """What could not be cleared is served again later: that is logged."""
        AskonceNodeCache[Any](refused).clear()
        assert "could not be told" in caplog.text

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_strict(self, refused: str, colour: str) -> None:
        """A strict cache tells of an outage."""
        either = Either(AskonceNodeCache(refused, strict=True), colour)
        for call in (lambda: either.get([ONE]), lambda: either.set({ONE: (1, None)}), either.clear):
            with pytest.raises(BackendUnavailable):
                call()

    async def test_a_graph_runs(self, refused: str) -> None:
        """Each run of the graph runs its node, and answers."""
        ran: list[int] = []
        graph = answering(AskonceNodeCache(refused), ran)
        graph.invoke({"messages": [HumanMessage("q")]})
        await graph.ainvoke({"messages": [HumanMessage("q")]})
        assert len(ran) == 2

    def test_a_defect_is_spared(self, cache: AskonceNodeCache[Any], caplog: pytest.LogCaptureFixture) -> None:
        """What goes wrong in the adapter itself is counted and logged, without what was asked."""
        assert cache.get([("SECRET",)]) == {}  # type: ignore[list-item]
        assert cache.cache.stats().bypass_reasons == {"error": 1}
        assert "kept from a graph" in caplog.text
        assert "SECRET" not in caplog.text


class Plan(BaseModel):
    steps: list[str]
    by: Person | None = None


@dataclasses.dataclass
class Person:
    name: str
    born: date | None = None


class Level(enum.Enum):
    LOW = "low"


class Pair(NamedTuple):
    left: int
    right: list[int]


class Secretive(BaseModel):
    shown: int = 1
    _hidden: int = PrivateAttr(2)


class Untrue(BaseModel):
    number: int

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


Plan.model_rebuild()
# LangGraph before 1.2 knows no timeout.
TIMED: list[Any] = [Send("n", 1, timeout=3.0)] if hasattr(Send, "timeout") else []

SAME: list[Any] = [
    None, True, 0, -(2**63), 2**64 - 1, 2**64, -(2**70), 1.5, float("inf"), 1j, "text", "", "\ud800 half", b"bytes",
    bytearray(b"x"), [], [1, [2]], {}, {"a": {"b": [1]}}, {1: "a", (1, 2): "b", None: "c"}, {"\udfff": 1},
    {"lc": 1, "type": "constructor", "id": ["os", "system"]}, (), (1, (2, [3])), deque([1, (2,)]), {1, 2}, frozenset("ab"),
    datetime(2025, 1, 2, 3, 4, 5, 6), datetime(2025, 1, 2, tzinfo=UTC),
    datetime(2025, 1, 2, tzinfo=timezone(timedelta(hours=2))), date(2025, 1, 2), time(1, 2, 3), timedelta(-1, 2, 3),
    Decimal("1.10"), UUID(int=5), Document("text", id="d", metadata={"n": 1}), Send("node", {"a": (1,)}),
    HumanMessage("q", id="mine"), SystemMessage([{"type": "text", "text": "s"}]), RemoveMessage(id=REMOVE_ALL_MESSAGES),
    AIMessage("a", tool_calls=[{"name": "t", "args": {"b": 1, "a": (2,)}, "id": "1", "type": "tool_call"}]),
    AIMessage([{"type": "text", "text": "x"}], response_metadata={"when": datetime(2025, 1, 1)}, name="n"),
    AIMessage("a", usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
    AIMessageChunk("a", chunk_position="last"), ToolMessage("r", tool_call_id="1", artifact={"rows": [(1, 2)]}, status="error"),
    deque([("messages", [AIMessage("x")]), ("branch:to:next", None)]),
]  # fmt: skip


def alike(left: Any, right: Any) -> bool:
    """Whether two values are equal, and of the same types all the way down."""
    if type(left) is not type(right) or left != right:
        return False
    if isinstance(left, dict):
        return all(alike(a, b) for a, b in zip(left.items(), right.items(), strict=True))
    if isinstance(left, list | tuple | deque):
        return all(map(alike, left, right))
    return alike(left.__dict__, right.__dict__) if isinstance(left, BaseModel) else True


class TestValues:
    @pytest.mark.parametrize("value", SAME, ids=lambda value: repr(value)[:40])
    def test_comes_back_as_it_was(self, value: Any) -> None:
        """Types included, and as another object."""
        codec = ValuesCodec()
        again = codec.decode(codec.encode(value))
        assert alike(again, value)
        assert again is not value or isinstance(
            value, type(None) | bool | int | str | bytes | tuple | frozenset
        )

    @pytest.mark.parametrize(
        "value",
        [
            object(), Plan(steps=[]), Person("p"), Level.LOW, Pair(1, []), len, int, ZoneInfo("UTC"), range(3),
            datetime(2025, 1, 1, tzinfo=ZoneInfo("Europe/Rome")), datetime(2025, 1, 1, fold=1), deque([1], maxlen=2),
            RemoveMessage(id="m1"), *TIMED, ValueError("x"), AIMessage("x", additional_kwargs={"o": object()}),
            type("Own", (AIMessage,), {})("x"), type("Text", (str,), {})("x"), type("Number", (int,), {})(1),
        ],
        ids=lambda value: repr(value)[:40],
    )  # fmt: skip
    def test_is_refused(self, value: Any) -> None:
        """What would come back as something else is not stored, wherever it stands."""
        for wrapped in (value, [value], {"a": (value,)}, deque([("channel", value)])):
            with pytest.raises(Uncacheable):
                ValuesCodec().encode(wrapped)

    def test_a_cycle_is_refused(self) -> None:
        """A list that contains itself has no end."""
        cycle: list[Any] = []
        cycle.append(cycle)
        with pytest.raises(Uncacheable, match="contains itself"):
            ValuesCodec().encode(cycle)

    @pytest.mark.parametrize(
        "value", [Plan(steps=["a"], by=Person("p", date(2000, 1, 1))), Person("p"), Level.LOW, Pair(1, [2])]
    )
    def test_classes_that_were_given(self, value: Any) -> None:
        """Pydantic models, dataclasses, enums and named tuples come back as themselves, also inside each other."""
        codec = ValuesCodec([Plan, Person, Level, Pair])
        assert alike(codec.decode(codec.encode({"v": [value]})), {"v": [value]})

    def test_classes_that_do_not_rebuild(self) -> None:
        """Private attributes, and objects that are not equal to their copies, are refused."""
        for value in (Secretive(), Untrue(number=1)):
            with pytest.raises(Uncacheable):
                ValuesCodec([Secretive, Untrue]).encode(value)

    def test_what_types_takes(self) -> None:
        """A wrong class is told where it is given; so are two of one name."""
        with pytest.raises(ConfigurationError, match="give classes"):
            AskonceNodeCache("redis://127.0.0.1:1", types=[threading.Thread])
        twin = enum.Enum("Level", {"LOW": 1}, module=Level.__module__, qualname="Level")
        with pytest.raises(ConfigurationError, match="same name"):
            ValuesCodec([Level, twin])

    @pytest.mark.parametrize(
        "name", ["os.system", "subprocess.Popen", f"{Plan.__module__}.Plan", "builtins.eval"]
    )
    def test_nothing_is_imported_by_name(self, name: str) -> None:
        """A name in the data that is not in the table is unreadable, however it got there."""
        data = ormsgpack.packb(ormsgpack.Ext(1, ormsgpack.packb([name, "true"])))
        with pytest.raises(ValueError, match="ext_hook"):
            ValuesCodec().decode(data)

    def test_nothing_else_is_read(self) -> None:
        """No form of another program, and no damaged one."""
        for data in (ormsgpack.packb(ormsgpack.Ext(5, b"x")), b"", b"\xc1", b"\x92\x01"):
            with pytest.raises(ValueError):
                ValuesCodec().decode(data)

    def test_langgraphs_own_serializer_imports_what_it_is_told(self) -> None:
        """The one that RedisCache uses calls any class that the data names; a string of digits becomes a Fraction."""
        data = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(["fractions", "Fraction", "1/3"])))
        assert type(BaseCache.serde.loads_typed(("msgpack", data))).__name__ == "Fraction"
        with pytest.raises(ValueError):
            ValuesCodec().decode(data)

    @pytest.mark.parametrize("made_up", ["lc_run--0190", "run-1-0", "550e8400-e29b-41d4-a716-446655440000"])
    def test_ids(self, made_up: str) -> None:
        """Ids that were made up are gone, those of answers always; one that the node chose stays."""
        codec = ValuesCodec()
        written = [HumanMessage("h", id=made_up), HumanMessage("h", id="mine"), AIMessage("a", id="mine")]
        written.append(ToolMessage("t", tool_call_id="1", id="mine"))
        assert [message.id for message in codec.decode(codec.encode(written))] == [None, "mine", None, None]
        assert written[0].id == made_up

    def test_what_is_not_stored_is_told_once(
        self, cache: AskonceNodeCache[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log names the class and what to do; the counter counts each."""
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                cache.set({ONE: (Plan(steps=["SECRET"]), None), (("b",), "k"): ({"fine": 1}, None)})
        assert caplog.text.count("give it with types=") == 1
        assert "SECRET" not in caplog.text
        assert cache.cache.stats().uncacheable == 2
        assert cache.get([ONE, (("b",), "k")]) == {(("b",), "k"): {"fine": 1}}


def answering(
    cache: BaseCache[Any], ran: list[int], checkpointer: Any = None, key_func: Any = message_key
) -> Any:
    """A graph of one node that answers the last message, with an id of its own each time it runs."""

    def node(state: MessagesState) -> dict[str, Any]:
        ran.append(1)
        return {"messages": [AIMessage("answer", id=f"answer-{len(ran)}")]}

    policy = CachePolicy(key_func=lambda state: key_func(state["messages"][-1:]), ttl=60)
    graph = StateGraph(MessagesState).add_node("node", node, cache_policy=policy)
    return graph.add_edge(START, "node").add_edge("node", END).compile(cache=cache, checkpointer=checkpointer)


class TestGraphs:
    async def test_the_same_question_twice_in_a_thread(self, cache: AskonceNodeCache[Any]) -> None:
        """The thread keeps both questions and both answers, though the node ran once."""
        ran: list[int] = []
        graph = answering(cache, ran, InMemorySaver())
        thread: Any = {"configurable": {"thread_id": "1"}}
        graph.invoke({"messages": [HumanMessage("q")]}, thread)
        graph.invoke({"messages": [HumanMessage("q")]}, thread)
        state = await graph.ainvoke({"messages": [HumanMessage("q")]}, thread)
        assert [message.type for message in state["messages"]] == ["human", "ai"] * 3
        assert len({message.id for message in state["messages"]}) == 6
        assert len(ran) == 1

    @pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
    def test_the_peer_loses_an_answer(self, url: str) -> None:
        """With LangGraph's RedisCache the second answer takes the place of the first."""
        graph = answering(RedisCache(redis.Redis.from_url(url)), [], InMemorySaver())
        for _ in range(2):
            state = graph.invoke({"messages": [HumanMessage("q")]}, {"configurable": {"thread_id": "1"}})
        assert [message.type for message in state["messages"]] == ["human", "ai", "human"]

    def test_human_messages_of_nodes(self, cache: AskonceNodeCache[Any]) -> None:
        """A node that speaks as a human, as supervisors' workers do, loses nothing either."""
        ran: list[int] = []

        def node(state: MessagesState) -> dict[str, Any]:
            ran.append(1)
            return {"messages": [HumanMessage("result", name="researcher")]}

        policy = CachePolicy(key_func=lambda state: message_key(state["messages"][0].content))
        builder = StateGraph(MessagesState).add_node("n", node, cache_policy=policy)
        graph = (
            builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache, checkpointer=InMemorySaver())
        )
        for _ in range(3):
            state = graph.invoke({"messages": [HumanMessage("q")]}, {"configurable": {"thread_id": "1"}})
        assert len(state["messages"]) == 6
        assert len(ran) == 1

    def test_another_process(self, url: str) -> None:
        """What one process's node wrote, another serves."""
        program = f"""if True:
            from langgraph.graph import END, START, MessagesState, StateGraph
            from langgraph.types import CachePolicy
            from askonce_langchain import message_key
            from askonce_langchain import AskonceNodeCache
            def node(state):
                print("ran")
                return {{"messages": ["answer"]}}
            builder = StateGraph(MessagesState).add_node("n", node, cache_policy=CachePolicy(key_func=message_key))
            cache = AskonceNodeCache({url!r}, deadline=5.0)
            graph = builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache)
            print(graph.invoke({{"messages": ["q"]}})["messages"][-1].content)
        """
        runs = [
            subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=True
            ).stdout.split()
            for _ in range(2)
        ]
        assert runs == [["ran", "answer"], ["answer"]]

    async def test_sends_and_channels(self, cache: AskonceNodeCache[Any]) -> None:
        """A cached node's routes are taken again, with what they were sent; sync and async share."""

        class State(TypedDict):
            number: int
            seen: Annotated[list[Any], operator.add]

        ran: list[str] = []

        def plan(state: State) -> dict[str, Any]:
            ran.append("plan")
            return {"seen": [("planned", state["number"])]}

        def work(arg: Any) -> dict[str, Any]:
            ran.append("work")
            return {"seen": [arg]}

        builder = StateGraph(State).add_node("plan", plan, cache_policy=CachePolicy(ttl=60))
        builder.add_node("work", work, cache_policy=CachePolicy(ttl=60)).add_edge(START, "plan")
        builder.add_conditional_edges(
            "plan", lambda state: [Send("work", (n, "x")) for n in range(2)], ["work"]
        )
        graph = builder.compile(cache=cache)
        first = graph.invoke({"number": 1, "seen": []})
        assert graph.invoke({"number": 1, "seen": []}) == first
        assert await graph.ainvoke({"number": 1, "seen": []}) == first
        assert first["seen"] == [("planned", 1), (0, "x"), (1, "x")]
        assert sorted(ran) == ["plan", "work", "work"]

    def test_tasks_of_the_functional_api(self, cache: AskonceNodeCache[Any]) -> None:
        """A cached task returns what it returned."""
        ran: list[int] = []

        @task(cache_policy=CachePolicy(key_func=message_key, ttl=60))
        def double(number: int) -> tuple[int, str]:
            ran.append(number)
            return number * 2, "done"

        @entrypoint(cache=cache)
        def whole(number: int) -> tuple[int, str]:
            return double(number).result()

        assert [whole.invoke(2), whole.invoke(2), whole.invoke(3)] == [(4, "done"), (4, "done"), (6, "done")]
        assert ran == [2, 3]

    def test_errors_are_not_kept(self, cache: AskonceNodeCache[Any]) -> None:
        """A node that fails runs again."""
        ran: list[int] = []

        def node(state: MessagesState) -> dict[str, Any]:
            ran.append(1)
            if len(ran) == 1:
                raise ZeroDivisionError("boom")
            return {"messages": [AIMessage("answer")]}

        builder = StateGraph(MessagesState).add_node(
            "n", node, cache_policy=CachePolicy(key_func=message_key)
        )
        graph = builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache)
        with pytest.raises(ZeroDivisionError, match="boom"):
            graph.invoke({"messages": [HumanMessage("q")]})
        for _ in range(2):
            assert graph.invoke({"messages": [HumanMessage("q")]})["messages"][-1].content == "answer"
        assert len(ran) == 2

    def test_a_state_with_classes_of_ones_own(self, url: str) -> None:
        """With ``types`` a node that writes a Pydantic model is cached; without, it runs each time."""

        class State(TypedDict):
            question: str
            plan: Plan

        for types, runs in ([], 2), ([Plan, Person], 1):
            ran: list[int] = []

            def node(state: State, ran: list[int] = ran) -> dict[str, Any]:
                ran.append(1)
                return {"plan": Plan(steps=["a"], by=Person("p"))}

            cache: AskonceNodeCache[Any] = AskonceNodeCache(url, types=types, deadline=2.0)
            builder = StateGraph(State).add_node("n", node, cache_policy=CachePolicy())
            graph = builder.add_edge(START, "n").add_edge("n", END).compile(cache=cache)
            for _ in range(2):
                assert graph.invoke({"question": "q"})["plan"] == Plan(steps=["a"], by=Person("p"))
            assert len(ran) == runs
            cache.cache.close()

    async def test_streams(self, cache: AskonceNodeCache[Any]) -> None:
        """A run that is answered from the cache streams the same updates."""
        graph = answering(cache, ran := [])
        asked = {"messages": [HumanMessage("q")]}
        first = list(graph.stream(asked, stream_mode="updates"))
        again = list(graph.stream(asked, stream_mode="updates"))
        third = [chunk async for chunk in graph.astream(asked, stream_mode="updates")]
        assert len(ran) == 1
        contents = [[chunk["node"]["messages"][0].content for chunk in run] for run in (first, again, third)]
        assert contents == [["answer"]] * 3


def test_without_langgraph_the_package_imports() -> None:
    """A user of langchain-core alone can import what needs no more."""
    program = """if True:
        import sys
        sys.modules["langgraph"] = sys.modules["langchain"] = None
        import askonce_langchain
        from askonce_langchain import message_key
        message_key([1])
    """
    subprocess.run([sys.executable, "-c", program], check=True)
