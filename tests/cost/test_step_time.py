"""Seconds per step: parts that sum, directions that cannot be wrong, and runs that others measured."""

from dataclasses import fields, replace
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaling.cost import Job, step_time
from scaling.cost.activations import layer_saved_elements
from scaling.cost.job import Adapter, AdapterTarget
from scaling.cost.profile import DEEPSPEED, PROFILES
from scaling.cost.step_time import (
    communication,
    forward_s,
    held_parameters,
    ideal_terms,
    moved_bytes_per_token,
    offload_s,
    pipeline_stretch,
    repeated_forward,
    zero_bytes,
)
from scaling.hardware import ACCELERATORS
from scaling.optimizers import Name
from scaling.registry import MODELS
from scaling.shape import Shape

_PARTS = ("compute_s", "recompute_s", "memory_bound_s", "communication_s", "optimizer_s")


_MIXTURE = Shape(  # mistralai/Mixtral-8x7B-v0.1
    name="mixtral-8x7b", family="llama", num_layers=32, hidden_size=4096, num_attention_heads=32,
    num_key_value_heads=8, intermediate_size=14_336, num_experts=8, experts_per_token=2, vocab_size=32_000,
    max_position_embeddings=4096,
)  # fmt: skip
_LLAMA_3_8B = Shape(
    name="llama3-8b", family="llama", num_layers=32, hidden_size=4096, num_attention_heads=32,
    num_key_value_heads=8, intermediate_size=14_336, vocab_size=128_256, max_position_embeddings=8192,
)  # fmt: skip
_LORA = Adapter(rank=16, targets=frozenset({"query", "value"}))
_ALL = frozenset(get_args(AdapterTarget))


@st.composite
def _situations(draw):
    """Arguments of `estimate`: a shape, a cluster, the fields of a job and of a strategy."""
    gpu = draw(st.sampled_from(["a100-80gb", "h100", "t4", "mi300x", "gb200"]))
    precision = draw(st.sampled_from(["bf16", "fp32"]))
    narrow = [None, *(["fp8"] if precision == "bf16" and ACCELERATORS[gpu].peak_flops_fp8 else [])]
    return {
        "shape": draw(st.sampled_from([*(MODELS[name].shape for name in sorted(MODELS)), _LLAMA_3_8B, _MIXTURE])),
        "gpu": gpu,
        "nodes": draw(st.sampled_from([1, 2, 64])),
        "gpus": draw(st.sampled_from([1, 2, 8])),
        "job": {
            "precision": precision,
            "matmul_precision": draw(st.sampled_from(narrow)),
            "adapter": draw(st.sampled_from([None, _LORA, Adapter(rank=8, targets=_ALL, dropout=0.1)])),
            "attention": draw(st.sampled_from(["flash", "eager"])),
            "optimizer": draw(st.sampled_from(get_args(Name))),
            "tiled_mlp": draw(st.booleans()),
        },
        "tensor_parallel_size": draw(st.sampled_from([1, 2])),
        "pipeline_parallel_size": draw(st.sampled_from([1, 2])),
        "sequence_parallel_size": draw(st.sampled_from([1, 2])),
        "sequence_parallelism": draw(st.sampled_from(["ulysses", "ring"])),
        "zero_stage": draw(st.integers(0, 3)),
        "micro_batch_size": draw(st.integers(1, 64)),
        "gradient_accumulation_steps": draw(st.sampled_from([1, 2, 32])),
        "activation_checkpointing": draw(st.sampled_from(["none", "selective", "full"])),
        "offload_optimizer": draw(st.sampled_from(["none", "cpu"])),
    }


@pytest.fixture(scope="module")
def estimate(strategy_like, cluster_like):
    """A function from a situation to (job, strategy, TimeEstimate); `row` changes the accelerator.

    Ranks that tensor, pipeline and sequence parallelism leave are data parallel; where they leave none there are more.
    """

    def of(*, shape, gpu="a100-80gb", nodes=1, gpus=8, seq_length=None, job=None, row=None, **strategy_fields):
        split = 1
        for kind in ("tensor", "pipeline", "sequence"):
            split *= strategy_fields.get(f"{kind}_parallel_size", 1)
        data = max(1, nodes * gpus // split)
        cluster = cluster_like(gpu, nodes=max(1, data * split // gpus), gpus=gpus, **(row or {}))
        whole = Job(
            shape=shape, seq_length=seq_length or shape.max_position_embeddings, num_steps=100,
            causal=shape.family != "bert", predicted_fraction=0.15 if shape.family == "bert" else 1.0,
            **{"precision": "bf16", **(job or {})},
        )  # fmt: skip
        sizes = {"shape": shape}  # what strategy_like reads of a recipe
        strategy = strategy_like(type("Like", (), sizes), data_parallel_size=data, **strategy_fields)
        return whole, strategy, step_time(whole, strategy, cluster)

    return of


def _changed(situation, **changes):
    """`situation` with changes to its job's fields, or to its own."""
    job = {name: value for name, value in changes.items() if name in situation["job"]}
    others = {name: value for name, value in changes.items() if name not in job}
    return {**situation, **others, "job": {**situation["job"], **job}}


@given(_situations())
def test_the_parts_sum_to_the_step_and_the_rest_follows_from_it(estimate, situation):
    job, strategy, found = estimate(**situation)
    assert all(getattr(found, part) >= 0 for part in _PARTS)
    assert sum(getattr(found, part) for part in _PARTS) == pytest.approx(found.step_s)
    assert found.tokens_per_second * found.step_s == pytest.approx(strategy.global_batch_size * job.seq_length)
    assert found.train_days * 86_400 == pytest.approx(job.num_steps * found.step_s)
    assert 0 < found.mfu_fraction <= found.hfu_fraction
    assert found.mfu_fraction < 1
    assert {field.name for field in fields(found)} == {
        "step_s", *_PARTS, "tokens_per_second", "mfu_fraction", "hfu_fraction", "train_days",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "gpu"),
    [
        ("link_bytes_per_s", None), ("network_bytes_per_s", None), ("memory_bytes_per_s", None), ("matmul_flops", None),
        ("peak_flops_fp32", None), ("matmul_flops_fp8", "h100"), ("peak_flops_fp8", "mi300x"), ("mesh_links", "mi300x"),
        ("linked_devices", "gb200"),
    ],
)  # fmt: skip
@settings(max_examples=40)
@given(situation=_situations(), factor=st.floats(0.01, 0.99))
def test_nothing_slower_makes_a_step_faster(estimate, part, gpu, situation, factor):
    situation = {**situation, "gpu": gpu or situation["gpu"]}
    now = getattr(ACCELERATORS[situation["gpu"]], part)
    less = max(1, int(factor * now)) if isinstance(now, int) else factor * now
    _, _, slower = estimate(**situation, row={part: less})
    _, _, found = estimate(**situation)
    assert slower.step_s >= found.step_s * (1 - 1e-12)


@given(_situations())
def test_full_checkpointing_is_never_faster_and_computes_at_most_half_more(estimate, situation):
    situation = _changed(situation, tiled_mlp=False)
    adapter = situation["job"]["adapter"]
    _, _, none = estimate(**{**situation, "activation_checkpointing": "none"})
    _, _, full = estimate(**{**situation, "activation_checkpointing": "full"})
    assert full.step_s >= none.step_s
    assert none.recompute_s == 0
    # The forward again: a third of forward and backward, a half beside frozen matrices, less the head that is not
    # repeated (Chen et al. 2016).
    assert 0 < full.recompute_s <= full.compute_s / (2 if adapter else 3) * (1 + 1e-12)


@given(_situations())
def test_selective_checkpointing_takes_no_more_than_full_and_no_less_than_none(estimate, situation):
    none, selective, full = (
        estimate(**{**situation, "activation_checkpointing": checkpointing})[2]
        for checkpointing in ("none", "selective", "full")
    )
    assert none.step_s <= selective.step_s <= full.step_s
    assert none.hfu_fraction * none.step_s <= selective.hfu_fraction * selective.step_s * (1 + 1e-12)


@given(_situations())
def test_one_rank_sends_nothing(estimate, situation):
    alone = {f"{kind}_parallel_size": 1 for kind in ("tensor", "pipeline", "sequence")}
    _, _, found = estimate(**{**situation, **alone, "nodes": 1, "gpus": 1})
    assert found.communication_s == 0


@given(_situations())
def test_an_adapters_run_is_never_slower_than_full_training(estimate, situation):
    # Of a frozen matrix two of three matmuls are left, and neither gradients nor an optimizer for it (Hu et al. 2021,
    # section 4.2, report a quarter more speed). Without dropout, which copies each adapter's input.
    _, _, whole = estimate(**_changed(situation, adapter=None))
    _, _, lora = estimate(**_changed(situation, adapter=_LORA))
    assert lora.step_s <= whole.step_s
    assert lora.compute_s < whole.compute_s


@given(_situations())
def test_a_tiled_mlp_is_never_faster_and_computes_its_forward_once_more(estimate, situation):
    # deepspeed 0.19.8, TiledMLP: "the `forward` occurs twice each iteration. And if you're using activation
    # checkpointing it then occurs trice."
    plain, tiled = (estimate(**_changed(situation, tiled_mlp=tiled))[2] for tiled in (False, True))
    assert tiled.recompute_s > plain.recompute_s
    assert tiled.step_s > plain.step_s
    assert tiled.memory_bound_s == pytest.approx(plain.memory_bound_s)


@given(_situations())
def test_fp8_matmuls_take_no_longer_than_bf16_ones_where_there_is_a_rate_for_them(estimate, cluster_like, situation):
    situation = {**_changed(situation, precision="bf16"), "gpu": "h100"}
    job, strategy, _ = estimate(**_changed(situation, matmul_precision=None))
    cluster = cluster_like("h100")
    terms = [
        ideal_terms(replace(job, matmul_precision=narrow), strategy, cluster)[0].matmul
        for narrow in (None, "fp8", "tf32")
    ]
    assert terms[1] <= terms[0] <= terms[2]


@given(_situations())
def test_an_optimizer_with_smaller_states_never_takes_longer(estimate, situation):
    seconds = {
        optimizer: estimate(**_changed(situation, optimizer=optimizer))[2].optimizer_s for optimizer in get_args(Name)
    }
    assert seconds["adafactor"] < seconds["adamw8bit"] < seconds["sgd"] == seconds["lion"]
    assert seconds["lion"] < seconds["muon"] < seconds["adamw"]
    # A trust ratio reads master and moments twice: 40 bytes a parameter for LAMB where AdamW moves 28.
    assert seconds["lion"] < seconds["lars"]
    assert seconds["adamw"] < seconds["lamb"]


@given(_situations())
def test_more_micro_steps_of_the_same_batch_are_never_faster(estimate, situation):
    # The same tokens in smaller pieces: no fewer FLOPs, more reductions. Without a pipeline, which more pieces fill.
    situation = {**situation, "pipeline_parallel_size": 1}
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
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=zero_stage, micro_batch_size=1, gradient_accumulation_steps=1, nodes=128
    )
    volume += zero_stage == 1
    whole, trained = held_parameters(job, strategy)
    elements = zero_bytes(job, strategy, whole.dense, trained.dense) / 2
    assert elements == volume * 8_030_261_248


@pytest.mark.parametrize(("zero_stage", "more"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_muons_gradients_are_all_reduced_where_others_are_scattered(zero_stage, more, estimate):
    # deepspeed 0.19.8 refuses, or loses, Muon's reduce-scattered gradients: scaling/optimizers.py.
    job, strategy, _ = estimate(shape=_LLAMA_3_8B, zero_stage=zero_stage, gradient_accumulation_steps=1, nodes=1)
    whole, trained = held_parameters(job, strategy)
    adamw, muon = (
        zero_bytes(replace(job, optimizer=name), strategy, whole.dense, trained.dense) for name in ("adamw", "muon")
    )
    assert muon - adamw == more * 2 * 8_030_261_248


@pytest.mark.parametrize(("nodes", "link_share", "network_share"), [(1, 7 / 8, 0), (4, 7 / 8, 3 / 4 / 8)])
def test_a_reduction_over_nodes_sends_each_ranks_part_to_the_next_node(
    estimate, cluster_like, nodes, link_share, network_share
):
    # A ring within the node moves (8 - 1) / 8 of the volume over NVLink; between nodes each rank has an eighth of it,
    # of which (nodes - 1) / nodes goes out on its own share of the network (NCCL's hierarchical rings).
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=2, micro_batch_size=1, gradient_accumulation_steps=1, nodes=nodes
    )
    link, network = communication(
        job, strategy, cluster_like("a100-80gb", nodes=nodes), *held_parameters(job, strategy)
    )
    volume = 2 * 2 * 8_030_261_248  # bytes: reduce-scatter and gather, 16 bit
    assert link == pytest.approx(volume * link_share / 300e9)
    assert network == pytest.approx(volume * network_share / 25e9)


def _traffic(estimate, cluster, job=None, **strategy_fields):
    """(link, network) seconds of one micro step of a Llama or the mixture without data parallelism's own."""
    fields_ = {"shape": _LLAMA_3_8B, "zero_stage": 0, "micro_batch_size": 2, "gradient_accumulation_steps": 1}
    whole, strategy, _ = estimate(**{**fields_, **strategy_fields}, job=job, seq_length=4096)
    alone = replace(whole, adapter=Adapter(rank=1, targets=frozenset()))  # nothing trains, so nothing is reduced
    return communication(alone, strategy, cluster, *held_parameters(alone, strategy))


def test_a_ring_and_ulysses_send_what_their_papers_say(estimate, cluster_like):
    # Eight ranks, sequences of 4096, two a micro batch: 1024 tokens a rank, 16 bit. Llama 3 8B: queries 4096, keys and
    # values 1024 each.
    # Ulysses (Jacobs et al. 2023, section 3.2): all-to-alls of queries, keys and values, and of the output, forward and
    # backward; a rank keeps an eighth of each.
    cluster, tokens = cluster_like("a100-80gb"), 2 * 4096 // 8
    fields_ = dict(sequence_parallel_size=8, activation_checkpointing="none", gpus=8)
    link, network = _traffic(estimate, cluster, **fields_, sequence_parallelism="ulysses")
    assert link == pytest.approx(32 * tokens * 2 * (4096 + 2 * 1024 + 4096) * 2 * 7 / 8 / 300e9)
    # Ring attention (Liu et al. 2023): keys and values visit the seven others forward and again backward, where their
    # gradients go with them: three times.
    ring, _ = _traffic(estimate, cluster, **fields_, sequence_parallelism="ring")
    assert ring == pytest.approx(32 * tokens * 2 * (2 * 1024) * 3 * 7 / 300e9)
    assert network == 0


def test_experts_get_their_tokens_and_give_them_back(estimate, cluster_like):
    # Mixtral on 8 ranks, one expert each: every token goes to two experts and comes back, forward and backward, a
    # hidden state of 4096 in 16 bit each time; an eighth stays (GShard, Lepikhin et al. 2020, section 3.3).
    link, network = _traffic(
        estimate, cluster_like("a100-80gb"), shape=_MIXTURE, expert_parallel_size=8, activation_checkpointing="none"
    )
    assert link == pytest.approx(32 * (2 * 4096) * 2 * 4096 * (2 * 2 * 2) * 7 / 8 / 300e9)
    assert network == 0


def test_an_all_to_all_across_nodes_sends_all_of_every_ranks_own(estimate, cluster_like):
    # Unlike a reduction's, a rank's tokens are its own: on 2 nodes half of them leave over its share of the network.
    fields_ = dict(shape=_MIXTURE, expert_parallel_size=16, activation_checkpointing="none", nodes=2)
    _, network = _traffic(estimate, cluster_like("a100-80gb", nodes=2), **fields_)
    assert network == pytest.approx(32 * (2 * 4096) * 2 * 4096 * (2 * 2 * 2) / 2 / 25e9)


def test_tensor_parallelism_reduces_twice_forward_and_twice_backward_and_again_where_a_layer_is_made_again(
    estimate, cluster_like
):
    # Shoeybi et al. 2019 (Megatron-LM), section 3: two all-reduces forward, two backward; each moves 2 (t - 1) / t of
    # its tensor.
    for checkpointing, passes in (("none", 2), ("full", 3)):
        link, _ = _traffic(
            estimate, cluster_like("a100-80gb"), tensor_parallel_size=8, activation_checkpointing=checkpointing
        )
        assert link == pytest.approx(32 * (2 * 4096) * 2 * 4096 * passes * 2 * 2 * 7 / 8 / 300e9)


def test_a_pipeline_within_a_node_sends_over_its_link_and_across_nodes_over_the_network(estimate, cluster_like):
    passed = 2 * (2 * 4096) * 2 * 4096  # bytes: an activation forward and its gradient backward
    fields_ = dict(pipeline_parallel_size=8, activation_checkpointing="none")
    assert _traffic(estimate, cluster_like("a100-80gb"), **fields_) == pytest.approx((passed / 300e9, 0))
    two = _traffic(estimate, cluster_like("a100-80gb", nodes=2), **fields_, nodes=2)
    assert two == pytest.approx((0, passed / 25e9))


def test_a_racks_nvlink_joins_its_nodes(estimate, cluster_like):
    # GB200 NVL72: 18 trays of 4 GPUs, one NVLink domain.
    fields_ = dict(shape=_LLAMA_3_8B, gpu="gb200", zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1)
    for nodes, over_the_network in ((18, False), (36, True)):
        job, strategy, _ = estimate(**fields_, gpus=4, nodes=nodes)
        held = held_parameters(job, strategy)
        _, network = communication(job, strategy, cluster_like("gb200", gpus=4, nodes=nodes), *held)
        assert (network > 0) is over_the_network


def test_a_group_that_its_nodes_do_not_divide_still_crosses_them(estimate, cluster_like):
    # Twelve ranks on nodes of eight.
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=2, micro_batch_size=1, gradient_accumulation_steps=1, nodes=3, gpus=4
    )
    cluster = cluster_like("a100-80gb", nodes=3, gpus=8)
    _, network = communication(job, strategy, cluster, *held_parameters(job, strategy))
    assert network > 0


# Matmuls.


@pytest.mark.parametrize("gpu", ["a100-80gb", "h100", "b200"])
def test_narrower_matmuls_have_lower_flops_per_second(estimate, gpu):
    # Narayanan et al. 2021, section 5.4.1: more tensor parallelism, smaller matmuls, less of the peak. FLOPs are cut by
    # t, the inputs that every rank reads are not.
    rates = []
    for t in (1, 2, 4, 8):
        job, strategy, _ = estimate(
            shape=_LLAMA_3_8B, zero_stage=1, micro_batch_size=1, gradient_accumulation_steps=1, tensor_parallel_size=t
        )
        weights, _ = forward_s(job, strategy, ACCELERATORS[gpu])
        rates.append(1 / t / weights)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.97 * rates[0]


def test_few_tokens_are_slower_each(estimate):
    # The weights are read for however few.
    def rate(micro):
        job, strategy, _ = estimate(
            shape=_LLAMA_3_8B, zero_stage=1, micro_batch_size=micro, gradient_accumulation_steps=1, seq_length=128
        )
        return micro / forward_s(job, strategy, ACCELERATORS["h100"])[0]

    assert rate(1) < 0.7 * rate(64)


def test_experts_compute_for_their_tokens_only(estimate):
    # Mixtral of 47B costs what its 13B active parameters do (Jiang et al. 2024, section 2.1).
    dense = replace(_MIXTURE, num_experts=1, experts_per_token=1, intermediate_size=2 * 14_336)
    times = []
    for shape in (_MIXTURE, dense):
        job, strategy, _ = estimate(shape=shape, zero_stage=3, micro_batch_size=16, gradient_accumulation_steps=1)
        times.append(forward_s(job, strategy, ACCELERATORS["h100"])[0])
    assert times[0] == pytest.approx(times[1], rel=0.05)


def test_the_rank_with_most_layers_sets_a_pipelines_pace(estimate):
    # Llama 3 405B's 126 layers on 16 ranks: 8 on the fullest, as much time as 128 layers take.
    def forward(layers):
        job, strategy, _ = estimate(
            shape=replace(_LLAMA_3_8B, num_layers=layers), zero_stage=1, micro_batch_size=1,
            gradient_accumulation_steps=16, pipeline_parallel_size=16, nodes=2,
        )  # fmt: skip
        return forward_s(job, strategy, ACCELERATORS["h100"])

    assert forward(126) == pytest.approx(forward(128))
    assert forward(126)[0] > forward(112)[0]


@pytest.mark.parametrize(
    ("p", "m", "v", "stretch"), [(1, 4, 1, 1), (4, 4, 1, 1.75), (8, 64, 1, 1 + 7 / 64), (8, 64, 4, 1 + 7 / 256)]
)
def test_a_pipelines_idle_share_is_that_of_narayanan_et_al(estimate, p, m, v, stretch):
    # Section 2.2: (p - 1) / m of the ideal time, over v when interleaved.
    _, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=1, micro_batch_size=1, gradient_accumulation_steps=m, pipeline_parallel_size=p,
        virtual_pipeline_size=v,
    )  # fmt: skip
    assert pipeline_stretch(strategy) == pytest.approx(stretch)


def test_casting_to_8_bits_reads_what_every_matmul_meets_once_more(estimate):
    # Llama 3 8B: inputs of query-key-value, output, gate-up and down (4096, 4096, 4096, 14,336), gradients of their
    # outputs (6144, 4096, 28,672, 4096); 2 bytes read and 1 written each.
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B,
        zero_stage=3,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
    )
    narrow = replace(job, matmul_precision="fp8")
    more = moved_bytes_per_token(narrow, strategy, DEEPSPEED) - moved_bytes_per_token(job, strategy, DEEPSPEED)
    assert more == 3 * (3 * 4096 + 14_336 + 6144 + 4096 + 28_672 + 4096)


def test_every_expert_of_a_token_casts_its_own(estimate):
    def more(experts):
        shape = replace(_MIXTURE, experts_per_token=experts)
        job, strategy, _ = estimate(shape=shape, zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1)
        narrow = replace(job, matmul_precision="fp8")
        return moved_bytes_per_token(narrow, strategy, DEEPSPEED) - moved_bytes_per_token(job, strategy, DEEPSPEED)

    assert more(2) - more(1) == 3 * (4096 + 14_336 + 2 * 14_336 + 4096)


def test_eager_attention_moves_its_scores(estimate):
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B,
        zero_stage=3,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing="none",
    )
    eager = replace(job, attention="eager")
    more = moved_bytes_per_token(eager, strategy, DEEPSPEED) - moved_bytes_per_token(job, strategy, DEEPSPEED)
    # 32 heads x 8192 scores for each token, six bytes each (fp32 softmax and a 16-bit copy), four accesses.
    assert more == 4 * 32 * 8192 * 6


# Utilisation.


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_hfu_is_mfu_with_what_is_made_again(estimate, checkpointing):
    # PaLM, appendix B: hardware FLOPs utilisation counts recomputation. Full: the layers' forward, a third of theirs,
    # so 4 / 3 less the head's share, 7 % of Llama 3 8B's FLOPs at 8192.
    _, _, found = estimate(
        shape=_LLAMA_3_8B, zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    ratio = found.hfu_fraction / found.mfu_fraction
    if checkpointing == "none":
        assert ratio == 1
    elif checkpointing == "full":
        assert 1.30 < ratio < 4 / 3
    else:
        assert 1 < ratio < 1.15


def test_selective_recomputation_repeats_what_its_stack_does_not_keep(estimate):
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1,
        activation_checkpointing="selective",
    )  # fmt: skip
    # Korthikanti et al. 2022, section 5: attention's core and no matrix.
    assert repeated_forward(job, strategy, PROFILES["megatron-core"]) == (0.0, 1.0)
    # torchtitan distributed/activation_checkpoint.py keeps every second matmul: of q, k, v, o, gate, up, down the
    # second, fourth and sixth are made again, D x (1024 + 4096 + 14,336) of D x (2 x 4096 + 2 x 1024 + 3 x 14,336).
    matrices, scores = repeated_forward(job, strategy, PROFILES["torchtitan"])
    assert (matrices, scores) == (pytest.approx((1024 + 4096 + 14_336) / (10_240 + 3 * 14_336)), 0.0)


@pytest.mark.parametrize(
    ("profile", "checkpointing", "accesses"),
    [
        ("torchtitan", "none", 4), ("torchtitan", "selective", 6), ("torchtitan", "full", 6),
        ("megatron-core", "none", 4), ("megatron-core", "selective", 4), ("megatron-core", "full", 6),
    ],
)  # fmt: skip
def test_what_is_made_again_is_written_and_read_again(estimate, profile, checkpointing, accesses):
    # torchtitan keeps matmuls' outputs only, so norms and activations run again; Megatron keeps all but the scores.
    job, strategy, _ = estimate(
        shape=_LLAMA_3_8B, zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1,
        activation_checkpointing=checkpointing,
    )  # fmt: skip
    elements = sum(layer_saved_elements(job, PROFILES[profile]))
    assert moved_bytes_per_token(job, strategy, PROFILES[profile]) == pytest.approx(accesses * elements * 2)


def test_frozen_weights_do_two_thirds_of_the_model_flops(estimate):
    # Forward and the gradients of activations: 4 per weight; attention as ever.
    job, _, _ = estimate(shape=_LLAMA_3_8B, zero_stage=0, micro_batch_size=1, gradient_accumulation_steps=1)
    lora, shape = replace(job, adapter=_LORA), job.shape
    weights = shape.num_layers * shape.layer_matmul_params + shape.vocab_size * shape.hidden_size
    assert job.flops_per_token == shape.flops_per_token(8192)
    assert lora.flops_per_token == pytest.approx(job.flops_per_token - 2 * weights)


@pytest.mark.parametrize(("narrow", "tflops"), [(None, 989), ("fp8", 1979), ("tf32", 494.5)])
def test_mfu_is_over_the_peak_of_the_precision_that_the_matmuls_run_in(estimate, narrow, tflops):
    job, _, found = estimate(
        shape=_LLAMA_3_8B, gpu="h100", zero_stage=3, micro_batch_size=1, gradient_accumulation_steps=1,
        job={"precision": "fp32" if narrow == "tf32" else "bf16", "matmul_precision": narrow},
    )  # fmt: skip
    expected = found.tokens_per_second * job.flops_per_token / (8 * tflops * 1e12)
    assert found.mfu_fraction == pytest.approx(expected, rel=0.002)


# One chip, several rows.


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        ("a100-80gb", "a800-80gb"), ("a100-80gb", "a100-80gb-pcie"), ("a100-40gb", "a100-40gb-pcie"), ("h100", "h800"),
        ("h100", "h100-pcie"), ("h200", "h100"), ("gh200", "h100"),
    ],
)  # fmt: skip
def test_the_same_chip_with_less_power_or_slower_links_or_memory_is_never_the_faster(estimate, fast, slow):
    # An H800 is an H100 with half of its NVLink, an H200 one with faster memory. Short sequences, all matmuls, and long
    # ones, all attention.
    for nodes, stage, seq_length in ((1, 3, 2048), (4, 2, 8192), (1, 3, 262_144)):
        seconds = [
            estimate(
                shape=_LLAMA_3_8B, gpu=gpu, nodes=nodes, gpus=4 if "gh200" in fast else 8, zero_stage=stage,
                micro_batch_size=2, gradient_accumulation_steps=2, seq_length=seq_length,
                row={"network_bytes_per_s": ACCELERATORS[slow].network_bytes_per_s},
            )[2].step_s
            for gpu in (fast, slow)
        ]  # fmt: skip
        assert seconds[0] <= seconds[1] * (1 + 1e-12)


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
        shape=MODELS[model].shape, gpu=gpu, nodes=nodes, zero_stage=3, micro_batch_size=micro,
        gradient_accumulation_steps=steps, activation_checkpointing=checkpointing,
    )  # fmt: skip
    assert found.tokens_per_second / (8 * nodes) == pytest.approx(measured, rel=within)


def test_mfu_is_model_flops_over_the_dense_peak(estimate):
    # PaLM (Chowdhery et al. 2022), appendix B: 6 N + 12 L H Q T FLOPs a token, N without the position embedding.
    job, _, found = estimate(
        shape=MODELS["gpt3-1.3b"].shape, zero_stage=3, micro_batch_size=14, gradient_accumulation_steps=4,
        activation_checkpointing="full",
    )  # fmt: skip
    flops_per_token = 6 * job.shape.num_params + 12 * 24 * 16 * 128 * 2048
    # Biases, norms and positions are in N and not in the matmuls: 0.4 % here.
    assert found.mfu_fraction == pytest.approx(found.tokens_per_second * flops_per_token / (8 * 312e12), rel=0.005)


def test_offloading_the_optimizer_costs_time(estimate):
    situation = dict(shape=MODELS["gpt3-1.3b"].shape, zero_stage=2, micro_batch_size=8, gradient_accumulation_steps=1)
    _, _, on_gpu = estimate(**situation)
    _, _, on_host = estimate(**situation, offload_optimizer="cpu")
    assert on_host.optimizer_s > 5 * on_gpu.optimizer_s
    assert on_host.step_s > on_gpu.step_s


_PLACES = ("none", "cpu", "nvme")


@pytest.mark.parametrize("field", ["offload_optimizer", "offload_param"])
def test_each_place_further_away_costs_more_time_and_parameters_cost_it_every_micro_step(estimate, field):
    situation = dict(shape=MODELS["gpt3-1.3b"].shape, zero_stage=3, micro_batch_size=8)
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
