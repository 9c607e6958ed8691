"""A recipe with LAMB through the real program: same losses under every plan, bit for bit after a resume, exported."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from scaling import data, ds_config, models, train
from scaling.errors import FileProblems
from scaling.optim import Lamb
from scaling.training.export import export
from scaling.training.optimizer import parameter_groups
from scaling.training.schedule import learning_rate
from tests.training.runs import files, layout, losses, metrics, run, tiny_recipe

LAMB = {"name": "lamb", "lr": 1e-2, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "trust_clip": [0.0, 10.0]}
LAYOUTS = {
    "stage 0": ("fp32", layout(2, 0)),
    "stage 1, accumulation": ("fp32", layout(2, 1, micro=2)),
    "stage 2": ("fp32", layout(2, 2)),
    "stage 3, accumulation, checkpointing": ("fp32", layout(2, 3, micro=1, checkpointing="full")),
    "bf16 stage 1, accumulation (BF16_Optimizer)": ("bf16", layout(2, 1, micro=2)),
    "bf16 stage 2, offloaded": ("bf16", dataclasses.replace(layout(2, 2), offload_optimizer="cpu")),
}


def recipe_in(folder, precision="fp32"):
    return tiny_recipe(folder, optimizer=LAMB, num_steps=5, precision=precision, checkpoint_every_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of every layout."""
    folder = tmp_path_factory.mktemp("lamb")
    for name, (precision, strategy) in LAYOUTS.items():
        run(folder / name, recipe_in(folder, precision), strategy)
    return folder


def test_every_plan_gives_the_losses_of_lamb_in_a_plain_torch_loop(folder):
    recipe = recipe_in(folder)
    corpus = data.prepare(recipe, base=folder, cache=folder / "cache")
    model = models.build(recipe.shape, seed=recipe.seed)
    arguments = {key: value for key, value in LAMB.items() if key not in ("name", "lr", "weight_decay")}
    optimizer = Lamb(parameter_groups(model, 0.01), lr=0.0, **arguments)
    expected = []
    for step in range(recipe.num_steps):
        batch = corpus.train.batch(range(8 * step, 8 * step + 8))
        logits = model(input_ids=batch["input_ids"]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step + 1)
        optimizer.step()
        expected.append(float(loss.detach()))
    assert expected[-1] < expected[0] - 0.05  # it learns
    for name, (precision, _) in LAYOUTS.items():
        rel = 1e-5 if precision == "fp32" else 4e-3  # a bf16 number carries 8 bits
        assert losses(folder / name) == pytest.approx(expected, rel=rel), name


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_resumed_at_step_2_repeats_the_uninterrupted_one_bit_for_bit(folder, name, tmp_path):
    (precision, strategy), straight = LAYOUTS[name], folder / name
    run(tmp_path, recipe_in(folder, precision), strategy, "--resume", str(straight / "checkpoints" / "step_000002"))
    assert [line["step"] for line in metrics(tmp_path)] == [3, 4, 5]
    for key in ("loss", "grad_norm", "lr"):
        assert [line[key] for line in metrics(tmp_path)] == [line[key] for line in metrics(straight)][2:], key
    # The weights too: exports hold the fp32 master copy.
    exports = [export(source, tmp_path / f"export-{n}") for n, source in enumerate((straight, tmp_path))]
    first, second = ((out / "model.safetensors").read_bytes() for out in exports)
    assert first == second


def test_an_export_is_a_transformers_model(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(export(folder / "stage 2", tmp_path / "out"))
    assert model.num_parameters() == recipe_in(folder).shape.num_params


def test_a_configuration_with_deepspeeds_own_lamb_is_refused(folder, tmp_path):
    recipe, (_, strategy) = recipe_in(folder), LAYOUTS["stage 2"]
    config = {**ds_config.emit(recipe, strategy), "optimizer": {"type": "Lamb", "params": {"lr": 0.01}}}
    with pytest.raises(FileProblems, match=r"scaling\.optim\.Lamb, which is handed"):
        ds_config.reconcile(config, recipe, strategy)
    asked = files(tmp_path, recipe, strategy)
    flags = ["--ds_config", str(asked[1]), "--recipe", str(asked[0])]
    assert "optimizer" not in train.parse(flags).config
