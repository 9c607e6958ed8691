"""Samples by number: what sample i holds depends on the recipe and i, never on the layout or on a resume.

Alphabet: B samples in a batch, T tokens in a sample. There is no iterator and no state: a step names the
samples that it wants. Randomness is Philox's raw stream, keyed by (seed, number): NumPy keeps the streams of
its bit generators stable across versions, and promises nothing for the methods of Generator (NEP 19).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from scaling.data.tokenizer import MASK_ID, SPECIALS
from scaling.errors import InputError

IGNORED = -100  # the label of a position that is not predicted; torch's cross_entropy skips it

# Streams of random numbers that never meet.
_ORDER, _MASKS = 0, {"train": 1, "validation": 2}


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a corpus: a token stream in windows of `seq_length` that do not overlap.

    Training takes the windows in a new order each epoch and numbers its samples through all epochs.
    Validation takes them as they stand, with the same masks every time. `vocab_size` is the tokenizer's.
    """

    part: Literal["train", "validation"]
    task: Literal["causal-lm", "masked-lm"]
    tokens: np.ndarray
    seq_length: int
    masking_fraction: float
    vocab_size: int
    seed: int

    @property
    def num_samples(self) -> int:
        """Samples in one epoch. A causal stream needs one token more, the last target."""
        return max(0, len(self.tokens) - (self.task == "causal-lm")) // self.seq_length

    @property
    def targets_per_sample(self) -> int:
        """Positions with a label: as many in each, so that the mean over micro batches is the batch's."""
        return self.targets_in(self.seq_length)

    def targets_in(self, T: int) -> int:
        """Of them in a sample cut to T tokens."""
        return T if self.task == "causal-lm" else max(1, round(self.masking_fraction * T))

    def batch(self, indices: Sequence[int], seq_length: int | None = None) -> dict[str, torch.Tensor]:
        """`input_ids` and `labels`, both int64 of B x T, of the samples numbered `indices` from 0.

        With `seq_length` each is cut to so many tokens, before any are masked. labels[b, t] is what position t
        predicts, or IGNORED: for a causal LM they are shifted already.
        """
        numbers = np.asarray(indices)
        if self.part == "validation":
            numbers = numbers % self.num_samples
        T = self.seq_length if seq_length is None else seq_length
        inputs_BT, labels_BT = (_causal if self.task == "causal-lm" else _masked)(self, numbers, T)
        return {"input_ids": torch.from_numpy(inputs_BT), "labels": torch.from_numpy(labels_BT)}


def micro_batch_indices(
    *,
    first_sample: int,
    global_batch_size: int,
    rank: int,
    data_parallel_size: int,
    micro_step: int,
    gradient_accumulation_steps: int,
) -> range:
    """The samples that data-parallel `rank` takes in `micro_step` of an optimizer step, all counted from 0.

    The step is `global_batch_size` samples from `first_sample` on (scaling/course.py), in any layout: a rank takes a
    contiguous share, a micro step a contiguous slice of that. Raises InputError for a batch that does not divide.
    """
    shares = data_parallel_size * gradient_accumulation_steps
    size, rest = divmod(global_batch_size, shares)
    if rest:
        raise InputError(
            "global_batch_size", global_batch_size,
            f"is not a multiple of data parallel {data_parallel_size} x accumulation "
            f"{gradient_accumulation_steps}",
            hint=f"{(size + 1) * shares} is" + (f", and {size * shares}" if size else ""),
        )  # fmt: skip
    start = first_sample + (rank * gradient_accumulation_steps + micro_step) * size
    return range(start, start + size)


def _causal(split: Split, numbers: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    windows = _windows(split, numbers, T + 1)
    return windows[:, :-1].copy(), windows[:, 1:].copy()


def _masked(split: Split, numbers: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking (Devlin et al. 2018, 3.1): of the targets 80 % become <|mask|>, 10 % a random token.

    Each sample has `targets_in(T)` targets, drawn anew each epoch. Special tokens are drawn last, and
    never as the random token.
    """
    num_specials = len(SPECIALS)
    windows_BT = _windows(split, numbers, T)
    draws = np.stack([_uniform(split.seed, int(number), _MASKS[split.part], 3 * T) for number in numbers])
    place_BT, fate_BT, token_BT = draws.reshape(-1, 3, T).swapaxes(0, 1)

    order_BT = (place_BT + (windows_BT < num_specials)).argsort(axis=1)
    target_BT = np.zeros(windows_BT.shape, bool)
    np.put_along_axis(target_BT, order_BT[:, : split.targets_in(T)], True, axis=1)

    random_BT = num_specials + (token_BT * (split.vocab_size - num_specials)).astype(np.int64)
    inputs_BT = np.where(target_BT & (fate_BT < 0.9), random_BT, windows_BT)
    inputs_BT[target_BT & (fate_BT < 0.8)] = MASK_ID
    return inputs_BT, np.where(target_BT, windows_BT, IGNORED)


def _windows(split: Split, numbers: np.ndarray, width: int) -> np.ndarray:
    """`width` tokens from the start of each sample, int64 of B x width."""
    epochs, slots = np.divmod(numbers, split.num_samples)
    if split.part == "train":
        orders = [_order(split.seed, int(epoch), split.num_samples) for epoch in epochs]
        slots = np.array([order[slot] for order, slot in zip(orders, slots, strict=True)])
    return split.tokens[slots[:, None] * split.seq_length + np.arange(width)].astype(np.int64)


@lru_cache(maxsize=2)  # a batch may reach across the end of an epoch
def _order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The training windows of `epoch` in the order they are taken: a permutation of range(num_samples)."""
    return _uniform(seed, epoch, _ORDER, num_samples).argsort(kind="stable")


def _uniform(seed: int, number: int, stream: int, size: int) -> np.ndarray:
    """`size` numbers in [0, 1). Draws count up the counter's low words; `stream` is its high word."""
    raw = np.random.Philox(key=[seed, number], counter=[0, 0, 0, stream]).random_raw(size)
    return (raw >> np.uint64(11)) * 2.0**-53  # 53 bits, what a double holds


def count_targets(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions of a batch that have one."""
    return (batch["labels"] != IGNORED).sum()
