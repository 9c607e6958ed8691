"""The course of a run against Megatron-LM's ramp and DeepSpeed's curriculum of lengths, walked step by step."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import course
from scaling.errors import InputError
from scaling.recipe import changed, parse

_RECIPE = parse(
    """
    name: small
    model: gpt-demo
    task: causal-lm
    data: {corpus: [a.txt], seq_length: 128, validation_fraction: 0.05}
    global_batch_size: 32
    num_steps: 400
    optimizer: {name: adamw, lr: 1e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}
    schedule: {name: constant, warmup_steps: 0}
    precision: bf16
    gradient_clipping: 1.0
    """,
    "r.yaml",
)


def recipe_of(batch=32, ramp=None, seq_length=128, curriculum=None, num_steps=400):
    data = {**_RECIPE.data.model_dump(), "seq_length": seq_length, "curriculum": curriculum}
    return changed(
        _RECIPE, {"global_batch_size": batch, "batch_ramp": ramp, "data": data, "num_steps": num_steps}
    )  # fmt: skip


def megatrons_batch(consumed, start, increment, ramp_samples, end):
    """RampupBatchsizeNumMicroBatchesCalculator.update (Megatron-LM, core/num_microbatches_calculator.py)."""
    samples_per_increment = ramp_samples / ((end - start) // increment)
    if consumed > ramp_samples:
        return end
    return start + int(consumed / samples_per_increment) * increment


@given(
    start=st.integers(1, 64).map(lambda n: 2 * n),
    increment=st.sampled_from([2, 4, 6, 32]),
    increments=st.integers(1, 12),
    # A power of two divides without rounding, so that Megatron's floats are exact.
    samples_each=st.sampled_from([1, 16, 256, 4096]),
)
def test_each_batch_is_megatrons_and_steps_neither_leave_out_nor_repeat_a_sample(
    start, increment, increments, samples_each
):
    end, samples = start + increment * increments, increments * samples_each
    recipe = recipe_of(batch=end, ramp={"start": start, "increment": increment, "samples": samples})
    consumed = 0
    for number in range(300):
        step = course.at(recipe, number)
        assert (step.number, step.first_sample, step.tokens_before) == (number, consumed, consumed * 128)
        assert step.global_batch_size == megatrons_batch(consumed, start, increment, samples, end)
        assert step.global_batch_size % recipe.batch_divisor == 0
        assert course.steps_until(recipe, samples=consumed) == max(1, number)
        consumed += step.global_batch_size


def test_the_ramp_of_nemos_documentation_reaches_its_batch_after_50_million_samples():
    # "start with a batch size of 256, increment by 128, and reach the target global batch size of 1024 over 50,000,000
    # training samples" (NeMo, rampup_batch_size).
    recipe = recipe_of(batch=1024, ramp={"start": 256, "increment": 128, "samples": 50_000_000}, num_steps=200_000)
    firsts = list(course.stretches(recipe))
    assert [first.global_batch_size for first, _ in firsts] == [256, 384, 512, 640, 768, 896, 1024]
    for index, (first, _) in enumerate(firsts):
        assert 0 <= first.first_sample - index * 50_000_000 / 6 < 896
    assert sum(num_steps for _, num_steps in firsts) == 200_000
    assert sum(num_steps * first.global_batch_size for first, num_steps in firsts) == course.num_samples(recipe)


@pytest.mark.parametrize(("steps", "increment", "samples"), [(15, 8, 64), (7, 16, 1024), (3, 8, 4096)])
def test_the_lengths_are_those_of_deepspeeds_curriculum_scheduler_and_their_tokens_are_counted(
    steps, increment, samples
):
    from deepspeed.runtime.data_pipeline.curriculum_scheduler import CurriculumScheduler

    end, batch = increment * (1 + steps), 32
    theirs = CurriculumScheduler({
        "min_difficulty": increment, "max_difficulty": end, "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": samples // batch, "difficulty_step": increment},
    })  # fmt: skip
    recipe = recipe_of(
        seq_length=end, curriculum={"start": increment, "increment": increment, "samples": samples}, batch=batch
    )
    tokens = 0
    for number in range(samples // batch + 3):
        step = course.at(recipe, number)
        assert step.seq_length == theirs.update_difficulty(number)
        assert step.tokens_before == tokens
        tokens += batch * step.seq_length
    assert step.seq_length == end


def test_a_ramp_and_a_curriculum_go_together_each_by_the_samples():
    recipe = recipe_of(
        batch=32, ramp={"start": 8, "increment": 8, "samples": 96},
        seq_length=128, curriculum={"start": 32, "increment": 32, "samples": 192}, num_steps=12,
    )  # fmt: skip
    steps = [course.at(recipe, number) for number in range(12)]
    assert [step.first_sample for step in steps] == [0, 8, 16, 24, 32, 48, 64, 88, 112, 144, 176, 208]
    assert [step.global_batch_size for step in steps] == [8, 8, 8, 8, 16, 16, 24, 24, 32, 32, 32, 32]
    assert [step.seq_length for step in steps] == [32, 32, 32, 32, 32, 32, 64, 64, 64, 96, 96, 128]
    assert course.num_tokens(recipe) == sum(step.num_tokens for step in steps)
    assert course.steps_until_tokens(recipe, course.num_tokens(recipe)) == 12


def test_a_step_far_into_the_finest_ramp_costs_no_walk():
    ramp = {"start": 1, "increment": 1, "samples": 10**9}
    recipe = recipe_of(batch=10_001, ramp=ramp, num_steps=10**6)
    course.at(recipe, 0)
    started_at = time.perf_counter()
    for number in range(0, 10**6, 1000):
        course.at(recipe, number)
    assert time.perf_counter() - started_at < 1  # 0.02 s


@pytest.mark.parametrize(
    ("batch", "ramp", "field", "hint"),
    [
        (32, (8, 5, 100), "batch_ramp.increment", "nearest: 4 and 6"),
        (32, (8, 25, 100), "batch_ramp.increment", "nearest: 24"),
        (32, (32, 4, 100), "batch_ramp.start", "start lower, or leave batch_ramp out"),
        (10**9, (1, 1, 100), "batch_ramp.increment", "nearest: 333667"),
    ],
)
def test_a_ramp_that_does_not_come_out_is_refused_with_what_does(batch, ramp, field, hint):
    with pytest.raises(InputError) as caught:
        recipe_of(batch=batch, ramp=dict(zip(("start", "increment", "samples"), ramp, strict=True)))
    assert (caught.value.field, caught.value.hint) == (field, hint)
