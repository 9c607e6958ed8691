"""`scale checkpoints`: what a run can go on from."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def checkpoints(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """A run's checkpoints, each read to its end and held against its manifest. Exit 1 where one is damaged."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from scaling import manifest
    from scaling.errors import InputError
    from scaling.units import format_bytes

    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    found = manifest.steps(folder)
    if not found:
        raise InputError("run", str(run), "has no checkpoints", hint="name a run directory")
    rows = [_row(path) for path in found]
    if as_json:
        print(json.dumps({"checkpoints": rows}, indent=2))
    else:
        table = Table(box=box.SIMPLE)
        for column in ("checkpoint", "size", "written by", "validation loss", "state"):
            table.add_column(column)
        for row in rows:
            loss = row["validation_loss"]
            table.add_row(
                row["name"], format_bytes(row["num_bytes"]), row["written_by"], "" if loss is None else f"{loss:.4f}",
                "damaged" if row["problems"] else "whole",
            )  # fmt: skip
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        for row in rows:
            for problem in row["problems"]:
                console.print(f"{row['name']}: {problem}", markup=False)
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


def _row(path: Path) -> dict[str, Any]:
    from scaling import manifest

    row: dict[str, Any] = {"name": path.name, "num_bytes": 0, "written_by": "", "validation_loss": None}
    try:
        found = manifest.read(path, "run")
    except manifest.Damaged as error:
        return {**row, "problems": error.problems}
    ranks = "1 rank" if found.world_size == 1 else f"{found.world_size} ranks"
    return row | {
        "num_bytes": found.num_bytes,
        "written_by": f"{ranks} at ZeRO-{found.zero_stage}",
        "validation_loss": found.validation_loss,
        "problems": manifest.problems(path, found.files.items()),
    }
