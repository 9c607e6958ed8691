"""Findings with one right answer, written into the text: only the characters concerned change."""

import json
from dataclasses import dataclass
from typing import Any

from scaling.ds_config.check.engine import apply, read_object
from scaling.ds_config.check.reader import Document, Node
from scaling.ds_config.check.rule import Context, Edit, Finding

_PASSES = 20  # an edit can make room for the next, as a removed key does for a rename; no file needs more


@dataclass(frozen=True)
class _Span:
    """Text from `start` to `end`, and what is to stand there."""

    start: int
    end: int
    text: str


def mended(text: str, context: Context) -> tuple[str, list[Finding]]:
    """(the text with everything mended that has one right answer, the findings that were mended).

    Raises reader.SyntaxProblem where the text is no JSON object.
    """
    done: list[Finding] = []
    for _ in range(_PASSES):
        document = read_object(text)
        spans: list[_Span] = []
        taken = []
        for finding in apply(document, context):
            new = [span for edit in finding.edits for span in _spans(document, edit)]
            if new and not any(_overlap(a, b) for a in new for b in (*spans, *(s for s in new if s is not a))):
                spans += new
                taken.append(finding)
        if not taken:
            break
        for span in sorted(spans, key=lambda each: each.start, reverse=True):
            text = text[: span.start] + span.text + text[span.end :]
        done += taken
    return text, done


def _overlap(a: _Span, b: _Span) -> bool:
    return (a.start < b.end and b.start < a.end) or a == b or (a.start == b.start and a.end == a.start)


def _spans(document: Document, edit: Edit) -> list[_Span]:
    match edit.what:
        case "value":
            node = document.node(edit.path)
            return [_Span(node.start, node.end, _spelt(edit.value))] if node else []
        case "key":
            member = document.member(edit.path)
            return [_Span(member.start, member.end, _spelt(edit.value))] if member else []
        case "remove":
            return _removal(document, edit)
        case "insert":
            return _insertion(document, edit)
        case "commas":
            return [_Span(q.start, q.end, "") for q in document.quirks if q.name == "trailing comma"]


def _spelt(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _removal(document: Document, edit: Edit) -> list[_Span]:
    """A member and one comma beside it: the one after it, or, of the last, the one before."""
    parent, member = document.node(edit.path[:-1]), document.member(edit.path)
    if parent is None or member is None:
        return []
    place = parent.members.index(member)
    if place + 1 < len(parent.members):
        return [_Span(member.start, parent.members[place + 1].start, "")]
    if place:
        return [_Span(parent.members[place - 1].node.end, member.node.end, "")]
    return [_Span(parent.start + 1, parent.end - 1, "")]


def _insertion(document: Document, edit: Edit) -> list[_Span]:
    """A new member after the last, on a line of its own where that one has one."""
    parent = document.node(edit.path[:-1])
    if parent is None or not isinstance(parent.value, dict) or edit.path[-1] in parent.value:
        return []
    member = f"{_spelt(edit.path[-1])}: {_spelt(edit.value)}"
    if not parent.members:
        return [_Span(parent.start + 1, parent.end - 1, member)]
    last = parent.members[-1]
    return [_Span(last.node.end, last.node.end, f",{_before(document, last.start, parent)}{member}")]


def _before(document: Document, start: int, parent: Node) -> str:
    """The blanks before a member: its line's indent where it begins a line, else one blank."""
    line_start = document.text.rfind("\n", parent.start, start)
    blanks = document.text[line_start + 1 : start]
    if line_start < 0 or blanks.strip():
        return " "
    ending = "\r\n" if document.text[line_start - 1 : line_start] == "\r" else "\n"
    return ending + blanks
