"""The learning rate against torch's own schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR

from scaling.training.schedule import learning_rate
from tests.training.runs import tiny_recipe

PEAK, WARMUP, STEPS, LOW = 3e-3, 10, 100, 0.1


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
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.filterwarnings("ignore::UserWarning")  # SequentialLR passes epochs to its children
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_rates_are_those_of_torchs_schedulers(name, tmp_path):
    recipe = tiny_recipe(
        tmp_path, num_steps=STEPS, schedule={"name": name, "warmup_steps": WARMUP, "min_lr_fraction": LOW}
    )
    rates = [learning_rate(recipe, step) for step in range(1, STEPS + 1)]
    assert rates == pytest.approx(torch_rates(name), rel=1e-6)


def test_without_warmup_the_first_step_is_already_decaying(tmp_path):
    recipe = tiny_recipe(tmp_path, num_steps=4, schedule={"name": "linear", "warmup_steps": 0})
    assert [learning_rate(recipe, step) / PEAK for step in (1, 2, 3, 4)] == pytest.approx([0.75, 0.5, 0.25, 0])
