"""Batch arithmetic: train_batch_size = micro batch x accumulation x ranks, and who multiplies by what."""

from collections.abc import Iterator
from typing import Any

from scaling.ds_config.check.outcome import AT_START, AT_STEP, CHANGES, IGNORES, NOTE, WARNING
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import Undetermined, View

TOTAL, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
_SIZES = (TOTAL, MICRO, STEPS)


def _stated(view: View) -> dict[str, Any]:
    """The sizes that the file gives, as they stand; null is not given."""
    return {name: view.raw(name) for name in _SIZES if view.says(name) and view.raw(name) is not None}


def _numbers(view: View) -> dict[str, float]:
    """The sizes, where each is a number above 0. Raises Undetermined."""
    stated = _stated(view)
    for value in stated.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise Undetermined("batch")
    return stated


def _filled_in(view: View) -> bool:
    return any(view.is_auto(name) and view.is_resolved((name,)) for name in _SIZES)


def _product(view: View) -> Iterator[Hit]:
    sizes = _numbers(view)
    total, micro, steps = (sizes.get(name) for name in _SIZES)
    if total is None or _filled_in(view):
        return
    ranks = view.batch_world_size if view.context.world_size else None
    known = {"micro": micro, "accumulation": steps, "ranks": ranks}
    per = 1.0
    for value in known.values():
        per *= value or 1
    complete = micro is not None and steps is not None and ranks is not None
    wrong = total != per if complete else total % per != 0
    if wrong:
        words = " x ".join(f"{value:g} {name}" for name, value in known.items() if value is not None)
        relation = "" if complete else "a multiple of "
        says = f"{total:g} is not {relation}{words}" + (f" = {per:g}" if complete else "")
        yield Hit(path=(TOTAL,), says=says, mend=_fitting(total, per, complete))


def _fitting(total: float, per: float, complete: bool) -> str:
    if complete:
        return f"{per:g}, or leave {TOTAL} out"
    below, above = total // per * per, (total // per + 1) * per
    return f"{below:g} or {above:g}" if below > 0 else f"{above:g}"


def _implied_world(view: View) -> Iterator[Hit]:
    sizes = _numbers(view)
    if view.context.world_size is None and len(sizes) == 3 and not _filled_in(view):
        total, micro, steps = (sizes[name] for name in _SIZES)
        if total % (micro * steps) == 0:
            ranks = total / (micro * steps)
            says = f"{total:g} = {micro:g} x {steps:g} x {ranks:g}: right on {ranks:g} ranks and on no other number"
            yield Hit(path=(TOTAL,), says=says, mend=f"leave {TOTAL} out, to run on any number of ranks")


def _not_positive(view: View) -> Iterator[Hit]:
    for name, value in _stated(view).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
            yield Hit(path=(name,), says=f"{shown(value)} is not above 0", mend="a whole number of at least 1")


def _absent(view: View) -> Iterator[Hit]:
    """transformers' Trainer and accelerate put the micro batch in where the file has none."""
    stated = _stated(view)
    filled_in = view.context.trainer != "none" and not any(view.says(name) for name in (TOTAL, MICRO))
    if TOTAL not in stated and MICRO not in stated and not filled_in:
        yield Hit(path=(MICRO,), says=f"neither {TOTAL} nor {MICRO} is given", mend=f'"{MICRO}": 1, or more')


def _no_number(view: View) -> Iterator[Hit]:
    for name, value in _stated(view).items():
        if isinstance(value, int | float) or (value == "auto" and view.is_resolved((name,))):
            continue
        digits = isinstance(value, str) and value.strip().isascii() and value.strip().isdigit()
        meant = int(value) if digits and len(value) < 20 else None
        edits = (Edit(what="value", path=(name,), value=meant),) if meant else ()
        hint = "; --trainer hf or accelerate, if one of them fills it in" if value == "auto" else ""
        yield Hit(
            path=(name,),
            says=f"{shown(value)} is not a number",
            edits=edits,
            mend=(shown(meant) if meant else "a whole number of at least 1") + hint,
        )


def _not_whole(view: View) -> Iterator[Hit]:
    for name, value in _stated(view).items():
        if isinstance(value, bool):
            yield Hit(
                path=(name,),
                says=f"{shown(value)} is a switch; DeepSpeed counts with it as {int(value)}",
                mend="a whole number of at least 1",
            )
        elif isinstance(value, float) and value > 0:
            edits = (Edit(what="value", path=(name,), value=int(value)),) if value.is_integer() else ()
            mend = shown(int(value)) if edits else "a whole number of at least 1"
            says = f"{value:g} is written as a fraction" + (", which json keeps and Hjson does not" if edits else "")
            severity = WARNING if edits and view.context.trainer == "none" else None
            yield Hit(path=(name,), says=says, mend=mend, edits=edits, severity=severity)


def _sequence_parallel(view: View) -> Iterator[Hit]:
    name = "sequence_parallel_size"
    shared = view.get(name)
    by_compiler = "autosp" in (view.get("compile.passes") or ())
    if shared and shared > 1 and not view.says("data_parallel_size") and not by_compiler:
        # Not "data_parallel_size" beside it: docs/upstream/sequence_parallel_mesh.py.
        says = f"{shared} without data_parallel_size, which scale/train.py takes for Ulysses and DeepSpeed does not"
        mend = "nothing else for scale/train.py; in a script of your own register Ulysses (mpu)"
        yield Hit(path=(name,), says=says, mend=mend)


def _mesh(view: View) -> Iterator[Hit]:
    """init_device_mesh wants the product of its sizes to be the world."""
    shared, data = view.get("sequence_parallel_size"), view.get("data_parallel_size")
    if shared and data and shared * data != view.world_size:
        yield Hit(
            path=("data_parallel_size",),
            says=f"{data} data x {shared} sequence is not {view.world_size} ranks",
            mend=f"{view.world_size // shared}" if view.world_size % shared == 0 else "sizes whose product it is",
        )


def _clipping_negative(view: View) -> Iterator[Hit]:
    value = view.raw("gradient_clipping")
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        yield Hit(path=("gradient_clipping",), says=f"{shown(value)} is below 0", mend="0 not to clip, or a norm")


def _print_every_0(view: View) -> Iterator[Hit]:
    if view.says("steps_per_print") and view.get("steps_per_print") == 0:
        yield Hit(path=("steps_per_print",), says="every 0 steps", mend="null for never, or a large number")


def _clipping_switch(view: View) -> Iterator[Hit]:
    value = view.raw("gradient_clipping")
    if isinstance(value, bool):
        yield Hit(path=("gradient_clipping",), says=f"{shown(value)} is a switch", mend="1.0" if value else "0.0")


def _data_parallel_alone(view: View) -> Iterator[Hit]:
    if view.says("data_parallel_size") and not view.says("sequence_parallel_size"):
        yield Hit(
            path=("data_parallel_size",),
            says="without sequence_parallel_size",
            mend="remove it: the ranks that are left are data-parallel",
        )


def _clipping_no_number(view: View) -> Iterator[Hit]:
    value = view.raw("gradient_clipping")
    if view.says("gradient_clipping") and not isinstance(value, int | float) and value != "auto":
        meant = None
        if isinstance(value, str):
            try:
                meant = float(value)
            except ValueError:
                meant = None
        fits = meant is not None and 0 <= meant < 1e6
        edits = (Edit(what="value", path=("gradient_clipping",), value=meant),) if fits else ()
        yield Hit(
            path=("gradient_clipping",),
            says=f"{shown(value)} is not a number",
            edits=edits,
            mend=shown(meant) if fits else "0 not to clip, or a norm",
        )


def _clipping_default(view: View) -> Iterator[Hit]:
    if not view.says("gradient_clipping"):
        now = view.get("gradient_clipping")
        yield Hit(
            path=("gradient_clipping",),
            mend='"gradient_clipping": 1.0, or 0.0 not to clip',
            says=f"absent: DeepSpeed {view.context.deepspeed_version} clips at {now:g}; the default was 0, not to "
            "clip, before 0.19.3",
        )


_BATCH = "runtime/config.py:DeepSpeedConfig._batch_assertion"

RULES = (
    Rule(
        id="SC001", title="train_batch_size is not micro batch x accumulation x ranks", outcome=AT_START,
        does="AssertionError: Check batch related parameters", find=_product, source=_BATCH,
        mend="leave train_batch_size out, or a multiple of micro batch x accumulation x ranks",
    ),
    Rule(
        id="SC002", title="a batch size or accumulation that is not above 0", outcome=AT_START,
        does="AssertionError: ... has to be greater than 0", find=_not_positive, source=_BATCH,
        mend="whole numbers of at least 1",
    ),
    Rule(
        id="SC003", title="neither train_batch_size nor train_micro_batch_size_per_gpu", outcome=AT_START,
        does="AssertionError: Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided",
        find=_absent, source="runtime/config.py:DeepSpeedConfig._set_batch_related_parameters",
        mend='"train_micro_batch_size_per_gpu": 1, or more',
    ),
    Rule(
        id="SC004", title="a batch size that is not a number", outcome=AT_START,
        does="TypeError: it is compared with 0", find=_no_number, source=_BATCH,
        mend="a whole number; a trainer that fills it in is named by --trainer",
    ),
    Rule(
        id="SC005", title="a batch size that is a fraction, or true", outcome=CHANGES,
        does="DeepSpeed counts with it as it stands; an accumulation of 2.5 steps never where it should",
        find=_not_whole, source=_BATCH,
        mend="a whole number",
    ),
    Rule(
        id="SC011", title="gradient_clipping below 0", outcome=IGNORES,
        does="DeepSpeed clips only where it is above 0", find=_clipping_negative,
        source="runtime/engine.py:DeepSpeedEngine._take_model_step",
        mend="0 not to clip, or a norm",
    ),
    Rule(
        id="SC013", title="gradient_clipping is not given", outcome=CHANGES, severity=NOTE,
        does="its default became 1.0 in 0.19.3", find=_clipping_default,
        source="runtime/constants.py:GRADIENT_CLIPPING_DEFAULT",
        mend='"gradient_clipping": 1.0, or 0.0 not to clip',
    ),
    Rule(
        id="SC016", title="sequence_parallel_size without data_parallel_size", outcome=CHANGES,
        severity=WARNING,  # right where the script registers Ulysses, as scale/train.py does
        does="DeepSpeed divides the ranks by it in the batch arithmetic, and shards no sequence",
        find=_sequence_parallel, source="__init__.py:initialize; runtime/config.py:DeepSpeedConfig.__init__",
        mend="Ulysses registered in the script (mpu), as scale/train.py does it",
    ),
    Rule(
        id="SC032", title="gradient_clipping that is not a number", outcome=AT_STEP,
        does="TypeError: it is compared with 0 when the first step is taken", find=_clipping_no_number,
        source="runtime/engine.py:DeepSpeedEngine._take_model_step",
        mend="0 not to clip, or a norm",
    ),
    Rule(
        id="SC033", title="all three batch sizes are given, and no number of ranks", outcome=AT_START, severity=NOTE,
        does="AssertionError on any other number of ranks", find=_implied_world, source=_BATCH,
        mend="leave train_batch_size out, to run on any number of ranks",
    ),
    Rule(
        id="SP014", title="data_parallel_size x sequence_parallel_size is not the number of ranks", outcome=AT_START,
        does="RuntimeError: the device mesh does not fit", find=_mesh, source="comm/comm.py:initialize_mesh_device",
        mend="sizes whose product it is",
    ),
    Rule(
        id="SC049", title="gradient_clipping is true or false", outcome=CHANGES,
        does="DeepSpeed counts with it: true clips at 1, false does not clip", find=_clipping_switch,
        source="runtime/config.py:get_gradient_clipping", mend="1.0, or 0.0",
    ),
    Rule(
        id="SP031", title="data_parallel_size without sequence_parallel_size", outcome=IGNORES, severity=WARNING,
        does="DeepSpeed reads the two together or not at all", find=_data_parallel_alone,
        source="__init__.py:initialize",
        mend="remove it",
    ),
    Rule(
        id="SC050", title="steps_per_print is 0", outcome=AT_STEP,
        does="ZeroDivisionError: the step is taken modulo it", find=_print_every_0,
        source="runtime/engine.py:DeepSpeedEngine._take_model_step", mend="null for never, or a large number",
    ),
)  # fmt: skip
