"""Tensor, sequence and pipeline parallelism, experts, compilation, checkpoints and activation checkpointing."""

from collections.abc import Iterator

from scaling.ds_config.check.outcome import ACCEPTS, AT_START, CHANGES, IGNORES, LATER, NOTE, WARNING
from scaling.ds_config.check.rule import Edit, Hit, Rule
from scaling.ds_config.check.rules.batch import MICRO, STEPS, TOTAL
from scaling.ds_config.check.values import shown
from scaling.ds_config.check.view import View
from scaling.parallelism import KINDS, not_at_stage, unsplittable
from scaling.plan.layouts import Layout

_SIZE = ("tensor_parallel", "autotp_size")


def _batch_counts_tensor_ranks(view: View) -> Iterator[Hit]:
    size = view.get("tensor_parallel.autotp_size")
    total = view.raw(TOTAL)
    if size > 1 and isinstance(total, int | float) and total > 0:
        complete = view.says(MICRO) and view.says(STEPS)
        yield Hit(
            path=(TOTAL,),
            says=f"{total:g} counts each sample {size} times, once a tensor-parallel rank",
            mend=f"leave {TOTAL} out, and give {MICRO} and {STEPS}",
            severity=WARNING if complete else None,
            does="the run has that many samples less in a step, and only the figure is wrong" if complete else "",
        )


def _dtype(view: View) -> Iterator[Hit]:
    if view.says("tensor_parallel.dtype") and view.raw("tensor_parallel.dtype") != "auto":
        path = ("tensor_parallel", "dtype")
        yield Hit(
            path=path,
            says="a width, which the model wants as a torch.dtype",
            mend="remove it",
            edits=(Edit(what="remove", path=path),),
        )


def _sizes_differ(view: View) -> Iterator[Hit]:
    size, inner = view.get("tensor_parallel.autotp_size"), view.get("tensor_parallel.tensor_parallel.tp_size")
    if size > 1 and inner not in (1, size):
        yield Hit(path=_SIZE, says=f"{size}, where tp_size is {inner}", mend="autotp_size alone")


def _only_tp_size(view: View) -> Iterator[Hit]:
    size, inner = view.get("tensor_parallel.autotp_size"), view.get("tensor_parallel.tensor_parallel.tp_size")
    if size <= 1 and inner > 1:
        yield Hit(
            path=view.at("tensor_parallel.tensor_parallel"),
            says=f"tp_size {inner} without autotp_size",
            mend=f'"autotp_size": {inner}',
        )


def _does_not_divide(view: View) -> Iterator[Hit]:
    size = view.get("tensor_parallel.autotp_size")
    if size > 1 and view.world_size % size:
        fitting = [str(n) for n in range(2, view.world_size + 1) if view.world_size % n == 0]
        yield Hit(
            path=_SIZE, says=f"{size} does not divide {view.world_size} ranks", mend=", ".join(fitting[:6]) or "0"
        )


def _more_than_heads(view: View) -> Iterator[Hit]:
    size, model = view.get("tensor_parallel.autotp_size"), view.context.model
    if model and size > model.num_key_value_heads:
        yield Hit(
            path=_SIZE,
            says=f"{size} ranks for the {model.num_key_value_heads} key-value heads of {model.name}",
            mend=f"at most {model.num_key_value_heads}",
        )


def _tensor_at_3(view: View) -> Iterator[Hit]:
    if view.get("tensor_parallel.autotp_size") > 1 and view.stage == 3:
        yield Hit(path=_SIZE, says="AutoTP at stage 3", mend="stage 1 or 2, or DeepSpeed 0.19.4 or newer")


def _heads_do_not_divide(view: View) -> Iterator[Hit]:
    size, model = view.get("sequence_parallel_size") or 1, view.context.model
    if model and model.num_attention_heads % size:
        yield Hit(
            path=("sequence_parallel_size",),
            says=f"{size} does not divide the {model.num_attention_heads} heads of {model.name}",
            mend=f"a divisor of {model.num_attention_heads}",
        )


def _contiguous(view: View) -> Iterator[Hit]:
    if not view.get("activation_checkpointing.contiguous_memory_optimization"):
        return
    path = ("activation_checkpointing", "contiguous_memory_optimization")
    if not view.get("activation_checkpointing.partition_activations"):
        yield Hit(path=path, says="true without partition_activations", mend='"partition_activations": true, or false')
    elif view.get("activation_checkpointing.number_checkpoints") is None:
        yield Hit(
            path=path,
            says="true without number_checkpoints",
            mend='"number_checkpoints": the number of layers, unless the script passes num_checkpoints',
        )


def _inert(view: View) -> Iterator[Hit]:
    block = view.root.get("activation_checkpointing")
    if isinstance(block, dict) and any(value is True for value in block.values()):
        yield Hit(
            path=("activation_checkpointing",),
            says="a block that no plain module obeys",
            mend="switch checkpointing on in the model: gradient_checkpointing_enable()",
        )


def _overlap_in_pipeline(view: View) -> Iterator[Hit]:
    if _is_pipeline(view) and view.stage >= 2:
        yield Hit(
            path=("zero_optimization", "stage"),
            says=f"stage {view.stage} beside a pipeline block",
            mend="stage 0 or 1, if the model is a PipelineModule",
        )


_UNUSED = {"stages": "auto", "partition": "best", "seed_layers": False}


def _unused_in_pipeline(view: View) -> Iterator[Hit]:
    block = view.root.get("pipeline")
    for name, default in _UNUSED.items():
        if isinstance(block, dict) and name in block and block[name] != default:
            mend, user = "an argument of PipelineModule: num_stages, partition_method, seed_layers", "nothing uses"
            if name == "stages":
                mend = "nothing else for scale/train.py; in a script of your own num_stages of PipelineModule"
                user = "scale/train.py uses and DeepSpeed does not"
            yield Hit(path=("pipeline", name), says=f"{shown(block[name])}, which {user}", mend=mend)


def _sequence_below_3(view: View) -> Iterator[Hit]:
    size = view.get("sequence_parallel_size") or 1
    if size > 1 and view.says("data_parallel_size") and view.stage in (1, 2):
        yield Hit(path=("sequence_parallel_size",), says=f"{size} at stage {view.stage}", mend="stage 3")


def _is_pipeline(view: View) -> bool:
    block = view.root.get("pipeline")
    stages = block.get("stages") if isinstance(block, dict) else None
    return isinstance(stages, int) and not isinstance(stages, bool) and stages > 1


def _tag_validation(view: View) -> Iterator[Hit]:
    value = view.raw("checkpoint.tag_validation")
    fits = isinstance(value, str) and value.upper() in ("WARN", "IGNORE", "FAIL")
    if view.says("checkpoint.tag_validation") and not fits:
        yield Hit(
            path=("checkpoint", "tag_validation"),
            says=f"{shown(value)} is none of WARN, IGNORE, FAIL",
            mend='"WARN", "IGNORE" or "FAIL"',
        )


def _checkpoint_words(view: View) -> Iterator[Hit]:
    for name, known in (
        ("checkpoint.writer.type", ("MOCK", "PYTHON", "FAST")),
        ("checkpoint.writer.data_parallel", ("REPLICA", "SOCKET", "MACHINE")),
    ):
        value = view.raw(name)
        if view.says(name) and value is not None and not (isinstance(value, str) and value.upper() in known):
            yield Hit(
                path=tuple(name.split(".")), says=f"{shown(value)} is none of {', '.join(known)}", mend=f'"{known[-1]}"'
            )
    name = "checkpoint.parallel_write.pipeline_stage"
    value = view.raw(name)
    if view.says(name) and value not in (True, False):
        yield Hit(path=tuple(name.split(".")), says=f"{shown(value)} is neither true nor false", mend="true or false")


def _compiled(view: View) -> Iterator[Hit]:
    """The passes that compile/init_z3.py refuses together, before it touches the engine."""
    if not view.get("compile.deepcompile") or view.stage != 3:
        return
    activation, states, parameters = (
        view.get(f"compile.{name}") for name in ("offload_activation", "offload_opt_states", "offload_parameters")
    )
    if activation and (states or parameters):
        yield Hit(
            path=("compile", "offload_activation"), says="true with another DeepCompile offload", mend="one of them"
        )
    if states and view.offload("optimizer") != "none":
        yield Hit(
            path=("compile", "offload_opt_states"), says="true with ZeRO's offload_optimizer", mend="one of the two"
        )


def _compile_off(view: View) -> Iterator[Hit]:
    block = view.root.get("compile")
    if isinstance(block, dict) and "deepcompile" not in block and any(value is True for value in block.values()):
        yield Hit(
            path=("compile",), says='settings without "deepcompile"', mend='"deepcompile": true, or remove the block'
        )


def _experts_at_3(view: View) -> Iterator[Hit]:
    if not view.get("expert_parallel.enabled") or view.stage != 3:
        return
    inner = view.get("expert_parallel.expert_tensor_parallel_size")
    for path, wrong in (
        (("zero_optimization", "zero_quantized_gradients"), view.zero("zero_quantized_gradients")),
        (("zero_optimization", "zero_hpz_partition_size"), view.zero("zero_hpz_partition_size") > 1),
        (("expert_parallel", "expert_tensor_parallel_size"), inner != 1),
    ):
        if wrong:
            yield Hit(path=path, says=f"{shown(view.raw('.'.join(path)))} with AutoEP at stage 3", mend="stage 1 or 2")


def _folded_experts(view: View) -> Iterator[Hit]:
    """AutoEP beside AutoTP, and what module_inject/auto_ep_folding.py refuses of it."""
    if not view.get("expert_parallel.enabled"):
        return
    inner = view.get("expert_parallel.expert_tensor_parallel_size")
    if inner != 1:
        yield Hit(path=("expert_parallel", "expert_tensor_parallel_size"), says=str(inner), mend="1")
    ours, theirs = view.get("tensor_parallel.preset_model"), view.get("expert_parallel.preset_model")
    if ours and theirs and ours != theirs:
        path = ("expert_parallel", "preset_model")
        yield Hit(path=path, says=f"{shown(theirs)}, where AutoTP's is {shown(ours)}", mend="the same in both")
    if view.get("tensor_parallel.autotp_size") <= 1:
        return
    for name, wrong in (
        ("compile.deepcompile", view.get("compile.deepcompile")),
        ("expert_parallel.autoep_size", view.get("expert_parallel.autoep_size") == 1),
        ("use_data_before_expert_parallelism", view.get("use_data_before_expert_parallelism")),
        ("zero_optimization.offload_optimizer", view.offload("optimizer") != "none"),
        ("zero_optimization.offload_param", view.offload("param") != "none"),
    ):
        if wrong:
            yield Hit(
                path=tuple(name.split(".")),
                says="with AutoEP and AutoTP together",
                mend="one of the two, or without it",
            )


def _experts_do_not_divide(view: View) -> Iterator[Hit]:
    if view.get("expert_parallel.enabled"):
        size, inner = view.get("expert_parallel.autoep_size"), view.get("expert_parallel.expert_tensor_parallel_size")
        if view.world_size % (size * inner):
            yield Hit(
                path=("expert_parallel", "autoep_size"),
                mend="sizes whose product divides them",
                says=f"{size} x {inner} does not divide {view.world_size} ranks",
            )


def _refused_by_us(view: View) -> Iterator[Hit]:
    """What scaling/parallelism.py says against the sizes; of a stage SP001 speaks."""
    shape = view.context.model
    if shape is None or view.context.trainer != "none":
        return
    sizes = {
        ("tensor_parallel", "autotp_size"): view.get("tensor_parallel.autotp_size"),
        ("pipeline", "stages"): view.root["pipeline"]["stages"] if _is_pipeline(view) else 1,
        ("sequence_parallel_size",): view.get("sequence_parallel_size") or 1,
        ("expert_parallel", "autoep_size"):
            view.get("expert_parallel.autoep_size") if view.get("expert_parallel.enabled") else 1,
    }  # fmt: skip
    tensor, pipeline, sequence, expert = sizes.values()
    split = Layout(
        zero_stage=view.stage, offload_optimizer="none", offload_param="none", activation_checkpointing="none",
        tensor_parallel_size=tensor, pipeline_parallel_size=pipeline, sequence_parallel_size=sequence,
        expert_parallel_size=expert,
    )  # fmt: skip
    problem, hint = unsplittable(shape, split, seq_divisor=0)  # a length is not known here; every size divides 0
    if problem and not not_at_stage(split)[0]:
        asked = [(kind, path) for (path, size), kind in zip(sizes.items(), KINDS, strict=True) if size > 1]
        path = next((path for kind, path in asked if problem.startswith(kind)), asked[0][1])
        yield Hit(path=path, says=f"{shape.name}: {problem}", mend=hint)


_TP = "runtime/engine.py:DeepSpeedEngine._apply_autotp_partitioning"

RULES = (
    Rule(
        id="SP001", title="stage 2 or 3 beside a pipeline of several stages", outcome=AT_START, severity=WARNING,
        does="AssertionError: ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism; the block itself splits "
             "nothing, a PipelineModule does", find=_overlap_in_pipeline, source="runtime/pipe/engine.py",
        mend="stage 0 or 1",
    ),
    Rule(
        id="SP010", title="train_batch_size with AutoTP", outcome=CHANGES, since="0.16.4",
        does="DeepSpeed multiplies the micro batch by all ranks, though tensor-parallel ranks share their samples: the "
             "batch it trains with is smaller by that factor", find=_batch_counts_tensor_ranks,
        source="__init__.py:initialize, where mpu is None",
        mend="leave train_batch_size out, and give micro batch and accumulation",
    ),
    Rule(
        id="SP011", title="tensor_parallel.dtype", outcome=AT_START, since="0.16.4",
        does="ValidationError: no JSON value is a torch.dtype", find=_dtype, source="runtime/tensor_parallel/config.py",
        mend="remove it",
    ),
    Rule(
        id="SP013", title="autotp_size and tp_size differ", outcome=AT_START, since="0.19.2",
        does="ValueError: does not match tensor_parallel.autotp_size", find=_sizes_differ, source=_TP,
        mend="autotp_size alone",
    ),
    Rule(
        id="SP026", title="tp_size without autotp_size", outcome=IGNORES, since="0.16.4",
        does="only autotp_size switches AutoTP on: nothing is split", find=_only_tp_size,
        source="__init__.py:initialize",
        mend='"autotp_size"',
    ),
    Rule(
        id="SP027", title="autotp_size does not divide the ranks", outcome=AT_START, since="0.16.4",
        does="AssertionError when the groups are made", find=_does_not_divide,
        source="utils/groups.py:_init_tp_mesh_device",
        mend="a divisor of the ranks",
    ),
    Rule(
        id="SP015", title="more tensor-parallel ranks than key-value heads", outcome=CHANGES, severity=WARNING,
        does="ranks beyond the heads hold no attention and wait", since="0.16.4", find=_more_than_heads, source=_TP,
        mend="at most the key-value heads",
    ),
    Rule(
        id="SP018", title="AutoTP at stage 3 before 0.19.4", outcome=AT_START, since="0.16.4", until="0.19.4",
        does="AssertionError: has not been validated", find=_tensor_at_3, source=_TP,
        mend="stage 1 or 2, or a newer DeepSpeed",
    ),
    Rule(
        id="SP020", title="sequence_parallel_size does not divide the heads", outcome=AT_START,
        does="ValueError when Ulysses is registered", find=_heads_do_not_divide,
        source="runtime/sequence_parallel/ulysses_sp.py",
        mend="a divisor of the heads",
    ),
    Rule(
        id="SP025", title="contiguous activation checkpoints without partitioning or their number", outcome=LATER,
        severity=WARNING,
        does="AssertionError when the script configures deepspeed.checkpointing from the file; a plain engine does not",
        find=_contiguous, source="runtime/activation_checkpointing/checkpointing.py:configure",
        mend='"partition_activations": true and "number_checkpoints", or false',
    ),
    Rule(
        id="SP028", title="an activation_checkpointing block", outcome=IGNORES, severity=NOTE,
        does="DeepSpeed hands it to deepspeed.checkpointing.checkpoint(), which the model has to call", find=_inert,
        source="runtime/activation_checkpointing/config.py",
        mend="gradient_checkpointing_enable() in the model",
    ),
    Rule(
        id="SC020", title="checkpoint.tag_validation is none of its words", outcome=AT_START,
        does="DeepSpeedConfigError: Checkpoint config contains invalid tag_validation", find=_tag_validation,
        source="runtime/config.py:get_checkpoint_tag_validation_mode",
        mend='"WARN", "IGNORE" or "FAIL"',
    ),
    Rule(
        id="SC044", title="a word of the checkpoint block that DeepSpeed does not know", outcome=AT_START,
        does="AssertionError or DeepSpeedConfigError", find=_checkpoint_words,
        source="runtime/model_checkpointing/config.py",
        mend="one of its words",
    ),
    Rule(
        id="SP023", title="DeepCompile offloads that do not go together, at stage 3", outcome=AT_START, since="0.16.6",
        does="ValueError when engine.compile() is called", find=_compiled,
        source="compile/init_z3.py",
        mend="one of them",
    ),
    Rule(
        id="SP029", title="a compile block without deepcompile", outcome=IGNORES, severity=WARNING, since="0.16.6",
        does="deepcompile is false by default: nothing is compiled", find=_compile_off, source="compile/config.py",
        mend='"deepcompile": true, or remove the block',
    ),
    Rule(
        id="SM003", title="AutoEP at stage 3 with what it does not go with", outcome=AT_START, since="0.19.2",
        does="AssertionError: AutoEP with ZeRO Stage 3 does not support ...", find=_experts_at_3,
        source="runtime/engine.py:DeepSpeedEngine._validate_zero3_moe_compatibility",
        mend="stage 1 or 2",
    ),
    Rule(
        id="SM004", title="AutoEP and AutoTP with what they do not go with together", outcome=AT_START, since="0.19.2",
        does="ValueError when AutoEP is set up", find=_folded_experts,
        source="module_inject/auto_ep_folding.py:validate_folding_global", mend="one of the two, or without it",
    ),
    Rule(
        id="SM005", title="expert-parallel sizes do not divide the ranks", outcome=AT_START, since="0.19.2",
        does="ValueError when AutoEP is set up", find=_experts_do_not_divide,
        source="module_inject/auto_ep_folding.py:build_folding_spec",
        mend="sizes whose product divides the ranks",
    ),
    Rule(
        id="SP030", title="pipeline.stages, partition or seed_layers", outcome=IGNORES, severity=WARNING,
        does="DeepSpeed keeps them and uses them nowhere: the split is PipelineModule's", find=_unused_in_pipeline,
        source="runtime/config.py:get_pipeline_config", mend="an argument of PipelineModule",
    ),
    Rule(
        id="SP032", title="sequence parallelism at stage 1 or 2", outcome=CHANGES, severity=WARNING,
        does="gradients come out too large, by two with two ranks under Ulysses, where the loss is gathered as in "
             "DeepSpeed's tutorial; at stage 3 they are right", find=_sequence_below_3,
        source="runtime/zero/stage_1_and_2.py: div_(dp_world_size / sequence_parallel_size)", mend="stage 3",
    ),
    Rule(
        id="SP033", title="a split that scale/train.py refuses", outcome=ACCEPTS, severity=WARNING,
        does="the file; scale/train.py does not split the model so, and exits with 2", find=_refused_by_us,
        source="scaling/parallelism.py:unsplittable", mend="sizes that divide the model, one kind at a time",
    ),
)  # fmt: skip
