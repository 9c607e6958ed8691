"""Bytes that wait for the backward on one rank: what each layer saves, by policy and schedule, and the logits.

Alphabet: B micro batch, T sequence, D hidden, F intermediate, N heads, V vocabulary, L layers, E experts.
"""

from scaling.cost.job import Job
from scaling.cost.model_states import FP32_BYTES, element_bytes, layer_held
from scaling.cost.profile import DEEPSPEED, Profile
from scaling.cost.stages import layers_of_rank
from scaling.shape import Shape
from scaling.strategy import LOSS_CHUNK_TOKENS, Rank, Strategy


def layer_saved_elements(job: Job, profile: Profile = DEEPSPEED) -> tuple[float, float]:
    """Elements per token that one layer saves for its backward: (those that tensor parallelism divides, the others).

    Counted by operation, as autograd saves them, with flash attention and without dropout. Divided: query, key and
    value, attention's output, and the MLP's pre-activation and activation (2 F), or a gated MLP's tensors. Not divided:
    each norm's input and output, 4 D. For gpt2 and bert alike that is 8 D + 2 F. Norm statistics and the log-sum-exp
    (below 1 %) are left out.

    Each expert that a token goes to saves an MLP's tensors, the token's copy and the expert's output. A frozen matrix
    saves no input: of an MLP stays what its activation needs, of a norm its input; adapters save their own inputs.

    A ReLU needs its output alone. Queries, keys and values from one matrix stay whole beside their rotated copies
    (GPT-NeoX, ModernBERT: values are a view). Norms of queries and keys keep what an RMSNorm keeps but its output.
    """
    shape, adapter = job.shape, job.adapter
    D, F = shape.hidden_size, shape.intermediate_size
    mlp: float = (profile.gated_tensors if shape.gated_mlp else 1 if _has_relu(shape) else 2) * F
    rms = rms_factor(job, profile)
    norms = (3 if shape.family == "gpt-neox" else 4) * D * (rms if shape.traits.norm == "rms" else 1.0)
    adapters = 0.0
    if adapter is not None:  # query, key and value share an input, and a dropout, as litgpt's one matrix of them has it
        of_attention = bool(adapter.targets - {"output", "mlp"})
        of_mlp = shape.experts_per_token if "mlp" in adapter.targets else 0
        norms, mlp = norms / 2, mlp - F
        if adapter.dropout:  # each adapter keeps a dropped copy of its input and the mask, a byte
            inputs = D * of_attention + shape.query_size * ("output" in adapter.targets)
            adapters = 1.5 * (inputs + (D * (2 if shape.gated_mlp else 1) + F) * of_mlp)
        else:
            adapters = D * of_attention + (D + F) * of_mlp
    if shape.family == "t5" and shape.gated_mlp:
        mlp += 3 * F  # its tanh GELU is several operations
    if shape.num_experts > 1:
        mlp = shape.experts_per_token * (mlp + 2 * D)
    if job.tiled_mlp:
        mlp = 0
    keys_values = 2 * (shape.query_size if profile.repeats_keys else shape.key_value_size)
    cut: float = 2 * shape.query_size + keys_values + mlp
    if drops_scores(job) or biases_scores(job):  # each as wide as queries, in fp32, and nothing else of them
        cut += 3 * shape.query_size * FP32_BYTES / element_bytes(job.precision) - shape.query_size - keys_values
    elif one_matmul_makes_keys(shape) and shape.traits.positions == "rotary":
        cut += (3 if shape.family == "gpt-neox" else 2) * shape.query_size  # whose output is copied, besides
    if shape.traits.norms_queries:
        cut += (2 * rms - 1) * (shape.query_size + shape.key_value_size)
    return profile.cut * cut, profile.uncut * norms + adapters


def decoder_saved_elements(job: Job, profile: Profile = DEEPSPEED) -> tuple[float, float]:
    """The same of a decoder's layer beside an encoder, for each token of the encoder's input.

    A decoder token has one attention and one norm more; of that attention, keys and values are the encoder's tokens'.
    """
    shape, share = job.shape, job.predicted_fraction
    cut, uncut = layer_saved_elements(job, profile)
    width = FP32_BYTES / element_bytes(job.precision) if drops_scores(job) else 1.0
    queries, keys_values = width * shape.query_size, width * 2 * shape.key_value_size
    return share * (cut + queries + shape.query_size) + keys_values, share * uncut * 1.5


def rms_factor(job: Job, profile: Profile) -> float:
    """Tensors that an RMSNorm keeps, over a LayerNorm's two: unfused in fp32 its input needs no wider copy."""
    if profile.rms_uncut <= 1:
        return profile.rms_uncut
    if job.precision == "fp32":
        return 1.5
    return profile.rms_uncut + (0.5 if job.shape.family == "t5" else 0)  # T5's keeps the narrow input, too


def drops_scores(job: Job) -> bool:
    """Whether attention keeps its scores for the sake of dropout: torch's math path, where no kernel does both."""
    names = job.shape.traits.dropout_names
    return bool(job.dropout) and job.on_cpu and any(name == "dropout_rate" or "att" in name for name in names)


def mask_bytes(job: Job) -> tuple[int, int]:
    """What dropout keeps of a layer for each token, scores aside: (what tensor parallelism divides, the rest).

    A mask has a byte an element, a CPU's noise the width of what is dropped. Most families drop what attention and the
    MLP add to the residual, T5 and ModernBERT the MLP's activation (of which a ReLU that is not gated keeps its own
    copy), and Llama and its kin nothing but scores.
    """
    shape, width = job.shape, element_bytes(job.precision)
    names = shape.traits.dropout_names
    if not job.dropout or names == ("attention_dropout",):
        return 0, 0
    noise = width if job.on_cpu else 1
    of_mlp = 0
    if shape.family in ("t5", "modernbert"):
        of_mlp = (noise + (0 if shape.gated_mlp else width)) * shape.intermediate_size
    return of_mlp, (1 if shape.family == "modernbert" else 2) * noise * shape.hidden_size


def biases_scores(job: Job) -> bool:
    """Whether T5's trained bias is added to the scores, which torch then keeps, in fp32: its math path, on a CPU.

    CUDA's memory-efficient kernel may do without; that is not measured, and the estimate stays on the safe side.
    """
    return job.shape.traits.positions == "relative"


def _has_relu(shape: Shape) -> bool:
    if shape.family == "t5":
        return not shape.gated_mlp
    return shape.traits.constants.get("activation_function") == "relu"


def activations(
    job: Job, strategy: Strategy, profile: Profile = DEEPSPEED, rank: Rank = "any"
) -> tuple[int, int, int, int]:
    """(what waits for the backward, all of one layer's tensors, those of them made again, its gradients), in bytes."""
    shape, tp = job.shape, strategy.tensor_parallel_size
    tokens = micro_step_tokens(job, strategy)
    width = element_bytes(job.precision)
    uncut_by = tp if strategy.tensor_parallel_sequences else 1
    cut, uncut = layer_saved_elements(job, profile)
    cut_masks, masks = mask_bytes(job)
    scores = scores_bytes_per_token(job, strategy, profile)
    layer = tokens * ((cut * width + cut_masks) / tp + (uncut * width + masks) / uncut_by + scores)
    # Gradients beside all that the layer saved: in the MLP's backward F of them, 2 F where gated, since the activation
    # is freed as its own gradient comes, or, where the MLP is tiled, attention's four tensors; and the residual's.
    # Ulysses' all-to-alls have their input beside their output.
    exchanged = 2 * shape.query_size + 2 * shape.key_value_size
    mlp = (2 if shape.gated_mlp else 1) * shape.experts_per_token * shape.intermediate_size
    gradients = (exchanged if job.tiled_mlp else mlp) / tp + shape.hidden_size / uncut_by
    if strategy.sequence_parallel_size > 1 and strategy.sequence_parallelism == "ulysses":
        gradients += exchanged / tp
    gradients *= tokens * width
    waiting = layers_of_rank(job, strategy, profile, rank) * in_flight(strategy, rank)
    if shape.num_decoder_layers:  # in layers of the encoder's kind
        share = job.predicted_fraction
        cut, uncut = decoder_saved_elements(job, profile)
        scores *= share**2 + (share if drops_scores(job) else 0)  # its own, and those of the encoder's keys
        cut_bytes, uncut_bytes = cut * width + share * cut_masks, uncut * width + 1.5 * share * masks
        other = tokens * (cut_bytes / tp + uncut_bytes / uncut_by + scores)
        D, choice = shape.hidden_size, strategy.activation_checkpointing
        weight = other / layer if choice == "none" else share
        if choice == "selective" and profile.selective == "matmuls":
            decoders = share * D / uncut_by + decoder_selected_elements(job) / tp
            weight = decoders / (D / uncut_by + selected_elements(job) / tp)
        waiting *= 1 + weight * shape.num_decoder_layers / shape.num_layers
    checkpoint = tokens * shape.hidden_size * width / uncut_by
    match strategy.activation_checkpointing:
        case "full":
            kept, remade = checkpoint, layer
        case "selective" if profile.selective == "scores":
            kept, remade = layer - tokens * scores, tokens * scores
        case "selective":
            kept = checkpoint + tokens * selected_elements(job) * width / tp
            remade = layer - kept
        case _:
            kept, remade = layer, 0.0
    gathered = gathered_experts_bytes(job, strategy, profile, waiting)
    if strategy.offload_activations:
        waiting = min(waiting, 2.0)  # the layer at work and the one on its way
    return int(waiting * kept + gathered), int(layer), int(remade), int(gradients)


def selected_elements(job: Job) -> int:
    """Elements per token that a selective layer keeps beside its input, all of which tensor parallelism divides.

    scaling/models/checkpointing.py: attention's output, and those of the first, third, ... matmul but for the last:
    query and value, or one matrix of query, key and value, and the MLP's first. Experts are multiplied otherwise.
    """
    shape, one = job.shape, one_matmul_makes_keys(job.shape)
    attention = shape.query_size if selects_attention(job) else 0
    elements = shape.query_size + (2 if one else 1) * shape.key_value_size + attention
    if job.tiled_mlp or shape.num_experts > 1:
        return elements
    return elements + shape.intermediate_size * (2 if one and shape.gated_mlp else 1)


def decoder_selected_elements(job: Job) -> float:
    """The same of a decoder's layer beside an encoder, for each token of the encoder's input, whose value it keeps."""
    attention = job.shape.query_size if selects_attention(job) else 0
    own = selected_elements(job) + job.shape.query_size + attention
    return job.predicted_fraction * own + job.shape.key_value_size


def selects_attention(job: Job) -> bool:
    """Whether a selective layer keeps attention's output: not with dropout, nor of torch's math path."""
    return not job.dropout and not (biases_scores(job) and job.on_cpu)


def gathered_experts_bytes(job: Job, strategy: Strategy, profile: Profile, num_layers: float) -> float:
    """Experts of so many layers that stage 3 gathered, and that autograd keeps for the backward.

    transformers 5.23.0 takes each expert as a slice of one tensor. What is saved of it is the slice, whose memory
    DeepSpeed 0.19.8 cannot free as it does a parameter's own, but for the two layers that it may hold anyway
    (memory.py:live_parameters). Checkpointed layers gather theirs again, and AutoEP's experts are tensors of their own.
    """
    checkpointed = strategy.activation_checkpointing != "none"
    gathers = strategy.zero_stage == 3 and profile.buckets and not strategy.is_alone
    if not gathers or checkpointed or strategy.expert_parallel_size > 1:
        return 0.0
    experts = layer_held(job.shape, strategy).experts
    return max(0.0, num_layers - 2) * experts * element_bytes(job.precision)


def scores_bytes_per_token(job: Job, strategy: Strategy, profile: Profile) -> float:
    """Attention scores and what follows them, where they are kept: N T of them for each token of a layer.

    Dropped on a CPU: the softmax, the noise and their product, each in fp32 (torch 2.13, attention.cpp's math path).
    ModernBERT's layers with a window, two of three, keep its mask, T for each token.
    """
    if drops_scores(job) or biases_scores(job):
        copies = 3 if drops_scores(job) else 1
        return copies * job.shape.num_attention_heads * job.seq_length / strategy.tensor_parallel_size * FP32_BYTES
    if job.shape.family == "modernbert" and job.attention != "eager":
        return 2 / 3 * job.seq_length * element_bytes(job.precision)
    if job.attention != "eager":
        return 0.0
    scores = job.shape.num_attention_heads * job.seq_length / strategy.tensor_parallel_size
    return scores * profile.score_bytes * element_bytes(job.precision) / 2


def one_matmul_makes_keys(shape: Shape) -> bool:
    """Whether query, key and value are one matrix's output, which is kept whole or not at all: GPT-2's c_attn."""
    return shape.family in ("gpt2", "gpt-neox", "modernbert")


def in_flight(strategy: Strategy, rank: Rank) -> float:
    """Micro-batches whose activations a pipeline rank holds at once.

    1F1B: as many as there are ranks from it to the end. Interleaved in v chunks: (2 (p - r - 1) + (v - 1) p + 1) / v
    micro-batches' worth at rank r (Narayanan et al. 2021; Megatron-LM core/pipeline_parallel/schedules.py).
    """
    p, v, m = strategy.pipeline_parallel_size, strategy.virtual_pipeline_size, strategy.gradient_accumulation_steps
    behind = 0 if rank == "last" else p - 1
    if v == 1:
        return min(behind + 1, m)
    return min((2 * behind + (v - 1) * p + 1) / v, m)


def loss_bytes(job: Job, strategy: Strategy, profile: Profile = DEEPSPEED) -> int:
    """Logits and what the loss makes of them, at the loss's backward.

    In 16 bit, for ours (scaling/models/loss.py): the logits 2, log-probabilities 4, their gradient 4, and the 16-bit
    one 2 per logit; in fp32 4 + 4 + 4. Only positions with a target have logits; a fused loss holds none. A chunked one
    holds a chunk's, the head's gradient summed in fp32 with a chunk's own beside it, and the hidden states' gradient.
    """
    if job.fused_loss:
        return 0
    tokens, head = loss_tokens(job, strategy), job.shape.vocab_size / strategy.tensor_parallel_size
    per_logit = logit_bytes(job, profile)
    if not chunks_loss(job, strategy):
        return int(tokens * head * per_logit)
    width, D = element_bytes(job.precision), job.shape.hidden_size
    gradients = head * D * (FP32_BYTES + width) + tokens * D * width
    return int(min(tokens, LOSS_CHUNK_TOKENS) * head * per_logit + gradients)


def micro_step_tokens(job: Job, strategy: Strategy) -> float:
    """Tokens of one micro step on one rank."""
    return strategy.micro_batch_size * job.seq_length / strategy.sequence_parallel_size


def loss_tokens(job: Job, strategy: Strategy) -> float:
    """Positions of a micro step whose logits one rank computes."""
    return micro_step_tokens(job, strategy) * job.predicted_fraction


def logit_bytes(job: Job, profile: Profile) -> float:
    return 3 * FP32_BYTES if job.precision == "fp32" else profile.logit_bytes


def chunks_loss(job: Job, strategy: Strategy) -> bool:
    """Whether the loss is chunked: a masked-LM head is not, which has few logits and a transform of its own."""
    return strategy.loss_kernel == "chunked" and job.shape.traits.kind == "decoder"
