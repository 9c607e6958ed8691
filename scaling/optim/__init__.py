"""Large-batch optimizers that stay themselves under every plan: LAMB, LARS and LANS, exact however tensors are cut."""

from scaling.optim.lamb import CONVENTIONS, Lamb
from scaling.optim.lans import Lans
from scaling.optim.lars import Lars

__all__ = ["CONVENTIONS", "Lamb", "Lans", "Lars"]
