"""Which "auto"s are filled in before DeepSpeed sees the file: transformers' and accelerate's own code, run."""

import copy
import inspect
import re
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from scaling.ds_config.check import Context, Outcome, Severity, check
from scaling.ds_config.check.schema import KEYS
from scaling.ds_config.check.trainers import RESOLVED
from tests.ds_config.check.reality import text

_PARAMS = [
    *(("optimizer", "params", name) for name in ("lr", "betas", "eps", "weight_decay", "amsgrad")),
    *(("scheduler", "params", name) for name in (
        "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps", "warmup_type", "cos_min_ratio")),
]  # fmt: skip


def auto_everywhere():
    """A file that has "auto" at every key that is no block."""
    config = {}
    for path in [*(path for path, key in KEYS.items() if not key.keys and key.path[0] != "bfloat16"), *_PARAMS]:
        block = config
        for name in path[:-1]:
            block = block.setdefault(name, {})
        block[path[-1]] = "auto"
    return config


def autos(config, path=()):
    found = set()
    for name, value in config.items():
        if isinstance(value, dict):
            found |= autos(value, (*path, name))
        elif value == "auto":
            found.add(".".join((*path, name)))
    return found


def through_transformers(config):
    arguments = SimpleNamespace(
        world_size=2, per_device_train_batch_size=1, gradient_accumulation_steps=1, max_grad_norm=1.0,
        learning_rate=1e-4,
        adam_beta1=0.9, adam_beta2=0.99, adam_epsilon=1e-8, weight_decay=0.0, save_on_each_node=False, fp16=False,
        fp16_full_eval=False, bf16=True, bf16_full_eval=False, get_warmup_steps=lambda steps: 10,
    )  # fmt: skip
    trainer = HfTrainerDeepSpeedConfig(config)
    trainer.trainer_config_process(arguments)
    trainer.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=8)), 100)
    return trainer.config


# What accelerate's prepare() has values for, beside what the plugin itself fills in when it is made: read off
# accelerator.py:_prepare_deepspeed, whose keyword arguments are spelt there as strings.
def accelerates_own_keys():
    source = inspect.getsource(Accelerator._prepare_deepspeed)
    literal = set(re.findall(r'"([a-z_0-9]+(?:\.[a-z_0-9]+)*)"', source))
    plugin = inspect.getsource(DeepSpeedPlugin)
    literal |= set(re.findall(r'"([a-z_0-9]+(?:\.[a-z_0-9]+)*)"', plugin))
    return literal


def test_transformers_fills_in_what_the_table_says_and_leaves_the_rest():
    before = auto_everywhere()
    before["zero_optimization"]["stage"] = 3  # where it fills in stage 3's keys too
    left = autos(through_transformers(copy.deepcopy(before)))
    filled = autos(before) - left
    assert filled <= RESOLVED["hf"]
    # The rest of the table is accelerate's part, through which the Trainer works.
    assert RESOLVED["hf"] - filled <= RESOLVED["accelerate"]
    assert RESOLVED["hf"] - RESOLVED["accelerate"] == filled - RESOLVED["accelerate"]


def test_accelerate_has_a_value_for_every_key_of_the_table():
    assert RESOLVED["accelerate"] <= accelerates_own_keys()


def plugin_with(path):
    """accelerate's plugin, made and asked to fill in all that prepare() has values for."""
    config = {"zero_optimization": {"stage": 2}}
    block = config
    *blocks, name = path.split(".")
    for each in blocks:
        block = block.setdefault(each, {})
    block[name] = "auto"
    plugin = DeepSpeedPlugin(hf_ds_config=config)
    plugin.set_mixed_precision("bf16")
    known = {key: 1 for key in RESOLVED["accelerate"]}
    plugin.deepspeed_config_process(must_match=False, **known)
    return plugin


@pytest.mark.parametrize("path", sorted(RESOLVED["accelerate"]))
def test_accelerate_fills_in(path):
    assert autos(plugin_with(path).deepspeed_config) == set()


@pytest.mark.parametrize("path", ["zero_optimization.sub_group_size", "optimizer.params.betas", "fp16.loss_scale"])
def test_accelerate_refuses_an_auto_that_it_does_not_know(path):
    with pytest.raises(ValueError, match="not found in kwargs"):
        plugin_with(path)
    config = {"train_micro_batch_size_per_gpu": "auto", "zero_optimization": {"stage": 2}}
    *blocks, name = path.split(".")
    block = config
    for each in blocks:
        block = block.setdefault(each, {})
    block[name] = "auto"
    config |= {"optimizer": {"type": "AdamW", **config.get("optimizer", {})}}
    config |= {"fp16": {"enabled": False, **config.get("fp16", {})}}
    found = check(text(config), Context(trainer="accelerate"))
    assert [".".join(map(str, each.path)) for each in found if each.severity == Severity.ERROR] == [path]


_HF_FILE = {
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}  # fmt: skip


def test_an_auto_file_is_right_for_the_trainer_and_wrong_for_deepspeed_alone():
    errors = {
        trainer: {".".join(map(str, each.path)) for each in check(text(_HF_FILE), Context(trainer=trainer))
                  if each.severity == Severity.ERROR}
        for trainer in RESOLVED
    }  # fmt: skip
    assert errors["hf"] == set()
    assert errors["accelerate"] == {"optimizer.params.betas", "optimizer.params.eps"}
    assert errors["none"] == autos(_HF_FILE)


def test_the_trainers_read_with_json_which_takes_a_key_twice_and_nan(tmp_path):
    source = '{"gradient_clipping": NaN, "train_batch_size": 1, "train_batch_size": 2}'
    path = tmp_path / "ds_config.json"
    path.write_text(source)
    assert HfDeepSpeedConfig(str(path)).config["train_batch_size"] == 2
    found = {each.rule.id: each.outcome for each in check(source, Context(trainer="hf"))}
    assert (found["SC012"], found["SC027"]) == (Outcome.CHANGES, Outcome.CHANGES)


def test_the_trainers_read_with_json_which_has_no_comments():
    source = '{"train_micro_batch_size_per_gpu": 1} // one'
    severities = {
        trainer: [each.severity for each in check(source, Context(trainer=trainer)) if each.rule.id == "SC026"]
        for trainer in ("none", "hf")
    }
    assert severities == {"none": [Severity.WARNING], "hf": [Severity.ERROR]}
