"""Models: transformers' own classes, built from a Shape, and the loss they are trained with."""

from scaling.models.build import build
from scaling.models.loss import WithLoss

__all__ = ["WithLoss", "build"]
