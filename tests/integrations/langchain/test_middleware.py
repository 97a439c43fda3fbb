"""Agents with the middleware: what is asked once, what is another question, and what their callers get."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Annotated, Any

import openai
import pytest
import redis
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, dynamic_prompt
from langchain.agents.structured_output import AutoStrategy, ProviderStrategy, ToolStrategy
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import InjectedToolCallId, ToolException, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import InjectedState, ToolRuntime
from langgraph.types import Command
from pydantic import BaseModel, Field, create_model
from typing_extensions import TypedDict

from askonce import BackendUnavailable, Cache, ConfigurationError, NotCached, Policy, control
from askonce_langchain import AskonceCache, AskonceMiddleware

ASKED: Any = {"messages": [HumanMessage("q")]}


@tool
def look_up(a: int) -> str:
    """A tool."""
    return "found"


@pytest.fixture
def middleware(url: str) -> Iterator[AskonceMiddleware]:
    middleware = AskonceMiddleware(url, deadline=2.0)
    yield middleware
    middleware.cache.close()


@pytest.fixture
def refused() -> Iterator[str]:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        yield f"redis://127.0.0.1:{closed.getsockname()[1]}"


def texts(state: dict[str, Any]) -> list[str]:
    return [message.text for message in state["messages"]]


def reply(body: dict[str, Any], number: int, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """An answer of the provider's with another message or reason."""
    message = {"role": "assistant", "content": f"answer {number}", **message}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    whole = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": body["model"]}
    return {**whole, "choices": [choice], "usage": usage}


def calls_tool(body: dict[str, Any], number: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    tool_calls = [{"id": f"call_{number}", "type": "function", "function": function}]
    return reply(body, number, finish="tool_calls", content=None, tool_calls=tool_calls)


class TestHits:
    async def test_asked_once(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """An agent with a tool is replayed without a call, sync and async, from one entry."""
        agent = create_agent(provider.chat(), [look_up], middleware=[middleware])
        first = agent.invoke(ASKED)
        assert [message.type for message in first["messages"]] == ["human", "ai", "tool", "ai"]
        assert texts(agent.invoke(ASKED)) == texts(first) == texts(await agent.ainvoke(ASKED))
        assert provider.calls == 2

    async def test_asked_once_async_first(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """What the async half stored, the sync half serves."""
        agent = create_agent(provider.chat(), [look_up], middleware=[middleware])
        assert texts(await agent.ainvoke(ASKED)) == texts(agent.invoke(ASKED))
        assert provider.calls == 2

    def test_another_agent_object(self, provider: Any, url: str) -> None:
        """Agents, models and middleware made anew, as after a restart, ask the same."""
        for _ in range(2):
            create_agent(
                provider.chat(), [look_up], middleware=[AskonceMiddleware(url, deadline=2.0)]
            ).invoke(ASKED)
        assert provider.calls == 2

    def test_a_hit_says_so(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """The metadata of a hit name its source and age; those of a fresh answer do not."""
        agent = create_agent(provider.chat(), middleware=[middleware])
        first, hit = agent.invoke(ASKED)["messages"][-1], agent.invoke(ASKED)["messages"][-1]
        assert "askonce" not in first.response_metadata
        assert hit.response_metadata["askonce"]["source"] == "hit"
        assert hit.response_metadata["id"] == first.response_metadata["id"]
        assert hit.usage_metadata["total_tokens"] == 15

    def test_tokens_of_a_hit(self, provider: Any, url: str) -> None:
        """With ``usage_on_hit="zero"`` an answer that cost nothing reports nothing."""
        middleware = AskonceMiddleware(url, usage_on_hit="zero", deadline=2.0)
        agent = create_agent(provider.chat(), middleware=[middleware])
        assert [agent.invoke(ASKED)["messages"][-1].usage_metadata["total_tokens"] for _ in range(2)] == [
            15,
            0,
        ]

    def test_a_conversation(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """Every turn of a thread hits on its first replay, tool results with artifacts included."""

        @tool(response_format="content_and_artifact")
        def search(a: int) -> tuple[str, object]:
            """A tool."""
            return "found", {"seen": run}

        for run in range(2):
            agent = create_agent(
                provider.chat(), [search], middleware=[middleware], checkpointer=InMemorySaver()
            )
            for question in ("q1", "q2"):
                state = agent.invoke(
                    {"messages": [HumanMessage(question)]}, {"configurable": {"thread_id": "1"}}
                )
            assert len(state["messages"]) == 8
        assert provider.calls == 4

    async def test_the_same_question_twice_in_a_thread(
        self, provider: Any, middleware: AskonceMiddleware
    ) -> None:
        """The thread keeps both questions and both answers."""

        class Forgetful(AgentMiddleware[Any, Any, Any]):
            """Asks about the last message alone, so that the second turn is the same question."""

            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                return handler(request.override(messages=request.messages[-1:]))

            async def awrap_model_call(self, request: Any, handler: Any) -> Any:
                return await handler(request.override(messages=request.messages[-1:]))

        agent = create_agent(
            provider.chat(), middleware=[Forgetful(), middleware], checkpointer=InMemorySaver()
        )
        thread: Any = {"configurable": {"thread_id": "1"}}
        agent.invoke(ASKED, thread)
        agent.invoke({"messages": [HumanMessage("q")]}, thread)
        state = await agent.ainvoke({"messages": [HumanMessage("q")]}, thread)
        assert [message.type for message in state["messages"]] == ["human", "ai"] * 3
        assert len({message.id for message in state["messages"]}) == 6
        assert provider.calls == 1

    @pytest.mark.parametrize("own", [True, False])
    def test_nothing_is_stored_twice(self, provider: Any, url: str, own: bool) -> None:
        """A cache of the model is switched off inside, and used where there is no middleware."""
        shared = Cache(url, deadline=2.0)
        model = provider.chat(AskonceCache(shared))
        agent = create_agent(model, middleware=[AskonceMiddleware(shared)] if own else [])
        for _ in range(2):
            agent.invoke(ASKED)
        assert provider.calls == 1
        assert shared.usage().entries == 1
        shared.close()

    def test_no_secret_is_stored(self, provider: Any, url: str, middleware: AskonceMiddleware) -> None:
        """Neither a credential nor the question is in a key, and no credential in a value."""
        model = provider.chat(default_headers={"Authorization": "Bearer SECRET"})
        create_agent(model, middleware=[middleware]).invoke({"messages": [HumanMessage("PRIVATE")]})
        client = redis.Redis.from_url(url)
        keys = client.keys("*")
        values = [client.get(key) for key in keys if client.type(key) == b"string"]
        assert len(values) >= 2
        assert not any(word in key for key in keys for word in (b"SECRET", b"PRIVATE", b"sk-"))
        assert not any(word in value for value in values for word in (b"SECRET", b"sk-"))


def agent_of(provider: Any, middleware: Any, model: dict[str, Any], **agent: Any) -> Any:
    stack = middleware if isinstance(middleware, list) else [middleware]
    return create_agent(provider.chat(**model), middleware=stack, **{"tools": [look_up], **agent})


class TestKey:
    @pytest.mark.filterwarnings("ignore:Parameters:UserWarning")
    @pytest.mark.parametrize(
        "model",
        [
            {"temperature": 1}, {"model": "gpt-y"}, {"base_url": "http://elsewhere/v1"}, {"stop": ["x"]}, {"seed": 1},
            {"model_kwargs": {"logit_bias": {"1": 1}}}, {"max_tokens": 9}, {"default_headers": {"x-version": "2"}},
        ],
        ids=str,
    )  # fmt: skip
    def test_another_model(self, provider: Any, middleware: AskonceMiddleware, model: dict[str, Any]) -> None:
        """Each parameter of the model is in the key."""
        agent_of(provider, middleware, {}).invoke(ASKED)
        agent_of(provider, middleware, copy.deepcopy(model)).invoke(ASKED)  # ChatOpenAI empties model_kwargs
        assert provider.calls == 4

    @pytest.mark.parametrize(
        "model",
        [{"timeout": 9}, {"max_retries": 1}, {"streaming": False}, {"verbose": True}, {"cache": False}],
        ids=str,
    )
    def test_the_same_model(
        self, provider: Any, middleware: AskonceMiddleware, model: dict[str, Any]
    ) -> None:
        """How the call is made is not."""
        agent_of(provider, middleware, {}).invoke(ASKED)
        agent_of(provider, middleware, model).invoke(ASKED)
        assert provider.calls == 2

    def test_a_model_that_changes(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """The model counts as it is now: LangChain's own key keeps that of its first state."""
        model = provider.chat(temperature=0)
        agent = create_agent(model, middleware=[middleware])
        agent.invoke(ASKED)
        model.temperature = 1.0
        agent.invoke(ASKED)
        create_agent(model.model_copy(update={"temperature": 0.5}), middleware=[middleware]).invoke(ASKED)
        assert provider.calls == 3

    def test_tools(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """A tool's text, its parameters in their order, and which tools there are."""

        def made(description: str, *names: str, extras: Any = None) -> Any:
            schema = create_model("look_up", **dict.fromkeys(names, (int, 1)))
            return tool("look_up", description=description, args_schema=schema, extras=extras)(
                lambda **_: "found"
            )

        asked = [
            [made("A tool.", "a", "b")], [made("Another.", "a", "b")], [made("A tool.", "b", "a")],
            [made("A tool.", "a", "b"), tool("other", description="d")(lambda a: "x")],
            [made("A tool.", "a", "b", extras={"defer_loading": True})],
            [{"type": "web_search"}, made("A tool.", "a", "b")],
        ]  # fmt: skip
        for tools in asked:
            before = provider.calls
            for _ in range(2):
                agent_of(provider, middleware, {}, tools=tools).invoke(ASKED)
            assert provider.calls > before
        assert middleware.cache.stats().bypassed == 0

    def test_prompts(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """The system prompt, and what stands in the messages."""
        for _ in range(2):
            for prompt in (None, "Be brief.", "Be long."):
                agent_of(provider, middleware, {}, system_prompt=prompt, tools=[]).invoke(ASKED)
            agent_of(provider, middleware, {}, tools=[]).invoke({"messages": [HumanMessage("other")]})
        assert provider.calls == 4

    def test_names_of_agents(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """An agent writes its name on its answers: another agent's answers are not its own."""
        for name in ("ann", "bob", "ann"):
            state = agent_of(provider, middleware, {}, tools=[], name=name).invoke(ASKED)
            assert state["messages"][-1].name == name
        assert provider.calls == 2

    @pytest.mark.parametrize(
        "override",
        [
            {"tool_choice": "none"}, {"model_settings": {"temperature": 1}}, {"model_settings": {"parallel_tool_calls": False}},
            {"tools": []}, {"system_message": None},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_middleware_before_it_changes(
        self, provider: Any, middleware: AskonceMiddleware, override: dict[str, Any]
    ) -> None:
        """The request counts as it arrives, with all that other middleware has made of it."""

        class Changes(AgentMiddleware[Any, Any, Any]):
            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                return handler(request.override(**override))

        for stack in ([middleware], [Changes(), middleware], [Changes(), middleware]):
            agent = agent_of(provider, stack, {}, system_prompt="s")
            state = agent.invoke(ASKED, {"recursion_limit": 50})
            assert state["messages"][-1].type == "ai"
        cold = len([body for body in provider.requests if body["messages"][-1]["role"] != "tool"])
        assert cold == 2

    def test_custom_models(self, middleware: AskonceMiddleware) -> None:
        """Models that LangChain knows by their type alone are told apart by their fields."""
        agents = [create_agent(Custom(which=which), middleware=[middleware]) for which in "AB"]
        assert [agent.invoke(ASKED)["messages"][-1].text for agent in agents * 2] == ["A", "B", "A", "B"]
        assert middleware.cache.stats().hits == 2

    def test_a_model_that_cannot_be_told_apart(self, middleware: AskonceMiddleware) -> None:
        """It is called each time, and counted with the reason."""
        for which in (lambda: "A", lambda: "B"):
            agent = create_agent(Custom(which=which), middleware=[middleware])
            assert agent.invoke(ASKED)["messages"][-1].text == which()
        assert middleware.cache.stats().bypass_reasons == {"uncacheable": 2}

    def test_scopes_and_versions(self, provider: Any, url: str) -> None:
        """A Cache that is given is used as it is, with its scope."""
        shared = Cache(url, deadline=2.0)
        for view in (shared, shared.scope(tenant="a"), shared.scope(tenant="b"), shared.scope(tenant="a")):
            create_agent(provider.chat(), middleware=[AskonceMiddleware(view)]).invoke(ASKED)
        assert provider.calls == 3
        shared.close()


class Custom(BaseChatModel):
    which: Any

    @property
    def _llm_type(self) -> str:
        return "custom"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        said = self.which() if callable(self.which) else self.which
        return ChatResult(generations=[ChatGeneration(message=AIMessage(said))])

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(**kwargs)


class TestPlace:
    @pytest.mark.parametrize("count", [1, 2])
    async def test_not_last(
        self, provider: Any, middleware: AskonceMiddleware, caplog: pytest.LogCaptureFixture, count: int
    ) -> None:
        """Middleware behind it may change the question: nothing is cached, nobody gets another's answer, and one
        warning tells.
        """

        class Tenant(AgentMiddleware[Any, Any, Any]):
            tenant = "a"

            def __init__(self, name: str) -> None:
                super().__init__()
                self._name = name

            @property
            def name(self) -> str:
                return self._name

            def wrap_model_call(self, request: Any, handler: Any) -> Any:
                return handler(request.override(system_prompt=f"Answer {self.tenant}."))

            async def awrap_model_call(self, request: Any, handler: Any) -> Any:
                return await handler(request.override(system_prompt=f"Answer {self.tenant}."))

        behind = [Tenant(str(number)) for number in range(count)]
        agent = create_agent(provider.chat(), middleware=[middleware, *behind])
        with caplog.at_level(logging.WARNING, "askonce.langchain"):
            for each in "ab":
                Tenant.tenant = each
                agent.invoke(ASKED)
                await agent.ainvoke(ASKED)
        assert [body["messages"][0]["content"] for body in provider.requests] == ["Answer a."] * 2 + [
            "Answer b."
        ] * 2
        assert middleware.cache.stats().bypass_reasons == {"not last": 4}
        assert caplog.text.count("is not last") == 1

    def test_last(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """Behind a prompt that depends on the run, each prompt is a question of its own."""

        @dynamic_prompt
        def prompt(request: Any) -> str:
            return f"Answer {request.runtime.context['tenant']}."

        agent = create_agent(provider.chat(), middleware=[prompt, middleware], context_schema=dict)
        for tenant in "abab":
            agent.invoke(ASKED, context={"tenant": tenant})
        assert provider.calls == 2


class City(BaseModel):
    when: datetime
    name: str = Field(alias="cityName")


@dataclasses.dataclass
class Town:
    when: str
    cityName: str


class Village(TypedDict):
    when: str
    cityName: str


class Person(BaseModel):
    who: str


JSON_SCHEMA = {
    "title": "Place",
    "type": "object",
    "properties": {"when": {"type": "string"}, "cityName": {"type": "string"}},
}
ROME = '{"when": "2025-01-01T00:00:00Z", "cityName": "Rome"}'


class TestStructured:
    @pytest.mark.parametrize(
        "schema", [City, Town, Village, JSON_SCHEMA], ids=["model", "dataclass", "dict", "json"]
    )
    @pytest.mark.parametrize(
        "strategy", [ProviderStrategy, ToolStrategy, AutoStrategy, lambda schema: schema]
    )
    async def test_is_rebuilt_by_its_schema(
        self, provider: Any, middleware: AskonceMiddleware, strategy: Any, schema: Any
    ) -> None:
        """A hit brings the same object, of the caller's class: aliases and dates included, as often as one asks."""
        name = schema["title"] if isinstance(schema, dict) else schema.__name__
        structured = provider.respond

        def respond(body: dict[str, Any], number: int) -> dict[str, Any]:
            return calls_tool(body, number, name, ROME) if body.get("tools") else structured(body, number)

        provider.respond = respond
        agent = create_agent(provider.chat(), middleware=[middleware], response_format=strategy(schema))
        first = agent.invoke(ASKED)
        for again in (agent.invoke(ASKED), await agent.ainvoke(ASKED)):
            assert again["structured_response"] == first["structured_response"]
            assert type(again["structured_response"]) is type(first["structured_response"])
            assert texts(again) == texts(first)
        assert provider.calls == 1

    def test_one_of_several_schemas(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """Which one the model chose comes back."""
        provider.respond = lambda body, number: calls_tool(body, number, "Person", '{"who": "Ann"}')
        agent = create_agent(
            provider.chat(), middleware=[middleware], response_format=ToolStrategy(City | Person)
        )
        assert [agent.invoke(ASKED)["structured_response"] for _ in range(2)] == [Person(who="Ann")] * 2
        assert provider.calls == 1

    @pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
    def test_an_edited_schema_is_another_question(
        self, provider: Any, middleware: AskonceMiddleware, strategy: Any
    ) -> None:
        """Of the same name, with another field or another text."""
        said = '{"value": 1, "count": 2}'
        provider.respond = lambda body, number: (
            calls_tool(body, number, "Out", said) if body.get("tools") else reply(body, number, content=said)
        )
        for fields in (
            {"value": (int, ...)},
            {"count": (int, ...)},
            {"value": (int, Field(description="d"))},
        ):
            schema: Any = create_model("Out", **fields)
            agent = create_agent(provider.chat(), middleware=[middleware], response_format=strategy(schema))
            assert [agent.invoke(ASKED)["structured_response"] for _ in range(2)] == [
                schema(value=1, count=2)
            ] * 2
        assert provider.calls == 3

    def test_what_does_not_fit_is_not_kept(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """An attempt that the agent has to repeat is asked anew next time; the good one is stored."""
        provider.respond = lambda body, number: calls_tool(
            body, number, "Person", '{"no": 1}' if len(body["messages"]) == 1 else '{"who": "Ann"}'
        )
        agent = create_agent(provider.chat(), middleware=[middleware], response_format=ToolStrategy(Person))
        for _ in range(2):
            assert agent.invoke(ASKED)["structured_response"] == Person(who="Ann")
        assert middleware.cache.stats().rejection_reasons == {"invalid": 2}

    def test_what_does_not_follow_is_not_kept(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """An object that its schema does not rebuild alike, a time of making say, is made anew each time."""
        made = iter(range(10))

        class Numbered(BaseModel):
            who: str
            number: int = Field(default_factory=lambda: next(made))

        provider.respond = lambda body, number: reply(body, number, content='{"who": "Ann"}')
        agent = create_agent(
            provider.chat(), middleware=[middleware], response_format=ProviderStrategy(Numbered)
        )
        assert [agent.invoke(ASKED)["structured_response"].who for _ in range(2)] == ["Ann", "Ann"]
        assert (provider.calls, middleware.cache.stats().uncacheable) == (2, 2)


class TestAdmission:
    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            ({"finish": "length"}, "truncated"), ({"finish": "content_filter"}, "filtered"), ({"content": ""}, "empty"),
            ({"content": None, "refusal": "I will not."}, "refused"),
        ],
    )  # fmt: skip
    def test_what_is_not_kept(
        self, provider: Any, middleware: AskonceMiddleware, answer: dict[str, Any], why: str
    ) -> None:
        """Refused, filtered, empty and cut answers are given once, and counted with the reason."""
        provider.respond = lambda body, number: reply(body, number, **answer)
        agent = create_agent(provider.chat(), middleware=[middleware])
        for _ in range(2):
            agent.invoke(ASKED)
        assert provider.calls == 2
        assert middleware.cache.stats().rejection_reasons == {why: 2}

    def test_a_limit_of_the_callers_own(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """Cut where the caller said, an answer is what was asked for."""
        provider.respond = lambda body, number: reply(body, number, finish="length")
        agent = create_agent(provider.chat(max_tokens=5), middleware=[middleware])
        for _ in range(2):
            agent.invoke(ASKED)
        assert provider.calls == 1

    def test_the_caches_own_admission_counts_too(self, provider: Any, url: str) -> None:
        """``admit=`` of the Cache is asked as well."""
        seen: list[Any] = []
        middleware = AskonceMiddleware(url, admit=seen.append, deadline=2.0)
        provider.respond = lambda body, number: reply(body, number, finish="length")
        create_agent(provider.chat(), middleware=[middleware]).invoke(ASKED)
        assert len(seen) == 1
        assert middleware.cache.stats().rejection_reasons == {"truncated": 1}

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_errors_pass(self, provider: Any, middleware: AskonceMiddleware, colour: str) -> None:
        """The model's own error reaches the caller as it is, and is not kept."""

        def respond(body: dict[str, Any], number: int) -> dict[str, Any]:
            if number == 1:
                raise ZeroDivisionError("boom")
            return reply(body, number)

        provider.respond = respond
        agent = create_agent(provider.chat(), middleware=[middleware])
        ask = (
            (lambda: agent.invoke(ASKED)) if colour == "sync" else (lambda: asyncio.run(agent.ainvoke(ASKED)))
        )
        with pytest.raises((openai.APIConnectionError, ZeroDivisionError)):
            ask()
        assert texts(ask())[-1] == texts(ask())[-1] == "answer 2"

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_a_stale_answer_stands_in_for_an_error(self, provider: Any, url: str, colour: str) -> None:
        """Where the policy allows it, a provider that is down is not noticed."""
        middleware = AskonceMiddleware(url, policy=Policy(ttl=0.001, stale_if_error="1h"), deadline=2.0)
        agent = create_agent(provider.chat(), middleware=[middleware])
        ask = (
            (lambda: agent.invoke(ASKED)) if colour == "sync" else (lambda: asyncio.run(agent.ainvoke(ASKED)))
        )
        first = ask()
        assert threading.Event().wait(0.05) is False
        provider.respond = lambda body, number: 1 // 0
        again = ask()
        assert texts(again) == texts(first)
        assert again["messages"][-1].response_metadata["askonce"]["source"] == "stale-if-error"
        assert provider.calls == 2


class Gate(AgentMiddleware[Any, Any, Any]):
    """Stands before the cache, and opens when all have come."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.opened = threading.Event()
        self._left = count
        self._lock = threading.Lock()

    def come(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.opened.set()

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.come()
        return handler(request)

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        self.come()
        return await handler(request)


class Slow(Custom):
    """Answers when the gate is open."""

    gate: Any = Field(exclude=True)
    calls: Any = Field(exclude=True)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"which": self.which}

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.calls.append(1)
        assert self.gate.opened.wait(20)
        return super()._generate(messages, stop, run_manager, **kwargs)

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        return await asyncio.to_thread(self._generate, *args, **kwargs)


class TestFlights:
    def test_twenty_threads(self, middleware: AskonceMiddleware) -> None:
        """Of twenty that ask at once, one asks the model; each has messages of its own."""
        gate, calls = Gate(20), list[int]()
        agent = create_agent(Slow(which="A", gate=gate, calls=calls), middleware=[gate, middleware])
        with ThreadPoolExecutor(20) as pool:
            states = list(pool.map(agent.invoke, [{"messages": [HumanMessage("q")]} for _ in range(20)]))
        assert [texts(state)[-1] for state in states] == ["A"] * 20
        assert len({state["messages"][-1].id for state in states}) == 20
        assert len(calls) == 1

    async def test_twenty_tasks(self, middleware: AskonceMiddleware) -> None:
        """The same on one event loop."""
        gate, calls = Gate(20), list[int]()
        agent = create_agent(Slow(which="A", gate=gate, calls=calls), middleware=[gate, middleware])
        asked = [agent.ainvoke({"messages": [HumanMessage("q")]}) for _ in range(20)]
        states = await asyncio.gather(*asked)
        assert len({id(state["messages"][-1]) for state in states}) == 20
        assert len({state["messages"][-1].id for state in states}) == 20
        assert len(calls) == 1

    def test_what_is_not_stored_is_shared_as_copies(self, middleware: AskonceMiddleware) -> None:
        """Those who wait for an answer that is not kept do not share one object."""
        gate, calls = Gate(10), list[int]()
        agent = create_agent(Slow(which="", gate=gate, calls=calls), middleware=[gate, middleware])
        with ThreadPoolExecutor(10) as pool:
            states = list(pool.map(agent.invoke, [{"messages": [HumanMessage("q")]} for _ in range(10)]))
        assert len({id(state["messages"][-1]) for state in states}) == 10
        assert len({state["messages"][-1].id for state in states}) == 10

    def test_a_leader_elsewhere_fails(self, url: str) -> None:
        """Who waited for another process is not told of its failure, but asks the model."""
        entered, fail = threading.Event(), threading.Event()

        class Failing(Custom):
            def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
                if threading.current_thread().name == "leader":
                    entered.set()
                    assert fail.wait(20)
                    raise ZeroDivisionError("boom")
                return super()._generate(*args, **kwargs)

        # Two caches of one process have no flights in common: they meet in Redis, as processes do.
        caches = [Cache(url, deadline=2.0) for _ in range(2)]
        agents = [create_agent(Failing(which="A"), middleware=[AskonceMiddleware(cache)]) for cache in caches]
        failures: list[Exception] = []

        def lead() -> None:
            try:
                agents[0].invoke({"messages": [HumanMessage("q")]})
            except ZeroDivisionError as error:
                failures.append(error)

        leader = threading.Thread(target=lead, name="leader")
        leader.start()
        assert entered.wait(20)
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(agents[1].invoke, {"messages": [HumanMessage("q")]})
            client = redis.Redis.from_url(url)
            while not client.pubsub_channels() and not follower.done():  # until the follower listens
                threading.Event().wait(0.01)
            fail.set()
            leader.join()
            assert texts(follower.result(20))[-1] == "A"
        assert len(failures) == 1
        assert caches[1].stats().bypass_reasons == {"leader failed": 1}
        for cache in caches:
            cache.close()


class TestOutage:
    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_the_agent_answers(self, provider: Any, refused: str, colour: str) -> None:
        """Without Redis each question is asked, once, and nothing raises."""
        agent = create_agent(
            provider.chat(), [look_up], middleware=[AskonceMiddleware(refused, safe_tools=["look_up"])]
        )
        for number in (1, 2):
            state = agent.invoke(ASKED) if colour == "sync" else asyncio.run(agent.ainvoke(ASKED))
            assert texts(state)[-1] == f"answer {2 * number}-0"
        assert provider.calls == 4

    @pytest.mark.parametrize("colour", ["sync", "async"])
    def test_strict(self, provider: Any, refused: str, colour: str) -> None:
        """A strict cache tells of an outage."""
        agent = create_agent(provider.chat(), middleware=[AskonceMiddleware(refused, strict=True)])
        with pytest.raises(BackendUnavailable):
            agent.invoke(ASKED) if colour == "sync" else asyncio.run(agent.ainvoke(ASKED))

    def test_a_defect_is_spared(
        self, middleware: AskonceMiddleware, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What goes wrong while the key is made costs the cache and not the answer, and is told without its text."""
        tries: list[int] = []

        class Odd(Custom):
            @property
            def _identifying_params(self) -> dict[str, Any]:
                tries.append(1)
                if len(tries) == 1:
                    raise RuntimeError("SECRET")
                return {}

        assert texts(create_agent(Odd(which="A"), middleware=[middleware]).invoke(ASKED))[-1] == "A"
        assert middleware.cache.stats().bypass_reasons == {"error": 1}
        assert "kept from an agent" in caplog.text
        assert "SECRET" not in caplog.text


class TestControl:
    def test_words_of_the_block(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """read, write, tags, only_if_cached hold for the agent's calls."""
        agent = create_agent(provider.chat(), middleware=[middleware])
        with control(only_if_cached=True), pytest.raises(NotCached):
            agent.invoke(ASKED)
        with control(write=False):
            agent.invoke(ASKED)
        with control(tags=["doc"]):
            assert texts(agent.invoke(ASKED))[-1] == "answer 2-0"
        with control(read=False):
            assert texts(agent.invoke(ASKED))[-1] == "answer 3-0"
        assert texts(agent.invoke(ASKED))[-1] == "answer 3-0"
        with control(only_if_cached=True):
            agent.invoke(ASKED)
        assert provider.calls == 3

    def test_only_if_cached_where_nothing_can_be(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """A call that cannot be keyed, or that stands in a wrong place, is not made either."""
        odd = create_agent(Custom(which=lambda: "A"), middleware=[middleware])
        first = create_agent(provider.chat(), middleware=[middleware, Gate(1)])
        for agent in (odd, first):
            with control(only_if_cached=True), pytest.raises(NotCached):
                agent.invoke(ASKED)
        assert provider.calls == 0

    def test_tags(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """What was stored under a tag goes with it."""
        agent = create_agent(provider.chat(), middleware=[middleware])
        with control(tags=["doc"]):
            agent.invoke(ASKED)
        middleware.cache.invalidate_tag("doc")
        agent.invoke(ASKED)
        assert provider.calls == 2

    def test_what_is_given(self) -> None:
        """A wrong argument is told where it is given."""
        for wrong in ({"safe_tools": "look_up"}, {"safe_tools": [look_up]}, {"usage_on_hit": "none"}):
            with pytest.raises(ConfigurationError):
                AskonceMiddleware("redis://127.0.0.1:1", **wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="namespace="):
            AskonceMiddleware(Cache("redis://127.0.0.1:1"), namespace="x")


class TestStreams:
    async def test_tokens_and_hits(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """An agent that streams is cached: a miss streams its tokens, a hit its whole messages; all ways share."""
        agent = create_agent(provider.chat(), middleware=[middleware])
        assert said(agent.stream(ASKED, stream_mode="messages")) == ["answer ", "1-0"]
        assert said(agent.stream(ASKED, stream_mode="messages")) == ["answer 1-0"]
        chunks = [chunk async for chunk in agent.astream(ASKED, stream_mode="messages")]
        assert said(chunks) == ["answer 1-0"]
        assert texts(agent.invoke(ASKED))[-1] == "answer 1-0"
        assert provider.calls == 1

    @pytest.mark.parametrize("mode", ["updates", "values", ["updates", "messages"]])
    def test_other_modes(self, provider: Any, middleware: AskonceMiddleware, mode: Any) -> None:
        """What was answered whole is streamed from the cache in every mode."""
        agent = create_agent(provider.chat(), [look_up], middleware=[middleware])
        agent.invoke(ASKED)
        assert len(list(agent.stream(ASKED, stream_mode=mode))) >= 3
        assert provider.calls == 2

    @pytest.mark.skipif(not hasattr(CompiledStateGraph, "stream_events"), reason="LangGraph before 1.2")
    @pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
    async def test_events(self, provider: Any, middleware: AskonceMiddleware) -> None:
        """Events of a run, of whatever version, are cached as well, and leave plain answers to plain callers."""
        agent = create_agent(provider.chat(), middleware=[middleware])
        events = agent.stream_events(ASKED, version="v3")
        assert "answer 1-0" in str(list(events))
        kept = agent.invoke(ASKED)["messages"][-1]
        assert (kept.content, provider.calls) == ("answer 1-0", 1)
        assert "answer 1-0" in str(list(agent.stream_events(ASKED, version="v3")))
        assert "answer 1-0" in str([event async for event in agent.astream_events(ASKED, version="v2")])
        assert provider.calls == 1

    async def test_a_refresh_behind_does_not_speak(self, url: str) -> None:
        """The tokens of a refresh behind the caller are not in the stream that began it."""
        refreshed = asyncio.Event()
        calls: list[int] = []

        class Numbered(Custom):
            def say(self) -> str:
                calls.append(1)
                if len(calls) == 2:
                    refreshed.set()
                return f"answer {len(calls)}"

            async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
                return ChatResult(generations=[ChatGeneration(message=AIMessage(self.say()))])

            async def _astream(self, *args: Any, **kwargs: Any) -> Any:
                yield ChatGenerationChunk(message=AIMessageChunk(self.say()))

        class Waits(AgentMiddleware[Any, Any, Any]):
            async def aafter_model(self, state: Any, runtime: Any) -> None:
                if state["messages"][-1].response_metadata.get("askonce"):
                    await asyncio.wait_for(refreshed.wait(), 20)

        policy = Policy(ttl=0.001, stale_while_revalidate="1h")
        middleware = AskonceMiddleware(url, policy=policy, deadline=2.0)
        agent = create_agent(Numbered(which=""), middleware=[Waits(), middleware])
        assert said([chunk async for chunk in agent.astream(ASKED, stream_mode="messages")]) == ["answer 1"]
        await asyncio.sleep(0.05)  # a ttl of a millisecond is over
        again = [chunk async for chunk in agent.astream(ASKED, stream_mode="messages")]
        await middleware.cache.aio.aclose()
        assert len(calls) == 2
        assert said(again) == ["answer 1"]


def said(chunks: Any) -> list[str]:
    """The texts of the model in a stream of messages."""
    return [chunk.text for chunk, _ in chunks if isinstance(chunk, AIMessage) and chunk.text]


class TestTools:
    @pytest.fixture
    def ran(self) -> list[Any]:
        return []

    def agent(self, provider: Any, url: str, *tools: Any, **options: Any) -> Any:
        options = {"safe_tools": ["look_up"], "deadline": 2.0, **options}
        self.middleware = AskonceMiddleware(url, **options)
        return create_agent(provider.chat(), list(tools), middleware=[self.middleware])

    async def test_safe_tools_run_once(self, provider: Any, url: str, ran: list[Any]) -> None:
        """A safe tool runs once for its arguments, in both colours, whatever was asked around it."""

        @tool(response_format="content_and_artifact")
        def look_up(a: int) -> tuple[str, Any]:
            """A tool."""
            ran.append(a)
            return f"found {len(ran)}", {"rows": [(1, 2)]}

        agent = self.agent(provider, url, look_up)
        for question in ("p", "q"):
            result = agent.invoke({"messages": [HumanMessage(question)]})["messages"][2]
            answer = (await agent.ainvoke({"messages": [HumanMessage(question + "?")]}))["messages"][2]
            assert (
                (result.content, result.artifact)
                == (answer.content, answer.artifact)
                == ("found 1", {"rows": [(1, 2)]})
            )
        assert ran == [1]

    def test_each_call_has_its_own_result(self, provider: Any, url: str, ran: list[Any]) -> None:
        """The result answers the call that asked for it, under an id of its own."""

        @tool
        def look_up(a: int) -> str:
            """A tool."""
            ran.append(a)
            return "found"

        agent = self.agent(provider, url, look_up)
        results = [agent.invoke({"messages": [HumanMessage(q)]})["messages"][1:3] for q in "pq"]
        assert [call.tool_calls[0]["id"] for call, _ in results] == [
            result.tool_call_id for _, result in results
        ]
        assert len({result.tool_call_id for _, result in results}) == 2
        assert len({result.id for _, result in results}) == 2
        assert ran == [1]

    def test_others_run_each_time(self, provider: Any, url: str, ran: list[Any]) -> None:
        """A tool that nobody named as safe is never cached, though the model's calls are."""

        @tool
        def pay(a: int) -> str:
            """A tool."""
            ran.append(a)
            return "paid"

        agent = self.agent(provider, url, pay)
        for _ in range(3):
            agent.invoke(ASKED)
        assert (len(ran), provider.calls) == (3, 2)

    def test_arguments_and_description_count(self, provider: Any, url: str, ran: list[Any]) -> None:
        """Other arguments, or another description of the tool, are another call."""
        for description, a in (("d", 1), ("d", 2), ("e", 1), ("d", 1)):
            made = tool("look_up", description=description)(lambda a: ran.append(a) or str(a))
            made.args_schema = create_model("look_up", a=(int, ...))
            provider.respond = lambda body, number, a=a: (
                reply(body, number)
                if body["messages"][-1]["role"] == "tool"
                else calls_tool(body, number, "look_up", f'{{"a": {a}}}')
            )
            state = self.agent(provider, url, made).invoke({"messages": [HumanMessage(f"{description}{a}")]})
            assert state["messages"][2].content == str(a)
        assert ran == [1, 2, 1]

    def test_failures_are_not_kept(self, provider: Any, url: str, ran: list[Any]) -> None:
        """A tool that failed, by raising or by saying so, runs again."""

        @tool
        def look_up(a: int) -> Any:
            """A tool."""
            ran.append(a)
            return ToolMessage("failed", tool_call_id="x", status="error")

        agent = self.agent(provider, url, look_up)
        for _ in range(2):
            agent.invoke(ASKED)
        assert len(ran) == 2
        assert self.middleware.cache.stats().rejection_reasons == {"failed": 2}

        @tool("look_up")
        def raises(a: int) -> str:
            """Another tool."""
            ran.append(a)
            raise ZeroDivisionError("boom")

        agent = self.agent(provider, url, raises)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="boom"):
                agent.invoke(ASKED)
        assert len(ran) == 4

    def test_more_than_a_result(self, provider: Any, url: str, ran: list[Any]) -> None:
        """A tool that changes the state, or keeps an object that cannot be written, runs each time."""

        @tool
        def look_up(a: int, call_id: Annotated[str, InjectedToolCallId]) -> Any:
            """A tool."""
            ran.append(a)
            return Command(update={"messages": [ToolMessage("done", tool_call_id=call_id)]})

        @tool("look_up", response_format="content_and_artifact")
        def keeps(a: int) -> Any:
            """A tool."""
            ran.append(a)
            return "done", object()

        for made in (look_up, keeps):
            agent = self.agent(provider, url, made)
            for _ in range(2):
                assert agent.invoke(ASKED)["messages"][2].content == "done"
        assert len(ran) == 4

    def test_injected_arguments(self, provider: Any, url: str, ran: list[Any]) -> None:
        """A tool that sees the state or its runtime runs each time, though it was named as safe."""

        @tool("look_up")
        def sees_state(a: int, state: Annotated[dict[str, Any], InjectedState]) -> str:
            """A tool."""
            ran.append(len(state["messages"]))
            return "found"

        @tool("look_up")
        def sees_runtime(a: int, runtime: ToolRuntime) -> str:
            """A tool."""
            ran.append(runtime.tool_call_id)
            return "found"

        for made in (sees_state, sees_runtime):
            agent = self.agent(provider, url, made)
            for _ in range(2):
                assert agent.invoke(ASKED)["messages"][2].content == "found"
            assert self.middleware.cache.stats().bypass_reasons["uncacheable"] >= 2
        assert len(ran) == 4

    @pytest.mark.parametrize("kind", ["result", "failure", "command"])
    async def test_twenty_calls_at_once(self, provider: Any, url: str, ran: list[Any], kind: str) -> None:
        """Of twenty agents that call a safe tool at once, one runs it; each gets the result of its own call, also
        where that is not stored, and a command is nobody else's.
        """
        gate = Gate(20)

        class Counts(AgentMiddleware[Any, Any, Any]):
            async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
                gate.come()
                result = await handler(request)
                assert (
                    kind != "command" or result.update["messages"][0].tool_call_id == request.tool_call["id"]
                )
                return result

        @tool
        async def look_up(a: int) -> Any:
            """A tool."""
            ran.append(a)
            await asyncio.to_thread(gate.opened.wait, 20)
            if kind == "failure":
                raise ToolException("no")
            return "found"

        look_up.handle_tool_error = True

        @tool("look_up")
        async def commands(a: int, call_id: Annotated[str, InjectedToolCallId]) -> Any:
            """A tool."""
            return Command(update={"messages": [ToolMessage("found", tool_call_id=call_id)]})

        middleware = AskonceMiddleware(url, safe_tools=["look_up"], deadline=2.0)
        tools = [commands if kind == "command" else look_up]
        agent = create_agent(provider.chat(), tools, middleware=[Counts(), middleware])
        states = await asyncio.gather(
            *(agent.ainvoke({"messages": [HumanMessage(str(n))]}) for n in range(20))
        )
        assert kind != "result" or ran == [1]
        for state in states:
            assert state["messages"][2].tool_call_id == state["messages"][1].tool_calls[0]["id"]
        assert len({state["messages"][2].id for state in states}) == 20
