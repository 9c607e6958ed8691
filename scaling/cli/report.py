"""`scale report`: a run's prediction beside what was measured."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
) -> None:
    """Predicted against measured memory and speed of a run."""
    from rich.console import Console

    from scaling.report import comparison, table

    found = comparison(run)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False).print(table(found))
