"""Which requests share a key, which are none of the cache's business, and what headers ask of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given as example_of
from hypothesis import settings
from hypothesis import strategies as st
from tests.integrations.openai.wired import BODY, PATH, plan, planned

from askonce import ConfigurationError, Uncacheable, control
from askonce.control import NONE, Control, current
from askonce.keys import Fingerprints, canonical, differences
from askonce_openai import wire


def key(*args: Any, **how: Any) -> bytes:
    return Fingerprints("", {}).of(plan(*args, **how).request)


def schema(*names: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in names}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": properties}}}


# --- the key ------------------------------------------------------------------------------------------------------

SAME = [
    {"user": "u"},
    {"metadata": {"t": "1"}},
    {"safety_identifier": "s"},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "24h"},
    {"prompt_cache_options": {"mode": "x"}},
    {"stream": True},
    {"stream": False},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"n": 1},
    {"n": 1.0},
    {"seed": None},
    {"store": False},
    {"store": None},
]
OTHER = [
    {"model": "n"},
    {"messages": [{"role": "user", "content": "ho"}]},
    {"messages": [{"role": "system", "content": "hi"}]},
    {"seed": 1},
    {"seed": "1"},
    {"temperature": 0},
    {"temperature": 0.5},
    {"n": 2},
    {"n": True},
    {"service_tier": "flex"},
    {"guided_json": {"a": 1}},
    {"a_parameter_of_next_year": False},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"response_format": schema("answer")},
    {"max_tokens": 5},
]


@pytest.mark.parametrize("body", SAME, ids=str)
def test_what_the_model_never_sees_is_not_in_the_key(body: dict[str, Any]) -> None:
    """Who asks, the provider's caching and the form share an answer."""
    assert key() == key("chat", body)


@pytest.mark.parametrize("body", OTHER, ids=str)
def test_everything_else_is_in_the_key(body: dict[str, Any]) -> None:
    """Parameters that nobody knows yet are in the key too."""
    assert key() != key("chat", body)


def test_every_other_request_has_a_key_of_its_own() -> None:
    """No two of these requests share an answer."""
    assert len({key("chat", body) for body in OTHER}) == len(OTHER)


def test_numbers_count_by_value() -> None:
    """1.0 is 1, as on the provider's side."""
    assert key("chat", {"temperature": 1}) == key("chat", {"temperature": 1.0})
    assert key("chat", {"temperature": 1}) != key("chat", {"temperature": True})


def test_the_order_of_parameters_does_not_count() -> None:
    """The top level is sorted."""
    body = {**BODY["chat"], "seed": 1}
    backwards = dict(reversed(body.items()))
    assert key(content=json.dumps(body).encode()) == key(content=json.dumps(backwards).encode())


def test_the_order_inside_a_parameter_counts() -> None:
    """A schema with "reason" before "answer" makes the model think first."""
    one, other = ({"response_format": schema(*names)} for names in (("why", "answer"), ("answer", "why")))
    assert key("chat", one) != key("chat", other)
    assert key("chat", one) == key("chat", one)


def test_blanks_in_the_content_do_not_count() -> None:
    """How the JSON is written does not reach the model."""
    assert key() == key(content=json.dumps(BODY["chat"], indent=2).encode())


@pytest.mark.parametrize(
    "how",
    [
        {"origin": "https://y"},
        {"origin": "http://x"},
        {"path": "/openai/deployments/a/chat/completions"},
        {"path": "/openai/deployments/b/chat/completions"},
        {"query": "api-version=1"},
        {"query": "api-version=2"},
        {"scope": "tenant"},
        {"scope": ""},
        {"headers": {"openai-organization": "o"}},
        {"headers": {"openai-project": "o"}},
        {"headers": {"openai-beta": "o"}},
        {"headers": {"anthropic-beta": "o"}},
        {"headers": {"anthropic-version": "o"}},
    ],
    ids=str,
)
def test_where_and_for_whom_is_in_the_key(how: dict[str, Any]) -> None:
    """Another host, deployment, version of the API, project or scope is another answer."""
    assert key() != key(**how)


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "x-stainless-retry-count",
        "x-stainless-lang",
        "user-agent",
        "accept",
        "traceparent",
        "cookie",
    ],
)
def test_other_headers_are_not_in_the_key(name: str) -> None:
    """What changes with each attempt, client or token does not make another answer."""
    assert key() == key(headers={name: "v"})


def test_further_headers_can_be_put_into_the_key() -> None:
    """A gateway that routes by a header makes it part of the request."""
    names = wire.checked_key_headers(["X-Route"])
    assert key(headers={"x-route": "a"}, key_headers=names) != key(
        headers={"x-route": "b"}, key_headers=names
    )
    assert key(headers={"x-route": "a"}) == key(headers={"x-route": "b"})


@pytest.mark.parametrize("name", ["Authorization", "api-key", "x-api-key", "cookie", "proxy-authorization"])
def test_a_credential_can_not_be_put_into_the_key(name: str) -> None:
    """The error says what to give instead."""
    with pytest.raises(ConfigurationError, match="scope='api_key'"):
        wire.checked_key_headers([name])


def test_one_name_is_no_list_of_names() -> None:
    """Text would otherwise count as its letters."""
    with pytest.raises(ConfigurationError, match=r"\['x-route'\]"):
        wire.checked_key_headers("x-route")


def test_store_false_makes_another_answer_in_responses() -> None:
    """Its id cannot be continued from."""
    assert key("responses") != key("responses", {"store": False})
    assert key("responses") == key("responses", {"store": None})


@pytest.mark.parametrize("api", PATH)
def test_each_api_is_recognised(api: str) -> None:
    """By how the path ends, whatever is before it."""
    made = plan(api, path="/gateway" + PATH[api])
    assert (api, False, False) == (made.api, made.stream, made.wants_usage)


def test_the_form_is_in_the_plan() -> None:
    """Though not in the key."""
    made = plan("chat", {"stream": True, "stream_options": {"include_usage": True}})
    assert (made.stream, made.wants_usage) == (True, True)
    assert not plan("chat", {"stream": True, "stream_options": "odd"}).wants_usage


def test_a_key_can_be_explained() -> None:
    """The path to a difference is that of the body."""
    one, other = plan("chat", {"seed": 1}), plan("chat", {"seed": 2})
    (difference,) = differences(one.request, other.request)
    assert (difference.path, difference.left, difference.right) == ("request['body']['seed']", 1, 2)


def test_what_is_no_json_number_is_left_to_the_core() -> None:
    """It raises Uncacheable, as for any request that cannot be told apart."""
    content = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"top_p":NaN}'
    with pytest.raises(Uncacheable, match="top_p"):
        key(content=content)


# --- credentials --------------------------------------------------------------------------------------------------

SECRETS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789-_", min_size=12, max_size=40)
CARRIERS = st.sampled_from(
    ["authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie", "proxy-authorization", "x-auth"]
)


@settings(deadline=None)
@example_of(
    SECRETS, CARRIERS, st.sampled_from(sorted(PATH)), st.sampled_from(["key", "api_key", "Token", "sig"])
)
def test_the_key_never_contains_a_credential(secret: str, carrier: str, api: str, parameter: str) -> None:
    """Whichever header, parameter of the query or part of the address carries it."""
    secret = f"sk-{secret}"
    made = plan(
        api,
        headers={carrier: f"Bearer {secret}", "openai-project": "p"},
        query=f"api-version=1&{parameter}={secret}",
        origin=f"https://user:{secret}@x",
        scope=wire.credential({carrier: f"Bearer {secret}"}),
    )
    assert secret.encode() not in canonical(made.request.body)
    assert "api-version=1" in made.request.body["query"]  # type: ignore[index]


NAME = st.sampled_from(
    ["OpenAI-Beta", "openai-beta", "X-Route", "x-askonce-ttl", "X-Askonce-Tags", "Cookie", "x"]
)


@example_of(st.lists(st.tuples(NAME, st.text("ab, =", max_size=4)), max_size=6))
def test_headers_are_read_as_the_library_reads_them(sent: list[tuple[str, str]]) -> None:
    """In any case, and all lines of one name together; but no others than are asked for."""
    headers = pytest.importorskip("httpx").Headers(sent)
    found = wire.read_headers(headers.raw, wire.header_names(["x-route"], credentials=False))
    asked = {"openai-beta", "x-route", "x-askonce-ttl", "x-askonce-tags"}
    assert found == {name: headers[name] for name in asked & set(headers)}


def test_credentials_are_read_only_to_keep_callers_apart() -> None:
    """Otherwise they are not even looked at."""
    sent = [(b"Authorization", b"Bearer sk-1"), (b"API-Key", b"sk-2")]
    assert wire.read_headers(sent, wire.header_names([], credentials=False)) == {}
    found = wire.read_headers(sent, wire.header_names([], credentials=True))
    assert found == {"authorization": "Bearer sk-1", "api-key": "sk-2"}


def test_who_has_another_credential_shares_the_answer() -> None:
    """Tokens rotate; with a scope each has its own."""
    one, other = ({"authorization": f"Bearer {name}"} for name in "ab")
    assert key(headers=one, query="key=a") == key(headers=other, query="key=b")
    assert key(headers=one, scope=wire.credential(one)) != key(headers=other, scope=wire.credential(other))
    assert wire.credential(one) == wire.credential(dict(one))
    assert wire.credential(one, "key=a") != wire.credential(one, "key=b") != wire.credential(one)
    assert wire.credential({}) == wire.credential({}, "api-version=1") == ""


# --- bypass -------------------------------------------------------------------------------------------------------

BYPASSED = [
    ("chat", {"store": True}, "store"),
    ("responses", {"store": True}, "store"),
    ("chat", {"web_search_options": {}}, "web-search"),
    ("chat", {"modalities": ["text", "audio"]}, "audio"),
    ("chat", {"tools": [{"type": "web_search"}]}, "hosted-tool"),
    ("chat", {"tools": [{"type": "function"}, {"type": "mcp"}]}, "hosted-tool"),
    ("chat", {"tools": ["web_search"]}, "hosted-tool"),
    ("chat", {"messages": []}, "shape"),
    ("chat", {"messages": "hi"}, "shape"),
    ("chat", {"model": 7}, "shape"),
    ("chat", {"tools": "all"}, "shape"),
    ("completions", {"prompt": None}, "shape"),
    ("responses", {"background": True}, "background"),
    ("responses", {"previous_response_id": "r"}, "conversation"),
    ("responses", {"conversation": "c"}, "conversation"),
    ("responses", {"conversation": {"id": "c"}}, "conversation"),
    ("responses", {"prompt": {"id": "p"}}, "prompt-version"),
    ("responses", {"prompt": "p"}, "shape"),
    ("responses", {"prompt_cache_options": {"prewarm": True}}, "prewarm"),
    ("responses", {"tools": [{"type": "file_search"}]}, "hosted-tool"),
    ("responses", {"tools": [{"type": "mcp"}]}, "hosted-tool"),
    ("responses", {"tools": {"type": "mcp"}}, "hosted-tool"),
    ("responses", {"input": None}, "shape"),
    ("responses", {"input": []}, "shape"),
    ("messages", {"thread": {"type": "create"}}, "thread"),
    ("messages", {"container": "c"}, "container"),
    ("messages", {"mcp_servers": [{}]}, "mcp-servers"),
    ("messages", {"max_tokens": 0}, "prewarm"),
    ("messages", {"max_tokens": None}, "shape"),
    ("messages", {"tools": [{"type": "web_search_20250305"}]}, "hosted-tool"),
    ("embeddings", {"model": None}, "shape"),
    ("embeddings", {"input": ""}, "shape"),
]

NOT_BYPASSED = [
    ("chat", {"store": False}),
    ("chat", {"modalities": ["text"]}),
    ("chat", {"tools": [{"type": "function", "function": {}}, {"type": "custom", "custom": {}}]}),
    ("chat", {"tools": []}),
    ("chat", {"temperature": 1.7}),
    ("responses", {"background": False, "conversation": None}),
    ("responses", {"prompt": {"id": "p", "version": "2"}, "model": None, "input": None}),
    ("responses", {"prompt_cache_options": {"prewarm": False}}),
    ("responses", {"tools": [{"type": "function", "name": "f"}]}),
    ("messages", {"tools": [{"name": "f", "input_schema": {}}, {"type": "custom", "name": "g"}]}),
    ("messages", {"mcp_servers": [], "container": None}),
    ("embeddings", {"input": [1, 2]}),
]


@pytest.mark.parametrize(("api", "body", "reason"), BYPASSED, ids=str)
def test_what_depends_on_more_than_the_request_is_bypassed(
    api: str, body: dict[str, Any], reason: str
) -> None:
    """In one word that names the reason."""
    assert reason == planned(api, body)


@pytest.mark.parametrize(("api", "body"), NOT_BYPASSED, ids=str)
def test_what_depends_on_the_request_alone_is_not_bypassed(api: str, body: dict[str, Any]) -> None:
    """The other side of each reason."""
    assert isinstance(planned(api, body), wire.Plan)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"answers": [1]}', "shape"),
        (b'{"model": "m"}', "shape"),
        (b'{"input": "x", "model": {}}', "shape"),
        (b"[1]", "shape"),
        (b"7", "shape"),
        (b"x=1", "not-json"),
        (b"", "not-json"),
        (b"\xff\xfe\xfa", "not-json"),
        (b"[" * 100_000, "not-json"),
    ],
)
def test_a_foreign_post_is_not_ours(content: bytes, reason: str) -> None:
    """A form's answers are posted to a path that ends in /responses too."""
    assert reason == planned(path="/forms/7/responses", content=content)


def test_another_path_or_method_is_not_ours() -> None:
    """Files, batches, models."""
    assert planned(path="/v1/files") == "endpoint"
    assert planned(path="/v1/messages/batches") == "endpoint"
    call = wire.Call(method="GET", origin="https://x", path=PATH["chat"], headers={}, content=b"")
    assert wire.plan(call) == "method"


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "input",
        "prompt",
        "tools",
        "stream_options",
        "prompt_cache_options",
        "modalities",
        "n",
        "max_tokens",
        "store",
        "conversation",
        "metadata",
        "web_search_options",
        "encoding_format",
    ]
)


@settings(deadline=None)
@example_of(st.sampled_from(sorted(PATH)), st.dictionaries(NAMES, JSONS))
def test_no_body_raises(api: str, body: dict[str, Any]) -> None:
    """Whatever an application sends, it is planned or bypassed, and has a key or is Uncacheable."""
    made = planned(api, body)
    if isinstance(made, wire.Plan):
        with contextlib.suppress(Uncacheable):
            Fingerprints("", {}).of(made.request)
    else:
        assert made in {reason for _, _, reason in BYPASSED}


@settings(deadline=None)
@example_of(st.sampled_from(sorted(PATH)), st.binary(max_size=60))
def test_no_content_raises(api: str, content: bytes) -> None:
    """Nor do bytes that are no JSON at all."""
    assert planned(api, content=content) in {"not-json", "shape"}


def by_either_parser(content: bytes) -> list[wire.Plan | str]:
    """Return what is made of *content* with the SDKs' JSON parser, and without it."""
    found = []
    for parser in (importlib.import_module("jiter").from_json, json.loads):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[wire.Plan.__module__], "from_json", parser)
            found.append(planned(content=content))
    return found


@settings(deadline=None)
@example_of(st.dictionaries(NAMES, JSONS), st.booleans())
def test_the_parser_is_not_in_the_key(body: dict[str, Any], escaped: bool) -> None:
    """A process that has the SDK, and one that has not, read the same."""
    content = json.dumps({**BODY["chat"], **body}, ensure_ascii=escaped).encode()
    one, other = by_either_parser(content)
    assert repr(one) == repr(other)  # NaN is not equal to itself; 1 and 1.0 are told apart


@pytest.mark.parametrize(
    "value",
    [
        r'"\ud800"',
        r'"\u0000\uD83D\uDE00"',
        "123456789012345678901234567890",
        "-0",
        "-0.0",
        "1e400",
        "1E5",
        "4.35",
        "0.1e-6",
        "2.2250738585072011e-308",
        "9007199254740993.0",
        "Infinity",
        '{"a": 1, "a": 2}',
        "[" * 300 + "]" * 300,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_a_parser_cannot_read_the_other_does(value: str, encoding: str) -> None:
    """Lone surrogates, a byte order mark, deep nesting."""
    content = f'{{"model": "m", "messages": [1], "x": {value}}}'.encode(encoding)
    one, other = by_either_parser(content)
    assert isinstance(one, wire.Plan)
    assert repr(one) == repr(other)


# --- what headers ask ---------------------------------------------------------------------------------------------


def asked(outer: Control = NONE, **headers: str) -> wire.Directives:
    return wire.directives({name.replace("_", "-"): value for name, value in headers.items()}, outer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no-cache", {"read": False}),
        ("No-Cache", {"read": False}),
        ("no-store", {"write": False}),
        ("no-cache, no-store", {"read": False, "write": False}),
        ("only-if-cached", {"only_if_cached": True}),
        ("max-age=60", {"max_age": 60.0}),
        ('max-age="60"', {"max_age": 60.0}),
        ("max-age=60, max-age=30", {"max_age": 30.0}),
        ("max-age=0", {"read": False}),
        ("max-age=x", {"read": False}),
        ("max-age=-1", {"read": False}),
        ("max-age", {"read": False}),
        ("max-age=99999999999999999999", {"max_age": 3650 * 86_400.0}),
        ("no-transform, private", {}),
        ("", {}),
        (", ,", {}),
    ],
)
def test_cache_control_has_its_rfc_meaning(text: str, words: dict[str, Any]) -> None:
    """RFC 9111, 5.2.1; what cannot be read goes upstream."""
    assert words == asked(cache_control=text).words


@pytest.mark.parametrize(
    ("text", "ttl"),
    [
        ("15m", 900.0),
        ("60", 60.0),
        ("1.5h", 5400.0),
        ("soon", None),
        ("-1", None),
        ("0", None),
        ("nan", None),
    ],
)
def test_a_ttl_that_cannot_be_read_is_ignored(text: str, ttl: float | None) -> None:
    """A header never makes a call fail."""
    assert ttl == asked(x_askonce_ttl=text).words.get("ttl")


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("tenant=acme", {"tenant": "acme"}),
        ("tenant=acme, repo=x", {"tenant": "acme", "repo": "x"}),
        ("acme", {"scope": "acme"}),
        ("acme, b=c", {"scope": "acme, b=c"}),
        ("=x", {"scope": "=x"}),
        ("a=1, a=2", {"scope": "a=1, a=2"}),
        (" , ", {"scope": " , "}),
    ],
)
def test_any_text_is_a_scope(text: str, scope: dict[str, str]) -> None:
    """One that was ignored would let callers share what they keep apart."""
    assert scope == asked(x_askonce_scope=text).words["scope"]


def test_tags_are_a_list() -> None:
    """Separated by commas."""
    assert asked(x_askonce_tags="a, b,,").words == {"tags": ("a", "b")}


def test_the_stricter_wins() -> None:
    """Of the headers and the block around the call."""
    outer = Control(read=False, max_age=5.0)
    both = asked(outer, cache_control="max-age=60, no-store")
    assert (both.read, both.write, both.max_age) == (False, False, 5.0)
    assert asked(Control(max_age=50.0), cache_control="max-age=10").max_age == 10.0
    assert asked(Control(only_if_cached=True)).only_if_cached
    assert asked(Control(write=False), cache_control="no-cache").words == {"read": False}


def test_the_words_are_those_of_control() -> None:
    """Headers are applied by a block of their own; for ttl and scope the header wins, tags add up."""
    found = asked(
        cache_control="no-cache, max-age=9, only-if-cached, no-store",
        x_askonce_ttl="9",
        x_askonce_scope="a=1",
        x_askonce_tags="t",
    )
    with control(ttl=1, scope={"a": "0", "b": "0"}, tags=["s"]), control(**found.words):
        now = current()
    expected = Control(
        read=False,
        write=False,
        ttl=9.0,
        max_age=9.0,
        tags=("s", "t"),
        scope={"a": "1", "b": "0"},
        only_if_cached=True,
    )
    assert expected == now


@settings(deadline=None)
@example_of(st.text(max_size=30), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_header_raises(cache_control: str, ttl: str, scope: str, tags: str) -> None:
    """Whatever headers say, a block can be made of it."""
    found = asked(cache_control=cache_control, x_askonce_ttl=ttl, x_askonce_scope=scope, x_askonce_tags=tags)
    with control(**found.words):
        assert current().read == found.read
