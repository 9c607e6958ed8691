"""First weights as each family's paper, or its authors' code, has them, where transformers 5.23.0 draws others.

docs/models.md has the table with its sources. What is drawn anew comes from torch's own generator, after transformers
has drawn from it: the same seed gives the same weights.

Alphabet: L layers, D hidden.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from scaling.shape import Shape

Draw = Callable[[torch.Tensor], object]

# A normal that is cut at two standard deviations has this share of its own (flax and TensorFlow divide by it).
_TRUNCATED_STD = 0.87962566103423978


@torch.no_grad()
def initialise(model: PreTrainedModel, shape: Shape) -> None:
    """Draws the matrices of `model` anew, where its family has a row below. Biases are zeros and norms ones already."""
    if shape.family not in _MATRICES:
        return
    draw_of = _MATRICES[shape.family]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.dim() > 1 or shape.family == "vit"):
            draw_of(name, shape, model)(parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _normal(std: float) -> Draw:
    return lambda weight: nn.init.normal_(weight, std=std)


def _truncated(std: float) -> Draw:
    """Anew until within two standard deviations: `std` is that of the normal before it is cut."""
    return lambda weight: nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _gpt_neox(name: str, shape: Shape, model: PreTrainedModel) -> Draw:
    L, D = shape.num_layers, shape.hidden_size
    if name.endswith(("attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        return _normal(2 / (L * math.sqrt(D)))
    return _normal(math.sqrt(2 / (5 * D)))


def _opt(name: str, shape: Shape, model: PreTrainedModel) -> Draw:
    into_residual = name.endswith(("self_attn.out_proj.weight", "fc2.weight"))
    return _normal(model.config.init_std / (math.sqrt(2 * shape.num_layers) if into_residual else 1))


def _bert(name: str, shape: Shape, model: PreTrainedModel) -> Draw:
    return _truncated(model.config.initializer_range)


def _transformer(name: str, shape: Shape, model: PreTrainedModel) -> Draw:
    return _normal(shape.hidden_size**-0.5) if name == "model.shared.weight" else nn.init.xavier_uniform_


def _vit(name: str, shape: Shape, model: PreTrainedModel) -> Draw:
    match name.rsplit(".", 2)[-2:]:
        case _, "cls_token":
            return nn.init.zeros_
        case "classifier", _:
            return nn.init.zeros_
        case _, "position_embeddings":
            return _normal(0.02)
        case "projection", "weight":
            return _truncated((shape.num_channels * shape.patch_size**2) ** -0.5 / _TRUNCATED_STD)
        case _, "weight" if "norm" not in name:
            return nn.init.xavier_uniform_
        case _, "bias" if ".mlp." in name:
            return _normal(1e-6)
    return lambda weight: weight  # norms and the other biases are as they should be


_MATRICES: dict[str, Callable[[str, Shape, PreTrainedModel], Draw]] = {
    "gpt-neox": _gpt_neox,
    "opt": _opt,
    "bert": _bert,
    "transformer": _transformer,
    "vit": _vit,
}
