"""The learning rate as a pure function of the optimizer step: nothing to save, nothing to resume."""

import math

from scaling.recipe import Recipe


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of optimizer step `step`, counted from 1 to num_steps.

    Linear from zero, reaching the peak at step `warmup_steps`, then constant, linear or cosine (Loshchilov & Hutter
    2017, without restarts) to `min_lr_fraction` of the peak at step `num_steps`.
    """
    schedule, peak = recipe.schedule, recipe.optimizer.lr
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    progress = min(1.0, (step - schedule.warmup_steps) / max(1, recipe.num_steps - schedule.warmup_steps))
    low = schedule.min_lr_fraction
    match schedule.name:
        case "constant":
            return peak
        case "linear":
            return peak * (low + (1 - low) * (1 - progress))
        case "cosine":
            return peak * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)
