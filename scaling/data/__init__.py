"""Text in, batches out: a step's tokens are a pure function of the recipe and its samples' numbers.

`prepare` turns a recipe's text into a tokenizer and a stream of tokens, once per corpus; `Split.batch` cuts
samples out of the stream; `micro_batch_indices` says which samples one rank takes in one micro step.
"""

from scaling.data.samples import IGNORED, Split, count_targets, micro_batch_indices
from scaling.data.tokens import Corpus, prepare

__all__ = ["IGNORED", "Corpus", "Split", "count_targets", "micro_batch_indices", "prepare"]
