"""The files of ds_configs/ train a recipe that they were not made for, to the same losses."""

import os
from pathlib import Path

import pytest
from deepspeed.accelerator import get_accelerator

from scaling import recipe, train
from tests.ranks import on_ranks
from tests.training.runs import losses, tiny_recipe

_FILES = Path(__file__).parents[2] / "ds_configs"
_TINY = {"num_steps": 3, "global_batch_size": 32, "gradient_clipping": 1.0}


def _train(argv):
    get_accelerator().is_fp16_supported = lambda: True  # which this CPU may not be, and can all the same
    train.main(argv)


def _losses(folder, name):
    folder.mkdir()
    recipe_path = folder / "recipe.yaml"
    precision = Path(name).stem.split("_")[-1]
    recipe_path.write_text(recipe.dump(tiny_recipe(folder.parent, precision=precision, **_TINY)))
    argv = ["--ds_config", str(_FILES / name), "--recipe", str(recipe_path), "--run_dir", str(folder / "run")]
    on_ranks(2, _train, argv)
    return losses(folder / "run")


@pytest.fixture(scope="module")
def at_stage_1(tmp_path_factory):
    """The losses by precision."""
    folder = tmp_path_factory.mktemp("stage_1")
    return {precision: _losses(folder / precision, f"zero1_{precision}.json") for precision in ("bf16", "fp16")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_stages_train_to_the_same_losses(at_stage_1, tmp_path, stage, precision):
    found = _losses(tmp_path / "run", f"zero{stage}_{precision}.json")
    assert len(found) == _TINY["num_steps"]
    assert found[-1] < found[0] - 0.3
    assert found == pytest.approx(at_stage_1[precision], rel=1e-4)
    assert found == pytest.approx(at_stage_1["bf16"], rel=1e-3)  # the precisions differ by their rounding


@pytest.mark.skipif(not os.environ.get("SCALE_TEST_OFFLOAD"), reason="compiles for minutes: SCALE_TEST_OFFLOAD=cpu")
@pytest.mark.parametrize("name", ["zero2_cpu_optimizer_bf16.json", "zero3_cpu_optimizer_params_bf16.json"])
def test_offloaded_to_the_host_they_train_to_the_same_losses(at_stage_1, tmp_path, name):
    assert _losses(tmp_path / "run", name) == pytest.approx(at_stage_1["bf16"], rel=1e-4)
