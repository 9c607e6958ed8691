"""The learning rate against torch's own schedulers, transformers', NVIDIA's and the papers' formulas."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from scaling.training.schedule import learning_rate
from tests.training.runs import tiny_recipe

PEAK, WARMUP, STEPS, LOW = 3e-3, 10, 100, 0.1


FLOOR = {"constant": {}, "linear": {"min_lr_fraction": LOW}, "cosine": {"min_lr_fraction": LOW}}


def rates(tmp_path, *, num_steps=STEPS, batch=8, ramp=None, **schedule):
    """Of steps 1 to `num_steps`."""
    schedule = {"warmup_steps": WARMUP, **schedule}
    recipe = tiny_recipe(
        tmp_path, num_steps=num_steps, schedule=schedule, global_batch_size=batch, batch_ramp=ramp
    )  # fmt: skip
    return [learning_rate(recipe, step) for step in range(1, num_steps + 1)]


def torch_rates(name):
    """Rates of steps 1 to STEPS by torch: linear warm-up from PEAK / WARMUP to PEAK, then `name` down to LOW."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    decay = {
        "constant": lambda: LambdaLR(optimizer, lambda _: 1.0),
        "linear": lambda: LinearLR(optimizer, 1.0, LOW, total_iters=STEPS - WARMUP),
        "cosine": lambda: CosineAnnealingLR(optimizer, STEPS - WARMUP, eta_min=LOW * PEAK),
    }[name]()
    warmup = LinearLR(optimizer, 1 / WARMUP, 1.0, total_iters=WARMUP - 1)
    schedule = SequentialLR(optimizer, [warmup, decay], milestones=[WARMUP - 1])
    return walked(optimizer, schedule)


def walked(optimizer, schedule):
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")  # SequentialLR passes epochs to its children
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_rates_are_those_of_torchs_schedulers(name, tmp_path):
    assert rates(tmp_path, name=name, **FLOOR[name]) == pytest.approx(torch_rates(name), rel=1e-6)


def test_without_warmup_the_first_step_is_already_decaying(tmp_path):
    recipe = tiny_recipe(tmp_path, num_steps=4, schedule={"name": "linear", "warmup_steps": 0})
    assert [learning_rate(recipe, step) / PEAK for step in (1, 2, 3, 4)] == pytest.approx([0.75, 0.5, 0.25, 0])


def by_steps(name, step, *, num_steps, warmup_steps, low):
    """What scaling/training/schedule.py was while it counted steps."""
    if step <= warmup_steps:
        return PEAK * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - warmup_steps))
    return {
        "constant": PEAK,
        "linear": PEAK * (low + (1 - low) * (1 - progress)),
        "cosine": PEAK * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2),
    }[name]


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("batch", [1, 8, 96, 1000, 3_333_333])
def test_at_a_constant_batch_counting_samples_gives_the_very_double_that_counting_steps_gives(name, batch, tmp_path):
    for num_steps, warmup_steps in ((1, 1), (7, 3), (997, 0), (1000, 283), (64, 64)):
        found = rates(
            tmp_path, name=name, num_steps=num_steps, warmup_steps=warmup_steps, batch=batch, **FLOOR[name]
        )  # fmt: skip
        usual = {"num_steps": num_steps, "warmup_steps": warmup_steps, "low": LOW}
        assert found == [by_steps(name, step, **usual) for step in range(1, num_steps + 1)]


def test_a_polynomial_is_transformers(tmp_path):
    from transformers import get_polynomial_decay_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = get_polynomial_decay_schedule_with_warmup(optimizer, WARMUP, STEPS, lr_end=LOW * PEAK, power=0.5)
    theirs = walked(optimizer, schedule)  # one step behind ours: theirs of step 0 comes first
    ours = rates(tmp_path, name="polynomial", power=0.5, min_lr_fraction=LOW)
    assert ours[:-1] == pytest.approx(theirs[1:], rel=1e-12)
    assert rates(tmp_path, name="polynomial", power=1.0) == rates(tmp_path, name="linear")


def poly_warm_up_scheduler(step, *, lr, warmup, total_steps, degree):
    """PolyWarmUpScheduler.step (NVIDIA/DeepLearningExamples 729963d, PyTorch/LanguageModeling/BERT/schedulers.py)."""
    progress = step / total_steps
    return lr * progress / warmup if progress < warmup else lr * (1.0 - progress) ** degree


def test_nvidias_polynomial_counts_from_the_start_and_drops_from_6e_3_to_5_08e_3_as_the_warmup_ends(tmp_path):
    recipe = tiny_recipe(
        tmp_path, num_steps=7038,
        optimizer={"name": "lamb", "lr": 6e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01},
        schedule={"name": "polynomial", "power": 0.5, "decay_from": "start", "warmup_steps": 2000},
    )  # fmt: skip
    assert learning_rate(recipe, 2000) == 6e-3
    assert learning_rate(recipe, 2001) == pytest.approx(5.08e-3, rel=1e-3)
    for step in (1, 500, 1999, 2001, 3000, 7000, 7038):
        theirs = poly_warm_up_scheduler(step, lr=6e-3, warmup=0.2843, total_steps=7038, degree=0.5)
        assert learning_rate(recipe, step) == pytest.approx(theirs, rel=5e-4)  # 0.2843 is 2000.9 steps


def test_the_inverse_square_root_is_that_of_attention_is_all_you_need(tmp_path):
    # Vaswani et al. 2017, equation 3, with its constant chosen so that the peak is ours.
    d_model = (PEAK * WARMUP**0.5) ** -2
    theirs = [d_model**-0.5 * min(step**-0.5, step * WARMUP**-1.5) for step in range(1, STEPS + 1)]
    assert rates(tmp_path, name="inverse-sqrt") == pytest.approx(theirs, rel=1e-12)


def test_warmup_stable_decay_is_transformers_with_haegeles_shape(tmp_path):
    from transformers import get_wsd_schedule

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = get_wsd_schedule(optimizer, WARMUP, 20, num_training_steps=STEPS, decay_type="1-sqrt")
    theirs = walked(optimizer, schedule)
    ours = rates(tmp_path, name="warmup-stable-decay", decay_steps=20)
    assert ours[:-1] == pytest.approx(theirs[1:], rel=1e-12)
    assert ours[79] == PEAK
    assert ours[84] == pytest.approx(PEAK * (1 - math.sqrt(5 / 20)))
    assert ours[-1] == 0
    floored = rates(tmp_path, name="warmup-stable-decay", decay_steps=20, min_lr_fraction=LOW)
    assert floored[-1] == pytest.approx(LOW * PEAK)


def test_on_a_ramp_the_rate_goes_by_the_samples_and_not_by_the_steps(tmp_path):
    ramp = {"start": 8, "increment": 8, "samples": 48}  # 8 samples a step, 16 from sample 24 on, 24 from 56 on
    seen = [8, 16, 24, 40, 56, 80, 104, 128, 152, 176]
    found = rates(tmp_path, name="linear", num_steps=10, warmup_steps=4, batch=24, ramp=ramp)
    assert found[:4] == pytest.approx([PEAK * samples / 40 for samples in seen[:4]])
    assert found[4:] == pytest.approx([PEAK * (176 - samples) / 136 for samples in seen[4:]])
