"""The schema against DeepSpeed's own models, constants and reading: nothing missing or too much, the same defaults."""

from pathlib import PurePath
from typing import Any

import deepspeed
import pytest
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.compile.config import CompileConfig
from deepspeed.inference.config import WeightQuantConfig
from deepspeed.module_inject.auto_ep_config import parse_autoep_config
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.config import (
    _REMOVED_TOP_LEVEL_CONFIG_KEYS,
    _REMOVED_ZERO_CONFIG_KEYS,
    DEEPSPEED_OPTIMIZERS,
    DeepSpeedConfig,
    HybridEngineConfig,
)
from deepspeed.runtime.model_checkpointing.config import get_checkpoint_writer_config
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.tensor_parallel.config import TPConfig, TPTrainingConfig
from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.ds_config.check.schema import KEYS, REMOVED, UNSET, children
from scaling.ds_config.check.values import Refused, read_as
from scaling.ds_config.check.version import LATEST, version
from scaling.ds_config.check.view import OWN_OPTIMIZERS

ZERO = ("zero_optimization",)
MODELS: dict[tuple[str, ...], Any] = {
    ("fp16",): DeepSpeedFP16Config,
    ("bf16",): DeepSpeedBF16Config,
    ("bfloat16",): DeepSpeedBF16Config,
    ZERO: DeepSpeedZeroConfig,
    (*ZERO, "offload_param"): DeepSpeedZeroOffloadParamConfig,
    (*ZERO, "offload_optimizer"): DeepSpeedZeroOffloadOptimizerConfig,
    (*ZERO, "zenflow"): ZenFlowConfig,
    (*ZERO, "leaf_module"): DeepSpeedZeroLeafModuleConfig,
    ("tensor_parallel",): TPTrainingConfig,
    ("tensor_parallel", "tensor_parallel"): TPConfig,
    ("compile",): CompileConfig,
    ("hybrid_engine",): HybridEngineConfig,
    ("weight_quantization",): WeightQuantConfig,
    ("comms_logger",): CommsLoggerConfig,
    ("timers", "throughput"): DeepSpeedThroughputTimerConfig,
    ("tensorboard",): TensorBoardConfig,
    ("wandb",): WandbConfig,
    ("csv_monitor",): CSVConfig,
    ("comet",): CometConfig,
}


def test_the_release_is_the_installed_one():
    assert deepspeed.__version__.split("+")[0] == LATEST


def test_every_model_block_has_its_model():
    assert set(MODELS) == {path for path, key in KEYS.items() if key.keys == "model"}


@pytest.mark.parametrize("path", MODELS, ids=".".join)
def test_a_model_block_has_the_models_fields_names_and_defaults(path):
    rows = children(path)
    for field, info in MODELS[path].model_fields.items():
        name = info.alias or field
        row = rows.get(name)
        assert row, f"{name} of {'.'.join(path)} is missing"
        assert rows[field] is row, f"{field} is another name of {name}"
        extra = info.json_schema_extra or {}
        assert bool(row.instead) == bool(extra.get("deprecated")), name
        default = info.get_default(call_default_factory=True)
        if row.default is not UNSET and row.kind.form not in ("object",):
            assert getattr(default, "value", default) == row.default, name
    known = {info.alias or field for field, info in MODELS[path].model_fields.items()} | set(MODELS[path].model_fields)
    assert set(rows) == known


class _Watched(dict):
    """A block that notes which of its keys are asked for."""

    def __init__(self, content, path, asked):
        super().__init__(content)
        self.path, self.asked = path, asked

    def get(self, key, default=None):
        self.asked.add((*self.path, key))
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add((*self.path, key))
        return super().__getitem__(key)

    def __contains__(self, key):
        self.asked.add((*self.path, key))
        return super().__contains__(key)

    def keys(self):
        return self  # for `key in block.keys()`

    def __copy__(self):
        return self


def _whole(path, asked):
    """A block with every block inside it that is read key by key, and with each default written out."""
    content = {}
    for row in KEYS.values():
        if row.path[:-1] == path and row.path[0] not in ("expert_parallel", "bfloat16"):
            if row.keys in ("get", "any") and row.kind.form == "object" and children(row.path):
                content[row.name] = _whole(row.path, asked)
            elif row.keys == "" and row.default is not UNSET and path:
                content[row.name] = row.default
    content |= {"train_micro_batch_size_per_gpu": 1} if path == () else {}
    content |= {"type": "Adam"} if path in (("optimizer",), ("scheduler",)) else {}
    return _Watched(content, path, asked)


# Asked for by initialize(), the pipeline engine, the samplers and routers instead of by DeepSpeedConfig.
_READ_LATER = {
    ("data_parallel_size",), ("sequence_parallel_size",), ("allgather_size",), ("bfloat16",), ("pipeline",),
    ("data_efficiency", "data_sampling", "curriculum_learning"),
    ("data_efficiency", "data_sampling", "dynamic_batching"),
    ("data_efficiency", "data_routing", "random_ltd"),
}  # fmt: skip


def test_deepspeed_asks_for_the_keys_of_the_schema_and_for_no_others():
    asked: set[tuple[str, ...]] = set()
    DeepSpeedConfig(_whole((), asked))
    parse_autoep_config(_Watched({"enabled": True}, ("expert_parallel",), asked))
    read_by_get = {path for path, key in KEYS.items() if key.reader == "get" or len(path) == 1}
    assert asked - read_by_get - set(REMOVED) == set()
    later = {path for path in read_by_get if any(path[: len(start)] == start for start in _READ_LATER)}
    assert read_by_get - asked <= later
    pipeline = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1}).pipeline
    assert set(pipeline) == set(children(("pipeline",))) - {"use_reentrant"}


def test_the_removed_keys_are_deepspeeds():
    assert {path[0] for path in REMOVED if len(path) == 1} == set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert {path[1] for path in REMOVED if len(path) == 2} == set(_REMOVED_ZERO_CONFIG_KEYS)
    assert set(OWN_OPTIMIZERS) == set(DEEPSPEED_OPTIMIZERS)


# {attribute of the parsed configuration: key}, where the two are not the same word.
_ATTRIBUTES = {
    "communication_data_type": None,
    "seq_parallel_communication_data_type": None,
}


def test_top_level_defaults_are_what_an_empty_file_gives():
    parsed = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1})
    compared = 0
    for path, row in KEYS.items():
        name = path[0]
        if (
            len(path) == 1
            and not row.keys
            and row.default is not UNSET
            and hasattr(parsed, name)
            and name not in _ATTRIBUTES
        ):
            assert getattr(parsed, name) == row.default, name
            compared += 1
    assert compared >= 15


def test_defaults_of_get_blocks_are_what_an_empty_file_gives():
    parsed = DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1})
    writer = get_checkpoint_writer_config({"writer": {}})
    blocks = {
        ("activation_checkpointing",): vars(parsed.activation_checkpointing_config),
        ("flops_profiler",): vars(parsed.flops_profiler_config),
        ("autotuning",): vars(parsed.autotuning_config),
        ("aio",): parsed.aio_config,
        ("pipeline",): parsed.pipeline,
        ("data_types",): vars(parsed),
        ("expert_parallel",): vars(parsed.expert_parallel_config),
        ("checkpoint",): {**parsed.checkpoint_config, "load_universal": parsed.load_universal_checkpoint},
        ("checkpoint", "writer"): writer,
        ("data_efficiency",): parsed.data_efficiency_config,
        ("data_efficiency", "data_sampling"): parsed.data_efficiency_config["data_sampling"],
        ("data_efficiency", "data_sampling", "dynamic_batching"): parsed.data_efficiency_config["data_sampling"][
            "dynamic_batching"
        ],
    }
    compared = {
        (*block, name): (theirs[name], row.default)
        for block, theirs in blocks.items()
        for name, row in children(block).items()
        if name in theirs and row.default is not UNSET and not row.keys
    }
    assert {path: pair for path, pair in compared.items() if pair[0] != pair[1]} == {}
    assert len(compared) > 80


def test_versions_are_releases_in_order():
    for row in KEYS.values():
        assert version(row.since) <= version(LATEST)
        assert list(row.changed) == sorted(row.changed, key=lambda change: version(change[0]), reverse=True)
        for release, _ in row.changed:
            assert version(release) <= version(LATEST)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 4),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, 2.0, 2.5, 5e8, 1e30, -1.0, 0.5, 1e400]),
    st.text(max_size=6),
    st.sampled_from(
        ["auto", "true", "False", "yes", "0", "1", "2", "2.0", "1e5", " 3 ", "1_000", "", "none", "cpu", "nan"]
    ),
)
values = st.one_of(scalars, st.lists(scalars, max_size=3), st.dictionaries(st.text(max_size=4), scalars, max_size=2))

_FIELDS = [key for key in KEYS.values() if key.reader == "model" and key.path[:-1] in MODELS and not key.keys]
# Values of these are refused by a validator of the whole block, which a rule of its own repeats.
_BESIDE: dict[tuple[str, ...], dict[str, Any]] = {(*ZERO, "compute_grad_norm"): {"stage": 1}}


@settings(max_examples=2500)
@given(key=st.sampled_from(_FIELDS), value=values)
def test_a_model_takes_any_value_that_we_say_it_takes_and_makes_the_same_of_it(key, value):
    if value == "auto":  # dropped before validation; SC009
        return
    model = MODELS[key.path[:-1]]
    try:
        parsed = model(**{**_BESIDE.get(key.path, {}), key.name: value})
        theirs = getattr(parsed, key.name if key.name in model.model_fields else key.alias, UNSET)
    except Exception:
        theirs = Refused
    try:
        ours = read_as(key.kind, value)
    except Refused:
        ours = Refused
    if key.instead and theirs is not Refused:  # a deprecated field is taken out again
        assert ours is not Refused
        return
    filled_in = ours is None and theirs is not Refused  # overlap_comm: by the stage
    theirs = list(theirs) if isinstance(theirs, tuple) else theirs
    ours = list(dict.fromkeys(ours)) if key.kind.alone and isinstance(ours, list) else ours
    same = ours == theirs or filled_in or (isinstance(theirs, PurePath) and isinstance(ours, str))
    assert same, f"{'.'.join(key.path)}: {value!r} is {theirs!r} there, {ours!r} here"
