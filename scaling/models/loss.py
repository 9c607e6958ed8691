"""The loss as a sum over targets, so that whoever knows the global number of targets can divide by it.

transformers' own `labels=` averages within a micro-batch, and for BERT it ignores `num_items_in_batch` (5.23.0):
a mean of such means depends on how a batch was split.

Alphabet: B batch, T sequence, N targets, D hidden, V vocabulary.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from scaling.strategy import LOSS_CHUNK_TOKENS, LossKernel

IGNORED = -100  # the label of a position without a target


# From the hidden states of masked positions to their logits.
_MASKED_HEADS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "bert": lambda model, hidden_ND: model.cls(hidden_ND),
    "roberta": lambda model, hidden_ND: model.lm_head(hidden_ND),
    "modernbert": lambda model, hidden_ND: model.decoder(model.head(hidden_ND)),
}


class WithLoss(nn.Module):
    """`model` with a forward that returns the summed cross-entropy, in nats, of a batch's targets.

    `labels` are aligned with the logits: the token to predict at each position [B, T] or IGNORED, or the class of each
    image [B]. The other `inputs` are the model's own, by name. With `loss_kernel` "chunked" a decoder's head never has
    more than `chunk_tokens` rows of logits; the loss is the same.
    """

    def __init__(
        self, model: PreTrainedModel, *, loss_kernel: LossKernel = "full", chunk_tokens: int = LOSS_CHUNK_TOKENS
    ) -> None:
        super().__init__()
        self.model = model
        self.cross_entropy = summed_cross_entropy  # of (logits, labels); tensor parallelism puts its own in its place
        self.masked_head = _MASKED_HEADS.get(model.config.model_type)
        predicts_all = self.masked_head is None and not model.config.is_encoder_decoder
        self.chunked = loss_kernel == "chunked" and predicts_all and model.get_output_embeddings() is not None
        if self.chunked:
            # In the head's own place, so that whoever hooks modules (ZeRO-3 gathers their weights) finds it there.
            model.set_output_embeddings(ChunkedHead(model.get_output_embeddings().weight, chunk_tokens))

    def forward(self, *, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        if self.masked_head:
            # Only the masked positions need a head: 15 % of the logits.
            masked = labels != IGNORED
            hidden_BTD = self.model.base_model(**inputs).last_hidden_state
            logits, labels = self.masked_head(self.model, hidden_BTD[masked]), labels[masked]
        elif self.chunked:
            hidden_BTD = self.model.base_model(**inputs).last_hidden_state
            return self.model.get_output_embeddings()(hidden_BTD.flatten(0, 1), labels.flatten())
        else:
            logits = self.model(**inputs).logits
        return self.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1))


def summed_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """In fp32: a 16-bit log-sum-exp over the vocabulary loses the digits that the loss is made of."""
    return F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED, reduction="sum")


class ChunkedHead(nn.Module):
    """The head and its loss in one: hidden states [N, D] and labels [N] in, the summed cross-entropy out.

    On CUDA by Liger's kernels where they are installed. Not in fp16: Liger rounds the weight's gradient of the summed
    loss to the weight's width before it is divided by the number of targets, which fp16's range may not hold.
    """

    def __init__(self, weight_VD: nn.Parameter, chunk_tokens: int) -> None:
        super().__init__()
        self.weight = weight_VD
        self.chunk_tokens = chunk_tokens
        self.cross_entropy = summed_cross_entropy
        self.has_liger = find_spec("liger_kernel") is not None

    def forward(self, hidden_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        of_whole = self.cross_entropy is summed_cross_entropy  # Liger's kernel knows no part of a vocabulary
        if self.has_liger and of_whole and hidden_ND.is_cuda and hidden_ND.dtype != torch.float16:
            return ligers_cross_entropy(hidden_ND, self.weight, labels_N)
        if torch.is_grad_enabled():
            return _ChunkedCrossEntropy.apply(hidden_ND, self.weight, labels_N, self.chunk_tokens, self.cross_entropy)
        chunks = zip(hidden_ND.split(self.chunk_tokens), labels_N.split(self.chunk_tokens), strict=True)
        return sum(self.cross_entropy(F.linear(hidden, self.weight), labels) for hidden, labels in chunks)


def ligers_cross_entropy(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """The same sum in fp32 (liger-kernel 0.8.5, ops/fused_linear_cross_entropy.py), its logits about as large as the
    hidden states. It waits for the device once in each forward, for the number of targets, and once in each backward.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(
        hidden_ND, weight_VD, labels_N, ignore_index=IGNORED, reduction="sum", accum_dtype=torch.float32
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Each chunk's loss and its gradients at once, forward, so that no logits wait for the backward.

    The backward's work is done here, none of it twice (Liger's fused linear cross-entropy, Hsu et al. 2024, has the
    same order). The weight's gradient is added up in fp32 and leaves in the weight's own width.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, chunk_tokens: int,
        cross_entropy: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        loss = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        hidden_grad_ND = torch.empty_like(hidden_ND)
        weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        chunks = (tensor.split(chunk_tokens) for tensor in (hidden_ND, labels_N, hidden_grad_ND))
        for hidden, labels, hidden_grad in zip(*chunks, strict=True):
            with torch.enable_grad():
                logits = F.linear(hidden, weight_VD).detach().requires_grad_()
                chunk_loss = cross_entropy(logits, labels)
            (logits_grad,) = torch.autograd.grad(chunk_loss, logits)
            loss += chunk_loss.detach()
            torch.mm(logits_grad, weight_VD, out=hidden_grad)
            weight_grad_VD += logits_grad.mT @ hidden
            del logits, chunk_loss, logits_grad
        ctx.save_for_backward(hidden_grad_ND, weight_grad_VD)
        ctx.weight_dtype = weight_VD.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        hidden_grad_ND, weight_grad_VD = ctx.saved_tensors
        hidden_grad_ND = (hidden_grad_ND * loss_grad).to(hidden_grad_ND.dtype)
        return hidden_grad_ND, (weight_grad_VD * loss_grad).to(ctx.weight_dtype), None, None, None
