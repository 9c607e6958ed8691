"""What is searched divides the model; what cannot be run is priced, reported and never chosen."""

from dataclasses import replace

import pytest

from scaling import registry
from scaling.family import FAMILIES
from scaling.parallelism import PARALLELISMS, unsplittable
from scaling.plan import search
from scaling.plan.layouts import illegal, layouts, offload_ignored, parallel_sizes
from tests.parallel.families import recipe_of


@pytest.mark.parametrize("model", ["gpt3-1.3b", "gpt3-175b", "gpt2-xl", "bert-large"])
def test_parallel_sizes_divide_heads_layers_sequence_and_ranks(model, cluster_like):
    shape, cluster = registry.find(model).shape, cluster_like("a100-80gb", gpus=8, nodes=4)
    sizes = list(parallel_sizes(shape, 512, cluster))
    assert sizes[0] == (1, 1, 1, 1)
    assert len(sizes) == len(set(sizes))
    for tp, pp, sp, ep in sizes:
        assert ep == 1  # no experts
        assert shape.num_attention_heads % tp == 0
        assert shape.num_attention_heads % sp == 0
        assert pp <= shape.num_layers  # stages may have a layer more or less
        assert 512 % sp == 0
        assert cluster.world_size % (tp * pp * sp) == 0
        assert max(tp, sp) <= 8  # within a node


def test_gpt2_xl_cannot_be_cut_over_eight_since_it_has_25_heads(cluster_like):
    sizes = parallel_sizes(registry.find("gpt2-xl").shape, 1024, cluster_like("a100-80gb", gpus=8))
    assert {each.tensor for each in sizes} == {1}


def test_experts_are_spread_over_ranks_that_they_and_the_world_divide(cluster_like):
    # mistralai/Mixtral-8x7B-v0.1 has 8 experts.
    shape = replace(registry.find("gpt3-1.3b").shape, num_experts=8, experts_per_token=2)
    sizes = parallel_sizes(shape, 2048, cluster_like("a100-80gb", gpus=4, nodes=3))
    assert {each.expert for each in sizes} == {1, 2, 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # Each of these is a finding about deepspeed 0.19.8, with its figure, in the rules that this project keeps.
        ({"zero_stage": 0}, "extra optimizer step"),
    ],
)
def test_what_deepspeed_does_wrong_is_illegal_with_the_reason(changes, reason, planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-1.3b", global_batch_size=512, precision="bf16")
    found = [
        illegal(recipe, layout)
        for layout in layouts(recipe, cluster_like("a100-80gb", gpus=8))
        if all(getattr(layout, name) == value for name, value in changes.items())
    ]
    assert found
    assert all(reason in answer for answer in found)


@pytest.mark.parametrize("stage", [2, 3])
def test_no_pipeline_is_searched_at_a_stage_that_deepspeed_refuses(stage, planned_recipe, cluster_like):
    # deepspeed 0.19.8, runtime/pipe/engine.py:67.
    found = list(layouts(planned_recipe("gpt3-1.3b", global_batch_size=512), cluster_like("a100-80gb", gpus=8)))
    assert any(layout.pipeline_parallel_size > 1 and layout.runnable for layout in found)
    assert not any(
        layout.pipeline_parallel_size > 1 and layout.zero_stage == stage and layout.runnable for layout in found
    )


def test_a_plan_chooses_only_what_can_be_run_and_says_what_else_would_bring(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-6.7b", global_batch_size=1024)
    plan = search(recipe, cluster_like("a100-80gb", gpus=8, nodes=2))
    for candidate in (plan.chosen, *plan.alternatives):
        assert unsplittable(recipe.shape, candidate.strategy, recipe.data.seq_length) == ("", "")
    refused = [rejection for rejection in plan.rejected if not rejection.can_run]
    assert any("scale/train.py does not run it" in each.reason for each in refused)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planner_proposes_what_the_table_says_is_run_and_no_more(family, tmp_path, cluster_like):
    kinds = PARALLELISMS[family].runnable
    recipe = recipe_of(family, tmp_path)
    found = list(layouts(recipe, cluster_like("a100-80gb", gpus=4)))
    assert {kind for layout in found if layout.runnable for kind in layout.kinds} == kinds
    for layout in found:
        assert layout.runnable == (not unsplittable(recipe.shape, layout, recipe.data.seq_length)[0])


def test_cutting_a_model_over_more_ranks_is_priced_slower_where_links_are_slower(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-6.7b", global_batch_size=1024)

    def tensor_parallel(gpu):
        plan = search(recipe, cluster_like(gpu, gpus=8))
        reasons = [
            r.reason for r in plan.rejected if "tensor parallel" in r.strategy and " x the chosen one" in r.reason
        ]
        return min(float(reason.split(" x the chosen one")[0].split()[-1]) for reason in reasons)

    assert tensor_parallel("a100-80gb-pcie") > tensor_parallel("a100-80gb")


def test_what_is_offloaded_is_only_what_deepspeed_obeys(planned_recipe, cluster_like):
    # deepspeed 0.19.8: offload_param is read at stage 3 only (zero/config.py), and NVMe is the CPU below it
    # (zero/stage_1_and_2.py:220).
    recipe, plain = planned_recipe("gpt3-1.3b"), cluster_like()
    with_nvme = replace(plain, nvme_path="/mnt/nvme", nvme_bytes=2**40)
    for cluster, places in ((plain, {"none", "cpu"}), (with_nvme, {"none", "cpu", "nvme"})):
        found = {(each.zero_stage, each.offload_optimizer, each.offload_param) for each in layouts(recipe, cluster)}
        assert {optimizer for stage, optimizer, _ in found if stage == 3} == places
        assert {param for stage, _, param in found if stage == 3} == places
        assert {optimizer for stage, optimizer, _ in found if stage in (1, 2)} == {"none", "cpu"}
        assert {param for stage, _, param in found if stage < 3} == {"none"}
        assert not any(offload_ignored(*each) for each in found)
