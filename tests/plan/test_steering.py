"""Pins, bans, objectives and headroom do what they say, and nothing is dropped in silence."""

from dataclasses import replace

import pytest

from scaling.errors import InputError
from scaling.plan import search, steering_of
from scaling.units import GIB


@pytest.fixture
def planned(planned_recipe, cluster_like):
    def of(**flags):
        recipe = planned_recipe("gpt3-1.3b", global_batch_size=512)
        nvme = {"nvme_path": "/mnt/nvme", "nvme_bytes": 1000 * GIB, "nvme_bytes_per_s": 5e9}
        return search(recipe, replace(cluster_like("a100-80gb", gpus=8), **nvme), steering=steering_of(**flags))

    return of


@pytest.mark.parametrize(
    ("pin", "field", "value"),
    [
        ("zero_stage=3", "zero_stage", 3),
        ("micro_batch_size=4", "micro_batch_size", 4),
        ("gradient_accumulation_steps=64", "gradient_accumulation_steps", 64),
        ("offload_optimizer=cpu", "offload_optimizer", "cpu"),
        ("offload_param=cpu", "offload_param", "cpu"),
        ("offload_optimizer=nvme", "offload_optimizer", "nvme"),
        ("offload_param=nvme", "offload_param", "nvme"),
        ("activation_checkpointing=full", "activation_checkpointing", "full"),
    ],
)
def test_what_is_pinned_holds_in_the_choice_and_in_every_alternative(planned, pin, field, value):
    plan = planned(pin=[pin])
    for candidate in (plan.chosen, *plan.alternatives):
        assert getattr(candidate.strategy, field) == value
    assert any(pin in sentence for sentence in plan.assumptions)


def test_several_pins_hold_together(planned):
    plan = planned(pin=["zero_stage=2,micro_batch_size=8"], forbid=["offload"])
    assert (plan.strategy.zero_stage, plan.strategy.micro_batch_size) == (2, 8)
    assert plan.strategy.offload_optimizer == "none"


@pytest.mark.parametrize(
    ("forbid", "gone"),
    [("offload", "on cpu"), ("offload", "on nvme"), ("nvme", "on nvme"), ("checkpointing", "full checkpointing")],
)
def test_what_is_forbidden_is_nowhere_but_among_the_rejected(planned, forbid, gone):
    plan = planned(forbid=[forbid])
    assert all(gone not in str(candidate.strategy) for candidate in (plan.chosen, *plan.alternatives))
    assert any(gone in rejection.strategy and "excluded" in rejection.reason for rejection in plan.rejected)


def test_the_memory_objective_needs_no_more_than_any_alternative(planned):
    plan = planned(objective="memory")
    chosen = plan.chosen.memory.total_bytes
    assert all(chosen <= other.memory.total_bytes for other in plan.alternatives)
    assert chosen < planned().chosen.memory.total_bytes


def test_less_safety_margin_never_fits_less(planned):
    for safety in (0.3, 0.6, 1.0):
        plan = planned(safety=safety)
        assert plan.chosen.memory.total_bytes <= safety * plan.chosen.memory.capacity_bytes
        assert any(f"{safety:.0%}" in sentence for sentence in plan.assumptions)


@pytest.mark.parametrize(
    ("flags", "field", "hint"),
    [
        ({"pin": ["zero=2"]}, "pin", "zero_stage"),
        ({"pin": ["zero_stage"]}, "pin", "zero_stage=VALUE"),
        ({"pin": ["zero_stage=two"]}, "pin", "zero_stage=2"),
        ({"forbid": ["offlaod"]}, "forbid", "offload"),
        ({"objective": "speed"}, "objective", "time"),
        ({"safety": 0}, "safety", "0.9"),
        ({"safety": 90}, "safety", "0.9"),
        ({"pin": ["zero_stage=0"]}, "pin", "extra optimizer step"),
        ({"pin": ["zero_stage=2,offload_param=cpu"]}, "pin", "at stage 3 only"),
        ({"pin": ["zero_stage=2,offload_optimizer=nvme"]}, "pin", "silently to the CPU"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_with_what_would_work(planned, flags, field, hint):
    with pytest.raises(InputError) as refused:
        planned(**flags)
    assert refused.value.field == field
    assert hint in refused.value.hint
