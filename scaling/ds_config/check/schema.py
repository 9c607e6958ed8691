"""Every key that DeepSpeed 0.19.8 reads from a ds_config: what it takes, what it means, its default, since when.

One row a key, in DeepSpeed's own spelling; tests/ds_config/check/test_schema.py holds the rows to DeepSpeed's models,
constants and reading. `since` is the first release that reads the key, from DeepSpeed's tags; "" is older than 0.14.
`changed` names the releases whose default was another one before.

A block is read in one of two ways, and that decides what happens to what is wrong in it. A "model" is a pydantic
model: it refuses unknown keys and wrong values, and drops any "auto" in silence, leaving the default. A "get" block is
a plain dict asked for the keys that are known: what is unknown is ignored, and a wrong value is kept until it breaks
something, if it does; `wrong` says when that is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from scaling.ds_config.check.outcome import AT_START, AT_STEP, CHANGES, LATER, Outcome
from scaling.ds_config.check.reader import Path
from scaling.ds_config.check.values import (
    ANYTHING,
    BOOLEAN,
    COUNT,
    FRACTION,
    INTEGER,
    LIST,
    NAME,
    NOTHING,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    TEXTS,
    Kind,
    choice,
    or_null,
    or_word,
)  # fmt: skip
from scaling.ds_config.check.version import Version, version

Reader = Literal["model", "get"]
UNSET: Any = object()  # no default: DeepSpeed works without the key, and means something of its own by that


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a ds_config."""

    path: tuple[str, ...]
    kind: Kind
    default: Any
    meaning: str
    since: str = ""
    changed: tuple[tuple[str, Any], ...] = ()  # (release, the default before it), newest first
    wrong: Outcome = CHANGES  # what DeepSpeed does with a value of another kind; in a model it refuses at start
    reader: Reader = "get"  # how the block is read in which the key stands
    instead: str = ""  # of a deprecated key, what replaced it
    alias: str = ""  # DeepSpeed's model takes this name too
    keys: Reader | Literal["any", ""] = ""  # of a block: how its own keys are read; "any" takes whatever stands there

    @property
    def name(self) -> str:
        return self.path[-1]

    def exists_at(self, release: Version) -> bool:
        return release >= version(self.since)

    def default_at(self, release: Version) -> Any:
        value = self.default
        for changed_in, before in self.changed:
            if release < version(changed_in):
                value = before
        return value


def _key(name: str, kind: Kind, default: Any, meaning: str, since: str = "", **facts: Any) -> Key:
    return Key(path=(name,), kind=kind, default=default, meaning=meaning, since=since, **facts)


def _block(name: str, keys: Reader | Literal["any"], meaning: str, *rows: Key, kind: Kind = OBJECT, since: str = "",
           wrong: Outcome = AT_START, default: Any = UNSET, alias: str = "") -> tuple[Key, ...]:  # fmt: skip
    """A block and, one level down, its keys."""
    head = Key(path=(name,), kind=kind, default=default, meaning=meaning, since=since, wrong=wrong, keys=keys,
               alias=alias)  # fmt: skip
    reader: Reader = "model" if keys == "model" else "get"
    inner = [replace(row, path=(name, *row.path), reader=reader if len(row.path) == 1 else row.reader) for row in rows]
    return (head, *inner)


_k = _key
_DTYPE = choice("fp16", "bf16", "fp32", "float16", "bfloat16", "float32", "half", "float",
                "torch.float16", "torch.bfloat16", "torch.float32", "int8", "torch.int8")  # fmt: skip

_BATCH_AND_LOOP = (
    _k("train_batch_size", POSITIVE, UNSET, "samples per optimizer step, over all ranks", wrong=AT_START),
    _k("train_micro_batch_size_per_gpu", POSITIVE, UNSET, "samples per rank in one forward and backward",
       wrong=AT_START),
    _k("gradient_accumulation_steps", POSITIVE, UNSET, "micro steps per optimizer step", wrong=AT_START),
    _k("managed_gradient_accumulation", BOOLEAN, True, "DeepSpeed counts the micro steps, not the script", "0.19.4"),
    _k("gradient_clipping", Kind(form="number", least=0), 1.0, "largest global gradient norm; 0 does not clip",
       changed=(("0.19.3", 0.0),), wrong=AT_STEP),
    _k("prescale_gradients", BOOLEAN, False, "divide gradients before the reduction instead of after"),
    _k("gradient_predivide_factor", Kind(form="number", above=0), 1.0, "divide by this before the reduction",
       wrong=AT_STEP),
    _k("gradient_allreduce_op", choice("mean", "sum"), "mean", "how ranks' gradients are put together", "0.19.6",
       wrong=AT_START),
    _k("communication_data_type", or_null(choice("fp16", "bf16", "fp32")), None, "width in which gradients travel",
       wrong=AT_START),
    _k("seq_parallel_communication_data_type", or_null(choice("fp16", "bf16", "fp32")), "fp32",
       "the same over the sequence-parallel group", wrong=AT_START),
    _k("disable_allgather", BOOLEAN, False, "read, and used by nothing"),
    _k("zero_allow_untested_optimizer", BOOLEAN, False, "let ZeRO shard an optimizer that it does not know"),
    _k("zero_force_ds_cpu_optimizer", BOOLEAN, True, "with offload, refuse optimizers other than DeepSpeed's own"),
    _k("sequence_parallel_size", POSITIVE, UNSET, "ranks that share one sequence", "0.15.0", wrong=AT_START),
    _k("data_parallel_size", POSITIVE, UNSET, "with the former: ranks that hold other samples", "0.15.0",
       wrong=CHANGES),
    _k("use_data_before_expert_parallelism", BOOLEAN, False, "order of ranks in expert-parallel groups"),
    _k("dataloader_drop_last", BOOLEAN, False, "leave out a last batch that is not full"),
    _k("steps_per_print", or_null(NUMBER), None, "a progress line every so many steps", changed=(("0.15.2", 10),),
       wrong=AT_STEP),
    _k("wall_clock_breakdown", BOOLEAN, False, "time forward, backward and step", wrong=AT_START),
    _k("memory_breakdown", BOOLEAN, False, "print memory after each phase"),
    _k("dump_state", BOOLEAN, False, "print the whole configuration at start"),
    _k("disable_python_gc", BOOLEAN, False, "switch Python's cyclic garbage collector off", "0.19.8"),
    _k("log_level", or_null(TEXT), None, "level of DeepSpeed's logger", "0.19.3", wrong=AT_START),
    _k("vocabulary_size", or_null(POSITIVE), None, "only for a warning where 8 does not divide it"),
    _k("allgather_size", NUMBER, 5e8, "allgather_bucket_size of the old form zero_optimization: true"),
    _k("datastates_ckpt", ANYTHING, UNSET, "options of the DataStates checkpoint engine", "0.18.1"),
)  # fmt: skip

_STRICT = Kind(form="integer", strict=True)

_PRECISION = (
    *_block("fp16", "model", "half precision with loss scaling",
        _k("enabled", BOOLEAN, False, "train in fp16"),
        _k("auto_cast", BOOLEAN, False, "cast the inputs to fp16"),
        _k("loss_scale", Kind(form="number", least=0, strict=True), 0.0, "a static loss scale; 0 is dynamic"),
        _k("initial_scale_power", INTEGER, 16, "the dynamic loss scale begins at 2 to this"),
        _k("loss_scale_window", _STRICT, 1000, "good steps until the scale doubles"),
        _k("hysteresis", INTEGER, 2, "overflows until the scale halves"),
        _k("consecutive_hysteresis", BOOLEAN, False, "a good step refills the hysteresis"),
        _k("min_loss_scale", _STRICT, 1, "the scale never falls below"),
        _k("fp16_master_weights_and_grads", BOOLEAN, False, "no fp32 copy of the weights; offload to CPU only"),
    ),
    *_block("bf16", "model", "bfloat16 without loss scaling",
        _k("enabled", BOOLEAN, False, "train in bf16"),
        _k("immediate_grad_update", BOOLEAN, False, "add to the fp32 gradients in the backward hook"),
        _k("check_grad_overflow", BOOLEAN, True, "skip a step whose gradients are not finite", "0.17.1",
           changed=(("0.19.3", False),)),
        _k("bf16_master_weights_and_grads", BOOLEAN, False, "no fp32 copy of the weights; offload to CPU only",
           "0.18.3"),
        _k("bf16_optimizer_states", BOOLEAN, False, "optimizer states in bf16 too", "0.18.3"),
        kind=or_null(OBJECT)),
    *_block("bfloat16", "model", "the old name of bf16, read where bf16 is absent",
        _k("enabled", BOOLEAN, False, "train in bf16"),
        _k("immediate_grad_update", BOOLEAN, False, "add to the fp32 gradients in the backward hook"),
        _k("check_grad_overflow", BOOLEAN, True, "skip a step whose gradients are not finite", "0.17.1",
           changed=(("0.19.3", False),)),
        _k("bf16_master_weights_and_grads", BOOLEAN, False, "no fp32 copy of the weights", "0.18.3"),
        _k("bf16_optimizer_states", BOOLEAN, False, "optimizer states in bf16 too", "0.18.3")),
    *_block("torch_autocast", "get", "PyTorch's autocast around the forward pass, fp32 weights",
        _k("enabled", BOOLEAN, False, "use autocast"),
        _k("dtype", _DTYPE, UNSET, "what autocast casts to", wrong=AT_START),
        _k("lower_precision_safe_modules", TEXTS, UNSET, "module classes whose gradients may travel in that width",
           wrong=AT_START),
        since="0.17.2"),
    *_block("data_types", "get", "widths beside the model's own",
        _k("grad_accum_dtype", or_null(_DTYPE), None, "width in which micro steps are summed; null: the model's",
           wrong=AT_START),
        _k("param_dtype", or_null(_DTYPE), None, "must repeat what fp16 and bf16 say", "0.19.2", wrong=AT_START),
        _k("buffer_dtype", or_null(_DTYPE), None, "width of buffers; null leaves them as loaded", "0.19.2",
           wrong=AT_START),
        _k("keep_in_fp32_modules", or_word(TEXTS, "auto"), "auto", "buffers that stay in fp32, by name", "0.19.8",
           wrong=AT_START)),
)  # fmt: skip

_OPTIMIZER_AND_SCHEDULER = (
    *_block("optimizer", "get", "built by DeepSpeed where the script passes none",
        _k("type", TEXT, UNSET, "one of DeepSpeed's, or a class of torch.optim", wrong=AT_START),
        *_block("params", "any", "arguments of its constructor", kind=or_null(OBJECT)),
        _k("legacy_fusion", BOOLEAN, False, "the old fused path of FP16_Optimizer")),
    *_block("scheduler", "get", "built by DeepSpeed where the script passes none",
        _k("type", TEXT, UNSET, "one of DeepSpeed's, or a class of torch.optim.lr_scheduler", wrong=AT_START),
        *_block("params", "any", "arguments of its constructor")),
)  # fmt: skip

_NAMES = Kind(form="list", of=TEXT, alone=True)
_BUCKET = Kind(form="integer", least=0)
_OFFLOAD_DEVICE = choice("none", "cpu", "nvme")

_ZERO = _block("zero_optimization", "model", "what is sharded over the data-parallel ranks",
    _k("stage", choice(0, 1, 2, 3), 0, "0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too"),
    _k("contiguous_gradients", BOOLEAN, True, "copy gradients into one buffer as they come"),
    _k("reduce_scatter", BOOLEAN, True, "reduce to the owner instead of to all"),
    _k("reduce_bucket_size", POSITIVE, 500_000_000, "gradient elements reduced at a time"),
    _k("use_multi_rank_bucket_allreduce", BOOLEAN, True, "one all-reduce instead of a reduce per rank"),
    _k("allgather_partitions", BOOLEAN, True, "all-gather the updated parameters instead of broadcasting"),
    _k("allgather_bucket_size", _BUCKET, 500_000_000, "parameter elements gathered at a time"),
    _k("overlap_comm", or_null(BOOLEAN), None, "reduce while the backward pass goes on; null: only at stage 3"),
    _k("compute_grad_norm", BOOLEAN, True, "compute the global gradient norm at each step", "0.19.7"),
    _k("load_from_fp32_weights", BOOLEAN, True, "on load, fp32 weights from the checkpoint's fp32 copy"),
    _k("elastic_checkpoint", BOOLEAN, False, "checkpoints for another world size; nothing writes them at stage 3"),
    *_block("offload_param", "model", "parameters in host memory or on disk, stage 3",
        _k("device", _OFFLOAD_DEVICE, "none", "where to"),
        _k("nvme_path", or_null(TEXT), None, "folder on the disk"),
        _k("buffer_count", COUNT, 5, "buffers to and from the disk"),
        _k("buffer_size", COUNT, 100_000_000, "elements in each; no shard may be larger"),
        _k("max_in_cpu", COUNT, 1_000_000_000, "elements kept in host memory, with nvme"),
        _k("pin_memory", BOOLEAN, True, "page-locked host memory", changed=(("0.19.5", False),)),
        kind=or_null(OBJECT), default=None),
    *_block("offload_optimizer", "model", "optimizer states and step on the host",
        _k("device", _OFFLOAD_DEVICE, "none", "where to"),
        _k("nvme_path", or_null(TEXT), None, "folder on the disk"),
        _k("buffer_count", COUNT, 4, "buffers to and from the disk"),
        _k("pin_memory", BOOLEAN, True, "page-locked host memory", changed=(("0.19.5", False),)),
        _k("pipeline_read", BOOLEAN, False, "read the next tile while this one is stepped"),
        _k("pipeline_write", BOOLEAN, False, "write the last tile while this one is stepped"),
        _k("fast_init", BOOLEAN, False, "skip part of the set-up, with nvme"),
        _k("ratio", FRACTION, 1.0, "share of the optimizer that is offloaded, stage 3"),
        _k("super_offload", BOOLEAN, False, "SuperOffload, stage 3 on Grace-Hopper", "0.18.0"),
        _k("cpuadam_cores_perc", FRACTION, 0.8, "share of the cores for SuperOffload's Adam", "0.18.0"),
        kind=or_null(OBJECT), default=None),
    *_block("zenflow", "model", "step the important gradients now and the rest later, on the host",
        _k("topk_ratio", Kind(form="number", above=0, below=1), 0.1, "share of gradient columns stepped at once"),
        _k("select_strategy", choice("auto", "step", "epoch"), "auto", "when the columns are chosen again"),
        _k("select_interval", or_word(INTEGER, "auto"), "auto", "after how many steps or epochs"),
        _k("update_interval", or_word(POSITIVE, "auto"), "auto", "steps between updates of the rest"),
        _k("overlap_step", BOOLEAN, False, "the host's step beside the next forward and backward"),
        _k("offload", BOOLEAN, False, "the chosen columns' states in host memory too"),
        _k("auto_ratio", FRACTION, 0.99, "threshold of the strategy auto"),
        _k("full_warm_up_rounds", INTEGER, 0, "first steps without selection"),
        _k("pt_reserved_cores_perc", FRACTION, 0.5, "share of the cores left to PyTorch", "0.17.6"),
        _k("steps_per_epoch", or_null(INTEGER), None, "filled in by DeepSpeed"),
        kind=or_null(OBJECT), since="0.17.5", default=None),
    _k("sub_group_size", COUNT, 1_000_000_000, "elements stepped at a time, stage 3"),
    _k("cpu_offload_param", or_null(BOOLEAN), None, "deprecated", instead="offload_param"),
    _k("cpu_offload_use_pin_memory", or_null(BOOLEAN), None, "deprecated, and without effect",
       instead="offload_optimizer.pin_memory"),
    _k("cpu_offload", or_null(BOOLEAN), None, "deprecated", instead="offload_optimizer"),
    _k("stage3_prefetch_bucket_size", COUNT, 50_000_000, "elements gathered ahead", alias="prefetch_bucket_size"),
    _k("stage3_param_persistence_threshold", COUNT, 100_000, "smaller parameters stay whole",
       alias="param_persistence_threshold"),
    _k("stage3_model_persistence_threshold", COUNT, 2**63 - 1, "elements that may stay whole in all",
       alias="model_persistence_threshold"),
    _k("stage3_max_live_parameters", COUNT, 1_000_000_000, "elements gathered at a time",
       alias="max_live_parameters"),
    _k("stage3_max_reuse_distance", COUNT, 1_000_000_000, "do not release what is used again within",
       alias="max_reuse_distance"),
    _k("stage3_gather_16bit_weights_on_model_save", BOOLEAN, False, "save_16bit_model() writes whole weights",
       alias="gather_16bit_weights_on_model_save"),
    _k("stage3_module_granularity_threshold", INTEGER, 0, "finer modules are gathered as one", "0.16.0",
       alias="module_granularity_threshold"),
    _k("stage3_use_all_reduce_for_fetch_params", BOOLEAN, False, "gather by all-reduce", "0.14.3",
       alias="use_all_reduce_for_fetch_params"),
    _k("stage3_allgather_sequential", BOOLEAN, False, "gather parameter by parameter", "0.18.5",
       alias="allgather_sequential"),
    _k("stage3_gather_fp16_weights_on_model_save", BOOLEAN, False, "deprecated",
       instead="stage3_gather_16bit_weights_on_model_save"),
    _k("ignore_unused_parameters", BOOLEAN, True, "stage 2: parameters without a gradient are no error"),
    _k("legacy_stage1", BOOLEAN, False, "the stage 1 of before 0.5.9, which is gone"),
    _k("round_robin_gradients", BOOLEAN, False, "spread the copying to the host over the ranks, stages 1 and 2"),
    _k("parameter_alignment", BOOLEAN, False, "pad so that each parameter begins on 16 bytes", "0.19.7"),
    _k("zero_hpz_partition_size", COUNT, 1, "ZeRO++: ranks that share a second copy of the parameters"),
    _k("zero_quantized_weights", BOOLEAN, False, "ZeRO++: gather parameters in 8 bits"),
    _k("zero_quantized_nontrainable_weights", BOOLEAN, False, "ZeRO++: keep frozen parameters in 8 bits"),
    _k("zero_quantized_gradients", BOOLEAN, False, "ZeRO++: reduce gradients in 8 bits"),
    _k("memory_efficient_linear", BOOLEAN, True, "stage 3: a linear layer that keeps less"),
    _k("pipeline_loading_checkpoint", BOOLEAN, False, "stage 3: load piece by piece"),
    _k("override_module_apply", BOOLEAN, True, "stage 3: Module.apply sees whole parameters"),
    _k("log_trace_cache_warnings", BOOLEAN, False, "say when the prefetch order changes", "0.16.4"),
    _k("enable_sanity_checks", BOOLEAN, False, "internal checks", "0.17.6"),
    _k("save_muon_momentum_buffer_in_memory", BOOLEAN, False, "with nvme, Muon's momentum stays in memory", "0.18.9"),
    *_block("leaf_module", "model", "modules that are gathered whole at stage 3",
        _k("classes", _NAMES, UNSET, "by class"),
        _k("names", _NAMES, UNSET, "by name"),
        _k("name_suffixes", _NAMES, UNSET, "by the end of the name"),
        since="0.18.0"),
)  # fmt: skip

_PARALLELISM = (
    *_block("tensor_parallel", "model", "AutoTP: matrices split over ranks that see the same samples",
        _k("dtype", NOTHING, UNSET, "no JSON value is taken"),
        _k("autotp_size", INTEGER, 0, "ranks that share a matrix; 0 is off"),
        _k("tp_overlap_comm", BOOLEAN, False, "reduce while computing", "0.16.6"),
        _k("vocab_parallel_lm_head", or_null(BOOLEAN), None, "split the vocabulary of the LM head", "0.19.8"),
        _k("vocab_parallel_ce_backend", choice("torch", "liger"), "torch", "cross-entropy over the split", "0.19.8"),
        *_block("tensor_parallel", "model", "sizes and groups",
            _k("tp_size", INTEGER, 1, "as autotp_size"),
            _k("tp_grain_size", INTEGER, 1, "granularity of the split"),
            _k("mpu", ANYTHING, None, "an object, which JSON cannot spell"),
            _k("tp_group", ANYTHING, None, "an object, which JSON cannot spell"),
            alias="tp"),
        _k("injection_policy_tuple", or_null(LIST), None, "layers to replace"),
        _k("partition_config", or_null(OBJECT), None, "which layers are split, and how", "0.18.6", keys="any"),
        _k("preset_model", or_null(TEXT), None, "a known model's partition_config", "0.18.6"),
        _k("keep_module_on_host", BOOLEAN, False, "load on the host first"),
        _k("replace_with_kernel_inject", BOOLEAN, False, "inference kernels", alias="kernel_inject"),
        since="0.16.4"),
    *_block("pipeline", "get", "read by PipelineModule's engine only",
        _k("stages", ANYTHING, "auto", "read, and used by nothing"),
        _k("partition", ANYTHING, "best", "read, and used by nothing"),
        _k("seed_layers", BOOLEAN, False, "read, and used by nothing"),
        _k("activation_checkpoint_interval", COUNT, 0, "checkpoint every so many layers"),
        _k("pipe_partitioned", BOOLEAN, True, "split activations between stages over tensor ranks", wrong=LATER),
        _k("grad_partitioned", BOOLEAN, True, "the same for their gradients", wrong=LATER),
        _k("use_reentrant", or_null(BOOLEAN), None, "form of activation checkpointing; null: reentrant")),
    *_block("expert_parallel", "get", "AutoEP: experts spread over ranks",
        _k("enabled", BOOLEAN, False, "use AutoEP"),
        _k("autoep_size", POSITIVE, 1, "ranks that share the experts"),
        _k("expert_tensor_parallel_size", POSITIVE, 1, "ranks that share one expert"),
        _k("validate_folding_routing", BOOLEAN, False, "check the routing at run time", wrong=LATER),
        _k("async_split_plan", BOOLEAN, False, "plan the all-to-all beside the forward pass", "0.19.8", wrong=LATER),
        *(_k(name, or_null(TEXT), None, "where the experts are in the model") for name in (
            "preset_model", "moe_layer_pattern", "expert_pattern", "router_pattern", "expert_w1", "expert_w2",
            "num_experts_attr", "top_k_attr", "shared_experts_pattern", "shared_experts_gate_pattern")),
        _k("expert_w3", or_null(TEXT), UNSET, "the gate's weight; null: fused with w1"),
        _k("expert_activation", or_null(TEXT), None, "activation of the experts", "0.19.8"),
        _k("has_shared_experts", or_null(BOOLEAN), None, "some experts see every token"),
        _k("use_grouped_mm", BOOLEAN, True, "one kernel for all experts"),
        _k("disable_triton_grouped_mm", BOOLEAN, False, "not the Triton one"),
        _k("route_norm", or_null(BOOLEAN), None, "normalise the routing weights"),
        _k("route_scale", NUMBER, 1.0, "scale of the routing weights"),
        _k("routed_scaling_factor", or_word(NUMBER, "auto"), "auto", "scale of the experts' sum"),
        _k("score_func", choice("auto", "softmax", "sigmoid"), "auto", "of the router"),
        _k("score_apply", choice("auto", "pre", "post"), "auto", "weights before or after the experts"),
        _k("combine_impl", choice("auto", "weighted_sum", "fused_weighted_sum", "legacy_bmm"), "auto",
           "how experts' outputs are summed", wrong=LATER),
        _k("row_weighting_impl", choice("auto", "eager", "fused"), "auto", "how rows are weighted", "0.19.8",
           wrong=LATER),
        _k("gate_up_impl", choice("separate", "fused"), "separate", "two matrices or one", "0.19.8", wrong=LATER),
        _k("comm_backend", choice("comm", "deepep"), "comm", "who does the all-to-all", "0.19.7", wrong=LATER),
        _k("comm_num_sm", INTEGER, 12, "multiprocessors for it", "0.19.7"),
        _k("comm_qp_margin", INTEGER, 4, "queue pairs to spare", "0.19.7"),
        _k("comm_max_tokens_per_rank", COUNT, 0, "size of its buffers; 0: found out", "0.19.7"),
        _k("num_expert_groups", or_null(POSITIVE), None, "groups of experts"),
        _k("num_limited_groups", or_null(POSITIVE), None, "groups a token may go to"),
        _k("top_k", or_word(POSITIVE, "auto"), "auto", "experts a token goes to"),
        _k("load_balance_coeff", or_null(NOTHING), UNSET, "not supported", wrong=AT_START),
        kind=or_null(OBJECT), since="0.19.2"),
)  # fmt: skip

_CHECKPOINTING = (
    *_block("activation_checkpointing", "get", "read by deepspeed.checkpointing; a plain module is not touched",
        _k("partition_activations", BOOLEAN, False, "split saved activations over tensor ranks"),
        _k("contiguous_memory_optimization", BOOLEAN, False, "saved activations in one buffer"),
        _k("cpu_checkpointing", BOOLEAN, False, "saved activations in host memory"),
        _k("number_checkpoints", or_null(COUNT), None, "how many, for the buffer's size"),
        _k("synchronize_checkpoint_boundary", BOOLEAN, False, "wait for the device at each"),
        _k("profile", BOOLEAN, False, "time each")),
    *_block("checkpoint", "get", "how save_checkpoint and load_checkpoint work",
        _k("tag_validation", TEXT, "WARN", "WARN, IGNORE or FAIL where ranks name another tag", wrong=AT_START),
        _k("load_universal", BOOLEAN, False, "load a universal checkpoint"),
        _k("use_node_local_storage", BOOLEAN, False, "each node writes to a disk of its own"),
        *_block("parallel_write", "get", "who writes",
            _k("pipeline_stage", BOOLEAN, False, "pipeline stages write their layers side by side", wrong=AT_START)),
        _k("checkpoint_serialization", BOOLEAN, True, "torch's zip format", "0.17.1"),
        *_block("writer", "get", "the fast writer",
            _k("type", TEXT, "FAST", "MOCK, PYTHON or FAST", wrong=AT_START),
            _k("io_buffer_size", POSITIVE, 67_108_864, "bytes"),
            _k("io_buffer_double", BOOLEAN, True, "two buffers"),
            _k("io_multiplier", POSITIVE, 1, "writers per rank"),
            _k("show_statistics", BOOLEAN, False, "print what it took"),
            _k("data_parallel", or_null(TEXT), None, "REPLICA, SOCKET or MACHINE", wrong=AT_START),
            _k("decoupled", BOOLEAN, False, "write in a process beside"),
            kind=or_null(OBJECT), since="0.17.1"),
        kind=OBJECT),
)  # fmt: skip

_TUNING = (
    *_block("aio", "get", "reads and writes of nvme offload",
        _k("block_size", POSITIVE, 1_048_576, "bytes at a time"),
        _k("queue_depth", POSITIVE, 8, "requests under way"),
        _k("intra_op_parallelism", POSITIVE, 1, "threads per request", "0.16.4"),
        _k("single_submit", BOOLEAN, False, "one request a call"),
        _k("overlap_events", BOOLEAN, True, "wait for several at once"),
        _k("use_gds", BOOLEAN, False, "GPUDirect Storage", "0.15.0"),
        kind=or_null(OBJECT)),
    *_block("compile", "model", "DeepCompile",
        _k("deepcompile", BOOLEAN, False, "use it"),
        _k("autoep_non_moe", BOOLEAN, False, "compile what is around AutoEP layers", "0.19.8"),
        _k("free_activation", BOOLEAN, False, "free large activations early"),
        _k("free_activation_threshold", INTEGER, 10_485_760, "large is this many bytes"),
        _k("offload_activation", BOOLEAN, False, "saved activations in host memory"),
        _k("offload_activation_pin_memory", BOOLEAN, True, "page-locked", "0.19.6"),
        _k("offload_opt_states", BOOLEAN, False, "optimizer states in host memory outside the step"),
        _k("double_buffer", BOOLEAN, True, "two buffers for reductions"),
        _k("symmetric_memory", BOOLEAN, False, "PyTorch's symmetric memory"),
        _k("debug_log", BOOLEAN, False, "write the graphs out"),
        _k("offload_parameters", BOOLEAN, False, "parameters in host memory"),
        _k("sync_before_reduce", BOOLEAN, False, "for debugging"),
        _k("sync_after_reduce", BOOLEAN, False, "for debugging"),
        _k("sync_before_allgather", BOOLEAN, False, "for debugging"),
        _k("sync_after_allgather", BOOLEAN, False, "for debugging"),
        _k("keep_int_input_tensors", BOOLEAN, True, "keep integer inputs", "0.17.2"),
        _k("keep_all_input_tensors", BOOLEAN, False, "keep all inputs", "0.17.2"),
        _k("passes", or_null(Kind(form="list", of=choice("z1", "z3", "autosp", "autotp"))), None,
           "which transformations", "0.18.9"),
        since="0.16.6"),
    *_block("hybrid_engine", "model", "training and generation in turn",
        _k("enabled", BOOLEAN, False, "use it"),
        _k("max_out_tokens", POSITIVE, 512, "longest output"),
        _k("inference_tp_size", INTEGER, 1, "tensor parallel in generation"),
        _k("release_inference_cache", BOOLEAN, False, "free its memory for training"),
        _k("pin_parameters", BOOLEAN, True, "keep them gathered"),
        _k("tp_gather_partition_size", INTEGER, 8, "elements gathered at a time"),
        _k("enable_cuda_graph", BOOLEAN, False, "record the generation", "0.19.7")),
    *_block("weight_quantization", "model", "weights in few bits",
        _k("enabled", BOOLEAN, True, "use it"),
        _k("num_bits", INTEGER, 8, "bits"),
        _k("q_type", choice("asymmetric", "symmetric"), "symmetric", "with an offset or without"),
        _k("q_groups", INTEGER, 1, "groups with a scale of their own"),
        _k("quantized_initialization", OBJECT, UNSET, "while the model is built", keys="any"),
        _k("post_init_quant", OBJECT, UNSET, "after it", keys="any")),
)  # fmt: skip

_OBSERVING = (
    *_block("flops_profiler", "get", "counts of one step",
        _k("enabled", BOOLEAN, False, "use it; switches wall_clock_breakdown on"),
        _k("recompute_fwd_factor", NUMBER, 0.0, "share of the forward pass that is recomputed", wrong=LATER),
        _k("profile_step", COUNT, 1, "which step"),
        _k("module_depth", INTEGER, -1, "how deep to print; -1: all", wrong=LATER),
        _k("top_modules", POSITIVE, 1, "how many to print", wrong=LATER),
        _k("detailed", BOOLEAN, True, "each module"),
        _k("output_file", or_null(TEXT), None, "a file instead of the screen", wrong=LATER)),
    *_block("comms_logger", "model", "times of collectives",
        _k("enabled", BOOLEAN, False, "use it"),
        _k("prof_all", BOOLEAN, True, "all of them"),
        _k("prof_ops", LIST, UNSET, "or these"),
        _k("verbose", BOOLEAN, False, "a line each"),
        _k("debug", BOOLEAN, False, "with the caller")),
    *_block("timers", "get", "how throughput is timed",
        *_block("throughput", "model", "samples per second",
            _k("enabled", BOOLEAN, True, "time it"),
            _k("synchronized", BOOLEAN, True, "wait for the device")),
        since="0.14.3"),
    *_block("tensorboard", "model", "metrics to TensorBoard",
        _k("enabled", BOOLEAN, False, "write them"),
        _k("output_path", TEXT, "", "folder"),
        _k("job_name", TEXT, "DeepSpeedJobName", "folder in it")),
    *_block("wandb", "model", "metrics to Weights & Biases",
        _k("enabled", BOOLEAN, False, "send them"),
        _k("group", or_null(TEXT), None, "group"),
        _k("team", or_null(TEXT), None, "team"),
        _k("project", TEXT, "deepspeed", "project")),
    *_block("csv_monitor", "model", "metrics to CSV files",
        _k("enabled", BOOLEAN, False, "write them"),
        _k("output_path", TEXT, "", "folder"),
        _k("job_name", TEXT, "DeepSpeedJobName", "folder in it")),
    *_block("comet", "model", "metrics to Comet",
        _k("enabled", BOOLEAN, False, "send them"),
        _k("samples_log_interval", INTEGER, 100, "samples between them"),
        *(_k(name, or_null(TEXT), None, "as Comet calls it") for name in (
            "project", "workspace", "api_key", "experiment_name", "experiment_key", "mode")),
        _k("online", or_null(BOOLEAN), None, "send while training"),
        since="0.14.3"),
)  # fmt: skip

_DATA = _block("data_efficiency", "get", "curriculum, dynamic batches and token dropping",
    _k("enabled", BOOLEAN, False, "use it"),
    _k("seed", INTEGER, 1234, "of the sampler", wrong=LATER),
    *_block("data_sampling", "any", "which samples",
        _k("enabled", BOOLEAN, False, "use it"),
        _k("num_epochs", POSITIVE, 1000, "how often the data may be seen", wrong=LATER),
        _k("num_workers", COUNT, 0, "of the loader", wrong=LATER),
        _k("pin_memory", BOOLEAN, False, "of the loader"),
        *_block("curriculum_learning", "any", "easy samples first",
            _k("enabled", BOOLEAN, False, "use it"),
            _k("data_cluster_path", TEXT, UNSET, "folder of the clusters", wrong=LATER),
            _k("curriculum_metrics", OBJECT, UNSET, "what is easy, one block a metric", wrong=LATER, keys="any")),
        *_block("dynamic_batching", "any", "batches of about as many tokens",
            _k("enabled", BOOLEAN, False, "use it"),
            _k("metrics_path", TEXT, UNSET, "lengths of the samples", wrong=LATER),
            _k("lr_scaling_method", TEXT, "linear", "linear, sqrt or none", wrong=LATER),
            _k("min_batch_size", POSITIVE, 1, "fewest samples", wrong=AT_START),
            _k("max_batch_size", POSITIVE, UNSET, "most samples", wrong=AT_START),
            _k("sequence_picking_order", TEXT, "dataloader", "random, seqlen or dataloader", wrong=LATER),
            _k("max_tokens", POSITIVE, UNSET, "most tokens", wrong=LATER),
            _k("verbose", BOOLEAN, False, "say what is batched"),
            since="0.16.5")),
    *_block("data_routing", "get", "which tokens in which layers",
        _k("enabled", BOOLEAN, False, "use it"),
        *_block("random_ltd", "any", "layers skip some tokens",
            _k("enabled", BOOLEAN, False, "use it"),
            *(_k(name, ANYTHING, UNSET, "as its scheduler and layers read it") for name in (
                "total_layer_num", "random_ltd_layer_num", "random_ltd_layer_id", "model_mask_name", "model_type",
                "micro_batch_size", "global_batch_size", "sample_idx", "attention_mask", "hidden_state_order")),
            _k("layer_token_lr_schedule", OBJECT, UNSET, "learning rate by tokens", wrong=LATER, keys="any"),
            _k("random_ltd_schedule", OBJECT, UNSET, "how many tokens when", wrong=LATER, keys="any"))),
)  # fmt: skip

_AUTOTUNING = _block("autotuning", "get", "read by `deepspeed --autotuning`; in training only looked at",
    _k("enabled", BOOLEAN, False, "use it"),
    _k("fast", BOOLEAN, True, "fewer experiments"),
    _k("results_dir", NAME, "autotuning_results", "folder", wrong=AT_START),
    _k("exps_dir", NAME, "autotuning_exps", "folder", wrong=AT_START),
    _k("overwrite", BOOLEAN, True, "what stands there"),
    _k("start_profile_step", COUNT, 3, "first step measured"),
    _k("end_profile_step", COUNT, 5, "last step measured"),
    _k("metric", TEXT, "throughput", "latency, throughput or flops"),
    _k("metric_path", or_null(TEXT), None, "file of the metric"),
    _k("tuner_type", TEXT, "gridsearch", "gridsearch, random or model_based"),
    _k("tuner_early_stopping", COUNT, 5, "experiments without gain"),
    _k("tuner_num_trials", COUNT, 50, "experiments at most"),
    _k("arg_mappings", or_null(OBJECT), None, "the script's names for what is tuned", keys="any"),
    _k("model_info", or_null(OBJECT), None, "what is known of the model", keys="any"),
    _k("model_info_path", or_null(TEXT), None, "file of it"),
    _k("mp_size", POSITIVE, 1, "model-parallel ranks"),
    _k("max_train_batch_size", or_null(POSITIVE), None, "bound"),
    _k("min_train_batch_size", POSITIVE, 1, "bound"),
    _k("max_train_micro_batch_size_per_gpu", POSITIVE, 1024, "bound"),
    _k("min_train_micro_batch_size_per_gpu", POSITIVE, 1, "bound"),
    _k("num_tuning_micro_batch_sizes", POSITIVE, 3, "how many are tried"),
)  # fmt: skip

KEYS: dict[tuple[str, ...], Key] = {
    key.path: key
    for rows in (
        _BATCH_AND_LOOP, _PRECISION, _OPTIMIZER_AND_SCHEDULER, _ZERO, _PARALLELISM, _CHECKPOINTING, _TUNING,
        _OBSERVING, _DATA, _AUTOTUNING,
    )
    for key in rows
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A key that DeepSpeed refuses on sight from `release` on."""

    path: tuple[str, ...]
    release: str
    mend: str


REMOVED: dict[tuple[str, ...], Removed] = {
    row.path: row
    for row in (
        Removed(path=("nebula",), release="0.19.7", mend="remove it: checkpoints are written by torch"),
        Removed(path=("compression_training",), release="0.19.7", mend="remove it: compress with another library"),
        Removed(path=("quantize_training",), release="0.19.7", mend="remove it: quantise with another library"),
        Removed(path=("sparse_attention",), release="0.19.7", mend="remove it: use the model's own attention"),
        Removed(path=("amp",), release="0.19.8", mend='remove it, and enable "bf16", "fp16" or "torch_autocast"'),
        Removed(path=("sparse_gradients",), release="0.19.8", mend="remove it: Embedding(sparse=True) needs no key"),
        Removed(path=("eigenvalue",), release="0.19.8", mend="remove it"),
        Removed(path=("elasticity",), release="0.19.8", mend="remove it, and set the batch sizes"),
        Removed(path=("graph_harvesting",), release="0.19.8", mend="remove it"),
        Removed(path=("curriculum_learning",), release="0.19.8",
                mend='move it to "data_efficiency": {"data_sampling": {"curriculum_learning": ...}}'),
        Removed(path=("progressive_layer_drop",), release="0.19.8", mend="remove it"),
        Removed(path=("zero_optimization", "mics_shard_size"), release="0.19.7",
                mend='remove it; "zero_hpz_partition_size" shares parameters inside a node'),
        Removed(path=("zero_optimization", "mics_hierarchical_params_gather"), release="0.19.7", mend="remove it"),
        Removed(path=("zero_optimization", "zeropp_loco_param"), release="0.19.8",
                mend="remove it: quantised gradients go without error feedback"),
    )
}  # fmt: skip


def children(path: tuple[str, ...]) -> dict[str, Key]:
    """The keys of the block at `path`, by every name that they answer to."""
    return _CHILDREN.get(path, {})


def _by_parent() -> dict[tuple[str, ...], dict[str, Key]]:
    found: dict[tuple[str, ...], dict[str, Key]] = {}
    for path, key in KEYS.items():
        block = found.setdefault(path[:-1], {})
        block[key.name] = key
        if key.alias:
            block[key.alias] = key
    return found


_CHILDREN = _by_parent()


def key_at(path: Path) -> Key | None:
    """The row of `path`, whichever of its names the file uses."""
    key: Key | None = None
    here: tuple[str, ...] = ()
    for name in path:
        key = children(here).get(name) if isinstance(name, str) else None
        if key is None:
            return None
        here = key.path
    return key


def named(name: str) -> Iterator[Key]:
    """Every key of that name, wherever it stands."""
    return (key for key in KEYS.values() if name in (key.name, key.alias))


__all__ = ["KEYS", "REMOVED", "UNSET", "Key", "Removed", "children", "key_at", "named"]
