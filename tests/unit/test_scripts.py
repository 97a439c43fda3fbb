"""The Lua scripts, read but not run: their keys, commands and loops, and the answers they decode to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib import resources

import pytest
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from askonce import BackendUnavailable, scripts
from askonce._wire.commands import answer, as_error, checked, is_unknown_script, pack_load, pack_script
from askonce.errors import Moved, OutOfMemory, Unfit
from askonce.scripts import ALL, Controlled, Healed, Leased, Script, Stored, Trimmed

from .play import signature

FILES = {
    file.name.removesuffix(".lua"): file.read_text("utf-8")
    for file in resources.files(scripts).iterdir()
    if file.name.endswith(".lua")
}
BY_NAME = {script.name: script for script in ALL}

#: What an ACL user of askonce may run (docs/data-model.md); of it, what a script needs.
ALLOWED = {
    "GET", "MGET", "SET", "GETRANGE", "SETRANGE", "STRLEN", "DEL", "UNLINK", "EXISTS", "PEXPIRE", "PEXPIREAT", "PTTL",
    "ZADD", "ZREM", "ZINCRBY", "ZSCORE", "ZCARD", "ZRANGE", "ZRANDMEMBER", "HSETNX", "HINCRBY", "HGETALL", "RPUSH",
    "LLEN", "LRANGE", "PUBLISH", "SPUBLISH", "TIME",
}  # fmt: skip
KEYLESS = {"TIME"}
ALL_ARGUMENTS_ARE_KEYS = {"MGET", "DEL", "UNLINK", "EXISTS"}


# --- a reader of just enough Lua ----------------------------------------------------------------------------------


def bare(source: str) -> str:
    """Return *source* without its comments."""
    assert "--[[" not in source, "a block comment would hide code from this audit"
    lines = []
    for line in source.splitlines():
        quoted = ""
        for at, letter in enumerate(line):
            if quoted:
                quoted = "" if letter == quoted else quoted
            elif letter in "\"'":
                quoted = letter
            elif line.startswith("--", at):
                line = line[:at]
                break
        lines.append(line)
    return "\n".join(lines) + "\n"


def split(text: str) -> list[str]:
    """Split at the commas that stand outside parentheses, brackets and quotes."""
    parts, depth, quoted, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quoted:
            quoted = "" if letter == quoted else quoted
        elif letter in "\"'":
            quoted = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def enclosed(text: str, at: int) -> str:
    """Return what stands between the parenthesis at *at* and its partner."""
    depth, quoted = 0, ""
    for end in range(at, len(text)):
        letter = text[end]
        if quoted:
            quoted = "" if letter == quoted else quoted
        elif letter in "\"'":
            quoted = letter
        elif letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                return text[at + 1 : end]
    raise AssertionError(f"an open parenthesis: {text[at : at + 60]}")


def calls(code: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the place and the arguments of each redis.call and redis.pcall."""
    for match in re.finditer(r"\bredis\s*\.\s*p?call\s*(\(?)", code):
        assert match[1], "redis.call must be written with parentheses"
        yield match.start(), split(enclosed(code, match.end() - 1))


def functions(code: str) -> Iterator[tuple[str, list[str], range]]:
    """Yield name, parameters and extent of each function."""
    for match in re.finditer(r"^local function (\w+)\(([^)]*)\)", code, re.MULTILINE):
        yield match[1], split(match[2]), range(match.start(), code.index("\nend", match.end()))


def bindings(code: str) -> Iterator[tuple[str, str]]:
    """Yield each name and the expression that a ``local`` gives it."""
    for match in re.finditer(r"\blocal +(?!function\b)([\w, ]+?) *= *", code):
        end = code.index("\n", match.end())
        while end + 1 < len(code) and (
            code[match.end() : end].endswith(",") or _open(code[match.end() : end])
        ):
            end = code.index("\n", end + 1)
        yield from zip(split(match[1]), split(code[match.end() : end]), strict=False)


def _open(text: str) -> bool:
    return text.count("(") > text.count(")") or text.count("{") > text.count("}")


def problems(source: str) -> list[str]:
    """Return what is wrong with a script: keys that are not declared, commands and loops that it may not have."""
    code = bare(source)
    bound = [(name, value) for name, value in bindings(code)]
    keys = {name for name, value in bound if re.fullmatch(r"KEYS\[\d+\]", value)}
    found = [
        f"{name} is a key, and something else elsewhere"
        for name in sorted(keys)
        if sum(name == other for other, _ in bound) > 1
    ]
    for match in re.finditer(r"(?<![\w.\"])(\w+)\s*=(?!=)", code):
        line = code[code.rfind("\n", 0, match.start()) + 1 : match.end()]
        if match[1] in keys and not re.match(r"\s*local\b", line):
            found.append(f"{match[1]} is a key and is assigned to")
    found += ["a function that is not local and named"] * (
        len(re.findall(r"\bfunction\b", code)) - len(list(functions(code)))
    )
    for place, (name, *arguments) in calls(code):
        published = name == "publish" and ("publish", "ARGV") in [(n, v[:4]) for n, v in bound]
        command = "PUBLISH" if published else name.strip("\"'")
        if command not in ALLOWED:
            found.append(f"{name} is not allowed")
        touched = arguments if command in ALL_ARGUMENTS_ARE_KEYS else arguments[:1]
        for argument in () if command in KEYLESS else touched:
            passed = [argument]
            for function, parameters, extent in functions(code):
                if place in extent and argument in parameters:  # then whatever is passed for it must be a key
                    passed = [
                        split(enclosed(code, match.end() - 1))[parameters.index(argument)]
                        for match in re.finditer(rf"(?<!function )\b{function}\(", code)
                    ]
            for one in passed:
                if one not in keys and not re.fullmatch(r"KEYS\[\w+\]", one):
                    found.append(f"{command} {one}: not in KEYS")
    if re.search(r"\b(while|repeat|goto)\b", code):
        found.append("a loop without a bound")
    for header in re.findall(r"\bfor\b(.*?)\bdo\b", code, re.DOTALL):
        if not re.fullmatch(r"\s*\w+\s*=\s*[\w.]+\s*,\s*#?[\w.]+\s*(,\s*\d+\s*)?", header):
            found.append(f"for{header}: a loop whose bound cannot be seen")
    if re.search(r"\b(loadstring|load|dofile|setfenv|getfenv|_G|rawset|debug|math\.random)\b", code):
        found.append("code from data, globals or chance")
    if re.search(r"\bredis\b(?!\s*\.\s*(p?call|error_reply|status_reply)\b)", code):
        found.append("redis is used other than by call and pcall")
    return found


# --- the audit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_script_touches_no_key_that_is_not_declared(name):
    """Every key is in KEYS, every command is one that an ACL allows, every loop is bounded."""
    books = FILES["_books"] if FILES[name].startswith("-- uses _books") else ""

    assert problems(books + FILES[name]) == []


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ('local c = KEYS[1]\nredis.call("GET", c)', []),
        ('redis.call("GET", KEYS[i])', []),
        ('redis.call("GET", "c")', ['GET "c": not in KEYS']),
        ('local c = KEYS[1]\nredis.call("GET", c .. "x")', ['GET c .. "x": not in KEYS']),
        ('redis.call("GET", ARGV[1])', ["GET ARGV[1]: not in KEYS"]),
        ('local c = ARGV[1]\nredis.call("GET", c)', ["GET c: not in KEYS"]),
        ('local c = KEYS[1] .. "x"\nredis.call("GET", c)', ["GET c: not in KEYS"]),
        ('local a, c = KEYS[1], ARGV[1]\nredis.call("GET", c)', ["GET c: not in KEYS"]),
        ('local c = KEYS[1]\nc = "x"\nredis.call("GET", c)', ["c is a key and is assigned to"]),
        ('local c = KEYS[1]\nlocal c = "x"', ["c is a key, and something else elsewhere"]),
        ('local function f(c)\nredis.call("GET", c)\nend', []),
        ('local k = KEYS[1]\nlocal function f(n, c)\nredis.call("GET", c)\nend\nf(1, k)\nf(1, KEYS[2])', []),
        (
            'local c = KEYS[1]\nlocal function f(c)\nredis.call("GET", c)\nend\nf("x")',
            ['GET "x": not in KEYS'],
        ),
        ('local function f(n)\nend\nlocal n = ARGV[1]\nredis.call("GET", n)', ["GET n: not in KEYS"]),
        (
            'local f = function(c) redis.call("GET", c) end',
            ["a function that is not local and named", "GET c: not in KEYS"],
        ),
        ('local c = KEYS[1]\nredis.call("DEL", c, "x")', ['DEL "x": not in KEYS']),
        (
            'redis.pcall("GET", string.format("%s,%s", KEYS[1], "x"))',
            ['GET string.format("%s,%s", KEYS[1], "x"): not in KEYS'],
        ),
        ('redis.call(\n  "GET",\n  "c"\n)', ['GET "c": not in KEYS']),
        ('redis.call("SCAN", "0")', ['"SCAN" is not allowed', 'SCAN "0": not in KEYS']),
        ('redis.call("KEYS", KEYS[1])', ['"KEYS" is not allowed']),
        ("redis.call(ARGV[1], KEYS[1])", ["ARGV[1] is not allowed"]),
        ('local publish = "SET"\nredis.call(publish, KEYS[1])', ["publish is not allowed"]),
        ("while true do\nend", ["a loop without a bound"]),
        ("repeat\nuntil false", ["a loop without a bound"]),
        ("for i = 1, #KEYS do\nend", []),
        ("for i = 5, #list, 2 do\nend", []),
        ("for i = 1, math.huge do\nend", []),
        ("for k, v in pairs(t) do\nend", ["for k, v in pairs(t) : a loop whose bound cannot be seen"]),
        ("local f = redis.call", ["redis.call must be written with parentheses"]),
        ('redis["call"]("GET", "c")', ["redis is used other than by call and pcall"]),
        ('-- redis.call("GET", "c")\nlocal s = "-- not a comment"', []),
    ],
)
def test_the_audit_sees_what_it_is_for(planted, expected):
    """Planted errors are found, and sound code is not accused."""
    try:
        found = problems(planted)
    except AssertionError as error:
        found = str(error).splitlines()[:1]

    assert found == expected


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_the_head_of_a_script_is_its_signature(script):
    """``name(keys=[..], args=[..]) -> answer``; a key that is named has that name in the code, at its place."""
    keys, args = signature(script)
    head = FILES[script.name]
    assert "->" in head.split("\n--\n")[0], "the head says what is answered"
    code = bare(script.source)
    bound = {value: name for name, value in bindings(code)}
    for number, name in enumerate(keys, 1):
        if name.isidentifier() and f"KEYS[{number}]" in bound:
            assert bound[f"KEYS[{number}]"] == name
    for number, name in enumerate(args, 1):
        given = bound.get(f"ARGV[{number}]") or bound.get(f"tonumber(ARGV[{number}])")
        assert given is None or given.removesuffix("_limit") == name
    used = [int(number) for number in re.findall(r"\bKEYS\[(\d+)\]", code)]
    assert max(used, default=0) <= len(keys)
    used = [int(number) for number in re.findall(r"\bARGV\[(\d+)\]", code)]
    assert max(used, default=0) <= len(args)


def test_every_file_is_registered_and_every_script_has_a_file():
    """``ALL`` and the folder hold the same; ``_books`` stands in front of others and is none itself."""
    assert len(BY_NAME) == len(ALL)
    assert set(BY_NAME) | {"_books"} == set(FILES)
    registered = {value for value in vars(scripts).values() if isinstance(value, Script)}
    assert registered == set(ALL)
    for name, script in BY_NAME.items():
        assert getattr(scripts, name.upper()) is script


@pytest.mark.parametrize("script", ALL, ids=lambda script: script.name)
def test_a_script_is_sent_as_it_stands(script):
    """Its source is the file, after the books if it uses them; its name in Redis is the SHA-1 of that."""
    text = FILES[script.name]
    uses_books = (
        bool(re.search(r"\b(record|drop|sweep|evict|outlook)\(|\bnow\b(?!_)", bare(text)))
        and "local now" not in text
    )

    assert script.source == (FILES["_books"] if text.startswith("-- uses _books\n") else "") + text
    assert text.startswith("-- uses _books\n") is uses_books
    assert script.sha == hashlib.sha1(script.source.encode()).hexdigest()
    assert script.source.isascii()
    assert b"EVALSHA" in pack_script(script, (b"k",), (1,))
    assert script.source.encode() in pack_load(script)


def test_numbers_are_sent_in_decimal():
    """Keys are counted, arguments keep their order."""
    script = BY_NAME["renew"]
    expected = (
        b"*6\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\nh\r\n$5\r\n10000\r\n"
        % script.sha.encode()
    )

    assert pack_script(script, (b"k",), (b"h", 10_000)) == expected


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reply", "expected"),
    [
        ("control", [5, b"7:1", 1], Controlled(5, b"7:1", 1)),
        ("lease", [1, 5, b"7:1", b"entry"], Leased(1, 5, b"7:1", entry=b"entry")),
        ("lease", [2, 5, b"7:1", 50], Leased(2, 5, b"7:1", fence=50)),
        ("lease", [3, 5, b"7:1", 50, 900, b"1-x"], Leased(3, 5, b"7:1", fence=50, left_ms=900, token=b"1-x")),
        ("lease", [4, 5, b"7:1", b"ValueError"], Leased(4, 5, b"7:1", text="ValueError")),
        ("lease", [4, 5, b"7:1", b"\xff"], Leased(4, 5, b"7:1", text="\ufffd")),
        ("lease", [5, 5, b""], Leased(5, 5, b"")),
        ("store", [1, 5, 0, 0, 0, [b"m", b"1"]], Stored(1, 5, 0, 0, 0, [b"m", b"1"])),
        ("store", [-3, 5, 0, 0, 0, []], Stored(-3, 5, 0, 0, 0, [])),
        ("trim", [5, 1, 2, 0, []], Trimmed(5, 1, 2, 0, [])),
        ("heal", [1, 2], Healed(1, 2)),
        ("forget", 3, 3),
        ("bump", b"8:1", b"8:1"),
        ("tag", b"7:2", b"7:2"),
        ("renew", 1, True),
        ("release", 0, False),
    ],
)
def test_answers(name, reply, expected):
    """Each reply of a script becomes the value that the programs know."""
    assert answer(BY_NAME[name], reply) == expected


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("control", [5]), ("control", None), ("lease", []), ("lease", [1, 5, b"7:1"]), ("lease", [4, 5, b"7:1", 7]),
        ("store", [1, 5]), ("store", 1), ("trim", b"OK"), ("heal", None), ("forget", None), ("forget", b"many"),
        ("bump", None), ("tag", None),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_an_error_of_the_backend(name, reply):
    """A proxy, or a script that somebody else has loaded: no such answer reaches a program."""
    with pytest.raises(BackendUnavailable, match=name):
        answer(BY_NAME[name], reply)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ResponseError("WRONGTYPE Operation against a key"), BackendUnavailable),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), OutOfMemory),
        (ResponseError("Error running script: @user_script: -OOM command not allowed"), OutOfMemory),
        (ReadOnlyError("You can't write against a read only replica."), Unfit),
        (ResponseError("NOPERM this user has no permissions"), Unfit),
        (ResponseError("BUSY Redis is busy running a script."), Unfit),
        (as_error("MASTERDOWN Link with MASTER is down"), Unfit),
        (as_error("CROSSSLOT Keys in request don't hash to the same slot"), BackendUnavailable),
        (as_error("ERR the slot has MOVED "), BackendUnavailable),
    ],
)
def test_an_error_reply_is_an_error_of_the_backend(error, kind):
    """What Redis says of itself decides which."""
    with pytest.raises(BackendUnavailable) as raised:
        checked(error)
    with pytest.raises(kind):
        answer(BY_NAME["forget"], error)

    assert type(raised.value) is kind
    assert raised.value.__cause__ is error
    assert checked(b"value") == b"value"


@pytest.mark.parametrize(
    "text", ["MOVED 1 h:1", "ASK 1 h:1", "TRYAGAIN Multiple keys", "CLUSTERDOWN Hash slot"]
)
@pytest.mark.parametrize("made", [as_error, ResponseError], ids=["redis-py's", "redis-py 5's"])
def test_a_redirection_is_known_by_its_first_word(made, text):
    """Also by a redis-py that has a type for it in its cluster client alone; the message has the word."""
    with pytest.raises(Moved, match=f"^Redis answered: {text}"):
        checked(made(text))


def test_a_script_that_redis_does_not_hold_is_noticed():
    """Any of several replies may say so."""
    assert is_unknown_script([b"x", NoScriptError("No matching script")])
    assert not is_unknown_script([b"x", ResponseError("other")])
