"""Bytes per rank under tensor, pipeline and sequence parallelism: Korthikanti et al.'s figures, and what cannot grow.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198). Their
alphabet: s sequence, b micro batch, h hidden, a heads, t tensor parallel, p pipeline parallel, L layers.
"""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.cost import Job, memory
from scaling.cost.activations import activations, in_flight
from scaling.cost.job import Adapter, AdapterTarget
from scaling.cost.model_states import Held, held_parameters, model_states, moments_bytes, parameters_held
from scaling.cost.profile import PROFILES
from scaling.models.build import build
from scaling.optimizers import Name
from scaling.registry import MODELS
from scaling.shape import Shape
from scaling.strategy import Strategy

# The paper's own counting: one copy of every tensor, five bytes a score, LayerNorm, a plain MLP.
_COUNTED = replace(
    PROFILES["megatron-core"], cut=1.0, uncut=1.0, score_bytes=5.0, gated_tensors=3,
    constant_bytes=0,
)  # fmt: skip


def _gpt(layers, hidden, heads, seq_length=2048, vocab=51_200):
    return Shape(
        name="gpt", family="gpt2", num_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        intermediate_size=4 * hidden, vocab_size=vocab, max_position_embeddings=seq_length,
    )  # fmt: skip


# The paper's table 3: layers, hidden, heads; sequences of 2048, a vocabulary of 51,200.
_PAPER = {
    "22B": _gpt(48, 6144, 64),
    "175B": _gpt(96, 12_288, 96),
    "530B": _gpt(105, 20_480, 128),
    "1T": _gpt(128, 25_600, 160),
}


def _llama(layers, hidden, heads, kv_heads, ffn, vocab, *, tied=False):
    return Shape(
        name="llama", family="llama", num_layers=layers, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=8192,
        tied_embeddings=tied,
    )  # fmt: skip


_LLAMA_3_8B = _llama(32, 4096, 32, 8, 14_336, 128_256)
_MIXTRAL = replace(_llama(32, 4096, 32, 8, 14_336, 32_000), num_experts=8, experts_per_token=2)
_ALL = frozenset(get_args(AdapterTarget))
_LORA = Adapter(rank=8, targets=frozenset({"query", "value"}))


def _strategy(**changes):
    fields = {
        "zero_stage": 1, "offload_optimizer": "none", "data_parallel_size": 1, "micro_batch_size": 1,
        "gradient_accumulation_steps": 64, "activation_checkpointing": "none", "reduce_bucket_size": 500_000_000,
        "allgather_bucket_size": 500_000_000,
    }  # fmt: skip
    return Strategy(**{**fields, **changes})


def _job(shape, **changes):
    return Job(**{"shape": shape, "seq_length": 2048, "precision": "bf16", "attention": "eager", **changes})


def _layer_over_sbh(job, **fields):
    """Bytes that one layer saves per s b h, the unit of the paper's table 2."""
    strategy = _strategy(**fields)
    saved, *_ = activations(job, strategy, _COUNTED)
    sbh = job.seq_length * strategy.micro_batch_size * job.shape.hidden_size
    return saved / (job.shape.num_layers * sbh)


# 5 a s / h as section 5 of the paper prints it: 80 for the 175B model, 64 for the 530B one.
_scores = pytest.mark.parametrize(("name", "scores"), [("175B", 80), ("530B", 64)])
_tensor_parallel = pytest.mark.parametrize("t", [1, 2, 8])


@_scores
@_tensor_parallel
def test_tensor_parallelism_leaves_10_and_divides_24_and_the_scores(name, scores, t):
    # Table 2 and equation 2: 10 + 24 / t + 5 a s / (h t); at t = 1 that is equation 1, 34 + 5 a s / h. The 10 are two
    # LayerNorm inputs (4), the inputs of the two column-parallel matmuls (4) and two dropout masks (2).
    found = _layer_over_sbh(_job(_PAPER[name], dropout=0.1), tensor_parallel_size=t)
    assert found == pytest.approx(10 + 24 / t + scores / t, rel=1e-6)


@_scores
@_tensor_parallel
def test_sequence_parallelism_divides_the_rest_too(name, scores, t):
    # Table 2 and equation 4: (34 + 5 a s / h) / t.
    job = _job(_PAPER[name], dropout=0.1)
    found = _layer_over_sbh(job, tensor_parallel_size=t, tensor_parallel_sequences=True)
    assert found == pytest.approx((34 + scores) / t, rel=1e-6)


@_tensor_parallel
def test_selective_recomputation_keeps_all_but_the_scores(t):
    # Table 2 and equation 6: 34 / t, together with sequence parallelism.
    found = _layer_over_sbh(
        _job(_PAPER["175B"], dropout=0.1), tensor_parallel_size=t, tensor_parallel_sequences=True,
        activation_checkpointing="selective",
    )  # fmt: skip
    assert found == pytest.approx(34 / t, rel=1e-6)


@_tensor_parallel
@pytest.mark.parametrize("name", _PAPER)
def test_full_recomputation_keeps_the_layers_input(name, t):
    # Table 2, last row: 2.
    job = _job(_PAPER[name], dropout=0.1)
    assert _layer_over_sbh(job, tensor_parallel_size=t, activation_checkpointing="full") == pytest.approx(2, rel=1e-6)


@_scores
@_tensor_parallel
def test_without_dropout_the_two_masks_are_gone(name, scores, t):
    # Section 4.1 counts a byte per element for the mask after the attention's projection and after the MLP.
    found = _layer_over_sbh(_job(_PAPER[name]), tensor_parallel_size=t)
    assert found == pytest.approx(8 + 24 / t + scores / t, rel=1e-6)


@pytest.mark.parametrize("t", [2, 8])
def test_with_sequence_parallelism_a_full_checkpoint_is_the_ranks_share_of_the_layers_input(t):
    # A difference from the paper's table, which leaves 2 whole and names the share as possible: under sequence
    # parallelism the layer's input is split already (Megatron-LM, --sequence-parallel), so a rank keeps its own part.
    found = _layer_over_sbh(
        _job(_PAPER["175B"]), tensor_parallel_size=t, tensor_parallel_sequences=True, activation_checkpointing="full"
    )
    assert found == pytest.approx(2 / t, rel=1e-6)


@pytest.mark.parametrize(("name", "saved"), [("175B", 0.70), ("530B", 0.65)])
def test_selective_recomputation_saves_what_section_5_of_the_paper_prints(name, saved):
    # Section 5: "70% and 65%" of the activations of GPT-3 and MT-NLG.
    job = _job(_PAPER[name], dropout=0.1)
    none, selective = (
        _layer_over_sbh(
            job, tensor_parallel_size=8, tensor_parallel_sequences=True, activation_checkpointing=checkpointing
        )
        for checkpointing in ("none", "selective")
    )
    assert 1 - selective / none == pytest.approx(saved, abs=0.005)


@pytest.mark.parametrize(
    ("checkpointing", "per_layer_over_sbh"),
    # Table 2 without dropout's masks: 32 + 80, 32, 2.
    [("none", 112), ("selective", 32), ("full", 2)],
)
def test_when_the_loss_is_computed_every_layer_has_saved_what_table_2_says_and_no_more(
    cluster_like, checkpointing, per_layer_over_sbh
):
    # No layer has been made again yet: the forward has just ended.
    shape = _PAPER["175B"]
    strategy = _strategy(activation_checkpointing=checkpointing, tensor_parallel_size=8, tensor_parallel_sequences=True)
    found = memory(_job(shape, fused_loss=True), strategy, cluster_like(), _COUNTED)
    states = sum(model_states(_job(shape), strategy, *held_parameters(_job(shape), strategy), _COUNTED))
    expected = shape.num_layers * per_layer_over_sbh * 2048 * shape.hidden_size / 8
    assert found.moments["loss"] - states == pytest.approx(expected, rel=1e-6)


def test_the_logits_are_the_last_pipeline_ranks_and_cut_by_tensor_parallelism(cluster_like):
    def loss_moment(rank, tensor_parallel_size, profile):
        strategy = _strategy(pipeline_parallel_size=4, tensor_parallel_size=tensor_parallel_size)
        return memory(_job(_PAPER["22B"]), strategy, cluster_like(), profile, rank=rank).moments["loss"]

    more = replace(_COUNTED, logit_bytes=_COUNTED.logit_bytes + 1)
    for t in (1, 4):
        assert loss_moment("first", t, more) == loss_moment("first", t, _COUNTED)
        # A byte for each of 2048 x 51,200 logits, over t ranks (Megatron's vocab-parallel cross-entropy).
        grown = loss_moment("last", t, more) - loss_moment("last", t, _COUNTED)
        assert grown == pytest.approx(2048 * 51_200 / t, abs=2)


# Micro-batches in flight.


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("m", [1, 2, 8, 64])
def test_1f1b_holds_as_many_micro_batches_as_there_are_ranks_to_the_end(p, m):
    # Narayanan et al. 2021 (arXiv 2104.04473), section 2.2.1: at most p in flight; the schedule played through here.
    def played(rank):
        warm_up = min(p - rank - 1, m)
        actions = "F" * warm_up + "FB" * (m - warm_up) + "B" * warm_up
        held = [actions[: index + 1].count("F") - actions[: index + 1].count("B") for index in range(len(actions))]
        return max(held)

    strategy = _strategy(pipeline_parallel_size=p, gradient_accumulation_steps=m)
    assert in_flight(strategy, "first") == played(0) == min(p, m)
    assert in_flight(strategy, "last") == played(p - 1) == 1


@pytest.mark.parametrize(("p", "v"), [(2, 2), (4, 2), (8, 3), (8, 12), (35, 3)])
def test_interleaving_costs_the_first_rank_what_section_4_of_the_paper_says(p, v):
    # Section 4.2.3: the first stage stores L (1 + (p - 1) / (p v)) layers' worth; a rank has L / p layers.
    found = in_flight(_strategy(pipeline_parallel_size=p, virtual_pipeline_size=v), "first")
    assert found / p == pytest.approx(1 + (p - 1) / (p * v))


@pytest.mark.parametrize(("p", "v", "chunks"), [(2, 2, 3), (4, 2, 5), (4, 3, 9), (8, 4, 25)])
def test_interleaving_leaves_the_last_rank_with_a_chunk_more_than_its_warm_up(p, v, chunks):
    # Megatron-LM core/pipeline_parallel/schedules.py: the last rank warms up with (v - 1) p forwards of one chunk, and
    # has one more before its first backward. A chunk is a micro-batch's v-th part.
    assert in_flight(_strategy(pipeline_parallel_size=p, virtual_pipeline_size=v), "last") == chunks / v


@pytest.mark.parametrize("rank", ["first", "last"])
@pytest.mark.parametrize(("p", "v", "m"), [(4, 2, 4), (8, 1, 3), (8, 12, 8), (4, 2, 1)])
def test_no_more_micro_batches_are_in_flight_than_there_are(rank, p, v, m):
    found = in_flight(_strategy(pipeline_parallel_size=p, virtual_pipeline_size=v, gradient_accumulation_steps=m), rank)
    assert found <= m
    if rank == "first":
        assert found == m  # each of these layouts would hold more


def test_what_stage_3_gathers_of_experts_waits_for_the_backward_but_for_two_layers():
    # Measured in tests/cost/test_memory_measured.py, and by docs/upstream/zero3_sliced_parameters.py.
    shape = MODELS["mixtral-8x7b"].shape
    job = _job(shape, seq_length=512)

    def saved(stage, **changes):
        return activations(job, _strategy(**{"zero_stage": stage, "data_parallel_size": 2, **changes}))[0]

    experts = 30 * 8 * 3 * 4096 * 14_336 * 2  # Jiang et al. 2024, table 1: of all but two of the 32 layers, in bf16
    assert saved(3) - saved(2) == pytest.approx(experts, rel=1e-6)
    for changes in ({"activation_checkpointing": "full"}, {"expert_parallel_size": 2}, {"data_parallel_size": 1}):
        assert saved(3, **changes) == saved(2, **changes)


def test_the_first_rank_of_a_pipeline_holds_all_the_layers_worth_and_the_last_its_own():
    # Section 4.2.3: "the first stage must store activations for p micro-batches", L / p layers each: L in all.
    job = _job(_PAPER["175B"])
    whole = activations(job, _strategy(), _COUNTED)[0]
    strategy = _strategy(pipeline_parallel_size=8)
    assert activations(job, strategy, _COUNTED, "first")[0] == whole
    assert activations(job, strategy, _COUNTED, "last")[0] == whole // 8


# Parameters.


@pytest.mark.parametrize(
    ("shape", "published"),
    # meta-llama/Meta-Llama-3-8B; openai-community/gpt2-xl by transformers' GPT2LMHeadModel.
    [(_LLAMA_3_8B, 8_030_261_248), (MODELS["gpt2-xl"].shape, 1_557_611_200)],
)
def test_one_rank_holds_the_published_number_of_parameters(shape, published):
    assert parameters_held(shape, _strategy()).total == published


def test_two_pipeline_ranks_of_an_untied_model_hold_it_once():
    strategy = _strategy(pipeline_parallel_size=2)
    first, last = (parameters_held(_LLAMA_3_8B, strategy, rank).total for rank in ("first", "last"))
    assert first + last == 8_030_261_248
    # Llama-3's embedding and head are alike in size; the last rank has the final norm besides.
    assert last - first == 4096


def test_the_last_pipeline_rank_of_a_tied_model_holds_a_second_copy_of_the_embedding():
    # Megatron-LM: the first and the last stage keep a copy each and all-reduce its gradient.
    shape = MODELS["gpt2-xl"].shape
    strategy = _strategy(pipeline_parallel_size=2)
    held = [parameters_held(shape, strategy, rank).total for rank in ("first", "last")]
    assert sum(held) == 1_557_611_200 + 50_257 * 1600


@pytest.mark.parametrize("t", [2, 4, 8])
def test_tensor_parallel_ranks_hold_the_model_once_and_its_norms_each(t):
    # 65 RMSNorms of 4096 in Llama-3-8B, two a layer and the last.
    held = parameters_held(_LLAMA_3_8B, _strategy(tensor_parallel_size=t)).total
    assert t * held == 8_030_261_248 + (t - 1) * 65 * 4096


@st.composite
def _shapes(draw):
    family = draw(st.sampled_from(["gpt2", "bert", "llama"]))
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 3]))
    return Shape(
        name="drawn",
        family=family,
        num_layers=draw(st.sampled_from([2, 4, 8, 24])),
        hidden_size=heads * draw(st.sampled_from([8, 64, 128])),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=draw(st.integers(16, 4096)),
        vocab_size=draw(st.sampled_from([50, 2048, 50_257, 128_256])),
        max_position_embeddings=8192,
        tied_embeddings=draw(st.booleans()) if family == "llama" else None,
    )


@given(_shapes(), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2]))
def test_the_ranks_hold_at_least_the_whole_model_between_them(shape, t, p):
    strategy = _strategy(tensor_parallel_size=t, pipeline_parallel_size=p)
    ranks = ("first", "last") if p == 2 else ("any",)
    held = t * sum(parameters_held(shape, strategy, rank).total for rank in ranks)
    assert held >= shape.num_params * (1 - 1e-12)


# What cannot grow, for every stack.


@st.composite
def _situations(draw):
    """(shape, fields of a job, fields of a strategy, profile); data parallel over two ranks or more, so that what the
    first neighbour brings (communication buffers) is there before and after."""
    return (
        draw(_shapes()),
        {
            "seq_length": draw(st.sampled_from([128, 2048, 8192])),
            "precision": draw(st.sampled_from(["bf16", "fp16", "fp32"])),
            "optimizer": draw(st.sampled_from(get_args(Name))),
            "dropout": draw(st.sampled_from([0.0, 0.1])),
            "attention": draw(st.sampled_from(["flash", "eager"])),
            "fused_loss": draw(st.booleans()),
            "tiled_mlp": draw(st.booleans()),
            "step_in_backward": draw(st.booleans()),
            "adapter": draw(st.sampled_from([None, _LORA, Adapter(rank=64, targets=_ALL, dropout=0.05)])),
        },
        {
            "zero_stage": draw(st.integers(0, 3)),
            "offload_optimizer": draw(st.sampled_from(["none", "cpu"])),
            "data_parallel_size": draw(st.sampled_from([2, 3, 64])),
            "tensor_parallel_size": draw(st.sampled_from([1, 2, 3])),
            "pipeline_parallel_size": draw(st.sampled_from([1, 2])),
            "sequence_parallel_size": draw(st.sampled_from([1, 2])),
            "tensor_parallel_sequences": draw(st.booleans()),
            "offload_activations": draw(st.booleans()),
            "micro_batch_size": draw(st.integers(1, 16)),
            "gradient_accumulation_steps": draw(st.sampled_from([1, 2, 16])),
            "activation_checkpointing": draw(st.sampled_from(["none", "selective", "full"])),
        },
        draw(st.sampled_from(sorted(PROFILES))),
    )


@pytest.fixture(scope="module")
def estimate(cluster_like):
    """A function from a situation, and changes to its job or strategy, to its MemoryEstimate; by `rank`."""

    def of(situation, *, rank="any", **changes):
        shape, job, strategy, profile = situation
        job = {**job, **{name: value for name, value in changes.items() if name in job}}
        strategy = {**strategy, **{name: value for name, value in changes.items() if name in strategy}}
        assert set(changes) <= {*job, *strategy}
        return memory(_job(shape, **job), _strategy(**strategy), cluster_like(), PROFILES[profile], rank=rank)

    return of


@given(_situations())
def test_the_items_sum_to_the_peak(estimate, situation):
    found = estimate(situation)
    items = (
        found.parameters_bytes, found.gradients_bytes, found.optimizer_bytes, found.activations_bytes,
        found.logits_bytes, found.buffers_bytes,
    )  # fmt: skip
    assert all(isinstance(item, int) and item >= 0 for item in items)
    assert sum(items) == found.peak_allocated_bytes == found.moments[found.peak_moment] == max(found.moments.values())


@given(_situations())
def test_any_rank_means_the_fuller_of_the_first_and_the_last(estimate, situation):
    peaks = [estimate(situation, rank=rank).peak_allocated_bytes for rank in ("first", "last")]
    assert estimate(situation).peak_allocated_bytes == max(peaks)


# Pipelines without interleaving: with v chunks the first rank stores (p - 1) / (p v) more, see above.
@given(
    _situations(),
    st.sampled_from(["tensor_parallel_size", "pipeline_parallel_size", "sequence_parallel_size", "data_parallel_size"]),
)
def test_more_ranks_of_any_kind_never_need_more_memory_each(estimate, situation, size):
    # The numbers of layers are even, so that two pipeline ranks divide them. Ours parts them by FLOPs, so that a stage
    # may have more than half, and has buffers to receive in.
    assume(size != "pipeline_parallel_size" or not PROFILES[situation[3]].buckets)
    now = 1 if size == "pipeline_parallel_size" else situation[2][size]
    fewer, more = (estimate(situation, **{size: ranks}) for ranks in (now, 2 * now))
    assert more.peak_allocated_bytes <= fewer.peak_allocated_bytes
    assert more.moments["save"] <= fewer.moments["save"]  # the states; at the peak there may be gradients or not


@given(_situations())
def test_splitting_the_norms_sequences_over_the_tensor_parallel_ranks_never_needs_more(estimate, situation):
    without, split = (estimate(situation, tensor_parallel_sequences=choice) for choice in (False, True))
    assert split.peak_allocated_bytes <= without.peak_allocated_bytes


@given(_situations())
def test_a_higher_stage_never_has_more_model_states(estimate, situation):
    # In 16 bit. In fp32 DeepSpeed adds a master copy from stage 1 on, which small moments do not outweigh.
    states = [
        estimate(situation, zero_stage=stage, precision="bf16", offload_optimizer="none").model_states_bytes
        for stage in range(4)
    ]
    assert states == sorted(states, reverse=True)


@given(_situations())
def test_8_bit_moments_and_adafactor_take_less_than_adamw(estimate, situation):
    adamw, small, factored = (
        estimate(situation, optimizer=optimizer, offload_optimizer="none").optimizer_bytes
        for optimizer in ("adamw", "adamw8bit", "adafactor")
    )
    assert adamw > small > factored


def test_8_bit_moments_take_two_bytes_a_parameter_instead_of_eight():
    # Dettmers et al. 2022 (arXiv 2110.02861), section 1: 8 bytes of Adam's states per parameter become 2.
    billion = Held(10**9)
    states = {
        optimizer: model_states(
            _job(_LLAMA_3_8B, optimizer=optimizer), _strategy(zero_stage=0), billion, billion, _COUNTED
        )[2]
        for optimizer in ("adamw", "adamw8bit")
    }
    assert states["adamw"] - states["adamw8bit"] == 6 * 10**9


def _real_state_bytes(optimizers, model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value) and value.numel() > 1]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "muon"])
def test_an_optimizers_moments_are_those_that_torch_keeps(name):
    # torch.optim on a gpt2-like model in fp32: every state tensor after a step. Muon takes matrices only, so the rest
    # of the model is AdamW's, as Jordan et al. 2024 say; Adafactor's rows and columns are left out of the estimate.
    shape = _gpt(2, 64, 2, seq_length=32, vocab=512)
    model = build(shape)
    inner = [p for layer in model.transformer.h for p in layer.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in inner)]
    optimizers = {
        "adamw": lambda: [torch.optim.AdamW(model.parameters())],
        "sgd": lambda: [torch.optim.SGD(model.parameters(), momentum=0.9)],
        "adafactor": lambda: [torch.optim.Adafactor(model.parameters())],
        "muon": lambda: [torch.optim.Muon(inner), torch.optim.AdamW(rest)],
    }[name]()
    measured = _real_state_bytes(optimizers, model)
    counted = moments_bytes(_job(shape, optimizer=name), 4) * shape.num_params
    if name == "adafactor":
        assert counted == 0
        assert measured < 0.05 * 8 * shape.num_params
    else:
        # Muon: biases of the layers are AdamW's, below 1 %.
        assert counted == pytest.approx(measured, rel=0.01 if name == "muon" else 1e-9)


@pytest.mark.parametrize(
    ("optimizer", "bytes_per_parameter"),
    # The fp32 master copy, 4, and the moments: LAMB's are Adam's (You et al. 2020, algorithm 2), Lion's one (Chen et
    # al. 2023, section 3: "half of the memory"), LARS's one (You et al. 2017), 8-bit Adam's two of a byte.
    [
        ("adamw", 12),
        ("lamb", 12),
        ("adamw8bit", 6),
        ("lion", 8),
        ("sgd", 8),
        ("lars", 8),
        ("lans", 12),
        ("adafactor", 4),
    ],
)
def test_an_optimizers_bytes_per_parameter_are_those_of_its_paper(optimizer, bytes_per_parameter):
    billion = Held(10**9)
    states = model_states(_job(_LLAMA_3_8B, optimizer=optimizer), _strategy(zero_stage=0), billion, billion, _COUNTED)
    assert states[2] == bytes_per_parameter * 10**9


# Adapters and experts.


@pytest.mark.parametrize(
    ("profile", "frozen", "trained"),
    # Everything in bf16: 2, and 2 + 2 + 2 + 2. ZeRO's mixed precision (Rajbhandari et al. 2020): 2, and 2 + 2 + 12.
    [("litgpt", 2, 8), ("deepspeed", 2, 16), ("transformers", 4, 16)],
)
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_what_is_frozen_is_parameters_and_nothing_more(profile, frozen, trained, zero_stage):
    job = _job(_LLAMA_3_8B, adapter=_LORA)
    strategy = _strategy(zero_stage=zero_stage, data_parallel_size=8, gradient_accumulation_steps=1)
    whole, own = held_parameters(job, strategy)
    # Rank 8 on query (4096 to 4096) and value (4096 to 1024) of 32 layers: microsoft/LoRA, r (inputs + outputs).
    assert own == Held(32 * 8 * ((4096 + 4096) + (4096 + 1024)))
    assert whole.total == 8_030_261_248 + own.total
    states = model_states(job, strategy, whole, own, PROFILES[profile])
    expected = (frozen * 8_030_261_248 + trained * own.total) / (8 if zero_stage == 3 else 1)
    assert sum(states) == pytest.approx(expected, rel=1e-6)


def test_every_expert_has_its_own_adapters():
    # Mixtral: 32 layers of 8 experts, three matrices of 4096 x 14,336 each.
    assert Adapter(rank=4, targets=frozenset({"mlp"})).params(_MIXTRAL) == 32 * 8 * 3 * 4 * (4096 + 14_336)


def test_no_bucket_is_kept_for_a_gradient_that_there_is_not(cluster_like):
    # torch's DistributedDataParallel buckets "parameters that require gradients" (torch/nn/parallel/distributed.py).
    def buffers(adapter, profile):
        strategy = _strategy(zero_stage=0, data_parallel_size=8)
        return memory(_job(_LLAMA_3_8B, adapter=adapter), strategy, cluster_like(), PROFILES[profile]).buffers_bytes

    for profile in ("litgpt", "deepspeed"):
        assert buffers(_LORA, profile) < 0.1 * 2**30 < buffers(None, profile)


@pytest.mark.parametrize(
    ("expert_parallel_size", "tensor_parallel_size", "expert_tensor_parallel_size"),
    [(1, 1, None), (8, 1, None), (4, 2, None), (8, 2, 1), (2, 8, 1)],
)
def test_experts_are_cut_by_expert_parallelism_and_sharded_over_those_that_hold_the_same(
    expert_parallel_size, tensor_parallel_size, expert_tensor_parallel_size
):
    # 64 ranks. Of Mixtral's 46.7B, 45.1B are experts: each rank holds 1 / (ep x etp) of them, and as many ranks as hold
    # the same part share its states (Megatron-LM, "expert data parallel": world / (etp x ep x pp)).
    strategy = _strategy(
        data_parallel_size=64 // tensor_parallel_size, tensor_parallel_size=tensor_parallel_size,
        expert_parallel_size=expert_parallel_size, expert_tensor_parallel_size=expert_tensor_parallel_size,
    )  # fmt: skip
    experts = 32 * 8 * 3 * 4096 * 14_336
    split = expert_parallel_size * (expert_tensor_parallel_size or tensor_parallel_size)
    held = parameters_held(_MIXTRAL, strategy)
    assert held.experts == experts / split
    assert strategy.expert_shards == 64 // split
    # Whatever the layout, ZeRO leaves a 64th of the experts' states on each rank, and of the rest as well, but for
    # norms and routers, which tensor parallelism does not cut.
    assert held.sharded(strategy) == pytest.approx(_MIXTRAL.num_params / 64, rel=5e-4)


@pytest.mark.parametrize(("expert_parallel_size", "experts"), [(1, 8), (8, 1)])
def test_a_sharded_model_gathers_the_experts_that_a_rank_computes_with(cluster_like, expert_parallel_size, experts):
    # Two layers and both ends of the vocabulary in 16 bit: FSDP prefetches a layer while another is at work.
    strategy = _strategy(zero_stage=3, data_parallel_size=8, expert_parallel_size=expert_parallel_size)
    found = memory(_job(_MIXTRAL, fused_loss=True), strategy, cluster_like(), PROFILES["torchtitan"])
    assert found.peak_moment == "backward"
    attention, router = 2 * 4096 * (4096 + 1024), 8 * 4096 + 2 * 4096
    layer = attention + router + experts * 3 * 4096 * 14_336
    assert found.buffers_bytes == 2 * (2 * layer + 2 * 32_000 * 4096)


def test_one_rank_holds_all_experts_and_counts_them_once():
    assert parameters_held(_MIXTRAL, _strategy()).total == _MIXTRAL.num_params == 46_702_792_704


# The host.


def test_an_offloaded_optimizer_takes_a_nodes_share_of_what_is_trained(cluster_like):
    # 18 bytes a parameter: fp32 copy, gradient and two moments, and 16-bit staging (deepspeed stage_1_and_2.py). Tensor
    # parallelism cuts a rank's part before ZeRO shards it: on one node the whole model is there once, however cut.
    found = {}
    for t in (1, 8):
        layout = dict(tensor_parallel_size=t, data_parallel_size=8 // t, gradient_accumulation_steps=1)
        strategy = _strategy(zero_stage=2, **layout)
        on, off = (
            memory(_job(_LLAMA_3_8B), replace(strategy, offload_optimizer=where), cluster_like()).host_bytes_per_node
            for where in ("cpu", "none")
        )
        found[t] = on - off
    assert found[1] == 18 * 8_030_261_248
    assert found[8] == pytest.approx(found[1], rel=1e-3)  # eight copies of the norms


def test_only_an_adapters_states_are_offloaded_with_its_optimizer(cluster_like):
    job = _job(_LLAMA_3_8B, adapter=_LORA)
    strategy = _strategy(zero_stage=2, data_parallel_size=8, gradient_accumulation_steps=1)
    on, off = (
        memory(job, replace(strategy, offload_optimizer=where), cluster_like()).host_bytes_per_node
        for where in ("cpu", "none")
    )
    assert on - off == 18 * _LORA.params(_LLAMA_3_8B)


def test_offloaded_activations_are_on_the_host(cluster_like):
    strategy = _strategy(zero_stage=3, data_parallel_size=8, micro_batch_size=4, activation_checkpointing="full")
    here, there = (
        memory(_job(_LLAMA_3_8B), replace(strategy, offload_activations=choice), cluster_like())
        for choice in (False, True)
    )
    # A checkpoint of 4 x 2048 x 4096 in 16 bit for each of 32 layers; two of them stay.
    assert there.host_bytes_per_node - here.host_bytes_per_node == 8 * 30 * (4 * 2048 * 4096 * 2)


@pytest.mark.parametrize(
    "choice",
    [
        {"offload_activations": True}, {"tiled_mlp": True}, {"step_in_backward": True}, {"fused_loss": True},
        {"adapter": _LORA},
    ],
    ids=lambda choice: next(iter(choice)),
)  # fmt: skip
@given(situation=_situations())
def test_what_is_there_to_save_memory_never_needs_more_on_the_device(estimate, choice, situation):
    (name,) = choice
    without = None if name == "adapter" else False
    own = 0
    if name == "tiled_mlp":  # an MLP of the usual width, beside which attention's gradients are small
        situation = (replace(situation[0], intermediate_size=4 * situation[0].hidden_size), *situation[1:])
    if name == "adapter":  # its own parameters come on top, which beside a hidden size of 8 are no small thing
        situation, own = (_LLAMA_3_8B, *situation[1:]), 6 * _LORA.params(_LLAMA_3_8B)
    for rank in ("first", "last"):
        more, less = estimate(situation, rank=rank, **{name: without}), estimate(situation, rank=rank, **choice)
        assert all(less.moments[moment] <= more.moments[moment] + own for moment in more.moments)
    more, less = estimate(situation, **{name: without}), estimate(situation, **choice)
    assert less.peak_allocated_bytes <= more.peak_allocated_bytes + own


@given(_situations())
def test_the_more_is_made_again_the_less_waits_when_the_loss_is_computed(estimate, situation):
    # Down to one layer a rank, where what is kept beside the layers weighs most.
    shape, *others = situation
    situation = (replace(shape, num_layers=2), *others)
    none, selective, full = (
        estimate(situation, activation_checkpointing=checkpointing, rank="last").moments["loss"]
        for checkpointing in ("none", "selective", "full")
    )
    assert full <= selective <= none


@given(_situations())
def test_a_fused_loss_holds_no_logits(estimate, situation):
    fused, plain = (estimate(situation, fused_loss=choice, rank="last") for choice in (True, False))
    assert fused.logits_bytes == 0
    assert fused.moments["loss"] < plain.moments["loss"]
    assert {**fused.moments, "loss": 0} == {**plain.moments, "loss": 0}
