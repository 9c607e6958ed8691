"""What a key's value may be, and what DeepSpeed's pydantic models make of another one.

The models read laxly: "true", 1 and 1.0 are all true, "2" is a 2, and 5e8 a whole number. `read_as` repeats those
rules without pydantic's models at hand; a test holds it to them with any JSON value at every key.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

Form = Literal["boolean", "integer", "number", "text", "choice", "list", "object", "anything", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The values that a key takes."""

    form: Form
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    choices: tuple[Any, ...] = ()
    of: "Kind | None" = None
    nullable: bool = False
    words: tuple[str, ...] = ()  # the only texts that are taken beside the form: "auto"
    strict: bool = False  # true is no 1 here, and "2.0" no 2
    alone: bool = False  # a list's only element may stand without the list

    @property
    def described(self) -> str:
        """In words, for "... is not {described}"."""
        bounds = [
            f"{words} {_bound(bound)}"
            for words, bound in (
                ("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below),
            )
            if math.isfinite(bound)
        ]  # fmt: skip
        noun = {
            "boolean": "true or false", "integer": "a whole number", "number": "a number", "text": "a string",
            "choice": "one of " + ", ".join(map(_quoted, self.choices)), "list": "a list",
            "object": "an object", "anything": "a value", "nothing": "a value that JSON can spell",
        }[self.form]  # fmt: skip
        if self.form == "list" and self.of:
            noun += " of which each is " + self.of.described
        others = [f'"{word}"' for word in self.words] + (["null"] if self.nullable else [])
        if self.form == "text" and bounds:
            bounds = ["that is not empty"]
        return " or ".join([" and ".join([f"{noun} {bounds[0]}", *bounds[1:]]) if bounds else noun, *others])

    def holds(self, value: Any) -> bool:
        """Is `value` of this kind as it stands, with nothing to convert?"""
        if value is None:
            return self.nullable or self.form == "anything"
        if isinstance(value, str) and value in self.words:
            return True
        match self.form:
            case "boolean":
                return isinstance(value, bool)
            case "integer":
                whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
                return whole and not isinstance(value, bool) and self._in_range(value)
            case "number":
                return isinstance(value, int | float) and not isinstance(value, bool) and self._in_range(value)
            case "text":
                return isinstance(value, str) and len(value) >= self.least
            case "choice":
                return any(type(value) is type(choice) and value == choice for choice in self.choices)
            case "list":
                if self.alone and isinstance(value, str):
                    return True
                return isinstance(value, list) and (self.of is None or all(map(self.of.holds, value)))
            case "object":
                return isinstance(value, dict)
            case "anything":
                return True
        return False

    def _in_range(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below


def shown(value: Any) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bound(bound: float) -> str:
    return f"{bound:g}" if abs(bound) < 1e5 else f"{int(bound):,}"


def _quoted(choice: Any) -> str:
    return f'"{choice}"' if isinstance(choice, str) else str(choice)


BOOLEAN = Kind(form="boolean")
INTEGER = Kind(form="integer")
COUNT = Kind(form="integer", least=0)
POSITIVE = Kind(form="integer", least=1)
NUMBER = Kind(form="number")
FRACTION = Kind(form="number", least=0, most=1)
TEXT = Kind(form="text")
NAME = Kind(form="text", least=1)  # of a text, `least` counts letters
LIST = Kind(form="list")
TEXTS = Kind(form="list", of=TEXT)
OBJECT = Kind(form="object")
ANYTHING = Kind(form="anything", nullable=True)
NOTHING = Kind(form="nothing")


def choice(*choices: Any) -> Kind:
    return Kind(form="choice", choices=choices)


def or_null(kind: Kind) -> Kind:
    return replace(kind, nullable=True)


def or_word(kind: Kind, *words: str) -> Kind:
    return replace(kind, words=words)


class Refused(ValueError):
    """DeepSpeed's model does not take the value."""


def read_as(kind: Kind, value: Any) -> Any:
    """What a pydantic model makes of `value` in its lax mode. Raises Refused."""
    if value is None and kind.nullable:
        return None
    if isinstance(value, str) and kind.words:
        if value in kind.words:
            return value
        raise Refused
    if isinstance(value, bool) and kind.strict:
        raise Refused
    read = _READERS[kind.form](kind, value)
    if kind.form in ("integer", "number") and not kind._in_range(read):
        raise Refused
    return read


# Taken from pydantic-core's lax mode (2.x, src/input/shared.rs); letter case does not matter, blanks do.
_TRUE = {"1", "on", "t", "true", "y", "yes"}
_FALSE = {"0", "off", "f", "false", "n", "no"}
_WHOLE = re.compile(r"[+-]?\d+(?:_\d+)*(?:\.0+)?", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_LARGEST_WHOLE_FLOAT = 2.0**63  # a float beyond an i64 is not taken for a whole number


def _boolean(kind: Kind, value: Any) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise Refused


def _integer(kind: Kind, value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer() and -_LARGEST_WHOLE_FLOAT <= value < _LARGEST_WHOLE_FLOAT:
        return int(value)
    if isinstance(value, str) and len(value) < 4300 and _WHOLE.fullmatch(value.strip()):
        if kind.strict and "." in value:
            raise Refused
        return int(value.strip().partition(".")[0])
    raise Refused


def _number(kind: Kind, value: Any) -> float:
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise Refused from None
    if isinstance(value, str):
        digits = value.strip()
        inside = not (digits.startswith("_") or digits.endswith("_") or "__" in digits)
        if inside and _DECIMAL.fullmatch(digits.replace("_", "")):
            return float(digits.replace("_", ""))
    raise Refused


def _exactly(form: type) -> Callable[[Kind, Any], Any]:
    def read(kind: Kind, value: Any) -> Any:
        if not isinstance(value, form):
            raise Refused
        return value

    return read


def _choice(kind: Kind, value: Any) -> Any:
    if all(isinstance(choice, int) for choice in kind.choices):  # an int enum reads as an int does
        value = _integer(kind, value)
    if isinstance(value, int | str) and value in kind.choices:
        return value
    raise Refused


def _list(kind: Kind, value: Any) -> list[Any]:
    if kind.alone and isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise Refused
    return value if kind.of is None else [read_as(kind.of, each) for each in value]


def _nothing(kind: Kind, value: Any) -> Any:
    raise Refused


_READERS: dict[Form, Callable[[Kind, Any], Any]] = {
    "boolean": _boolean, "integer": _integer, "number": _number, "text": _exactly(str), "choice": _choice,
    "list": _list, "object": _exactly(dict), "anything": lambda kind, value: value, "nothing": _nothing,
}  # fmt: skip
