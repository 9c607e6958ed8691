"""Whose optimizer it is, whether ZeRO may shard it, and what its constructor takes."""

import math
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from scaling.ds_config.check.outcome import AT_START, AT_STEP, CHANGES, IGNORES, NOTE, WARNING
from scaling.ds_config.check.reader import Path
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.version import version
from scaling.ds_config.check.view import ONE_BIT, OWN_OPTIMIZERS, View
from scaling.optimizers import OPTIMIZERS, OTHERS_OF_WHOLE_TENSORS

# The classes of torch.optim (2.13). DeepSpeed takes any attribute of that module, so that "sgd" names a file of it.
TORCH_OPTIMIZERS = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop",
    "Rprop", "SGD", "SparseAdam",
)  # fmt: skip

# deepspeed 0.19.8, runtime/zero/utils.py:ZERO_SUPPORTED_OPTIMIZERS, by the names that a file or --optimizer gives.
SHARDABLE = {
    *(name for name, row in OPTIMIZERS.items() if row.known_to_zero), "adam", "adagrad", "fusedadam",
    "deepspeedcpuadam", "deepspeedcpuadagrad", "deepspeedcpulion", "fusedlion", "muonwithauxadam", "zenflowcpuadam",
}  # fmt: skip

# What of whole tensors an optimizer needs, by the names that a file or --optimizer gives. ZeRO gives each rank one flat
# vector, of which only DeepSpeed's own Muon knows the tensors.
WHOLE_TENSORS = {name: row.whole for name, row in OPTIMIZERS.items() if row.whole} | dict(OTHERS_OF_WHOLE_TENSORS)

# Those of torch.optim and of the table that work element by element.
ELEMENTWISE = {name.lower() for name in TORCH_OPTIMIZERS} - WHOLE_TENSORS.keys() | {
    name for name, row in OPTIMIZERS.items() if row.implementation and not row.whole
}

CPU_OPTIMIZERS = {"deepspeedcpuadam", "deepspeedcpulion", "zenflowcpuadam"}

_ADAM = ("lr", "betas", "eps", "weight_decay", "amsgrad")
_SWITCHES = ("torch_adam", "adam_w_mode", "fp32_optimizer_states")  # taken out before the constructor sees them
_TORCH_ADAM = (*_ADAM, "maximize", "foreach", "capturable", "differentiable", "fused")
_TORCH_SGD = (
    "lr",
    "momentum",
    "dampening",
    "weight_decay",
    "nesterov",
    "maximize",
    "foreach",
    "differentiable",
    "fused",
)

# What each constructor takes, beside the parameters (deepspeed 0.19.8, ops/; torch 2.13).
PARAMS: dict[str, tuple[str, ...]] = {
    "FusedAdam": (*_ADAM, *_SWITCHES, "bias_correction", "set_grad_none"),
    "DeepSpeedCPUAdam": (*_ADAM, *_SWITCHES, "bias_correction"),
    "torch.optim.AdamW": (*_TORCH_ADAM, *_SWITCHES),
    "torch.optim.Adam": (*_TORCH_ADAM, *_SWITCHES, "decoupled_weight_decay"),
    "torch.optim.Adagrad": ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps", "foreach", "maximize",
                            "differentiable", "fused"),
    "DeepSpeedCPUAdagrad": ("lr", "eps", "weight_decay", "amsgrad", "fp32_optimizer_states"),
    "FusedLamb": (*_ADAM, "bias_correction", "eps_inside_sqrt", "max_coeff", "min_coeff"),
    "FusedLion": ("lr", "betas", "weight_decay", "set_grad_none"),
    "DeepSpeedCPULion": ("lr", "betas", "weight_decay", "fp32_optimizer_states"),
    "torch.optim.SGD": _TORCH_SGD,
    "torch.optim.Adafactor": ("lr", "beta2_decay", "eps", "d", "weight_decay", "foreach", "maximize"),
}  # fmt: skip

_MUON_READS = (
    "lr",
    "momentum",
    "weight_decay",
    "ns_method",
    "betas",
    "eps",
    "muon_lr",
    "adam_lr",
    "per_head_muon",
    *_SWITCHES,
    "foreach",
)


def implementation(view: View) -> str | None:
    """The class that DeepSpeed builds from the file's optimizer, where that is one of the table's."""
    name, offloaded = view.optimizer, view.offload("optimizer") != "none"
    params = view.optimizer_params()
    match name:
        case "adam" | "adamw" if params.get("torch_adam"):
            decoupled = name == "adamw" or params.get("adam_w_mode", True)
            return "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
        case "adam" | "adamw":
            return "DeepSpeedCPUAdam" if offloaded else "FusedAdam"
        case "adagrad":
            return "DeepSpeedCPUAdagrad" if offloaded else "torch.optim.Adagrad"
        case "lion":
            return "DeepSpeedCPULion" if offloaded else "FusedLion"
        case "lamb":
            return "FusedLamb"
        case "SGD" | "Adafactor":
            return f"torch.optim.{name}"
    return None


def _known(view: View) -> set[str]:
    gone = view.release >= version("0.19.7")
    return {*OWN_OPTIMIZERS, *TORCH_OPTIMIZERS, *(() if gone else ONE_BIT)}


def _unknown_type(view: View) -> Iterator[Hit]:
    name = view.raw("optimizer.type")
    if not view.says("optimizer.type") or name is None:
        return
    path = ("optimizer", "type")
    if not isinstance(name, str):
        yield Hit(path=path, says=f"{shown(name)} is not a name", mend='"AdamW", or another')
        return
    if name in TORCH_OPTIMIZERS or name.lower() in _known(view) or view.context.optimizer:
        return
    same = [known for known in TORCH_OPTIMIZERS if known.lower() == name.lower()]
    close = same or get_close_matches(name, [*TORCH_OPTIMIZERS, "Lamb", "Lion"], n=2, cutoff=0.6)
    says = f"{shown(name)} is no optimizer of DeepSpeed's or torch.optim's"
    mend = " or ".join(f'"{known}"' for known in close) or '"AdamW", or pass an optimizer to initialize()'
    if name.lower() in ONE_BIT:
        says, mend = f"{shown(name)} was removed in DeepSpeed 0.19.7", '"Adam", or "Lamb" without ZeRO'
    edits = (Edit(what="value", path=path, value=same[0]),) if same else ()
    yield Hit(path=path, says=says, mend=mend, edits=edits)


def _clipping_in_params(view: View) -> Iterator[Hit]:
    params = view.raw("optimizer.params")
    if view.context.optimizer or not isinstance(params, dict) or "max_grad_norm" not in params:
        return
    path, value = ("optimizer", "params", "max_grad_norm"), params["max_grad_norm"]
    edits: tuple[Edit, ...] = ()
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        if not view.says("gradient_clipping"):
            edits = (Edit(what="remove", path=path), Edit(what="insert", path=("gradient_clipping",), value=value))
        elif view.raw("gradient_clipping") == value:
            edits = (Edit(what="remove", path=path),)
    yield Hit(
        path=path,
        says="max_grad_norm among the optimizer's arguments",
        edits=edits,
        mend=f'"gradient_clipping": {shown(value)} at the top level',
    )


def _unknown_argument(view: View) -> Iterator[Hit]:
    made = implementation(view) if view.optimizer_is_the_files else None
    if made is None:
        return
    for name in view.optimizer_params():
        if name not in PARAMS[made] and name != "max_grad_norm":
            close = get_close_matches(name, PARAMS[made], n=2, cutoff=0.6)
            mend = "did you mean " + " or ".join(f'"{key}"' for key in close) + "?" if close else "remove it"
            yield Hit(path=("optimizer", "params", name), says=f"{made} takes no argument {shown(name)}", mend=mend)


def _muon_argument(view: View) -> Iterator[Hit]:
    if view.optimizer_is_the_files and view.optimizer == "muon":
        for name in view.optimizer_params():
            if name not in _MUON_READS and name != "max_grad_norm":
                yield Hit(
                    path=("optimizer", "params", name),
                    says=f"Muon looks at no argument {shown(name)}",
                    mend="remove it; known: " + ", ".join(_MUON_READS[:9]),
                )


def _without_type(view: View) -> Iterator[Hit]:
    block = view.root.get("optimizer")
    if isinstance(block, dict) and block.get("type") is None:
        yield Hit(path=("optimizer",), says="an optimizer without a type", mend='"type": "AdamW", or another')


def _without_rate(view: View) -> Iterator[Hit]:
    """torch's and DeepSpeed's constructors have a default; a scheduler that sets the rate makes up for it."""
    if view.optimizer_is_the_files and not view.optimizer_params().keys() & {"lr", "muon_lr", "adam_lr"}:
        yield Hit(path=("optimizer",), says=f"{view.optimizer} without lr", mend='"params": {"lr": ...}')


def _amsgrad(view: View) -> Iterator[Hit]:
    made = implementation(view) if view.optimizer_is_the_files else None
    if made in ("FusedAdam", "FusedLamb") and view.optimizer_params().get("amsgrad"):
        yield Hit(path=("optimizer", "params", "amsgrad"), says=f"{made} has no AMSGrad",
                  mend='false, or "torch_adam": true' if made == "FusedAdam" else "false")  # fmt: skip


_SWITCHED = (
    "torch_adam",
    "adam_w_mode",
    "bias_correction",
    "amsgrad",
    "fused",
    "maximize",
    "nesterov",
    "set_grad_none",
)


def _no_switch(view: View) -> Iterator[Hit]:
    if view.optimizer_is_the_files:
        for name, value in view.optimizer_params().items():
            if name in _SWITCHED and isinstance(value, str) and value != "auto":
                path = ("optimizer", "params", name)
                meant = {"true": True, "false": False}.get(value.strip().lower())
                edits = () if meant is None else (Edit(what="value", path=path, value=meant),)
                mend = "true or false" if meant is None else shown(meant)
                yield Hit(path=path, says=f"{shown(value)} is not true or false", mend=mend, edits=edits)


_NUMBERS = ("lr", "eps", "weight_decay", "momentum", "muon_lr", "adam_lr", "min_coeff", "max_coeff")


def _no_number(view: View) -> Iterator[Hit]:
    if not view.optimizer_is_the_files:
        return
    for name, value in view.optimizer_params().items():
        path = ("optimizer", "params", name)
        if value == "auto" or (value is None and name not in _NUMBERS):
            continue
        if name == "eps" and view.optimizer == "Adafactor":  # has two
            continue
        if name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            number = _as_number(value)
            edits = () if number is None else (Edit(what="value", path=path, value=number),)
            yield Hit(
                path=path,
                says=f"{shown(value)} is not a number",
                edits=edits,
                mend=shown(number) if number is not None else "a number",
            )
        elif name == "betas" and not _are_betas(value):
            yield Hit(path=path, says=f"{shown(value)} are not two numbers from 0 to 1", mend="[0.9, 0.999]")


def _as_number(value: Any) -> float | None:
    """The number that a string spells; neither NaN nor infinite."""
    try:
        number = float(value) if isinstance(value, str) and len(value) < 40 else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _are_betas(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(beta, int | float) and not isinstance(beta, bool) and 0 <= beta < 1 for beta in value)
    )


def _negative(view: View) -> Iterator[Hit]:
    if view.optimizer_is_the_files:
        for name in ("lr", "weight_decay", "eps"):
            value = view.optimizer_params().get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
                yield Hit(path=("optimizer", "params", name), says=f"{shown(value)} is below 0", mend="0 or more")


def _adam_is_adamw(view: View) -> Iterator[Hit]:
    params = view.optimizer_params()
    is_adam = view.optimizer_is_the_files and view.optimizer == "adam"
    if is_adam and "adam_w_mode" not in params and params.get("weight_decay"):
        yield Hit(
            path=("optimizer", "type"),
            says='"Adam" with weight decay and without adam_w_mode',
            mend='"AdamW" for the same run; "adam_w_mode": false for Adam with L2',
        )


def _adamw_stays(view: View) -> Iterator[Hit]:
    if (
        view.optimizer_is_the_files
        and view.optimizer == "adamw"
        and view.optimizer_params().get("adam_w_mode") is False
    ):
        yield Hit(
            path=("optimizer", "params", "adam_w_mode"),
            says='"adam_w_mode": false for "AdamW"',
            mend='"type": "Adam" with it, or remove it',
        )


def _lamb_static_scale(view: View) -> Iterator[Hit]:
    if view.optimizer_is_the_files and view.optimizer == "lamb" and view.get("fp16.loss_scale"):
        yield Hit(path=("fp16", "loss_scale"), says="LAMB with a static loss scale", mend="0, which is dynamic")


def _is_torchs_muon(view: View) -> bool:
    """A file's "Muon" is DeepSpeed's; a script's of that name is torch.optim's."""
    return (view.context.optimizer or "").lower() == "muon"


def _shardable(view: View) -> bool:
    known = view.optimizer is None or view.optimizer.lower() in (*SHARDABLE, *ONE_BIT, "none")
    return known and not _is_torchs_muon(view)


def _whole(view: View) -> str:
    """What the optimizer needs of whole tensors and does not get at this stage; an empty string where it does."""
    name = (view.optimizer or "").lower()
    return WHOLE_TENSORS.get(name, "") if view.stage > 0 and not _shardable(view) else ""


def _instead(view: View) -> str:
    """Where an optimizer of whole tensors is itself."""
    exact = {name: row.implementation for name, row in OPTIMIZERS.items() if row.whole and len(row.stages) > 1}
    name = (view.optimizer or "").lower()
    ours = f", {exact[name]}, which knows whole tensors at every stage" if name in exact else ""
    return f"stage 0{ours}, or an optimizer that works element by element, such as AdamW"


def _untested(view: View) -> Iterator[Hit]:
    if view.stage > 0 and not _shardable(view) and not _allowed(view):
        name, flag = view.optimizer or "", '"zero_allow_untested_optimizer": true'
        if _whole(view):
            mend = _instead(view)
        elif name.lower() in ELEMENTWISE:
            mend = f"{flag}: it works element by element"
        else:
            mend = f"{flag} if it works element by element; else stage 0"
        yield Hit(path=_where(view), says=f"{name} at stage {view.stage}", mend=mend)


def _where(view: View) -> Path:
    return ("optimizer", "type") if view.optimizer_is_the_files else view.at("zero_optimization.stage")


def _whole_tensor(view: View) -> Iterator[Hit]:
    if _whole(view) and _allowed(view) and not _is_torchs_muon(view):
        yield Hit(
            path=("zero_allow_untested_optimizer",),
            says=f"{view.optimizer} at stage {view.stage}: its step needs {_whole(view)}",
            mend=_instead(view),
        )


def _torchs_muon(view: View) -> Iterator[Hit]:
    if _whole(view) and _allowed(view) and _is_torchs_muon(view):
        yield Hit(
            path=("zero_allow_untested_optimizer",),
            says=f"torch.optim.Muon at stage {view.stage}",
            mend=_instead(view),
        )


def _allowed(view: View) -> bool:
    """accelerate sets the flag for any optimizer that the script passes."""
    script_by_trainer = view.context.trainer != "none" and view.context.optimizer is not None
    return bool(view.get("zero_allow_untested_optimizer")) or script_by_trainer


def _is_deepspeeds_muon(view: View) -> bool:
    name = (view.optimizer or "").lower()
    return name == "muonwithauxadam" or (name == "muon" and view.optimizer_is_the_files)


def _muon_clipped(view: View) -> Iterator[Hit]:
    clip = view.get("gradient_clipping")
    if _is_deepspeeds_muon(view) and view.stage > 0 and clip:
        path = ("gradient_clipping",)
        edit = Edit(what="value" if view.says("gradient_clipping") else "insert", path=path, value=0.0)
        yield Hit(
            path=path,
            says=f"Muon at stage {view.stage} with gradient_clipping {shown(clip)}",
            mend='"gradient_clipping": 0.0',
            edits=(edit,),
        )


def _muon_loses_gradients(view: View) -> Iterator[Hit]:
    by_bf16_optimizer = view.stage == 1 and view.precision == "bf16" and view.offload("optimizer") == "none"
    summed = view.precision != "fp32" and view.grad_accum_dtype == "fp32" and not by_bf16_optimizer
    if _is_deepspeeds_muon(view) and view.stage in (1, 2) and summed and view.zero("reduce_scatter"):
        path = ("zero_optimization", "reduce_scatter")
        edit = Edit(what="value" if view.says(".".join(path)) else "insert", path=path, value=False)
        yield Hit(
            path=path,
            says=f"Muon at stage {view.stage} in {view.precision}, gradients summed in fp32, with reduce_scatter",
            mend='"reduce_scatter": false',
            edits=(edit,),
        )


def _muon_by_name(view: View) -> Iterator[Hit]:
    if view.optimizer == "muon" and view.optimizer_is_the_files:
        yield Hit(
            path=("optimizer", "type"),
            says="Muon for every matrix whose name has neither embed nor lm_head",
            mend="nothing where that leaves out the embeddings; else pass MuonWithAuxAdam to initialize()",
        )


def _script_optimizer_offloaded(view: View) -> Iterator[Hit]:
    name = (view.context.optimizer or "none").lower()
    # accelerate puts DeepSpeedCPUAdam in the place of a torch optimizer.
    foreign = name != "none" and name not in CPU_OPTIMIZERS and view.context.trainer == "none"
    if foreign and view.offload("optimizer") != "none" and view.get("zero_force_ds_cpu_optimizer"):
        yield Hit(
            path=("zero_optimization", "offload_optimizer"),
            says=f"offload with the script's {name}",
            mend='DeepSpeedCPUAdam in the script, or "zero_force_ds_cpu_optimizer": false',
        )


def _no_optimizer(view: View) -> Iterator[Hit]:
    if view.context.optimizer == "none" and not view.raw_optimizer_type and view.stage in (1, 2):
        yield Hit(
            path=("optimizer",),
            says=f"no optimizer, here or in the script, at stage {view.stage}",
            mend='"optimizer": {"type": "AdamW", "params": {...}}',
        )


def _no_optimizer_at_3(view: View) -> Iterator[Hit]:
    if view.context.optimizer == "none" and not view.raw_optimizer_type and view.stage == 3:
        yield Hit(
            path=("optimizer",),
            says="no optimizer, here or in the script, at stage 3",
            mend='"optimizer": {"type": "AdamW", "params": {...}}, unless it only infers',
        )


def _two_optimizers(view: View) -> Iterator[Hit]:
    if view.context.optimizer not in (None, "none") and view.raw_optimizer_type and view.context.trainer == "none":
        yield Hit(
            path=("optimizer",),
            says=f"an optimizer, where the script passes {view.context.optimizer}",
            mend="remove the block, or pass none in the script",
        )


def _muon_at_3(view: View) -> Iterator[Hit]:
    if _is_deepspeeds_muon(view) and view.stage == 3 and view.zero("reduce_scatter"):
        path = ("zero_optimization", "reduce_scatter")
        edit = Edit(what="value" if view.says(".".join(path)) else "insert", path=path, value=False)
        yield Hit(
            path=path,
            says="Muon at stage 3 with reduce_scatter, which is on unless it is switched off",
            mend='"reduce_scatter": false',
            edits=(edit,),
        )


def _unmanaged(view: View) -> Iterator[Hit]:
    if view.get("managed_gradient_accumulation") is not False:
        return
    path = ("managed_gradient_accumulation",)
    if view.zero("overlap_comm") and view.stage < 2:
        yield Hit(path=path, says=f"false, with overlap_comm at stage {view.stage}", mend='"overlap_comm": false')
    if view.get("compile.deepcompile"):
        yield Hit(path=path, says="false, with DeepCompile", mend="true")


_BASIC = "runtime/engine.py:DeepSpeedEngine._configure_basic_optimizer"
_SANITY = "runtime/engine.py:DeepSpeedEngine._do_optimizer_sanity_check"
_ENGINE = "runtime/engine.py:DeepSpeedEngine._do_sanity_check"

RULES = (
    Rule(
        id="SO010", title="an optimizer that DeepSpeed does not know", outcome=AT_START,
        does="AssertionError: ... is not a supported DeepSpeed Optimizer; torch.optim's names must be spelt exactly",
        find=_unknown_type, source=_ENGINE,
        mend="an optimizer's name; torch.optim's spelt exactly",
    ),
    Rule(
        id="SO011", title="max_grad_norm among the optimizer's arguments", outcome=AT_START,
        does="ValueError: 'max_grad_norm' is not supported as an optimizer parameter", find=_clipping_in_params,
        source=_BASIC,
        mend='"gradient_clipping" at the top level',
    ),
    Rule(
        id="SO012", title="LAMB with a static loss scale", outcome=AT_START,
        does="AssertionError: lamb optimizer requires dynamic loss scaling, even where fp16 is off",
        find=_lamb_static_scale, source=_ENGINE,
        mend='"loss_scale": 0, which is dynamic',
    ),
    Rule(
        id="SO013", title="an optimizer that ZeRO does not know, not allowed", outcome=AT_START,
        does="AssertionError: You are using an untested ZeRO Optimizer", find=_untested, source=_SANITY,
        mend='"zero_allow_untested_optimizer": true where it works element by element; else stage 0, or AdamW',
    ),
    Rule(
        id="SO014", title="an optimizer that needs whole tensors, allowed under ZeRO", outcome=CHANGES,
        does="each rank's optimizer sees one flat vector instead of layers: one trust ratio, or one step size, for all "
             "of them, another result at every stage and number of ranks", find=_whole_tensor,
        source="runtime/zero/stage_1_and_2.py",
        mend="stage 0, or an optimizer that works element by element, such as AdamW",
    ),
    Rule(
        id="SO018", title="optimizer offload with an optimizer of the script's that is not DeepSpeed's",
        outcome=AT_START,
        does="ZeRORuntimeException: You are using ZeRO-Offload with a client provided optimizer",
        find=_script_optimizer_offloaded, source="runtime/engine.py:DeepSpeedEngine._configure_optimizer",
        mend='DeepSpeedCPUAdam in the script, or "zero_force_ds_cpu_optimizer": false',
    ),
    Rule(
        id="SO019", title="stage 1 or 2 without an optimizer", outcome=AT_START,
        does="AssertionError: zero stage requires an optimizer", find=_no_optimizer,
        source="runtime/engine.py:DeepSpeedEngine._configure_zero_optimizer",
        mend='"optimizer": {"type": "AdamW", "params": {...}}',
    ),
    Rule(
        id="SO020", title="stage 3 without an optimizer", outcome=AT_STEP,
        does="AttributeError in backward", find=_no_optimizer_at_3, source="runtime/zero/parameter_offload.py",
        mend='"optimizer": {"type": "AdamW", "params": {...}}',
    ),
    Rule(
        id="SO022", title="Muon at stage 3 with reduce_scatter", outcome=AT_START,
        does="ValueError: Muon and reduce scatter cannot be used together", find=_muon_at_3,
        source="runtime/zero/stage3.py:DeepSpeedZeroOptimizer_Stage3.__init__",
        mend='"reduce_scatter": false',
    ),
    Rule(
        id="SO044", title="torch's Muon of the script's, allowed under ZeRO", outcome=AT_STEP,
        does="ValueError: Param gradient must be a 2D matrix: each rank's optimizer sees one flat vector",
        find=_torchs_muon, source="runtime/zero/stage_1_and_2.py",
        mend="stage 0, DeepSpeed's MuonWithAuxAdam, or an optimizer that works element by element, such as AdamW",
    ),
    Rule(
        id="SO045", title="Muon under ZeRO with gradient clipping, which is on unless it is switched off",
        outcome=CHANGES,
        does="the norm is taken after Muon's update, which is scaled down to it: of another length than at stage 0, "
             "where the gradient is clipped before", find=_muon_clipped,
        source="runtime/zero/stage_1_and_2.py:DeepSpeedZeroOptimizer.step", mend='"gradient_clipping": 0.0',
    ),
    Rule(
        id="SO046", title="Muon by the file, which chooses the matrices by their names", outcome=CHANGES, severity=NOTE,
        does="embeddings of other names, such as GPT-2's wte and wpe, take Muon's step too", find=_muon_by_name,
        source="__init__.py:set_optimizer_flags", mend="MuonWithAuxAdam in the script, where names do not tell",
    ),
    Rule(
        id="SO047", title="Muon at stage 1 or 2 in 16 bit with reduce_scatter, gradients summed in fp32",
        outcome=CHANGES,
        does="a bias that a matrix of Muon's follows in the bucket never gets its gradient and stands still",
        find=_muon_loses_gradients, source="runtime/zero/stage_1_and_2.py:DeepSpeedZeroOptimizer.average_tensor",
        mend='"reduce_scatter": false',
    ),
    Rule(
        id="SO025", title="managed_gradient_accumulation off with overlap_comm or DeepCompile", outcome=AT_START,
        does="AssertionError: managed_gradient_accumulation=False ...", since="0.19.4", find=_unmanaged, source=_ENGINE,
        mend='"overlap_comm": false, or "managed_gradient_accumulation": true',
    ),
    Rule(
        id="SO029", title="Adam with weight decay, and no adam_w_mode", outcome=CHANGES, severity=WARNING,
        does="DeepSpeed builds AdamW: the decay is not part of the gradient", find=_adam_is_adamw, source=_BASIC,
        mend='"AdamW" for the same run; "adam_w_mode": false for Adam with L2',
    ),
    Rule(
        id="SO030", title="AdamW with adam_w_mode false", outcome=IGNORES,
        does="DeepSpeed builds AdamW by the name", find=_adamw_stays, source=_BASIC,
        mend='"type": "Adam" with it, or remove it',
    ),
    Rule(
        id="SO031", title="an argument that the optimizer's constructor does not take", outcome=AT_START,
        does="TypeError: got an unexpected keyword argument", find=_unknown_argument, source=_BASIC,
        mend="the argument that was meant, or nothing",
    ),
    Rule(
        id="SO032", title="an optimizer's argument that is not a number", outcome=AT_START,
        does="TypeError or ValueError: torch's constructors compare it; DeepSpeed's kernels stop at the first step",
        find=_no_number, source=_BASIC,
        mend="a number",
    ),
    Rule(
        id="SO033", title="an optimizer in the file and another in the script", outcome=IGNORES, severity=WARNING,
        does="the script's is used, and the file's block is not looked at", find=_two_optimizers,
        source="runtime/engine.py:DeepSpeedEngine._configure_optimizer",
        mend="the block, or the script's optimizer; not both",
    ),
    Rule(
        id="SO034", title="an argument that Muon does not read", outcome=IGNORES,
        does="DeepSpeed picks the arguments it knows and drops the rest", since="0.19.4", find=_muon_argument,
        source="runtime/engine.py:DeepSpeedEngine._muon_param_groups",
        mend="remove it",
    ),
    Rule(
        id="SO035", title="a learning rate, decay or eps below 0", outcome=AT_START,
        does="ValueError from torch's constructors; DeepSpeed's kernels climb the loss", find=_negative, source=_BASIC,
        mend="0 or more",
    ),
    Rule(
        id="SO036", title="an optimizer block without a type", outcome=IGNORES,
        does="DeepSpeed builds none: where the script passes none either, it stops at start or at the first backward",
        find=_without_type, source="runtime/config.py:get_optimizer_name",
        mend='"type": "AdamW", or another',
    ),
    Rule(
        id="SO037", title="an optimizer without a learning rate", outcome=CHANGES, severity=NOTE,
        does="its constructor has a default: 0.001 for all but Adagrad, which has 0.01", find=_without_rate,
        source=_BASIC, mend='"params": {"lr": ...}',
    ),
    Rule(
        id="SO038", title="amsgrad with a fused kernel", outcome=AT_START,
        does="RuntimeError: FusedAdam does not support the AMSGrad variant", find=_amsgrad,
        source="ops/adam/fused_adam.py, ops/lamb/fused_lamb.py", mend='false, or "torch_adam": true',
    ),
    Rule(
        id="SO039", title="an optimizer's switch that is a string", outcome=CHANGES,
        does='it is asked whether it is true, and any string is, "false" too', find=_no_switch, source=_BASIC,
        mend="true or false",
    ),
)  # fmt: skip
