"""Models: transformers' own classes, built from a Shape, the loss they are trained with, and what their layers keep."""

from scaling.models.build import build, prepare_for_use
from scaling.models.checkpointing import checkpoint_layers
from scaling.models.loss import WithLoss
from scaling.models.weights import pretrained

__all__ = ["WithLoss", "build", "checkpoint_layers", "prepare_for_use", "pretrained"]
