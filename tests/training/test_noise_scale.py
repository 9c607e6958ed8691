"""The noise scale's two parts, from hooks and the engine's norm, against gradients taken one by one in float64."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator

from scaling import data, models, train
from scaling.data import Split
from scaling.training.optimizer import parameter_groups
from scaling.training.schedule import learning_rate
from tests.ranks import SOAK, on_ranks
from tests.training.runs import files, layout, metrics, tiny_recipe

PARTS = ["gradient_signal", "gradient_noise"]

# Micro batches of 2 out of 8: every stage, ranks and accumulation, recomputation, a chunked loss.
LAYOUTS = {
    "1 rank, stage 0, accumulation 4": layout(1, 0, micro=2),
    "1 rank, stage 3, accumulation 4, checkpointing": layout(1, 3, micro=2, checkpointing="full"),
    "2 ranks, stage 0, accumulation 2, checkpointing": layout(2, 0, micro=2, checkpointing="full"),
    "2 ranks, stage 1, accumulation 2": layout(2, 1, micro=2),
    "2 ranks, stage 2, accumulation 2, checkpointing, chunked loss": layout(
        2, 2, micro=2, checkpointing="full", loss="chunked"
    ),
    "2 ranks, stage 3, accumulation 2": layout(2, 3, micro=2),
    "2 ranks, stage 3, accumulation 2, chunked loss": layout(2, 3, micro=2, loss="chunked"),
}


def reference(recipe, folder, micro=2, batches=(8,) * 6):
    """(signal, noise) of each step from the definition in McCandlish et al. 2018, appendix A.1, in plain torch.

    The training is the reference's own, in float64. The mean over small batches weighs them by their targets.
    """
    corpus = data.prepare(recipe, base=folder, cache=folder / "cache")
    model = models.build(recipe.shape, seed=recipe.seed).double()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.optimizer.weight_decay), betas=recipe.optimizer.betas, eps=recipe.optimizer.eps
    )
    found = []

    def gradient(samples):
        batch = corpus.train.batch(samples)
        labels = batch["labels"].flatten()
        loss = F.cross_entropy(model(input_ids=batch["input_ids"]).logits.flatten(0, 1), labels)
        gradients = torch.autograd.grad(loss, parameters)
        return gradients, sum(float(g.square().sum()) for g in gradients), int((labels >= 0).sum())

    for step in range(recipe.num_steps):
        first, size = sum(batches[:step]), batches[step]
        gradients, big, num_targets = gradient(range(first, first + size))
        small = 0.0
        for start in range(first, first + size, micro):
            _, squared, targets = gradient(range(start, start + micro))
            small += squared * targets / num_targets
        found.append(((size * big - micro * small) / (size - micro), (small - big) / (1 / micro - 1 / size)))
        for parameter, g in zip(parameters, gradients, strict=True):
            parameter.grad = g
        torch.nn.utils.clip_grad_norm_(parameters, recipe.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step + 1)
        optimizer.step()
    return found


def _train(argv, changes):
    changes()
    train.main(argv)


def nothing():
    pass


def ragged_batches():
    """Every third sample keeps but four of its targets."""
    whole = Split.batch

    def batch(self, indices, *seq_length):
        found = whole(self, indices, *seq_length)
        for row, index in enumerate(indices):
            if index % 3 == 0:
                found["labels"][row, 4:] = data.IGNORED
        return found

    Split.batch = batch


def fp16_whose_loss_scale_doubles():
    """After every second step; and fp16 on a CPU that says it has none, and can all the same."""
    import deepspeed

    get_accelerator().is_fp16_supported = lambda: True
    initialize = deepspeed.initialize

    def initialized(*, config, **kwargs):
        config["fp16"] |= {"initial_scale_power": 12, "loss_scale_window": 2}
        return initialize(config=config, **kwargs)

    deepspeed.initialize = initialized


def measuring_switched_off():
    from scaling.training import noise_scale

    class Off(noise_scale.GradientNoise):
        def __init__(self, engine, strategy, device):
            super().__init__(engine, replace(strategy, gradient_accumulation_steps=1, data_parallel_size=1), device)

    noise_scale.GradientNoise = Off


def trained(folder, recipe, strategy, changes=nothing):
    """The metrics of a run in `folder`; `changes` are made on each rank before it."""
    recipe_path, config_path = files(folder / "asked", recipe, strategy)
    argv = ["--ds_config", str(config_path), "--recipe", str(recipe_path), "--run_dir", str(folder)]
    on_ranks(strategy.data_parallel_size, _train, [*argv, "--loss_kernel", strategy.loss_kernel], changes)
    return metrics(folder)


def assert_close(lines, truth, rel):
    """Both parts to `rel` of what they are differences of."""
    for line, (signal, noise) in zip(lines, truth, strict=True):
        size = abs(signal) + noise / 2
        assert line["gradient_signal"] == pytest.approx(signal, abs=rel * size)
        assert line["gradient_noise"] == pytest.approx(noise, abs=2 * rel * size)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_in_every_layout_signal_and_noise_are_those_of_gradients_taken_one_by_one(family, tmp_path):
    recipe = tiny_recipe(tmp_path, family=family, num_steps=4)
    truth = reference(recipe, tmp_path)
    layouts = LAYOUTS if family == "gpt2" else dict(list(LAYOUTS.items())[::3])
    for number, strategy in enumerate(layouts.values()):
        lines = trained(tmp_path / str(number), recipe, strategy)
        assert_close(lines, truth, 1e-4)


def test_on_a_ramp_the_batch_that_is_compared_is_the_steps_own(tmp_path):
    ramp, batches = {"start": 4, "increment": 4, "samples": 24}, [4, 4, 8, 12, 16]  # at samples 0, 4, 8, 16 and 28
    recipe = tiny_recipe(tmp_path, num_steps=5, global_batch_size=16, batch_ramp=ramp)
    truth = reference(recipe, tmp_path, batches=batches)
    assert_close(trained(tmp_path / "two", recipe, layout(2, 2, micro=2, batch=16)), truth, 1e-4)
    lines = trained(tmp_path / "one", recipe, layout(1, 0, micro=4, batch=16))
    assert [("gradient_noise" in line) for line in lines] == [False, False, True, True, True]


def test_micro_batches_with_unequal_numbers_of_targets_count_by_their_targets(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path, num_steps=4)
    lines = trained(tmp_path / "run", recipe, layout(2, 2, micro=2), ragged_batches)
    monkeypatch.setattr(Split, "batch", Split.batch)  # to be undone
    ragged_batches()
    assert_close(lines, reference(recipe, tmp_path), 1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"] if SOAK else ["bf16"])
def test_in_16_bit_the_stages_agree_to_rounding(precision, tmp_path):
    recipe = tiny_recipe(tmp_path, precision=precision, num_steps=6)
    truth = reference(recipe, tmp_path)
    for stage in (1, 2, 3):
        changes = fp16_whose_loss_scale_doubles if precision == "fp16" else nothing
        lines = trained(tmp_path / str(stage), recipe, layout(2, stage, micro=2), changes)
        assert_close(lines, truth, 5e-3)
        if precision == "fp16":  # DeepSpeed's norm at stage 3 is half of it at these steps
            assert lines[-1]["loss_scale"] > lines[0]["loss_scale"]


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_losses_and_norms_are_bit_for_bit_those_of_a_run_that_does_not_measure(stage, precision, tmp_path):
    recipe, strategy = tiny_recipe(tmp_path, precision=precision), layout(2, stage, micro=2)
    on = trained(tmp_path / "on", recipe, strategy)
    off = trained(tmp_path / "off", recipe, strategy, measuring_switched_off)
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in on] == [line[key] for line in off]
    assert all(part in line for part in PARTS for line in on)
    assert not any(part in line for part in PARTS for line in off)


def speaking_into(path):
    sys.stdout = open(path, "a")  # noqa: SIM115  open for as long as the rank lives


def test_a_run_ends_with_its_noise_scale_or_why_there_is_none(tmp_path):
    recipe, said = tiny_recipe(tmp_path, num_steps=40), tmp_path / "said"
    lines = trained(tmp_path / "two", recipe, layout(2, 1), partial(speaking_into, said))
    assert all(part in line for part in PARTS for line in lines)
    assert "gradient noise scale of steps 21 to 40: " in said.read_text()
    lines = trained(tmp_path / "one", recipe, layout(1, 1, micro=8), partial(speaking_into, said))
    assert not any(part in line for part in PARTS for line in lines)
    assert said.read_text().count("gradient noise scale: not measured, a step being one micro batch") == 1
