"""How optimizer and schedule follow the batch: published rules as data, and a recipe moved by one of them.

k is the new batch over the old. The run keeps its samples, so its steps go with 1 / k.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scaling import recipe as recipes
from scaling.errors import InputError, did_you_mean
from scaling.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Rule:
    """lr -> k^lr_exponent lr; with `moves_betas` also 1 - b -> k (1 - b) for both betas, and eps -> eps / sqrt(k)."""

    name: str
    lr_exponent: float
    moves_betas: bool = False
    optimizers: tuple[str, ...]  # that its source has it for; the first rule that has an optimizer is its default
    source: str

    def lr_factor(self, k: float) -> float:
        return float(k**self.lr_exponent)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            name="sqrt", lr_exponent=0.5, optimizers=("adamw", "lamb"),
            source="Malladi et al. 2022 (arXiv 2205.10287) for Adam, You et al. 2020 (1904.00962) for LAMB; MLPerf's "
            "rule for DeepSeek-V3",
        ),
        Rule(
            name="sqrt-betas", lr_exponent=0.5, moves_betas=True, optimizers=("adamw",),
            source="Malladi et al. 2022 (arXiv 2205.10287), which derives it for Adam; its abstract names the root, "
            "betas and eps are quoted from memory",
        ),
        Rule(
            name="linear", lr_exponent=1.0, optimizers=("sgd", "lars", "adamw", "lamb"),
            source="Goyal et al. 2017 (arXiv 1706.02677) for SGD; MLPerf's rule for Llama 3.1 405B under AdamW",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """warmup_steps -> k^steps_exponent warmup_steps."""

    name: str
    steps_exponent: int
    optimizers: tuple[str, ...]  # whose default it is
    source: str


WARMUPS: dict[str, Warmup] = {
    warmup.name: warmup
    for warmup in (
        Warmup(
            name="samples", steps_exponent=-1, optimizers=("adamw", "sgd"),
            source="the same samples, so the same share of the run: Goyal et al. 2017's five epochs at any batch",
        ),
        # Of 1,000k steps at 512 sequences 1/320, of 15,625 at 32k 1/5: 3,125 steps at every batch of their table.
        Warmup(
            name="steps", steps_exponent=0, optimizers=("lamb", "lars"),
            source="the same steps, so samples and share go with the batch: You et al. 2020's linear-epoch warm-up",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One number of a recipe before and after, and by which rule it moved."""

    field: str
    before: Any
    after: Any
    rule: str


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A recipe at another batch, every number that moved, and what to know of those that did not."""

    recipe: Recipe
    rule: Rule
    warmup: Warmup
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def scaled(recipe: Recipe, global_batch_size: int, *, rule: str | None = None, warmup: str | None = None) -> Scaled:
    """`recipe` at `global_batch_size`, over the same samples as near as whole steps come.

    Without `rule` and `warmup` those of its optimizer. Raises InputError where a rule has no meaning for it.
    """
    name = recipe.optimizer.name
    if recipe.batch_ramp:
        problem = "does not follow the batch by any rule"
        hint = "move the recipe without it; --ramp linear writes one for the new batch"
        raise InputError("batch_ramp", f"from {recipe.batch_ramp.start}", problem, hint=hint)
    chosen, warming = _rule(rule, name), _warmup(warmup, name)
    samples = recipe.num_steps * recipe.global_batch_size
    if not 1 <= global_batch_size <= samples:
        problem = f"is not between 1 and {samples}, the samples of the whole run"
        raise InputError("to", global_batch_size, problem, hint="a batch is at least one sample and at most all")
    k = global_batch_size / recipe.global_batch_size

    num_steps, rounding = _whole(samples / global_batch_size)
    if num_steps * global_batch_size != samples:
        rounding += f"; {num_steps * global_batch_size} samples instead of {samples}"
    changes = [
        Change("global_batch_size", recipe.global_batch_size, global_batch_size, f"asked for; k = {k:g}"),
        Change("num_steps", recipe.num_steps, num_steps, f"/ k: the same samples{rounding}"),
        *_optimizer_changes(recipe, k, chosen),
        _warmup_change(recipe, k, warming, samples, num_steps),
        *_decay_changes(recipe, k),
    ]
    for field in ("evaluate_every_steps", "checkpoint_every_steps"):
        every, rounding = _whole(getattr(recipe, field) / k)
        changes.append(Change(field, getattr(recipe, field), every, f"/ k: as often in samples{rounding}"))
    fields: dict[str, Any] = recipe.model_dump()
    for each in changes:
        *above, last = each.field.split(".")
        (fields[above[0]] if above else fields)[last] = each.after
    return Scaled(
        recipe=recipes.validated(fields),
        rule=chosen,
        warmup=warming,
        changes=tuple(changes),
        notes=tuple(_notes(recipe, k, chosen)),
    )


def _rule(name: str | None, optimizer: str) -> Rule:
    others = [rule.name for rule in RULES.values() if optimizer in rule.optimizers]
    if not others:
        known = sorted({each for rule in RULES.values() for each in rule.optimizers})
        raise InputError("optimizer", optimizer, "has no published rule", hint=f"there are some for {_or(known)}")
    if name is None:
        return RULES[others[0]]
    if name not in RULES:
        raise InputError("rule", name, "is not a known rule", hint=did_you_mean(name, RULES))
    if optimizer not in RULES[name].optimizers:
        raise InputError("rule", name, f"is not derived for {optimizer}", hint=f"for {optimizer}: {_or(others)}")
    return RULES[name]


def _warmup(name: str | None, optimizer: str) -> Warmup:
    if name is None:
        return next(warmup for warmup in WARMUPS.values() if optimizer in warmup.optimizers)
    if name not in WARMUPS:
        raise InputError("warmup", name, "is not a known rule for the warm-up", hint=did_you_mean(name, WARMUPS))
    return WARMUPS[name]


def _optimizer_changes(recipe: Recipe, k: float, rule: Rule) -> list[Change]:
    old = recipe.optimizer
    changes = [
        Change("optimizer.lr", old.lr, _tidy(old.lr * rule.lr_factor(k)), f"x k^{rule.lr_exponent:g}: {rule.name}")
    ]
    if rule.moves_betas and isinstance(old, recipes.AdamW):
        betas = [_scaled_beta(recipe, beta, k) for beta in old.betas]
        changes += [
            Change("optimizer.betas", old.betas, betas, f"1 - b -> k (1 - b): {rule.name}"),
            Change("optimizer.eps", old.eps, _tidy(old.eps / k**0.5), f"/ k^0.5: {rule.name}"),
        ]
    return changes


def _scaled_beta(recipe: Recipe, beta: float, k: float) -> float:
    """1 - k (1 - b). Raises InputError where nothing would be left to average over."""
    rest = _tidy(k * (1 - beta))
    if rest >= 1 and k > 1:
        below = _tidy(recipe.global_batch_size / (1 - beta))
        problem = f"becomes 1 - {k:g} x {1 - beta:.3g}, which is not above 0"
        hint = f"--to a batch below {below:g}, or --rule sqrt, which keeps betas"
        raise InputError("optimizer.betas", beta, problem, hint=hint)
    return _tidy(1 - rest)


def _warmup_change(recipe: Recipe, k: float, warmup: Warmup, samples: int, num_steps: int) -> Change:
    before = recipe.schedule.warmup_steps
    after, rounding = _whole(before * k**warmup.steps_exponent) if before else (0, "")
    if after > num_steps:
        problem = f"kept, is more than the {num_steps} steps of a batch of {round(k * recipe.global_batch_size)}"
        hint = f"--warmup samples, or --to a batch up to {samples // after}"
        raise InputError("schedule.warmup_steps", after, problem, hint=hint)
    shares = f"{before / recipe.num_steps:.2%} of the run -> {after / num_steps:.2%}"
    why = f"the same {warmup.name}{rounding}; {shares}"
    return Change("schedule.warmup_steps", before, after, why)


def _decay_changes(recipe: Recipe, k: float) -> Iterable[Change]:
    """All other shapes stretch over the run, or go by the warm-up alone."""
    if isinstance(recipe.schedule, recipes.WarmupStableDecay):
        before = recipe.schedule.decay_steps
        after, rounding = _whole(before / k)
        yield Change("schedule.decay_steps", before, after, f"/ k: the same samples{rounding}")


def _notes(recipe: Recipe, k: float, rule: Rule) -> Iterable[str]:
    if recipe.optimizer.weight_decay:
        decay = rule.lr_factor(k) / k
        yield (
            f"optimizer.weight_decay: {recipe.optimizer.weight_decay:g} is kept; a step decays by lr x weight_decay, "
            f"so that the whole run decays {decay:.3g} times as much as before"
        )
    if isinstance(recipe.schedule, recipes.InverseSqrt):
        yield "schedule: the decay is kept as peak x sqrt(warm-up / samples), and so follows both"
    if recipe.gradient_clipping:
        yield f"gradient_clipping: {recipe.gradient_clipping:g} is kept; larger batches have smaller gradient norms"
    if rule.name == "linear" and recipe.optimizer.name == "lamb":
        yield "linear has no source for LAMB: You et al. 2020 scale its rate by the root"


def _whole(value: float) -> tuple[int, str]:
    """The nearest whole number from 1, and what that rounding was."""
    nearest = max(1, round(value))
    return nearest, "" if abs(nearest - value) < 1e-9 * nearest else f", {value:.4g} rounded"


def _tidy(value: float) -> float:
    """Without the last bits, so that 1 - 4 (1 - 0.9) is 0.6."""
    return float(f"{value:.12g}")


def _or(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
