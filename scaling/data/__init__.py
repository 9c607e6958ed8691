"""Text or images in, batches out: a step's samples are a pure function of the recipe and their numbers.

`prepare` turns a recipe's corpus into what its task's samples are cut from, once per corpus; `batch` of either part
makes samples by number; `micro_batch_indices` says which samples one rank takes in one micro step.
"""

from pathlib import Path

from scaling.data import images, tokens
from scaling.data.images import Images
from scaling.data.prepared import Corpus
from scaling.data.samples import IGNORED, Split, count_targets, micro_batch_indices
from scaling.recipe import Recipe

__all__ = ["IGNORED", "Corpus", "Images", "Split", "count_targets", "micro_batch_indices", "prepare"]


def prepare(recipe: Recipe, *, base: Path, cache: Path) -> Corpus:
    """The corpus of `recipe`, its files relative to `base`; built under `cache` unless it is there.

    Raises InputError for a corpus that cannot be read or makes no sample and for a cache that cannot be written,
    FileProblems for one that is damaged.
    """
    kind = images if recipe.task == "image-classification" else tokens
    return kind.prepare(recipe, base=base, cache=cache)
