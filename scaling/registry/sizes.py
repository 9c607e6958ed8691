"""A shape for a size: the published one of a family, or one derived in its proportions."""

import math
from dataclasses import replace
from functools import cache

from scaling.errors import InputError, did_you_mean
from scaling.family import FAMILIES
from scaling.registry.decoders import OURS
from scaling.registry.entry import Entry
from scaling.registry.models import MODELS
from scaling.shape import Shape
from scaling.units import format_count

# Within this distance a published shape answers "--params 1.3B"; beyond it a shape is derived and said to be.
_NEAR_FRACTION = 0.10
# A derived shape this close to the asked size may look to its proportions.
_CLOSE_FRACTION = 0.02
_MOST_HEADS = 512


def nearest(num_params: int, family: str = "gpt2", field: str = "params") -> tuple[Entry, str]:
    """The model of `family` of about `num_params` parameters, and a sentence that says how it was chosen.

    A published row within 10 % wins; otherwise a shape is derived in the proportions of the nearest row. GPT's are
    GPT-3's. Raises InputError when even the smallest derived shape is too large.
    """
    if family not in FAMILIES:
        raise InputError("family", family, "is not a known family", hint=did_you_mean(family, FAMILIES))
    rows = [entry for entry in MODELS.values() if _is_published(entry, family)]
    closest = min(rows, key=lambda entry: abs(math.log(entry.shape.num_params / num_params)))
    off = closest.shape.num_params / num_params - 1
    if abs(off) <= _NEAR_FRACTION:
        shape = closest.shape
        size = f"{shape.num_layers} layers x {shape.hidden_size}, {format_count(shape.num_params)} parameters"
        return closest, (
            f"{shape.name} ({size}) is the published shape nearest to {format_count(num_params)}: {closest.source}"
        )
    shape = _derived(num_params, like=closest.shape, field=field)
    source = f"derived in the proportions of {closest.shape.name}"
    entry = replace(closest, shape=shape, source=source, licence="no weights published", note="")
    return entry, (
        f"no published {'GPT-3' if family == 'gpt2' else family} shape is within {_NEAR_FRACTION:.0%} of "
        f"{format_count(num_params)} "
        f"(nearest: {closest.shape.name}, {off:+.0%}); derived {shape.num_layers} layers x {shape.hidden_size}, "
        f"{format_count(shape.num_params)} parameters; batch and learning rate from {closest.shape.name}"
    )


def nearest_gpt3(num_params: int) -> Entry:
    """The row of GPT-3's table that is nearest in size."""
    rows = (entry for entry in MODELS.values() if _is_published(entry, "gpt2"))
    return min(rows, key=lambda entry: abs(math.log(entry.shape.num_params / num_params)))


def nearest_gpt(num_params: int, field: str = "params") -> tuple[Entry, str]:
    return nearest(num_params, "gpt2", field)


def _is_published(entry: Entry, family: str) -> bool:
    if family == "gpt2":
        return entry.shape.name.startswith("gpt3-")
    return entry.shape.family == family and entry.source != OURS


def _derived(num_params: int, *, like: Shape, field: str) -> Shape:
    """The shape of about `num_params` whose L / D is nearest to that of `like`.

    For each width the number of layers that comes closest is tried. Of those within _CLOSE_FRACTION of the target the
    one in proportion wins; where there is none, the closest in size.
    """
    ratio = like.num_layers / like.hidden_size
    candidates = []  # (a shape of one layer, layers, parameters)
    for shape, first, layer in _widths(like):
        layers = (num_params - first + layer) / layer
        for L in {max(1, math.floor(layers)), max(1, math.ceil(layers))}:
            candidates.append((shape, L, first + (L - 1) * layer))

    def off(candidate: tuple[Shape, int, int]) -> float:
        return abs(candidate[2] / num_params - 1)

    def out_of_proportion(candidate: tuple[Shape, int, int]) -> float:
        return abs(math.log(candidate[1] / candidate[0].hidden_size / ratio))

    close = [candidate for candidate in candidates if off(candidate) <= _CLOSE_FRACTION]
    best = min(close, key=out_of_proportion) if close else min(candidates, key=off)
    if off(best) > 0.25:
        problem = f"cannot be met with {like.name}'s vocabulary of {like.vocab_size:,}"
        hint = (
            f"the nearest {like.family} is {format_count(best[2])}; --model takes smaller ones, such as gpt-demo: "
            "`scale models` lists them"
        )
        raise InputError(field, format_count(num_params), problem, hint=hint)
    shape, L, _ = best
    name = f"{'gpt' if like.family == 'gpt2' else like.family}-{format_count(num_params).lower()}"
    return replace(shape, name=name, num_layers=L, num_decoder_layers=L if shape.num_decoder_layers else None)


@cache
def _widths(like: Shape) -> list[tuple[Shape, int, int]]:
    """A shape of one layer for every width, its parameters, and those of one layer more.

    Heads of a GPT are 64 wide, 128 from width 2048; those of others, their groups of keys and the MLP are as in `like`.
    """
    head_dim = like.head_dim
    if like.family == "gpt2":
        head_dim = 128 if like.hidden_size >= 2048 else 64
    group = like.num_attention_heads // like.num_key_value_heads
    shapes = []
    for heads in range(group, _MOST_HEADS + 1, group):
        width = heads * head_dim
        if like.explicit_head_dim:  # whose heads together need not be as wide as the model
            width = max(1, round(heads * like.hidden_size / like.num_attention_heads / 64)) * 64
        shape = replace(
            like, num_layers=1, num_decoder_layers=1 if like.num_decoder_layers else None,
            hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads // group,
            intermediate_size=max(1, round(like.intermediate_size / like.hidden_size * width / 64)) * 64,
        )  # fmt: skip
        decoder_layer = shape.decoder_layer_params if shape.num_decoder_layers else 0
        shapes.append((shape, shape.num_params, shape.layer_params + decoder_layer))
    return shapes
