"""Expert parallelism: Mixtral with its experts on several ranks gives the losses of one that has them all."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from scaling import ds_config
from scaling.errors import ScaleError
from scaling.training.export import export
from tests.parallel.families import NUM_STEPS, recipe_of
from tests.ranks import SOAK
from tests.training.runs import layout, losses, run, run_each
from tests.training.test_same_loss import reference

LAYOUTS = {
    "2 ranks, stage 3": layout(2, 3, expert=2),
    "2 x 2 ranks, stage 0": layout(4, 0, micro=1, expert=2),
    "2 x 2 ranks, stage 2, full checkpointing": layout(4, 2, micro=2, expert=2, checkpointing="full"),
    "4 ranks, stage 1, chunked loss": layout(4, 1, micro=2, expert=4, loss="chunked"),
}
if SOAK:
    LAYOUTS |= {f"2 ranks, stage {stage}": layout(2, stage, expert=2) for stage in range(4)}
    LAYOUTS |= {f"2 x 2 ranks, stage {stage}": layout(4, stage, micro=2, expert=2) for stage in range(4)}
    LAYOUTS |= {f"4 ranks, stage {stage}": layout(4, stage, micro=2, expert=4) for stage in range(4)}


def test_experts_on_several_ranks_give_the_losses_of_transformers_mixtral(tmp_path):
    recipe = recipe_of("mixtral", tmp_path, num_steps=NUM_STEPS)
    expected, norms, validation = reference(recipe, tmp_path)
    assert expected[-1] < expected[0] - 0.3
    assert min(norms) > recipe.gradient_clipping
    cases = {tmp_path / name.replace(",", "").replace(" ", "_"): (recipe, how) for name, how in LAYOUTS.items()}
    for folder, lines in run_each(cases).items():
        assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-5), folder.name
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), folder.name
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), folder.name


@pytest.mark.parametrize("stage", [0, 2] if SOAK else [2])
def test_lamb_takes_each_expert_by_its_own_norm_wherever_it_is(stage, tmp_path):
    lamb = {"name": "lamb", "lr": 3e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1}
    recipe = recipe_of("mixtral", tmp_path, num_steps=4, optimizer=lamb, gradient_clipping=0.0)
    whole = [line["loss"] for line in run(tmp_path / "whole", recipe, layout(1, 0, micro=8))]
    split = [line["loss"] for line in run(tmp_path / "split", recipe, layout(2, stage, expert=2))]
    assert split == pytest.approx(whole, rel=1e-5)


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
def test_bf16_losses_are_those_of_one_rank_to_bf16_rounding(tmp_path):
    recipe = recipe_of("mixtral", tmp_path, num_steps=6, precision="bf16")
    whole = [line["loss"] for line in run(tmp_path / "whole", recipe, layout(1, 1, micro=8))]
    for stage, micro in ((1, 2), (2, 4)):  # the first by DeepSpeed's BF16_Optimizer
        found = run(tmp_path / f"stage_{stage}", recipe, layout(2, stage, micro=micro, expert=2))
        assert [line["loss"] for line in found] == pytest.approx(whole, rel=5e-3)


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_run_goes_on_bit_for_bit_with_its_experts_where_they_were_and_close_by_elsewhere(stage, tmp_path):
    recipe, split = recipe_of("mixtral", tmp_path, num_steps=4, checkpoint_every_steps=2), layout(2, stage, expert=2)
    run(tmp_path / "straight", recipe, split)
    run(tmp_path / "begun", recipe, split, "--max_steps", "2")
    if stage:
        other = layout(1, 4 - stage, micro=8)
        run(tmp_path / "gathered", recipe, other, "--resume", str(tmp_path / "begun"))
        assert losses(tmp_path / "gathered") == pytest.approx(losses(tmp_path / "straight")[2:], rel=1e-5)
    if stage == 1:
        run(tmp_path / "whole", recipe, other, "--max_steps", "2")
        run(tmp_path / "spread", recipe, split, "--resume", str(tmp_path / "whole"))
        assert losses(tmp_path / "spread") == pytest.approx(losses(tmp_path / "straight")[2:], rel=1e-5)
    run(tmp_path / "begun", recipe, split)
    assert losses(tmp_path / "begun") == losses(tmp_path / "straight")


def test_experts_that_were_spread_are_exported_bit_for_bit(tmp_path):
    recipe = recipe_of("mixtral", tmp_path, num_steps=2, checkpoint_every_steps=2)
    folder = tmp_path / "run"
    run(folder, recipe, layout(2, 1, expert=2))
    exported = AutoModelForCausalLM.from_pretrained(export(folder, tmp_path / "out"))
    written = folder / "checkpoints" / "step_000002"
    for number, layer in enumerate(exported.model.layers):
        for expert in range(4):  # as DeepSpeed itself writes each
            own = torch.load(written / f"layer_{number}_expert_{expert}_mp_rank_00_model_states.pt")
            w1, w2, w3 = (
                own[f"model.model.layers.{number}.mlp.experts.{name}.{expert}"] for name in ("w1", "w2", "w3")
            )
            assert torch.equal(layer.mlp.experts.gate_up_proj[expert], torch.cat([w1, w3]))
            assert torch.equal(layer.mlp.experts.down_proj[expert], w2)
    shared = torch.load(written / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    for name, weight in exported.named_parameters():
        if ".experts." not in name:
            assert torch.equal(weight, shared["model." + name.replace(".mlp.gate.", ".mlp.router.gate.")]), name


def test_a_checkpoint_of_spread_experts_at_stage_0_is_not_exported(tmp_path):
    recipe = recipe_of("mixtral", tmp_path, num_steps=2)
    run(tmp_path / "run", recipe, layout(2, 0, expert=2))
    with pytest.raises(ScaleError, match="experts spread over ranks at ZeRO-0"):
        export(tmp_path / "run", tmp_path / "out")


def test_what_cannot_be_spread_or_would_route_otherwise_is_refused(tmp_path):
    recipe = recipe_of("mixtral", tmp_path)
    config = ds_config.emit(recipe, layout(3, 1, micro=1, batch=9, expert=3))
    with pytest.raises(ScaleError, match="expert_parallel_size 3 does not divide the experts 4"):
        ds_config.strategy_of(config, recipe, 2)
    adafactor = recipe_of("mixtral", tmp_path, optimizer={"name": "adafactor", "lr": 1e-2, "weight_decay": 0.0})
    spread = layout(2, 0, expert=2)
    with pytest.raises(ScaleError, match="adafactor takes all experts of a layer, gate and up, as one tensor"):
        ds_config.reconcile(ds_config.emit(adafactor, spread), adafactor, spread)
    strategy = layout(2, 1, expert=2)
    config = ds_config.emit(recipe, strategy)
    config["expert_parallel"]["route_norm"] = False
    with pytest.raises(ScaleError, match="route_norm: False here, True by the recipe"):
        ds_config.reconcile(config, recipe, strategy)
