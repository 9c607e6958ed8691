"""fp16, bf16, and the widths beside the model's own."""

from collections.abc import Iterator
from typing import Any

from scaling.ds_config.check.outcome import AT_START, AT_STEP, CHANGES, IGNORES, NOTE, WARNING
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import WIDTHS, View


def _both(view: View) -> Iterator[Hit]:
    if view.precision == "bf16" and view.get("fp16.enabled"):
        yield Hit(path=("fp16", "enabled"), says="fp16 and bf16 are both enabled", mend="false in one of the two")


def _old_name_too(view: View) -> Iterator[Hit]:
    if view.root.get("bf16") is not None and view.says("bfloat16"):
        new, old = view.root["bf16"], view.root["bfloat16"]
        yield Hit(
            path=("bfloat16",),
            says='"bfloat16" beside "bf16", of which it is the old name',
            mend='"bf16" alone',
            edits=(Edit(what="remove", path=("bfloat16",)),) if new == old else (),
            severity=WARNING if new == old else None,
        )


def _hardware(view: View) -> Iterator[Hit]:
    gpu = view.context.gpu
    if gpu and not gpu.supports_bf16 and view.precision == "bf16":
        yield Hit(
            path=("bf16", "enabled") if view.says("bf16") else ("bfloat16", "enabled"),
            says=f"{gpu.name} has no bf16",
            mend='"fp16": {"enabled": true}',
        )


def _param_dtype(view: View) -> Iterator[Hit]:
    stated = view.get("data_types.param_dtype")
    if stated is not None and WIDTHS[stated] != view.precision:
        yield Hit(
            path=("data_types", "param_dtype"),
            says=f"{shown(stated)} where the model is {view.precision}",
            mend=f'remove it, or "{view.precision}"',
        )


def _no_width(view: View) -> Iterator[Hit]:
    for name in ("data_types.grad_accum_dtype", "data_types.param_dtype", "data_types.buffer_dtype",
                 "torch_autocast.dtype"):  # fmt: skip
        value = view.raw(name)
        if not view.says(name) or (value is None and name != "torch_autocast.dtype") or view.is_auto(name):
            continue
        if not isinstance(value, str) or value not in WIDTHS:
            meant = WIDTHS.get(value.strip().lower()) if isinstance(value, str) else None
            path = tuple(name.split("."))
            yield Hit(
                path=path,
                says=f"{shown(value)} is no width",
                mend=f'"{meant}"' if meant else '"fp32", "bf16" or "fp16"',
                edits=(Edit(what="value", path=path, value=meant),) if meant else (),
            )
    if WIDTHS.get(str(view.raw("data_types.grad_accum_dtype"))) == "int8":
        path = ("data_types", "grad_accum_dtype")
        does = "RuntimeError at stage 1; stage 2 takes it for its name and no more"
        outcome = AT_STEP if view.stage == 1 else CHANGES
        yield Hit(path=path, says="gradients in int8", mend='"fp32"', outcome=outcome, does=does)


def _stage_0_sums_in_another_width(view: View) -> Iterator[Hit]:
    if view.stage == 0 and view.grad_accum_dtype != view.precision:
        yield Hit(
            path=("data_types", "grad_accum_dtype"),
            says=f"{view.grad_accum_dtype} at stage 0, where the model is {view.precision}",
            mend=f'"{view.precision}", or zero_optimization.stage 1',
        )


def _stage_0_in_16_bit(view: View) -> Iterator[Hit]:
    """Not with a pipeline and not without an optimizer; the file does not tell, and a plain engine is the rule."""
    if view.stage == 0 and view.precision != "fp32":
        yield Hit(path=view.at("zero_optimization.stage"), says=f"{view.precision} at stage 0", mend='"stage": 1')


def _stage_0_in_fp16(view: View) -> Iterator[Hit]:
    if view.stage == 0 and view.precision == "fp16":
        yield Hit(path=view.at("zero_optimization.stage"), says="fp16 at stage 0", mend='"stage": 1')


def _loss_scale(view: View) -> Iterator[Hit]:
    if view.get("fp16.enabled") and view.get("fp16.loss_scale") == 0:
        for name in ("loss_scale_window", "min_loss_scale"):
            value = view.get(f"fp16.{name}")
            if value <= 0:
                yield Hit(path=("fp16", name), says=f"{value} with dynamic loss scaling", mend="at least 1")


def _master_weights(view: View) -> dict[str, Any]:
    """Which of the low-precision master-weight switches are on."""
    bf16 = "bf16" if view.root.get("bf16") is not None else "bfloat16"
    names = (
        "fp16.fp16_master_weights_and_grads",
        f"{bf16}.bf16_master_weights_and_grads",
        f"{bf16}.bf16_optimizer_states",
    )
    return {name: True for name in names if view.get(name)}


def _master_without_zero(view: View) -> Iterator[Hit]:
    for name in _master_weights(view):
        if view.stage == 0:
            yield Hit(path=tuple(name.split(".")), says="at stage 0", mend="stage 1, 2 or 3, with optimizer offload")


def _cpu_adam(view: View) -> bool:
    """Is the optimizer DeepSpeedCPUAdam, as far as the file says?"""
    if view.optimizer_is_the_files:
        return view.optimizer in ("adam", "adamw") and not view.optimizer_params().get("torch_adam")
    return (view.context.optimizer or "deepspeedcpuadam").lower() == "deepspeedcpuadam"


def _master_without_offload(view: View) -> Iterator[Hit]:
    """bf16 master weights may stay on the device where their optimizer states are bf16 too."""
    on = _master_weights(view)
    offloaded = view.offload("optimizer") != "none"
    for name in on:
        block, _, key = name.partition(".")
        on_device = key == "bf16_optimizer_states" or f"{block}.bf16_optimizer_states" in on
        if view.stage == 0 or (on_device and not offloaded) or (offloaded and _cpu_adam(view)):
            continue
        beside = ', or "bf16_optimizer_states": true beside it' if key.startswith("bf16") and not offloaded else ""
        yield Hit(
            path=(block, key),
            says="with another optimizer than DeepSpeedCPUAdam" if offloaded else "without optimizer offload",
            mend=f'"offload_optimizer": {{"device": "cpu"}} with Adam or AdamW, not torch_adam{beside}',
        )


def _bf16_states_without_master(view: View) -> Iterator[Hit]:
    on = _master_weights(view)
    for name in on:
        block, _, key = name.partition(".")
        if key == "bf16_optimizer_states" and f"{block}.bf16_master_weights_and_grads" not in on and view.stage > 0:
            yield Hit(
                path=(block, key),
                says="without bf16_master_weights_and_grads",
                mend='"bf16_master_weights_and_grads": true beside it',
            )


def _settings_of_what_is_off(view: View) -> Iterator[Hit]:
    """Loss scaling is fp16's; in bf16's block it would be refused, in fp16's it is not looked at."""
    if isinstance(view.root.get("fp16"), dict) and "enabled" not in view.root["fp16"] and view.root["fp16"]:
        yield Hit(path=("fp16",), says='settings without "enabled"', mend='"enabled": true, or remove the block')
    if isinstance(view.root.get("bf16"), dict) and "enabled" not in view.root["bf16"] and view.root["bf16"]:
        yield Hit(path=("bf16",), says='settings without "enabled"', mend='"enabled": true, or remove the block')


def _communication_type(view: View) -> Iterator[Hit]:
    for name in ("communication_data_type", "seq_parallel_communication_data_type"):
        value = view.raw(name)
        known = isinstance(value, str) and value.lower() in ("fp16", "bf16", "fp32")
        if view.says(name) and value is not None and not view.is_auto(name) and not known:
            meant = WIDTHS.get(value) if isinstance(value, str) else None
            fits = meant in ("fp16", "bf16", "fp32")
            yield Hit(
                path=(name,),
                says=f"{shown(value)} is none of fp16, bf16, fp32",
                mend=f'"{meant}"' if fits else '"fp16", "bf16" or "fp32"',
                edits=(Edit(what="value", path=(name,), value=meant),) if fits else (),
            )


def _too_large_a_scale(view: View) -> Iterator[Hit]:
    power = view.get("fp16.initial_scale_power")
    if view.get("fp16.enabled") and view.get("fp16.loss_scale") == 0 and view.stage > 0 and power > 62:
        yield Hit(path=("fp16", "initial_scale_power"), says=f"a first loss scale of 2 to the {power}", mend="16")


def _cast_inputs_only(view: View) -> Iterator[Hit]:
    if view.get("fp16.auto_cast") and not view.get("fp16.enabled"):
        yield Hit(path=("fp16", "auto_cast"), says=f"true where the model is {view.precision}", mend='"enabled": true')


def _narrow_reduction(view: View) -> Iterator[Hit]:
    if view.raw("communication_data_type") == "fp16" and view.precision != "fp16":
        yield Hit(
            path=("communication_data_type",),
            says=f'"fp16" where the model is {view.precision}',
            mend=f'"{view.precision}", or remove it',
        )


def _autocast_without_dtype(view: View) -> Iterator[Hit]:
    if view.get("torch_autocast.enabled") and not view.says("torch_autocast.dtype"):
        yield Hit(path=("torch_autocast",), says="enabled without dtype", mend='"dtype": "bfloat16"')


def _keep_in_fp32(view: View) -> Iterator[Hit]:
    value = view.raw("data_types.keep_in_fp32_modules")
    are_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if view.says("data_types.keep_in_fp32_modules") and value != "auto" and not are_names:
        meant = [value] if isinstance(value, str) else None
        path = ("data_types", "keep_in_fp32_modules")
        yield Hit(
            path=path,
            says=f"{shown(value)} is no list of names",
            mend=shown(meant) if meant else "[]",
            edits=(Edit(what="value", path=path, value=meant),) if meant else (),
        )


def _overflow_default(view: View) -> Iterator[Hit]:
    if view.precision == "bf16" and not view.says("bf16.check_grad_overflow") and view.says("bf16"):
        now = view.get("bf16.check_grad_overflow")
        words = "skips a step" if now else "takes a step"
        yield Hit(
            path=("bf16", "check_grad_overflow"),
            mend='"check_grad_overflow": true',
            says=f"absent: DeepSpeed {view.context.deepspeed_version} {words} whose gradients are not finite; "
            "the default became true in 0.19.3",
        )


_PRECISION = "runtime/precision_config.py"

RULES = (
    Rule(
        id="SC018", title="communication_data_type is none of fp16, bf16, fp32", outcome=AT_START,
        does="ValueError: Invalid communication_data_type", find=_communication_type,
        source="runtime/config.py:get_communication_data_type",
        mend='"fp16", "bf16" or "fp32"',
    ),
    Rule(
        id="SC021", title="keep_in_fp32_modules is neither auto nor a list of names", outcome=AT_START,
        does="DeepSpeedConfigError", since="0.19.8", find=_keep_in_fp32,
        source="runtime/config.py:DeepSpeedConfig._initialize_params",
        mend='"auto", or a list of names',
    ),
    Rule(
        id="SC022", title="a width that DeepSpeed does not know", outcome=AT_START,
        does="ValueError or KeyError when the engine is built; the configuration alone loads", find=_no_width,
        source="runtime/engine.py:DeepSpeedEngine.get_data_types",
        mend='"fp32", "bf16" or "fp16"',
    ),
    Rule(
        id="SO001", title="fp16 and bf16 are both enabled", outcome=AT_START,
        does="AssertionError: bfloat16 and fp16 modes cannot be simultaneously enabled", find=_both,
        source="runtime/config.py:DeepSpeedConfig._initialize_params",
        mend="false in one of the two",
    ),
    Rule(
        id="SO002", title="bf16 on an accelerator without it", outcome=AT_START,
        does="ValueError: Type bf16 is not supported on your device", find=_hardware,
        source="runtime/engine.py:DeepSpeedEngine._do_sanity_check",
        mend='"fp16": {"enabled": true}',
    ),
    Rule(
        id="SO003", title="data_types.param_dtype is another width than the model's", outcome=AT_START,
        does="AssertionError: conflicts with the enabled precision mode", since="0.19.2", find=_param_dtype,
        source="runtime/engine.py:DeepSpeedEngine._assert_valid_mixed_precision_config",
        mend="remove it",
    ),
    Rule(
        id="SO004", title="stage 0, and micro steps summed in another width than the model's", outcome=AT_START,
        does="NotImplementedError: unsupported mix of model_dtype and grad_accum_dtype",
        find=_stage_0_sums_in_another_width, source="runtime/engine.py:DeepSpeedEngine._do_optimizer_sanity_check",
        mend="the model's width, or stage 1",
    ),
    Rule(
        id="SO005", title="fp16 or bf16 at stage 0", outcome=CHANGES, severity=WARNING,
        does="DeepSpeed takes an optimizer step on zero gradients when it starts: Adam counts it, so that the first "
             "update is 0.744 of what it should be, and weight decay acts once more; stages 1 to 3 do not",
        find=_stage_0_in_16_bit, source="runtime/fp16/fused_optimizer.py:FP16_Optimizer.initialize_optimizer_states",
        mend='"stage": 1',
    ),
    Rule(
        id="SO006", title="a window or least scale of dynamic loss scaling that is not above 0", outcome=AT_START,
        does="ValidationError", since="0.19.0", find=_loss_scale, source=_PRECISION,
        mend="at least 1",
    ),
    Rule(
        id="SO007", title="16-bit master weights without ZeRO", outcome=AT_START,
        does="AssertionError: only supported with ZeRO Stage 1, 2, or 3", find=_master_without_zero,
        source="runtime/config.py:DeepSpeedConfig._do_error_check",
        mend="stage 1, 2 or 3",
    ),
    Rule(
        id="SO008", title="16-bit master weights without an offloaded DeepSpeedCPUAdam", outcome=AT_START,
        does="AssertionError: Master weights feature requires Offload with DeepSpeedCPUAdam",
        find=_master_without_offload, source="runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py",
        mend='"offload_optimizer": {"device": "cpu"} with Adam or AdamW; of bf16, or bf16_optimizer_states beside it',
    ),
    Rule(
        id="SO009", title="bf16_optimizer_states without bf16_master_weights_and_grads", outcome=AT_START,
        does="AssertionError: bf16_optimizer_states requires bf16_master_weights_and_grads to be enabled",
        since="0.18.3", find=_bf16_states_without_master,
        source="runtime/config.py:DeepSpeedConfig._do_error_check",
        mend='"bf16_master_weights_and_grads": true beside it',
    ),
    Rule(
        id="SO026", title="bf16 and its old name bfloat16 side by side", outcome=IGNORES,
        does="DeepSpeed reads bfloat16 only where bf16 is absent", find=_old_name_too,
        source=f"{_PRECISION}:get_bfloat16_config",
        mend='"bf16" alone',
    ),
    Rule(
        id="SO027", title='settings of fp16 or bf16 without "enabled"', outcome=IGNORES,
        does="enabled is false by default: the run is in the other width, or in fp32",
        find=_settings_of_what_is_off, source=_PRECISION,
        mend='"enabled": true, or remove the block',
    ),
    Rule(
        id="SO028", title="bf16.check_grad_overflow is not given", outcome=CHANGES, severity=NOTE,
        does="its default became true in 0.19.3", since="0.17.1", find=_overflow_default, source=_PRECISION,
        mend='"check_grad_overflow": true',
    ),
    Rule(
        id="SO040", title="gradients reduced in fp16 where the model is bf16 or fp32", outcome=CHANGES,
        severity=WARNING,
        does="what is above 65504 becomes infinite in the reduction, and no loss scale keeps it below",
        find=_narrow_reduction, source="runtime/zero/stage_1_and_2.py", mend="the model's width, or remove it",
    ),
    Rule(
        id="SO041", title="torch_autocast without dtype", outcome=CHANGES, severity=WARNING, since="0.17.2",
        does="PyTorch takes its own default for the device: fp16 on CUDA, and without a loss scale",
        find=_autocast_without_dtype, source="runtime/torch_autocast.py", mend='"dtype": "bfloat16"',
    ),
    Rule(
        id="SO042", title="fp16.auto_cast without fp16", outcome=AT_STEP,
        does="RuntimeError: the inputs are cast to fp16, and the weights are not", find=_cast_inputs_only,
        source="runtime/engine.py:DeepSpeedEngine.forward", mend='"enabled": true, or "auto_cast": false',
    ),
    Rule(
        id="SO043", title="a first loss scale beyond 64 bits, with ZeRO", outcome=AT_STEP,
        does="OverflowError: int too big to convert", find=_too_large_a_scale,
        source="runtime/base_optimizer.py:backward", mend="16",
    ),
    Rule(
        id="SO048", title="fp16 at stage 0", outcome=CHANGES, since="0.18.3",
        does="gradients are divided by a loss scale that engine.backward never multiplied the loss by: small ones are "
             "lost, none is ever clipped, and SGD stands still; stages 1 to 3 are right",
        find=_stage_0_in_fp16, source="runtime/engine.py:DeepSpeedEngine.backward",
        mend='"stage": 1',
    ),
)  # fmt: skip
