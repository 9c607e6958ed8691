"""One known model: a shape, where its numbers stand, under which licence, and how it was trained."""

from dataclasses import dataclass
from pathlib import Path

from scaling.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`batch_tokens` is the tokens per optimizer step of the published run, `lr` the peak of its Adam; None where
    nobody published them, or for another optimizer. `seq_length` is that of its samples, where it is not the context.
    `licence` is that of the published weights. `weights` is a transformers directory with them, where one is at hand.
    """

    shape: Shape
    source: str
    licence: str = "no weights published"
    batch_tokens: int | None = None
    lr: float | None = None
    seq_length: int | None = None
    note: str = ""
    weights: Path | None = None


def table(
    rows: tuple[tuple[Shape, int | None, float | None], ...],
    *,
    source: str,
    licence: str,
    note: str = "",
    seq_length: int | None = None,
) -> tuple[Entry, ...]:
    """Entries that share their source: (shape, batch_tokens, lr) each."""
    return tuple(
        Entry(shape=shape, source=source, licence=licence, batch_tokens=batch, lr=lr, note=note, seq_length=seq_length)
        for shape, batch, lr in rows
    )
