"""What the stand-in says. Its answers tell what can be read off a function's source; its tools are
called with, and its structured output is filled from, what the question holds in backquotes.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

_SIGNATURE = re.compile(r"def (\w+)\((.*?)\)(?:\s*->.*?)?:", re.DOTALL)
_DOCSTRING = re.compile(r'"""\s*(.+?)\s*(?:"""|\n)')
_PARAMETER = re.compile(r"(?:^|,)\s*(\*{0,2}\w+)")
_LOOP = re.compile(r"^\s*(?:for|while)\b", re.MULTILINE)
_RETURN = re.compile(r"^\s*return\b", re.MULTILINE)
_QUOTED = re.compile(r"`([^`\n]+)`")
_OPENINGS = ("In short: ", "What it does: ", "The purpose: ", "")
_CLOSINGS = (
    "Read the source before you rely on the details.",
    "The source is short enough to be read along with this page.",
    "The edge cases are where the branches are.",
    "Try it in a shell with the smallest input that makes sense.",
)


def answer(messages: Sequence[Mapping[str, Any]], dice: Random) -> str:
    """A few sentences about the code in the last question, or about the question itself."""
    question = last_text(messages, "user")
    sentences = _about_code(question, dice) or [f"You asked: {question.strip()[:80]!r}."]
    if messages and messages[-1].get("role") == "tool":
        found = last_text(messages, "tool").strip().splitlines()
        sentences.append(
            f"The search came back with {len(found)} lines, the first being: {found[0] if found else 'none'}"
        )
    sentences.append(dice.choice(_CLOSINGS))
    return "\n".join(sentences)


def fill(schema: Mapping[str, Any], question: str, dice: Random) -> Any:
    """A value that fits a JSON schema: what a tool is called with, or a structured answer."""
    return _fill(schema, schema.get("$defs", {}), _subject(question), dice)


def last_text(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """The text of the last message of this role; content may be a string or a list of parts."""
    for message in reversed(messages):
        if message.get("role") == role:
            return text_of(message)
    return ""


def text_of(message: Mapping[str, Any]) -> str:
    """All text of one message."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if isinstance(part, dict))


def _about_code(source: str, dice: Random) -> list[str]:
    signature = _SIGNATURE.search(source)
    if signature is None:
        return []
    name, parameters = signature[1], _PARAMETER.findall(signature[2])
    body = source[signature.end() :]
    purpose = _DOCSTRING.search(body)
    code = body.rpartition('"""')[2]
    calls = dict.fromkeys(re.findall(r"(?<![\w.])(\w+)\(", code))
    raised = dict.fromkeys(re.findall(r"raise (\w+)", code))
    loops, returns = len(_LOOP.findall(code)), len(_RETURN.findall(code))
    sentences = [f"`{name}`. {dice.choice(_OPENINGS)}{purpose[1] if purpose else 'its author did not say.'}"]
    sentences.append(f"It takes {_listed(parameters) or 'nothing'}.")
    if calls:
        sentences.append(f"On its way it calls {_listed(list(calls)[:6])}.")
    if raised:
        sentences.append(f"It raises {_listed(list(raised))}.")
    sentences.append(f"Lines: {len(body.splitlines())}, loops: {loops}, ways to return: {returns}.")
    return sentences


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _subject(question: str) -> str:
    quoted = _QUOTED.search(question)
    if quoted is not None:
        return quoted[1]
    words = question.split()
    return words[-1].strip("?.!,:") if words else ""


def _fill(schema: Mapping[str, Any], definitions: Mapping[str, Any], subject: str, dice: Random) -> Any:
    if "$ref" in schema:
        return _fill(definitions[schema["$ref"].rpartition("/")[2]], definitions, subject, dice)
    if options := schema.get("enum"):
        return dice.choice(options)
    if alternatives := schema.get("anyOf"):
        return _fill(alternatives[0], definitions, subject, dice)
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            wanted = schema.get("required", list(properties))
            return {name: _fill(properties[name], definitions, subject, dice) for name in wanted}
        case "array":
            return [_fill(schema.get("items", {}), definitions, subject, dice)]
        case "integer":
            return dice.randint(1, 9)
        case "number":
            return dice.randint(1, 9) / 2
        case "boolean":
            return dice.random() < 0.5
        case _:
            return subject
