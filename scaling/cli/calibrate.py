"""`scale calibrate`: a profile of one's own from measured runs."""

import json
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    runs: Annotated[Path, typer.Argument(help="A CSV of measured runs of one stack; one row suffices.")],
    out: Annotated[Path, typer.Option(help="The profile to write, for `scale plan --profile`.")],
    stack: Annotated[str, typer.Option(help="The stack that the runs are of.")] = "deepspeed",
) -> None:
    """Fit the estimate's coefficients to your own runs."""
    from scaling.errors import InputError
    from scaling.files import write_folder
    from scaling.validate import calibrated, load

    usable, skipped = load(runs, stack=stack)
    if not usable:
        reasons = sorted({row.reason for row in skipped})
        raise InputError("runs", str(runs), "has no usable row", hint="; ".join(reasons[:3]))
    _, document = calibrated(usable)
    write_folder(out.parent, {out.name: json.dumps(document, indent=2) + "\n"}, "out")
    print(json.dumps(document, indent=2))
