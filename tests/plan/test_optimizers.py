"""The search knows each optimizer: only plans under which it stays itself are proposed, and the others say why."""

import json

import pytest

from scaling import hardware
from scaling.ds_config import emit
from scaling.ds_config.check import Context, check
from scaling.ds_config.check.outcome import ERROR
from scaling.errors import InputError
from scaling.optimizers import OPTIMIZERS, TRAINABLE, unsound
from scaling.plan import search
from scaling.plan.layouts import illegal, layouts
from scaling.plan.steering import Steering

OPTIMIZER = {
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8},
    "lamb": {"betas": [0.9, 0.999], "eps": 1e-6},
    "lars": {"momentum": 0.9, "trust_coefficient": 0.001},
    "lans": {"betas": [0.9, 0.999], "eps": 1e-6},
    "lion": {"betas": [0.9, 0.99]},
    "muon": {"momentum": 0.95, "adam_lr": 3e-4, "adam_betas": [0.9, 0.95], "adam_eps": 1e-8},
    "adafactor": {},
    "sgd": {"momentum": 0.9, "nesterov": True},
}


@pytest.fixture
def asked(planned_recipe):
    """A function from an optimizer to a recipe."""

    def of(name, precision="fp32"):
        clipping = 0.0 if name == "muon" else 1.0
        optimizer = {"name": name, "lr": 1e-3, "weight_decay": 0.1, **OPTIMIZER[name]}
        return planned_recipe("gpt2", optimizer=optimizer, precision=precision, gradient_clipping=clipping)

    return of


@pytest.fixture
def with_nvme(cluster_like):
    return hardware.with_nvme(cluster_like(), "/mnt/nvme", 1000, None)[0]


@pytest.mark.parametrize("name", TRAINABLE)
def test_only_sound_plans_are_proposed_and_the_others_say_why(name, asked, with_nvme):
    recipe, row = asked(name), OPTIMIZERS[name]
    plan = search(recipe, with_nvme, top=100)
    for candidate in (plan.chosen, *plan.alternatives, *plan.pareto):
        assert not unsound(name, candidate.strategy.zero_stage, candidate.strategy.offload_optimizer)
    proposed = {each.strategy.zero_stage for each in (plan.chosen, *plan.alternatives)}
    assert proposed == set(row.stages)
    for layout in layouts(recipe, with_nvme):
        reason = unsound(name, layout.zero_stage, layout.offload_optimizer)
        if reason:
            assert illegal(recipe, layout) == reason
            assert any(reason in rejected.reason for rejected in plan.rejected)


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_plans_configuration_checks_clean(name, asked, with_nvme):
    recipe = asked(name)
    plan = search(recipe, with_nvme, top=100)
    for candidate in (plan.chosen, *plan.alternatives):
        config = emit(recipe, candidate.strategy, "/mnt/nvme")
        assert ("optimizer" in config) == OPTIMIZERS[name].named_in_ds_config
        handed = None if "optimizer" in config else OPTIMIZERS[name].implementation.rpartition(".")[2].lower()
        if handed in (None, "muonwithauxadam"):  # of ours `scale check` knows no more than that LAMB's kind is unsound
            findings = check(json.dumps(config), Context(world_size=8, optimizer=handed))
            assert not [each for each in findings if each.severity == ERROR], candidate.strategy


def test_moments_decide_what_an_optimizer_takes(asked, cluster_like):
    pinned = Steering(pins=(("zero_stage", 1), ("micro_batch_size", 4), ("activation_checkpointing", "full")))
    taken = {
        name: search(asked(name, "bf16"), cluster_like(), steering=pinned).chosen.memory.optimizer_bytes
        for name in TRAINABLE
        if name != "adafactor"
    }
    # 4 bytes of master copy, and 4 per moment: 12 with two, 8 with one.
    assert taken["adamw"] == taken["lamb"] == taken["lans"]
    assert taken["lion"] == taken["sgd"] == taken["lars"] == pytest.approx(taken["adamw"] * 8 / 12, rel=1e-6)
    assert taken["lion"] < taken["muon"] < taken["adamw"]


@pytest.mark.parametrize(
    ("name", "pins", "why"),
    [
        ("adafactor", {"zero_stage": 2}, "flat shards"),
        ("sgd", {"zero_stage": 3, "offload_optimizer": "nvme"}, "no optimizer but AdamW"),
        ("lars", {"offload_optimizer": "nvme"}, "no optimizer but AdamW and LAMB"),
    ],
)
def test_an_unsound_pin_is_refused_with_the_reason(name, pins, why, asked, with_nvme):
    with pytest.raises(InputError) as caught:
        search(asked(name), with_nvme, steering=Steering(pins=tuple(pins.items())))
    assert caught.value.field == "pin"
    assert f"{name} works" in caught.value.hint
    assert why in caught.value.hint


def test_adafactor_in_16_bit_and_lion_on_cpus_have_no_plan(asked, cluster_like):
    with pytest.raises(InputError, match="adafactor") as caught:
        search(asked("adafactor", "bf16"), cluster_like())
    assert (caught.value.field, caught.value.hint) == ("precision", "fp32")
    with pytest.raises(InputError, match="no kernel") as caught:
        search(asked("lion"), hardware.cluster_of("cpu", 2, 1, None, None)[0])
    assert caught.value.field == "optimizer"
