"""--fix: what has one right answer is written into the text, and nothing else of the text changes."""

import json

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.ds_config.check import Context, mended
from tests.ds_config.check.test_fuzz import _WHOLE, nested, paths, with_value


def fixed(text, **context):
    return mended(text, Context(**context))[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"zero_optimisation": {"stage": 2}}', '{"zero_optimization": {"stage": 2}}'),
        ('{"train_batch_size": "8"}', '{"train_batch_size": 8}'),
        ('{"train_batch_size": 8.0 }', '{"train_batch_size": 8 }'),
        ('{"bf16": {"enabled": "true"}}', '{"bf16": {"enabled": true}}'),
        ('{"a": 1,\n "train_batch_size": 8,\n}', '{"a": 1,\n "train_batch_size": 8\n}'),
        ('{"zero_optimization": true}', '{"zero_optimization": {"stage": 1}}'),
        ('{"elasticity": {"enabled": false}}', "{}"),
        ('{"nebula": null, "dump_state": true}', '{"dump_state": true}'),
        ('{"dump_state": true,\n  "nebula": null\n}', '{"dump_state": true\n}'),
        (
            '{"zero_optimization": {"stage": 2, "cpu_offload": true}}',
            '{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}',
        ),
        (
            '{\r\n  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "max_grad_norm": 2}}\r\n}\r\n',
            '{\r\n  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},\r\n  "gradient_clipping": 2\r\n}\r\n',
        ),
        (
            '{"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 2}}, "gradient_clipping": 2}',
            '{"optimizer": {"type": "AdamW", "params": {}}, "gradient_clipping": 2}',
        ),
        (
            '{"zero_optimization": {"stage": 1, "allgather_bucket_size": 1001}}',
            '{"zero_optimization": {"stage": 1, "allgather_bucket_size": 1002}}',
        ),
        ('{"tensor_parallel": {"autotp_size": 1, "dtype": "bf16"}}', '{"tensor_parallel": {"autotp_size": 1}}'),
        ('{"aio": {"thread_count": 4}}', '{"aio": {"intra_op_parallelism": 4}}'),
        ('{"optimizer": {"type": "sgd"}}', '{"optimizer": {"type": "SGD"}}'),
        ('{"data_types": {"grad_accum_dtype": "FP32"}}', '{"data_types": {"grad_accum_dtype": "fp32"}}'),
    ],
)
def test_one_right_answer_is_written_where_it_belongs(before, after):
    assert fixed(before) == after


@pytest.mark.parametrize(
    "text",
    [
        '{"train_batch_size": 7, "train_micro_batch_size_per_gpu": 2}',  # two answers
        '{"elasticity": {"enabled": true}}',  # the user wants something that is gone
        '{"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 2}}, "gradient_clipping": 1}',
        '{"bfp16": {"enabled": true}}',  # bf16 or fp16?
        '{"zero_optimisation": {"stage": 2}, "zero_optimization": {"stage": 1}}',
        '{"train_batch_size": 8} // eight\n',  # a comment has no place in JSON
        '{"dump_state": true, "dump_state": false}',
    ],
)
def test_what_has_no_one_right_answer_is_left(text):
    assert fixed(text) == text


def test_every_other_line_stays_as_it_was():
    lines = [
        "{",
        '\t"train_micro_batch_size_per_gpu" :   4,   // odd spacing, and a remark',
        "",
        '\t"zero_optimisation": {"stage":2},',
        '    "steps_per_print": 1e2',
        "}",
    ]
    after = fixed("\n".join(lines)).split("\n")
    assert [number for number, pair in enumerate(zip(lines, after, strict=True)) if pair[0] != pair[1]] == [3]


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        return {leaf: inner for name, block in value.items() for leaf, inner in leaves(block, (*path, name)).items()}
    return {path: json.dumps(value)}


@settings(max_examples=500)
@given(changes=st.lists(st.tuples(paths, nested), min_size=1, max_size=3), indent=st.sampled_from([None, 2]))
def test_mending_ends_is_repeatable_and_touches_nothing_else(changes, indent):
    config = _WHOLE
    for path, value in changes:
        config = with_value(config, path, value)
    before = json.dumps(config, indent=indent)
    after, done = mended(before, Context())
    assert (after == before) == (not done)
    assert mended(after, Context()) == (after, [])
    touched = [edit.path for finding in done for edit in finding.edits if edit.what != "commas"]
    kept = leaves(json.loads(after))
    for leaf, value in leaves(json.loads(before)).items():
        assert kept.get(leaf) == value or any(leaf[: len(path)] == path for path in touched), leaf


def test_a_mended_file_loads():
    text = """{
      "train_batch_size": "16",
      "gradient_accumulation_steps": 4.0,
      "zero_optimisation": {"stage": "2", "cpu_offload": true, "allgather_bucket_size": 1001},
      "nebula": {"enabled": false},
      "bf16": {"enabled": "true"},
    }"""
    parsed = DeepSpeedConfig(json.loads(fixed(text)))
    assert parsed.zero_config.stage == 2
    assert parsed.zero_config.offload_optimizer.device == "cpu"
    assert parsed.train_micro_batch_size_per_gpu == 4
