"""`scale validate`: the estimate held against measured runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def validate(
    runs: Annotated[Path, typer.Argument(help="A CSV of measured runs; docs/validation.md lists its columns.")],
    stack: Annotated[str | None, typer.Option(help="Profile for rows whose id names no known stack.")] = None,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Leave each configuration out of a fit to the others of its stack.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Errors of the estimate over measured runs: peak memory, speed, and verdicts on what fits."""
    from scaling.errors import ScaleError
    from scaling.validate import load, score

    usable, skipped = load(runs, stack=stack)
    if not usable:
        reasons = sorted({row.reason for row in skipped})
        raise ScaleError(f"runs: no usable row in {runs}", hint="; ".join(reasons[:3]) or "the table is empty")
    found = score(usable, skipped, calibrated=calibrated)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from collections import Counter

    from rich import box
    from rich.console import Console
    from rich.table import Table

    def cells(quantiles: dict[str, Any]) -> list[str]:
        values = (quantiles[name] for name in ("median", "p90", "worst"))
        return [str(quantiles["count"]), *("" if value is None else f"{value:.1%}" for value in values)]

    console = Console(highlight=False, soft_wrap=True)
    how = "each configuration left out of a fit to its stack" if found["calibrated"] else "shipped profiles"
    table = Table(title=f"relative error of the estimate, {how}", title_justify="left", box=box.SIMPLE)
    table.add_column("")
    for name in ("rows", "median", "p90", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, key in (
        ("peak memory, by row", "by_row"),
        ("  one vote per configuration", "by_configuration"),
        ("  configurations of 5 GiB or more", "by_configuration_5gib"),
    ):
        table.add_row(name, *cells(found["memory"][key]))
    table.add_row("tokens per second, by row", *cells(found["throughput"]["by_row"]))
    for stack, parts in found["stacks"].items():
        for quantity in ("memory", "throughput"):
            if parts[quantity]["rows"]:
                table.add_row(f"{stack}: {quantity}", *cells(parts[quantity]["by_row"]))
    console.print(table)
    fits = found["fits"]
    console.print(
        f"verdicts: {fits['wrong_rejections']} of {fits['ran']} runs that ran would be rejected, "
        f"{fits['missed_oom']} of {fits['rows'] - fits['ran']} that ran out of memory would not"
    )
    reasons = Counter(row["reason"] for row in found["skipped"])
    console.print(f"skipped {len(found['skipped'])} rows:")
    for reason, count in reasons.most_common():
        console.print(f"  {count:4d}  {reason}", markup=False)
