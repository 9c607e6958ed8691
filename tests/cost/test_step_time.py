"""Seconds per step: parts that sum, directions that cannot be wrong, and runs that others measured."""

from dataclasses import fields

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.cost import Job, step_time
from scaling.cost.step_time import communication_bytes, offload_s
from scaling.registry import MODELS

_PARTS = ("compute_s", "recompute_s", "memory_bound_s", "communication_s", "optimizer_s")


@st.composite
def _situations(draw):
    """Arguments of `estimate`: a model of the registry, a precision, a cluster and the fields of a strategy."""
    return {
        "model": draw(st.sampled_from(sorted(MODELS))),
        "precision": draw(st.sampled_from(["bf16", "fp32"])),
        "gpu": draw(st.sampled_from(["a100-80gb", "h100", "t4", "mi300x"])),
        "nodes": draw(st.sampled_from([1, 2, 64])),
        "gpus": draw(st.sampled_from([1, 2, 8])),
        "zero_stage": draw(st.integers(0, 3)),
        "micro_batch_size": draw(st.integers(1, 64)),
        "gradient_accumulation_steps": draw(st.sampled_from([1, 2, 32])),
        "activation_checkpointing": draw(st.sampled_from(["none", "full"])),
        "offload_optimizer": draw(st.sampled_from(["none", "cpu"])),
    }


@pytest.fixture(scope="module")
def estimate(planned_recipe, strategy_like, cluster_like):
    """A function from a situation to (recipe, strategy, TimeEstimate); `row` changes the accelerator."""

    def of(*, model, precision="bf16", gpu="a100-80gb", nodes=1, gpus=8, seq_length=None, row=None, **strategy_fields):
        cluster = cluster_like(gpu, nodes=nodes, gpus=gpus, **(row or {}))
        ranks = cluster.world_size
        batch = strategy_fields["micro_batch_size"] * strategy_fields["gradient_accumulation_steps"] * ranks
        recipe = planned_recipe(model, precision=precision, seq_length=seq_length, global_batch_size=batch)
        strategy = strategy_like(recipe, data_parallel_size=ranks, **strategy_fields)
        return recipe, strategy, step_time(Job.of(recipe), strategy, cluster)

    return of


@given(_situations())
def test_the_parts_sum_to_the_step_and_the_rest_follows_from_it(estimate, situation):
    recipe, _, found = estimate(**situation)
    assert all(getattr(found, part) >= 0 for part in _PARTS)
    assert sum(getattr(found, part) for part in _PARTS) == pytest.approx(found.step_s)
    assert found.tokens_per_second * found.step_s == pytest.approx(recipe.global_batch_size * recipe.data.seq_length)
    assert found.train_days * 86_400 == pytest.approx(recipe.num_steps * found.step_s)
    assert 0 < found.mfu_fraction < 1
    assert {field.name for field in fields(found)} == {
        "step_s", *_PARTS, "tokens_per_second", "mfu_fraction", "train_days",
    }  # fmt: skip


@pytest.mark.parametrize(
    "part", ["link_bytes_per_s", "network_bytes_per_s", "memory_bytes_per_s", "matmul_flops", "peak_flops_fp32"]
)
@given(situation=_situations(), factor=st.floats(0.01, 0.99))
def test_nothing_slower_makes_a_step_faster(estimate, cluster_like, part, situation, factor):
    row = cluster_like(situation["gpu"]).accelerator
    _, _, slower = estimate(**situation, row={part: factor * getattr(row, part)})
    _, _, found = estimate(**situation)
    assert slower.step_s >= found.step_s * (1 - 1e-12)


@given(_situations())
def test_full_checkpointing_is_never_faster_and_computes_at_most_a_third_more(estimate, situation):
    _, _, none = estimate(**{**situation, "activation_checkpointing": "none"})
    _, _, full = estimate(**{**situation, "activation_checkpointing": "full"})
    assert full.step_s >= none.step_s
    assert none.recompute_s == 0
    # The forward again: a third of forward and backward, less the head that is not repeated (Chen et al. 2016).
    assert 0 < full.recompute_s <= full.compute_s / 3 * (1 + 1e-12)


@given(_situations())
def test_one_rank_sends_nothing(estimate, situation):
    recipe, strategy, found = estimate(**{**situation, "nodes": 1, "gpus": 1})
    assert communication_bytes(Job.of(recipe), strategy) == 0
    assert found.communication_s == 0


@given(_situations())
def test_more_micro_steps_of_the_same_batch_are_never_faster(estimate, situation):
    # The same tokens in smaller pieces: no fewer FLOPs, more reductions.
    micro, steps = situation["micro_batch_size"], situation["gradient_accumulation_steps"]
    assume(micro % 2 == 0)
    split = {"micro_batch_size": micro // 2, "gradient_accumulation_steps": steps * 2}
    _, _, whole = estimate(**situation)
    _, _, halves = estimate(**{**situation, **split})
    assert halves.step_s >= whole.step_s * (1 - 1e-12)


@pytest.mark.parametrize(("zero_stage", "volume"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_the_communication_volume_is_that_of_the_zero_paper(zero_stage, volume, estimate):
    # Rajbhandari et al. 2020, section 7: 2 Psi elements for plain data parallelism, Pos and Pos+g, 3 Psi with Pos+g+p,
    # without accumulation. DeepSpeed 0.19.8's stage 1 all-reduces before it gathers (a third Psi), so it is the
    # exception that cost/step_time.py documents.
    recipe, strategy, _ = estimate(
        model="gpt3-1.3b", zero_stage=zero_stage, micro_batch_size=1, gradient_accumulation_steps=1, nodes=128
    )
    volume += zero_stage == 1
    elements = communication_bytes(Job.of(recipe), strategy) / 2
    assert elements / recipe.shape.num_params == pytest.approx(volume, rel=0.002)  # a ring: (W - 1) / W of it


@pytest.mark.parametrize(
    ("model", "gpu", "nodes", "micro", "steps", "checkpointing", "measured", "within"),
    # mosaicml/llm-foundry, scripts/train/benchmarking/README.md: tokens a second and GPU at sequence length 2048, bf16,
    # FSDP full shard, nodes of 8. MPT has GPT-3's dimensions and a vocabulary of 50,368; no biases, ALiBi.
    [
        ("gpt3-1.3b", "a100-80gb", 1, 14, 4, "none", 20_513, 0.15),
        ("gpt3-760m", "a100-80gb", 1, 24, 2, "none", 32_434, 0.15),
        ("gpt3-2.7b", "a100-80gb", 1, 10, 2, "none", 10_811, 0.15),
        ("gpt3-6.7b", "a100-80gb", 1, 6, 2, "none", 4_641, 0.15),
        ("gpt3-6.7b", "a100-40gb", 16, 18, 1, "full", 3_623, 0.15),
        ("gpt3-13b", "a100-40gb", 8, 16, 1, "full", 1_976, 0.15),
        ("gpt3-1.3b", "a100-40gb", 16, 10, 1, "none", 18_647, 0.15),
        # On H100 the fit is too hopeful: by 13 to 25 % on these rows.
        ("gpt3-13b", "h100", 32, 16, 1, "full", 4_989, 0.3),
        ("gpt3-6.7b", "h100", 32, 6, 1, "none", 10_119, 0.3),
        ("gpt3-1.3b", "h100", 16, 12, 1, "none", 44_123, 0.3),
    ],
)
def test_throughput_is_near_what_llm_foundry_measured(
    estimate, model, gpu, nodes, micro, steps, checkpointing, measured, within
):
    _, _, found = estimate(
        model=model, gpu=gpu, nodes=nodes, zero_stage=3, micro_batch_size=micro, gradient_accumulation_steps=steps,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    assert found.tokens_per_second / (8 * nodes) == pytest.approx(measured, rel=within)


def test_mfu_is_model_flops_over_the_dense_peak(estimate):
    # PaLM (Chowdhery et al. 2022), appendix B: 6 N + 12 L H Q T FLOPs a token, N without the position embedding.
    recipe, _, found = estimate(
        model="gpt3-1.3b", zero_stage=3, micro_batch_size=14, gradient_accumulation_steps=4,
        activation_checkpointing="full",
    )  # fmt: skip
    flops_per_token = 6 * recipe.shape.num_params + 12 * 24 * 16 * 128 * 2048
    # Biases, norms and positions are in N and not in the matmuls: 0.4 % here.
    assert found.mfu_fraction == pytest.approx(found.tokens_per_second * flops_per_token / (8 * 312e12), rel=0.005)


def test_offloading_the_optimizer_costs_time(estimate):
    situation = dict(model="gpt3-1.3b", zero_stage=2, micro_batch_size=8, gradient_accumulation_steps=1)
    _, _, on_gpu = estimate(**situation)
    _, _, on_host = estimate(**situation, offload_optimizer="cpu")
    assert on_host.optimizer_s > 5 * on_gpu.optimizer_s
    assert on_host.step_s > on_gpu.step_s


_PLACES = ("none", "cpu", "nvme")


@pytest.mark.parametrize("field", ["offload_optimizer", "offload_param"])
def test_each_place_further_away_costs_more_time_and_parameters_cost_it_every_micro_step(estimate, field):
    situation = dict(model="gpt3-1.3b", zero_stage=3, micro_batch_size=8)
    slowest = [estimate(**situation, gradient_accumulation_steps=4, **{field: place})[2].step_s for place in _PLACES]
    assert slowest == sorted(slowest)

    def added(steps, place):
        _, _, without = estimate(**situation, gradient_accumulation_steps=steps)
        _, _, found = estimate(**situation, gradient_accumulation_steps=steps, **{field: place})
        return found.optimizer_s - without.optimizer_s

    assert added(8, "cpu") > added(4, "cpu") > added(1, "cpu")


def test_nvme_time_is_bytes_over_bandwidth(cluster_like, planned_recipe, strategy_like):
    # ZeRO-Infinity's case: 16 bytes a parameter of states, read and written once a step, by all ranks of a node.
    recipe, cluster = planned_recipe("gpt3-13b"), cluster_like()
    on_cpu = strategy_like(recipe, zero_stage=3, offload_optimizer="cpu")
    on_nvme = strategy_like(recipe, zero_stage=3, offload_optimizer="nvme")
    difference = offload_s(Job.of(recipe), on_nvme, cluster) - offload_s(Job.of(recipe), on_cpu, cluster)
    assert difference == pytest.approx(32 * recipe.shape.num_params / 5e9, rel=1e-6)
