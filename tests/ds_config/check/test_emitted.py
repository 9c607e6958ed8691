"""What the generator writes checks clean and loads."""

import json
from pathlib import Path

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


def test_the_shipped_configurations_check_clean():
    paths = sorted((CHECKOUT / "ds_configs").glob("*.json"))
    assert paths
    assert {path.name: check(path.read_text(), Context(world_size=8)) for path in paths if check(
        path.read_text(), Context(world_size=8))} == {}  # fmt: skip
