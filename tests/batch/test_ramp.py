"""A growing batch, as those who trained so had it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling import course
from scaling.batch.ramp import WAYS, Run, linear, linear_growth, ramp, ramped
from scaling.errors import InputError
from scaling.recipe import Growth, changed


def run_of(**fields):
    usual = dict(num_samples=48_000_000, seq_length=512, batch=2048, multiple_of=64, worthwhile_batch=2533.0)
    return Run(**{**usual, **fields})


def test_equal_increments_are_those_of_nemo_and_megatron():
    # NeMo's documentation of rampup_batch_size: [256, 128, 50000000] "will start with a batch size of 256, increment by
    # 128, and reach the target global batch size of 1024 over 50,000,000 training samples".
    growth = linear_growth(256, 1024, 128, 50_000_000)
    assert growth == Growth(start=256, increment=128, samples=50_000_000)


def test_the_linear_ramp_starts_and_ends_where_gpt3s_did():
    # Brown et al. 2020, appendix B: from 32k tokens over the first 4-12 of 300 billion; 175B's batch is 1,536 x 2,048.
    stages = ramp(Run(num_samples=300_000_000_000 // 2048, seq_length=2048, batch=1536, multiple_of=1), "linear")
    assert stages[0].batch * 2048 == pytest.approx(32_000, rel=0.05)
    assert stages[-1].first_sample * 2048 == pytest.approx(12e9, rel=0.01)
    assert stages[-1].batch == 1536
    assert {stage.lr_factor for stage in stages} == {1.0}


@pytest.mark.parametrize(
    ("batch", "steps"), [(745, 13_282), (955, 23_438), (1394, 46_875), (1889, 93_750), (2533, 187_500)]
)
def test_the_critical_batch_grows_as_between_zhangs_runs(batch, steps):
    # Zhang et al. 2024: batches of 20 % overhead after so many steps of 256 sequences.
    assert run_of(num_samples=187_500 * 256).samples_until(batch) == pytest.approx(steps * 256, rel=0.16)


def test_the_batch_doubles_with_the_critical_one_and_the_rate_with_its_root():
    # Merrill et al. 2025.
    stages = ramp(run_of(), "doubling")
    assert [stage.batch for stage in stages] == [256, 512, 1024, 2048]
    assert [stage.lr_factor for stage in stages] == pytest.approx([8**-0.5, 0.5, 2**-0.5, 1])
    starts = [stage.first_sample for stage in stages[1:]]
    assert starts == pytest.approx([run_of().samples_until(batch) for batch in (512, 1024, 2048)], rel=0.001)


def test_a_batch_that_never_becomes_worthwhile_is_not_reached():
    assert ramp(run_of(batch=8192), "doubling")[-1].batch == 2048


@given(
    way=st.sampled_from(sorted(WAYS)),
    multiple_of=st.integers(1, 100),
    multiples=st.integers(1, 200),
    num_samples=st.integers(20_000, 10**12),
    seq_length=st.integers(1, 10**6),
    worthwhile_batch=st.floats(1e-3, 1e9),
)
def test_stages_are_whole_contiguous_and_growing(
    way, multiple_of, multiples, num_samples, seq_length, worthwhile_batch
):
    run = Run(
        num_samples=num_samples, seq_length=seq_length, batch=multiple_of * multiples, multiple_of=multiple_of,
        worthwhile_batch=worthwhile_batch,
    )  # fmt: skip
    stages = ramp(run, way)
    assert stages[0].first_sample == 0
    for before, after in pairwise(stages):
        assert before.end_sample == after.first_sample
        assert before.batch < after.batch
    assert all(stage.batch % multiple_of == 0 and stage.num_steps >= 1 for stage in stages)
    assert all(0 < stage.lr_factor <= 1 for stage in stages)
    assert stages[-1].batch <= run.batch
    assert abs(stages[-1].end_sample - num_samples) <= run.batch


@given(start=st.integers(1, 300), multiples=st.integers(0, 3000), multiple_of=st.integers(1, 64))
def test_a_linear_ramp_starts_where_it_should_or_little_above_and_comes_out_even(start, multiples, multiple_of):
    start *= multiple_of
    end = start + multiples * multiple_of
    growth = linear_growth(start, end, multiple_of, 10**6)
    if growth is None:
        assert multiples == 0
        return
    assert start <= growth.start < start + 8 * multiple_of
    assert (growth.start % multiple_of, growth.increment % multiple_of) == (0, 0)
    assert (end - growth.start) % growth.increment == 0
    assert min(multiples, 4) <= (end - growth.start) // growth.increment <= 8


def test_the_stages_are_those_that_the_recipes_ramp_trains_by(recipe_of):
    run = Run(num_samples=2_000_000, seq_length=128, batch=4096, multiple_of=64)
    before = recipe_of("gpt2", batch=4096, steps=488, warmup=20)
    after, changes = ramped(before, linear(run))
    stages = ramp(run, "linear")
    assert [(stage.first_sample, stage.batch, stage.num_steps) for stage in stages[:-1]] == [
        (first.first_sample, first.global_batch_size, num_steps) for first, num_steps in course.stretches(after)
    ][:-1]
    assert stages[-1].batch == after.global_batch_size
    assert course.num_samples(after) == pytest.approx(488 * 4096, abs=2048)
    warm = course.at(after, after.schedule.warmup_steps).first_sample
    assert warm == pytest.approx(20 * 4096, rel=0.02)
    assert {change.field: change.after for change in changes}["num_steps"] == after.num_steps


def test_a_stable_decay_keeps_its_samples_on_a_ramp(recipe_of):
    schedule = {"name": "warmup-stable-decay", "warmup_steps": 20, "decay_steps": 100}
    before = changed(recipe_of("gpt2", batch=4096, steps=488, warmup=20), {"schedule": schedule})
    after, _ = ramped(before, Growth(start=256, increment=256, samples=400_000))
    assert after.schedule.decay_steps == 100  # the ramp is over by then
    assert after.schedule.warmup_steps > 100


@pytest.mark.parametrize(
    ("fields", "way", "field", "hint"),
    [
        ({"batch": 100}, "linear", "global_batch_size", "nearest: 64 and 128"),
        ({"batch": 32}, "linear", "global_batch_size", "nearest: 64"),
        ({"multiple_of": 0}, "linear", "multiple_of", ""),
        ({"worthwhile_batch": None}, "doubling", "ramp", "--noise-scale"),
        ({}, "double", "ramp", "'doubling'"),
    ],
)
def test_what_cannot_be_a_ramp_is_refused(fields, way, field, hint):
    with pytest.raises(InputError) as caught:
        ramp(run_of(**fields), way)
    assert caught.value.field == field
    assert hint in caught.value.hint
