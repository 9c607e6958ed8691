"""The largest model and the fewest GPUs are limits: what is a step beyond them does not fit."""

import pytest

from scaling.errors import Infeasible, InputError
from scaling.plan import request, reverse, search, steering_of
from scaling.plan.steering import FREE


def of_size(cluster, num_params, steering=FREE):
    recipe, _ = request.recipe_for(cluster, params=str(num_params))
    return search(recipe, cluster, steering=steering)


@pytest.mark.parametrize(("gpu", "gpus"), [("a100-80gb", 8), ("rtx-4090", 1), ("v100-32gb", 4)])
def test_the_largest_model_fits_and_a_tenth_more_does_not(gpu, gpus, cluster_like):
    cluster = cluster_like(gpu, gpus=gpus)
    plan = reverse.largest_model(lambda num_params: of_size(cluster, num_params))
    assert plan.fits
    assert not of_size(cluster, round(1.1 * plan.recipe.shape.num_params)).fits


def test_more_gpus_never_hold_a_smaller_model_where_the_host_holds_what_they_build(cluster_like):
    sizes = []
    for gpus in (1, 2, 4, 8):
        cluster = cluster_like("a100-40gb", gpus=gpus, host_memory_bytes=2**50)
        # With parameters offloaded too, what a second GPU brings is only NCCL's memory.
        steering = steering_of(forbid=["offload_param=cpu"])
        sizes.append(
            reverse.largest_model(lambda n, on=cluster, by=steering: of_size(on, n, by)).recipe.shape.num_params
        )
    assert sizes == sorted(sizes)


def test_the_fewest_gpus_fit_and_half_of_them_do_not(planned_recipe, cluster_like):
    recipe, cluster = planned_recipe("gpt3-13b", global_batch_size=1024), cluster_like("a100-40gb", gpus=8)
    steering = steering_of(forbid=["offload"])
    plan = reverse.fewest_gpus(recipe, cluster, lambda what, on: search(what, on, steering=steering))
    assert plan.fits
    gpus = plan.cluster.world_size
    assert gpus > 1
    assert not search(recipe, cluster_like("a100-40gb", gpus=gpus // 2), steering=steering).fits


def test_what_no_number_of_gpus_holds_is_said_with_the_reason(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-175b", global_batch_size=1536, precision="fp16")
    with pytest.raises(Infeasible) as refused:
        reverse.fewest_gpus(recipe, cluster_like("t4", gpus=4), lambda what, on: search(what, on))
    assert "gpt3-175b" in refused.value.message
    assert "GiB" in refused.value.hint


def test_the_cheapest_size_has_the_fewest_gpu_hours_and_is_the_soonest_done_of_those_that_tie(
    planned_recipe, cluster_like
):
    recipe, cluster = planned_recipe("gpt3-13b", global_batch_size=1536), cluster_like("a100-80gb", gpus=8, nodes=6)
    plan, sizes = reverse.cheapest(recipe, cluster, lambda what, on: search(what, on))
    assert [size.cluster.world_size for size in sizes] == [1, 2, 4, 8, 16, 32, 48]
    assert plan in sizes
    fitting = [size for size in sizes if size.fits]
    assert len(fitting) > 1
    fewest = min(size.chosen.gpu_hours for size in fitting)
    assert fewest <= plan.chosen.gpu_hours <= 1.02 * fewest
    sooner = [size for size in fitting if size.chosen.time.train_days < plan.chosen.time.train_days]
    assert all(size.chosen.gpu_hours > 1.02 * fewest for size in sooner)


def test_the_cheapest_of_sizes_that_all_fail_is_a_plan_that_does_not_fit(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-175b", global_batch_size=1536)
    plan, sizes = reverse.cheapest(recipe, cluster_like("a100-40gb"), lambda what, on: search(what, on))
    assert not plan.fits
    assert plan.cluster.world_size == 8
    assert len(sizes) == 4


def test_ranks_of_one_cpu_have_no_price(planned_recipe, cluster_like):
    with pytest.raises(InputError, match="objective"):
        reverse.cheapest(planned_recipe("gpt-demo"), cluster_like(name="cpu"), lambda what, on: search(what, on))
