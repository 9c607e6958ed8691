"""Bytes per rank: the ZeRO paper's figures, and what must never grow when something else shrinks."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.cost import USABLE_FRACTION, Job, memory
from scaling.cost.activations import activations
from scaling.cost.model_states import Held, model_states
from scaling.registry import MODELS
from scaling.shape import Shape
from scaling.units import GIB

_BF16_ADAM = Job(shape=MODELS["gpt3-6.7b"].shape, seq_length=2048, precision="bf16")


@pytest.mark.parametrize(("zero_stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_figure_1_of_the_zero_paper(zero_stage, gigabytes, strategy_like, planned_recipe):
    # Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1: 7.5B parameters, 64-way data parallelism, K = 12:
    # 2 bytes of parameters, 2 of gradients, 12 of Adam's fp32 copy and moments. Decimal GB, as printed.
    strategy = strategy_like(
        planned_recipe(), zero_stage=zero_stage, data_parallel_size=64, gradient_accumulation_steps=1
    )
    states = model_states(_BF16_ADAM, strategy, *2 * [Held(7_500_000_000)])
    assert sum(states) / 1e9 == pytest.approx(gigabytes, abs=0.051)


@pytest.mark.parametrize(("zero_stage", "billions"), [(0, 2), (1, 7.6), (2, 14.4), (3, 128)])
def test_the_largest_model_on_64_gpus_is_that_of_table_2_of_the_zero_paper(
    zero_stage, billions, strategy_like, planned_recipe
):
    # Rajbhandari et al. 2020, table 2, "Max Theoretical Model Size" at MP 1 and 64 GPUs: 32 GB of model states each.
    strategy = strategy_like(
        planned_recipe(), zero_stage=zero_stage, data_parallel_size=64, gradient_accumulation_steps=1
    )
    states = model_states(_BF16_ADAM, strategy, *2 * [Held(billions * 1e9)])
    assert sum(states) / 1e9 == pytest.approx(32, rel=0.01)


_STAGES = st.integers(0, 3)
_PRECISIONS = st.sampled_from(["bf16", "fp16", "fp32"])
_RANKS = st.sampled_from([1, 2, 3, 4, 8, 16, 64, 512])
_MICRO = st.integers(1, 64)
_STEPS = st.sampled_from([1, 2, 3, 32])
_CHECKPOINTING = st.sampled_from(["none", "full"])
_OFFLOAD = st.sampled_from(["none", "cpu"])
_PLACES = ["none", "cpu", "nvme"]
# Images have no length to vary.
_MODELS = st.sampled_from([name for name in sorted(MODELS) if MODELS[name].shape.traits.kind != "vision"])


@st.composite
def _situations(draw):
    """A model of the registry, a precision and the fields of a strategy."""
    return {
        "model": draw(_MODELS),
        "precision": draw(_PRECISIONS),
        "zero_stage": draw(_STAGES),
        "data_parallel_size": draw(_RANKS),
        "micro_batch_size": draw(_MICRO),
        "gradient_accumulation_steps": draw(_STEPS),
        "activation_checkpointing": draw(_CHECKPOINTING),
        "offload_optimizer": draw(_OFFLOAD),
    }


@pytest.fixture(scope="module")
def estimate(planned_recipe, strategy_like, cluster_like):
    """A function from a situation to its MemoryEstimate; nodes of 8, or one node with fewer ranks."""

    def of(*, model, precision, seq_length=None, dropout=0.0, **fields):
        recipe = planned_recipe(model, precision=precision, seq_length=seq_length, dropout=dropout)
        ranks = fields["data_parallel_size"]
        cluster = cluster_like(nodes=ranks // 8 or 1, gpus=8 if ranks % 8 == 0 else ranks)
        return memory(Job.of(recipe), strategy_like(recipe, **fields), cluster)

    return of


@given(_situations())
def test_the_items_sum_to_the_peak_and_the_peak_is_the_largest_moment(estimate, situation):
    found = estimate(**situation)
    items = (
        found.parameters_bytes, found.gradients_bytes, found.optimizer_bytes, found.activations_bytes,
        found.logits_bytes, found.buffers_bytes,
    )  # fmt: skip
    assert all(isinstance(item, int) and item >= 0 for item in items)
    assert sum(items) == found.peak_allocated_bytes == max(found.moments.values()) == found.moments[found.peak_moment]
    assert found.peak_allocated_bytes <= found.peak_reserved_bytes < found.total_bytes
    assert found.fits == (
        found.peak_reserved_bytes + found.context_bytes <= USABLE_FRACTION * found.capacity_bytes
        and found.host_bytes_per_node <= found.host_capacity_bytes
    )


@given(_situations())
def test_a_higher_stage_never_has_more_model_states(estimate, situation):
    # On one rank nothing is sharded, and from stage 1 DeepSpeed keeps a master copy even of fp32 parameters.
    assume(situation["data_parallel_size"] > 1)
    situation["offload_optimizer"] = "none"
    states = [estimate(**{**situation, "zero_stage": stage}).model_states_bytes for stage in range(4)]
    assert states == sorted(states, reverse=True)


@given(_situations(), st.sampled_from([2, 3, 8]))
def test_more_ranks_never_need_more_memory_each(estimate, situation, times):
    # From two ranks on: the first neighbour brings communication buffers.
    ranks = situation["data_parallel_size"]
    assume(ranks > 1)
    more = estimate(**{**situation, "data_parallel_size": ranks * times})
    fewer = estimate(**situation)
    assert more.total_bytes <= fewer.total_bytes
    assert more.model_states_bytes <= fewer.model_states_bytes


@given(_situations())
def test_memory_grows_with_the_micro_batch_and_with_the_sequence(estimate, situation):
    longer = MODELS[situation["model"]].shape.max_position_embeddings
    base = estimate(**situation, seq_length=longer // 2)
    wider = estimate(**{**situation, "micro_batch_size": 2 * situation["micro_batch_size"]}, seq_length=longer // 2)
    # Only tokens count: attention is flash-like, with no T x T square but T5's biased scores and ModernBERT's windows.
    # An encoder-decoder's targets are whole spans, of which twice the length has not quite twice as many.
    shape = MODELS[situation["model"]].shape
    if shape.family != "modernbert" and shape.traits.kind != "encoder-decoder":
        assert wider == estimate(**situation, seq_length=longer)
    assert wider.peak_allocated_bytes >= base.peak_allocated_bytes
    assert wider.moments["loss"] > base.moments["loss"]
    assert wider.moments["backward"] > base.moments["backward"]


@given(_situations())
def test_full_checkpointing_never_needs_more_than_none(estimate, situation):
    none = estimate(**{**situation, "activation_checkpointing": "none"})
    full = estimate(**{**situation, "activation_checkpointing": "full"})
    assert full.peak_allocated_bytes <= none.peak_allocated_bytes


@given(_situations())
def test_dropout_never_needs_less(estimate, situation):
    without = estimate(**situation)
    assert estimate(**situation, dropout=0.1).peak_allocated_bytes >= without.peak_allocated_bytes


@given(_situations())
def test_offloading_the_optimizer_moves_its_bytes_to_the_host(estimate, situation):
    assume(situation["zero_stage"] >= 1)
    on_gpu = estimate(**{**situation, "offload_optimizer": "none"})
    on_host = estimate(**{**situation, "offload_optimizer": "cpu"})
    assert on_host.optimizer_bytes == 0
    assert on_host.peak_allocated_bytes < on_gpu.peak_allocated_bytes
    # Adam's fp32 copy and two moments of every parameter: 12 bytes, over the nodes.
    shape, ranks = MODELS[situation["model"]].shape, situation["data_parallel_size"]
    nodes = max(1, ranks // 8)
    assert on_host.host_bytes_per_node - on_gpu.host_bytes_per_node >= 12 * shape.num_params // nodes


def test_a_full_checkpoint_saves_one_hidden_state_a_layer(estimate):
    # Chen et al. 2016 (arXiv 1604.06174) at every layer: L x B x T x D elements, and one layer's own.
    situation = dict(
        model="gpt3-6.7b", precision="bf16", zero_stage=3, data_parallel_size=8, gradient_accumulation_steps=1,
        activation_checkpointing="full",
    )  # fmt: skip
    small, large = (estimate(**situation, micro_batch_size=micro) for micro in (64, 128))
    per_token = (large.moments["backward"] - small.moments["backward"]) / (64 * 2048)
    checkpoints = 32 * 4096 * 2
    # Korthikanti et al. 2022 (arXiv 2205.05198), equation 1: 34 bytes with dropout, attention scores apart.
    one_layer = 34 * 4096
    # The working set holds gradients besides; together no more than another layer's worth.
    assert checkpoints < per_token < checkpoints + 2 * one_layer


@pytest.mark.parametrize("name", ["gpt3-1.3b", "gpt3-175b", "bert-large"])
def test_without_checkpointing_a_layer_saves_34_bytes_per_hidden_less_its_dropout_masks(
    name, planned_recipe, strategy_like
):
    # Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: s b h (34 + 5 a s / h) bytes a layer in 16 bit with eager
    # attention and dropout. Without the square (flash) and without the two masks of a byte, 32.
    recipe = planned_recipe(name)
    _, layer, _, _ = activations(Job.of(recipe), strategy_like(recipe, micro_batch_size=3))
    tokens = 3 * recipe.data.seq_length
    assert layer / (tokens * recipe.shape.hidden_size) == 32


def test_only_predicted_positions_have_logits(estimate, planned_recipe):
    situation = dict(
        precision="bf16", zero_stage=2, data_parallel_size=8, gradient_accumulation_steps=1, micro_batch_size=64,
        activation_checkpointing="full",
    )  # fmt: skip
    found = estimate(model="bert-base", **situation)
    # 15 % of 64 x 512 positions (Devlin et al. 2018), vocabulary 30,522, 12 bytes a logit.
    assert found.peak_moment == "loss"
    assert found.logits_bytes == pytest.approx(0.15 * 64 * 512 * 30_522 * 12, rel=1e-6)


def test_a_cpu_rank_reserves_what_it_allocates_and_shares_the_machine(planned_recipe, strategy_like, cluster_like):
    recipe = planned_recipe("gpt-demo")
    strategy = strategy_like(recipe, data_parallel_size=2)
    cpu = cluster_like("a100-80gb", gpus=2, name="cpu", memory_bytes=4 * GIB, reported_memory_bytes=None)
    found = memory(Job.of(recipe), strategy, cpu)
    assert found.peak_reserved_bytes == found.peak_allocated_bytes
    assert found.capacity_bytes == 4 * GIB
    # A rank that has imported torch, transformers and deepspeed takes about half a GiB.
    assert 0.3 * GIB < found.context_bytes < 1 * GIB


def test_a_tall_model_needs_far_less_with_full_checkpointing(estimate):
    # Sixteen hidden states a layer (8 D + 2 F, F = 4 D) become one: large L brings the ratio to 16.
    tall = Shape(
        name="tall", family="gpt2", num_layers=200, hidden_size=256, num_attention_heads=4, intermediate_size=1024,
        vocab_size=256, max_position_embeddings=1024,
    )  # fmt: skip
    situation = dict(
        model=tall, precision="bf16", zero_stage=3, data_parallel_size=8, gradient_accumulation_steps=1,
        micro_batch_size=64,
    )  # fmt: skip
    none = estimate(**situation, activation_checkpointing="none", seq_length=1024)
    full = estimate(**situation, activation_checkpointing="full", seq_length=1024)
    assert none.activations_bytes > 10 * full.activations_bytes


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("steps", [1, 4])
def test_each_place_nearer_to_the_disk_takes_less_of_the_device_and_of_the_host(estimate, precision, steps):
    situation = dict(
        model="gpt3-13b", precision=precision, zero_stage=3, data_parallel_size=8, micro_batch_size=1,
        gradient_accumulation_steps=steps, activation_checkpointing="full",
    )  # fmt: skip
    P = MODELS["gpt3-13b"].shape.num_params
    found = {
        (optimizer, param): estimate(**situation, offload_optimizer=optimizer, offload_param=param)
        for optimizer in _PLACES
        for param in _PLACES
    }
    for place in ("cpu", "nvme"):
        assert found[place, "none"].optimizer_bytes == found[place, "none"].gradients_bytes == 0
        assert found["none", place].parameters_bytes == 0
        assert found[place, place].total_bytes < found[place, "none"].total_bytes < found["none", "none"].total_bytes
    assert found["nvme", "none"].host_bytes_per_node < found["cpu", "none"].host_bytes_per_node
    assert found["none", "nvme"].host_bytes_per_node < found["none", "cpu"].host_bytes_per_node
    # ZeRO-Infinity (Rajbhandari et al. 2021, arXiv 2104.07857, section 3): 16 bytes a parameter of fp32 states, 2 or 4
    # of the parameter itself.
    width = 2 if precision == "bf16" else 4
    assert found["nvme", "none"].nvme_bytes_per_node == pytest.approx(16 * P, rel=1e-6)
    assert found["nvme", "nvme"].nvme_bytes_per_node == pytest.approx((16 + width) * P, rel=1e-6)
    assert found["cpu", "cpu"].nvme_bytes_per_node == 0


def test_one_gpu_gathers_what_is_offloaded(estimate):
    situation = dict(
        model="gpt3-6.7b", precision="bf16", zero_stage=3, data_parallel_size=1, micro_batch_size=1,
        gradient_accumulation_steps=1, activation_checkpointing="full", offload_optimizer="cpu",
    )  # fmt: skip
    layer = MODELS["gpt3-6.7b"].shape.largest_layer_params
    assert estimate(**situation, offload_param="cpu").buffers_bytes >= 2 * 2 * layer
