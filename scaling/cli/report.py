"""`scale report`: what a run has come to."""

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    html: Annotated[Path | None, typer.Option(help="Write the run as one self-contained page into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """A run's steps, what happened to it, and predicted against measured memory and speed."""
    from rich.console import Console

    from scaling.files import write_folder
    from scaling.report import comparison, event_sentence, events_of, facts_table, page, steps_of, summary, table

    steps, events = summary(steps_of(run)), events_of(run)
    # A run that has not ended has steps and no measurement yet; without either, the missing measurement is the error.
    found = comparison(run) if not steps or (run / "measured.json").exists() else {"rows": []}
    if html is not None:
        write_folder(html.parent, {html.name: page(run)}, "html")
    if as_json:
        print(json.dumps({**found, "summary": steps, "events": events}, indent=2))
        return
    console = Console(highlight=False)
    if steps:
        console.print(facts_table(steps))
    if found["rows"]:
        console.print(table(found))
    for event in events:
        console.print(event_sentence(event), markup=False)
