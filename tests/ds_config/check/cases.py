"""One case or more for every rule: a wrong configuration, what DeepSpeed does with it, and the right one beside it."""

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo
from deepspeed.accelerator import get_accelerator
from deepspeed.compile.config import CompileConfig
from deepspeed.compile.init_z3 import init_z3
from deepspeed.module_inject.auto_ep_config import validate_autoep_config
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.activation_checkpointing import checkpointing
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from deepspeed.utils import groups
from torch.distributed.nn.functional import all_reduce
from transformers import LlamaConfig, LlamaForCausalLM

from scaling import ds_config
from scaling.errors import ScaleError
from tests.ds_config.check import reality
from tests.ds_config.check.reality import Case
from tests.parallel.families import model_of, recipe_of

MICRO = {"train_micro_batch_size_per_gpu": 2}
ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
SMALL = {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
CLIP = {"gradient_clipping": 1.0}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}


def plain(**more: Any) -> dict[str, Any]:
    return {**MICRO, **more}


def zero(
    stage: int | None, *, optimizer: Any = ADAMW, top: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    block = {**SMALL, **more} if stage is None else {"stage": stage, **SMALL, **more}
    return {**MICRO, **({"optimizer": optimizer} if optimizer else {}), "zero_optimization": block, **(top or {})}


def trained(**more: Any) -> dict[str, Any]:
    """Stage 0 in fp32."""
    return {**MICRO, "optimizer": ADAMW, **more}


def scheduled(name: str, params: dict[str, Any] | None, **optimizer: Any) -> dict[str, Any]:
    block = {"type": name} if params is None else {"type": name, "params": params}
    made = {"type": "AdamW", "params": {**ADAMW["params"], **optimizer}}
    return trained(scheduler=block, optimizer=made)


# Questions to a parsed configuration.


def stage_is(stage: int):
    return lambda parsed: parsed.zero_config.stage == stage


# Questions to an engine.


def not_sharded(engine: Any) -> bool:
    """No parameter is partitioned, and the optimizer is stage 1's or 2's."""
    partitioned = any(hasattr(p, "ds_id") for p in engine.module.parameters())
    return not partitioned and type(engine.optimizer).__name__ == "DeepSpeedZeroOptimizer"


def nothing_offloaded(engine: Any) -> bool:
    return (
        engine.zero_use_cpu_optimizer()
        and not engine.zero_optimization()
        and not hasattr(engine.optimizer, "cpu_offload")
    )


def offloaded_to_cpu(engine: Any) -> bool:
    return (
        engine.optimizer.cpu_offload
        and engine.optimizer.device == "cpu"
        and not hasattr(engine.optimizer, "optimizer_swapper")
    )


def adam_has_counted_a_step(engine: Any) -> bool:
    return {float(state["step"]) for state in engine.basic_optimizer.state.values()} == {1.0}


def is_adamw(engine: Any) -> bool:
    return type(engine.basic_optimizer) is torch.optim.AdamW


def moved(engine: Any) -> float:
    """Length of one SGD step at rate 1, of a loss whose gradient is far above 1."""
    before = [p.detach().clone() for p in engine.module.parameters()]
    reality.step(engine, scale=1000.0)
    return float(
        torch.cat([(b - p.detach()).flatten() for b, p in zip(before, engine.module.parameters(), strict=True)]).norm()
    )


def overflows_in_the_reduction(engine: Any) -> bool:
    """A gradient of some millions, which fp32 holds and fp16 does not, has an infinite norm after the reduction."""
    reality.step(engine, scale=1e7)
    return engine.get_global_grad_norm() == float("inf")


def norm_of_a_shared_loss(config: Any) -> float:
    """Gradient norm where each rank holds a part of the samples and all of the loss, over the right one."""
    torch.manual_seed(0)
    parts = [torch.randn(2, 8) for _ in range(2)]
    alone = reality.model()
    (sum(alone(part).pow(2).mean() for part in parts) / 2).backward()
    right = torch.cat([p.grad.flatten() for p in alone.parameters()]).norm()
    engine = reality.engine_of(config)
    loss = all_reduce(engine(parts[torch.distributed.get_rank()]).pow(2).mean()) / 2
    engine.backward(loss)
    engine.step()
    return float(engine.get_global_grad_norm() / right)


def norm_at_stage_3(config: Any) -> float:
    config["zero_optimization"]["stage"] = 3
    return norm_of_a_shared_loss(config)


def not_factored(engine: Any) -> bool:
    """Adafactor keeps a second moment per element, where it keeps a row and a column of each matrix."""
    reality.step(engine)
    return all("variance" in state for state in engine.basic_optimizer.state.values())


def slowest_bias(engine: Any) -> float:
    """The least that any bias moves in Adam's first step, which at rate 1 moves every element by 1."""
    biases = [p for p in engine.module.parameters() if p.ndim == 1]
    before = [p.detach().float().clone() for p in biases]
    reality.step(engine)
    return min(float((p.detach().float() - b).abs().max()) for p, b in zip(biases, before, strict=True))


def uncompiled(config: Any) -> Any:
    """An engine whose Newton-Schulz is not compiled, which takes half a minute."""
    torch._dynamo.config.disable = True
    return reality.engine_of(config)


MUON1 = {"type": "Muon", "params": {"muon_lr": 1.0, "adam_lr": 1e-6, "weight_decay": 0.0, "torch_adam": True}}
MUON_BIASES = {"type": "Muon", "params": {"muon_lr": 1e-3, "adam_lr": 1.0, "weight_decay": 0.0, "torch_adam": True}}
SUMMED = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "gradient_clipping": 0.0}
UNCLIPPED_SGD = trained(optimizer={"type": "SGD", "params": {"lr": 1.0}}, gradient_clipping=0.0)
FP16 = {"fp16": {"enabled": True, "loss_scale": 1024}}
SGD1 = {"type": "SGD", "params": {"lr": 1.0}}

# Functions that run another part of DeepSpeed than initialize().


def on_a_device_without_bf16(config: Any) -> Any:
    accelerator = get_accelerator()
    accelerator.is_bf16_supported = lambda: False
    try:
        return reality.engine_of(config)
    finally:
        del accelerator.is_bf16_supported


def saved(config: Any) -> Any:
    engine = reality.engine_of(config)
    with tempfile.TemporaryDirectory() as folder:
        return engine.save_checkpoint(folder) and not engine.optimizer.elastic_checkpoint


def saved_and_loaded(config: Any) -> Any:
    engine = reality.engine_of(config)
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder)
        return engine.load_checkpoint(folder)


def saved_as_16_bit(config: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return reality.engine_of(config).save_16bit_model(folder), os.listdir(folder)


def in_a_pipeline(config: Any) -> Any:
    module = PipelineModule([torch.nn.Linear(8, 8)], num_stages=1, loss_fn=torch.nn.MSELoss())
    return reality.engine_of(config, module=module)


def read_by_scale_train(config: Any) -> Any:
    """What scale/train.py says against it, for a Llama of one key-value head on four ranks."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of("llama", Path(folder), model=model_of("llama", num_key_value_heads=1))
        try:
            return ds_config.strategy_of(DeepSpeedConfig(config)._param_dict, recipe, 4)
        except ScaleError as error:
            return error.message


def configured_checkpointing(config: Any) -> Any:
    try:
        return checkpointing.configure(None, deepspeed_config=config)
    finally:
        checkpointing.CONTIGUOUS_CHECKPOINTING = checkpointing.PARTITION_ACTIVATIONS = False


def steps_without_checkpointing(engine: Any) -> bool:
    """A step calls none of deepspeed.checkpointing."""
    apply, checkpointing.CheckpointFunction.apply = checkpointing.CheckpointFunction.apply, None
    try:
        reality.step(engine)
    finally:
        checkpointing.CheckpointFunction.apply = apply
    return True


def compiled_at_3(config: Any) -> Any:
    """The real check, which comes before anything of the engine is used but this one question."""
    device = config["zero_optimization"].get("offload_optimizer", {}).get("device", "none")
    engine = SimpleNamespace(zero_use_cpu_optimizer=lambda: device != "none")
    return init_z3(engine, "eager", CompileConfig(**config["compile"]), {})


def experts_at_3(config: Any) -> Any:
    parsed = DeepSpeedConfig(config)
    layer = AutoEPMoELayer.__new__(AutoEPMoELayer)
    torch.nn.Module.__init__(layer)
    engine = SimpleNamespace(
        _config=parsed, has_moe_layers=True, sequence_parallel_size=1, module=torch.nn.ModuleList([layer]),
        zero_quantized_gradients=lambda: parsed.zero_config.zero_quantized_gradients,
    )  # fmt: skip
    return DeepSpeedEngine._validate_zero3_moe_compatibility(engine)


def experts_on_4_ranks(config: Any) -> Any:
    """The engine's own call, with what it takes from the configuration."""
    parsed = DeepSpeedConfig(config)
    offload = parsed.zero_config.offload_optimizer
    return validate_autoep_config(
        parsed.expert_parallel_config, 4, 1, max(parsed.tensor_parallel_config.autotp_size, 1), 1,
        zero_stage=parsed.zero_optimization_stage,
        deepcompile_enabled=parsed.compile_config.deepcompile,
        tp_preset_model=parsed.tensor_parallel_config.preset_model,
        use_data_before_expert_parallel=parsed.use_data_before_expert_parallel_,
        zero_offload_optimizer=offload is not None and offload.device != "none",
    )  # fmt: skip


def ulysses(config: Any) -> Any:
    return UlyssesSPAttentionHF(
        attn=None, batch_size=1, attn_head_count=3, attn_head_size=8, kv_head_count=3, num_hidden_layers=1,
        process_group=torch.distributed.group.WORLD, seq_length_is_variable=True,
    )  # fmt: skip


def llama(config: Any, *, kv_heads: int = 2) -> Any:
    shape = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=kv_heads,
    )  # fmt: skip
    return reality.engine_of(config, module=LlamaForCausalLM(shape))


def llama_with_one_kv_head(config: Any) -> Any:
    """The widths of the key projection on this rank, of 16 in all."""
    engine = llama(config, kv_heads=1)
    return next(p.shape[0] for name, p in engine.module.named_parameters() if "k_proj" in name)


def llama_query_rows(config: Any) -> Any:
    engine = llama(config)
    return next(p.shape[0] for name, p in engine.module.named_parameters() if "q_proj" in name)


def sequence_batch(config: Any) -> Any:
    """(train_batch_size accepted, sequence-parallel ranks) of an engine on these ranks."""
    engine = reality.engine_of(config)
    return engine.train_batch_size(), engine.dp_world_size, groups._get_sequence_parallel_world_size()


def tensor_batch(config: Any) -> Any:
    """(train_batch_size, micro batch, accumulation, ranks with samples of their own)."""
    engine = llama(config)
    return (engine.train_batch_size(), engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps(),
            engine.dp_world_size)  # fmt: skip


def json_too(source: Any) -> Any:
    """Whether json reads what DeepSpeed reads."""
    reality._parse(source)
    return json.loads(source)


CASES = [
    # Batch arithmetic.
    Case(
        rule="SC001",
        config={"train_batch_size": 7, **MICRO, "gradient_accumulation_steps": 1},
        context={"world_size": 1},
        raises="AssertionError",
        says="Check batch related parameters",
        mended={"train_batch_size": 2, **MICRO},
    ),
    Case(
        rule="SC001",
        id="without the ranks",
        config={"train_batch_size": 7, **MICRO},
        raises="AssertionError",
        says="Check batch related parameters",
        mended={"train_batch_size": 8, **MICRO},
    ),
    Case(
        rule="SC002",
        config={"train_micro_batch_size_per_gpu": 0},
        raises="AssertionError",
        says="greater than 0",
        mended=plain(),
    ),
    Case(
        rule="SC002",
        id="accumulation",
        config=plain(gradient_accumulation_steps=-1),
        raises="AssertionError",
        says="greater than 0",
        mended=plain(gradient_accumulation_steps=1),
    ),
    Case(
        rule="SC003",
        config={"gradient_accumulation_steps": 2},
        raises="AssertionError",
        says="needs to be provided",
        mended=plain(gradient_accumulation_steps=2),
    ),
    Case(rule="SC004", config={"train_micro_batch_size_per_gpu": "auto"}, raises="TypeError", mended=plain()),
    Case(rule="SC004", id="digits", config={"train_micro_batch_size_per_gpu": "8"}, raises="TypeError", mended=plain()),
    Case(
        rule="SC005",
        config={"train_batch_size": 8.0, "train_micro_batch_size_per_gpu": 2},
        shows=lambda parsed: isinstance(parsed.gradient_accumulation_steps, float),
        mended={"train_batch_size": 8},
    ),
    Case(
        rule="SC005",
        id="half",
        config=plain(gradient_accumulation_steps=2.5),
        shows=lambda parsed: parsed.gradient_accumulation_steps == 2.5,
        mended=plain(gradient_accumulation_steps=2),
    ),
    Case(
        rule="SC011",
        config=trained(gradient_clipping=-1, optimizer=SGD1),
        how="engine",
        shows=lambda engine: moved(engine) > 10,
        mended=trained(gradient_clipping=1),
    ),
    Case(rule="SC013", config=plain(), shows=lambda parsed: parsed.gradient_clipping == 1.0, mended=plain(**CLIP)),
    Case(
        rule="SC016",
        config={
            "train_batch_size": 4,
            "train_micro_batch_size_per_gpu": 4,
            "sequence_parallel_size": 2,
            "optimizer": ADAMW,
        },
        ranks=2,
        how=sequence_batch,
        shows=lambda got: got == (4, 2, 1),
        mended={"train_micro_batch_size_per_gpu": 4, "sequence_parallel_size": 2, "data_parallel_size": 1},
    ),
    Case(
        rule="SC032",
        config=trained(gradient_clipping=[1.0]),
        how="step",
        raises="TypeError",
        mended=trained(gradient_clipping=1.0),
    ),
    Case(
        rule="SC033",
        config={"train_batch_size": 8, **MICRO, "gradient_accumulation_steps": 2},
        raises="AssertionError",
        says="8 != 2 * 2 * 1",
        mended=plain(gradient_accumulation_steps=2),
    ),
    Case(
        rule="SP014",
        config=plain(sequence_parallel_size=2, data_parallel_size=3, optimizer=ADAMW),
        ranks=2,
        how="engine",
        context={"world_size": 2},
        raises="RuntimeError",
        mended=plain(sequence_parallel_size=2, data_parallel_size=1),
    ),
    Case(
        rule="SC049",
        config=trained(gradient_clipping=True),
        how="engine",
        shows=lambda engine: engine.gradient_clipping() is True,
        mended=trained(gradient_clipping=1.0),
    ),
    Case(
        rule="SP031",
        config=trained(data_parallel_size=4),
        how="engine",
        shows=lambda engine: engine.dp_world_size == 1,
        mended=trained(),
    ),
    Case(
        rule="SC050",
        config=trained(steps_per_print=0),
        how="step",
        raises="ZeroDivisionError",
        mended=trained(steps_per_print=None),
    ),
    # Keys and values.
    Case(rule="SC006", config=plain(zero_optimisation={"stage": 2}), shows=stage_is(0), mended=zero(2)),
    Case(
        rule="SC007",
        config=plain(zero_optimization={"stge": 2}),
        raises="ValidationError",
        says="Extra inputs",
        mended=zero(2),
    ),
    Case(
        rule="SC007",
        id="by two names",
        config=zero(3, max_live_parameters=1000, stage3_max_live_parameters=1000),
        raises="ValidationError",
        says="Extra inputs",
        mended=zero(3, stage3_max_live_parameters=1000),
    ),
    Case(
        rule="SC008",
        config=plain(activation_checkpointing={"partition_activation": True}),
        shows=lambda parsed: parsed.activation_checkpointing_config.partition_activations is False,
        mended=plain(activation_checkpointing={"partition_activations": True}),
    ),
    Case(rule="SC009", config=plain(zero_optimization={"stage": "auto"}), shows=stage_is(0), mended=zero(1)),
    Case(
        rule="SC008",
        id="renamed",
        config=plain(aio={"thread_count": 4}),
        shows=lambda parsed: parsed.aio_config["intra_op_parallelism"] == 1,
        mended=plain(aio={"intra_op_parallelism": 4}),
    ),
    Case(
        rule="SC009",
        id="bf16",
        config=plain(bf16={"enabled": "auto"}),
        shows=lambda parsed: parsed.bfloat16_config.enabled is False,
        mended=plain(bf16={"enabled": True}),
    ),
    Case(
        rule="SC010",
        config=trained(gradient_clipping="auto"),
        how="step",
        raises="TypeError",
        mended=trained(gradient_clipping=1.0),
    ),
    Case(
        rule="SC010",
        id="lr",
        config=trained(optimizer={"type": "AdamW", "params": {"lr": "auto", "torch_adam": True}}),
        how="engine",
        raises="TypeError",
        mended=trained(),
    ),
    Case(
        rule="SC012",
        config='{"train_micro_batch_size_per_gpu": 1, "train_micro_batch_size_per_gpu": 2}',
        raises="ValueError",
        says="Duplicate keys",
        mended=plain(),
    ),
    Case(
        rule="SC014",
        config=plain(elasticity={"enabled": False}),
        raises="DeepSpeedConfigError",
        says="removed",
        mended=plain(),
    ),
    Case(
        rule="SC015", config=zero(3, mics_shard_size=8), raises="DeepSpeedConfigError", says="removed", mended=zero(3)
    ),
    Case(rule="SC017", config=plain(zero_optimization=True), shows=stage_is(1), mended=zero(1)),
    Case(
        rule="SC019",
        config=plain(gradient_allreduce_op="max"),
        raises="ValueError",
        says="Invalid gradient_allreduce_op",
        mended=plain(gradient_allreduce_op="sum"),
    ),
    Case(rule="SC025", config=zero(4), raises="ValidationError", says="stage", mended=zero(3)),
    Case(
        rule="SC025",
        id="bucket",
        config=zero(1, reduce_bucket_size="5e8"),
        raises="ValidationError",
        says="reduce_bucket_size",
        mended=zero(1),
    ),
    Case(
        rule="SC026",
        config='{"train_micro_batch_size_per_gpu": 1, // one\n}',
        how=json_too,
        raises="JSONDecodeError",
        mended=plain(),
    ),
    Case(
        rule="SC027",
        config='{"train_micro_batch_size_per_gpu": 1, "gradient_clipping": NaN}',
        raises="HjsonDecodeError",
        mended=plain(**CLIP),
    ),
    Case(
        rule="SC028", config=plain(bf16=True), raises="TypeError", says="mapping", mended=plain(bf16={"enabled": True})
    ),
    Case(
        rule="SC029",
        config=plain(prescale_gradients="false"),
        shows=lambda parsed: bool(parsed.prescale_gradients) is True,
        mended=plain(prescale_gradients=False),
    ),
    Case(
        rule="SC029",
        id="divided by",
        config=trained(gradient_predivide_factor=0),
        how="step",
        raises="ZeroDivisionError",
        mended=trained(gradient_predivide_factor=1.0),
    ),
    Case(
        rule="SC030",
        config=plain(zero_optimization={"stage": 2, "cpu_offload": True}),
        shows=lambda parsed: parsed.zero_config.offload_optimizer.device == "cpu",
        mended=plain(zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}}),
    ),
    Case(rule="SC031", config=plain(zero_optimization={"stage": "2"}), shows=stage_is(2), mended=zero(2)),
    Case(
        rule="SZ012",
        config=plain(zero_optimization={"stage": 2, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}}),
        raises="AssertionError",
        says="Cannot provide deprecated parameter",
        mended=plain(zero_optimization={"stage": 2, "offload_optimizer": {"device": "cpu"}}),
    ),
    Case(
        rule="SC018",
        config=plain(communication_data_type="float16"),
        raises="ValueError",
        says="Invalid communication_data_type",
        mended=plain(communication_data_type="fp16"),
    ),
    Case(
        rule="SC020",
        config=plain(checkpoint={"tag_validation": "Warning"}),
        raises="DeepSpeedConfigError",
        says="tag_validation",
        mended=plain(checkpoint={"tag_validation": "Warn"}),
    ),
    Case(
        rule="SC021",
        config=plain(data_types={"keep_in_fp32_modules": "norm"}),
        raises="DeepSpeedConfigError",
        says="keep_in_fp32_modules",
        mended=plain(data_types={"keep_in_fp32_modules": ["norm"]}),
    ),
    Case(
        rule="SC022",
        config=trained(data_types={"grad_accum_dtype": "f32"}),
        how="engine",
        raises="ValueError",
        mended=trained(data_types={"grad_accum_dtype": "fp32"}),
    ),
    Case(
        rule="SC022",
        id="int8",
        config=zero(1, top={"data_types": {"grad_accum_dtype": "int8"}}),
        how="step",
        raises="RuntimeError",
        says="can't be cast",
        mended=zero(1, top={"data_types": {"grad_accum_dtype": "fp32"}}),
    ),
    Case(
        rule="SC022",
        id="autocast",
        config=plain(torch_autocast={"enabled": True, "dtype": "bf"}),
        raises="ValueError",
        mended=plain(torch_autocast={"enabled": True, "dtype": "bf16"}),
    ),
    Case(
        rule="SC043",
        config=zero(3, top={"gradient_allreduce_op": "sum"}),
        raises="ValueError",
        says="ZeRO stage 3",
        mended=zero(2, top={"gradient_allreduce_op": "sum"}),
    ),
    Case(
        rule="SC044",
        config=plain(checkpoint={"writer": {"type": "QUICK"}}),
        raises="AssertionError",
        says="QUICK",
        mended=plain(checkpoint={"writer": {"type": "fast"}}),
    ),
    Case(
        rule="SC044",
        id="parallel",
        config=plain(checkpoint={"parallel_write": {"pipeline_stage": "yes"}}),
        raises="DeepSpeedConfigError",
        says="pipeline_stage",
        mended=plain(checkpoint={"parallel_write": {"pipeline_stage": True}}),
    ),
    Case(
        rule="SC045",
        config=plain(data_efficiency={"data_sampling": {"curriculum_learning": {"enabled": True}}}),
        raises="AssertionError",
        says="curriculum_metrics must be specified",
        mended=plain(data_efficiency={"data_sampling": {"curriculum_learning": {"enabled": False}}}),
    ),
    Case(
        rule="SC046",
        config=plain(data_efficiency={"data_sampling": {"dynamic_batching": {"enabled": True}}}),
        raises="AssertionError",
        says="max_tokens must be specified",
        mended=plain(data_efficiency={"data_sampling": {"dynamic_batching": {"enabled": True, "max_tokens": 100}}}),
    ),
    # Precision.
    Case(
        rule="SO001",
        config=plain(fp16={"enabled": True}, bf16={"enabled": True}),
        raises="AssertionError",
        says="cannot be simultaneously enabled",
        mended=plain(bf16={"enabled": True}),
    ),
    Case(
        rule="SO002",
        config=zero(1, top={"bf16": {"enabled": True}}),
        how=on_a_device_without_bf16,
        raises="ValueError",
        says="bf16 is not supported",
        context={"gpu": "v100-32gb"},
        mended=zero(1, top={"fp16": {"enabled": True}}),
    ),
    Case(
        rule="SO003",
        config=trained(data_types={"param_dtype": "bf16"}),
        how="engine",
        raises="AssertionError",
        says="conflicts with the enabled precision mode",
        mended=trained(data_types={"param_dtype": "fp32"}),
    ),
    Case(
        rule="SO004",
        config=trained(bf16={"enabled": True}, data_types={"grad_accum_dtype": "fp32"}),
        how="engine",
        raises="NotImplementedError",
        says="unsupported mix",
        mended=trained(bf16={"enabled": True}),
    ),
    Case(
        rule="SO005",
        config=trained(bf16={"enabled": True}),
        how="engine",
        shows=adam_has_counted_a_step,
        mended=zero(1, top={"bf16": {"enabled": True}}),
    ),
    Case(
        rule="SO006",
        config=plain(fp16={"enabled": True, "loss_scale_window": 0}),
        raises="ValidationError",
        says="loss_scale_window",
        mended=plain(fp16={"enabled": True, "loss_scale_window": 1}),
    ),
    Case(
        rule="SO007",
        config=plain(bf16={"enabled": True, "bf16_master_weights_and_grads": True}),
        raises="AssertionError",
        says="only supported with ZeRO Stage",
        mended=zero(1, top={"bf16": {"enabled": True}}),
    ),
    Case(
        rule="SO008",
        config=zero(2, top={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}),
        how="engine",
        raises="AssertionError",
        says="Master weights feature requires",
        mended=zero(
            2, top={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
        ),
    ),
    Case(
        rule="SO008",
        id="torch_adam",
        config=zero(2, top={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}, **OFFLOADED),
        how="engine",
        raises="AssertionError",
        says="Master weights feature requires",
        mended=zero(
            2,
            optimizer={"type": "AdamW", "params": {"lr": 1e-3}},
            top={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}},
            **OFFLOADED,
        ),
    ),
    Case(
        rule="SO009",
        config=zero(2, top={"bf16": {"enabled": True, "bf16_optimizer_states": True}}),
        raises="AssertionError",
        says="requires bf16_master_weights_and_grads",
        mended=zero(
            2, top={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}}
        ),
    ),
    Case(
        rule="SO026",
        config=plain(bf16={"enabled": False}, bfloat16={"enabled": True}),
        shows=lambda parsed: parsed.bfloat16_config.enabled is False,
        mended=plain(bfloat16={"enabled": True}),
    ),
    Case(
        rule="SO027",
        config=plain(fp16={"loss_scale": 0}),
        shows=lambda parsed: parsed.float16_config.enabled is False,
        mended=plain(fp16={"enabled": True, "loss_scale": 0}),
    ),
    Case(
        rule="SO028",
        config=plain(bf16={"enabled": True}),
        shows=lambda parsed: parsed.bfloat16_config.check_grad_overflow is True,
        mended=plain(bf16={"enabled": True, "check_grad_overflow": True}),
    ),
    # Optimizers.
    Case(
        rule="SO010",
        config=trained(optimizer={"type": "OneBitAdam", "params": {"lr": 1e-3}}),
        how="engine",
        raises="AssertionError",
        says="not a supported DeepSpeed Optimizer",
        mended=trained(),
    ),
    Case(
        rule="SO010",
        id="small letters",
        config=trained(optimizer={"type": "sgd", "params": {"lr": 1e-3}}),
        how="engine",
        raises="AssertionError",
        says="not a supported DeepSpeed Optimizer",
        mended=trained(optimizer=SGD1),
    ),
    Case(
        rule="SO011",
        config=trained(optimizer={"type": "AdamW", "params": {"torch_adam": True, "max_grad_norm": 1.0}}),
        how="engine",
        raises="ValueError",
        says="max_grad_norm",
        mended=trained(**CLIP),
    ),
    Case(
        rule="SO012",
        config=trained(optimizer={"type": "Lamb", "params": {"lr": 1e-3}}, fp16={"loss_scale": 128}),
        how="engine",
        raises="AssertionError",
        says="dynamic loss scaling",
        mended=trained(optimizer={"type": "Lamb", "params": {"lr": 1e-3}}),
    ),
    Case(
        rule="SO013",
        config=zero(1, optimizer=SGD1),
        how="engine",
        raises="AssertionError",
        says="untested ZeRO Optimizer",
        mended=zero(1, optimizer=SGD1, top={"zero_allow_untested_optimizer": True}),
    ),
    Case(
        rule="SO014",
        config=zero(1, optimizer=None, top={"zero_allow_untested_optimizer": True}),
        how="engine",
        script="lamb",
        context={"optimizer": "lamb"},
        shows=lambda engine: engine.basic_optimizer.tensors() == 1,
        mended=zero(0, optimizer=None, top={"zero_allow_untested_optimizer": True}),
    ),
    Case(
        rule="SO014",
        id="Adafactor",
        config=zero(1, optimizer={"type": "Adafactor", "params": {}}, top={"zero_allow_untested_optimizer": True}),
        how="engine",
        shows=not_factored,
        mended=zero(0, optimizer={"type": "Adafactor", "params": {}}),
    ),
    Case(
        rule="SO018",
        config=zero(2, optimizer=None, offload_optimizer={"device": "cpu"}),
        how="engine",
        script="adamw",
        context={"optimizer": "adamw"},
        raises="ZeRORuntimeException",
        says="client provided optimizer",
        mended=zero(2, optimizer=None, offload_optimizer={"device": "cpu"}, top={"zero_force_ds_cpu_optimizer": False}),
    ),
    Case(
        rule="SO019",
        config=zero(1, optimizer=None),
        how="engine",
        context={"optimizer": "none"},
        raises="AssertionError",
        says="requires an optimizer",
        mended=zero(1),
    ),
    Case(
        rule="SO020",
        config=zero(3, optimizer=None),
        how="step",
        context={"optimizer": "none"},
        raises="AttributeError",
        mended=zero(3),
    ),
    Case(
        rule="SO022",
        config=zero(3, optimizer={"type": "Muon", "params": {"lr": 1e-3, "torch_adam": True}}),
        how="engine",
        raises="ValueError",
        says="Muon and reduce scatter",
        mended=zero(3, optimizer={"type": "Muon", "params": {"lr": 1e-3}}, reduce_scatter=False),
    ),
    Case(
        rule="SO044",
        config=zero(1, optimizer=None, top={"zero_allow_untested_optimizer": True}),
        how="step",
        script="muon",
        context={"optimizer": "muon"},
        raises="ValueError",
        says="must be a 2D matrix",
        mended=zero(0, optimizer=None, top={"zero_allow_untested_optimizer": True}),
    ),
    Case(
        rule="SO045",
        config=zero(1, optimizer=MUON1, top={"gradient_clipping": 0.01}),
        how=uncompiled,
        shows=lambda engine: moved(engine) < 0.015,  # at rate 1 the update of an 8 x 8 matrix is longer than 2
        mended=zero(1, optimizer=MUON1, top={"gradient_clipping": 0.0}),
    ),
    Case(
        rule="SO046",
        config=trained(optimizer=MUON1),
        how=uncompiled,
        shows=lambda engine: all(p.use_muon == (p.ndim == 2) for p in engine.module.parameters()),
        mended=trained(),
    ),
    Case(
        rule="SO047",
        config=zero(2, optimizer=MUON_BIASES, reduce_scatter=True, top=SUMMED),
        how=uncompiled,
        shows=lambda engine: slowest_bias(engine) < 0.1,
        mended=zero(2, optimizer=MUON_BIASES, reduce_scatter=False, top=SUMMED),
    ),
    Case(
        rule="SO025",
        config=zero(1, overlap_comm=True, top={"managed_gradient_accumulation": False}),
        how="engine",
        raises="AssertionError",
        says="overlap_comm",
        mended=zero(2, overlap_comm=True, top={"managed_gradient_accumulation": False}),
    ),
    Case(
        rule="SO029",
        config=trained(optimizer={"type": "Adam", "params": {"weight_decay": 0.1, "torch_adam": True}}),
        how="engine",
        shows=is_adamw,
        mended=trained(optimizer={"type": "Adam", "params": {"weight_decay": 0.1, "adam_w_mode": False}}),
    ),
    Case(
        rule="SO030",
        config=trained(optimizer={"type": "AdamW", "params": {"adam_w_mode": False, "torch_adam": True}}),
        how="engine",
        shows=is_adamw,
        mended=trained(),
    ),
    Case(
        rule="SO031",
        config=trained(optimizer={"type": "AdamW", "params": {"torch_adam": True, "beta1": 0.9}}),
        how="engine",
        raises="TypeError",
        says="beta1",
        mended=trained(),
    ),
    Case(
        rule="SO032",
        config=trained(optimizer={"type": "AdamW", "params": {"torch_adam": True, "lr": "1e-3"}}),
        how="engine",
        raises="TypeError",
        mended=trained(),
    ),
    Case(
        rule="SO033",
        config=trained(),
        how="engine",
        script="sgd",
        context={"optimizer": "sgd"},
        shows=lambda engine: type(engine.basic_optimizer).__name__ == "SGD",
        mended=plain(),
    ),
    Case(
        rule="SO034",
        config=trained(optimizer={"type": "Muon", "params": {"lr": 1e-3, "nesterov": True, "torch_adam": True}}),
        how="engine",
        shows=lambda engine: not any("nesterov" in group for group in engine.basic_optimizer.param_groups),
        mended=trained(optimizer={"type": "Muon", "params": {"lr": 1e-3, "momentum": 0.9}}),
    ),
    Case(
        rule="SO035",
        config=trained(optimizer={"type": "AdamW", "params": {"torch_adam": True, "lr": -1.0}}),
        how="engine",
        raises="ValueError",
        says="Invalid learning rate",
        mended=trained(),
    ),
    Case(
        rule="SO036",
        config=plain(optimizer={"params": {"lr": 1e-3}}),
        how="engine",
        shows=lambda engine: engine.optimizer is None,
        mended=trained(),
    ),
    Case(
        rule="SO037",
        config=trained(optimizer={"type": "AdamW", "params": {"torch_adam": True}}),
        how="engine",
        shows=lambda engine: engine.get_lr() == [1e-3],
        mended=trained(),
    ),
    Case(
        rule="SO038",
        config=trained(optimizer={"type": "AdamW", "params": {"lr": 1e-3, "amsgrad": True}}),
        how="engine",
        raises="RuntimeError",
        says="AMSGrad",
        mended=trained(optimizer={"type": "AdamW", "params": {"lr": 1e-3, "amsgrad": True, "torch_adam": True}}),
    ),
    Case(
        rule="SO039",
        config=trained(optimizer={"type": "Adam", "params": {"lr": 1e-3, "adam_w_mode": "false", "torch_adam": True}}),
        how="engine",
        shows=is_adamw,
        mended=trained(optimizer={"type": "Adam", "params": {"lr": 1e-3, "adam_w_mode": False}}),
    ),
    Case(
        rule="SO040",
        config=zero(2, top={"communication_data_type": "fp16"}),
        ranks=2,
        how="engine",
        shows=overflows_in_the_reduction,
        mended=zero(2, top={"communication_data_type": "fp32"}),
    ),
    Case(
        rule="SO041",
        config=trained(torch_autocast={"enabled": True}),
        how="engine",
        shows=lambda engine: engine.torch_autocast_dtype() is None,
        mended=trained(torch_autocast={"enabled": True, "dtype": "bfloat16"}),
    ),
    Case(
        rule="SO042",
        config=trained(fp16={"enabled": False, "auto_cast": True}),
        how="step",
        raises="RuntimeError",
        says="dtype",
        mended=zero(1, top={"fp16": {"enabled": True, "auto_cast": True}}),
    ),
    Case(
        rule="SO043",
        config=zero(1, top={"fp16": {"enabled": True, "initial_scale_power": 100}}),
        how="step",
        raises="OverflowError",
        mended=zero(1, top={"fp16": {"enabled": True, "initial_scale_power": 16}}),
    ),
    Case(
        rule="SO048",
        config={**UNCLIPPED_SGD, **FP16},
        how="engine",
        shows=lambda engine: 900 < moved(reality.engine_of(UNCLIPPED_SGD)) / moved(engine) < 1100,
        mended=zero(1, optimizer=SGD1, top={**FP16, "zero_allow_untested_optimizer": True}),
    ),
    # Schedulers.
    Case(
        rule="SC023",
        config=scheduled("CosineLR", {}),
        how="engine",
        raises="AssertionError",
        says="does not recognize",
        mended=scheduled("WarmupLR", {}),
    ),
    Case(
        rule="SC024",
        config=scheduled("WarmupLR", {"warmup_steps": 10}),
        how="engine",
        raises="TypeError",
        says="warmup_steps",
        mended=scheduled("WarmupLR", {"warmup_num_steps": 10}),
    ),
    Case(
        rule="SC034",
        config=scheduled("WarmupCosineLR", {}),
        how="engine",
        raises="TypeError",
        says="total_num_steps",
        mended=scheduled("WarmupCosineLR", {"total_num_steps": 2000}),
    ),
    Case(
        rule="SC035",
        config=scheduled("WarmupLR", None),
        how="engine",
        raises="TypeError",
        says="mapping",
        mended=scheduled("WarmupLR", {}),
    ),
    Case(
        rule="SC036",
        config=scheduled("WarmupLR", {"warmup_max_lr": "1e-3"}),
        how="engine",
        raises="TypeError",
        mended=scheduled("WarmupLR", {"warmup_max_lr": 1e-3}),
    ),
    Case(
        rule="SC037",
        config=scheduled("WarmupLR", {"warmup_num_steps": 0}),
        how="engine",
        raises="ValueError",
        says="positive integer",
        mended=scheduled("WarmupLR", {"warmup_num_steps": 1}),
    ),
    Case(
        rule="SC038",
        config=scheduled("WarmupLR", {"warmup_type": "cosine"}),
        how="engine",
        shows=lambda engine: engine.lr_scheduler.warmup_type == "log",
        mended=scheduled("WarmupLR", {"warmup_type": "linear"}),
    ),
    Case(
        rule="SC039",
        config=scheduled("WarmupLR", {}),
        how="engine",
        shows=lambda engine: engine.lr_scheduler.warmup_type == "log",
        mended=scheduled("WarmupLR", {"warmup_type": "log"}),
    ),
    Case(
        rule="SC040",
        config=scheduled("WarmupDecayLR", {"total_num_steps": 2000}, lr=5e-5),
        how="engine",
        shows=lambda engine: engine.lr_scheduler.max_lrs == [0.001],
        mended=scheduled("WarmupDecayLR", {"total_num_steps": 2000, "warmup_max_lr": 5e-5}, lr=5e-5),
    ),
    Case(
        rule="SC041",
        config=scheduled("WarmupLR", {"warmup_max_lr": 3e-5}, lr=1e-4),
        how="engine",
        shows=lambda engine: engine.lr_scheduler.max_lrs == [3e-5] and engine.get_lr() == [0.0],
        mended=scheduled("WarmupLR", {"warmup_max_lr": 1e-4}, lr=1e-4),
    ),
    Case(
        rule="SC042",
        config=scheduled("WarmupDecayLR", {"total_num_steps": 500}),
        how="engine",
        shows=lambda engine: engine.lr_scheduler.warmup_num_steps > engine.lr_scheduler.total_num_steps,
        mended=scheduled("WarmupDecayLR", {"total_num_steps": 500, "warmup_num_steps": 50}),
    ),
    Case(
        rule="SC047",
        config=trained(scheduler={"params": {"warmup_num_steps": 10}}),
        how="engine",
        shows=lambda engine: engine.lr_scheduler is None,
        mended=scheduled("WarmupLR", {"warmup_num_steps": 10}),
    ),
    Case(
        rule="SC048",
        config=scheduled("WarmupLR", {"warmup_min_lr": 1e-2, "warmup_max_lr": 1e-3}),
        how="engine",
        shows=lambda engine: engine.get_lr() == [1e-2] and engine.lr_scheduler.max_lrs == [1e-3],
        mended=scheduled("WarmupLR", {"warmup_min_lr": 0.0, "warmup_max_lr": 1e-3}),
    ),
    # ZeRO and offload.
    Case(
        rule="SZ002",
        config=zero(1, legacy_stage1=True),
        how="engine",
        raises="Exception",
        says="deprecated version",
        mended=zero(1),
    ),
    Case(
        rule="SZ003",
        config=zero(2, offload_param={"device": "cpu"}),
        how="engine",
        shows=not_sharded,
        mended=zero(3, offload_param={"device": "cpu"}),
    ),
    Case(
        rule="SZ004",
        config=zero(0, optimizer=None, offload_optimizer={"device": "cpu"}, top={"zero_force_ds_cpu_optimizer": False}),
        how="engine",
        script="adamw",
        shows=nothing_offloaded,
        mended=zero(1, offload_optimizer={"device": "cpu"}),
    ),
    Case(
        rule="SZ005",
        config=zero(
            2,
            optimizer=None,
            offload_optimizer={"device": "nvme", "nvme_path": "/nowhere"},
            top={"zero_force_ds_cpu_optimizer": False},
        ),
        how="engine",
        script="adamw",
        shows=offloaded_to_cpu,
        mended=zero(2, offload_optimizer={"device": "cpu"}),
    ),
    Case(
        rule="SZ006",
        config=zero(
            3, optimizer=None, offload_optimizer={"device": "nvme"}, top={"zero_force_ds_cpu_optimizer": False}
        ),
        how="engine",
        script="adamw",
        raises="TypeError",
        says="NoneType",
        mended=zero(3, offload_optimizer={"device": "nvme", "nvme_path": "/local"}),
    ),
    Case(
        rule="SZ007",
        config=zero(2, offload_optimizer={"device": "cpu", "ratio": 0.5}),
        raises="ValidationError",
        says="Partial offloading",
        mended=zero(3, offload_optimizer={"device": "cpu", "ratio": 0.5}),
    ),
    Case(
        rule="SZ008",
        config=zero(
            3,
            optimizer=None,
            offload_optimizer={"device": "cpu", "ratio": 0.5},
            top={"zero_force_ds_cpu_optimizer": False},
        ),
        how="engine",
        script="adamw",
        context={"optimizer": "adamw"},
        raises="AssertionError",
        says="Hybrid Optimizer Only Supports DeepSpeedCPUAdam",
        mended=zero(3, optimizer=None, offload_optimizer={"device": "cpu"}),
    ),
    Case(
        rule="SZ009",
        config=zero(
            2,
            optimizer=None,
            offload_optimizer={"device": "cpu", "super_offload": True},
            top={"zero_force_ds_cpu_optimizer": False},
        ),
        how="engine",
        script="adamw",
        shows=not_sharded,
        mended=zero(3, offload_optimizer={"device": "cpu", "super_offload": True}),
    ),
    Case(
        rule="SZ013",
        config=zero(2, zero_quantized_weights=True, zero_hpz_partition_size=2),
        how="engine",
        shows=not_sharded,
        mended=zero(3, zero_quantized_weights=True),
    ),
    Case(
        rule="SZ014",
        config=zero(3, zero_quantized_gradients=True, reduce_scatter=False),
        how="engine",
        raises="AssertionError",
        says="all_to_all_reduce",
        mended=zero(3, zero_quantized_gradients=True),
    ),
    Case(
        rule="SZ016",
        config=zero(2, top={"prescale_gradients": True}),
        how="engine",
        raises="AssertionError",
        says="pre-scale gradients",
        mended=zero(1, top={"prescale_gradients": True}),
    ),
    Case(
        rule="SZ016",
        id="predivide",
        config=zero(3, top={"gradient_predivide_factor": 2.0}),
        how="engine",
        raises="AssertionError",
        says="gradient_predivide_factor",
        mended=zero(3, top={"gradient_predivide_factor": 1.0}),
    ),
    Case(
        rule="SZ017",
        config=zero(1, allgather_bucket_size=1001),
        how="engine",
        raises="AssertionError",
        says="allgather_bucket_size",
        mended=zero(1, allgather_bucket_size=1002),
    ),
    Case(
        rule="SZ019",
        config=zero(1, compute_grad_norm=False),
        how="engine",
        raises="ValueError",
        says="requires gradient_clipping=0",
        mended=zero(1, compute_grad_norm=False, top={"gradient_clipping": 0.0}),
    ),
    Case(
        rule="SZ019",
        id="stage 3",
        config=zero(3, compute_grad_norm=False),
        raises="ValidationError",
        says="compute_grad_norm",
        mended=zero(3),
    ),
    Case(
        rule="SZ020",
        config=zero(3, elastic_checkpoint=True),
        how=saved,
        shows=lambda saved: saved,
        mended=zero(3, elastic_checkpoint=False),
    ),
    Case(
        rule="SZ021",
        config=zero(1, pipeline_loading_checkpoint=True),
        how=saved_and_loaded,
        raises="AssertionError",
        says="Only stage3",
        mended=zero(3, pipeline_loading_checkpoint=True),
    ),
    Case(
        rule="SZ023",
        config=zero(3),
        how=saved_as_16_bit,
        shows=lambda got: got == (False, []),
        mended=zero(3, stage3_gather_16bit_weights_on_model_save=True),
    ),
    Case(
        rule="SZ025",
        config=plain(aio={"use_gds": True}),
        raises="AssertionError",
        says="CUDA",
        context={"gpu": "cpu"},
        mended=plain(aio={"use_gds": False}),
    ),
    Case(
        rule="SZ026",
        config=zero(2, zenflow={"select_interval": 4}),
        how="engine",
        raises="Warning",
        mended=zero(2, zenflow={}, **OFFLOADED),
    ),
    Case(
        rule="SZ026",
        id="words",
        config=zero(2, zenflow={"select_strategy": "step"}),
        how="engine",
        raises="ValueError",
        says="must be a number",
        mended=zero(2, zenflow={"select_strategy": "step", "select_interval": 4}, **OFFLOADED),
    ),
    Case(
        rule="SZ027",
        config=zero(
            0,
            zenflow={"select_strategy": "step", "select_interval": 8, "update_interval": 4},
            top={"gradient_accumulation_steps": 2},
        ),
        how="engine",
        shows=lambda engine: engine.gradient_accumulation_steps() == 4,
        mended=zero(2, zenflow={}, **OFFLOADED),
    ),
    Case(rule="SZ028", config=zero(2, stage3_max_live_parameters=10), how="engine", shows=not_sharded, mended=zero(2)),
    Case(
        rule="SZ029",
        config=zero(1, offload_optimizer={"device": "cpu"}),
        shows=lambda parsed: parsed.zero_config.offload_optimizer.pin_memory is True,
        mended=zero(1, offload_optimizer={"device": "cpu", "pin_memory": True}),
    ),
    Case(rule="SZ030", config=zero(None, overlap_comm=True), shows=stage_is(0), mended=zero(2, overlap_comm=True)),
    Case(
        rule="SZ031",
        config=zero(
            3,
            optimizer=None,
            offload_optimizer={"device": "cpu", "super_offload": True},
            top={"zero_force_ds_cpu_optimizer": False},
        ),
        how="engine",
        script="adamw",
        context={"gpu": "cpu"},
        raises="AssertionError",
        says="SuperOffload only supports",
        mended=zero(3, offload_optimizer={"device": "cpu"}),
    ),
    Case(
        rule="SZ032",
        config=zero(2, zenflow={"offload": True}),
        how="engine",
        raises="AssertionError",
        says="overlap_comm",
        mended=zero(2, zenflow={"offload": True}, overlap_comm=True, **OFFLOADED),
    ),
    Case(
        rule="SZ032",
        id="stage 3",
        config=zero(3, zenflow={"offload": True}, overlap_comm=False),
        how="engine",
        raises="AssertionError",
        says="overlap_comm",
        mended=zero(3, zenflow={"offload": True}),
    ),
    Case(
        rule="SZ033",
        config=zero(0, zenflow={}),
        how="engine",
        shows=lambda engine: not engine.zero_optimization(),
        mended=zero(1, zenflow={}, **OFFLOADED),
    ),
    Case(
        rule="SZ034",
        config=zero(3, zero_hpz_partition_size=2),
        how="engine",
        ranks=3,
        context={"world_size": 3},
        raises="AssertionError",
        says="divisible",
        mended=zero(3, zero_hpz_partition_size=1),
    ),
    Case(
        rule="SZ035",
        config=zero(2, zenflow={}),
        how="engine",
        raises="ValueError",
        says="must be used with cpu offload",
        mended=zero(2, zenflow={}, **OFFLOADED),
    ),
    # Parallelism.
    Case(
        rule="SP001",
        config=zero(2, top={"pipeline": {"stages": 2}}),
        how=in_a_pipeline,
        raises="AssertionError",
        says="incompatible with pipeline",
        mended=zero(1, top={"pipeline": {"stages": 2}}),
    ),
    Case(
        rule="SP010",
        config={
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 2,
            "optimizer": ADAMW,
            "tensor_parallel": {"autotp_size": 2},
        },
        ranks=2,
        how=tensor_batch,
        shows=lambda got: got == (8, 2, 2, 1),  # 2 x 2 x 1 is 4
        mended=plain(gradient_accumulation_steps=4, tensor_parallel={"autotp_size": 2}),
    ),
    Case(
        rule="SP011",
        config=plain(tensor_parallel={"dtype": "bf16"}),
        raises="ValidationError",
        says="dtype",
        mended=plain(tensor_parallel={"autotp_size": 1}),
    ),
    Case(
        rule="SP013",
        config=plain(optimizer=ADAMW, tensor_parallel={"autotp_size": 2, "tp": {"tp_size": 4}}),
        ranks=2,
        how=llama,
        raises="ValueError",
        says="does not match",
        mended=plain(tensor_parallel={"autotp_size": 2}),
    ),
    Case(
        rule="SP015",
        config=plain(optimizer=ADAMW, tensor_parallel={"autotp_size": 2}),
        ranks=2,
        how=llama_with_one_kv_head,
        shows=lambda rows: rows in (0, 16),
        context={"model": "multi-query"},
        mended=plain(tensor_parallel={"autotp_size": 1}),
    ),
    Case(
        rule="SP018",
        config=zero(3, top={"tensor_parallel": {"autotp_size": 2}}),
        ranks=2,
        how=llama,
        context={"deepspeed_version": "0.19.3"},
        mended=zero(2, top={"tensor_parallel": {"autotp_size": 2}}),
    ),
    Case(
        rule="SP020",
        config=plain(sequence_parallel_size=2, data_parallel_size=1),
        ranks=2,
        how=ulysses,
        context={"model": "three heads"},
        raises="ValueError",
        mended=plain(sequence_parallel_size=3, data_parallel_size=1),
    ),
    Case(
        rule="SP023",
        config=zero(
            3, offload_optimizer={"device": "cpu"}, top={"compile": {"deepcompile": True, "offload_opt_states": True}}
        ),
        how=compiled_at_3,
        raises="ValueError",
        says="offload_opt_states",
        mended=zero(3, top={"compile": {"deepcompile": True, "offload_opt_states": True}}),
    ),
    Case(
        rule="SP023",
        id="activations",
        config=zero(3, top={"compile": {"deepcompile": True, "offload_activation": True, "offload_parameters": True}}),
        how=compiled_at_3,
        raises="ValueError",
        says="offload_activation",
        mended=zero(3, top={"compile": {"deepcompile": True, "offload_activation": True}}),
    ),
    Case(
        rule="SP025",
        config=plain(activation_checkpointing={"contiguous_memory_optimization": True}),
        how=configured_checkpointing,
        raises="AssertionError",
        says="partitioned activations",
        mended=plain(activation_checkpointing={"contiguous_memory_optimization": False}),
    ),
    Case(
        rule="SP025",
        id="number",
        config=plain(activation_checkpointing={"contiguous_memory_optimization": True, "partition_activations": True}),
        how=configured_checkpointing,
        raises="AssertionError",
        says="number of layers",
        mended=plain(activation_checkpointing={"partition_activations": True}),
    ),
    Case(
        rule="SP026",
        config=plain(optimizer=ADAMW, tensor_parallel={"tp": {"tp_size": 2}}),
        how=llama_query_rows,
        shows=lambda rows: rows == 32,
        mended=plain(tensor_parallel={"autotp_size": 2}),
    ),
    Case(
        rule="SP027",
        config=plain(optimizer=ADAMW, tensor_parallel={"autotp_size": 3}),
        ranks=2,
        how=llama,
        context={"world_size": 2},
        raises="AssertionError",
        mended=plain(tensor_parallel={"autotp_size": 2}),
    ),
    Case(
        rule="SP028",
        config=trained(activation_checkpointing={"partition_activations": True}),
        how="engine",
        shows=steps_without_checkpointing,
        mended=trained(),
    ),
    Case(
        rule="SP029",
        config=plain(compile={"offload_activation": True}),
        shows=lambda parsed: parsed.compile_config.deepcompile is False,
        mended=plain(compile={"deepcompile": True, "offload_activation": True}),
    ),
    Case(
        rule="SP030",
        config=zero(1, top={"pipeline": {"stages": 2, "partition": "uniform"}}),
        how=in_a_pipeline,
        shows=lambda engine: engine.num_stages == 1,
        mended=zero(1, top={"pipeline": {"activation_checkpoint_interval": 1}}),
    ),
    Case(
        rule="SP032",
        config=zero(2, top={"sequence_parallel_size": 2, "data_parallel_size": 1, "gradient_clipping": 0.0}),
        ranks=2,
        how=norm_of_a_shared_loss,
        shows=lambda ratio: ratio > 1.9,
        mended=zero(3, top={"sequence_parallel_size": 2, "data_parallel_size": 1}),
    ),
    Case(
        rule="SP032",
        id="stage 3 is right",
        config=zero(1, top={"sequence_parallel_size": 2, "data_parallel_size": 1, "gradient_clipping": 0.0}),
        ranks=2,
        how=norm_at_stage_3,
        shows=lambda ratio: abs(ratio - 1) < 1e-5,
        mended=zero(3, top={"sequence_parallel_size": 2, "data_parallel_size": 1}),
    ),
    Case(
        rule="SP033",
        config=zero(1, top={"tensor_parallel": {"autotp_size": 2}}),
        how=read_by_scale_train,
        context={"model": "multi-query"},
        shows=lambda said: said == "ds_config: tensor_parallel_size 2 does not divide the key-value heads 1",
        mended=zero(1, top={"tensor_parallel": {"autotp_size": 1}}),
    ),
    Case(
        rule="SP033",
        id="two kinds",
        config=zero(1, top={"pipeline": {"stages": 2}, "sequence_parallel_size": 2}),
        how=read_by_scale_train,
        context={"model": "multi-query"},
        shows=lambda said: said.startswith("ds_config: pipeline and sequence parallelism do not go together"),
        mended=zero(1, top={"pipeline": {"stages": 2}}),
    ),
    Case(
        rule="SM003",
        config=zero(3, zero_quantized_gradients=True, top={"expert_parallel": {"enabled": True}}),
        how=experts_at_3,
        raises="AssertionError",
        says="zero_quantized_gradients",
        mended=zero(3, top={"expert_parallel": {"enabled": True}}),
    ),
    Case(
        rule="SM004",
        id="inner",
        config=plain(expert_parallel={"enabled": True, "expert_tensor_parallel_size": 2}),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="reserved for",
        mended=plain(**{"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}}),
    ),
    Case(
        rule="SM004",
        id="compile",
        config=plain(
            **{
                "expert_parallel": {"enabled": True, "autoep_size": 2},
                "tensor_parallel": {"autotp_size": 2},
                "compile": {"deepcompile": True},
            }
        ),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="DeepCompile",
        mended=plain(**{"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}}),
    ),
    Case(
        rule="SM004",
        id="one expert rank",
        config=plain(expert_parallel={"enabled": True}, **{"tensor_parallel": {"autotp_size": 2}}),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="autoep_size > 1",
        mended=plain(**{"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}}),
    ),
    Case(
        rule="SM004",
        id="order",
        config=plain(
            use_data_before_expert_parallelism=True,
            **{"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}},
        ),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="use_data_before_expert_parallel",
        mended=plain(**{"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}}),
    ),
    Case(
        rule="SM004",
        id="offload",
        config=zero(
            1,
            top={"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}},
            **OFFLOADED,
        ),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="offload",
        mended=zero(
            1, top={"expert_parallel": {"enabled": True, "autoep_size": 2}, "tensor_parallel": {"autotp_size": 2}}
        ),
    ),
    Case(
        rule="SM004",
        id="presets",
        config=plain(
            expert_parallel={"enabled": True, "preset_model": "mixtral"}, tensor_parallel={"preset_model": "llama"}
        ),
        how=experts_on_4_ranks,
        raises="ValueError",
        says="must match",
        mended=plain(
            expert_parallel={"enabled": True, "preset_model": "mixtral"}, tensor_parallel={"preset_model": "mixtral"}
        ),
    ),
    Case(
        rule="SM005",
        config=plain(expert_parallel={"enabled": True, "autoep_size": 3}),
        how=experts_on_4_ranks,
        context={"world_size": 4},
        raises="ValueError",
        mended=plain(expert_parallel={"enabled": True, "autoep_size": 2}),
    ),
]
