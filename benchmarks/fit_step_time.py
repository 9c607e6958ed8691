"""The shared coefficients of the step-time roofline, fitted to llm-foundry's rows of a table of measured runs.

    python benchmarks/fit_step_time.py RUNS.csv

Prints the coefficients for scaling/cost/step_time.py, and how well each model is predicted by a fit to the others.
Matmul and attention have a coefficient per GPU, the other terms share theirs; relative errors are squared, and a weak
pull keeps a coefficient that the rows say little of near a round value.
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from statistics import median

import numpy as np

from scaling.cost.step_time import Terms, ideal_terms
from scaling.validate import Run, load
from scaling.validate.fit import bounded_least_squares

_PER_GPU = ("matmul", "attention")
_SHARED = ("memory", "optimizer", "link", "network", "layers")
_ROUND = {"matmul": 1.2, "attention": 3.0, "memory": 2.0, "optimizer": 2.0, "link": 1.0, "network": 1.0, "layers": 1.0}
_PULL = 0.1


def unknowns(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(term, GPU), with an empty GPU for the terms that all share."""
    gpus = sorted({run.cluster.accelerator.name for run in runs})
    return [(term, gpu) for term in _PER_GPU for gpu in gpus] + [(term, "") for term in _SHARED]


def ideal(run: Run, names: Sequence[tuple[str, str]]) -> np.ndarray:
    terms, _ = ideal_terms(run.job, run.strategy, run.cluster, run.profile)
    here = run.cluster.accelerator.name
    return np.array([getattr(terms, term) if gpu in ("", here) else 0.0 for term, gpu in names])


def measured_step_s(run: Run) -> float:
    return run.strategy.global_batch_size * run.job.seq_length / float(run.tokens_per_second or 0)


def fit(runs: Sequence[Run], names: Sequence[tuple[str, str]]) -> np.ndarray:
    rows = np.array([ideal(run, names) / measured_step_s(run) for run in runs])
    start = np.array([_ROUND[term] for term, _ in names])
    pull = _PULL * np.eye(len(names)) / start
    wanted = np.concatenate([1 - rows @ start, np.zeros(len(names))])
    return start + bounded_least_squares(np.vstack([rows, pull]), wanted, low=-start)


def main(path: str) -> None:
    runs = [run for run in load(path)[0] if run.stack == "llm-foundry" and run.tokens_per_second]
    runs = [run for run in runs if run.job.matmul_precision is None]
    names = unknowns(runs)
    for (term, gpu), value in zip(names, fit(runs, names), strict=True):
        print(f"{term:10} {gpu:12} {value:.2f}")
    errors = []
    for shape in {run.job.shape for run in runs}:
        found = fit([run for run in runs if run.job.shape != shape], names)
        left_out = [run for run in runs if run.job.shape == shape]
        errors += [abs(measured_step_s(run) / float(ideal(run, names) @ found) - 1) for run in left_out]
    errors.sort()
    p90 = errors[int(0.9 * len(errors))]
    print(f"{len(errors)} rows, each model left out: median {median(errors):.1%}, p90 {p90:.1%}")


if __name__ == "__main__":
    assert {*_PER_GPU, *_SHARED, "offload"} == {field.name for field in fields(Terms)}
    main(sys.argv[1])
