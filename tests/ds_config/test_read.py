"""A user's ds_config, read strictly: what it spells, what it leaves out, what it contradicts."""

import json
from copy import deepcopy

import pytest

from scaling.ds_config import emit, load, reconcile, strategy_of
from scaling.errors import FileProblems, InputError, ScaleError

# What a person writes who has read DeepSpeed's tutorial, on 8 ranks, for a recipe of 512 samples a step.
_SMALL = {
    "train_micro_batch_size_per_gpu": 4,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
}


@pytest.fixture
def read(tmp_path, planned_recipe):
    """A function from a ds_config (a dict, or text) to (ready config, notes, strategy) on 8 ranks."""

    def of(config, recipe=None, world_size=8):
        path = tmp_path / "ds_config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        recipe = recipe or planned_recipe("gpt-demo")
        found = load(path)
        strategy = strategy_of(found, recipe, world_size)
        return *reconcile(found, recipe, strategy), strategy

    return of


def _changed(**changes):
    return {**deepcopy(_SMALL), **changes}


def test_a_small_file_is_filled_in_from_the_recipe_and_every_filling_is_said(read, planned_recipe):
    recipe = planned_recipe("gpt-demo")
    ready, notes, strategy = read(_SMALL)
    assert (strategy.zero_stage, strategy.micro_batch_size, strategy.gradient_accumulation_steps) == (2, 4, 16)
    assert strategy.global_batch_size == recipe.global_batch_size == 512
    assert ready["gradient_accumulation_steps"] == 16
    assert ready["gradient_clipping"] == recipe.gradient_clipping
    assert ready["optimizer"]["params"]["lr"] == recipe.optimizer.lr
    assert [note.split(":")[0] for note in notes] == ["gradient_accumulation_steps", "optimizer"]
    assert "global batch 512 = 4 micro x 16 accumulation x 8 data parallel" in notes[0]


@pytest.mark.parametrize("said", [1, 2, 32])
def test_an_accumulation_that_the_recipes_batch_contradicts_is_replaced_with_a_note(read, said):
    ready, notes, _ = read(_changed(gradient_accumulation_steps=said))
    assert ready["gradient_accumulation_steps"] == 16
    assert f"the ds_config says {said}" in notes[0]


def test_a_ramp_has_the_accumulation_of_its_largest_batch_and_divides_in_all(read, planned_recipe):
    ramp = {"start": 64, "increment": 64, "samples": 10_000}
    ready, _, strategy = read(_SMALL, planned_recipe("gpt-demo", batch_ramp=ramp))
    assert ready["gradient_accumulation_steps"] == strategy.gradient_accumulation_steps == 16
    with pytest.raises(
        InputError, match=r"batch_ramp: '64 \+ n x 64' is not always a multiple of 16 micro x 8"
    ) as caught:
        read(_changed(train_micro_batch_size_per_gpu=16), planned_recipe("gpt-demo", batch_ramp=ramp))
    assert caught.value.hint == "micro batches that divide it on 8 ranks: 1, 2, 4, 8"


def test_an_accumulation_that_agrees_needs_no_note(read):
    _, notes, _ = read(_changed(gradient_accumulation_steps=16))
    assert [note for note in notes if "accumulation" in note] == []


def test_the_scheduler_and_the_train_batch_size_are_checked_and_left_out(read, planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo")
    config = {**emit(recipe, strategy_like(recipe)), "train_batch_size": 512}
    ready, _, _ = read(config)
    assert "scheduler" in config
    assert not {"scheduler", "train_batch_size"} & set(ready)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 1, "micro_batch_size": 64, "gradient_accumulation_steps": 1},
        {"zero_stage": 1, "offload_optimizer": "cpu"},
        {"zero_stage": 2, "activation_checkpointing": "full", "reduce_bucket_size": 65_536},
        {"zero_stage": 3, "micro_batch_size": 1, "gradient_accumulation_steps": 64},
        {"zero_stage": 3, "offload_optimizer": "cpu", "activation_checkpointing": "full"},
        {"zero_stage": 3, "offload_param": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "nvme", "offload_param": "cpu"},
        {"zero_stage": 3, "offload_optimizer": "nvme", "offload_param": "nvme"},
    ],
)
def test_an_emitted_file_reconciles_without_a_note_and_spells_its_strategy(
    precision, schedule, fields, read, planned_recipe, strategy_like
):
    recipe = planned_recipe("gpt-demo", precision=precision, schedule=schedule)
    strategy = strategy_like(recipe, **fields)
    config = emit(recipe, strategy, "/mnt/nvme")
    ready, notes, found = read(config, recipe)
    assert notes == []
    assert found == strategy
    assert ready == {key: value for key, value in config.items() if key != "scheduler"}


def test_an_emitted_stage_0_file_in_fp32_reconciles_too(read, planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo", precision="fp32")
    strategy = strategy_like(recipe, zero_stage=0)
    assert read(emit(recipe, strategy), recipe)[1:] == ([], strategy)


_LAMB = {"name": "lamb", "lr": 2e-3, "betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01}


@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_lamb_is_handed_to_deepspeed_and_has_no_block(offload, read, planned_recipe, strategy_like):
    recipe = planned_recipe("gpt-demo", optimizer=_LAMB)
    strategy = strategy_like(recipe, offload_optimizer=offload)
    config = emit(recipe, strategy)
    # Untested optimizers stay forbidden: ours enters ZeRO's list. Offloaded, DeepSpeed would insist on its own.
    assert config["zero_allow_untested_optimizer"] is False
    assert config.get("zero_force_ds_cpu_optimizer") == (None if offload == "none" else False)
    ready, notes, found = read(config, recipe)
    assert (notes, found) == ([], strategy)
    assert "optimizer" not in ready
    # A file by hand need not know about it.
    ready, _, _ = read(_changed(zero_optimization={"stage": 2, "offload_optimizer": {"device": offload}}), recipe)
    assert ready.get("zero_force_ds_cpu_optimizer") == (None if offload == "none" else False)
    with pytest.raises(FileProblems, match=r"optimizer: the recipe's lamb is scaling\.optim\.Lamb, which is handed"):
        read(_changed(optimizer={"type": "Lamb", "params": {"lr": 2e-3}}), recipe)


def test_an_absent_file_is_an_input_error_naming_ds_config(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nope.json")
    assert caught.value.field == "ds_config"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", ":1:1"),
        ('{"bf16": {"enabled": true},}', ":1:28"),
        ('{\n  "bf16": {"enabled": True}\n}', ":2:23"),
        ('{\n "gradient_clipping": 1.0\n "optimizer": {}\n}', ":3:2"),
        ("{'bf16': {}}", ":1:2"),
        ("// comment\n{}", ":1:1"),
    ],
)
def test_text_that_is_not_json_is_refused_at_its_line_and_column(read, text, place):
    with pytest.raises(FileProblems) as caught:
        read(text)
    assert f"ds_config.json{place}: ds_config is not JSON" in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["[]", "null", '"x"', "3", "[" * 100_000, '{"a":' * 100_000, '{"seed": ' + "1" * 5000 + "}"],
    ids=["a list", "null", "a text", "a number", "open lists", "open objects", "more digits than int() takes"],
)
def test_json_that_is_not_an_object_or_too_deep_is_refused(read, text):
    with pytest.raises(FileProblems):
        read(text)


@pytest.mark.parametrize(
    "text",
    ['{"bf16": {}, "bf16": {}}', '{"zero_optimization": {"stage": 1, "stage": 2}}', '{"bf16": [{"a": 1, "a": 2}]}'],
)
def test_a_key_that_stands_twice_is_refused(read, text):
    with pytest.raises(FileProblems, match="appears twice"):
        read(text)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("zero_optimisation", "zero_optimization"),
        ("train_micro_batch_size", "train_micro_batch_size_per_gpu"),
        ("gradient_acumulation_steps", "gradient_accumulation_steps"),
        ("bf_16", "bf16"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(read, key, meant):
    # DeepSpeed 0.19.8 ignores an unknown top-level key in silence.
    with pytest.raises(FileProblems, match=f"{key}: unknown key; did you mean .*'{meant}'"):
        read({**_SMALL, key: 1})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, ["optimizer.params.lr: 0.001 here, 0.0002 by"]),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999]}}}, ["optimizer.params.betas: [0.9, 0.999]"]),
        ({"optimizer": {"type": "Lamb"}}, ["optimizer.type: 'Lamb' here, 'AdamW' by"]),
        ({"optimizer": {"type": "AdamW", "params": {"max_grad_norm": 1.0}}}, ["optimizer.params.max_grad_norm"]),
        ({"bf16": {"enabled": False}}, ["fp32: the recipe trains in bf16"]),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, ["fp16: the recipe trains in bf16"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping: 0.5 here, 1.0 by"]),
        ({"gradient_clipping": 0}, ["gradient_clipping: 0 here, 1.0 by"]),
        ({"gradient_clipping": "auto"}, ["gradient_clipping: 'auto' here"]),
        ({"train_batch_size": 256}, ["train_batch_size: 256 here, 512 by"]),
        ({"train_batch_size": "auto"}, ["train_batch_size: 'auto' here"]),
        ({"scheduler": {"type": "OneCycle"}}, ["scheduler.type: 'OneCycle' here, 'WarmupCosineLR' by"]),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 99}}},
            ["scheduler.params.total_num_steps: 99 here, 100 by"],
        ),
        (
            {"gradient_clipping": 2.0, "train_batch_size": 1, "bf16": {"enabled": False}},
            ["gradient_clipping: 2.0", "train_batch_size: 1", "fp32: the recipe"],
        ),
    ],
)
def test_what_contradicts_the_recipe_is_refused_by_name_all_at_once(read, changes, said):
    with pytest.raises(FileProblems, match=r"^ds_config contradicts the recipe") as caught:
        read(_changed(**changes))
    assert len(caught.value.problems) == len(said)
    for words in said:
        assert words in caught.value.message


def test_one_is_the_same_as_one_point_nought(read):
    assert read(_changed(gradient_clipping=1))[0]["gradient_clipping"] == 1.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("zero", [{"stage": 0}, {}])
def test_stage_0_in_16_bit_is_refused(read, planned_recipe, precision, zero):
    # DeepSpeed 0.19.8 takes an extra optimizer step there: runtime/fp16/fused_optimizer.py.
    recipe = planned_recipe("gpt-demo", precision=precision)
    config = {"train_micro_batch_size_per_gpu": 4, precision: {"enabled": True}, "zero_optimization": zero}
    with pytest.raises(ScaleError) as caught:
        read(config, recipe)
    assert "zero_optimization.stage" in caught.value.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"train_micro_batch_size_per_gpu": None}, "train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": 4.0}, "train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": -4}, "train_micro_batch_size_per_gpu"),
        ({"train_micro_batch_size_per_gpu": True}, "train_micro_batch_size_per_gpu"),
        ({"zero_optimization": True}, "zero_optimization"),
        ({"zero_optimization": None}, "zero_optimization"),
        ({"zero_optimization": {}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": "auto"}}, "zero_optimization.stage"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}, "zero_optimization.reduce_bucket_size"),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": 0}}, "zero_optimization.allgather_bucket_size"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.nvme_path",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
            "zero_optimization.offload_param.device",
        ),
        # What DeepSpeed 0.19.8 would ignore, or do on the CPU instead.
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "zero_optimization.stage"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/n"}}},
            "zero_optimization.stage",
        ),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "zero_optimization.stage"),
    ],
)
def test_machinery_that_is_missing_or_no_number_is_refused_by_field(read, changes, field):
    with pytest.raises(ScaleError) as caught:
        read(_changed(**changes))
    assert f"{field}: " in caught.value.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bf16": True}, "bf16"),
        ({"bf16": None}, "bf16"),
        ({"fp16": False}, "fp16"),
        ({"bf16": {"enabled": "auto"}}, "bf16"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": True}}, "offload_optimizer"),
        ({"zero_optimization": {"stage": 2, "offload_param": "cpu"}}, "offload_param"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": ["cpu"]}}}, "offload_optimizer"),
    ],
)
def test_a_block_that_is_no_object_is_refused_by_name(read, changes, field):
    with pytest.raises(ScaleError) as caught:
        read(_changed(**changes))
    assert field in caught.value.message


def test_an_odd_allgather_bucket_is_refused_before_deepspeed_does(read):
    # deepspeed 0.19.8, runtime/zero/stage_1_and_2.py:389, an AssertionError once everything is loaded.
    with pytest.raises(ScaleError, match="allgather_bucket_size"):
        read(_changed(zero_optimization={"stage": 2, "allgather_bucket_size": 1_000_001}))


@pytest.mark.parametrize(
    ("micro", "world_size", "fitting"),
    [(3, 8, "1, 2, 4, 8, 16, 32, 64"), (128, 8, "1, 2, 4, 8, 16, 32, 64"), (5, 2, "1, 2, 4, 8, 16, 32, 64, 128, 256")],
)
def test_a_micro_batch_that_does_not_divide_names_those_that_do(read, micro, world_size, fitting):
    with pytest.raises(InputError) as caught:
        read(_changed(train_micro_batch_size_per_gpu=micro), world_size=world_size)
    assert caught.value.field == "global_batch_size"
    assert caught.value.hint.endswith(f": {fitting}")


def test_a_world_that_no_micro_batch_fits_says_so(read):
    with pytest.raises(InputError, match="512 is not a multiple of 4 micro x 3 data parallel") as caught:
        read(_SMALL, world_size=3)
    assert "3 ranks" in caught.value.hint
