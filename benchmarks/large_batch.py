"""Loss against batch size at a fixed number of samples: AdamW beside LAMB, tuned beside scaled rates.

    python benchmarks/large_batch.py runs/large_batch.jsonl [--corpus NAME FILE ...]
    python benchmarks/large_batch.py runs/large_batch.jsonl --report docs

The first line trains what RESULTS lacks, in one process on one core, and appends a line of JSON a run: stop and start
it at will. The second writes the table and the pictures.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch

from scaling import data, models
from scaling import recipe as recipes
from scaling.batch import noise_scale
from scaling.data import Corpus
from scaling.optim import Lamb
from scaling.recipe import Recipe
from scaling.report import svg
from scaling.training.optimizer import parameter_groups
from scaling.training.schedule import learning_rate

BASE = recipes.load(Path(__file__).parents[1] / "recipes" / "large_batch_study.yaml")
NUM_SAMPLES = BASE.global_batch_size * BASE.num_steps
BATCHES = (16, 64, 256, 1024, 2048)
SEEDS = (1, 2, 3)  # the first tunes
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"task": "causal-lm"},
    "bert": {"task": "masked-lm", "masking_fraction": 0.3},  # MosaicBERT's: a short run needs targets
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": BASE.optimizer.model_dump(),
    "lamb": {**BASE.optimizer.model_dump(), "name": "lamb", "lr": 1e-2, "eps": 1e-6},
}
MICRO_BATCH = 128  # what is fastest on a core; smaller where there would not be four of them to compare
NUM_POINTS = 32  # of a run's curve


class Cell(NamedTuple):
    """One run. Its rate is the optimizer's x sqrt(batch / base batch) x 2^octave."""

    corpus: str
    family: str
    optimizer: str
    batch: int
    octave: int
    seed: int


def recipe_of(cell: Cell, files: Sequence[str]) -> Recipe:
    """The base recipe at the cell's batch for as many samples.

    Warm-up is as many steps at every batch: its share of the run is in proportion to the batch, as in LAMB's table 4.
    """
    family, optimizer = FAMILIES[cell.family], OPTIMIZERS[cell.optimizer]
    growth = cell.batch / BASE.global_batch_size
    masking_fraction = family.get("masking_fraction", BASE.data.masking_fraction)
    return recipes.changed(
        BASE,
        {
            "model": {**BASE.model.model_dump(), "family": cell.family},
            "task": family["task"],
            "data": {**BASE.data.model_dump(), "corpus": list(files), "masking_fraction": masking_fraction},
            "global_batch_size": cell.batch,
            "num_steps": NUM_SAMPLES // cell.batch,
            "optimizer": {**optimizer, "lr": optimizer["lr"] * math.sqrt(growth) * 2.0**cell.octave},
            "seed": cell.seed,
        },
    )


def train(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """The run: final validation loss, and a curve of [step, validation loss, |g_small|^2, |g_big|^2].

    The squares are means over the steps since the last point, of the gradients of micro batches and of whole batches,
    before clipping. The loss is None where it was not finite.
    """
    batch = recipe.global_batch_size
    micro = batch if batch == BASE.global_batch_size else min(batch // 4, MICRO_BATCH)
    model = models.WithLoss(models.build(recipe.shape, seed=recipe.seed))
    groups = parameter_groups(model, recipe.optimizer.weight_decay)
    options = recipe.optimizer.model_dump(exclude={"name", "weight_decay"})
    optimizer = {"adamw": torch.optim.AdamW, "lamb": Lamb}[recipe.optimizer.name](groups, **options)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    num_targets = batch * corpus.train.targets_per_sample
    every = max(1, recipe.num_steps // NUM_POINTS)
    curve: list[list[float]] = []
    squares = torch.zeros(2, dtype=torch.float64)
    for step in range(1, recipe.num_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        gradient: Sequence[torch.Tensor] = ()
        for start in range((step - 1) * batch, step * batch, micro):
            loss = model(**corpus.train.batch(range(start, start + micro))) / num_targets
            part = torch.autograd.grad(loss, parameters)
            squares[0] += squared_norm(part) * (batch / micro)  # its square for the micro batch's mean, over as many
            gradient = torch._foreach_add(gradient, part) if gradient else part
        norm = math.sqrt(squared_norm(gradient))
        if not math.isfinite(norm):
            break
        squares[1] += norm**2
        torch._foreach_mul_(gradient, min(1.0, recipe.gradient_clipping / (norm + 1e-6)))
        for parameter, own in zip(parameters, gradient, strict=True):
            parameter.grad = own
        optimizer.step()
        if step % every == 0 or step == recipe.num_steps:
            since = step - (curve[-1][0] if curve else 0)
            curve.append([step, validation_loss(model, corpus, 256), *(squares / since).tolist()])
            squares.zero_()
    final = validation_loss(model, corpus, 2048)
    return {"loss": final if math.isfinite(final) else None, "micro_batch": micro, "curve": curve}


def squared_norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(tensors)).square().sum())


@torch.no_grad()
def validation_loss(model: torch.nn.Module, corpus: Corpus, num_samples: int) -> float:
    """The loss per target on about `num_samples`, evenly spread over the validation part."""
    part = corpus.validation
    indices = range(0, part.num_samples, max(1, part.num_samples // num_samples))
    chunks = [indices[start : start + MICRO_BATCH] for start in range(0, len(indices), MICRO_BATCH)]
    total = sum(float(model(**part.batch(chunk))) for chunk in chunks)
    return total / (len(indices) * part.targets_per_sample)


class Results:
    """The runs done, by cell, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.runs = {Cell(**run["cell"]): run for run in map(json.loads, lines)}

    def append(self, cell: Cell, run: dict[str, Any]) -> None:
        self.runs[cell] = run
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": cell._asdict(), **run}) + "\n")

    def loss(self, cell: Cell) -> float:
        found = self.runs[cell]["loss"]
        return math.inf if found is None else found


def study(results: Results, corpora: dict[str, Sequence[str]]) -> None:
    """All runs: for GPT, then for BERT, the tuning on each corpus and then the other seeds."""

    def loss_of(cell: Cell) -> float:
        if cell not in results.runs:
            recipe = recipe_of(cell, corpora[cell.corpus])
            corpus = data.prepare(recipe, base=Path(), cache=results.path.parent / "cache")
            started_at = time.process_time()
            run = train(recipe, corpus)
            taken_s = time.process_time() - started_at
            entropy = corpus.unigram_entropy_nats
            results.append(cell, {"lr": recipe.optimizer.lr, "cpu_s": taken_s, "unigram_entropy": entropy, **run})
            print(*cell, f"lr {recipe.optimizer.lr:.2e}", run["loss"], f"{taken_s:.0f} s", flush=True)
        return results.loss(cell)

    for family in FAMILIES:
        compared: list[Cell] = []
        tuned: dict[tuple[str, int], int] = {}  # of the corpus before, where the search begins
        for corpus, optimizer in product(corpora, OPTIMIZERS):
            best = rule = None
            for batch in BATCHES:
                cells = {octave: Cell(corpus, family, optimizer, batch, octave, SEEDS[0]) for octave in range(-12, 13)}
                # Where few steps are left the loss has more than one valley: look beyond the neighbours.
                reach = 1 if NUM_SAMPLES // batch > 100 else 2
                start = tuned.get((optimizer, batch), best or 0)
                best = lowest(lambda octave, cells=cells: loss_of(cells[octave]), start, reach)
                tuned[optimizer, batch] = best
                rule = best if rule is None else rule
                loss_of(cells[rule])
                compared += [cells[octave] for octave in sorted({best, rule})]
        for corpus, seed in product(corpora, SEEDS[1:]):
            for cell in compared:
                if cell.corpus == corpus:
                    loss_of(cell._replace(seed=seed))


def lowest(loss_of: Callable[[int], float], start: int, reach: int) -> int:
    """The octave whose loss is lowest as far as `reach` to either side of it, found downhill from `start`."""
    while True:
        near = [start, *range(start - reach, start), *range(start + 1, start + reach + 1)]
        best = min(near, key=loss_of)
        if best == start:
            return best
        start = best


class Tuned(NamedTuple):
    """What an optimizer did at one batch: losses by seed at the rate tuned by the first, and at the scaled rate."""

    cell: Cell  # of the first seed, at the tuned rate
    lr: float
    losses: list[float]
    rule_lr: float
    rule_losses: list[float]
    curve: list[list[float]]
    micro_batch: int


def tuned(results: Results, corpus: str, family: str, optimizer: str) -> dict[int, Tuned]:
    """By batch, as far as there are runs."""
    found: dict[int, Tuned] = {}
    rule = None
    for batch in BATCHES:
        tried = [
            cell for cell in results.runs if cell[:4] == (corpus, family, optimizer, batch) and cell.seed == SEEDS[0]
        ]
        if not tried:
            break
        best = min(tried, key=results.loss)
        rule = best.octave if rule is None else rule
        losses, rule_losses = (
            [
                results.loss(cell)
                for cell in (best._replace(octave=octave, seed=seed) for seed in SEEDS)
                if cell in results.runs
            ]
            for octave in (best.octave, rule)
        )
        run = results.runs[best]
        rule_lr = run["lr"] * 2.0 ** (rule - best.octave)
        found[batch] = Tuned(best, run["lr"], losses, rule_lr, rule_losses, run["curve"], run["micro_batch"])
    return found


def steps_to(target: float, curve: list[list[float]]) -> float | None:
    """The step at which the validation loss first is `target`, between the curve's points; None if never."""
    before = None
    for step, loss, *_ in curve:
        if loss <= target:
            return (
                step if before is None else before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss)
            )
        before = (step, loss)
    return None


def steps_by_batch(target: float, found: dict[int, Tuned]) -> dict[int, float]:
    """Only of the batches that reach it."""
    steps = {batch: steps_to(target, run.curve) for batch, run in found.items()}
    return {batch: number for batch, number in steps.items() if number is not None}


def critical_batch(steps: dict[int, float]) -> float | None:
    """The critical batch of steps = fewest steps x (1 + critical / batch), at which both steps and samples double.

    McCandlish et al. 2018, equation 2.11; least squares of relative errors. None where the fit is no such curve.
    """
    if len(steps) < 3:
        return None
    rows = np.array([[1 / s, 1 / (batch * s)] for batch, s in steps.items()])
    (fewest, samples), *_ = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)
    return float(samples / fewest) if fewest > 0 and samples > 0 else None


def noise_scales(run: Tuned, every: int = 4) -> list[tuple[float, float]]:
    """(validation loss, noise scale in samples) along a run, each over `every` points of its curve."""
    found = []
    for start in range(0, len(run.curve) - every + 1, every):
        part = run.curve[start : start + every]
        signal, noise = noise_scale.signal_and_noise(
            small_squared_norm=fmean(point[2] for point in part),
            big_squared_norm=fmean(point[3] for point in part),
            small_batch=run.micro_batch,
            big_batch=run.cell.batch,
        )
        if signal > 0:
            found.append((fmean(point[1] for point in part), noise / signal))
    return found


COLORS = {"adamw": "#1f5fa8", "lamb": "#c8501e"}
NAMES = {"adamw": "AdamW", "lamb": "LAMB", "gpt2": "GPT", "bert": "BERT"}


def report(results: Results, folder: Path) -> None:
    """The tables to stdout, the pictures into `folder`, of what has been tuned at every batch."""
    settings = sorted({(cell.corpus, cell.family) for cell in results.runs}, key=lambda s: (s[1] == "bert", s[0]))
    loss_panels, step_panels, noise_panels = [], [], []
    for corpus, family in settings:
        runs = {name: tuned(results, corpus, family, name) for name in OPTIMIZERS}
        if any(len(found) < len(BATCHES) for found in runs.values()):
            continue
        title = f"{NAMES[family]}, {corpus}"
        entropy = results.runs[runs["adamw"][BATCHES[0]].cell]["unigram_entropy"]
        print(f"\n**{title}** (unigram entropy {entropy:.2f})\n")
        heads = [f"{NAMES[name]}, {what}" for name in OPTIMIZERS for what in ("tuned", "scaled")]
        print("| batch | steps | " + " | ".join(heads) + " |\n|" + " --- |" * (len(heads) + 2))
        for batch in BATCHES:
            row = [f"{batch:,}", f"{NUM_SAMPLES // batch:,}"]
            for name in OPTIMIZERS:
                run = runs[name][batch]
                row += [f"{spread(run.losses)} at {run.lr:.2g}", f"{spread(run.rule_losses)} at {run.rule_lr:.2g}"]
            print("| " + " | ".join(row) + " |")
        # As low as AdamW comes at 1,024 and at 256: smaller batches pass it on their way.
        targets = [runs["adamw"][batch].curve[-1][1] for batch in (1024, 256)]
        print(
            "\n| steps to | by | " + " | ".join(f"{b:,}" for b in BATCHES) + " | critical batch | noise scale there |"
        )
        print("|" + " --- |" * (len(BATCHES) + 4))
        for target, name in product(targets, OPTIMIZERS):
            steps = steps_by_batch(target, runs[name])
            fit = critical_batch(steps)
            near = [n for b in (64, 256) for loss, n in noise_scales(runs[name][b]) if abs(loss - target) < 0.15]
            row = [f"{target:.2f}", NAMES[name], *(f"{steps[b]:,.0f}" if b in steps else "" for b in BATCHES)]
            row += [f"{fit:,.0f}" if fit else "", f"{min(near):,.0f} to {max(near):,.0f}" if near else ""]
            print("| " + " | ".join(row) + " |")
        loss_panels.append(loss_panel(title, runs))
        step_panels.append(step_panel(title, targets, runs))
        noise_panels.append(noise_panel(title, runs))
    for name, panels in (("loss", loss_panels), ("steps", step_panels), ("noise", noise_panels)):
        (folder / f"large_batch_{name}.svg").write_text(svg.drawing(panels), encoding="utf-8")


def spread(losses: Sequence[float]) -> str:
    """The mean over seeds, and half their range."""
    if not all(map(math.isfinite, losses)):
        return "diverged"
    half = (max(losses) - min(losses)) / 2
    return f"{fmean(losses):.2f}" + (f" ± {half:.2f}" if len(losses) > 1 else "")


def loss_panel(title: str, runs: dict[str, dict[int, Tuned]]) -> svg.Panel:
    lines = []
    for name, found in runs.items():
        for kind, dashes in (("tuned", ""), ("scaled by the root", "4 3")):
            at = {b: run.losses if kind == "tuned" else run.rule_losses for b, run in found.items()}
            lines.append(
                svg.Line(
                    name=f"{NAMES[name]}, rate {kind}", color=COLORS[name], dashes=dashes, dots=kind == "tuned",
                    points=[(b, fmean(losses)) for b, losses in at.items()],
                    ranges=[(b, min(losses), max(losses)) for b, losses in at.items() if len(losses) > 1],
                )
            )  # fmt: skip
    losses = [y for line in lines for _, y in line.points]
    y_ticks = [n / 2 for n in range(math.floor(2 * min(losses)), math.ceil(2 * max(losses)) + 1)]
    return svg.Panel(
        title=title, x_label=f"batch, samples of {BASE.data.seq_length} tokens",
        y_label="final validation loss, nats", lines=lines, x_ticks=BATCHES, y_ticks=y_ticks,
    )  # fmt: skip


def step_panel(title: str, targets: list[float], runs: dict[str, dict[int, Tuned]]) -> svg.Panel:
    lines = [
        svg.Line(
            name=f"{NAMES[name]}, to AdamW's loss at {batch:,}", color=COLORS[name], dashes=dashes,
            points=list(steps_by_batch(target, runs[name]).items()),
        )
        for (target, batch, dashes), name in product(
            zip(targets, (1024, 256), ("4 3", ""), strict=True), OPTIMIZERS
        )
    ]  # fmt: skip
    return svg.Panel(
        title=title, x_label="batch, samples", y_label="steps", lines=lines, x_ticks=BATCHES,
        y_ticks=[10, 30, 100, 300, 1000, 3000], log_y=True,
    )  # fmt: skip


def noise_panel(title: str, runs: dict[str, dict[int, Tuned]]) -> svg.Panel:
    lines = [
        svg.Line(
            name=f"{NAMES[name]}, batch {batch}", color=COLORS[name], dashes=dashes,
            points=noise_scales(found[batch]),
        )
        for name, found in runs.items()
        for batch, dashes in ((64, ""), (256, "4 3"))
    ]  # fmt: skip
    losses = [loss for line in lines for loss, _ in line.points]
    x_ticks = [n / 2 for n in range(math.ceil(2 * max(losses)), math.floor(2 * min(losses)) - 1, -1)]
    return svg.Panel(
        title=title, x_label="validation loss, nats", y_label="noise scale, samples", lines=lines, log_x=False,
        log_y=True, x_ticks=x_ticks, y_ticks=[1, 10, 100, 1000, 10000],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--corpus", nargs="+", action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("--report", type=Path, metavar="DIR", help="no training: tables to stdout, pictures into DIR")
    args = parser.parse_args()
    results = Results(args.results)
    if args.report:
        report(results, args.report)
        return
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # or a run at too high a rate takes five times as long
    study(results, {"docstrings": BASE.data.corpus} | {name: files for name, *files in args.corpus})


if __name__ == "__main__":
    main()
