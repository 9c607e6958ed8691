"""Every family of strategies is chosen or lost for a reason, and the reason names the quantity that decides."""

import re
from dataclasses import replace

import pytest

from scaling import cost
from scaling.plan import search, steering_of
from scaling.plan.explain import shortage
from scaling.plan.layouts import illegal, layouts
from scaling.units import GIB


@pytest.fixture
def planned(planned_recipe, cluster_like):
    def of(model="gpt3-6.7b", gpu="a100-80gb", steering=None, **fields):
        recipe, cluster = planned_recipe(model, global_batch_size=1024, **fields), cluster_like(gpu)
        return search(recipe, cluster, steering=steering) if steering else search(recipe, cluster)

    return of


@pytest.mark.parametrize("model", ["gpt3-1.3b", "gpt3-6.7b", "gpt3-175b", "bert-large"])
def test_every_family_is_chosen_or_rejected_once(model, planned):
    plan = planned(model)
    named = [name for rejection in plan.rejected for name in rejection.strategy.split("; ")]
    assert len(named) == len(set(named))
    for layout in layouts(plan.recipe, plan.cluster):
        kinds = [f"{kind} parallel" for kind in layout.kinds]
        whole = ", ".join([f"ZeRO-{layout.zero_stage} in every form", *kinds])
        # A family that could not be run is named by its best sizes where it fits: "tensor parallel 2".
        pattern = ".*".join(re.escape(part) for part in (f"{layout}", *kinds))
        chosen = str(plan.strategy).startswith(str(layout)) and not kinds
        assert chosen or whole in named or any(re.match(pattern, name) for name in named), str(layout)


def test_what_breaks_a_rule_says_so_and_nothing_else_does(planned):
    plan = planned()
    broken = {illegal(plan.recipe, layout) for layout in layouts(plan.recipe, plan.cluster)} - {""}
    assert broken == {each.reason for each in plan.rejected if "DeepSpeed" in each.reason}


def test_what_steering_excludes_says_so(planned):
    plan = planned(steering=steering_of(forbid=["offload"]))
    excluded = [each for each in plan.rejected if each.reason == "excluded: offload forbidden"]
    assert excluded
    assert all("on cpu" in name for each in excluded if each.can_run for name in each.strategy.split("; "))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"zero_stage": 1}, r"^([\d.]+) GiB of model states > 73.6 GiB usable"),
        (
            {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
            r"^([\d.]+) GiB at micro batch 1 > 73.6 GiB usable of 80.0 GiB: .*GiB of activations and logits",
        ),
    ],
)
def test_a_shortage_names_the_part_that_is_too_large(changes, pattern, planned_recipe, strategy_like, cluster_like):
    recipe, cluster = planned_recipe("gpt3-175b"), cluster_like()
    strategy = strategy_like(recipe, micro_batch_size=1, **changes)
    memory = cost.memory(cost.Job.of(recipe), strategy, cluster)
    (figure,) = re.match(pattern, shortage(strategy, memory)).groups()
    assert float(figure) * GIB in (
        pytest.approx(memory.model_states_bytes, rel=0.01),
        pytest.approx(memory.total_bytes, rel=0.01),
    )


def test_a_shortage_of_host_or_nvme_is_said_where_the_device_holds_it(planned_recipe, strategy_like, cluster_like):
    recipe, cluster = planned_recipe("gpt3-6.7b"), replace(cluster_like(), nvme_bytes=10 * GIB)
    strategy = strategy_like(
        recipe, zero_stage=3, offload_optimizer="nvme", micro_batch_size=1, activation_checkpointing="full"
    )
    job = cost.Job.of(recipe)
    # 16 bytes of each of 6.66B parameters: master copy, gradient and two moments.
    assert shortage(strategy, cost.memory(job, strategy, cluster)) == "99.2 GiB of NVMe per node > 10.0 GiB"
    small = replace(cluster, host_memory_bytes=24 * GIB)  # the first rank alone builds 24.8 GiB
    assert "of host memory per node > 24.0 GiB" in shortage(strategy, cost.memory(job, strategy, small))
