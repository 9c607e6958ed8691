"""The loss as a sum over targets, so that whoever knows the global number of targets can divide by it.

transformers' own `labels=` averages within a micro-batch, and for BERT it ignores `num_items_in_batch` (5.23.0):
a mean of such means depends on how a batch was split.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM, PreTrainedModel

IGNORED = -100  # the label of a position without a target


class WithLoss(nn.Module):
    """`model` with a forward that returns the summed cross-entropy, in nats, of a batch's targets.

    `labels` [B, T] are aligned with `input_ids` [B, T]: the token to predict at each position, or IGNORED.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, BertForMaskedLM):
            # Only the masked positions need a head: 15 % of the logits.
            masked = labels != IGNORED
            hidden_BTD = self.model.bert(input_ids=input_ids).last_hidden_state
            logits, labels = self.model.cls(hidden_BTD[masked]), labels[masked]
        else:
            logits = self.model(input_ids=input_ids).logits
        # In fp32: a 16-bit log-sum-exp over the vocabulary loses the digits that the loss is made of.
        return F.cross_entropy(
            logits.float().view(-1, logits.size(-1)), labels.view(-1), ignore_index=IGNORED, reduction="sum"
        )
