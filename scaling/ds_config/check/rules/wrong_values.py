"""Values that a key does not take: "auto", another kind, a block that is none. The schema decides."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scaling.ds_config.check.outcome import ACCEPTS, AT_START, AT_STEP, CHANGES, IGNORES, LATER, NOTE, WARNING, Outcome
from scaling.ds_config.check.reader import spelt
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.schema import UNSET, Key
from scaling.ds_config.check.trainers import RESOLVED
from scaling.ds_config.check.values import Refused, read_as, shown
from scaling.ds_config.check.view import Spot, View


def _reader(spot: Spot) -> str:
    return spot.block.keys if spot.block and spot.block.keys else "get"


def _auto_in_model(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        if spot.key and spot.is_auto and _reader(spot) == "model" and not view.is_resolved(spot.path):
            yield _auto_hit(view, spot, f"DeepSpeed works with its default, {_default(view, spot.key)}", IGNORES)


def _default(view: View, key: Key) -> str:
    default = key.default_at(view.release)
    return "none" if default is UNSET else shown(default)


# Here "auto" reaches the constructor of an optimizer or a scheduler.
_PARAMS = (("optimizer", "params"), ("scheduler", "params"))


def _auto_in_get(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        if spot.key and spot.is_auto and _reader(spot) != "model" and not view.is_resolved(spot.path):
            yield _auto_hit(view, spot, _kept(spot.key.wrong), spot.key.wrong)
    for block in _PARAMS:
        params = view.raw(".".join(block))
        for name, value in params.items() if isinstance(params, dict) else ():
            path = (*block, name)
            if value == "auto" and not view.is_resolved(path):
                spot = Spot(path=path, key=None, block=None, value=value)
                yield _auto_hit(view, spot, "the constructor refuses a string (TypeError)", AT_START)


def _auto_hit(view: View, spot: Spot, does: str, outcome: Outcome) -> Hit:
    if view.context.trainer != "none":
        does, outcome = 'accelerate refuses an "auto" that it does not know (ValueError)', AT_START
    says = f'"auto" for {spelt(spot.path)}, which nobody fills in'
    return Hit(path=spot.path, says=says, mend=_trainer_hint(view, spot), does=does, outcome=outcome)


def _trainer_hint(view: View, spot: Spot) -> str:
    trainer = "hf" if view.context.trainer == "none" else view.context.trainer
    path = ".".join(map(str, spot.path))
    by = next((name for name in (trainer, "accelerate", "hf") if path in RESOLVED[name]), "")
    return f"a value; or check with --trainer {by}, if that fills it in" if by else "a value"


def _kept(outcome: Outcome) -> str:
    """What becomes of a wrong value in a block that is read with .get."""
    return {
        AT_START: "DeepSpeed uses it as it stands, and stops (TypeError or its like)",
        AT_STEP: "DeepSpeed keeps it, and stops at the first step (TypeError)",
        LATER: "DeepSpeed keeps it, and stops where it is first used",
        CHANGES: "DeepSpeed keeps it; where it asks yes or no, any string is a yes",
        IGNORES: "DeepSpeed looks at it in training nowhere",
    }[outcome]


def _refused(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        if spot.key is None or spot.key.keys or _reader(spot) != "model" or spot.is_auto:
            continue
        try:
            read_as(spot.key.kind, spot.value)
        except Refused:
            yield _wrong_hit(spot)


# Values of these keys that are of another kind are for rules of their own.
OWN_RULES = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "communication_data_type", "seq_parallel_communication_data_type", "gradient_allreduce_op",
    "checkpoint.tag_validation", "checkpoint.parallel_write.pipeline_stage", "checkpoint.writer.type",
    "checkpoint.writer.data_parallel", "data_types.keep_in_fp32_modules", "data_types.grad_accum_dtype",
    "data_types.param_dtype", "data_types.buffer_dtype", "torch_autocast.dtype", "optimizer.type", "scheduler.type",
    "activation_checkpointing.number_checkpoints",
}  # fmt: skip


def _kept_wrong(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        key = spot.key
        if key is None or key.keys or _reader(spot) == "model" or spot.is_auto:
            continue
        if not key.kind.holds(spot.value) and ".".join(key.path) not in OWN_RULES:
            yield replace(_wrong_hit(spot), does=_kept(key.wrong), outcome=key.wrong)


def _wrong_hit(spot: Spot) -> Hit:
    assert spot.key is not None
    kind, default = spot.key.kind.described, spot.key.default
    says = f"{shown(spot.value)} is not {kind}"
    meant = _meant(spot.key, spot.value)
    if meant is not None:
        edits = (Edit(what="value", path=spot.path, value=meant),)
        return Hit(path=spot.path, says=says, mend=shown(meant), edits=edits)
    known = f"; the default is {shown(default)}" if isinstance(default, bool | int | float | str) else ""
    return Hit(path=spot.path, says=says, mend=kind + known)


def _meant(key: Key, value: Any) -> Any:
    """The value that a string plainly spells, if the key takes it: "8", "true", "5e8", "CPU"."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    for choice in key.kind.choices:
        if isinstance(choice, str) and choice == text.lower():
            return choice
    try:
        plain = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except (ValueError, RecursionError):
        return None
    if isinstance(plain, float) and plain.is_integer() and key.kind.form == "integer":
        plain = int(plain)
    return plain if not isinstance(plain, list | dict | None) and key.kind.holds(plain) else None


def _coerced(view: View) -> Iterator[Hit]:
    """A value of another kind that the model takes for what it spells."""
    strict = view.context.trainer != "none"
    for spot in view.spots:
        key = spot.key
        if key is None or key.keys or _reader(spot) != "model" or spot.is_auto or key.kind.holds(spot.value):
            continue
        try:
            read = read_as(key.kind, spot.value)
        except Refused:
            continue
        says = f"{shown(spot.value)} is not {key.kind.described}; DeepSpeed reads it as {shown(read)}"
        does = "the trainer compares it as it stands, and may not take it for that" if strict else ""
        yield Hit(
            path=spot.path,
            says=says,
            mend=shown(read),
            does=does,
            severity=WARNING if strict else None,
            edits=(Edit(what="value", path=spot.path, value=read),),
        )


def _not_a_block(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        key = spot.key
        if key is None or not key.keys or isinstance(spot.value, dict):
            continue
        if key.path == ("zero_optimization",) and isinstance(spot.value, bool):
            continue
        if spot.value is None and key.kind.nullable:
            continue
        if spot.is_auto and _reader(spot) == "model":
            continue
        yield Hit(path=spot.path, says=f"{shown(spot.value)} is not an object", mend=f'"{key.name}": {{...}}')


def _old_zero(view: View) -> Iterator[Hit]:
    value = view.root.get("zero_optimization")
    if isinstance(value, bool):
        path = ("zero_optimization",)
        meant = {"stage": int(value)}
        yield Hit(
            path=path,
            says=f"{shown(value)} is the form of before 2020",
            mend=shown(meant),
            edits=(Edit(what="value", path=path, value=meant),),
        )


_PYDANTIC = "runtime/config_utils.py:DeepSpeedConfigModel"

RULES = (
    Rule(
        id="SC009", title='"auto" in a block that is a pydantic model', outcome=IGNORES,
        does='DeepSpeed drops the "auto" and works with its default', find=_auto_in_model, source=_PYDANTIC,
        mend="a value; a trainer that fills it in is named by --trainer",
    ),
    Rule(
        id="SC010", title='"auto" where DeepSpeed takes it for a value', outcome=AT_START,
        does="DeepSpeed keeps the string, and stops where it needs a number", find=_auto_in_get,
        source="runtime/config.py",
        mend="a value; a trainer that fills it in is named by --trainer",
    ),
    Rule(
        id="SC017", title="zero_optimization is true or false", outcome=ACCEPTS, severity=WARNING,
        does="DeepSpeed takes true for stage 1 and false for stage 0", find=_old_zero,
        source="runtime/zero/config.py:read_zero_config_deprecated",
        mend='{"stage": 1}, or another stage',
    ),
    Rule(
        id="SC025", title="a value that a pydantic model refuses", outcome=AT_START,
        does="ValidationError", find=_refused, source=_PYDANTIC,
        mend="a value of the key's kind",
    ),
    Rule(
        id="SC028", title="a block that is not an object", outcome=AT_START,
        does="TypeError or AttributeError", find=_not_a_block, source="runtime/config.py",
        mend="an object: {...}",
    ),
    Rule(
        id="SC029", title="a value of another kind in a block that is read key by key", outcome=CHANGES,
        does="DeepSpeed keeps the value as it stands", find=_kept_wrong,
        source="runtime/config_utils.py:get_scalar_param",
        mend="a value of the key's kind",
    ),
    Rule(
        id="SC031", title="a value of another kind that a pydantic model takes for what it spells", outcome=ACCEPTS,
        severity=NOTE, does="pydantic converts it", find=_coerced, source=_PYDANTIC,
        mend="the value itself",
    ),
)  # fmt: skip
