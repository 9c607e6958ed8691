"""Predicted against measured: a run's plan.json beside its measured.json."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from scaling.errors import InputError
from scaling.files import read_text
from scaling.units import format_bytes, format_count


def comparison(run: Path) -> dict[str, Any]:
    """{"rows": [{"quantity", "predicted", "measured", "ratio", "how"}]} of the run in `run`.

    A run without a plan was predicted by train.py itself, for the machine that it ran on; `predicted` is None where
    that was not possible. Raises InputError where nothing was measured.
    """
    measured = _object(run / "measured.json", "run")
    plan = _object(run / "plan.json", "run") if (run / "plan.json").is_file() else None
    try:
        return {"rows": [_row(name, entry, plan) for name, entry in measured.items()]}
    except (KeyError, TypeError) as error:
        problem = f"has a measured.json or plan.json of another version ({type(error).__name__}: {error})"
        raise InputError("run", str(run), problem, hint="train and plan it with this version") from None


def _row(name: str, entry: dict[str, Any], plan: dict[str, Any] | None) -> dict[str, Any]:
    predicted = plan[entry["predicted_in"]][name] if plan else entry.get("predicted")
    ratio = predicted / entry["value"] if predicted and entry["value"] else None
    return {
        "quantity": name,
        "predicted": predicted,
        "measured": entry["value"],
        "ratio": ratio,
        "how": entry["how"],
    }


def table(found: dict[str, Any]) -> Table:
    """`found` for people."""
    shown = Table(title="predicted against measured", title_justify="left", caption_justify="left", box=box.SIMPLE)
    for column in ("", "predicted", "measured", "ratio"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for cells in shown_rows(found):
        shown.add_row(*cells)
    shown.caption = "\n".join(f"{_name(row)}: {row['how']}" for row in found["rows"])
    return shown


def shown_rows(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(quantity, predicted, measured, ratio) in people's units."""
    rows = []
    for row in found["rows"]:
        size = format_bytes if row["quantity"].endswith("_bytes") else format_count
        predicted = size(row["predicted"]) if row["predicted"] is not None else "unknown"
        rows.append((_name(row), predicted, size(row["measured"]), f"{row['ratio']:.2f}" if row["ratio"] else ""))
    return rows


def _name(row: dict[str, Any]) -> str:
    return str(row["quantity"]).removesuffix("_bytes").replace("_", " ")


def _object(path: Path, field: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, field))
    except json.JSONDecodeError as error:
        raise InputError(field, str(path), f"is not JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise InputError(field, str(path), "is not a JSON object")
    return found
