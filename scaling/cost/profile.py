"""Stack profiles: the few coefficients in which code stacks differ, as data with provenance.

The structure (what is sharded, when it lives, how many elements a layer saves) is the same for all and is never
fitted. A profile says how wide a stack's states are, how many copies of a tensor its kernels keep, and what its loss
holds per logit. Counted values carry their arithmetic; fitted ones say to what.
"""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from scaling.errors import InputError, did_you_mean
from scaling.files import read_text
from scaling.units import GIB

Sum = Literal["fp32", "fp32 if summed", "parameter"]
Selective = Literal["scores", "matmuls"]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One code stack.

    Widths, in bytes per parameter of a 16-bit run: `parameter_bytes`, `master_bytes`, `moment_bytes` each, `cast_bytes`
    of a copy for autocast; `sums` is the width in which gradients are accumulated ("fp32 if summed": DeepSpeed as we
    configure it, fp32 where there is more than one micro step). `passing_gradients` tells whether a micro step's own
    16-bit gradients stand beside them, `standing_gradients` whether their buffers are there from the start,
    `step_bytes` what the optimizer step adds per trained parameter.

    Activations, as multiples of what one layer saves by counting operations: `cut` for the tensors that tensor
    parallelism divides, `uncut` for the norms' inputs and outputs, `rms_uncut` where the norm is an unfused RMSNorm.
    `gated_tensors` of F elements are kept by a gated MLP: gate, up, product, and the activated gate unless fused.
    `repeats_keys`: keys and values are saved once for every query head. Under selective recomputation all but the
    "scores" stay, or no more than attention's output and every second matmul's ("matmuls", as torchtitan does).
    Eager attention keeps `score_bytes` per score, the loss `logit_bytes` per logit, a fused loss none.

    `gathered_layers` layers stand whole beside a fully sharded model, and `constant_bytes` whatever the model.
    `time_scale` is the stack's pace: its step over the roofline's.
    """

    name: str
    parameter_bytes: int = 2
    master_bytes: int = 4
    moment_bytes: int = 4
    cast_bytes: int = 0
    sums: Sum = "fp32"
    passing_gradients: bool = False
    standing_gradients: bool = False
    step_bytes: float = 0.0
    cut: float = 1.0
    uncut: float = 1.0
    rms_uncut: float = 1.0
    gated_tensors: int = 3
    repeats_keys: bool = False
    selective: Selective = "matmuls"
    score_bytes: float = 5.0
    logit_bytes: float = 14.0
    gathered_layers: float = 2.0
    constant_bytes: int = 0
    reserved_over_allocated: float = 1.08
    time_scale: float = 1.0
    buckets: bool = False
    provenance: str


_PLAIN = Profile(name="", provenance="")
# Unfused Llama kernels, as transformers 5 and torchtitan have them: RMSNorm saves its input in fp32, the normalised
# value and the output (8 bytes per element against LayerNorm's 4); the MLP saves gate, up, silu(gate) and the product;
# eager attention an fp32 softmax and its 16-bit copy.
# tests/cost/test_profile.py compares the count with what autograd saves of transformers' own Llama.
_UNFUSED = replace(_PLAIN, rms_uncut=2.0, gated_tensors=4, score_bytes=6.0)
_PURE = replace(_UNFUSED, master_bytes=0, moment_bytes=2, sums="parameter")  # everything in bf16
# fp32 parameters, which the optimizer updates themselves.
_FP32, _UNFUSED_FP32 = (replace(base, parameter_bytes=4, master_bytes=0) for base in (_PLAIN, _UNFUSED))
# Autocast keeps a norm's input and output in fp32 and saves the next matmul's cast copy, 4 + 4 + 2 bytes for 4; of a
# score the fp32 softmax 4, dropout's mask 1, its output cast 2.
_AUTOCAST = replace(_UNFUSED_FP32, cast_bytes=2, uncut=2.5, score_bytes=7.0)

_ROWS = (
    replace(
        _UNFUSED,
        name="deepspeed",
        sums="fp32 if summed",
        passing_gradients=True,
        logit_bytes=12.0,  # logits 2, log-probabilities 4, fp32 gradient 4, 16-bit gradient 2: scaling/models/loss.py
        buckets=True,
        provenance="ours: counted, and held against real engine steps in tests/cost/test_memory_measured.py; its pace "
        "on a GPU is not measured yet",
    ),
    replace(
        _UNFUSED,
        name="deepspeed-defaults",
        passing_gradients=True,
        constant_bytes=int(6.7 * GIB),
        reserved_over_allocated=1.02,
        provenance="transformers models under DeepSpeed's own defaults: counted kernels; constant and reserve set to "
        "the published 12.6 GiB at length zero of Llama 3 8B with ZeRO-3, of which 1e9 live parameters, two reduce "
        "buckets of 5e8 and the gradients of embedding and head in 16 bit are 5.7",
    ),
    Profile(
        name="megatron-core",
        standing_gradients=True,
        selective="scores",  # Korthikanti et al. 2022, section 5
        uncut=1.1,
        score_bytes=4.87,
        logit_bytes=5.9,
        constant_bytes=int(0.1 * GIB),
        time_scale=0.86,
        provenance="Megatron-LM functional tests: counted tensors; norms, scores, logits and the constant fitted by "
        "non-negative least squares to 68 published peaks (Korthikanti et al. count 5 bytes a score); pace: the median "
        "of 58 published speeds of NeMo and Megatron-Bridge, 8-bit ones most of them",
    ),
    Profile(
        name="megatron-deepspeed",
        sums="parameter",
        uncut=1.1,
        logit_bytes=5.9,
        provenance="Megatron-DeepSpeed (the FPDT table of DeepSpeed's documentation): megatron-core's kernels and "
        "DeepSpeed's states with 16-bit gradients",
    ),
    Profile(
        name="nanotron",
        standing_gradients=True,
        cut=2.15,
        uncut=1.5,
        logit_bytes=9.0,
        constant_bytes=int(0.7 * GIB),
        provenance="nanotron's benchmark heatmaps: fitted to 16 published peaks, of which it is not said whether they "
        "are allocated or reserved",
    ),
    replace(
        _UNFUSED_FP32,
        name="torchtitan",
        time_scale=1.04,
        provenance="FSDP2, fp32 parameters and states, 16-bit compute: counted kernels; pace: the median of 37 "
        "published speeds",
    ),
    replace(
        _FP32,
        name="llm-foundry",
        logit_bytes=4.0,  # 16-bit logits and their gradient: flash-attn's fused cross-entropy, the default there
        reserved_over_allocated=1.05,
        provenance="llm-foundry's MPT under FSDP: fp32 parameters and states, low-precision LayerNorm; counted "
        "kernels; the roofline's coefficients are fitted to its speeds",
    ),
    replace(
        _PURE,
        name="litgpt",
        rms_uncut=2.5,  # the normalised value in fp32, too
        repeats_keys=True,
        time_scale=1.11,
        provenance="litgpt, and Thunder's fork of it, in bf16-true: counted kernels; pace: two published speeds",
    ),
    replace(
        _PURE,
        name="torchtune",
        logit_bytes=5.7,
        provenance="torchtune in bf16: counted kernels; its chunked loss took 8.3 of 14 bytes a logit off one run",
    ),
    replace(_UNFUSED_FP32, name="transformers", provenance="transformers' Trainer in fp32: counted kernels"),
    replace(
        _AUTOCAST,
        name="transformers-amp",
        time_scale=1.4,
        provenance="transformers' Trainer with autocast: fp32 weights and a 16-bit copy of them; counted kernels; "
        "pace: three published speeds on a V100",
    ),
    replace(_PURE, name="transformers-bf16", provenance="transformers' Trainer on a bf16 model: counted kernels"),
    replace(
        _FP32,
        name="nvidia-bert",
        time_scale=0.95,
        provenance="NVIDIA DeepLearningExamples BERT in fp32 or tf32: counted kernels; pace: 35 published speeds",
    ),
    replace(
        _AUTOCAST,
        name="nvidia-bert-amp",
        provenance="NVIDIA DeepLearningExamples BERT with autocast: counted kernels; its pace is the roofline's (30 "
        "published speeds)",
    ),
    replace(
        _UNFUSED,
        name="internevo",
        passing_gradients=True,
        step_bytes=12.0,
        time_scale=0.97,
        provenance="InternEvo's hybrid ZeRO: counted states; the step's 12 bytes a parameter fitted to 11 published "
        "peaks, taken as reserved; pace: 10 published speeds",
    ),
    replace(
        _UNFUSED_FP32,
        name="fms-fsdp",
        provenance="IBM's fms-fsdp: fp32 parameters and states; counted kernels; its pace is the roofline's (four "
        "published speeds)",
    ),
    replace(
        _UNFUSED,
        name="colossalai",
        sums="parameter",
        provenance="ColossalAI's low-level ZeRO: 16-bit gradients, fp32 master copy; counted kernels",
    ),
)
PROFILES: dict[str, Profile] = {row.name: row for row in _ROWS}
DEEPSPEED = PROFILES["deepspeed"]


def find_profile(name: str, field_name: str = "stack") -> Profile:
    """The profile called `name`. Raises InputError with the closest names."""
    if name not in PROFILES:
        raise InputError(field_name, name, "is not a known stack", hint=did_you_mean(name, PROFILES))
    return PROFILES[name]


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18


def load_profile(path: str | Path) -> Profile:
    """The profile in a file of `scale calibrate`. Raises InputError where it is not one."""
    try:
        document = json.loads(read_text(path, "profile"))
        shipped, coefficients = find_profile(document["stack"], "profile"), document["coefficients"]
        known = {field.name for field in fields(Profile) if field.type in (float, int)}
        wrong = [name for name, value in coefficients.items() if name not in known or not _is_size(value)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "profile", str(path), f"is not a profile: {error}", hint="`scale calibrate` writes one"
        ) from None
    if wrong:
        raise InputError("profile", str(path), f"has coefficients that cannot be: {', '.join(wrong)}")
    return replace(shipped, **coefficients, provenance=f"calibrated: {path}")
