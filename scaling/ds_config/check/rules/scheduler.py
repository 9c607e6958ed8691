"""The learning-rate scheduler: its name, its constructor's arguments, and the defaults that nobody expects."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from scaling.ds_config.check.outcome import AT_START, CHANGES, IGNORES, NOTE, WARNING
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import Undetermined, View

_WARMUP = ("warmup_num_steps", "warmup_type", "last_batch_iteration")
_RATES = ("warmup_min_lr", "warmup_max_lr")

# What each of DeepSpeed's takes beside the optimizer (deepspeed 0.19.8, runtime/lr_schedules.py).
SCHEDULERS: dict[str, tuple[str, ...]] = {
    "LRRangeTest": ("lr_range_test_min_lr", "lr_range_test_step_size", "lr_range_test_step_rate",
                    "lr_range_test_staircase", "last_batch_iteration"),
    "OneCycle": ("cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size",
                 "cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum",
                 "cycle_min_mom", "cycle_max_mom", "decay_mom_rate", "last_batch_iteration"),
    "WarmupLR": (*_RATES, *_WARMUP),
    "WarmupDecayLR": ("total_num_steps", *_RATES, *_WARMUP),
    "WarmupCosineLR": ("total_num_steps", "warmup_min_ratio", "cos_min_ratio", *_WARMUP),
}  # fmt: skip
REQUIRED: dict[str, tuple[str, ...]] = {
    "OneCycle": ("cycle_min_lr", "cycle_max_lr"),
    "WarmupDecayLR": ("total_num_steps",),
    "WarmupCosineLR": ("total_num_steps",),
}
# The classes of torch.optim.lr_scheduler (2.13); their arguments are not looked at here.
TORCH_SCHEDULERS = (
    "ChainedScheduler", "ConstantLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR",
    "LambdaLR", "LinearLR", "MultiStepLR", "MultiplicativeLR", "OneCycleLR", "PolynomialLR", "ReduceLROnPlateau",
    "SequentialLR", "StepLR",
)  # fmt: skip
_WHOLE = ("warmup_num_steps", "lr_range_test_step_size")
_TEXTS = ("warmup_type",)
_SWITCHES = ("lr_range_test_staircase", "cycle_momentum")


def _params(view: View) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of one of DeepSpeed's own schedulers. Raises Undetermined."""
    name, params = view.raw("scheduler.type"), view.raw("scheduler.params")
    if not isinstance(name, str) or name not in SCHEDULERS or not isinstance(params, dict):
        raise Undetermined("scheduler")
    return name, params


def _path(name: str) -> tuple[str, ...]:
    return ("scheduler", "params", name)


def _unknown_type(view: View) -> Iterator[Hit]:
    name = view.raw("scheduler.type")
    if not view.says("scheduler.type") or name is None:
        return
    known = (*SCHEDULERS, *TORCH_SCHEDULERS)
    if isinstance(name, str) and name in known:
        return
    same = [each for each in known if isinstance(name, str) and each.lower() == name.lower()]
    close = same or (get_close_matches(name, known, n=2, cutoff=0.6) if isinstance(name, str) else [])
    mend = " or ".join(f'"{each}"' for each in close) or "one of " + ", ".join(SCHEDULERS)
    edits = (Edit(what="value", path=("scheduler", "type"), value=same[0]),) if len(same) == 1 else ()
    yield Hit(
        path=("scheduler", "type"),
        says=f"{shown(name)} is no scheduler of DeepSpeed's or torch's",
        mend=mend,
        edits=edits,
    )


def _without_type(view: View) -> Iterator[Hit]:
    block = view.root.get("scheduler")
    if isinstance(block, dict) and block.get("type") is None:
        yield Hit(path=("scheduler",), says="a scheduler without a type", mend='"type": "WarmupLR", or another')


def _falls(view: View) -> Iterator[Hit]:
    _, params = _params(view)
    low, high = params.get("warmup_min_lr", 0.0), params.get("warmup_max_lr")
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (low, high))
    if numbers and low > high:
        yield Hit(path=_path("warmup_min_lr"), says=f"{low:g}, above warmup_max_lr {high:g}", mend="the lower rate")


def _no_params(view: View) -> Iterator[Hit]:
    if isinstance(view.raw("scheduler.type"), str) and not view.says("scheduler.params"):
        yield Hit(path=("scheduler", "type"), says="a scheduler without params", mend='"params": {...}')


def _unknown_argument(view: View) -> Iterator[Hit]:
    name, params = _params(view)
    for argument in params:
        if argument not in SCHEDULERS[name]:
            close = get_close_matches(argument, SCHEDULERS[name], n=2, cutoff=0.6)
            mend = "did you mean " + " or ".join(f'"{key}"' for key in close) + "?" if close else "remove it"
            yield Hit(path=_path(argument), says=f"{name} takes no argument {shown(argument)}", mend=mend)


def _missing_argument(view: View) -> Iterator[Hit]:
    name, params = _params(view)
    for argument in REQUIRED.get(name, ()):
        if argument not in params:
            yield Hit(path=_path(argument), says=f"{name} without {argument}", mend=f'"{argument}": ...')


def _no_number(view: View) -> Iterator[Hit]:
    _, params = _params(view)
    for argument, value in params.items():
        if argument in (*_WHOLE, *_TEXTS, *_SWITCHES) or value in (None, "auto"):
            continue
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers):
            yield Hit(path=_path(argument), says=f"{shown(value)} is not a number", mend="a number")


def _no_steps(view: View) -> Iterator[Hit]:
    _, params = _params(view)
    for argument in _WHOLE:
        value: Any = params.get(argument)
        if argument not in params or value == "auto":
            continue
        if not isinstance(value, int) or value <= 0:  # DeepSpeed takes true for 1
            whole = isinstance(value, float) and value.is_integer() and value > 0
            if whole and view.context.trainer == "none":
                continue  # Hjson reads 100.0 as 100
            edits = (Edit(what="value", path=_path(argument), value=int(value)),) if whole else ()
            yield Hit(
                path=_path(argument),
                says=f"{shown(value)} is not a whole number above 0",
                edits=edits,
                mend=shown(int(value)) if whole else "1 or more; 1 is no warm-up",
            )


def _warmup_type(view: View) -> Iterator[Hit]:
    _, params = _params(view)
    value = params.get("warmup_type")
    if "warmup_type" in params and value not in ("log", "linear", "auto"):
        yield Hit(path=_path("warmup_type"), says=f"{shown(value)} is neither log nor linear", mend='"linear" or "log"')


def _log_by_default(view: View) -> Iterator[Hit]:
    name, params = _params(view)
    if name.startswith("Warmup") and "warmup_type" not in params:
        yield Hit(
            path=("scheduler", "params"), says=f"{name} without warmup_type", mend='"warmup_type": "linear", or "log"'
        )


def _peak(view: View) -> Iterator[Hit]:
    """WarmupLR takes the optimizer's rate where it is given none; WarmupDecayLR takes 0.001."""
    name, params = _params(view)
    lr = view.optimizer_params().get("lr") if view.optimizer_is_the_files else None
    if name == "WarmupDecayLR" and "warmup_max_lr" not in params and lr != 0.001:
        asked = f"; the optimizer's is {shown(lr)}" if isinstance(lr, int | float) else ""
        yield Hit(
            path=_path("warmup_max_lr"),
            says=f"{name} without warmup_max_lr climbs to 0.001{asked}",
            mend=f'"warmup_max_lr": {shown(lr) if isinstance(lr, int | float) else "..."}',
        )


def _two_peaks(view: View) -> Iterator[Hit]:
    name, params = _params(view)
    lr = view.optimizer_params().get("lr") if view.optimizer_is_the_files else None
    peak = params.get("warmup_max_lr")
    if name.startswith("Warmup") and isinstance(lr, int | float) and isinstance(peak, int | float) and lr != peak:
        yield Hit(
            path=_path("warmup_max_lr"),
            says=f"{shown(peak)}, where the optimizer's lr is {shown(lr)}",
            mend="the same in both",
        )


def _too_short(view: View) -> Iterator[Hit]:
    _, params = _params(view)
    total, warmup = params.get("total_num_steps"), params.get("warmup_num_steps", 1000)
    if isinstance(total, int | float) and isinstance(warmup, int | float) and total < warmup:
        yield Hit(
            path=_path("total_num_steps"),
            says=f"{total:g} steps in all, {warmup:g} of them to warm up",
            mend="a warmup_num_steps below total_num_steps; its default is 1000",
        )


_INIT = "runtime/lr_schedules.py"
_FROM_CONFIG = "runtime/engine.py:DeepSpeedEngine._scheduler_from_config"

RULES = (
    Rule(
        id="SC023", title="a scheduler that DeepSpeed does not know", outcome=AT_START,
        does="AssertionError: DeepSpeed does not recognize LR scheduler", find=_unknown_type, source=_FROM_CONFIG,
        mend="a scheduler's name, spelt exactly",
    ),
    Rule(
        id="SC024", title="an argument that the scheduler's constructor does not take", outcome=AT_START,
        does="TypeError: got an unexpected keyword argument", find=_unknown_argument, source=_FROM_CONFIG,
        mend="the argument that was meant",
    ),
    Rule(
        id="SC034", title="a scheduler without an argument that it needs", outcome=AT_START,
        does="TypeError: missing a required positional argument", find=_missing_argument, source=_FROM_CONFIG,
        mend="the argument",
    ),
    Rule(
        id="SC035", title="a scheduler without params", outcome=AT_START,
        does="TypeError: argument after ** must be a mapping", find=_no_params, source=_FROM_CONFIG,
        mend='"params": {...}',
    ),
    Rule(
        id="SC036", title="a scheduler's argument that is not a number", outcome=AT_START,
        does="TypeError: it is computed with", find=_no_number, source=_INIT,
        mend="a number",
    ),
    Rule(
        id="SC037", title="warm-up steps that are not a whole number above 0", outcome=AT_START, since="0.19.3",
        does="ValueError: must be a positive integer; before 0.19.3 DeepSpeed took 2", find=_no_steps, source=_INIT,
        mend="1 or more; 1 is no warm-up",
    ),
    Rule(
        id="SC038", title="a warmup_type that is neither log nor linear", outcome=CHANGES,
        does="DeepSpeed logs a warning and warms up logarithmically", find=_warmup_type, source=_INIT,
        mend='"linear" or "log"',
    ),
    Rule(
        id="SC039", title="a warm-up without warmup_type", outcome=CHANGES, severity=NOTE,
        does="DeepSpeed's default is logarithmic: half the peak after the square root of the steps",
        find=_log_by_default, source=_INIT,
        mend='"warmup_type": "linear", or "log"',
    ),
    Rule(
        id="SC040", title="WarmupDecayLR without warmup_max_lr", outcome=CHANGES,
        does="it climbs to 0.001, whatever the optimizer's lr; WarmupLR takes the optimizer's", find=_peak,
        source=_INIT,
        mend="\"warmup_max_lr\": the optimizer's lr",
    ),
    Rule(
        id="SC041", title="warmup_max_lr is another rate than the optimizer's lr", outcome=IGNORES, severity=WARNING,
        does="the scheduler sets the rate from the first step; the optimizer's lr is never used", find=_two_peaks,
        source=_INIT,
        mend="the same rate in both",
    ),
    Rule(
        id="SC042", title="fewer steps in all than to warm up", outcome=CHANGES, severity=WARNING,
        does="DeepSpeed logs a warning; the rate never reaches its peak in those steps", find=_too_short, source=_INIT,
        mend="a warmup_num_steps below total_num_steps; its default is 1000",
    ),
    Rule(
        id="SC047", title="a scheduler block without a type", outcome=IGNORES,
        does="DeepSpeed builds no scheduler: the rate stays the optimizer's", find=_without_type,
        source="runtime/config.py:get_scheduler_name", mend='"type": "WarmupLR", or another',
    ),
    Rule(
        id="SC048", title="a warm-up that falls", outcome=CHANGES, severity=WARNING,
        does="DeepSpeed takes the two as they stand, and the rate goes down", find=_falls, source=_INIT,
        mend="warmup_min_lr below warmup_max_lr",
    ),
)  # fmt: skip
