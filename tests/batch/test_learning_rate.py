"""The learning rate follows the batch as the papers' own tables do."""

import pytest

from scaling.batch.learning_rate import RULES, scaled
from scaling.errors import InputError
from scaling.recipe import changed

ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}


# You et al. 2020 (arXiv 1904.00962), untuned LAMB for BERT-Large: batch, steps, 5 / (2^x x 10^3), share that warms up.
@pytest.mark.parametrize(
    ("batch", "steps", "exponent", "share"),
    [
        (512, 1_000_000, 3.0, 1 / 320),
        (1024, 500_000, 2.5, 1 / 160),
        (2048, 250_000, 2.0, 1 / 80),
        (4096, 125_000, 1.5, 1 / 40),
        (8192, 62_500, 1.0, 1 / 20),
        (16384, 31_250, 0.5, 1 / 10),
        (32768, 15_625, 0.0, 1 / 5),
    ],
)
def test_lamb_moves_along_the_table_of_its_paper(recipe_of, batch, steps, exponent, share):
    for start in (recipe_of(), recipe_of(batch=512, steps=1_000_000, lr=6.25e-4)):  # down from 32k, up from 512
        moved = scaled(start, batch).recipe
        assert moved.num_steps == steps
        assert moved.optimizer.lr == pytest.approx(5 / (2**exponent * 1e3), rel=1e-9)
        assert moved.schedule.warmup_steps / moved.num_steps == pytest.approx(share)
        assert (moved.optimizer.betas, moved.optimizer.eps) == ([0.9, 0.999], 1e-6)


@pytest.mark.parametrize(
    ("rule", "base", "base_batch", "batch", "lr"),
    [
        # mlcommons/training_policies at d73e20f: Llama 3.1 405B, 8e-5 x GBS / 1152 for 1,152 to 9,216; DeepSeek-V3,
        # 2.4e-5 x sqrt(GBS / 16384).
        ("linear", 8e-5, 1152, 9216, 6.4e-4),
        ("sqrt", 2.4e-5, 16384, 4096, 1.2e-5),
        # Goyal et al. 2017: 0.1 at 256 images, 3.2 at 8k.
        ("linear", 0.1, 256, 8192, 3.2),
    ],
)  # fmt: skip
def test_rules_give_the_rates_of_those_who_published_them(rule, base, base_batch, batch, lr):
    assert base * RULES[rule].lr_factor(batch / base_batch) == pytest.approx(lr)


@pytest.mark.parametrize(("optimizer", "rule", "warmup"), [("adamw", "sqrt", "samples"), ("lamb", "sqrt", "steps")])
def test_each_optimizer_has_its_own_default(recipe_of, optimizer, rule, warmup):
    moved = scaled(recipe_of(name=optimizer), 16384)
    assert (moved.rule.name, moved.warmup.name) == (rule, warmup)


@pytest.mark.parametrize("k", [0.125, 0.5, 2, 4, 8])
def test_moved_betas_average_over_the_same_samples(recipe_of, k):
    """Malladi et al. 2022: the average of Adam's moments spans 1 / (1 - b) steps, whose samples do not change."""
    before = recipe_of("gpt2", batch=256, steps=1024, warmup=64, **ADAMW)
    after = scaled(before, int(256 * k), rule="sqrt-betas").recipe
    for b, moved in zip(before.optimizer.betas, after.optimizer.betas, strict=True):
        assert after.global_batch_size / (1 - moved) == pytest.approx(before.global_batch_size / (1 - b))
    assert after.optimizer.lr == pytest.approx(1e-3 * k**0.5)
    assert after.optimizer.eps == pytest.approx(1e-8 / k**0.5)


def test_every_number_that_moved_is_a_change_with_its_rule(recipe_of):
    before = recipe_of("gpt2", batch=32, steps=240, warmup=30, **ADAMW)
    moved = scaled(before, 4096, rule="sqrt")
    old, new = before.model_dump(), moved.recipe.model_dump()
    flat = {}
    for key in old:
        pairs = {f"{key}.{k}": (old[key][k], new[key][k]) for k in old[key]} if isinstance(old[key], dict) else {}
        flat |= pairs or {key: (old[key], new[key])}
    differ = {key: pair for key, pair in flat.items() if pair[0] != pair[1]}
    said = {change.field: (change.before, change.after) for change in moved.changes}
    assert differ == {key: pair for key, pair in said.items() if pair[0] != pair[1]}
    assert all(change.rule for change in moved.changes)
    rules = {change.field: change.rule for change in moved.changes}
    assert "1.875 rounded; 8192 samples instead of 7680" in rules["num_steps"]
    assert "0.2344 rounded; 12.50% of the run -> 50.00%" in rules["schedule.warmup_steps"]


def test_the_same_batch_changes_nothing(recipe_of):
    for before in (recipe_of(), recipe_of(**ADAMW)):
        assert scaled(before, before.global_batch_size).recipe == before


@pytest.mark.parametrize(
    ("optimizer", "asked", "field", "said", "hint"),
    [
        (ADAMW, {"to": 0}, "to", "is not between 1 and 7680", ""),
        (ADAMW, {"to": -32}, "to", "is not between 1 and 7680", ""),
        (ADAMW, {"to": 7681}, "to", "is not between 1 and 7680", ""),
        (ADAMW, {"to": 64, "rule": "root"}, "rule", "is not a known rule", "linear"),
        (ADAMW, {"to": 64, "warmup": "step"}, "warmup", "is not a known rule", "'steps'"),
        ({}, {"to": 64, "rule": "sqrt-betas"}, "rule", "is not derived for lamb", "sqrt or linear"),
        # 1 - 10 (1 - 0.9) = 0: nothing is left to average over.
        (ADAMW, {"to": 320, "rule": "sqrt-betas"}, "optimizer.betas", "which is not above 0", "below 320"),
        (
            ADAMW | {"betas": [0.0, 0.95]},
            {"to": 33, "rule": "sqrt-betas"},
            "optimizer.betas",
            "not above 0",
            "below 32",
        ),
        # 30 steps of warm-up kept, of the 15 that remain.
        ({}, {"to": 512}, "schedule.warmup_steps", "is more than the 15 steps", "up to 256"),
        (ADAMW, {"to": 512, "warmup": "steps"}, "schedule.warmup_steps", "is more than the 15", "--warmup samples"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(recipe_of, optimizer, asked, field, said, hint):
    model = "gpt2" if optimizer else "bert-base"
    before = recipe_of(model, batch=32, steps=240, warmup=30, **optimizer)
    with pytest.raises(InputError) as caught:
        scaled(before, asked.pop("to"), **asked)
    assert caught.value.field == field
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_hints_of_refusals_work(recipe_of):
    before = recipe_of("gpt2", batch=32, steps=240, warmup=30, **ADAMW)
    assert scaled(before, 319, rule="sqrt-betas").recipe.optimizer.betas[0] > 0
    assert scaled(before, 256, warmup="steps").recipe.schedule.warmup_steps == 30


def test_kept_numbers_are_said_with_what_keeping_them_means(recipe_of):
    notes = " ".join(scaled(recipe_of("gpt2", batch=32, steps=240, warmup=30, **ADAMW), 128).notes)
    # lr x sqrt(4) over a quarter of the steps.
    assert "weight_decay: 0.1 is kept" in notes
    assert "decays 0.5 times as much" in notes
    assert "gradient_clipping: 1 is kept" in notes
    assert "linear has no source for LAMB" in " ".join(scaled(recipe_of(), 16384, rule="linear").notes)


def test_a_run_without_warmup_stays_without(recipe_of):
    for warmup in ("samples", "steps"):
        assert scaled(recipe_of(warmup=0), 512, warmup=warmup).recipe.schedule.warmup_steps == 0


def test_a_stable_decay_keeps_its_samples_whatever_the_batch(recipe_of):
    # Haegele et al. 2024 give the decay as a share of the run.
    schedule = {"name": "warmup-stable-decay", "warmup_steps": 100, "decay_steps": 200}
    before = changed(recipe_of("gpt2", batch=256, steps=1000, warmup=100, **ADAMW), {"schedule": schedule})
    after = scaled(before, 1024).recipe
    assert (after.num_steps, after.schedule.warmup_steps, after.schedule.decay_steps) == (250, 25, 50)


def test_a_polynomial_and_an_inverse_square_root_move_by_their_warmup_alone(recipe_of):
    usual = recipe_of("gpt2", batch=256, steps=1000, warmup=100, **ADAMW)
    polynomial = {"name": "polynomial", "power": 0.5, "decay_from": "start", "min_lr_fraction": 0.0}
    for shape in (polynomial, {"name": "inverse-sqrt"}):
        before = changed(usual, {"schedule": {**shape, "warmup_steps": 100}})
        assert scaled(before, 1024).recipe.schedule.model_dump() == {**shape, "warmup_steps": 25}


def test_a_ramp_is_not_moved_with_its_batch(recipe_of):
    ramp = {"batch_ramp": {"start": 64, "increment": 64, "samples": 10_000}}
    before = changed(recipe_of("gpt2", batch=256, steps=1000, warmup=100, **ADAMW), ramp)
    with pytest.raises(InputError, match="batch_ramp") as caught:
        scaled(before, 1024)
    assert "--ramp linear" in caught.value.hint
