"""JSON read with the place of every key and value, so that a finding can point and a mend can cut.

Beyond JSON it takes what people put into ds_config files and some readers accept: comments, trailing commas, repeated
keys, NaN and Infinity, a byte-order mark. Each is kept as a `Quirk`, for a rule to judge. Anything else that is not
JSON raises SyntaxProblem.
"""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
QuirkName = Literal["comment", "trailing comma", "repeated key", "not a number"]

_DEEPEST = 50  # levels; the deepest key that DeepSpeed reads is at 6

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_COMMENT = re.compile(r"#[^\n]*|//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?P<fraction>\.\d+)?(?P<exponent>[eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"-?[A-Za-z_]\w*")
_WORDS = {
    "true": True, "false": False, "null": None,
    "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf,
}  # fmt: skip
_LONGEST_INTEGER = 400  # digits; Python itself refuses 4300


class SyntaxProblem(Exception):
    """Not JSON, at `offset`; `mend` says what to write where that is known."""

    def __init__(self, offset: int, problem: str, mend: str = "") -> None:
        super().__init__(problem)
        self.offset = offset
        self.problem = problem
        self.mend = mend


@dataclass(frozen=True, slots=True)
class Member:
    """`key: value` of an object: where the key's text stands, and its value."""

    key: str
    start: int
    end: int
    node: "Node"


@dataclass(frozen=True, slots=True)
class Node:
    """A value, where its text stands, and what is in it: the members of an object or the elements of an array."""

    value: Any  # plain Python; of a repeated key, the last
    start: int
    end: int
    members: tuple[Member, ...] = ()
    elements: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True)
class Quirk:
    """Something beyond JSON, and the path of what it stands at."""

    name: QuirkName
    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A file's text, what it says, and where."""

    text: str
    root: Node
    quirks: tuple[Quirk, ...] = ()

    def node(self, path: Path) -> Node | None:
        """The value at `path`, of a repeated key the last; None where there is none."""
        return self._nodes.get(path)

    def member(self, path: Path) -> Member | None:
        """The last `key: value` that `path` names."""
        return self._members.get(path)

    def offset(self, path: Path) -> int:
        """Where `path` begins: the key of an object's member, else the value, else the nearest thing above it."""
        while path:
            member, node = self.member(path), self.node(path)
            if member:
                return member.start
            if node:
                return node.start
            path = path[:-1]
        return self.root.start

    def place(self, offset: int) -> tuple[int, int]:
        """(line, column) of `offset`, both from 1, in characters."""
        return place(self._starts, offset)

    @cached_property
    def _nodes(self) -> dict[Path, Node]:
        found: dict[Path, Node] = {}
        waiting: list[tuple[Path, Node]] = [((), self.root)]
        while waiting:
            path, node = waiting.pop()
            found[path] = node
            last = {member.key: member.node for member in node.members}
            waiting += [((*path, key), inner) for key, inner in last.items()]
            waiting += [((*path, index), inner) for index, inner in enumerate(node.elements)]
        return found

    @cached_property
    def _members(self) -> dict[Path, Member]:
        return {(*path, member.key): member for path, node in self._nodes.items() for member in node.members}

    @cached_property
    def _starts(self) -> list[int]:
        return line_starts(self.text)


def line_starts(text: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer("\n", text))]


def place(starts: list[int], offset: int) -> tuple[int, int]:
    line = bisect_right(starts, offset)
    return line, offset - starts[line - 1] + 1


def read(text: str) -> Document:
    """Raises SyntaxProblem."""
    reader = _Reader(text)
    root = reader.document()
    return Document(text, root, tuple(sorted(reader.quirks, key=lambda quirk: quirk.start)))


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 1 if text.startswith("\ufeff") else 0
        self.quirks: list[Quirk] = []
        self.path: list[str | int] = []

    def document(self) -> Node:
        self.blank()
        if self.at == len(self.text):
            raise SyntaxProblem(self.at, "the file is empty", "{}")
        root = self.value()
        self.blank()
        if self.at < len(self.text):
            raise SyntaxProblem(self.at, "something stands after the end of the document")
        return root

    def blank(self) -> None:
        """Passes white space and comments."""
        end = _BLANK.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches the empty string
        if end > self.at:
            for comment in _COMMENT.finditer(self.text, self.at, end):
                self.quirk("comment", comment.start(), comment.end())
        self.at = end

    def quirk(self, name: QuirkName, start: int, end: int) -> None:
        self.quirks.append(Quirk(name, tuple(self.path), start, end))

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def value(self) -> Node:
        if len(self.path) > _DEEPEST:
            raise SyntaxProblem(self.at, f"nested deeper than {_DEEPEST} levels")
        start = self.at
        match self.peek():
            case "{":
                return self.object()
            case "[":
                return self.array()
            case '"':
                return Node(self.string(), start, self.at)
            case "'":
                raise SyntaxProblem(start, "a string in single quotes", 'double quotes: "..."')
        number = _NUMBER.match(self.text, self.at)
        if number:
            return self.number(number)
        word = _WORD.match(self.text, self.at)
        if word and word[0] in _WORDS:
            self.at = word.end()
            value = _WORDS[word[0]]
            if isinstance(value, float):
                self.quirk("not a number", start, self.at)
            return Node(value, start, self.at)
        if word:
            mend = {"true": "true", "false": "false", "none": "null", "nan": "a number"}.get(word[0].lower(), "")
            raise SyntaxProblem(start, f"{word[0]} is no JSON value", mend or f'"{word[0]}" in double quotes')
        if not self.peek():
            raise SyntaxProblem(start, "the file ends in the middle of a value")
        raise SyntaxProblem(start, f"a value was expected, not {self.peek()!r}")

    def number(self, match: re.Match[str]) -> Node:
        start, self.at = self.at, match.end()
        whole = match["fraction"] is None and match["exponent"] is None
        if whole and len(match[0]) > _LONGEST_INTEGER:
            raise SyntaxProblem(start, f"a number of more than {_LONGEST_INTEGER} digits")
        value = int(match[0]) if whole else float(match[0])
        if isinstance(value, float) and math.isinf(value):  # 1e400
            self.quirk("not a number", start, self.at)
        return Node(value, start, self.at)

    def string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if not match:
            raise SyntaxProblem(self.at, "a string that is not closed on its line, or has a wrong escape")
        self.at = match.end()
        text = match[0]
        return text[1:-1] if "\\" not in text else json.loads(text)

    def object(self) -> Node:
        start, members, value = self.at, [], {}
        for _ in self.items("}"):
            key_start = self.at
            if self.peek() != '"':
                raise SyntaxProblem(self.at, "a key in double quotes was expected", '"key": value')
            key = self.string()
            key_end = self.at
            self.path.append(key)
            self.blank()
            if self.peek() != ":":
                raise SyntaxProblem(self.at, f"no ':' after the key {json.dumps(key)}")
            self.at += 1
            self.blank()
            if key in value:
                self.quirk("repeated key", key_start, key_end)
            node = self.value()
            self.path.pop()
            members.append(Member(key, key_start, key_end, node))
            value[key] = node.value
        return Node(value, start, self.at, members=tuple(members))

    def array(self) -> Node:
        start, elements = self.at, []
        for index in self.items("]"):
            self.path.append(index)
            elements.append(self.value())
            self.path.pop()
        return Node([element.value for element in elements], start, self.at, elements=tuple(elements))

    def items(self, close: str) -> Iterator[int]:
        """Stands at each item in turn, past brackets, commas and blanks; leaves after `close`."""
        self.at += 1
        index, comma = 0, -1
        while True:
            self.blank()
            if self.peek() == close:
                if comma >= 0:
                    self.quirk("trailing comma", comma, comma + 1)
                self.at += 1
                return
            if not self.peek():
                raise SyntaxProblem(self.at, f"the file ends before {close!r}")
            if index and comma < 0:
                raise SyntaxProblem(self.at, f"a ',' or {close!r} was expected, not {self.peek()!r}")
            yield index
            index += 1
            self.blank()
            comma = self.at if self.peek() == "," else -1
            if comma >= 0:
                self.at += 1


def spelt(path: Path) -> str:
    """`zero_optimization.offload_param.device`, `betas[1]`; a key that has other characters stands in quotes."""
    words = ""
    for name in path:
        if isinstance(name, int):
            words += f"[{name}]"
        else:
            plain = re.fullmatch(r"[\w-]+", name, re.ASCII)
            words += ("." if words else "") + (name if plain else json.dumps(name))
    return words
