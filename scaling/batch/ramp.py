"""A batch that grows during a run: published ways as stages, each a whole number of steps at one batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil

from scaling import course
from scaling import recipe as recipes
from scaling.batch.critical import ZHANG_EXPONENT
from scaling.batch.learning_rate import Change
from scaling.errors import InputError, did_you_mean
from scaling.recipe import Growth, Recipe

# Brown et al. 2020 (arXiv 2005.14165), appendix B: from 32k tokens linearly to the full batch "over the first 4-12
# billion tokens of training, depending on the model size", of 300 billion. We take the longest.
_LINEAR_START_TOKENS = 32_000
_LINEAR_SHARE = 12 / 300
_LINEAR_INCREMENTS = 4, 8  # or fewer, where there are fewer multiples between
# Stages that would end within the first hundredth of a run are left out: the learning rate is still warming up.
_SHORTEST_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`num_steps` steps of `batch` samples, from `first_sample` on; the schedule's rate times `lr_factor`."""

    first_sample: int
    batch: int
    num_steps: int
    lr_factor: float

    @property
    def end_sample(self) -> int:
        return self.first_sample + self.num_steps * self.batch


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a ramp is for: up to `batch` over `num_samples`; every stage's batch is a multiple of `multiple_of`.

    `worthwhile_batch` is the batch of 20 % overhead (scaling/batch/critical.py) at the end, where it is known.
    """

    num_samples: int
    seq_length: int
    batch: int
    multiple_of: int
    worthwhile_batch: float | None = None

    def __post_init__(self) -> None:
        for field in ("multiple_of", "batch", "num_samples"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.batch % self.multiple_of:
            below = self.batch - self.batch % self.multiple_of
            near = " and ".join(str(each) for each in (below, below + self.multiple_of) if each)
            problem = f"is not a multiple of --multiple-of {self.multiple_of}"
            raise InputError("global_batch_size", self.batch, problem, hint=f"nearest: {near}")

    def multiple_below(self, batch: float) -> int:
        """The largest multiple up to `batch`, at least one."""
        return max(1, int(batch / self.multiple_of)) * self.multiple_of

    def samples_until(self, batch: float) -> float:
        """When `batch` becomes worthwhile, as the critical batch grows with the samples to the 0.4683.

        The power is Zhang et al. 2024's, of runs of different length; within one run it is our assumption. Merrill et
        al. 2025 see such a course, fast at first and then ever slower, without a formula.
        """
        if self.worthwhile_batch is None:
            raise InputError(
                "ramp", "doubling", "needs a critical batch to follow", hint="--noise-scale, or --ramp linear"
            )
        return float(self.num_samples * (batch / self.worthwhile_batch) ** (1 / ZHANG_EXPONENT))


@dataclass(frozen=True, kw_only=True)
class Way:
    """A published way to grow the batch: (batch, the sample that it starts at, rate factor), first to last."""

    name: str
    says: str
    source: str
    thresholds: Callable[[Run], Iterable[tuple[int, float, float]]]


def _linear(run: Run) -> Iterable[tuple[int, float, float]]:
    growth = linear(run)
    starts = [0, *course.thresholds(growth, run.batch)]
    return [(course.grown(growth, run.batch, start), start, 1.0) for start in starts]


def linear(run: Run) -> Growth | None:
    """The recipe's `batch_ramp` for the linear way; None where the batch is no larger than its start."""
    start = min(run.batch, run.multiple_below(_LINEAR_START_TOKENS / run.seq_length))
    return linear_growth(start, run.batch, run.multiple_of, ceil(_LINEAR_SHARE * run.num_samples))


def linear_growth(start: int, end: int, multiple_of: int, samples: int) -> Growth | None:
    """Equal increments of whole multiples, each batch for the same number of samples; it starts at `start` or as little
    above it as that takes."""
    multiples = (end - start) // multiple_of
    if multiples < 1:
        return None
    fewest, most = (min(multiples, number) for number in _LINEAR_INCREMENTS)
    increments = min(range(most, fewest - 1, -1), key=lambda number: multiples % number)
    increment = multiples // increments * multiple_of
    return Growth(start=end - increments * increment, increment=increment, samples=samples)


def ramped(recipe: Recipe, growth: Growth) -> tuple[Recipe, tuple[Change, ...]]:
    """`recipe` with its batch growing so, over the same samples as near as whole steps come, and what moved."""
    growing = recipe.model_copy(update={"batch_ramp": growth})

    def steps(before: int) -> int:
        return course.steps_until(growing, samples=course.at(recipe, before).first_sample) if before else 0

    num_steps, warmup_steps = steps(recipe.num_steps), steps(recipe.schedule.warmup_steps)
    source = "Brown et al. 2020 (arXiv 2005.14165), appendix B"
    changes = [
        Change("batch_ramp", _words(recipe.batch_ramp), _words(growth), source),
        Change("num_steps", recipe.num_steps, num_steps, "the same samples"),
        Change("schedule.warmup_steps", recipe.schedule.warmup_steps, warmup_steps, "the same samples"),
    ]  # fmt: skip
    schedule = {**recipe.schedule.model_dump(), "warmup_steps": warmup_steps}
    if isinstance(recipe.schedule, recipes.WarmupStableDecay):
        before = recipe.schedule.decay_steps
        schedule["decay_steps"] = max(1, num_steps - steps(recipe.num_steps - before))
        changes.append(Change("schedule.decay_steps", before, schedule["decay_steps"], "the same samples"))
    fields = {"batch_ramp": growth.model_dump(), "num_steps": num_steps, "schedule": schedule}
    return recipes.changed(recipe, fields), tuple(changes)


def _words(growth: Growth | None) -> str:
    return f"from {growth.start} by {growth.increment} over {growth.samples} samples" if growth else "none"


def _doubling(run: Run) -> Iterable[tuple[int, float, float]]:
    thresholds: list[tuple[int, float, float]] = []
    batch = run.batch
    while True:
        starts_at = run.samples_until(batch)
        early = starts_at < _SHORTEST_SHARE * run.num_samples or batch == run.multiple_of
        if starts_at < run.num_samples or early:
            factor = (batch / run.batch) ** 0.5
            thresholds.insert(0, (batch, 0.0 if early else starts_at, factor))
        if early:
            return thresholds
        batch = run.multiple_below(batch / 2)


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way(
            name="linear",
            says="equal increments over the first 4 % of the samples; the rate has its own warm-up",
            source="Brown et al. 2020 (arXiv 2005.14165), appendix B: from 32k tokens over 4 to 12 of 300 billion",
            thresholds=_linear,
        ),
        Way(
            name="doubling",
            says="doubles when the critical batch has, and the rate goes with sqrt(2); within the run that batch is "
            "assumed to grow with the samples to the 0.47, as Zhang et al. 2024 find between runs",
            source="Merrill et al. 2025 (arXiv 2505.23971): OLMo 1B to slightly better loss in 43 % fewer steps",
            thresholds=_doubling,
        ),
    )
}


def ramp(run: Run, way: str) -> tuple[Stage, ...]:
    """The stages of `run`, at least one, of whole steps; together as near to its samples as the last batch comes.

    A batch holds until the samples of the next are reached, as in a recipe's ramp.
    """
    if way not in WAYS:
        raise InputError("ramp", way, "is not a known way to grow the batch", hint=did_you_mean(way, WAYS))
    thresholds = list(WAYS[way].thresholds(run))
    ends = [start for _, start, _ in thresholds[1:]] + [float(run.num_samples)]
    stages: list[Stage] = []
    seen = 0
    for (batch, _, lr_factor), end in zip(thresholds, ends, strict=True):
        last = end == run.num_samples
        num_steps = round((end - seen) / batch) if last else ceil((end - seen) / batch)
        if num_steps >= 1:
            stages.append(Stage(first_sample=seen, batch=batch, num_steps=num_steps, lr_factor=lr_factor))
            seen = stages[-1].end_sample
    return tuple(stages)
