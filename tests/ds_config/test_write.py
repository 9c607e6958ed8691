"""What is emitted, held against the DeepSpeed that will read it."""

import json
from dataclasses import replace

import pytest
import torch
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from scaling import recipe as recipes
from scaling.cost.memory import live_parameters, sub_group_size
from scaling.ds_config import emit
from scaling.models import build
from scaling.plan.layouts import offload_ignored
from scaling.training.schedule import learning_rate


class _Watched(dict):
    """A dict that remembers which keys were asked for."""

    def __init__(self, content):
        super().__init__(content)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add(key)
        return super().__contains__(key)


def _leaves(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path)
    else:
        yield path, value


_CASES = [
    (precision, stage, offload, param, checkpointing)
    for precision in ("fp32", "bf16", "fp16")
    for stage in range(4)
    for offload in ("none", "cpu", "nvme")
    for param in ("none", "cpu", "nvme")
    for checkpointing in ("none", "full")
    if (stage or precision == "fp32") and not offload_ignored(stage, offload, param)
]


@pytest.fixture(params=_CASES, ids=lambda case: "-".join(map(str, case)))
def case(request, planned_recipe, strategy_like):
    """(recipe, strategy, ds_config) of every combination that the search may choose."""
    precision, stage, offload, param, checkpointing = request.param
    recipe = planned_recipe("gpt-demo", precision=precision, gradient_clipping=0.5)
    strategy = strategy_like(
        recipe, zero_stage=stage, offload_optimizer=offload, offload_param=param, activation_checkpointing=checkpointing
    )  # fmt: skip
    return recipe, strategy, emit(recipe, strategy, "/mnt/nvme")


def test_the_configuration_is_plain_json_without_auto(case):
    _, _, config = case
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert not [path for path, value in _leaves(config) if value == "auto"]


def test_the_batch_is_ours_and_clipping_is_written_out(case):
    _, strategy, config = case
    # DeepSpeed derives train_batch_size wrongly under tensor parallelism; gradient_clipping's default became 1.0.
    assert "train_batch_size" not in config
    assert config["train_micro_batch_size_per_gpu"] == strategy.micro_batch_size
    assert config["gradient_accumulation_steps"] == strategy.gradient_accumulation_steps
    assert config["gradient_clipping"] == 0.5


def test_deepspeed_asks_for_every_key_and_no_block_has_one_that_it_refuses(case):
    _, _, config = case
    watched = _Watched({**config, "no_such_key": 1})
    parsed = DeepSpeedConfig(watched)
    # DeepSpeed ignores a top-level key that it does not know; the blocks below are pydantic models that refuse one.
    assert set(watched) - watched.asked == {"no_such_key"}
    assert isinstance(parsed.zero_config, DeepSpeedZeroConfig)
    for key, model in (("bf16", DeepSpeedBF16Config), ("fp16", DeepSpeedFP16Config)):
        assert set(config.get(key, {})) <= set(model.model_fields)
    names = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(config["zero_optimization"]) <= names | set(DeepSpeedZeroConfig.model_fields)


def test_what_deepspeed_reads_is_what_was_meant(case):
    recipe, strategy, config = case
    parsed = DeepSpeedConfig(dict(config))
    assert parsed.zero_optimization_stage == strategy.zero_stage
    assert parsed.bfloat16_config.enabled == (recipe.precision == "bf16")
    assert parsed.float16_config.enabled == (recipe.precision == "fp16")
    # Micro batches are summed in fp32, so that the split does not matter.
    assert parsed.grad_accum_dtype == "fp32"
    assert parsed.optimizer_name == "adamw"
    assert parsed.optimizer_params["lr"] == recipe.optimizer.lr
    # With either of the two, DeepSpeed needs no compiler on the GPU side; offloaded it must be its own kernel.
    assert parsed.optimizer_params.get("torch_adam", False) == (strategy.offload_optimizer == "none")
    assert parsed.zero_allow_untested_optimizer is False
    assert parsed.prescale_gradients is False
    zero = parsed.zero_config
    assert (str(zero.offload_optimizer.device) if zero.offload_optimizer else "none") == strategy.offload_optimizer
    assert (str(zero.offload_param.device) if zero.offload_param else "none") == strategy.offload_param
    if strategy.offload_optimizer == "nvme":
        assert str(zero.offload_optimizer.nvme_path) == "/mnt/nvme"
        # DeepSpeed: at least one buffer for each state of a parameter, and Adam has four with the gradient.
        assert zero.offload_optimizer.buffer_count >= 4
        assert zero.sub_group_size == sub_group_size(strategy)
    if strategy.offload_param == "nvme":
        assert str(zero.offload_param.nvme_path) == "/mnt/nvme"
        assert zero.offload_param.max_in_cpu == 0
        largest = max(p.numel() for p in build(recipe.shape).parameters())
        assert zero.offload_param.buffer_size >= largest / strategy.shards
    if "nvme" in (strategy.offload_optimizer, strategy.offload_param):
        assert parsed.aio_config == config["aio"]
    if strategy.zero_stage == 3:
        assert zero.max_live_parameters == live_parameters(recipe.shape, strategy)
        assert zero.prefetch_bucket_size == strategy.reduce_bucket_size
        assert zero.gather_16bit_weights_on_model_save is True
    full = strategy.activation_checkpointing == "full"
    assert parsed.activation_checkpointing_config.number_checkpoints == (4 if full else None)


def test_buckets_are_even_whole_numbers(case):
    # deepspeed 0.19.8, runtime/zero/stage_1_and_2.py:389 refuses an odd one after everything is loaded.
    _, _, config = case
    buckets = {key: value for key, value in config["zero_optimization"].items() if key.endswith("bucket_size")}
    assert bool(buckets) == (config["zero_optimization"]["stage"] > 0)
    for value in buckets.values():
        assert isinstance(value, int)
        assert value % 2 == 0
        assert value >= 65_536


def test_stage_3_keeps_biases_and_norms_whole_and_shards_every_matrix(planned_recipe, strategy_like):
    recipe = planned_recipe("gpt3-1.3b")
    block = emit(recipe, strategy_like(recipe, zero_stage=3))["zero_optimization"]
    threshold, width = block["stage3_param_persistence_threshold"], recipe.shape.hidden_size
    # The largest vector of a GPT-2 layer is the MLP's first bias, 4 D; its smallest matrix is the D x D projection.
    assert 4 * width <= threshold < width * width


def test_without_accumulation_gradients_keep_the_models_width(planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo")
    strategy = strategy_like(recipe, gradient_accumulation_steps=1)
    assert DeepSpeedConfig(emit(recipe, strategy)).grad_accum_dtype == "bf16"


# Warm-ups of one step or none, and linear decays that end above zero, have no words in DeepSpeed.
_SCHEDULES = [
    ("constant", 10, 0.0, "WarmupLR"), ("constant", 2, 0.3, "WarmupLR"), ("linear", 10, 0.0, "WarmupDecayLR"),
    ("linear", 2, 0.0, "WarmupDecayLR"), ("cosine", 10, 0.0, "WarmupCosineLR"), ("cosine", 10, 0.1, "WarmupCosineLR"),
    ("cosine", 2, 1.0, "WarmupCosineLR"), ("cosine", 100, 0.1, "WarmupCosineLR"), ("linear", 100, 0.0, "WarmupDecayLR"),
    ("linear", 10, 0.1, None), ("constant", 0, 0.0, None), ("cosine", 1, 0.1, None), ("linear", 0, 0.0, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "warmup_steps", "low", "expected"), _SCHEDULES)
def test_deepspeeds_own_scheduler_lags_our_learning_rate_by_at_most_one_step(
    name, warmup_steps, low, expected, planned_recipe, strategy_like
):
    recipe = planned_recipe("gpt-demo", schedule=name, warmup_steps=warmup_steps, low=low)
    config = emit(recipe, strategy_like(recipe))
    assert config.get("scheduler", {}).get("type") == expected
    if expected is None:
        return
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optimizer.lr)
    scheduler = getattr(lr_schedules, expected)(optimizer, **config["scheduler"]["params"])
    for step in range(1, recipe.num_steps + 1):
        scheduler.step()  # the engine steps it after each optimizer step: the rate is then that of the next one
        theirs = optimizer.param_groups[0]["lr"]
        around = [learning_rate(recipe, near) for near in (max(1, step - 1), step, min(recipe.num_steps, step + 1))]
        if step == 1:
            around.append(0.0)
        slack = 1e-9 * recipe.optimizer.lr
        assert min(around) - slack <= theirs <= max(around) + slack, step


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "polynomial", "power": 1.0},
        {"name": "polynomial", "power": 0.5, "decay_from": "start"},
        {"name": "inverse-sqrt"},
        {"name": "warmup-stable-decay", "decay_steps": 20},
    ],
    ids=lambda schedule: schedule["name"],
)
def test_what_deepspeed_has_no_words_for_is_left_out(schedule, planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo")
    assert "scheduler" in emit(recipe, strategy_like(recipe))
    changed = recipes.changed(recipe, {"schedule": {"warmup_steps": 10, **schedule}})
    assert "scheduler" not in emit(changed, strategy_like(changed))


def test_a_ramp_has_the_accumulation_of_its_largest_batch_and_no_scheduler(planned_recipe, strategy_like):
    ramp = {"start": 128, "increment": 128, "samples": 10_000}
    recipe = planned_recipe("gpt-demo", batch_ramp=ramp)
    strategy = strategy_like(recipe, gradient_accumulation_steps=4)
    config = emit(recipe, strategy)
    assert config["gradient_accumulation_steps"] == 4
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert "scheduler" not in config


@pytest.mark.parametrize(
    "changed", ["micro_batch_size", "reduce_bucket_size", "zero_stage", "activation_checkpointing"]
)
def test_machinery_never_touches_the_mathematics(changed, planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo")
    strategy = strategy_like(recipe)
    other = {"micro_batch_size": 2, "reduce_bucket_size": 1 << 20, "zero_stage": 3, "activation_checkpointing": "full"}
    one, two = emit(recipe, strategy), emit(recipe, replace(strategy, **{changed: other[changed]}))
    assert one != two
    for key in ("optimizer", "scheduler", "gradient_clipping", "bf16", "data_types"):
        assert one[key] == two[key]
