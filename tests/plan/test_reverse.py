"""The largest model and the fewest GPUs are limits: what is a step beyond them does not fit."""

import pytest

from scaling.errors import Infeasible
from scaling.plan import request, reverse, search, steering_of


def of_size(cluster, num_params):
    recipe, _ = request.recipe_for(cluster, params=str(num_params))
    return search(recipe, cluster)


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
        sizes.append(reverse.largest_model(lambda n, on=cluster: of_size(on, n)).recipe.shape.num_params)
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
