"""What `scale batch` prints: the answer first, then its parts."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scaling.batch.critical import Estimate, Judgement
from scaling.batch.learning_rate import Scaled
from scaling.batch.ramp import WAYS, Stage
from scaling.recipe import Growth
from scaling.units import format_count

_WIDTH = 110  # of a table whose last column is a sentence
_NOTES = {
    "linear": "a recipe's batch_ramp does it; --recipe FILE --out FILE writes one that has it",
    "doubling": "advice only: a recipe's batch_ramp has equal increments and leaves the rate to the schedule",
}


def judgement_document(judgement: Judgement, ramp: dict[str, Any] | None, assumptions: Sequence[str]) -> dict[str, Any]:
    training = judgement.training
    return {
        "model": training.shape.name,
        "num_params": training.num_params,
        "num_tokens": training.num_tokens,
        "seq_length": training.seq_length,
        "loss": training.loss,
        "global_batch_size": judgement.batch,
        "worth_using": judgement.is_worth_using,
        "extrapolated": judgement.is_extrapolated,
        "decided_by": [row.fit.name for row in judgement.deciding],
        "fits": [_estimate_document(row, judgement.batch) for row in judgement.estimates],
        "ramp": ramp,
        "assumptions": assumptions,
    }


def _estimate_document(row: Estimate, batch: int) -> dict[str, Any]:
    steps, samples = row.trade_off(batch) or (None, None)
    return {
        "fit": row.fit.name,
        "formula": row.fit.formula,
        "means": row.fit.means,
        "batch": row.batch,
        "critical_batch": row.critical_batch,
        "worthwhile_batch": row.worthwhile_batch,
        "lr": row.lr,
        "steps_over_least": steps,
        "samples_over_least": samples,
        "outside": row.outside,
        "source": row.fit.source,
    }


def ramp_document(way: str, stages: Sequence[Stage], growth: Growth | None) -> dict[str, Any]:
    return {
        "way": way,
        "says": WAYS[way].says,
        "source": WAYS[way].source,
        "stages": [asdict(stage) for stage in stages],
        "num_steps": sum(stage.num_steps for stage in stages),
        "num_samples": stages[-1].end_sample,
        "batch_ramp": growth.model_dump() if growth else None,
        "note": _NOTES[way],
    }


def scaled_document(moved: Scaled) -> dict[str, Any]:
    return {
        "rule": asdict(moved.rule),
        "warmup": asdict(moved.warmup),
        "changes": [asdict(change) for change in moved.changes],
        "notes": moved.notes,
        "recipe": moved.recipe.model_dump(mode="json"),
    }


def show_judgement(
    judgement: Judgement,
    way: str | None,
    stages: Sequence[Stage],
    growth: Growth | None,
    assumptions: Sequence[str],
    out: Path | None,
) -> None:
    console, training, asked = _console(), judgement.training, judgement.batch
    step_tokens = asked * training.seq_length
    size = f"{format_count(training.num_params)} parameters without embeddings"
    rows = [
        ("run", f"{training.shape.name}, {size}, {format_count(training.num_tokens)} tokens"),
        ("batch", f"{asked} samples of {training.seq_length} ({format_count(step_tokens)} tokens): "
                  f"{round(training.num_tokens / step_tokens)} steps"),
        ("worth", _worth(judgement)),
    ]  # fmt: skip
    if not judgement.is_worth_using:
        rows.append(
            ("answer", f"{asked} is not worth using: more than twice the samples of the smallest, by each of them")
        )
    for name, text in rows:
        console.print(f"[bold]{name:<9}[/]{escape(text)}")
    console.print(_fits_table(judgement))
    _print_list(console, "outside the range", ((row.fit.name, "; ".join(row.outside)) for row in judgement.estimates))
    _print_list(
        console, "sources", ((row.fit.name, f"{row.fit.formula}. {row.fit.source}") for row in judgement.estimates)
    )
    if way is not None:
        _show_ramp(console, judgement, way, stages, growth)
    _print_list(console, "assumed", (tuple(sentence.split(": ", 1)) for sentence in assumptions))
    if out is not None:
        console.print(f"[bold]wrote[/]    {escape(str(out))}")


def _worth(judgement: Judgement) -> str:
    if not judgement.deciding:
        return "no fit applies: measure the gradient noise scale in a run and give --noise-scale"
    batches = [f"{_amount(row.worthwhile_batch or 0)} by {row.fit.name}" for row in judgement.deciding]
    how = ", extrapolated" if judgement.is_extrapolated else ""
    return f"up to {' or '.join(batches)}{how}: there a run takes 20 % more samples than with the smallest batch"


def _fits_table(judgement: Judgement) -> Table:
    rows = []
    for row in judgement.estimates:
        steps, samples = row.trade_off(judgement.batch) or (None, None)
        tokens = None if row.batch is None else row.batch * judgement.training.seq_length
        rows.append(
            (
                row.fit.name + (" *" if row.outside else ""),
                "" if row.batch is None else _amount(row.batch),
                "" if tokens is None else format_count(tokens),
                "" if row.lr is None else f"{row.lr:.2e}",
                "" if steps is None else f"x {_amount(steps)}",
                "" if samples is None else f"x {_amount(samples)}",
                row.fit.means,
            )
        )
    title = f"published fits (* outside the range), and what {judgement.batch} takes by them over the least possible"
    return _table(title, ("fit", "batch", "tokens", "lr", "steps", "samples", "its batch has"), rows, words=(0, 6))


def _show_ramp(
    console: Console, judgement: Judgement, way: str, stages: Sequence[Stage], growth: Growth | None
) -> None:
    rows = [
        (f"{stage.first_sample:,}", f"{stage.batch:,}", f"{stage.num_steps:,}", f"x {stage.lr_factor:.3g}")
        for stage in stages
    ]
    console.print(_table(f"{way} ramp", ("from sample", "batch", "steps", "lr"), rows, words=()))
    steps, samples = sum(stage.num_steps for stage in stages), stages[-1].end_sample
    constant = round(samples / judgement.batch)
    sentences = [("steps", f"{steps:,} over {samples:,} samples; a constant {judgement.batch} takes {constant:,}")]
    if stages[-1].batch < judgement.batch:
        sentences.append(("never reached", f"{judgement.batch} would not become worth using before the run ends"))
    if way == "doubling" and judgement.growing:
        sentences.append(("it follows", judgement.growing.fit.name))
    if growth:
        fields = ", ".join(f"{name}: {number}" for name, number in growth.model_dump().items())
        sentences.append(("recipe", f"batch_ramp: {{{fields}}} and num_steps: {steps}"))
    sentences += [("how", WAYS[way].says), ("source", WAYS[way].source), ("note", _NOTES[way])]
    _print_list(console, "", sentences)


def show_scaled(moved: Scaled, out: Path | None) -> None:
    console = _console()
    rows = [(change.field, value(change.before), value(change.after), change.rule) for change in moved.changes]
    title = f"{moved.recipe.name} moved by the rule {moved.rule.name}, its warm-up by {moved.warmup.name}"
    console.print(_table(title, ("", "before", "after", "rule"), rows, words=(0, 3)))
    _print_list(console, "kept", (tuple(note.split(": ", 1)) for note in moved.notes))
    _print_list(console, "sources", ((each.name, each.source) for each in (moved.rule, moved.warmup)))
    if out is not None:
        console.print(f"[bold]wrote[/]    {escape(str(out))}")


def value(value: Any) -> str:
    """A recipe's value to six digits, which is more than a rate is known to; the file has all of them."""
    if isinstance(value, list):
        return f"[{', '.join(f'{each:.6g}' for each in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _console() -> Console:
    return Console(highlight=False, emoji=False, soft_wrap=True, width=max(_WIDTH, Console().width))


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int]) -> Table:
    """`words` are the columns of text; the others are figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index in words else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _print_list(console: Console, title: str, sentences: Iterable[tuple[str, ...]]) -> None:
    """A line per (name, text) that has a text, under `title`."""
    lines = [f"  {name}: {text}" for name, text in sentences if text]
    if lines and title:
        console.print(f"[bold]{title}[/]")
    for line in lines:
        console.print(line, markup=False)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
