"""Large-batch optimizers that stay themselves under every plan: LAMB and LARS, exact when ZeRO cuts their tensors."""

from scaling.optim.lamb import CONVENTIONS, Lamb
from scaling.optim.lars import Lars

__all__ = ["CONVENTIONS", "Lamb", "Lars"]
