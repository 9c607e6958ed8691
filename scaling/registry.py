"""Names for shapes: published sizes as data, each with its source, and new sizes in a family's own proportions."""

import math
from dataclasses import dataclass, replace

from scaling.errors import InputError, did_you_mean
from scaling.shape import Shape
from scaling.units import format_count

GPT2_VOCAB = 50_257  # 50,000 merges + 256 bytes + <|endoftext|>
BERT_VOCAB = 30_522  # google-research/bert, uncased WordPiece


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A known model: its shape, where the numbers stand, and the published batch and learning rate.

    `batch_tokens` is the tokens per optimizer step of the published run, `lr` its peak.
    """

    shape: Shape
    source: str
    batch_tokens: int
    lr: float
    note: str = ""


def _gpt(name: str, L: int, D: int, N: int, context: int, vocab: int = GPT2_VOCAB) -> Shape:
    return Shape(
        name=name, family="gpt2", num_layers=L, hidden_size=D, num_attention_heads=N, intermediate_size=4 * D,
        vocab_size=vocab, max_position_embeddings=context,
    )  # fmt: skip


def _bert(name: str, L: int, D: int, N: int, context: int = 512, vocab: int = BERT_VOCAB) -> Shape:
    return replace(_gpt(name, L, D, N, context, vocab), family="bert")


_GPT3 = "Brown et al. 2020 (arXiv 2005.14165), table 2.1"
_GPT2 = "Radford et al. 2019, table 2; openai-community/gpt2* config.json"
_BERT = "Devlin et al. 2018 (arXiv 1810.04805), section 3"
_OURS = "sized for two CPU ranks and a few minutes"

_ENTRIES = (
    # GPT-3 rows: context 2048, learning rate as printed; the batches 0.5M, 1M, 2M and 3.2M tokens as whole sequences.
    Entry(shape=_gpt("gpt3-125m", 12, 768, 12, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=6.0e-4),
    Entry(shape=_gpt("gpt3-350m", 24, 1024, 16, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=3.0e-4),
    Entry(shape=_gpt("gpt3-760m", 24, 1536, 16, 2048), source=_GPT3, batch_tokens=256 * 2048, lr=2.5e-4),
    Entry(
        shape=_gpt("gpt3-1.3b", 24, 2048, 16, 2048), source=_GPT3, batch_tokens=512 * 2048, lr=2.0e-4,
        note="the table prints 24 heads of 128, which is not 2048; 16 heads of 128 as in Megatron-DeepSpeed",
    ),
    Entry(shape=_gpt("gpt3-2.7b", 32, 2560, 32, 2048), source=_GPT3, batch_tokens=512 * 2048, lr=1.6e-4),
    Entry(shape=_gpt("gpt3-6.7b", 32, 4096, 32, 2048), source=_GPT3, batch_tokens=1024 * 2048, lr=1.2e-4),
    Entry(
        shape=_gpt("gpt3-13b", 40, 5120, 40, 2048), source=_GPT3, batch_tokens=1024 * 2048, lr=1.0e-4,
        note="the table prints a width of 5140 with 40 heads of 128, which is 5120",
    ),
    Entry(shape=_gpt("gpt3-175b", 96, 12288, 96, 2048), source=_GPT3, batch_tokens=1536 * 2048, lr=0.6e-4),
    # GPT-2: the paper's batch is 512 sequences of 1024; it prints no learning rate, so those are GPT-3's by size.
    Entry(shape=_gpt("gpt2", 12, 768, 12, 1024), source=_GPT2, batch_tokens=512 * 1024, lr=6.0e-4),
    Entry(shape=_gpt("gpt2-medium", 24, 1024, 16, 1024), source=_GPT2, batch_tokens=512 * 1024, lr=3.0e-4),
    Entry(shape=_gpt("gpt2-large", 36, 1280, 20, 1024), source=_GPT2, batch_tokens=512 * 1024, lr=2.5e-4),
    Entry(shape=_gpt("gpt2-xl", 48, 1600, 25, 1024), source=_GPT2, batch_tokens=512 * 1024, lr=2.0e-4),
    # BERT: appendix A.2, 256 sequences of 512 tokens, Adam at 1e-4.
    Entry(shape=_bert("bert-base", 12, 768, 12), source=_BERT, batch_tokens=256 * 512, lr=1.0e-4),
    Entry(shape=_bert("bert-large", 24, 1024, 16), source=_BERT, batch_tokens=256 * 512, lr=1.0e-4),
    Entry(shape=_gpt("gpt-demo", 4, 256, 4, 128, vocab=2048), source=_OURS, batch_tokens=32 * 128, lr=2.0e-3),
    Entry(shape=_bert("bert-demo", 4, 256, 4, 128, vocab=2048), source=_OURS, batch_tokens=32 * 128, lr=1.0e-3),
)  # fmt: skip

MODELS: dict[str, Entry] = {entry.shape.name: entry for entry in _ENTRIES}
_GPT3_ENTRIES = [entry for name, entry in MODELS.items() if name.startswith("gpt3-")]

# Within this distance a published shape answers "--params 1.3B"; beyond it a shape is derived and said to be.
_NEAR_FRACTION = 0.10
# A derived shape this close to the asked size may look to its proportions.
_CLOSE_FRACTION = 0.02


def find(name: str, field: str = "model") -> Entry:
    """The entry called `name`. Raises InputError with the closest names."""
    if name not in MODELS:
        raise InputError(field, name, "is not a known model", hint=did_you_mean(name, MODELS))
    return MODELS[name]


def nearest_gpt(num_params: int, field: str = "params") -> tuple[Entry, str]:
    """The GPT of about `num_params` parameters, and a sentence that says how it was chosen.

    A published GPT-3 row within 10 % wins; otherwise a shape is derived in the proportions of the rows around.
    Raises InputError when even the smallest derived shape is too large.
    """
    nearest = min(_GPT3_ENTRIES, key=lambda entry: abs(math.log(entry.shape.num_params / num_params)))
    off = nearest.shape.num_params / num_params - 1
    if abs(off) <= _NEAR_FRACTION:
        shape = nearest.shape
        size = f"{shape.num_layers} layers x {shape.hidden_size}, {format_count(shape.num_params)} parameters"
        return nearest, (
            f"{shape.name} ({size}) is the published shape nearest to {format_count(num_params)}: {nearest.source}"
        )
    shape = _derived_gpt(num_params, like=nearest.shape, field=field)
    entry = replace(nearest, shape=shape, source=f"derived in the proportions of {nearest.shape.name}", note="")
    return entry, (
        f"no published GPT-3 shape is within {_NEAR_FRACTION:.0%} of {format_count(num_params)} "
        f"(nearest: {nearest.shape.name}, {off:+.0%}); derived {shape.num_layers} layers x {shape.hidden_size}, "
        f"{format_count(shape.num_params)} parameters; batch and learning rate from {nearest.shape.name}"
    )


def _derived_gpt(num_params: int, *, like: Shape, field: str) -> Shape:
    """The shape of about `num_params` whose L / D is nearest to that of `like`; heads of 64, of 128 from width 2048.

    For each width the number of layers that comes closest is tried. Of those within _CLOSE_FRACTION of the target the
    one in proportion wins; where there is none, the closest in size.
    """
    head_dim = 128 if like.hidden_size >= 2048 else 64
    ratio = like.num_layers / like.hidden_size
    shapes = []
    for heads in range(1, 513):
        shape = _gpt(
            f"gpt-{format_count(num_params).lower()}", 1, heads * head_dim, heads, like.max_position_embeddings
        )
        layers = (num_params - shape.num_params + shape.layer_params) / shape.layer_params
        shapes += [replace(shape, num_layers=max(1, L)) for L in (math.floor(layers), math.ceil(layers))]

    def off(shape: Shape) -> float:
        return abs(shape.num_params / num_params - 1)

    close = [shape for shape in shapes if off(shape) <= _CLOSE_FRACTION]
    if close:
        return min(close, key=lambda shape: abs(math.log(shape.num_layers / shape.hidden_size / ratio)))
    best = min(shapes, key=off)
    if off(best) > 0.25:
        raise InputError(
            field, format_count(num_params), f"cannot be met with GPT-2's vocabulary of {GPT2_VOCAB:,}",
            hint=f"the nearest GPT is {format_count(best.num_params)}; use --model for others: {', '.join(MODELS)}",
        )  # fmt: skip
    return best
