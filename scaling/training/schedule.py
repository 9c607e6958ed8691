"""The learning rate as a pure function of the samples seen: nothing to save, nothing to resume."""

import math

from scaling import course
from scaling.recipe import Constant, Cosine, InverseSqrt, Linear, Polynomial, Recipe, WarmupStableDecay


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of optimizer step `step`, counted from 1 to num_steps.

    Linear from zero, reaching the peak at step `warmup_steps`, then as the schedule decays, down to the last step. Both
    go by the samples seen, which at a constant batch is by steps.
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    seen, warm = _samples_seen(recipe, step), _samples_seen(recipe, schedule.warmup_steps)
    if step <= schedule.warmup_steps:
        batch = recipe.global_batch_size  # in batches, so that a constant one gives the very double that steps give
        return peak * (seen / batch) / (warm / batch)
    return peak * _decayed(recipe, seen, warm)


def _decayed(recipe: Recipe, seen: int, warm: int) -> float:
    """The share of the peak once the warm-up's `warm` samples are over."""
    schedule, total = recipe.schedule, _samples_seen(recipe, recipe.num_steps)
    left = 1 - _share(seen - warm, total - warm)
    match schedule:
        case Constant():
            return 1.0
        case InverseSqrt():
            return math.sqrt(warm / seen)
        case Linear():
            shape = left
        case Cosine():
            shape = (1 + math.cos(math.pi * _share(seen - warm, total - warm))) / 2
        case Polynomial():
            shape = (left if schedule.decay_from == "warmup" else 1 - _share(seen, total)) ** schedule.power
        case WarmupStableDecay():
            stable = _samples_seen(recipe, recipe.num_steps - schedule.decay_steps)
            shape = 1 - math.sqrt(_share(max(0, seen - stable), total - stable))
    low = schedule.min_lr_fraction
    return low + (1 - low) * shape


def _samples_seen(recipe: Recipe, num_steps: int) -> int:
    """Once `num_steps` are done."""
    return course.at(recipe, num_steps).first_sample


def _share(part: int, whole: int) -> float:
    return min(1.0, part / max(1, whole))
