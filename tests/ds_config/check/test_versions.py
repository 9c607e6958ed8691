"""What other releases do: defaults that changed, keys that are new or gone, rules that begin and end."""

import pytest

from scaling.ds_config.check import Context, check
from scaling.ds_config.check.reader import read
from scaling.ds_config.check.view import View
from tests.ds_config.check.reality import text


def rules(config, release, **context):
    return {each.rule.id for each in check(text(config), Context(deepspeed_version=release, **context))}


# Read off DeepSpeed's tags: runtime/constants.py, runtime/precision_config.py, runtime/zero/offload_config.py.
@pytest.mark.parametrize(
    ("path", "before", "release", "since"),
    [
        ("gradient_clipping", 0.0, "0.19.2", "0.19.3"),
        ("bf16.check_grad_overflow", False, "0.19.2", "0.19.3"),
        ("zero_optimization.offload_optimizer.pin_memory", False, "0.19.4", "0.19.5"),
        ("zero_optimization.offload_param.pin_memory", False, "0.19.4", "0.19.5"),
    ],
)
def test_a_default_is_the_releases_own(path, before, release, since):
    document = read('{"zero_optimization": {"offload_optimizer": {}, "offload_param": {}}}')
    assert View(document, Context(deepspeed_version=release)).get(path) == before
    assert View(document, Context(deepspeed_version=since)).get(path) != before


@pytest.mark.parametrize(
    ("key", "value", "last"),
    [
        ("nebula", {"enabled": False}, "0.19.6"),
        ("compression_training", {}, "0.19.6"),
        ("elasticity", {"enabled": False}, "0.19.7"),
        ("amp", {"enabled": False}, "0.19.7"),
    ],
)
def test_a_removed_key_is_refused_from_its_release_on(key, value, last):
    config = {"train_micro_batch_size_per_gpu": 1, key: value}
    assert not rules(config, last) & {"SC006", "SC014"}
    assert "SC014" in rules(config, "0.19.8")


def test_a_key_that_is_new_is_unknown_to_an_older_release():
    strict = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1, "parameter_alignment": True}}
    assert "SC007" in rules(strict, "0.19.6")
    assert "SC007" not in rules(strict, "0.19.7")
    top = {"train_micro_batch_size_per_gpu": 1, "gradient_allreduce_op": "sum"}
    assert "SC006" in rules(top, "0.19.5")
    assert "SC006" not in rules(top, "0.19.6")


def test_one_bit_optimizers_went_in_0_19_7():
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "OneBitAdam", "params": {"lr": 1e-4}}}
    assert "SO010" not in rules(config, "0.19.6")
    assert "SO010" in rules(config, "0.19.7")


def test_autotp_at_stage_3_is_refused_before_0_19_4():
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "tensor_parallel": {"autotp_size": 2},
    }
    assert "SP018" in rules(config, "0.19.3")
    assert "SP018" not in rules(config, "0.19.4")
