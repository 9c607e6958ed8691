"""Models of one's own: a transformers directory, a Python file, or entries that an installed package brings."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from scaling.errors import InputError, did_you_mean
from scaling.files import read_text
from scaling.registry.config_file import shape_of
from scaling.registry.entry import Entry
from scaling.shape import Shape

DIRECTORY = "hf:"
ENTRY_POINTS = "scaling.models"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # a pickle is not read: scaling/models/weights.py
_UNKNOWN = "not known: ask whoever made it"


def is_of_ones_own(model: str) -> bool:
    return model.startswith(DIRECTORY) or _function_of(model) is not None


def absolute(model: str) -> str:
    """`model` so that it means the same from another folder; a name on the hub stays."""
    if model.startswith(DIRECTORY) and (path := Path(model.removeprefix(DIRECTORY))).is_dir():
        return f"{DIRECTORY}{path.absolute()}"
    if found := _function_of(model):
        return f"{found[0].absolute()}:{found[1]}"
    return model


def own(model: str, field: str = "model") -> Entry:
    """The entry that "hf:PATH", "hf:owner/name" or "my_model.py:function" means.

    Nothing is downloaded: a name on the hub stands for what transformers' cache has of it. A function takes nothing and
    returns a Shape, what a config.json would hold, or a transformers configuration; the file is run. Raises
    InputError.
    """
    if found := _function_of(model):
        return _of_function(*found, model, field)
    name = model.removeprefix(DIRECTORY)
    folder = _folder(name, field)
    path = folder / "config.json"
    try:
        config = json.loads(read_text(path, field))
    except (ValueError, RecursionError) as error:
        raise InputError(field, str(path), f"is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(field, str(path), "holds no mapping")
    has_weights = any((folder / file).is_file() for file in _WEIGHTS)
    return Entry(
        shape=shape_of(config, _name(name), field), source=str(path), licence=_UNKNOWN,
        weights=folder.absolute() if has_weights else None,
    )  # fmt: skip


def installed(known: Iterable[str] = ()) -> dict[str, Entry]:
    """The entries that installed packages bring, by name.

    An entry point of the group "scaling.models" is an Entry, or several in a list or tuple. Raises InputError where one
    is something else, or has a name of `known` or of another.
    """
    found: dict[str, Entry] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            value = point.load()
        except Exception as error:
            raise InputError(f"entry point {point.name}", point.value, f"cannot be loaded: {error!r}") from None
        for entry in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(entry, Entry):
                problem = f"is a {type(entry).__name__}"
                hint = "an Entry of scaling.registry, or a list of them"
                raise InputError(f"entry point {point.name}", point.value, problem, hint=hint)
            if (name := entry.shape.name) in (*known, *found):
                raise InputError(f"entry point {point.name}", name, "is a model that there is already")
            found[name] = entry
    return found


def _folder(name: str, field: str) -> Path:
    """The directory `name`, or transformers' cached copy of the repository of that name."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).exists():
        raise InputError(field, f"{DIRECTORY}{name}", "is not a transformers directory: it has no config.json")
    # huggingface_hub 1.x, constants.py and file_download.py: models--OWNER--NAME/snapshots/COMMIT, refs/main names one.
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    copy = hub / f"models--{name.replace('/', '--')}"
    try:
        snapshot = copy / "snapshots" / (copy / "refs" / "main").read_text().strip()
    except OSError:
        snapshot = None
    if snapshot is None or not (snapshot / "config.json").is_file():
        problem = f"is neither a transformers directory nor in the cache at {hub}"
        raise InputError(field, f"{DIRECTORY}{name}", problem, hint=f"`hf download {name}` fetches it; needs a network")
    return snapshot


def _function_of(model: str) -> tuple[Path, str] | None:
    path, colon, function = model.rpartition(":")
    return (Path(path), function) if colon and path.endswith(".py") and function.isidentifier() else None


def _of_function(path: Path, function: str, model: str, field: str) -> Entry:
    if not path.is_file():
        raise InputError(field, model, f"names no file: there is no {path}")
    with _as_a_script(path), redirect_stdout(sys.stderr):  # stdout is for the answer, which may be JSON
        try:
            module = _imported(path)
        except (Exception, SystemExit) as error:  # it is the user's code: whatever it raises is theirs to read
            raise InputError(field, model, f"cannot be imported: {error!r}") from error
        if not callable(build := getattr(module, function, None)):
            own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            raise InputError(field, model, f"has no function {function}", hint=did_you_mean(function, own))
        try:
            value = build()
            value = value.to_dict() if hasattr(value, "to_dict") else value
        except (Exception, SystemExit) as error:
            raise InputError(field, model, f"raised {error!r}") from error
    return Entry(shape=_shape(value, _name(f"{path.stem}-{function}"), model, field), source=model, licence=_UNKNOWN)


@contextmanager
def _as_a_script(path: Path) -> Iterator[None]:
    """Modules beside the file are found, as where Python runs it."""
    before = sys.path[:]
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        yield
    finally:
        sys.path[:] = before


def _imported(path: Path) -> ModuleType:
    """The file as a module, under a name that stands in nobody's way; dataclasses look their module up by it."""
    spec = spec_from_file_location(f"_scale_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # for the name ends in .py
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shape(value: Any, name: str, model: str, field: str) -> Shape:
    """The shape that a user's function means by `value`."""
    if isinstance(value, Shape):
        value.require_buildable()
        return value
    if isinstance(value, Mapping):
        return shape_of(value, name, field)
    problem = f"returned a {type(value).__name__}"
    if hasattr(value, "state_dict"):
        problem += ", whose weights would not be taken"
    hint = "a scaling.shape.Shape, a dict like a config.json, or a transformers configuration; weights are hf:PATH"
    raise InputError(field, model, problem, hint=hint)


def _name(path: str) -> str:
    """A name for a recipe and a folder: the last part of a path, without what these do not take."""
    last = Path(path).resolve().name if Path(path).exists() else path.rsplit("/", 1)[-1]
    plain = "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "._-" else "-" for letter in last)
    return plain.strip("._-") or "model"
