"""The course of a run: what each optimizer step trains on, as a function of the step's number alone.

The batch may grow (`batch_ramp`), and so may the samples (`data.curriculum`), both with the samples seen. Nothing is
counted along the way, so that nothing has to be saved, and a resumed run stands where it stood.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter

from scaling.recipe import Growth, Recipe


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step: samples `first_sample` and on, as many as its batch, of which `seq_length` tokens are taken.

    `tokens_before` are those of all steps before it.
    """

    number: int
    first_sample: int
    tokens_before: int
    global_batch_size: int
    seq_length: int

    @property
    def num_tokens(self) -> int:
        return self.global_batch_size * self.seq_length

    def after(self, num_steps: int) -> "Step":
        """The step that comes `num_steps` later where neither batch nor length changes on the way."""
        return replace(
            self,
            number=self.number + num_steps,
            first_sample=self.first_sample + num_steps * self.global_batch_size,
            tokens_before=self.tokens_before + num_steps * self.num_tokens,
        )


def at(recipe: Recipe, number: int) -> Step:
    """Step `number`, counted from 0: what is trained on once so many steps are done."""
    first = stretch(recipe, number)
    return first.after(number - first.number)


def stretch(recipe: Recipe, number: int) -> Step:
    """The first of the steps that have the batch and the length of step `number` and lead up to it without a change."""
    firsts = _stretches(recipe)
    return firsts[bisect_right(firsts, number, key=attrgetter("number")) - 1]


def stretches(recipe: Recipe) -> Iterator[tuple[Step, int]]:
    """Each first step of another batch or length within the run, and the number of steps that are like it."""
    firsts = [first for first in _stretches(recipe) if first.number < recipe.num_steps]
    ends = [*(first.number for first in firsts[1:]), recipe.num_steps]
    for first, end in zip(firsts, ends, strict=True):
        yield first, end - first.number


def num_samples(recipe: Recipe) -> int:
    """Samples of the whole run."""
    return at(recipe, recipe.num_steps).first_sample


def num_tokens(recipe: Recipe) -> int:
    """Tokens of the whole run."""
    return at(recipe, recipe.num_steps).tokens_before


def steps_until(recipe: Recipe, *, samples: int) -> int:
    """The number of steps, at least one, that come nearest to seeing `samples`."""
    firsts = _stretches(recipe)
    first = firsts[bisect_right(firsts, samples, key=attrgetter("first_sample")) - 1]
    return max(1, first.number + round((samples - first.first_sample) / first.global_batch_size))


def steps_until_tokens(recipe: Recipe, tokens: int) -> int:
    """The number of steps, at least one, that come nearest to training on `tokens`."""
    firsts = _stretches(recipe)
    first = firsts[bisect_right(firsts, tokens, key=attrgetter("tokens_before")) - 1]
    return max(1, first.number + round((tokens - first.tokens_before) / first.num_tokens))


def grown(growth: Growth | None, end: int, samples_seen: int) -> int:
    """What grows to `end`, once `samples_seen` were.

    Megatron-LM's --rampup-batch-size (core/num_microbatches_calculator.py): equal increments, each value for the same
    number of samples; in whole numbers, where Megatron divides.
    """
    if growth is None:
        return end
    increments = (end - growth.start) // growth.increment
    return growth.start + growth.increment * min(increments, samples_seen * increments // growth.samples)


def _stretches(recipe: Recipe) -> tuple[Step, ...]:
    return _firsts(recipe.global_batch_size, recipe.batch_ramp, recipe.data.seq_length, recipe.data.curriculum)


@lru_cache
def _firsts(batch: int, ramp: Growth | None, seq_length: int, curriculum: Growth | None) -> tuple[Step, ...]:
    """The first step of each batch and length; the last goes on without end."""

    def first(number: int, seen: int, tokens: int) -> Step:
        return Step(
            number=number,
            first_sample=seen,
            tokens_before=tokens,
            global_batch_size=grown(ramp, batch, seen),
            seq_length=grown(curriculum, seq_length, seen),
        )

    firsts = [first(0, 0, 0)]
    for threshold in sorted({*thresholds(ramp, batch), *thresholds(curriculum, seq_length)}):
        last = firsts[-1]
        num_steps = -(-(threshold - last.first_sample) // last.global_batch_size)
        if num_steps > 0:  # else a step has passed it already
            end = last.after(num_steps)
            firsts.append(first(end.number, end.first_sample, end.tokens_before))
    return tuple(firsts)


def thresholds(growth: Growth | None, end: int) -> list[int]:
    """The samples seen from which on each value after the first holds, until `end` does."""
    if growth is None:
        return []
    increments = (end - growth.start) // growth.increment
    return [-(-index * growth.samples // increments) for index in range(1, increments + 1)]
