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

    `predicted` is None for a run whose ds_config had no plan.json beside it. Raises InputError where nothing was
    measured.
    """
    measured = _object(run / "measured.json", "run")
    plan = _object(run / "plan.json", "run") if (run / "plan.json").is_file() else None
    rows = []
    for name, entry in measured.items():
        predicted = plan[entry["predicted_in"]][name] if plan else None
        rows.append(
            {
                "quantity": name,
                "predicted": predicted,
                "measured": entry["value"],
                "ratio": predicted / entry["value"] if predicted and entry["value"] else None,
                "how": entry["how"],
            }
        )
    return {"rows": rows}


def table(found: dict[str, Any]) -> Table:
    """`found` for people."""
    shown = Table(title="predicted against measured", title_justify="left", box=box.SIMPLE)
    for column in ("", "predicted", "measured", "ratio"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    shown.add_column("measured how")
    for row in found["rows"]:
        size = format_bytes if row["quantity"].endswith("_bytes") else format_count
        predicted = size(row["predicted"]) if row["predicted"] is not None else "no plan"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        shown.add_row(
            row["quantity"].removesuffix("_bytes").replace("_", " "),
            predicted,
            size(row["measured"]),
            ratio,
            row["how"],
        )
    return shown


def _object(path: Path, field: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, field))
    except json.JSONDecodeError as error:
        raise InputError(field, str(path), f"is not JSON: {error.msg}") from None
    if not isinstance(found, dict):
        raise InputError(field, str(path), "is not a JSON object")
    return found
