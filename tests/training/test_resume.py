"""A run that stops and goes on is the run that never stopped, bit for bit."""

import json
from dataclasses import replace

import pytest

from scaling import manifest, train
from scaling.errors import FileProblems, InputError
from scaling.recipe import Growth
from scaling.training import checkpoint
from scaling.training.export import export
from tests.ranks import SOAK
from tests.training.runs import files, layout, losses, metrics, run, tiny_recipe

LAYOUTS = {
    "fp32 stage 0": ("fp32", layout(2, 0)),
    "bf16 stage 1, accumulation (BF16_Optimizer)": ("bf16", layout(2, 1, micro=1)),
    "bf16 stage 1": ("bf16", layout(2, 1)),
    "bf16 stage 2, accumulation, checkpointing": ("bf16", layout(2, 2, micro=2, checkpointing="full")),
    "bf16 stage 3": ("bf16", layout(2, 3)),
}


@pytest.mark.parametrize("name", LAYOUTS if SOAK else list(LAYOUTS)[::2])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(name, tmp_path):
    precision, strategy = LAYOUTS[name]
    recipe = tiny_recipe(tmp_path, precision=precision, dropout=0.1, num_steps=6)
    run(tmp_path / "straight", recipe, strategy)
    run(tmp_path / "broken", recipe, strategy, "--max_steps", "3")
    assert [line["step"] for line in metrics(tmp_path / "broken")] == [1, 2, 3]
    run(tmp_path / "broken", recipe, strategy)
    assert [line["step"] for line in metrics(tmp_path / "broken")] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm", "lr"):
        straight = [line[key] for line in metrics(tmp_path / "straight")]
        assert [line[key] for line in metrics(tmp_path / "broken")] == straight, key
    # The weights too: exports hold the fp32 master copy.
    exports = [export(tmp_path / part, tmp_path / f"{part}-export") for part in ("straight", "broken")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in exports)
    assert first == second


@pytest.mark.parametrize(
    ("precision", "stage", "micro"),
    [("bf16", 1, 1), ("bf16", 3, 2), *([("fp32", 0, 2), ("fp32", 2, 2)] if SOAK else [])],
)
def test_a_run_resumed_in_the_midst_of_its_ramp_repeats_the_uninterrupted_one(precision, stage, micro, tmp_path):
    ramp = {"start": 4, "increment": 4, "samples": 40}  # batches 4, 4, 4, 4, 8, 8, 12, 16
    recipe = tiny_recipe(
        tmp_path, precision=precision, dropout=0.1, num_steps=8, global_batch_size=16, batch_ramp=ramp
    )  # fmt: skip
    strategy = layout(2, stage, micro=micro, batch=16)
    run(tmp_path / "straight", recipe, strategy)
    for stop in ("5", "7", "8"):  # after one step of 8 of two, and between 12 and 16
        run(tmp_path / "broken", recipe, strategy, "--max_steps", stop)
    for key in ("loss", "grad_norm", "lr", "samples", "tokens", "gradient_noise"):
        straight = [line.get(key) for line in metrics(tmp_path / "straight")]
        assert [line.get(key) for line in metrics(tmp_path / "broken")] == straight, key
    exports = [export(tmp_path / part, tmp_path / f"{part}-export") for part in ("straight", "broken")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in exports)
    assert first == second


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, recipe, strategy) of a run of two steps on one rank."""
    folder = tmp_path_factory.mktemp("finished")
    recipe, strategy = tiny_recipe(folder), layout(1, 0, micro=8)
    run(folder / "run", recipe, strategy, "--max_steps", "2")
    return folder / "run", recipe, strategy


def asked(tmp_path, recipe, strategy, *flags):
    """What train.py makes of a command line, up to the point where it would join other ranks."""
    recipe_path, config_path = files(tmp_path / "asked", recipe, strategy)
    return train.parse(["--ds_config", str(config_path), "--recipe", str(recipe_path), *flags])


def test_another_recipe_is_refused_by_name_and_leaves_the_run_as_it_was(finished, tmp_path):
    folder, recipe, strategy = finished
    other = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": 0.5}), "seed": 12})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FileProblems) as refused:
        train.run(asked(tmp_path, other, strategy, "--run_dir", str(folder)))
    assert "recipe optimizer" in refused.value.message
    assert "recipe seed: 11 then, 12 now" in refused.value.message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_evaluating_or_saving_more_often_is_not_another_recipe(finished):
    folder, recipe, strategy = finished
    changed = recipe.model_copy(update={"evaluate_every_steps": 1, "checkpoint_every_steps": 1})
    checkpoint.require_match(manifest.find(folder, "run"), changed, strategy)


def test_a_checkpoint_from_before_a_field_was_there_is_of_the_same_recipe(finished, tmp_path):
    folder, recipe, strategy = finished
    found = manifest.read(manifest.find(folder, "run"))
    del found.recipe["batch_ramp"], found.recipe["data"]["curriculum"]
    (tmp_path / manifest.NAME).write_text(replace(found, files={}).dump())
    checkpoint.require_match(tmp_path, recipe, strategy)
    ramped = recipe.model_copy(update={"batch_ramp": Growth(start=4, increment=4, samples=8)})
    with pytest.raises(FileProblems, match="recipe batch_ramp: None then"):
        checkpoint.require_match(tmp_path, ramped, strategy)


def test_a_path_without_a_checkpoint_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"resume: .* holds no complete checkpoint"):
        checkpoint.to_resume(tmp_path, str(tmp_path / "nowhere"))


def test_resume_never_moves_the_earlier_life_aside(finished, tmp_path):
    _, recipe, strategy = finished
    folder = tmp_path / "run"
    run(folder, recipe, strategy, "--max_steps", "2")
    before = losses(folder)
    run(folder, recipe, strategy, "--max_steps", "1", "--resume", "never")
    assert losses(folder) == before[:1]
    old = [json.loads(line)["loss"] for line in (folder / "replaced-1" / "metrics.jsonl").read_text().splitlines()]
    assert old == before
    assert (folder / "replaced-1" / "checkpoints" / "step_000002" / "manifest.json").is_file()


def test_a_finished_run_has_nothing_to_do_and_changes_nothing(finished):
    folder, recipe, strategy = finished
    before = (folder / "metrics.jsonl").read_bytes()
    run(folder, recipe, strategy, "--max_steps", "2")
    assert (folder / "metrics.jsonl").read_bytes() == before
