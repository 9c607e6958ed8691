"""ZeRO: what each stage reads, offload, buckets, ZeRO++ and ZenFlow."""

from collections.abc import Iterator

from scaling.ds_config.check.outcome import AT_START, CHANGES, IGNORES, LATER, NOTE, WARNING
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.schema import KEYS
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import Undetermined, View

ZERO = "zero_optimization"


def _zero(*names: str) -> tuple[str, ...]:
    return (ZERO, *names)


def _offload_path(view: View, what: str) -> tuple[str, ...]:
    """The key that asks for the offload: the device, or the deprecated switch."""
    old = {"optimizer": "cpu_offload", "param": "cpu_offload_param"}[what]
    return _zero(old) if view.says(f"{ZERO}.{old}") else _zero(f"offload_{what}", "device")


def _param_offload(view: View) -> Iterator[Hit]:
    device = view.offload("param")
    if device != "none" and view.stage < 3:
        yield Hit(
            path=_offload_path(view, "param"),
            says=f'"{device}" at stage {view.stage}',
            mend="stage 3, or remove offload_param",
        )


def _optimizer_offload_at_0(view: View) -> Iterator[Hit]:
    device = view.offload("optimizer")
    if device != "none" and view.stage == 0:
        yield Hit(
            path=_offload_path(view, "optimizer"),
            says=f'"{device}" at stage 0',
            mend="stage 1, 2 or 3, or remove offload_optimizer",
        )


def _nvme_optimizer(view: View) -> Iterator[Hit]:
    if view.offload("optimizer") == "nvme" and view.stage in (1, 2):
        yield Hit(
            path=_zero("offload_optimizer", "device"), says=f'"nvme" at stage {view.stage}', mend='stage 3, or "cpu"'
        )


def _no_path(view: View) -> Iterator[Hit]:
    for what in ("optimizer", "param"):
        if view.stage == 3 and view.offload(what) == "nvme" and not view.zero_offload(what, "nvme_path"):
            yield Hit(
                path=_zero(f"offload_{what}", "nvme_path"),
                says='device "nvme" without nvme_path',
                mend='"nvme_path": "/local_nvme", or another folder on a local disk',
            )


def _ratio_below_3(view: View) -> Iterator[Hit]:
    ratio = view.zero_offload("optimizer", "ratio")
    if ratio is not None and ratio < 1 and view.stage < 3:
        yield Hit(
            path=_zero("offload_optimizer", "ratio"), says=f"{ratio:g} at stage {view.stage}", mend="stage 3, or 1.0"
        )


def _ratio_of_another(view: View) -> Iterator[Hit]:
    ratio = view.zero_offload("optimizer", "ratio")
    if ratio is None or ratio == 1 or view.stage != 3 or view.offload("optimizer") == "none":
        return
    if view.optimizer_is_the_files:
        fits = view.optimizer in ("adam", "adamw") and not view.optimizer_params().get("torch_adam")
    else:
        script = (view.context.optimizer or "deepspeedcpuadam").lower()
        fits = script == "deepspeedcpuadam" or view.context.trainer != "none"  # accelerate puts that one in
    if not fits:
        yield Hit(
            path=_zero("offload_optimizer", "ratio"),
            says=f"{ratio:g} with another optimizer than DeepSpeedCPUAdam",
            mend='"optimizer": {"type": "AdamW"} without torch_adam, or 1.0',
        )


def _super_offload(view: View) -> Iterator[Hit]:
    if view.zero_offload("optimizer", "super_offload") and view.stage < 3:
        yield Hit(path=_zero("offload_optimizer", "super_offload"), says=f"true at stage {view.stage}", mend="stage 3")


def _not_cuda(view: View) -> bool:
    return view.context.gpu is not None and view.context.gpu.name.startswith(("cpu", "gaudi"))


def _super_offload_off_cuda(view: View) -> Iterator[Hit]:
    if view.stage == 3 and _not_cuda(view) and view.zero_offload("optimizer", "super_offload"):
        yield Hit(path=_zero("offload_optimizer", "super_offload"), says="true without CUDA", mend="false")


def _gds_off_cuda(view: View) -> Iterator[Hit]:
    if _not_cuda(view) and view.get("aio.use_gds"):
        yield Hit(path=("aio", "use_gds"), says="true without CUDA", mend="false")


_PLUS_PLUS = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def _plus_plus(view: View) -> Iterator[Hit]:
    if view.stage >= 3:
        return
    for name in _PLUS_PLUS:
        if view.zero(name):
            yield Hit(path=_zero(name), says=f"true at stage {view.stage}", mend="stage 3, or false")
    size = view.zero("zero_hpz_partition_size")
    if size > 1:
        yield Hit(path=_zero("zero_hpz_partition_size"), says=f"{size} at stage {view.stage}", mend="stage 3, or 1")


def _quantised_without_scatter(view: View) -> Iterator[Hit]:
    if view.stage == 3 and view.zero("zero_quantized_gradients") and not view.zero("reduce_scatter"):
        path = _zero("reduce_scatter")
        yield Hit(
            path=path,
            says="false with zero_quantized_gradients",
            mend="true",
            edits=(Edit(what="value", path=path, value=True),),
        )


def _hpz_does_not_divide(view: View) -> Iterator[Hit]:
    size = view.zero("zero_hpz_partition_size")
    if view.stage == 3 and 1 < size < view.world_size and view.world_size % size:
        yield Hit(
            path=_zero("zero_hpz_partition_size"),
            says=f"{size} does not divide {view.world_size} ranks",
            mend="the number of accelerators in a node",
        )


def _scaled_with_scatter(view: View) -> Iterator[Hit]:
    if view.stage < 2 or not view.zero("reduce_scatter"):
        return
    if view.get("prescale_gradients"):
        yield Hit(path=("prescale_gradients",), says=f"true at stage {view.stage} with reduce_scatter", mend="false")
    factor = view.get("gradient_predivide_factor")
    if factor != 1:
        yield Hit(
            path=("gradient_predivide_factor",),
            says=f"{factor:g} at stage {view.stage} with reduce_scatter",
            mend="1.0",
        )


def _odd_bucket(view: View) -> Iterator[Hit]:
    bucket = view.zero("allgather_bucket_size")
    if view.stage in (1, 2) and bucket % 2:
        path = _zero("allgather_bucket_size")
        yield Hit(
            path=path,
            says=f"{bucket} is odd",
            mend=str(bucket + 1),
            edits=(Edit(what="value", path=path, value=bucket + 1),),
        )


def _no_norm(view: View) -> Iterator[Hit]:
    if view.zero("compute_grad_norm"):
        return
    path = _zero("compute_grad_norm")
    if view.stage not in (1, 2):
        yield Hit(path=path, says=f"false at stage {view.stage}", mend="true; only stages 1 and 2 can go without")
        return
    clipping = view.get("gradient_clipping")
    if clipping > 0:
        given = "" if view.says("gradient_clipping") else ", its default"
        yield Hit(
            path=path,
            says=f"false, and gradient_clipping is {clipping:g}{given}",
            mend='true, or "gradient_clipping": 0.0',
        )
    if view.offload("optimizer") != "none":
        yield Hit(path=path, says="false with optimizer offload", mend="true")
    if view.zero("zenflow") is not None:
        yield Hit(path=path, says="false with zenflow", mend="true")


def _elastic_at_3(view: View) -> Iterator[Hit]:
    if view.stage == 3 and view.zero("elastic_checkpoint"):
        path = _zero("elastic_checkpoint")
        yield Hit(
            path=path,
            says="true at stage 3",
            mend='false, and "checkpoint": {"load_universal": true} to load',
            edits=(Edit(what="value", path=path, value=False),),
        )


def _piecewise_below_3(view: View) -> Iterator[Hit]:
    if view.stage < 3 and view.zero("pipeline_loading_checkpoint"):
        path = _zero("pipeline_loading_checkpoint")
        yield Hit(
            path=path,
            says=f"true at stage {view.stage}",
            mend="false",
            edits=(Edit(what="value", path=path, value=False),),
        )


def _legacy(view: View) -> Iterator[Hit]:
    if view.stage > 0 and view.zero("legacy_stage1"):
        yield Hit(
            path=_zero("legacy_stage1"),
            says="true",
            mend="remove it",
            edits=(Edit(what="remove", path=_zero("legacy_stage1")),),
        )


def _whole_weights_at_save(view: View) -> Iterator[Hit]:
    name = "stage3_gather_16bit_weights_on_model_save"
    old = f"{ZERO}.stage3_gather_fp16_weights_on_model_save"
    if view.stage == 3 and not view.zero(name) and not view.says(old):
        yield Hit(
            path=view.at(f"{ZERO}.{name}"), says="false, or not given, at stage 3", mend="true, to save whole weights"
        )


def _keys_of_stage_3(view: View) -> Iterator[Hit]:
    block = view.root.get(ZERO)
    if view.stage < 3 and isinstance(block, dict):
        names = [name for name in block if name.startswith("stage3_") or name == "sub_group_size"]
        if names:
            yield Hit(
                path=_zero(names[0]), says=f"{', '.join(names)} at stage {view.stage}", mend="nothing, or remove them"
            )


def _pin_memory_default(view: View) -> Iterator[Hit]:
    for what in ("optimizer", "param"):
        reads = view.stage == 3 or (what == "optimizer" and view.stage > 0)
        if reads and view.offload(what) != "none" and not view.says(f"{ZERO}.offload_{what}.pin_memory"):
            default = KEYS[ZERO, f"offload_{what}", "pin_memory"].default_at(view.release)
            now = "true" if default else "false"
            yield Hit(
                path=_zero(f"offload_{what}", "pin_memory"),
                mend='"pin_memory": true, or false',
                says=f"absent: {now} in DeepSpeed {view.context.deepspeed_version}; it became true in 0.19.5",
            )


def _overlap_and_whole(view: View) -> Iterator[Hit]:
    """stage 0 reads nothing of this block but a few switches."""
    block = view.root.get(ZERO)
    if view.stage == 0 and isinstance(block, dict):
        asked = [name for name in block if name not in ("stage",) and not name.startswith(("offload", "cpu_offload"))]
        if asked and "stage" not in block:
            yield Hit(path=(ZERO,), says="settings without a stage: that is stage 0", mend='"stage": 1, 2 or 3')


def _select(view: View) -> tuple[str, int | str, int | str]:
    """(strategy, select_interval, update_interval) of zenflow. Raises Undetermined where it is not used."""
    if view.zero("zenflow") is None:
        raise Undetermined("zenflow")
    return (
        view.zero_block("zenflow", "select_strategy"),
        view.zero_block("zenflow", "select_interval"),
        view.zero_block("zenflow", "update_interval"),
    )


def _zenflow(view: View) -> Iterator[Hit]:
    strategy, select, update = _select(view)
    path = _zero("zenflow", "select_interval")
    if strategy == "auto" and isinstance(select, int):
        yield Hit(path=path, says=f'{select} with select_strategy "auto"', mend='"auto", or strategy "step" or "epoch"')
    if strategy != "auto" and isinstance(select, str):
        yield Hit(path=path, says=f'"{select}" with select_strategy "{strategy}"', mend="a whole number")
    if strategy == "step" and isinstance(select, int) and isinstance(update, int) and 0 < select < update:
        yield Hit(path=path, says=f"{select} is below update_interval {update}", mend=f"{update} or more")


def _zenflow_accumulation(view: View) -> Iterator[Hit]:
    _, _, update = _select(view)
    steps = view.raw("gradient_accumulation_steps")
    if isinstance(steps, int) and steps > 1 and (isinstance(update, str) or update != steps):
        yield Hit(path=("gradient_accumulation_steps",), says=f"{steps} with zenflow", mend="1")


def _zenflow_offload(view: View) -> Iterator[Hit]:
    _select(view)
    overlap = view.zero("overlap_comm")
    overlaps = view.stage == 3 if overlap is None else overlap
    if view.stage > 0 and view.zero_block("zenflow", "offload") and not overlaps:
        yield Hit(path=_zero("zenflow", "offload"), says="true without overlap_comm", mend='"overlap_comm": true')


def _zenflow_without_cpu(view: View) -> Iterator[Hit]:
    _select(view)
    if view.stage in (1, 2) and view.offload("optimizer") == "none":
        yield Hit(
            path=_zero("zenflow"), says="without optimizer offload", mend='"offload_optimizer": {"device": "cpu"}'
        )


def _zenflow_without_zero(view: View) -> Iterator[Hit]:
    _select(view)
    if view.stage == 0:
        yield Hit(path=_zero("zenflow"), says="at stage 0", mend="stage 1, 2 or 3 with optimizer offload")


def _sum_at_3(view: View) -> Iterator[Hit]:
    if view.get("gradient_allreduce_op") != "sum":
        return
    path = ("gradient_allreduce_op",)
    if view.stage == 3:
        yield Hit(path=path, says='"sum" at stage 3', mend='"mean"')
    if view.zero("zenflow") is not None:
        yield Hit(path=path, says='"sum" with zenflow', mend='"mean"')
    if view.get("compile.deepcompile"):
        yield Hit(path=path, says='"sum" with DeepCompile', mend='"mean"')


def _allreduce_op(view: View) -> Iterator[Hit]:
    value = view.raw("gradient_allreduce_op")
    if not view.says("gradient_allreduce_op") or view.is_auto("gradient_allreduce_op"):
        return
    if not isinstance(value, str) or value.lower() not in ("mean", "sum"):
        yield Hit(path=("gradient_allreduce_op",), says=f"{shown(value)} is neither mean nor sum", mend='"mean"')


_12, _3 = "runtime/zero/stage_1_and_2.py", "runtime/zero/stage3.py"
_CONFIG = "runtime/zero/config.py"
_ZENFLOW = "runtime/zenflow/engine.py:configure_zenflow"

RULES = (
    Rule(
        id="SC019", title='gradient_allreduce_op is neither "mean" nor "sum"', outcome=AT_START, since="0.19.6",
        does="ValueError: Invalid gradient_allreduce_op", find=_allreduce_op,
        source="runtime/config.py:get_gradient_allreduce_op",
        mend='"mean" or "sum"',
    ),
    Rule(
        id="SC043", title='gradient_allreduce_op "sum" at stage 3, with ZenFlow or with DeepCompile', outcome=AT_START,
        since="0.19.6", does="ValueError: gradient_allreduce_op='sum' is not supported", find=_sum_at_3,
        source="runtime/config.py:DeepSpeedConfig._do_error_check",
        mend='"mean"',
    ),
    Rule(
        id="SZ002", title="legacy_stage1", outcome=AT_START,
        does="Exception: The deprecated version of ZeRO Stage 1 is not supported", find=_legacy,
        source="runtime/engine.py:DeepSpeedEngine._configure_zero_optimizer",
        mend="remove it",
    ),
    Rule(
        id="SZ003", title="offload_param below stage 3", outcome=IGNORES,
        does="only stage 3 reads it: the parameters stay on the device", find=_param_offload, source=_3,
        mend="stage 3, or remove offload_param",
    ),
    Rule(
        id="SZ004", title="offload_optimizer at stage 0", outcome=IGNORES,
        does="DeepSpeed builds its CPU optimizer and leaves everything on the device", find=_optimizer_offload_at_0,
        source="runtime/engine.py:DeepSpeedEngine._configure_optimizer",
        mend="stage 1, 2 or 3, or remove offload_optimizer",
    ),
    Rule(
        id="SZ005", title="offload_optimizer to nvme at stage 1 or 2", outcome=CHANGES,
        does="DeepSpeed keeps the optimizer states in CPU memory, and treats checkpoints as if they were on disk",
        find=_nvme_optimizer, source=_12,
        mend='stage 3, or "cpu"',
    ),
    Rule(
        id="SZ006", title="nvme offload without nvme_path", outcome=AT_START,
        does="TypeError: expected str, bytes or os.PathLike object, not NoneType", find=_no_path, source=_3,
        mend='"nvme_path": a folder on a local disk',
    ),
    Rule(
        id="SZ007", title="offload ratio below 1 below stage 3", outcome=AT_START,
        does="ValidationError: Partial offloading only supported for ZeRO Stage 3", find=_ratio_below_3, source=_CONFIG,
        mend="stage 3, or 1.0",
    ),
    Rule(
        id="SZ008", title="offload ratio below 1 with another optimizer than DeepSpeedCPUAdam", outcome=AT_START,
        does="AssertionError: Hybrid Optimizer Only Supports DeepSpeedCPUAdam", find=_ratio_of_another, source=_3,
        mend='"optimizer": {"type": "AdamW"} without torch_adam, or 1.0',
    ),
    Rule(
        id="SZ009", title="super_offload below stage 3", outcome=IGNORES, since="0.18.0",
        does="only stage 3 reads it", find=_super_offload,
        source="runtime/engine.py:DeepSpeedEngine._configure_zero_optimizer",
        mend="stage 3",
    ),
    Rule(
        id="SZ013", title="ZeRO++ below stage 3", outcome=IGNORES,
        does="only stage 3 reads it", find=_plus_plus, source=_3,
        mend="stage 3, or without it",
    ),
    Rule(
        id="SZ014", title="zero_quantized_gradients without reduce_scatter", outcome=AT_START,
        does="AssertionError: when enable all_to_all_reduce, reduce_scatter should also be enabled",
        find=_quantised_without_scatter, source=_3,
        mend='"reduce_scatter": true',
    ),
    Rule(
        id="SZ016", title="prescaled or predivided gradients with reduce_scatter at stage 2 or 3", outcome=AT_START,
        does="AssertionError: is not yet supported with reduce scatter enabled", find=_scaled_with_scatter,
        source=f"{_12}, {_3}",
        mend="false, and 1.0",
    ),
    Rule(
        id="SZ017", title="allgather_bucket_size is odd, at stage 1 or 2", outcome=AT_START,
        does="AssertionError: allgather_bucket_size must be a multiple of nccl_start_alignment_factor",
        find=_odd_bucket, source=_12,
        mend="an even number",
    ),
    Rule(
        id="SZ019", title="compute_grad_norm off where the norm is needed", outcome=AT_START, since="0.19.7",
        does="ValueError: compute_grad_norm=false ...", find=_no_norm, source=f"{_CONFIG}, {_12}",
        mend='true; or stage 1 or 2 with "gradient_clipping": 0.0',
    ),
    Rule(
        id="SZ020", title="elastic_checkpoint at stage 3", outcome=IGNORES, severity=WARNING,
        does="DeepSpeed logs a warning, and writes checkpoints for this number of ranks only", find=_elastic_at_3,
        source=f"{_CONFIG}:DeepSpeedZeroConfig.elastic_checkpoint_deprecated",
        mend='false, and "checkpoint": {"load_universal": true} to load',
    ),
    Rule(
        id="SZ021", title="pipeline_loading_checkpoint below stage 3", outcome=LATER,
        does="AssertionError when a checkpoint is loaded", find=_piecewise_below_3,
        source="runtime/engine.py:DeepSpeedEngine._load_zero_checkpoint",
        mend="false",
    ),
    Rule(
        id="SZ023", title="stage 3, and weights are not gathered to be saved", outcome=LATER, severity=NOTE,
        does="save_16bit_model() writes no file and returns False; save_checkpoint() writes shards",
        find=_whole_weights_at_save, source="runtime/engine.py:DeepSpeedEngine.save_16bit_model",
        mend='"stage3_gather_16bit_weights_on_model_save": true, to save whole weights',
    ),
    Rule(
        id="SZ025", title="aio.use_gds without CUDA", outcome=AT_START, since="0.15.0",
        does="AssertionError: GDS currently only supported for CUDA accelerator", find=_gds_off_cuda,
        source="runtime/swap_tensor/aio_config.py",
        mend="false",
    ),
    Rule(
        id="SZ026", title="zenflow intervals that do not go together", outcome=AT_START, since="0.17.5",
        does="Warning or ValueError, raised as an error", find=_zenflow, source=_ZENFLOW,
        mend='"auto" for all of them, or numbers with strategy "step" or "epoch"',
    ),
    Rule(
        id="SZ027", title="zenflow with gradient accumulation", outcome=CHANGES, since="0.17.5",
        does="DeepSpeed puts update_interval in the place of gradient_accumulation_steps", find=_zenflow_accumulation,
        source=_ZENFLOW,
        mend='"gradient_accumulation_steps": 1',
    ),
    Rule(
        id="SZ028", title="keys of stage 3 below stage 3", outcome=IGNORES, severity=NOTE,
        does="only stage 3 reads them", find=_keys_of_stage_3, source=_3,
        mend="nothing, or remove them",
    ),
    Rule(
        id="SZ029", title="offload without pin_memory", outcome=CHANGES, severity=NOTE,
        does="its default became true in 0.19.5", find=_pin_memory_default, source="runtime/zero/offload_config.py",
        mend='"pin_memory": true, or false',
    ),
    Rule(
        id="SZ030", title="zero_optimization with settings and without a stage", outcome=IGNORES,
        does="the default is stage 0: nothing is sharded", find=_overlap_and_whole, source=_CONFIG,
        mend='"stage": 1, 2 or 3',
    ),
    Rule(
        id="SZ031", title="super_offload without CUDA", outcome=AT_START, since="0.18.0",
        does="AssertionError: SuperOffload only supports NVIDIA CUDA GPUs", find=_super_offload_off_cuda,
        source="runtime/superoffload/superoffload_stage3.py",
        mend="false",
    ),
    Rule(
        id="SZ032", title="zenflow's offload without overlap_comm", outcome=AT_START, since="0.17.5",
        does="AssertionError: offload selective optimizer should be used with overlap_comm", find=_zenflow_offload,
        source="runtime/zenflow/zenflow_stage_1_and_2.py",
        mend='"overlap_comm": true',
    ),
    Rule(
        id="SZ033", title="zenflow at stage 0", outcome=IGNORES, since="0.17.5",
        does="only stages 1 to 3 shard, and only they have a ZenFlow optimizer", find=_zenflow_without_zero,
        source="runtime/engine.py:DeepSpeedEngine._configure_zero_optimizer",
        mend="stage 1, 2 or 3 with optimizer offload",
    ),
    Rule(
        id="SZ034", title="zero_hpz_partition_size does not divide the ranks", outcome=AT_START,
        does="AssertionError when the groups are made", find=_hpz_does_not_divide, source="utils/groups.py",
        mend="the accelerators of a node",
    ),
    Rule(
        id="SZ035", title="zenflow without optimizer offload, at stage 1 or 2", outcome=AT_START, since="0.17.5",
        does="ValueError: Zenflow must be used with cpu offload", find=_zenflow_without_cpu,
        source="runtime/zenflow/zenflow_stage_1_and_2.py", mend='"offload_optimizer": {"device": "cpu"}',
    ),
)  # fmt: skip
