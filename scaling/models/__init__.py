"""Models: transformers' own classes, built from a Shape, and the loss they are trained with."""

from scaling.models.build import build, prepare_for_use
from scaling.models.loss import WithLoss

__all__ = ["WithLoss", "build", "prepare_for_use"]
