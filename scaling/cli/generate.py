"""`scale generate`: text from an exported model."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[Path, typer.Argument(help="A folder written by `scale export`.")],
    prompt: Annotated[
        str, typer.Option(help="Text to go on from, or with what to fill in it: <|mask|>, <extra_id_0>.")
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 60,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Continue a prompt, or fill what is left out of one."""
    from scaling.models.generate import generate as continue_text

    print(continue_text(model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed))
