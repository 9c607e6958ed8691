"""`scale export`: a checkpoint as a transformers directory."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist or be empty.")],
) -> None:
    """Write the trained weights and the tokenizer as a folder that transformers' from_pretrained loads."""
    from scaling.training.export import export as export_run

    print(export_run(run, out))
