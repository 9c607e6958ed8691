"""Keys that DeepSpeed does not know, has removed, or calls otherwise by now."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher, get_close_matches

from scaling.ds_config.check.outcome import ACCEPTS, AT_START, IGNORES, NOTE, WARNING
from scaling.ds_config.check.reader import spelt
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.schema import REMOVED, Key, children, named
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.version import version
from scaling.ds_config.check.view import Spot, View

# Keys that other readers of the same file take, so that they are no mistake of the user's.
_OTHERS = {
    "zero3_init_flag": "accelerate", "msamp": "accelerate", "inference": "transformers", "fp8": "accelerate",
    "compile_config": "accelerate", "train_iters": "Megatron-DeepSpeed", "model_parallel_size": "Megatron-DeepSpeed",
}  # fmt: skip

# Beyond this likeness a single candidate is taken to be what was meant; "zero_optimisation" has 0.94.
_SURE = 0.85


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


# Beyond this likeness a single candidate is taken to be what was meant; "zero_optimisation" has 0.94.
_SURE = 0.85


def _unknown(view: View, reader: str | None) -> Iterator[Spot]:
    """Spots that DeepSpeed does not read, in blocks that are read so; None is the top."""
    for spot in view.spots:
        how = spot.block.keys if spot.block else None
        if spot.key is None and how == reader and spot.path not in REMOVED:
            yield spot


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
    for spot in view.spots:
        key, name = spot.key, spot.path[-1]
        twin = (*spot.path[:-1], key.name) if key and key.alias == name else None
        if key and twin and view.document.node(twin):
            says = f'"{name}" beside "{key.name}", which is the same key'
            yield Hit(path=spot.path, says=says, mend=f'"{key.name}" alone')


def _unknown_in_get(view: View) -> Iterator[Hit]:
    for spot in _unknown(view, "get"):
        hit = _unknown_hit(view, spot)
        remark = _is_remark(str(spot.path[-1]))
        yield replace(hit, severity=NOTE) if remark else hit


def _is_remark(name: str) -> bool:
    """A note that people keep in JSON, which has no comments: "_comment", "//"."""
    return name[:1] in ("_", "#", "/", "$") or "comment" in name.lower() or name.lower() in ("description", "notes")


def _unknown_hit(view: View, spot: Spot) -> Hit:
    """What is unknown, and the best guess at what was meant."""
    name, block = str(spot.path[-1]), spot.block.path if spot.block else ()
    siblings = children(block)
    where = f'in "{".".join(block)}"' if block else "at the top level"
    unknown = Hit(path=spot.path, says=f"{shown(name)} {where} is no key of DeepSpeed's", mend="remove it")
    young = siblings.get(name)
    if young:
        says = f'"{name}" {where} is new in DeepSpeed {young.since}'
        return replace(unknown, says=says, mend=f"remove it, or use DeepSpeed {young.since} or newer")
    if block == () and name.lower() in _MEANT:
        return replace(unknown, mend=f"{_MEANT[name.lower()]} is where DeepSpeed looks")
    renamed = _RENAMED.get((*block, name))
    if renamed:
        edits = () if view.says(".".join((*block, renamed))) else (Edit(what="key", path=spot.path, value=renamed),)
        return replace(unknown, mend=f'"{renamed}", which replaced it', edits=edits, severity=WARNING)
    close = _likely(name, [key for key, row in siblings.items() if row.exists_at(view.release)])
    if close:
        words = " or ".join(f'"{key}"' for key in close)
        return replace(unknown, mend=f"did you mean {words}?", edits=_rename(view, spot, close))
    if block in (("optimizer",), ("scheduler",)):
        return replace(unknown, mend=f'"params": {{"{name}": ...}} inside it')
    homes = [
        f'in "{".".join(key.path[:-1])}"' if len(key.path) > 1 else "at the top level"
        for key in named(name)
        if key.path[0] in _HOMES and key.path[:-1] != block
    ]
    if homes:
        return replace(unknown, mend="it stands " + " or ".join(homes[:3]))
    return unknown if block else replace(unknown, severity=WARNING)


def _likely(name: str, known: list[str]) -> list[str]:
    """Keys that begin as `name` does, else those that are spelt nearly the same."""
    word = name.lower()[:80]
    begun = [key for key in known if len(word) >= 4 and (key.startswith(word) or word.startswith(key))]
    return begun or get_close_matches(word, known, n=3, cutoff=0.7)


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
    """Only for those whose value DeepSpeed carries over; cpu_offload_use_pin_memory is not. An "auto" is dropped."""
    for spot in view.spots:
        key = spot.key
        if key and key.instead and "." not in key.instead:
            new = ".".join((*map(str, spot.path[:-1]), key.instead))
            if view.says(new) and "auto" not in (spot.value, view.raw(new)):
                says = f'both "{key.name}" and "{key.instead}", which replaced it'
                yield Hit(path=spot.path, says=says, mend=f'"{key.instead}" alone')


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
        id="SC030", title="a deprecated key", outcome=ACCEPTS, severity=WARNING,
        does="DeepSpeed warns, and takes it for the key that replaced it", find=_deprecated, source=_PYDANTIC,
        mend="the key that replaced it",
    ),
    Rule(
        id="SZ012", title="a deprecated key beside the one that replaced it", outcome=AT_START,
        does="AssertionError: Cannot provide deprecated parameter and replacing parameter together",
        find=_deprecated_and_new, source=_PYDANTIC,
        mend="the new one alone",
    ),
)  # fmt: skip
