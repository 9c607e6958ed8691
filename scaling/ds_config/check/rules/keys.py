"""What the schema alone decides: unknown and removed keys, "auto", values of another kind; and the file's syntax."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from scaling.ds_config.check.outcome import (
    ACCEPTS,
    AT_START,
    CHANGES,
    ERROR,
    IGNORES,
    NOTE,
    WARNING,
    Outcome,
)  # fmt: skip
from scaling.ds_config.check.reader import Quirk, spelt
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.schema import REMOVED, UNSET, Key, children, named
from scaling.ds_config.check.trainers import RESOLVED
from scaling.ds_config.check.values import Refused, read_as
from scaling.ds_config.check.version import version
from scaling.ds_config.check.view import Spot, View

# Keys that other readers of the same file take, so that they are no mistake of the user's.
_OTHERS = {
    "zero3_init_flag": "accelerate", "msamp": "accelerate", "inference": "transformers", "fp8": "accelerate",
    "compile_config": "accelerate", "train_iters": "Megatron-DeepSpeed", "model_parallel_size": "Megatron-DeepSpeed",
}  # fmt: skip

# Beyond this likeness a single candidate is taken to be what was meant; "zero_optimisation" has 0.94.
_SURE = 0.85


def shown(value: Any) -> str:
    """A value as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(view: View, reader: str | None) -> Iterator[Spot]:
    """Spots that DeepSpeed does not read, in blocks that are read so; None is the top."""
    for spot in view.spots:
        how = spot.block.keys if spot.block else None
        if spot.key is None and how == reader and spot.path not in REMOVED:
            yield spot


def _likely(name: str, known: list[str]) -> list[str]:
    """Keys that begin as `name` does, else those that are spelt nearly the same."""
    word = name.lower()[:80]
    begun = [key for key in known if len(word) >= 4 and (key.startswith(word) or word.startswith(key))]
    return begun or get_close_matches(word, known, n=3, cutoff=0.7)


def _unknown_hit(view: View, spot: Spot) -> Hit:
    name = str(spot.path[-1])
    block = spot.block.path if spot.block else ()
    siblings = children(block)
    where = f'in "{".".join(block)}"' if block else "at the top level"
    young = siblings.get(name)
    if young:
        says = f'"{name}" {where} is new in DeepSpeed {young.since}'
        return Hit(path=spot.path, says=says, mend=f"remove it, or use DeepSpeed {young.since} or newer")
    says = f"{shown(name)} {where} is no key of DeepSpeed's"
    close = _likely(name, [key for key, row in siblings.items() if row.exists_at(view.release)])
    if block == () and name.lower() in _MEANT:
        return Hit(path=spot.path, says=says, mend=f"{_MEANT[name.lower()]} is where DeepSpeed looks")
    if close:
        words = " or ".join(f'"{key}"' for key in close)
        return Hit(path=spot.path, says=says, mend=f"did you mean {words}?", edits=_rename(view, spot, close))
    elsewhere = [key for key in named(name) if key.path[0] in _HOMES and key.path[:-1] != block]
    homes = [f'in "{".".join(key.path[:-1])}"' if len(key.path) > 1 else "at the top level" for key in elsewhere]
    if (*block, name) in _RENAMED:
        meant = _RENAMED[(*block, name)]
        edits = (Edit(what="key", path=spot.path, value=meant),) if not view.says(".".join((*block, meant))) else ()
        return Hit(path=spot.path, says=says, mend=f'"{meant}", its name since', edits=edits, severity=WARNING)
    if block in (("optimizer",), ("scheduler",)):
        return Hit(path=spot.path, says=says, mend=f'"params": {{"{name}": ...}} inside it')
    if homes:
        return Hit(path=spot.path, says=says, mend="it stands " + " or ".join(homes[:3]))
    return Hit(path=spot.path, says=says, mend="remove it", severity=None if block else WARNING)


# What people write at the top level in other programs' words, and where DeepSpeed takes it from.
_MEANT = {
    word: place
    for place, words in {
        "optimizer.params.lr": ("lr", "learning_rate"),
        "optimizer.params": ("weight_decay", "betas", "eps", "adam_beta1", "adam_beta2", "adam_epsilon"),
        "gradient_clipping": ("max_grad_norm", "clip_grad", "grad_clip", "max_norm", "gradient_clip_val", "grad_norm"),
        "scheduler.params.warmup_num_steps": ("warmup_steps", "warmup_num_steps", "num_warmup_steps", "warmup_ratio"),
        "bf16.enabled or fp16.enabled": ("mixed_precision", "precision", "dtype", "torch_dtype", "half", "use_bf16"),
        "train_micro_batch_size_per_gpu": ("batch_size", "micro_batch_size", "per_device_train_batch_size",
                                           "micro_batch_size_per_gpu", "train_micro_batch_size"),
        "train_batch_size": ("global_batch_size",),
        "gradient_accumulation_steps": ("accumulate_grad_batches", "accumulation_steps", "grad_accum"),
        "zero_optimization.stage": ("zero_stage", "stage", "zero"),
        "zero_optimization.offload_optimizer": ("offload", "cpu_offload"),
        "tensor_parallel.autotp_size": ("tp", "tp_size", "tensor_parallel_size", "tensor_model_parallel_size"),
        "the script's PipelineModule": ("pp", "pp_size", "pipeline_parallel_size", "pipeline_model_parallel_size",
                                        "pipeline_stages"),
        "gradient_checkpointing_enable() in the script": ("gradient_checkpointing", "activation_checkpoint"),
    }.items()
    for word in words
}  # fmt: skip


# Blocks whose keys people put elsewhere; "seed" or "type" at the top level is somebody else's.
_HOMES = {"zero_optimization", "fp16", "bf16", "optimizer", "scheduler", "data_types", "activation_checkpointing"}

# Keys that DeepSpeed read under another name before 0.16.4.
_RENAMED: dict[tuple[str, ...], str] = {("aio", "thread_count"): "intra_op_parallelism"}


def _rename(view: View, spot: Spot, close: list[str]) -> tuple[Edit, ...]:
    """A mend, where one name is nearly the same, does not stand there yet, and takes the value."""
    name = str(spot.path[-1])
    siblings = children(spot.block.path if spot.block else ())
    meant = close[0]
    block = view.document.node(spot.path[:-1])
    free = block is not None and meant not in block.value
    sure = SequenceMatcher(None, name.lower(), meant).ratio() >= _SURE
    if len(close) > 1:
        sure = sure and SequenceMatcher(None, name.lower(), close[1]).ratio() < _SURE
    fits = siblings[meant].kind.holds(spot.value) or view.is_resolved((*spot.path[:-1], meant))
    return (Edit(what="key", path=spot.path, value=meant),) if free and sure and fits else ()


def _is_remark(name: str) -> bool:
    """A note that people keep in JSON, which has no comments: "_comment", "//"."""
    return name[:1] in ("_", "#", "/", "$") or "comment" in name.lower() or name.lower() in ("description", "notes")


def _unknown_top(view: View) -> Iterator[Hit]:
    for spot in _unknown(view, None):
        name = str(spot.path[-1])
        if _is_remark(name):
            yield Hit(path=spot.path, says=f"{shown(name)} is a remark", mend="nothing", severity=NOTE)
        elif name in _OTHERS:
            says = f'"{name}" is read by {_OTHERS[name]}, not by DeepSpeed'
            yield Hit(path=spot.path, says=says, mend="nothing, if that is who reads this file", severity=WARNING)
        else:
            yield _unknown_hit(view, spot)


def _unknown_in_model(view: View) -> Iterator[Hit]:
    for spot in _unknown(view, "model"):
        yield _unknown_hit(view, spot)


def _unknown_in_get(view: View) -> Iterator[Hit]:
    for spot in _unknown(view, "get"):
        hit = _unknown_hit(view, spot)
        remark = _is_remark(str(spot.path[-1]))
        yield replace(hit, severity=NOTE) if remark else hit


def _reader(spot: Spot) -> str:
    return spot.block.keys if spot.block and spot.block.keys else "get"


def _trainer_hint(view: View, spot: Spot) -> str:
    trainer = "hf" if view.context.trainer == "none" else view.context.trainer
    path = ".".join(map(str, spot.path))
    by = next((name for name in (trainer, "accelerate", "hf") if path in RESOLVED[name]), "")
    return f"a value; or check with --trainer {by}, if that fills it in" if by else "a value"


def _auto_in_model(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        if spot.key and spot.is_auto and _reader(spot) == "model" and not view.is_resolved(spot.path):
            yield _auto_hit(view, spot, f"DeepSpeed works with its default, {_default(view, spot.key)}", IGNORES)


def _default(view: View, key: Key) -> str:
    default = key.default_at(view.release)
    return "none" if default is UNSET else shown(default)


def _auto_hit(view: View, spot: Spot, does: str, outcome: Outcome) -> Hit:
    if view.context.trainer != "none":
        does, outcome = 'accelerate refuses an "auto" that it does not know (ValueError)', AT_START
    says = f'"auto" for {spelt(spot.path)}, which nobody fills in'
    return Hit(path=spot.path, says=says, mend=_trainer_hint(view, spot), does=does, outcome=outcome)


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


def _kept(outcome: Outcome) -> str:
    """What becomes of a wrong value in a block that is read with .get."""
    return {
        AT_START: "DeepSpeed uses it as it stands, and stops (TypeError or its like)",
        Outcome.AT_STEP: "DeepSpeed keeps it, and stops at the first step (TypeError)",
        Outcome.LATER: "DeepSpeed keeps it, and stops where it is first used",
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
            hit = _wrong_hit(spot)
            yield Hit(
                path=hit.path, says=hit.says, mend=hit.mend, edits=hit.edits, does=_kept(key.wrong), outcome=key.wrong
            )


def _wrong_hit(spot: Spot) -> Hit:
    assert spot.key is not None
    says = f"{shown(spot.value)} is not {spot.key.kind.described}"
    meant = _meant(spot.key, spot.value)
    edits = () if meant is None else (Edit(what="value", path=spot.path, value=meant),)
    default = spot.key.default if isinstance(spot.key.default, bool | int | float | str) else None
    mend = (
        shown(meant)
        if meant is not None
        else f"{spot.key.kind.described}" + (f"; the default is {shown(default)}" if default is not None else "")
    )
    return Hit(path=spot.path, says=says, mend=mend, edits=edits)


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


def _removed(view: View, depth: int) -> Iterator[Hit]:
    for path, row in REMOVED.items():
        if len(path) != depth or view.release < version(row.release) or not view.says(".".join(path)):
            continue
        value = view.raw(".".join(path))
        off = not value or (isinstance(value, dict) and value.get("enabled", True) is False)
        edits = (Edit(what="remove", path=path),) if off else ()
        says = f'"{path[-1]}" was removed in DeepSpeed {row.release}' + (", even where it is off" if off else "")
        yield Hit(path=path, says=says, mend=row.mend, edits=edits)


def _deprecated(view: View) -> Iterator[Hit]:
    for spot in view.spots:
        key = spot.key
        if key is None or not key.instead or spot.value is None:
            continue
        old, new = spelt(spot.path), ".".join((*map(str, spot.path[:-1]), key.instead))
        if not view.says(new):
            edits = _renewed(key, spot) if isinstance(spot.value, bool) else ()  # another value is SC031's first
            mend = f'"{key.instead}"' + (': {"device": "cpu"}' if len(edits) > 1 else "")
            yield Hit(path=spot.path, says=f"{old} is deprecated", mend=mend, edits=edits)


def _renewed(key: Key, spot: Spot) -> tuple[Edit, ...]:
    """The deprecated switch in the words of what replaced it; none where that has no such words."""
    rename = Edit(what="key", path=spot.path, value=key.instead)
    if key.instead in ("offload_param", "offload_optimizer"):
        device = {"device": "cpu" if spot.value else "none"}
        return Edit(what="value", path=spot.path, value=device), rename
    return () if "." in key.instead else (rename,)


def _deprecated_and_new(view: View) -> Iterator[Hit]:
    """Only for those whose value DeepSpeed carries over; cpu_offload_use_pin_memory is not."""
    for spot in view.spots:
        key = spot.key
        if key and key.instead and "." not in key.instead:
            new = ".".join((*map(str, spot.path[:-1]), key.instead))
            if view.says(new):
                says = f'both "{key.name}" and "{key.instead}", which replaced it'
                yield Hit(path=spot.path, says=says, mend=f'"{key.instead}" alone')


def _quirks(name: str, hit: Callable[[View, Quirk], Hit]) -> Callable[[View], Iterator[Hit]]:
    def find(view: View) -> Iterator[Hit]:
        for quirk in view.document.quirks:
            if quirk.name == name:
                yield hit(view, quirk)

    return find


def _repeated(view: View, quirk: Quirk) -> Hit:
    says = f"{shown(quirk.path[-1])} stands twice in one object"
    return Hit(path=quirk.path, says=says, mend="one of the two", offset=quirk.start)


def _not_a_number(view: View, quirk: Quirk) -> Hit:
    text = view.document.text[quirk.start : quirk.end]
    return Hit(path=quirk.path, says=f"{text} is no JSON number", mend="a finite number", offset=quirk.start)


def _beyond_json(view: View) -> Iterator[Hit]:
    trainer = view.context.trainer != "none"
    for name, mend in (("comment", "the same without comments"), ("trailing comma", "the same without it")):
        found = [quirk for quirk in view.document.quirks if quirk.name == name]
        if found:
            edits = (Edit(what="commas"),) if name == "trailing comma" else ()
            yield Hit(
                path=found[0].path,
                offset=found[0].start,
                mend=mend,
                edits=edits,
                says=f"a {name}, which JSON does not have" + (f" ({len(found)} in all)" if len(found) > 1 else ""),
                severity=ERROR if trainer else WARNING,
                outcome=AT_START if trainer else ACCEPTS,
                does="transformers and accelerate read with json, which refuses it" if trainer else "",
            )


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
        id="SC006", title="a key at the top level that DeepSpeed does not know", outcome=IGNORES,
        does="DeepSpeed asks for the keys it knows and looks at no others", find=_unknown_top,
        source="runtime/config.py:DeepSpeedConfig._initialize_params",
        mend="the key that was meant; the message names those that are near, or where it stands",
    ),
    Rule(
        id="SC007", title="an unknown key in a block that is a pydantic model", outcome=AT_START,
        does="ValidationError: Extra inputs are not permitted", find=_unknown_in_model, source=_PYDANTIC,
        mend="the key that was meant, or nothing",
    ),
    Rule(
        id="SC008", title="an unknown key in a block that is read key by key", outcome=IGNORES,
        does="DeepSpeed asks the block for the keys it knows and looks at no others", find=_unknown_in_get,
        source="runtime/config_utils.py:get_scalar_param",
        mend="the key that was meant, or nothing",
    ),
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
        id="SC012", title="a key that stands twice in one object", outcome=AT_START,
        does="ValueError: Duplicate keys in DeepSpeed config; json, in other programs, keeps the last",
        find=_quirks("repeated key", _repeated),
        source="runtime/config_utils.py:dict_raise_error_on_duplicate_keys",
        mend="one of the two",
    ),
    Rule(
        id="SC014", title="a key at the top level that was removed", outcome=AT_START,
        does="DeepSpeedConfigError, whatever the value", since="0.19.7", find=lambda view: _removed(view, 1),
        source="runtime/config.py:_reject_removed_config_keys",
        mend="nothing: remove it, or follow the message",
    ),
    Rule(
        id="SC015", title="a key of zero_optimization that was removed", outcome=AT_START,
        does="DeepSpeedConfigError, whatever the value", since="0.19.7", find=lambda view: _removed(view, 2),
        source="runtime/config.py:_reject_removed_config_keys",
        mend="nothing: remove it, or follow the message",
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
        id="SC026", title="comments or trailing commas", outcome=ACCEPTS, severity=WARNING,
        does="DeepSpeed reads the file as Hjson, which allows them; json, in other programs, does not",
        find=_beyond_json, source="runtime/config.py:DeepSpeedConfig.__init__",
        mend="plain JSON",
    ),
    Rule(
        id="SC027", title="NaN, Infinity, or a number too large for a float", outcome=AT_START,
        does="Hjson takes it for a string that ends with its line, or fails",
        find=_quirks("not a number", _not_a_number),
        source="runtime/config.py:DeepSpeedConfig.__init__",
        mend="a finite number",
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
        id="SC030", title="a deprecated key", outcome=ACCEPTS, severity=WARNING,
        does="DeepSpeed warns, and takes it for the key that replaced it", find=_deprecated, source=_PYDANTIC,
        mend="the key that replaced it",
    ),
    Rule(
        id="SC031", title="a value of another kind that a pydantic model takes for what it spells", outcome=ACCEPTS,
        severity=NOTE, does="pydantic converts it", find=_coerced, source=_PYDANTIC,
        mend="the value itself",
    ),
    Rule(
        id="SZ012", title="a deprecated key beside the one that replaced it", outcome=AT_START,
        does="AssertionError: Cannot provide deprecated parameter and replacing parameter together",
        find=_deprecated_and_new, source=_PYDANTIC,
        mend="the new one alone",
    ),
)  # fmt: skip
