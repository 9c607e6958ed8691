"""DeepSpeed's JSON: a plan spelt in DeepSpeed's keys, and a user's file read back strictly.

The only room that knows how DeepSpeed calls things; keys and defaults are those of deepspeed 0.19.8.
"""

from scaling.ds_config.read import load, reconcile, strategy_of
from scaling.ds_config.write import emit, grad_accum_dtype, machinery

__all__ = ["emit", "grad_accum_dtype", "load", "machinery", "reconcile", "strategy_of"]
