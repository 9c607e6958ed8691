"""Activation checkpointing: what each layer keeps for its backward, which makes the rest again from its input."""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import (
    _RECOMPUTE,
    CheckpointPolicy,
    _CachedTorchDispatchMode,
    _CachingTorchDispatchMode,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from scaling.strategy import Checkpointing

_aten = torch.ops.aten
_MATMULS = {_aten.mm.default, _aten.addmm.default}
_ATTENTIONS = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
_KEPT = _MATMULS | _ATTENTIONS


def checkpoint_layers(model: PreTrainedModel, choice: Checkpointing, *, dropout: float = 0.0) -> None:
    """Makes the layers of `model` keep for their backward no more than `choice` says.

    "full": each layer's input. "selective": that, attention's output, and those of the first, third, ... matmul, as
    torchtitan does; but not of the last, which joins the residual, so that nothing needs it. The price is in
    scaling/cost/activations.py. With dropout attention is made again, too: one that is not run draws no random numbers,
    and the masks behind it would be others than the forward's.
    """
    if choice == "none":
        return
    # Non-reentrant: the reentrant form loses gradients of inputs that do not require them.
    how: dict[str, Any] = {"use_reentrant": False}
    if choice == "selective":
        how["context_fn"] = partial(_contexts, keeps_attention=not dropout)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _contexts(*, keeps_attention: bool) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For one layer's forward, and for making it again; torch asks the policy in the forward alone."""
    policy = _Policy(keeps_attention)
    storage = create_selective_checkpoint_contexts(policy)[0].storage
    return _Keeping(policy, storage), _Again(policy, storage)


class _Policy:
    """Which outputs of one layer's forward are kept, asked of each in turn."""

    def __init__(self, keeps_attention: bool) -> None:
        self._keeps_attention = keeps_attention
        self.num_matmuls, self.last_matmul = 0, None

    def __call__(self, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = self._keeps_attention and operation in _ATTENTIONS
        if operation in _MATMULS:
            self.num_matmuls, self.last_matmul = self.num_matmuls + 1, operation
            kept = self.num_matmuls % 2 == 1
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _Keeping(_CachingTorchDispatchMode):
    """Leaves the last matmul's output out, as its layer ends.

    Under tensor parallelism it would be wrong besides: DeepSpeed sums it over ranks in place (0.19.8,
    module_inject/layers.py:225), and so again what was kept.
    """

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.policy_fn.num_matmuls % 2:
            outputs = self.storage[self.policy_fn.last_matmul]
            outputs[max(outputs)] = _RECOMPUTE


class _Again(_CachedTorchDispatchMode):
    """Takes what was kept, and runs all else, whether the forward ran it or not.

    torch's own wants the same operations as in the forward, and ZeRO-3 gathers parameters within a layer in one pass
    and before it in the other, as its prefetching goes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEPT:
            return super().__torch_dispatch__(func, types, args, kwargs)
        return func(*args, **(kwargs or {}))
