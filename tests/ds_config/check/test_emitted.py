"""What the generator writes checks clean and loads."""

import json
from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.ds_config import emit
from scaling.ds_config.check import Context, check

CHECKOUT = Path(__file__).resolve().parents[3]


@settings(max_examples=300)
@given(
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    stage=st.integers(0, 3),
    offload=st.sampled_from(["none", "cpu"]),
    checkpointing=st.sampled_from(["none", "full"]),
    micro=st.integers(1, 64),
    steps=st.integers(1, 64),
    ranks=st.integers(1, 64),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 99),
    low=st.sampled_from([0.0, 0.1, 1.0]),
    clipping=st.floats(0.01, 10),
)
def test_an_emitted_configuration_checks_clean_and_loads(
    planned_recipe, strategy_like, precision, stage, offload, checkpointing, micro, steps, ranks, schedule, warmup, low,
    clipping,
):  # fmt: skip
    if stage == 0 and (precision != "fp32" or offload != "none"):
        return  # the search chooses none of these: SO005, SZ004
    recipe = planned_recipe(
        "gpt-demo", precision=precision, schedule=schedule, warmup_steps=warmup, low=low, gradient_clipping=clipping,
        global_batch_size=micro * steps * ranks,
    )  # fmt: skip
    strategy = strategy_like(
        recipe, zero_stage=stage, offload_optimizer=offload, activation_checkpointing=checkpointing,
        micro_batch_size=micro, gradient_accumulation_steps=steps, data_parallel_size=ranks,
    )  # fmt: skip
    config = emit(recipe, strategy)
    assert check(json.dumps(config, indent=2), Context(world_size=ranks)) == []
    assert DeepSpeedConfig(config).zero_optimization_stage == stage


_SHIPPED = sorted((CHECKOUT / "ds_configs").glob("*.json"))


def test_there_are_shipped_configurations_for_every_stage_both_precisions_and_offload():
    assert len(_SHIPPED) == 9


@pytest.mark.parametrize("path", _SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_checks_clean_and_deepspeed_reads_in_it_what_its_name_says(path):
    assert check(path.read_text(), Context(world_size=8)) == []
    config = DeepSpeedConfig(str(path))
    zero, words = config.zero_config, path.stem.split("_")
    assert f"zero{config.zero_optimization_stage}" == words[0]
    assert (config.bfloat16_config.enabled, config.float16_config.enabled) == (words[-1] == "bf16", words[-1] == "fp16")
    device = next((word for word in words if word in ("cpu", "nvme")), "none")
    for offload, word in ((zero.offload_optimizer, "optimizer"), (zero.offload_param, "params")):
        assert (offload.device if offload else "none") == (device if word in words else "none")
    # The recipe has the mathematics.
    assert not {"optimizer", "scheduler"} & set(json.loads(path.read_text()))
