"""What the engine is given: at stage 3 a model that is sharded before DeepSpeed could move it whole to the device."""

from types import SimpleNamespace

import torch

from scaling import ds_config
from tests.ranks import on_ranks
from tests.training.runs import layout, tiny_recipe


def _whole_and_sharded(folder, precision):
    """(elements whole, elements sharded here, dtypes) of the module that deepspeed.initialize is handed."""
    import deepspeed

    from scaling.training import engine, ranks

    recipe, strategy = tiny_recipe(folder, precision=precision), layout(2, 3)
    ranks.join()
    seen = {}

    def initialize(*, model, model_parameters, config, mpu):
        parameters = list(model.parameters())
        seen["whole"] = sum(parameter.numel() for parameter in parameters)
        seen["sharded"] = sum(parameter.ds_tensor.numel() for parameter in parameters)
        seen["dtypes"] = sorted({str(parameter.ds_tensor.dtype) for parameter in parameters})
        seen["groups"] = [len(group["params"]) for group in model_parameters]
        return SimpleNamespace(optimizer=None), None, None, None

    deepspeed.initialize = initialize
    engine.make_engine(recipe, ds_config.emit(recipe, strategy), strategy)
    ranks.leave()
    return seen


def test_at_stage_3_no_rank_hands_deepspeed_a_whole_parameter(tmp_path):
    # deepspeed 0.19.8 moves what zero.Init has not sharded to the device in one piece: runtime/engine.py:2094.
    recipe = tiny_recipe(tmp_path, precision="bf16")
    for seen in on_ranks(2, _whole_and_sharded, tmp_path, "bf16"):
        assert seen["whole"] == 0
        assert recipe.shape.num_params / 2 <= seen["sharded"] < recipe.shape.num_params / 2 + 64  # padded shards
        assert seen["dtypes"] == [str(torch.bfloat16)]
        assert all(count > 0 for count in seen["groups"])  # matrices and the rest, told apart before the sharding
