"""A recipe as YAML: read strictly, with every problem reported at once by its line, and written back."""

import re
import reprlib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from scaling.errors import FileProblems, InputError, did_you_mean
from scaling.files import read_text
from scaling.recipe.fields import RANDOM_WEIGHTS, Data, Growth, Guards, Model, Optimizer, Recipe, Schedule, changed


def load(path: str | Path) -> Recipe:
    """The recipe in the YAML file `path`, its corpus files and weights made absolute.

    Raises InputError or FileProblems naming every wrong key and its line.
    """
    recipe = parse(read_text(path, "recipe"), str(path))
    base = Path(path).absolute().parent
    corpus = [name if name.startswith("embedded:") else str(base / name) for name in recipe.data.corpus]
    changes: dict[str, Any] = {"data": {**recipe.data.model_dump(), "corpus": corpus}}
    if recipe.initial_weights not in (None, RANDOM_WEIGHTS):
        changes["initial_weights"] = str(base / str(recipe.initial_weights))
    return changed(recipe, changes)


def parse(text: str, source: str) -> Recipe:
    """The recipe in YAML `text`; `source` names it in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise FileProblems(source + line, [f"not valid YAML: {getattr(error, 'problem', None) or error}"]) from None
    except (
        ValueError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:  # PyYAML's own, for a date or number that is none
        raise FileProblems(source, [f"not valid YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise FileProblems(source, ["not a recipe: expected `key: value` lines"], hint="see recipes/gpt_demo.yaml")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = _lines_by_path(node)
        entries = [entry for entry in error.errors() if _is_about(entry, data)]
        problems = sorted({_problem(entry, lines) for entry in entries}, key=_line_number)
        raise FileProblems(source, problems) from None


def dump(recipe: Recipe) -> str:
    """`recipe` as YAML that `parse` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json", exclude_none=True), Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which keys are text and stand once, 1e-3 is a number (YAML 1.1 makes it text), and no node is an
    alias: a file of a few hundred bytes could stand for millions of values, or hold itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what _Loader reads: text that looks like a number to it is quoted."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*\.?[0-9]*[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _lines_by_path(node: yaml.Node | None, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """Where each key stands, counting lines from 1: {("optimizer", "lr"): 12}."""
    lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            lines[here] = key.start_mark.line + 1
            lines |= _lines_by_path(value, here)
    return lines


def _is_about(entry: Any, data: dict[str, Any]) -> bool:
    """Whether an error belongs to the branch of `model`, a name or a mapping, that the user took.

    pydantic tries both and marks each in the path: ("model", "str") and ("model", "Model", "num_layers").
    """
    path = entry["loc"]
    if path[:1] != ("model",) or len(path) < 2:
        return True
    return bool(path[1] == "str") != isinstance(data["model"], dict)


def _line_number(problem: str) -> int:
    match = re.match(r"line (\d+):", problem)
    return int(match[1]) if match else 0


def _problem(entry: Any, lines: dict[tuple[Any, ...], int]) -> str:
    """One pydantic error as `line 12: optimizer.lr: ...` with what would work."""
    path = entry["loc"]
    known = _keys_at(path[:-1])
    if path[0:1] in (("model",), ("optimizer",), ("schedule",)):
        path = (path[0], *path[2:])  # without the branch
    if entry["type"].startswith("union_tag"):
        path = (*path, "name")  # which decides the branch
    name = ".".join(str(part) for part in path)
    line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
    cause = entry.get("ctx", {}).get("error")
    if entry["type"] == "extra_forbidden":
        text = f"{name}: unknown key; {did_you_mean(str(path[-1]), known)}"
    elif entry["type"] == "union_tag_invalid":
        text = f"{name}: {entry['ctx']['tag']!r} is wrong: Input should be one of {entry['ctx']['expected_tags']}"
    elif entry["type"] in ("missing", "union_tag_not_found"):
        text = f"{name}: required key is missing"
    elif isinstance(cause, InputError):
        text = f"{cause.message}; {cause.hint}" if cause.hint else cause.message
    else:
        text = f"{name}: {reprlib.repr(entry['input'])} is wrong: {entry['msg']}"
    return f"line {line}: {text}" if line else text


def _by_name(union: Any) -> dict[str, type[BaseModel]]:
    """The branches of a union that `name` decides."""
    return {get_args(model.model_fields["name"].annotation)[0]: model for model in get_args(get_args(union)[0])}


def _keys_at(path: tuple[Any, ...]) -> list[str]:
    """The keys that a recipe may have under `path`, branches included."""
    where: dict[tuple[Any, ...], type[BaseModel]] = {
        (): Recipe, ("model",): Model, ("data",): Data, ("data", "curriculum"): Growth, ("batch_ramp",): Growth,
        ("guards",): Guards,
        **{("optimizer", name): model for name, model in _by_name(Optimizer).items()},
        **{("schedule", name): model for name, model in _by_name(Schedule).items()},
    }  # fmt: skip
    model = where.get(path) or where.get(path[:1])
    return list(model.model_fields) if model else []
