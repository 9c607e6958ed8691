"""What is not JSON in the text, though some readers take it."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from scaling.ds_config.check.outcome import ACCEPTS, AT_START, CHANGES, ERROR, WARNING
from scaling.ds_config.check.reader import Quirk
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import View


def _quirks(name: str, hit: Callable[[View, Quirk], Hit]) -> Callable[[View], Iterator[Hit]]:
    def find(view: View) -> Iterator[Hit]:
        for quirk in view.document.quirks:
            if quirk.name == name:
                yield hit(view, quirk)

    return find


def _read_by_json(view: View, hit: Hit, does: str) -> Hit:
    """transformers and accelerate read with json and hand DeepSpeed a dict."""
    return hit if view.context.trainer == "none" else replace(hit, outcome=CHANGES, does=does)


def _repeated(view: View, quirk: Quirk) -> Hit:
    says = f"{shown(quirk.path[-1])} stands twice in one object"
    hit = Hit(path=quirk.path, says=says, mend="one of the two", offset=quirk.start)
    return _read_by_json(view, hit, "transformers and accelerate read with json, which keeps the last")


def _not_a_number(view: View, quirk: Quirk) -> Hit:
    text = view.document.text[quirk.start : quirk.end]
    hit = Hit(path=quirk.path, says=f"{text} is no JSON number", mend="a finite number", offset=quirk.start)
    return _read_by_json(view, hit, "transformers and accelerate read with json, which takes it for a number")


def _beyond_json(view: View) -> Iterator[Hit]:
    trainer = view.context.trainer != "none"
    for name, mend in (("comment", "the same without comments"), ("trailing comma", "the same without it")):
        found = [quirk for quirk in view.document.quirks if quirk.name == name]
        if found:
            edits = (Edit(what="commas"),) if name == "trailing comma" else ()
            yield Hit(
                path=found[0].path,
                offset=found[0].start,
                mend=mend,
                edits=edits,
                says=f"a {name}, which JSON does not have" + (f" ({len(found)} in all)" if len(found) > 1 else ""),
                severity=ERROR if trainer else WARNING,
                outcome=AT_START if trainer else ACCEPTS,
                does="transformers and accelerate read with json, which refuses it" if trainer else "",
            )


RULES = (
    Rule(
        id="SC012", title="a key that stands twice in one object", outcome=AT_START,
        does="ValueError: Duplicate keys in DeepSpeed config; json, in other programs, keeps the last",
        find=_quirks("repeated key", _repeated),
        source="runtime/config_utils.py:dict_raise_error_on_duplicate_keys",
        mend="one of the two",
    ),
    Rule(
        id="SC026", title="comments or trailing commas", outcome=ACCEPTS, severity=WARNING,
        does="DeepSpeed reads the file as Hjson, which allows them; json, in other programs, does not",
        find=_beyond_json, source="runtime/config.py:DeepSpeedConfig.__init__",
        mend="plain JSON",
    ),
    Rule(
        id="SC027", title="NaN, Infinity, or a number too large for a float", outcome=AT_START,
        does="Hjson takes it for a string that ends with its line, or fails",
        find=_quirks("not a number", _not_a_number),
        source="runtime/config.py:DeepSpeedConfig.__init__",
        mend="a finite number",
    ),
)  # fmt: skip
