"""Any JSON value at any key: findings and never a traceback, and an error wherever DeepSpeed refuses."""

import copy
import json
from dataclasses import replace

from deepspeed.runtime.config import DeepSpeedConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import hardware
from scaling.ds_config.check import Context, Severity, SyntaxProblem, check
from scaling.ds_config.check.rules.optimizer import PARAMS
from scaling.ds_config.check.rules.scheduler import SCHEDULERS
from scaling.ds_config.check.schema import KEYS, REMOVED
from scaling.ds_config.check.trainers import RESOLVED
from tests.ds_config.check.test_schema import scalars, values

# DeepSpeed asks this machine, which has no CUDA.
_CPU = replace(hardware.find_accelerator("v100-32gb"), name="cpu", supports_bf16=True)

_WHOLE = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 10, "warmup_max_lr": 1e-4}},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "zenflow": None},
    "activation_checkpointing": {"partition_activations": False},
}
_PATHS = [
    *KEYS,
    *REMOVED,
    *(("optimizer", "params", name) for name in sorted({name for names in PARAMS.values() for name in names})),
    *(("scheduler", "params", name) for name in sorted({name for names in SCHEDULERS.values() for name in names})),
    ("no such key",),
    ("zero_optimization", "stge"),
]
paths = st.one_of(st.sampled_from(_PATHS), st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple))
nested = st.recursive(values, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=5)
contexts = st.builds(
    Context,
    world_size=st.sampled_from([None, 1, 2, 7, 8]),
    optimizer=st.sampled_from([None, "none", "adamw", "lamb", "DeepSpeedCPUAdam"]),
    deepspeed_version=st.sampled_from(["0.16.0", "0.18.3", "0.19.2", "0.19.5", "0.19.8"]),
    trainer=st.sampled_from(sorted(RESOLVED)),
)


def with_value(config, path, value):
    """`config` with `value` at `path`, the blocks above it made where they are absent or something else."""
    config = copy.deepcopy(config)
    block = config
    for name in path[:-1]:
        if not isinstance(block.get(name), dict):
            block[name] = {}
        block = block[name]
    block[path[-1]] = value
    return config


@settings(max_examples=1500)
@given(changes=st.lists(st.tuples(paths, nested), min_size=1, max_size=3), context=contexts)
def test_any_json_value_at_any_key_gives_findings_and_never_a_traceback(changes, context):
    config = _WHOLE
    for path, value in changes:
        config = with_value(config, path, value)
    for finding in check(json.dumps(config, indent=1), context):
        assert finding.says
        assert finding.mend
        assert finding.line >= 1
        assert finding.column >= 1


@settings(max_examples=1500)
@given(
    text=st.one_of(
        st.text(max_size=40), st.text('{}[]":,#/*\n 01a\\tru', max_size=40), st.text('{"a":1}x,', max_size=9)
    )
)
def test_any_text_is_an_object_or_one_clear_problem(text):
    problem = None
    try:
        check(text, Context())
    except SyntaxProblem as error:
        problem = error
    assert problem is None or (problem.problem and 0 <= problem.offset <= len(text))


@settings(max_examples=2500)
@given(path=paths, value=st.one_of(scalars, values))
def test_what_deepspeed_refuses_has_an_error(path, value):
    config = with_value(_WHOLE, path, value)
    found = check(json.dumps(config), Context(world_size=1, gpu=_CPU))
    refusal = None
    try:
        DeepSpeedConfig(copy.deepcopy(config))
    except Exception as error:
        refusal = error
    assert refusal is None or any(each.severity == Severity.ERROR for each in found), (path, value, refusal)
