"""Sequence parallelism: slices of sequences on several ranks give the losses of whole ones on one."""

import pytest

from scaling import ds_config
from scaling.errors import ScaleError
from scaling.training.engine import gradient_divisor
from tests.parallel.families import NUM_STEPS, recipe_of
from tests.ranks import SOAK
from tests.training.runs import layout, losses, run, run_each
from tests.training.test_same_loss import reference

# Every stage for GPT-2, whose head is tied; Llama, with grouped keys, on two groups.
LAYOUTS = {
    "gpt2": {f"2 ranks, stage {stage}": layout(2, stage, sequence=2) for stage in range(4)},
    "llama": {"4 ranks, stage 3": layout(4, 3, micro=2, sequence=2)},
    "gpt-neox": {"stage 1, selective": layout(2, 1, sequence=2, checkpointing="selective")},
    "opt": {"stage 2, chunked loss": layout(2, 2, sequence=2, loss="chunked")},
    "mistral": {"stage 3, selective": layout(2, 3, sequence=2, checkpointing="selective")},
    "qwen2": {"stage 3, full checkpointing": layout(2, 3, sequence=2, checkpointing="full")},
    "qwen3": {"stage 0, full checkpointing": layout(2, 0, sequence=2, checkpointing="full")},
    "mixtral": {"stage 1": layout(2, 1, sequence=2)},
    # With one sample a rank now and then has no masked token among its sixteen.
    "bert": {"stage 2, accumulation 8": layout(2, 2, micro=1, sequence=2)},
    "roberta": {"stage 1": layout(2, 1, sequence=2)},
    "modernbert": {"4 slices, stage 0": layout(4, 0, sequence=4)},
}
if not SOAK:
    LAYOUTS = {family: LAYOUTS[family] for family in ("gpt2", "llama", "bert", "modernbert")}
else:
    for family in LAYOUTS:
        LAYOUTS[family] |= {f"2 ranks, stage {stage}": layout(2, stage, sequence=2) for stage in range(4)}
        LAYOUTS[family] |= {f"4 ranks, stage {stage}": layout(4, stage, micro=2, sequence=2) for stage in range(4)}


def test_slices_of_sequences_give_the_losses_of_a_plain_torch_loop(tmp_path):
    recipes = {family: recipe_of(family, tmp_path, num_steps=NUM_STEPS) for family in LAYOUTS}
    cases = {
        tmp_path / family / name.replace(",", "").replace(" ", "_"): (recipes[family], strategy)
        for family, strategies in LAYOUTS.items()
        for name, strategy in strategies.items()
    }
    expected = {family: reference(recipe, tmp_path) for family, recipe in recipes.items()}
    for folder, lines in run_each(cases).items():
        losses_of, norms, validation = expected[folder.parent.name]
        case = f"{folder.parent.name}, {folder.name}"
        assert losses_of[-1] < losses_of[0] - 0.3, case
        assert min(norms) > recipes[folder.parent.name].gradient_clipping, case
        assert [line["loss"] for line in lines] == pytest.approx(losses_of, rel=1e-5), case
        assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4), case
        assert lines[-1]["validation_loss"] == pytest.approx(validation, rel=1e-5), case
        assert "gradient_noise" not in lines[0]  # of which no rank sees a micro batch's whole gradient


def test_what_deepspeed_divides_gradients_by_depends_on_the_stage_under_sequence_parallelism():
    # deepspeed 0.19.8: docs/upstream/ulysses_gradient_scale.py measures it.
    assert [gradient_divisor(layout(4, stage, micro=2, sequence=2)) for stage in range(4)] == [2, 2, 2, 4]


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
def test_bf16_losses_of_slices_are_those_of_whole_sequences_to_bf16_rounding(tmp_path):
    recipes = {family: recipe_of(family, tmp_path, num_steps=6, precision="bf16") for family in LAYOUTS}
    ways = {  # the second by DeepSpeed's BF16_Optimizer
        "whole": layout(1, 1, micro=8), "stage_1": layout(2, 1, micro=2, sequence=2),
        "stage_3": layout(2, 3, micro=8, sequence=2),
    }  # fmt: skip
    cases = {tmp_path / family / way: (recipes[family], how) for family in LAYOUTS for way, how in ways.items()}
    found = {folder: [line["loss"] for line in lines] for folder, lines in run_each(cases).items()}
    for folder, losses_of in found.items():
        whole = found[folder.parent / "whole"]
        assert whole[-1] < whole[0] - 0.3, folder.parent.name
        assert losses_of == pytest.approx(whole, rel=5e-3), folder


@pytest.mark.skipif(not SOAK, reason="the long form: SCALE_SOAK=1")
def test_a_run_goes_on_bit_for_bit_in_slices_and_in_any_other_layout(tmp_path):
    recipe, sliced = recipe_of("llama", tmp_path, num_steps=4, checkpoint_every_steps=2), layout(2, 2, sequence=2)
    run(tmp_path / "straight", recipe, sliced)
    run(tmp_path / "begun", recipe, sliced, "--max_steps", "2")
    run(tmp_path / "whole", recipe, layout(1, 3, micro=8), "--resume", str(tmp_path / "begun"))
    run(tmp_path / "begun", recipe, sliced)
    assert losses(tmp_path / "begun") == losses(tmp_path / "straight")
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "straight")[2:], rel=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "size", "said", "hint"),
    [
        ("llama", {}, 4, "does not divide the key-value heads 2", "sizes that do: 1, 2"),
        ("bart", {}, 2, "a second sequence", "data parallelism works"),
        ("gpt2", {"curriculum": {"start": 8, "increment": 2, "samples": 36}}, 4, "does not always divide", "of 4"),
    ],
)
def test_what_cannot_be_sliced_is_refused_with_what_can(family, changes, size, said, hint, tmp_path):
    recipe = recipe_of(family, tmp_path)
    if changes:
        recipe = recipe_of(family, tmp_path, data={**recipe.data.model_dump(), **changes})
    config = ds_config.emit(recipe, layout(size, 1, sequence=size))
    with pytest.raises(ScaleError, match=said) as refused:
        ds_config.strategy_of(config, recipe, size)
    assert hint in refused.value.hint


def test_gradients_that_stage_3_would_average_otherwise_are_refused(tmp_path):
    recipe, strategy = recipe_of("gpt2", tmp_path), layout(2, 3, sequence=2)
    config = ds_config.emit(recipe, strategy)
    config["zero_optimization"]["reduce_scatter"] = False
    with pytest.raises(ScaleError, match="sequence parallelism needs true"):
        ds_config.reconcile(config, recipe, strategy)
