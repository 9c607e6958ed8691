"""Rows that a user adds or corrects, from a YAML file, read strictly."""

import math
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.errors import FileProblems, did_you_mean
from scaling.files import read_text
from scaling.hardware.accelerator import FIELDS, Accelerator, Field
from scaling.hardware.table import ACCELERATORS, ALIASES, ASSUMED_MATMUL_FRACTION, UNMEASURED

USER_ROWS_VARIABLE = "SCALE_HARDWARE"


def key_of(name: str) -> str:
    """A name as people write it, as the table does: " RTX 4090 " -> "rtx-4090"."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    return ALIASES.get(key, key)


def known_accelerators(path: str | Path | None = None) -> dict[str, Accelerator]:
    """The shipped rows, and over them those of the hardware file `path`, else of the one that SCALE_HARDWARE names."""
    if path is not None:
        return ACCELERATORS | load_user_rows(path)
    if named := os.environ.get(USER_ROWS_VARIABLE):
        return ACCELERATORS | load_user_rows(named, USER_ROWS_VARIABLE)
    return ACCELERATORS


_EXAMPLE = "write the name of an accelerator, and its figures indented below: `h100-96gb:`, `  like: h100`, ..."
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_BY_KEY = {field.key: field for field in FIELDS}
_LARGEST = 1e6  # of any figure in its key's unit: beyond it the unit is wrong
_LONGEST_TEXT = 500  # characters


def load_user_rows(path: str | Path, field: str = "hardware") -> dict[str, Accelerator]:
    """The rows of a YAML file: new accelerators, and other figures for known ones.

        h100:                         # the shipped row, but for what stands here
          matmul_16bit_tflops: 650
          source: our nodes, capped at 500 W
        h100-96gb:
          like: h100                  # or else every required key of FIELDS
          memory_gib: 96

    `field` names the file in errors: InputError where it cannot be read, FileProblems with all that is wrong in it.
    """
    import yaml  # 10 ms, which a command without a hardware file need not pay

    text = read_text(path, field)
    try:
        document: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # the last three are PyYAML's own
        mark = getattr(error, "problem_mark", None)
        problem = f"not valid YAML: {getattr(error, 'problem', None) or error}"
        raise FileProblems(f"{path}:{mark.line + 1}" if mark else str(path), [problem]) from None
    if document is None or document.id != "mapping":
        raise FileProblems(str(path), ["not a hardware file"], hint=_EXAMPLE)

    rows: dict[str, Accelerator] = {}
    problems: list[str] = []
    for key, entries in document.value:
        name = key_of(_word(key))
        at = f"line {key.start_mark.line + 1}: {name}"
        if key.id != "scalar" or not _NAME.fullmatch(name):
            problems.append(f"{at}: is not a name of letters, digits, - and .")
        elif name == "cpu":
            problems.append(f"{at}: is measured on each machine and cannot be written down")
        elif name in rows:
            problems.append(f"{at}: stands here twice")
        elif entries.id != "mapping":
            problems.append(f"{at}: has no figures; {_EXAMPLE}")
        else:
            row, wrong = _user_row(name, at, entries.value, ACCELERATORS | rows, str(path))
            problems += wrong
            if row:
                rows[name] = row
    if problems:
        raise FileProblems(str(path), problems)
    return rows


def _user_row(
    name: str, at: str, entries: list[Any], known: Mapping[str, Accelerator], path: str
) -> tuple[Accelerator | None, list[str]]:
    """One row of a hardware file from its (key, value) nodes, and what is wrong with it."""
    given: dict[str, Any] = {}
    problems = []
    like = name if name in known else ""
    for key, value in entries:
        word = _word(key)
        try:
            if word in given:
                raise ValueError("stands here twice")
            if word == "like":
                like = given[word] = key_of(_user_value(value, "text"))
                if like not in known:
                    raise ValueError(f"{_shown(value)} is not a known accelerator; {did_you_mean(like, known)}")
            elif word in _BY_KEY:
                given[word] = _user_value(value, _BY_KEY[word].kind)
            else:
                raise ValueError(f"unknown key; {did_you_mean(word, [*_BY_KEY, 'like'])}")
        except ValueError as error:
            given.setdefault(word, None)
            problems.append(f"line {key.start_mark.line + 1}: {name}.{word}: {error}")
    base = known.get(like)
    missing = [field.key for field in FIELDS if field.required and field.key not in given]
    if missing and not like:
        problems.append(f"{at}: needs {', '.join(missing)}; or `like:` a known accelerator, and what differs")
    if problems:
        return base, problems

    figures: dict[str, Any] = dict(vars(base)) if base else {"peak_flops_fp32": None}
    if "memory_gib" in given:
        figures["reported_memory_bytes"] = None  # the base's is of another size
    if given.keys() & {"network_gb_per_s", "gpus_per_node"}:
        figures["system"] = ""  # and its node another one
    if base and base.name != name:
        figures["note"] = ""
    for field in FIELDS:
        if field.key in given:
            figures[field.attribute] = _in_base_units(given[field.key], field)
    measured = "matmul_16bit_tflops" in given or (base is not None and base.matmul_is_measured)
    if not measured:
        figures["matmul_flops"] = ASSUMED_MATMUL_FRACTION * figures["peak_flops_16bit"]
    source = given.get("source", path)
    if base:
        source += f"; else as {base.name}: {base.source.removesuffix(UNMEASURED)}"
    figures |= {"name": name, "matmul_is_measured": measured, "source": source + ("" if measured else UNMEASURED)}
    row = Accelerator(**figures)
    for rate, peak, of in (
        (row.matmul_flops, row.peak_flops_16bit, "16bit"),
        (row.matmul_flops_fp8, row.peak_flops_fp8, "fp8"),
    ):
        if rate and peak and rate > peak:
            problems.append(f"{at}: matmul_{of}_tflops {rate / 1e12:g} is above peak_{of}_tflops {peak / 1e12:g}")
    return row, problems


def _word(node: Any) -> str:
    """A YAML node that should be a name or a key."""
    text = str(node.value) if node.id == "scalar" else ""
    return text if text.isprintable() and 0 < len(text) <= 80 else _shown(node)


def _shown(node: Any) -> str:
    """A YAML node as an error prints it."""
    return reprlib.repr(node.value) if node.id == "scalar" else f"a {node.id}"


def _user_value(node: Any, kind: str) -> Any:
    """What a YAML node says, as a figure of this kind. The ValueError says what would do."""
    text = str(node.value) if node.id == "scalar" else ""
    plain = node.id == "scalar" and node.style is None  # "80" in quotes is text
    shown = _shown(node) + (" in quotes" if text and not plain else "")
    match kind:
        case "text":
            if text.strip() and text.isprintable() and len(text) <= _LONGEST_TEXT:
                return text.strip()
            raise ValueError(f"{shown} is not one line of text")
        case "flag":
            if plain and text in ("true", "false"):
                return text == "true"
            raise ValueError(f"{shown} is neither true nor false")
        case "count":
            if plain and re.fullmatch(r"0*[1-9][0-9]{0,4}", text):
                return int(text)
            raise ValueError(f"{shown} is not a count from 1 to 99999")
    try:
        number = float(text) if plain else math.nan
    except ValueError:
        number = math.nan
    if not number > 0:
        raise ValueError(f"{shown} is not a number above zero")
    if number > _LARGEST:
        raise ValueError(f"{shown} is too large for the unit that ends the key")
    return number


def _in_base_units(value: Any, field: Field) -> Any:
    if field.kind == "bytes":
        return round(value * field.scale)
    return value * field.scale if field.kind == "number" else value
