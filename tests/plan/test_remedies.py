"""A remedy does when it is followed, and is the smallest of its kind."""

import re
from dataclasses import replace

import pytest

from scaling.hardware import ACCELERATORS
from scaling.plan import search, steering_of
from scaling.units import GIB

_WITHOUT_OFFLOAD = steering_of(forbid=["offload"])


def _remedy(plan, pattern):
    """The groups of the one remedy that matches."""
    (match,) = filter(None, (re.search(pattern, remedy) for remedy in plan.remedies))
    return match.groups()


def _sequences(recipe, seq_length):
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"seq_length": seq_length})})


@pytest.fixture
def short(planned_recipe, cluster_like):
    """(recipe, cluster, plan) of GPT-3 6.7B on four A100-40GB without offload: 107 GB of states over 160 GiB."""
    recipe, cluster = planned_recipe("gpt3-6.7b", global_batch_size=6144), cluster_like("a100-40gb", gpus=4)
    plan = search(recipe, cluster, steering=_WITHOUT_OFFLOAD)
    assert not plan.fits
    return recipe, cluster, plan


def test_lifting_what_was_forbidden(short):
    recipe, cluster, plan = short
    assert any(remedy.startswith("without offload forbidden: ZeRO-") for remedy in plan.remedies)
    assert search(recipe, cluster).fits


def test_more_gpus_do_and_half_of_them_would_not(short):
    recipe, cluster, plan = short
    _, nodes = _remedy(plan, r"^(\d+) GPUs \((\d+) x 4 a100-40gb\): ZeRO")
    assert search(recipe, replace(cluster, num_nodes=int(nodes)), steering=_WITHOUT_OFFLOAD).fits
    assert not search(recipe, replace(cluster, num_nodes=int(nodes) // 2), steering=_WITHOUT_OFFLOAD).fits


def test_a_larger_memory_does_and_the_next_smaller_would_not(short):
    recipe, cluster, plan = short
    (name,) = _remedy(plan, r"^4 (\S+) of \d+ GiB: ZeRO")
    does = ACCELERATORS[name]
    smaller = [
        row
        for row in ACCELERATORS.values()
        if cluster.accelerator.usable_memory_bytes < row.usable_memory_bytes < does.usable_memory_bytes
        and row.supports_bf16
    ]
    assert search(recipe, replace(cluster, accelerator=does), steering=_WITHOUT_OFFLOAD).fits
    for row in smaller:
        assert not search(recipe, replace(cluster, accelerator=row), steering=_WITHOUT_OFFLOAD).fits


def test_the_longest_sequence_fits_and_64_tokens_more_do_not(planned_recipe, cluster_like):
    recipe, cluster = planned_recipe("gpt3-1.3b", global_batch_size=64), cluster_like("a100-40gb", gpus=1)
    steering = steering_of(forbid=["offload"], pin=["activation_checkpointing=none", "micro_batch_size=16"])
    plan = search(recipe, cluster, steering=steering)
    assert not plan.fits
    (longest,) = (int(found) for found in _remedy(plan, r"^seq_length (\d+) instead of 2048: ZeRO"))
    assert search(_sequences(recipe, longest), cluster, steering=steering).fits
    assert not search(_sequences(recipe, longest + 64), cluster, steering=steering).fits


def test_the_nvme_that_is_named_does(planned_recipe, cluster_like):
    recipe, cluster = planned_recipe("gpt3-175b", global_batch_size=1024), cluster_like("a100-80gb", gpus=1)
    plan = search(recipe, cluster)
    assert not plan.fits
    (nvme_gib,) = _remedy(plan, r"^NVMe \(--nvme-path, --nvme-gib\): .*, ([\d.]+) GiB of NVMe per node")
    need = re.search(r"and ([\d.]+) GiB of host memory per node", " ".join(r for r in plan.remedies if "NVMe" in r))
    host = int((float(need[1]) + 0.1) * GIB) if need else cluster.host_memory_bytes
    offered = replace(cluster, nvme_path="/n", nvme_bytes=int((float(nvme_gib) + 0.1) * GIB), host_memory_bytes=host)
    assert search(recipe, offered).fits
    assert not search(recipe, replace(offered, nvme_bytes=int((float(nvme_gib) - 0.1) * GIB))).fits


def test_where_only_the_host_is_too_small_its_memory_is_the_remedy(planned_recipe, cluster_like):
    # Below stage 3 every rank builds GPT-3 13B in fp32 before it is sharded: 8 x 12.85e9 x 4 bytes = 383 GiB.
    recipe, cluster = planned_recipe("gpt3-13b", global_batch_size=64), cluster_like(host_memory_bytes=256 * GIB)
    second = steering_of(pin=["zero_stage=2"])
    plan = search(recipe, cluster, steering=second)
    need, there = _remedy(plan, r"^([\d.]+) GiB of host memory per node \(--host-gib\) instead of ([\d.]+) GiB")
    assert (need, there) == ("383.1", "256.0")
    assert search(recipe, replace(cluster, host_memory_bytes=384 * GIB), steering=second).fits


def test_where_no_number_of_hosts_holds_the_build_the_gpus_that_need_no_offload_are_named(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-175b", global_batch_size=4096)
    cluster = cluster_like(host_memory_bytes=512 * GIB)
    plan = search(recipe, cluster)
    nodes, host_gib = _remedy(
        plan, r"^\d+ GPUs \((\d+) x 8 a100-80gb\): ZeRO.* and ([\d.]+) GiB of host memory per node"
    )
    # The first rank builds 175B parameters in fp32: 4 x 174.6e9 bytes.
    assert float(host_gib) == pytest.approx(4 * recipe.shape.num_params / GIB, rel=1e-4)
    steering, rich = steering_of(forbid=["offload"]), replace(cluster, host_memory_bytes=2**43)
    assert search(recipe, replace(rich, num_nodes=int(nodes)), steering=steering).fits
    assert not search(recipe, replace(rich, num_nodes=int(nodes) // 2), steering=steering).fits


def test_a_model_beyond_any_number_of_nodes_says_so(planned_recipe, cluster_like):
    recipe = planned_recipe("gpt3-175b", global_batch_size=1536, precision="fp32", seq_length=64)
    # A layer in fp32 is 7 GB, gathered twice beside its gradient; a hundredth of no GPU of the table is as much.
    tiny = cluster_like("t4", gpus=1, memory_bytes=4 * GIB, reported_memory_bytes=None)
    plan = search(recipe, tiny, steering=steering_of(safety=0.01))
    assert plan.remedies == ("nothing in reach of more nodes: choose a smaller model or GPUs with more memory",)
