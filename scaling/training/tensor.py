"""Tensor parallelism: a whole model in, this rank's part of it out, cut in place by the table of its family.

DeepSpeed's AutoTP does the layers (0.19.8, module_inject/auto_tp.py), called here and not by deepspeed.initialize: so
the optimizer and ZeRO-3 are given the parts, and nothing is ever held twice. What AutoTP lacks is done beside it: the
vocabulary's embedding and head with a loss over parts of the logits, Mixtral's experts, and GPT-2's Conv1D.

Alphabet: V vocabulary, D hidden, F intermediate, E experts.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.module_inject import set_autotp_mode
from deepspeed.module_inject.auto_tp import AutoTP
from deepspeed.module_inject.autotp_config import AutoTPConfig
from deepspeed.module_inject.layers import ColumnParallel, RowParallel, TensorParallel_Layer
from deepspeed.sequence.cross_entropy import vocab_parallel_cross_entropy
from deepspeed.utils import groups
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from scaling.ds_config.tensor import TABLES
from scaling.errors import ScaleError
from scaling.models import WithLoss
from scaling.models.loss import IGNORED
from scaling.shape import Shape
from scaling.training.parts import Cut, part, rank, share


def split(module: WithLoss, shape: Shape, config: dict[str, Any], *, initialised: bool, dropout: float = 0.0) -> None:
    """Cuts the model in `module` over the ranks of a tensor parallel group; a collective.

    What is not `initialised` is not copied either, but given new empty memory. With `dropout`, what ranks have alike is
    dropped alike, and what is cut each rank's own way.
    """
    of = config["tensor_parallel"]
    set_autotp_mode(training=True)
    groups._init_tp_mesh_device(tensor_model_parallel_size=of["autotp_size"])
    here = _Here(groups.get_tensor_model_parallel_group(), rank(), of["autotp_size"], initialised)
    transposed = _as_linears(module)
    _split_layers(module, AutoTPConfig.from_dict(of["partition_config"]), here, transposed)
    if dropout:
        _OwnMasks(here.rank).between_columns_and_rows(module)
    if shape.num_experts > 1:
        _split_experts(module, here)
    if shape.traits.kind != "vision":
        _split_vocabulary(module, here)
    for attention in _attentions(module):
        for name in TABLES[shape.family].sizes:
            setattr(attention, name, getattr(attention, name) // here.size)
    module.ds_autotp_parsed = True  # so that deepspeed.initialize makes its groups and cuts nothing


class _Here(NamedTuple):
    group: Any
    rank: int
    size: int
    initialised: bool

    def cut(self, parameter: nn.Parameter, dim: int, parts: int = 1) -> None:
        """Leaves this rank's part of a parameter that is whole."""
        how = Cut(dim, parts)
        self.keep(parameter, part(parameter.data, how, self.rank, self.size), how)

    def keep(self, parameter: nn.Parameter, mine: Tensor, how: Cut) -> None:
        """Makes `mine` all there is of a parameter."""
        parameter.data = torch.empty(mine.shape, dtype=mine.dtype)
        if self.initialised:
            parameter.data.copy_(mine)
        parameter.cut = how
        # The mark by which DeepSpeed's norms and scaling/optim/layout.py know a part; the other one, of AutoTP's own
        # layers, would say that the optimizer was made of whole parameters.
        parameter.tensor_model_parallel = True
        parameter.ds_is_replaced_module = False

    def entered(self, hidden: Tensor) -> Tensor:
        """`hidden`, whose gradient is the sum of all ranks'."""
        return ColumnParallel.apply(self.group, hidden)

    def summed(self, partial: Tensor) -> Tensor:
        # DeepSpeed sums in place what is contiguous, and a copy of what is not (0.19.8, module_inject/layers.py:229).
        return RowParallel.apply(self.group, partial.contiguous(), False)


# Layers


class _ByTable(AutoTP):  # type: ignore[misc]
    def update_mp_params(self, child: nn.Module, name: str | None = None) -> None:
        """Nothing: which attributes count heads is in our table too."""


def _split_layers(module: nn.Module, table: AutoTPConfig, here: _Here, transposed: set[int]) -> None:
    weights = [f"{name}.weight" for name, _ in module.named_modules()]
    for pattern in (pattern for spec in table.layer_specs for pattern in spec.patterns):
        if not any(re.match(pattern, name) for name in weights):  # which AutoTP would pass over
            raise ScaleError(
                f"tensor_parallel: {pattern} names nothing in this model",
                hint="transformers 5.23 is what it was written for",
            )
    autotp = _ByTable(
        module, (), "", None, (nn.Linear, nn.Embedding), None, keep_module_on_host=True, partition_config=table,
        training_mode=True,
    )  # fmt: skip
    autotp.set_tensor_parallel_config(here.size, here.group)
    autotp.update_linear_policies()
    by_head = {
        name for name, layer in module.named_modules()
        if isinstance(layer, nn.Embedding) and table.find_matching_spec(f"{name}.weight")
    }  # fmt: skip
    autotp._replace_module(module)
    autotp.register_replicated_grad_hooks(module)
    for name, layer in module.named_modules():
        if isinstance(layer, TensorParallel_Layer):
            spec = table.find_matching_spec(f"{name}.weight")
            how = Cut(spec.get_partition_dim(), spec.shape[0] if spec.shape else 1)
            here.keep(layer.weight, layer.weight.data, how._replace(transposed=id(layer.weight) in transposed))
            if layer.bias is not None and how.dim == 0:
                here.keep(layer.bias, layer.bias.data, how)
        elif name in by_head:
            here.keep(layer.weight, layer.weight.data, Cut(1))


def _as_linears(module: nn.Module) -> set[int]:
    """Puts an nn.Linear in the place of each of GPT-2's Conv1D, which AutoTP would cut along the other dimension.

    The ids of their weights.
    """
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, Conv1D)}
    for name, layer in found.items():
        inputs, outputs = layer.weight.shape
        linear = nn.Linear(inputs, outputs, device="meta")
        linear.weight = nn.Parameter(layer.weight.data.mT)
        linear.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, linear)
        found[name] = linear
    return {id(linear.weight) for linear in found.values()}


def _attentions(module: nn.Module) -> list[nn.Module]:
    """The modules that have cut projections of their own: in every family those are attention and nothing else with
    attributes that count heads.
    """
    return [
        layer for layer in module.modules()
        if re.search("Attention", type(layer).__name__)
        and any(isinstance(child, TensorParallel_Layer) for child in layer.children())
    ]  # fmt: skip


# Dropout


class _OwnMasks:
    """Random numbers of this rank's own for heads and parts of F; all else is drawn alike by the ranks of a group.

    What is cut stands between a matrix whose outputs are cut and the one whose inputs are, which sums: at the first the
    device's generator is put aside for one that is seeded by a number all ranks draw and their own, at the second it is
    taken back. So nothing is carried along that activation checkpointing would not bring back, who keeps the states of
    both generators at a layer's start; Megatron-LM (core/tensor_parallel/random.py) has to keep a third.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._aside: tuple[nn.Module, Tensor] | None = None  # whose matrices are passed, and the state that all share

    def between_columns_and_rows(self, module: nn.Module) -> None:
        for name, layer in module.named_modules():
            if isinstance(layer, TensorParallel_Layer):
                owner = module.get_submodule(name.rpartition(".")[0])
                if layer.weight.cut.dim == 0:
                    layer.register_forward_hook(partial(self._begin, owner))
                else:
                    layer.register_forward_pre_hook(self._end)

    def _begin(self, owner: nn.Module, layer: nn.Module, *_: Any) -> None:
        if not layer.training:
            return
        if self._aside is not None:
            if self._aside[0] is not owner:
                raise RuntimeError(f"{type(owner).__name__} begins before what was cut for another module is summed")
            return
        device = get_accelerator()
        seed = int(torch.randint(1 << 31, (), device="cpu"))  # moves the host's generator on, on all ranks alike
        self._aside = owner, device.get_rng_state()
        device.manual_seed(seed + self._rank)

    def _end(self, layer: nn.Module, *_: Any) -> None:
        if not layer.training:
            return
        if self._aside is None:
            raise RuntimeError("parts are summed that nothing has cut")
        _, state = self._aside
        self._aside = None
        get_accelerator().set_rng_state(state)


# Experts


def _split_experts(module: nn.Module, here: _Here) -> None:
    """Cuts F of each expert's gate, up [E, 2F, D] and down [E, D, F]; the router is whole."""
    for layer in module.modules():
        if isinstance(getattr(layer, "gate_up_proj", None), nn.Parameter):
            here.cut(layer.gate_up_proj, 1, 2)
            here.cut(layer.down_proj, 2)
            layer.intermediate_dim //= here.size
            layer.forward = partial(_experts, layer.forward, here)


def _experts(forward: Callable[..., Tensor], here: _Here, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What a token's experts say, weighted: each rank's part of F gives a part of it, and of the weights' gradient."""
    return here.summed(forward(here.entered(hidden), index, here.entered(weights)))


# The vocabulary


def _split_vocabulary(module: WithLoss, here: _Here) -> None:
    """Cuts V of the embeddings and of the head, tied or not; the head's logits are this rank's, and the loss knows."""
    model = module.model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    V = embedding.weight.shape[0]
    start = sum(share(V, rank, here.size) for rank in range(here.rank))
    stop = start + share(V, here.rank, here.size)
    shared = [
        layer for layer in model.modules() if isinstance(layer, nn.Embedding) and layer.weight is embedding.weight
    ]
    parameters = {id(p): p for p in (embedding.weight, *head.parameters())}
    for parameter in parameters.values():
        here.cut(parameter, 0)
    for layer in shared:
        if layer.padding_idx is not None:
            layer.padding_idx = layer.padding_idx - start if start <= layer.padding_idx < stop else None
        layer.num_embeddings = stop - start
        layer.forward = partial(_embedded, layer.forward, here, start, stop)
    head.register_forward_pre_hook(lambda _, inputs: (here.entered(inputs[0]), *inputs[1:]))
    if isinstance(getattr(model, "final_logits_bias", None), Tensor):  # of BART and its kin: zeros, not trained
        model.final_logits_bias = model.final_logits_bias[:, start:stop].clone()
        model.final_logits_bias.cut = Cut(1)
    loss = partial(_cross_entropy, here.group, start, stop, V)
    for layer in (module, head):
        layer.cross_entropy = loss


def _embedded(forward: Callable[..., Tensor], here: _Here, start: int, stop: int, ids: Tensor) -> Tensor:
    elsewhere = (ids < start) | (ids >= stop)
    found = forward((ids - start).masked_fill(elsewhere, 0))
    return here.summed(found.masked_fill(elsewhere.unsqueeze(-1), 0.0))


def _cross_entropy(group: Any, start: int, stop: int, V: int, logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of all ranks' logits, [N, V of this rank], in fp32; the same on every rank."""
    return vocab_parallel_cross_entropy(
        logits, labels, group, vocab_start_index=start, vocab_end_index=stop, global_vocab_size=V,
        ignore_index=IGNORED, reduction="sum",
    )  # fmt: skip
